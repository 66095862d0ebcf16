"""Network in Network: the layers, the counts of the paper's rows, and one definition for every convolution."""

import math

import pytest
import torch
from torch import nn

from sparsekern.models import NiN, create_model, list_models
from sparsekern.profile.count import count
from sparsekern.reproduce.paper import paper_rows

ROWS = {row["model"]: (row["flops"], row["params"]) for row in paper_rows("deep_roots_nin")}
ROWS["nin_root_32"] = (88_302_986, 209_546)  # Figure 10 prints no counts; conv2a keeps 192*3*25 weights, conv3a 192*12*9


@pytest.mark.parametrize("name", list_models("nin*"))
@pytest.mark.parametrize("batch_norm", [False, True])
def test_counts_are_the_papers_to_the_last_unit(name, batch_norm):
    counted = count(create_model(name, conv=nn.Conv2d, batch_norm=batch_norm), (3, 32, 32), convention="deep_roots")
    assert (counted.flops, counted.params) == ROWS[name]


def test_feature_maps_are_those_of_the_paper():
    layers = count(create_model("nin_root_8", conv=nn.Conv2d), (3, 32, 32), convention="deep_roots").layers
    assert {layer.name: layer.out_shape for layer in layers} == {
        "conv1a": (192, 32, 32),
        "conv1b": (160, 32, 32),
        "conv1c": (96, 32, 32),
        "conv2a": (192, 16, 16),
        "conv2b": (192, 16, 16),
        "conv2c": (192, 16, 16),
        "conv3a": (192, 8, 8),
        "conv3b": (192, 8, 8),
        "conv3c": (10, 8, 8),
    }


@pytest.mark.parametrize("name", list_models("nin*"))
def test_backward_reaches_every_parameter(name):
    model = create_model(name, conv=nn.Conv2d, batch_norm=True)
    out = model(torch.randn(2, 3, 32, 32))
    assert out.shape == (2, 10)
    out.square().sum().backward()
    for parameter_name, parameter in model.named_parameters():
        assert parameter.grad is not None and parameter.grad.isfinite().all(), parameter_name
        assert parameter.grad.abs().sum() > 0 or parameter_name.startswith("bn") or parameter_name.endswith("bias"), parameter_name


def test_initial_weights_have_the_variance_of_their_true_fan_in():
    model = create_model("nin_root_16", conv=nn.Conv2d, generator=torch.Generator().manual_seed(0))
    for module in model.modules():
        if isinstance(module, nn.Conv2d):
            fan_in = module.in_channels // module.groups * module.kernel_size[0] ** 2
            samples = module.weight.numel()
            # the variance of a normal sample's variance is 2 s^4 / (samples - 1); five of its deviations
            assert module.weight.var().item() == pytest.approx(2 / fan_in, rel=5 * math.sqrt(2 / (samples - 1)))
            assert module.bias.count_nonzero() == 0


def test_a_generator_fixes_the_weights_and_leaves_torchs_alone_after_construction():
    one, two = (create_model("nin_root_2", conv=nn.Conv2d, generator=torch.Generator().manual_seed(5)) for _ in range(2))
    assert all(torch.equal(a, b) for a, b in zip(one.parameters(), two.parameters(), strict=True))


class FusedConv2d(nn.Conv2d):
    """Stands for a layer that computes the ReLU in its epilogue."""

    def __init__(self, *args, activation="none", **options):
        super().__init__(*args, **options)
        self.activation = activation

    def forward(self, x):
        return super().forward(x).relu() if self.activation == "relu" else super().forward(x)


def test_one_definition_and_one_state_dict_for_every_convolution():
    plain = create_model("nin_tree_4", conv=nn.Conv2d).eval()
    fused = create_model("nin_tree_4", conv=FusedConv2d).eval()
    assert not any(isinstance(module, nn.ReLU) for module in fused.modules())
    fused.load_state_dict(plain.state_dict())
    x = torch.randn(2, 3, 32, 32)
    assert torch.equal(plain(x), fused(x))
    # with a batch-norm in between, nothing may be fused
    trained = create_model("nin_tree_4", conv=FusedConv2d, batch_norm=True)
    assert trained.conv1a.activation == "none" and isinstance(trained.relu1a, nn.ReLU)


def test_the_default_convolution_is_ours_with_the_same_counts():
    model = create_model("nin_col_8")
    assert type(model.conv2a).__name__ == "GroupedConv2d" and model.conv2a.activation == "relu"
    ours, plain = (count(m, (3, 32, 32)) for m in (model, create_model("nin_col_8", conv=nn.Conv2d)))
    assert (ours.flops, ours.params) == (plain.flops, plain.params)
    by_rule = count(model, (3, 32, 32), convention="deep_roots")
    assert (by_rule.flops, by_rule.params) == ROWS["nin_col_8"]
    model(torch.randn(2, 3, 32, 32)).square().sum().backward()  # with a gradient needed nothing is fused
    for name, parameter in model.named_parameters():
        assert parameter.grad.isfinite().all() and parameter.grad.abs().sum() > 0, name


def test_blocks_and_poolings_make_the_model():
    model = create_model("nin", conv=nn.Conv2d)
    x = torch.randn(1, 3, 32, 32)
    expected = model(x)
    for block, pool in zip(model.blocks(), (model.pool1, model.pool2, model.pool3), strict=True):
        x = pool(block(x))
    assert torch.equal(x.flatten(1), expected)


def test_other_widths_without_biases_give_the_weights_of_stochasticnet_in_stochasticnet():
    # StochasticNet in StochasticNet, Tables 1 and 2: its perceptron layers (1x1) at full, half and a quarter of their width
    for widths, conv_weights, mlp_weights in (
        (((192, 160, 96), (192, 192, 192), (192, 160)), 806_976, 152_128),
        (((192, 80, 48), (192, 96, 96), (192, 80)), 410_688, 63_008),
        (((192, 40, 24), (192, 48, 48), (192, 40)), 212_544, 28_240),
    ):
        model = create_model("nin", widths=widths, bias=False, conv=nn.Conv2d)
        assert not any(name.endswith("bias") for name in model.state_dict())
        by_kernel = {True: 0, False: 0}
        for module in model.modules():
            if isinstance(module, nn.Conv2d):
                by_kernel[module.kernel_size[0] > 1] += module.weight.numel()
        assert by_kernel == {True: conv_weights, False: mlp_weights}
    with pytest.raises(ValueError, match=r"NiN: widths must be 3, 3 and 2 positive numbers of filters; got \(\(192,\),\)"):
        create_model("nin", widths=((192,),))


def test_unequal_groups_reach_the_convolution_as_their_sizes():
    asked = {}

    def conv(*args, group_sizes=None, **options):
        asked[args] = group_sizes
        return nn.Conv2d(*args, **options)

    NiN(groups=([(32, 128), (64, 64)], 8), conv=conv)
    assert asked[96, 192, 5] == [(32, 128), (64, 64)] and asked[192, 192, 3] is None
