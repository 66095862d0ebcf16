"""StochasticNet in StochasticNet: the rows of both tables, exact where they are exact, and near where they were drawn."""

import math

import pytest
import torch
from torch import nn

from sparsekern.models import create_model
from sparsekern.models.sis import ROWS, sis_nin, sis_widths
from sparsekern.nn import StochasticConv2d

# StochasticNet in StochasticNet, Tables 1 and 2: synapses of the convolutional layers (CL) and of the micro networks (MP).
# The dense CL of each width and the expected CL follow from the widths and probabilities.
PRINTED = {  # name: (CL printed, CL expected, MP printed)
    "sis_nin": (806_976, 806_976, 152_128),
    "sis_cifar10_1": (201_522, 201_744, 152_128),
    "sis_cifar10_2": (203_475, 205_344, 63_008),
    "sis_cifar10_3": (212_544, 212_544, 28_240),
    "sis_svhn_1": (203_697, 201_744, 152_128),
    "sis_svhn_2": (207_618, 205_344, 63_008),
    "sis_svhn_3": (54_048, 53_136, 28_240),
}
DENSE_CL = {1.0: 806_976, 0.5: 410_688, 0.25: 212_544}  # by t_p


def synapses(net):
    """(CL, MP): weights of the k x k and of the 1 x 1 convolutions."""
    convs = ("conv1a", "conv2a", "conv3a")
    weights = {name: p.numel() for name, p in net.named_parameters() if name.endswith("weight")}
    assert len(weights) == 9
    cl = sum(weights[f"{name}.weight"] for name in convs)
    return cl, sum(weights.values()) - cl


@pytest.mark.parametrize("name", PRINTED)
def test_synapses_are_the_tables(name):
    net = create_model(name)
    cl, mp = synapses(net)
    assert (cl, mp) == PRINTED[name][1:]
    assert cl + mp == sum(p.numel() for p in net.parameters())  # weights only: there are no biases
    assert PRINTED[name][0] == cl if name in ("sis_nin", "sis_cifar10_3") else PRINTED[name][0] % 3 == 0


@pytest.mark.parametrize("t_p", DENSE_CL)
def test_the_dense_convolutions_of_each_width(t_p):
    assert synapses(sis_nin(t_p))[0] == DENSE_CL[t_p]


def test_widths():
    assert sis_widths() == ((192, 160, 96), (192, 192, 192), (192, 160))
    assert sis_widths(0.25) == ((192, 40, 24), (192, 48, 48), (192, 40))


def test_only_the_rows_with_random_sparsity_have_masks():
    for name, (_, t_c) in ROWS.items():
        net = create_model(name)
        assert isinstance(net.conv2a, StochasticConv2d) == (t_c < 1)
        assert not isinstance(net.conv2b, StochasticConv2d)  # the micro networks are narrower, not sparse
        if t_c < 1:
            assert net.conv2a.granularity == "spatial" and net.conv2a.density == t_c


@pytest.mark.parametrize("name", [name for name, (_, t_c) in ROWS.items() if t_c < 1])
def test_bernoulli_draws_lie_about_the_expected_count_as_the_printed_one_does(name):
    t_p, t_c = ROWS[name]
    printed, expected, _ = PRINTED[name]
    channels = 3, *(widths[-1] for widths in sis_widths(t_p)[:2])
    positions = 192 * 25, 192 * 25, 192 * 9
    deviation = math.sqrt(sum(n * t_c * (1 - t_c) * c**2 for n, c in zip(positions, channels)))
    assert abs(printed - expected) < deviation  # the paper's one draw: all five within one deviation
    counts = [synapses(create_model(name, count="bernoulli", seed=seed))[0] for seed in range(3)]
    assert len(set(counts)) > 1 and all(count % 3 == 0 and abs(count - expected) < 5 * deviation for count in counts)


def test_a_seed_gives_the_same_masks():
    one, two, other = (create_model("sis_svhn_3", seed=seed) for seed in (3, 3, 4))
    assert torch.equal(one.conv2a.index, two.conv2a.index) and not torch.equal(one.conv2a.index, other.conv2a.index)


def test_options():
    net = create_model("sis_svhn_3", bias=True, batch_norm=True, classes=7, granularity="synapse", conv=nn.Conv2d)
    assert net.conv3c.bias.shape == (7,) and isinstance(net.bn2a, nn.BatchNorm2d) and net.conv2a.granularity == "synapse"
    assert net(torch.randn(2, 3, 16, 16)).shape == (2, 7)
    with pytest.raises(ValueError, match=r"sis_nin: t_p must be in \(0, 1\]; got 0"):
        sis_nin(0)
    with pytest.raises(ValueError, match=r"form_stochastic: conv must be in \(0, 1\]; got 2"):
        sis_nin(1.0, 2)
    with pytest.raises(ValueError, match=r"create_model: options of sis_nin must be among .*; got depth"):
        create_model("sis_nin", depth=2)
