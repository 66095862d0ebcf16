"""Every convention by hand on small layers, and on the networks whose printed rows fixed its rules."""

from functools import partial

import pytest
import torch
from torch import nn

from sparsekern.models import create_model
from sparsekern.models.googlenet import INCEPTIONS, ConvUnit, Inception
from sparsekern.models.resnet import ResNet
from sparsekern.nn import GroupedConv2d
from sparsekern.profile.count import count

CONV = 6 * 2 * 9  # weights of the convolution below, at 4x4 positions
FC = 5 * 24


def net():
    """x [4, 4, 4] -> conv -> batch-norm -> ReLU -> max-pool 2x2 -> linear."""
    return nn.Sequential(
        nn.Conv2d(4, 6, 3, padding=1, groups=2), nn.BatchNorm2d(6), nn.ReLU(), nn.MaxPool2d(2), nn.Flatten(), nn.Linear(24, 5)
    )


@pytest.mark.parametrize(
    ("convention", "params", "macs", "flops"),
    [
        ("flops", CONV + 6 + 12 + FC + 5, CONV * 16 + FC, 2 * (CONV * 16 + FC)),
        ("deep_roots", CONV + 6 + FC + 5, CONV * 16 + FC, CONV * 16 + FC + 6 + 5),
        ("deep_roots_resnet200", CONV + 6 + 24 + 5, CONV * 16 + FC, CONV * 16 * 6 + 6 + 24 + 5),
        ("sis", CONV + FC, CONV * 16 + FC, CONV * 16 + FC),
        ("netscope", 2 * CONV + 12 + FC, 2 * CONV * 16 + 96 + FC, 2 * CONV * 16 + 96 + FC),
        ("patterns", CONV + 6 + FC, CONV * 16 + FC, CONV * 16 + 96 + FC),
    ],
)
def test_totals_by_hand(convention, params, macs, flops):
    counted = count(net(), (4, 4, 4), convention)
    assert (counted.params, counted.macs, counted.flops) == (params, macs, flops)
    assert counted.synapses == CONV + FC


def operations(model, shape):
    return count(model, shape, "netscope").operations


def test_netscope_by_hand():
    found = operations(net(), (4, 4, 4))
    assert found["comp"] == 96 + 24 * 4  # ReLU, max-pool
    assert found["add"] == found["div"] == 96 + 5  # batch-norm, softmax
    assert found["exp"] == 5
    assert found["activations"] == 64 + 96 + 2 * 96 + 96 + 24 + 5 + 5  # input, conv, batch-norm and scale, ReLU, pool, linear, softmax
    assert found["size_bytes"] == 4 * (2 * CONV + 12 + FC)
    assert found["size_with_biases_bytes"] == found["size_bytes"] + 4 * 11


class Steps(nn.Module):
    """One function in the place of a model."""

    def __init__(self, function):
        super().__init__()
        self.function = function

    def forward(self, x):
        return self.function(x)


def in_place_sum(x):
    y = x.clone()
    y += x
    return y


# model or function on x [4, 6, 6] (144 elements) -> comp, add, div, exp, activations, without the softmax and the input
STEPS = {
    "relu module": (nn.ReLU(), (144, 0, 0, 0, 144)),
    "relu functions": (lambda x: torch.relu(x).relu_(), (288, 0, 0, 0, 288)),
    "dropout": (nn.Dropout(), (144, 0, 0, 0, 144)),
    "max-pool": (nn.MaxPool2d(3, 2, ceil_mode=True), (36 * 9, 0, 0, 0, 36)),
    "max-pool with indices": (lambda x: nn.functional.max_pool2d(x, (2, 3), return_indices=True)[0], (24 * 6, 0, 0, 0, 24)),
    "global max-pool": (nn.AdaptiveMaxPool2d(1), (144, 0, 0, 0, 4)),
    "average pool": (nn.AvgPool2d((3, 2), 2), (0, 24 * 6, 0, 0, 24)),
    "global average pool": (nn.AdaptiveAvgPool2d(1), (0, 144, 0, 0, 4)),
    "mean over maps": (lambda x: x.mean((2, 3)), (0, 144, 0, 0, 4)),
    "mean over flat maps": (lambda x: x.flatten(2).mean(-1), (0, 144, 0, 0, 4)),
    "another mean": (lambda x: x.mean(1), (0, 0, 0, 0, 0)),
    "mean of everything": (lambda x: x.flatten(1).mean(), (0, 0, 0, 0, 0)),
    "addition": (lambda x: x + x, (0, 144, 0, 0, 144)),
    "addition in place": (in_place_sum, (0, 144, 0, 0, 144)),
    "no additions": (lambda x: 1 + x + torch.ones(6), (0, 0, 0, 0, 0)),
    "concatenation": (lambda x: torch.cat([x, x], 1), (0, 0, 0, 0, 288)),
    "local response norm": (nn.LocalResponseNorm(5), (0, 144, 288, 144, 144)),
    "batch-norm": (nn.BatchNorm2d(4, affine=False), (0, 144, 144, 0, 144)),
    "batch-norm and scale": (nn.BatchNorm2d(4), (0, 144, 144, 0, 288)),
}


@pytest.mark.parametrize("name", STEPS)
def test_netscope_steps_by_hand(name):
    model, expected = STEPS[name]
    model = model if isinstance(model, nn.Module) else Steps(model)
    out = model(torch.zeros(1, 4, 6, 6)).numel()
    found = operations(model, (4, 6, 6))
    softmax = (0, out, out, out, out + 144)
    keys = ("comp", "add", "div", "exp", "activations")
    assert tuple(found[key] - also for key, also in zip(keys, softmax, strict=True)) == expected


def test_netscope_parameters_of_norms():
    norm = nn.BatchNorm2d(4)
    twice = count(nn.Sequential(norm, norm), (4, 6, 6), "netscope")
    assert (twice.params, twice.macs) == (8, 2 * 144)  # stored once, computed twice
    assert count(nn.BatchNorm2d(4, affine=False), (4, 6, 6), "netscope").params == 8
    lrn = count(nn.LocalResponseNorm(5), (4, 6, 6), "netscope")
    assert (lrn.params, lrn.macs) == (2, 144 * 5)


def test_netscope_adds_a_softmax_only_where_there_is_none():
    with_softmax = nn.Sequential(*net(), nn.Softmax(dim=1))
    assert operations(with_softmax, (4, 4, 4)) == operations(net(), (4, 4, 4))


def test_a_fused_relu_counts_like_one_of_its_own():
    def small(conv, **options):
        return nn.Sequential(conv(4, 8, 3, groups=2, **options), *([] if options else [nn.ReLU()]))

    fused = operations(small(GroupedConv2d, activation="relu"), (4, 6, 6))
    assert fused == operations(small(nn.Conv2d), (4, 6, 6)) and fused["comp"] == 8 * 16


# ---- the rows of SimpleNet's appendix that belong to networks of this package, to the unit

ROWS = {  # MACC, COMP, ADD, DIV, EXP, activations, params
    "alexnet": (1137641216, 1768640, 478024, 955048, 478024, 2080811, 62367780),
    "googlenet": (1604042752, 16107376, 882920, 1664488, 832744, 10218699, 6990276),
    "resnet50": (3868560384, 10888192, 16207848, 10588136, 1000, 46717904, 25556032),
    "resnet152": (11304442880, 22328320, 35274728, 22028264, 1000, 100105168, 60191808),
    "simplenet_5m": (652151296, 837632, 10, 10, 10, 1345812, 5484736),
}


def standard_googlenet():
    """GoogLeNet as netscope's preset has it, without auxiliary classifiers: not the geometry of Deep Roots."""
    unit, pool = partial(ConvUnit, GroupedConv2d, batch_norm=False), partial(nn.MaxPool2d, 3, stride=2, ceil_mode=True)
    layers = [
        *(unit(3, 64, 7, stride=2), pool(), nn.LocalResponseNorm(5)),
        *(unit(64, 64, 1), unit(64, 192, 3), nn.LocalResponseNorm(5), pool()),
    ]
    channels = 192
    for name, widths in INCEPTIONS.items():
        layers.append(Inception(unit, channels, widths, (1, 1)))
        channels = layers[-1].out_channels
        layers += [pool()] if name in ("3b", "4e") else []
    return nn.Sequential(*layers, nn.AvgPool2d(7), nn.Dropout(), nn.Flatten(), nn.Linear(1024, 1000))


@pytest.mark.parametrize(
    ("row", "build", "shape"),
    [
        ("alexnet", partial(create_model, "alexnet"), (3, 227, 227)),
        ("alexnet", partial(create_model, "alexnet_groups_2"), (3, 227, 227)),  # netscope of 2016 saw no groups
        ("googlenet", standard_googlenet, (3, 227, 227)),
        ("resnet50", partial(create_model, "resnet50"), (3, 224, 224)),
        ("resnet50", partial(create_model, "resnet50_root_64", conv=nn.Conv2d), (3, 224, 224)),
        ("resnet152", partial(ResNet, blocks=(3, 8, 36, 3)), (3, 224, 224)),
        # not with ReLUs fused: that of conv4 comes after its pooling, on a quarter of the elements
        ("simplenet_5m", partial(create_model, "simplenet_5m", batch_norm=False, conv=nn.Conv2d), (3, 32, 32)),
    ],
)
def test_rows_of_the_papers_table(row, build, shape):
    with torch.device("meta"):
        model = build()
    found = count(model, shape, "netscope")
    keys = ("comp", "add", "div", "exp", "activations")
    assert (found.macs, *(found.operations[key] for key in keys), found.params) == ROWS[row]


def test_the_simplenet_row_prints_the_size_with_biases():
    found = operations(create_model("simplenet_5m", batch_norm=False), (3, 32, 32))
    assert round(found["size_with_biases_bytes"] / 2**20, 2) == 20.94  # printed 20.9
    assert round(found["size_bytes"] / 2**20, 2) == 20.92


# ---- the other papers, one network each; their tables have tests of their own


@pytest.mark.parametrize(
    ("name", "printed", "true"),
    [
        ("resnet200", (5_653_622_950_888, 62_451_880), (15_007_482_856, 64_497_832)),
        ("resnet200_root_8", (4_835_135_982_568, 49_084_072), (10_542_220_264, 51_130_024)),
    ],
)
def test_resnet200_as_printed_and_true(name, printed, true):
    with torch.device("meta"):
        model = create_model(name)
    as_printed, counted = count(model, (3, 224, 224), "deep_roots_resnet200"), count(model, (3, 224, 224), "deep_roots")
    assert (as_printed.flops, as_printed.params) == printed
    assert (counted.flops, counted.params) == true
    assert as_printed.macs == counted.macs == true[0] - 1000  # the biases of fc


def test_sis_counts_weights_only():
    assert count(create_model("sis_nin"), (3, 32, 32), "sis").params == 959_104


def test_patterns_count_one_addition_per_biased_output():
    full = count(create_model("cifar10_conv_2cl"), (3, 32, 32), "patterns")
    assert (full.params, full.flops) == (1_145_408 + 2_105_344, 152_993_792 + 2_105_344)
    sparse = count(create_model("cifar10_conv_2cl", fan_out=(1, 1)), (3, 32, 32), "patterns")
    assert (sparse.params, sparse.flops) == (1_145_408 + 4_608, 152_993_792 + 4_608)
    unbiased = nn.Conv2d(4, 6, 3, bias=False)
    assert count(unbiased, (4, 5, 5), "patterns").flops == 6 * 4 * 9 * 9
