"""Stochastic forming: which layers are replaced, by what, with which weights, and that nothing else changes."""

import copy
import math

import pytest
import torch
from torch import nn
from torch.nn.utils import prune
from torch.nn.utils.parametrizations import weight_norm

from sparsekern.models import create_model
from sparsekern.models.form import StochasticConvReLU2d, form_stochastic
from sparsekern.nn import GroupedConv2d, SparseLinear, StochasticConv2d


class Small(nn.Module):
    """One layer of each kind, a shared one, and one in a container."""

    def __init__(self):
        super().__init__()
        self.conv1 = GroupedConv2d(3, 16, 3, padding=1, activation="relu")
        self.conv2 = nn.Conv2d(16, 16, 3, stride=2, padding=1, bias=False)
        self.again = self.conv2
        self.tail = nn.Sequential(nn.Conv2d(16, 32, 1), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten())
        self.fc = nn.Linear(32, 10)

    def forward(self, x):
        return self.fc(self.tail(self.again(self.conv2(self.conv1(x)))))


def kept(model):
    """Kept weights by layer name."""
    return {name: layer.weight.numel() for name, layer in model.named_modules() if isinstance(layer, (StochasticConv2d, SparseLinear))}


def test_each_kind_of_layer_has_its_own_probability():
    model = form_stochastic(Small(), conv=0.5, pointwise=0.25, linear=0.5)
    assert kept(model) == {"conv1": 216, "conv2": 1152, "tail.0": 128, "fc": 160}
    assert (model.conv1.granularity, model.tail[0].granularity) == ("spatial", "synapse")
    assert model.again is model.conv2
    assert kept(form_stochastic(Small(), linear=0.5)) == {"fc": 160}
    assert kept(form_stochastic(Small())) == {}
    assert form_stochastic(model) is model
    assert isinstance(form_stochastic(nn.Linear(8, 8), linear=0.5), SparseLinear)  # a layer is a model, too


def test_names_win_over_kinds_and_later_names_over_earlier():
    model = form_stochastic(Small(), conv=0.5, layers={"conv*": 1.0, "conv2": 0.25, "tail.?": 0.5})
    assert kept(model) == {"conv2": 576, "tail.0": 256}


def test_a_fused_activation_and_every_name_stay():
    torch.manual_seed(1)
    model = Small()
    before, x = dict(model.named_parameters()), torch.randn(2, 3, 8, 8)
    inner = model.conv1(x)
    formed = form_stochastic(model, conv=0.5)
    assert list(dict(formed.named_parameters())) == list(before)
    assert type(formed.conv1) is StochasticConvReLU2d and type(formed.conv2) is StochasticConv2d
    assert "activation=relu" in repr(formed.conv1)
    out = formed.conv1(x)
    assert (inner >= 0).all() and (out >= 0).all() and out.count_nonzero() > 0
    dense = nn.functional.conv2d(x.double(), formed.conv1.weight_dense().double(), formed.conv1.bias.double(), padding=1).relu()
    # 27 products and a bias, each rounded by at most 2^-24 of the sum of their sizes, and as often again for the additions
    bound = nn.functional.conv2d(x.abs().double(), formed.conv1.weight_dense().abs().double(), formed.conv1.bias.abs().double(), padding=1)
    assert ((out.double() - dense).abs() <= 2 * 28 * 2**-24 * bound).all()


@pytest.mark.parametrize("granularity", ["spatial", "synapse", "kernel"])
def test_kept_weights_are_the_dense_ones_at_the_true_fan_in(granularity):
    dense = nn.Conv2d(16, 32, 3).double()
    sparse = form_stochastic(copy.deepcopy(dense), conv=0.3, granularity=granularity)
    full = sparse.weight_dense()  # [32, 16, 3, 3]
    mask = full != 0
    fan_in = mask.flatten(1).sum(1)
    expected = dense.weight * mask * (144 / fan_in.clamp_min(1)).sqrt()[:, None, None, None]
    torch.testing.assert_close(full, expected, rtol=1e-14, atol=0)
    assert torch.equal(sparse.bias, dense.bias) and fan_in.unique().numel() > 1
    linear = nn.Linear(64, 32).double()
    sparse = form_stochastic(copy.deepcopy(linear), linear=0.25)
    full = sparse.weight_dense()
    torch.testing.assert_close(full, linear.weight * (full != 0) * 2, rtol=1e-14, atol=0)


def test_the_initial_variance_is_hes_at_the_fan_in_that_is_left():
    net = form_stochastic(create_model("nin", generator=torch.Generator().manual_seed(0)), conv=0.1)
    for layer in (net.conv2a, net.conv3a):
        blocks = layer.indptr.diff().long()
        fan_in = (blocks * layer.in_channels).repeat_interleave(blocks)  # of each kept block's filter
        normed = layer.weight[:, 0, :, 0] * (fan_in / 2).sqrt()[:, None]
        # five deviations of the variance of as many normal samples
        assert normed.var().item() == pytest.approx(1, abs=5 * math.sqrt(2 / normed.numel()))


def test_filter_groups_are_kept():
    layer = GroupedConv2d(16, 32, 3, padding=1, groups=4)
    sparse = form_stochastic(copy.deepcopy(layer), conv=0.5, granularity="synapse")
    assert sparse.groups == 4 and sparse.weight.numel() == 32 * 4 * 9 // 2
    assert not (sparse.weight_dense() != 0)[layer.weight_dense() == 0].any()  # nothing between the groups


def test_convolutions_made_of_parts_are_formed_part_by_part():
    layer = GroupedConv2d(12, 24, 3, padding=1, group_sizes=[(2, 4), (2, 4), (8, 16)], activation="relu")
    before, x = layer.weight_dense(), torch.randn(2, 12, 6, 6)
    form_stochastic(layer, conv=0.5)
    assert kept(layer) == {"parts.0": 72, "parts.1": 576}
    assert not (layer.weight_dense() != 0)[before == 0].any()
    expected = nn.functional.conv2d(x, layer.weight_dense(), torch.cat([part.bias for part in layer.parts]), padding=1).relu()
    torch.testing.assert_close(layer(x), expected, rtol=0, atol=2 * 73 * 2**-24 * 20)  # 73 roundings of sums whose terms stay below 20


def test_a_seed_fixes_the_masks_and_differs_between_layers():
    one, two, other = (form_stochastic(create_model("nin"), conv=0.25, seed=seed) for seed in (5, 5, 6))
    alone = form_stochastic(create_model("nin"), layers={"conv2a": 0.25}, seed=5)
    assert torch.equal(one.conv2a.index, two.conv2a.index) and torch.equal(one.conv2a.index, alone.conv2a.index)
    assert not torch.equal(one.conv2a.index, other.conv2a.index)
    twin = form_stochastic(nn.Sequential(*(nn.Conv2d(8, 8, 3) for _ in range(2))), conv=0.5)
    assert not torch.equal(twin[0].index, twin[1].index)
    state = torch.get_rng_state()
    model = Small()
    torch.set_rng_state(state)
    form_stochastic(model, conv=0.5, linear=0.5, seed=1)
    assert torch.equal(torch.get_rng_state(), state)
    form_stochastic(model, pointwise=0.5, seed=None)
    assert not torch.equal(torch.get_rng_state(), state)


def test_a_shared_layer_goes_by_each_of_its_names():
    first, second = (form_stochastic(Small(), layers={name: 0.25}) for name in ("conv2", "again"))
    assert kept(first) == kept(second) == {"conv2": 576} and second.again is second.conv2
    assert torch.equal(first.conv2.index, second.again.index)
    assert kept(form_stochastic(Small(), layers={"conv2": 0.25, "again": 0.5})) == {"conv2": 1152}  # the last match counts


class Doubled(nn.Linear):
    """A forward of its own."""

    def forward(self, x):
        return 2 * super().forward(x)


def tied():
    model = nn.Sequential(nn.Linear(8, 8), nn.Linear(8, 8))
    model[1].weight = model[0].weight
    return model


def owned_by_the_model():
    model = nn.Sequential(nn.Linear(8, 8))
    model.weight = model[0].weight
    return model


@pytest.mark.parametrize(
    ("build", "name", "reason"),
    [
        (lambda: nn.MultiheadAttention(8, 2), "out_proj", "MultiheadAttention reads its weight without calling it"),
        (lambda: nn.TransformerEncoderLayer(8, 2, 16), "linear1", "TransformerEncoderLayer reads its weight without calling it"),
        (lambda: nn.Sequential(Doubled(8, 8)), "0", "Doubled has a forward of its own"),
        (lambda: nn.Sequential(weight_norm(nn.Conv2d(8, 8, 3))), "0", "it holds more than a weight and a bias (parametrizations)"),
        (
            lambda: nn.Sequential(prune.random_unstructured(nn.Conv2d(8, 8, 1), "weight", 0.5)),
            "0",
            "it holds more than a weight and a bias (weight_mask, weight_orig)",
        ),
        (tied, "1", "it shares a parameter with 0"),
        (owned_by_the_model, "0", "it shares a parameter with the model itself"),
        (lambda: nn.Sequential(nn.LazyLinear(8)), "0", "its weight has no shape yet"),
    ],
)
def test_layers_that_a_sparse_one_cannot_stand_in_for_stay_dense(build, name, reason):
    model = build()
    layers = dict(model.named_modules())
    assert form_stochastic(model, conv=0.5, pointwise=0.5, linear=0.5) is model and dict(model.named_modules()) == layers
    rule = "match layers that a sparse one can stand in for"
    with pytest.raises(ValueError) as raised:
        form_stochastic(model, layers={"*": 1.0, f"{name}*": 0.5})
    assert str(raised.value) == f"form_stochastic: layers must {rule}; got '{name}*', which matches {name}: {reason}"
    assert dict(model.named_modules()) == layers


@torch.no_grad()
def test_a_formed_transformer_runs_in_both_modes():
    encoder = nn.TransformerEncoder(nn.TransformerEncoderLayer(16, 2, 32, batch_first=True), 1)
    model, x = nn.Sequential(encoder, nn.Linear(16, 16)), torch.randn(2, 5, 16)
    expected = encoder.eval()(x)
    form_stochastic(model, linear=0.5)
    assert kept(model) == {"1": 128} and torch.equal(encoder(x), expected)
    assert model.train()(x).shape == x.shape


def test_bernoulli_draws_each_connection_by_itself():
    counts = {form_stochastic(nn.Conv2d(32, 64, 3), conv=0.25, count="bernoulli", seed=seed).weight.numel() for seed in range(5)}
    assert len(counts) > 1
    # 576 positions of 32 weights: five deviations of a binomial
    assert all(abs(count - 4608) <= 5 * 32 * math.sqrt(576 * 0.25 * 0.75) for count in counts)


def test_device_dtype_mode_and_frozen_parameters_stay():
    model = Small().double().eval()
    model.conv2.weight.requires_grad_(False)
    formed = form_stochastic(model, conv=0.5, pointwise=0.5, linear=0.5)
    assert all(p.dtype == torch.float64 for p in formed.parameters()) and not any(m.training for m in formed.modules())
    assert not formed.conv2.weight.requires_grad and formed.conv1.weight.requires_grad
    with torch.device("meta"):
        shapes = form_stochastic(Small(), conv=0.5, pointwise=0.25, linear=0.5)
    assert kept(shapes) == {"conv1": 216, "conv2": 1152, "tail.0": 128, "fc": 160}
    assert all(p.is_meta for p in shapes.parameters())


@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        ({"conv": 0}, r"form_stochastic: conv must be in \(0, 1\]; got 0"),
        ({"pointwise": 1.5}, r"form_stochastic: pointwise must be in \(0, 1\]; got 1.5"),
        ({"linear": float("nan")}, r"form_stochastic: linear must be in \(0, 1\]; got nan"),
        ({"layers": {"fc": -1}}, r"form_stochastic: layers\['fc'\] must be in \(0, 1\]; got -1"),
        (
            {"layers": {"conv9*": 0.5}},
            r"form_stochastic: layers must match convolutions or linear layers \(conv1, conv2, tail.0, fc\); got 'conv9\*'",
        ),
        ({"granularity": "row"}, r"form_stochastic: granularity must be one of \('spatial', .*\); got 'row'"),
        ({"pointwise_granularity": "row"}, r"form_stochastic: pointwise_granularity must be one of .*; got 'row'"),
        ({"count": "about"}, r"form_stochastic: count must be one of \('exact', 'bernoulli'\); got 'about'"),
    ],
)
def test_bad_arguments_are_answered_in_words_and_change_nothing(options, sentence):
    model = Small()
    layers = dict(model.named_modules())
    with pytest.raises(ValueError, match=sentence):
        form_stochastic(model, **{"conv": 0.5, **options})
    assert dict(model.named_modules()) == layers


def test_nothing_is_replaced_unless_all_can_be():
    model = Small()
    layers = dict(model.named_modules())
    with pytest.raises(ValueError, match="StochasticConv2d: in_channels must be a positive multiple of 16; got 3"):
        form_stochastic(model, conv=0.5, pointwise=0.5, linear=0.5, granularity="block")
    assert dict(model.named_modules()) == layers
