"""ResNet-50 and ResNet-200: the counts of the paper's rows, the shapes, and the function against one written out."""

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from sparsekern.models import create_model
from sparsekern.models.resnet import ResNet
from sparsekern.profile.count import count

# FLOPS, params and the printed cells "x 10^9; x 10^7" of Deep Roots, Table 4
RESNET50 = {
    "resnet50": (3_857_974_312, 25_503_976, "3.86", "2.55"),
    "resnet50_root_2": (3_684_566_056, 25_448_680, "3.68", "2.54"),
    "resnet50_root_4": (3_366_650_920, 25_126_120, "3.37", "2.51"),
    "resnet50_root_8": (2_860_876_840, 23_195_368, "2.86", "2.32"),
    "resnet50_root_16": (2_434_581_544, 18_691_048, "2.43", "1.87"),
    "resnet50_root_32": (2_221_433_896, 16_438_888, "2.22", "1.64"),
    "resnet50_root_64": (2_114_860_072, 15_312_808, "2.11", "1.53"),
}
# true FLOPS and params; Table 5's cells have each convolution's multiply-adds times its filters once more, and fc as 2048 + 1000
RESNET200 = {
    "resnet200": (15_007_482_856, 64_497_832, "5.65", "6.25"),
    "resnet200_root_8": (10_542_220_264, 51_130_024, "4.84", "4.91"),
    "resnet200_root_32": (8_168_694_760, 37_185_064, "4.23", "3.51"),
}
SHALLOW = {
    "resnet50_root_8": {"blocks": (1, 2, 1, 1)},
    "resnet200_root_8": {"blocks": (2, 1, 2, 1)},
}


def on_meta(name: str, **options) -> nn.Module:
    with torch.device("meta"):
        return create_model(name, conv=nn.Conv2d, **options)


@pytest.mark.parametrize("name", RESNET50)
def test_resnet50_counts_are_the_papers_to_the_last_unit(name):
    flops, params, printed_flops, printed_params = RESNET50[name]
    counted = count(on_meta(name), (3, 224, 224), convention="deep_roots")
    assert (counted.flops, counted.params) == (flops, params)
    assert (f"{flops / 1e9:.2f}", f"{params / 1e7:.2f}") == (printed_flops, printed_params)


@pytest.mark.parametrize("name", RESNET200)
def test_resnet200_counts_are_true_and_with_the_papers_slips_print_its_table(name):
    flops, params, printed_flops, printed_params = RESNET200[name]
    counted = count(on_meta(name), (3, 224, 224), convention="deep_roots")
    assert (counted.flops, counted.params) == (flops, params)
    convs = [layer for layer in counted.layers if len(layer.weight_shape) == 4]
    as_printed = sum(layer.macs * layer.weight_shape[0] for layer in convs) + 3_048
    assert f"{as_printed / 1e12:.2f}" == printed_flops
    assert f"{(params - 2_049_000 + 3_048) / 1e7:.2f}" == printed_params


def test_the_default_convolution_counts_the_same():
    with torch.device("meta"):
        model = create_model("resnet50_root_64")
    counted = count(model, (3, 224, 224), convention="deep_roots")
    assert (counted.flops, counted.params) == RESNET50["resnet50_root_64"][:2]


@pytest.mark.parametrize(("name", "depth"), [("resnet50_root_16", 50), ("resnet200_root_16", 200)])
def test_layers_maps_and_groups(name, depth):
    model = on_meta(name)
    layers = {layer.name: layer for layer in count(model, (3, 224, 224), convention="deep_roots").layers}
    assert sum("downsample" not in layer for layer in layers) == depth
    assert layers["conv1"].out_shape == (64, 112, 112)
    for stage, (size, groups) in enumerate(zip((56, 28, 14, 7), (16, 8, 4, 2), strict=True), start=1):
        width = 32 << stage
        first, last = getattr(model, f"layer{stage}")[0], len(getattr(model, f"layer{stage}")) - 1
        assert layers[f"layer{stage}.{last}.conv3"].out_shape == (4 * width, size, size)
        assert layers[f"layer{stage}.0.downsample.0"].out_shape == (4 * width, size, size)
        stride = 1 if stage == 1 else 2
        on_first, on_second = (stride, 1) if depth == 50 else (1, stride)
        assert (first.conv1.stride[0], first.conv2.stride[0]) == (on_first, on_second)
        for block in getattr(model, f"layer{stage}"):
            assert (block.conv1.groups, block.conv2.groups, block.conv3.groups) == (1, groups, 1)
    biased = {name for name, module in model.named_modules() if isinstance(module, nn.Conv2d) and module.bias is not None}
    assert biased == ({"conv1"} if depth == 50 else set())


@pytest.mark.parametrize("name", SHALLOW)
@pytest.mark.parametrize("batch_norm", [True, False])
def test_backward_reaches_every_parameter(name, batch_norm):
    model = create_model(name, **SHALLOW[name], classes=7, batch_norm=batch_norm)
    out = model(torch.randn(2, 3, 64, 64))
    assert out.shape == (2, 7)
    out.square().sum().backward()
    for parameter_name, parameter in model.named_parameters():
        assert parameter.grad is not None and parameter.grad.isfinite().all(), parameter_name
        # batch-norm takes the mean out again that conv1's bias adds
        assert parameter.grad.abs().sum() > 0 or parameter_name == "conv1.bias", parameter_name


@pytest.mark.parametrize("name", SHALLOW)
@pytest.mark.parametrize("batch_norm", [True, False])
def test_every_convolution_gives_the_same_function(name, batch_norm):
    options = SHALLOW[name] | {"batch_norm": batch_norm}
    ours, plain = create_model(name, **options).eval(), create_model(name, conv=nn.Conv2d, **options).eval()
    ours.load_state_dict(plain.state_dict())
    x = torch.randn(2, 3, 64, 64)
    expected = plain.double()(x.double())
    for given in (x, x.to(memory_format=torch.channels_last)):
        with torch.no_grad():
            # float32's own error, through ten or so convolutions
            assert (ours(given) - expected).abs().max() < 1e-5 * expected.abs().max()


def test_folded_nets_have_batch_norm_only_where_no_convolution_comes_before():
    def norms(model):
        return {name for name, module in model.named_modules() if isinstance(module, nn.BatchNorm2d)}

    assert norms(on_meta("resnet50", batch_norm=False)) == set()
    entries = {name for name in norms(on_meta("resnet200", batch_norm=False))}
    blocks = {f"layer{stage}.{i}.bn1" for stage, depth in enumerate((3, 24, 36, 3), start=1) for i in range(depth)}
    assert entries == (blocks - {"layer1.0.bn1"}) | {"norm.0"}
    folded = on_meta("resnet50", batch_norm=False)
    assert all(module.bias is not None for module in folded.modules() if isinstance(module, nn.Conv2d))
    with torch.device("meta"):
        fused = create_model("resnet50", batch_norm=False)
    assert not any(isinstance(module, nn.ReLU) for module in fused.modules())


def test_preactivation_is_fb_resnet_torchs():
    model = create_model("resnet200_root_8", blocks=(2, 2, 1, 1), conv=nn.Conv2d).double().eval()
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.running_mean.normal_(0, 0.1)
            nn.init.normal_(module.bias, 0, 0.1)

    def bn_relu(norm, x):
        return F.batch_norm(x, norm.running_mean, norm.running_var, norm.weight, norm.bias).relu()

    def conv(layer, x, stride=1, padding=0):
        return F.conv2d(x, layer.weight, None, stride, padding, 1, layer.groups)

    x = inputs = torch.randn(2, 3, 64, 64, dtype=torch.float64)
    x = F.max_pool2d(bn_relu(model.bn1, conv(model.conv1, x, 2, 3)), 3, 2, 1)
    for stage in (1, 2, 3, 4):
        for index, block in enumerate(getattr(model, f"layer{stage}")):
            stride = 2 if stage > 1 and index == 0 else 1
            active = x if (stage, index) == (1, 0) else bn_relu(block.bn1, x)  # "no_preact" after the stem
            shortcut = conv(block.downsample[0], active, stride) if index == 0 else x  # "both_preact" at a stage's start
            y = bn_relu(block.bn2, conv(block.conv1, active))
            y = bn_relu(block.bn3, conv(block.conv2, y, stride, 1))
            x = conv(block.conv3, y) + shortcut
    expected = F.linear(bn_relu(model.norm[0], x).mean((2, 3)), model.fc.weight, model.fc.bias)
    assert (model(inputs) - expected).abs().max() < 1e-12 * expected.abs().max()


def test_a_generator_fixes_all_weights():
    one, two = (create_model("resnet50", blocks=(1, 1, 1, 1), generator=torch.Generator().manual_seed(5)) for _ in range(2))
    assert all(torch.equal(a, b) for a, b in zip(one.parameters(), two.parameters(), strict=True))


def test_impossible_options_are_refused():
    with pytest.raises(ValueError, match="ResNet: stride_in must be one of 1x1, 3x3; got '5x5'"):
        create_model("resnet50", stride_in="5x5")
    with pytest.raises(ValueError, match=r"ResNet: groups must be one for each of the 4 stages; got \(2, 1\)"):
        ResNet((2, 1))
    with pytest.raises(ValueError, match=r"ResNet: blocks must be 4 numbers of at least 1; got \(3, 4, 0, 3\)"):
        create_model("resnet50_root_2", blocks=(3, 4, 0, 3))
    with pytest.raises(ValueError, match="GroupedConv2d: in_channels must be a multiple of groups=5; got 64"):
        ResNet((5, 1, 1, 1))
