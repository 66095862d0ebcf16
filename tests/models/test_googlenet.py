"""GoogLeNet: the counts of the paper's rows, its geometry, and when the auxiliary classifiers run."""

import pytest
import torch
from torch import nn

from sparsekern.models import create_model
from sparsekern.models.googlenet import GoogLeNet, GoogLeNetOutputs
from sparsekern.profile.count import count

# FLOPS, params and the printed cells "x 10^9; x 10^7" of Deep Roots, Table 6
ROWS = {
    "googlenet": (1_716_324_392, 18_809_576, "1.72", "1.88"),
    "googlenet_root_2": (1_542_916_136, 18_754_280, "1.54", "1.88"),
    "googlenet_root_4": (1_291_032_616, 18_515_944, "1.29", "1.85"),
    "googlenet_root_8": (964_383_656, 17_504_744, "0.96", "1.75"),
    "googlenet_root_16": (756_887_912, 16_308_968, "0.76", "1.63"),
}
SMALL = {"input_shape": (3, 64, 64), "classes": 7}


def on_meta(name: str, **options) -> nn.Module:
    with torch.device("meta"):
        return create_model(name, conv=nn.Conv2d, **options)


@pytest.mark.parametrize("name", ROWS)
@pytest.mark.parametrize("batch_norm", [False, True])
def test_counts_are_the_papers_to_the_last_unit(name, batch_norm):
    flops, params, printed_flops, printed_params = ROWS[name]
    counted = count(on_meta(name, aux="always", batch_norm=batch_norm), (3, 224, 224), convention="deep_roots")
    assert (counted.flops, counted.params) == (flops, params)
    assert (f"{flops / 1e9:.2f}", f"{params / 1e7:.2f}") == (printed_flops, printed_params)


def test_the_default_convolution_counts_the_same():
    with torch.device("meta"):
        model = create_model("googlenet_root_8", aux="always")
    counted = count(model, (3, 224, 224), convention="deep_roots")
    assert (counted.flops, counted.params) == ROWS["googlenet_root_8"][:2]


def test_inference_pays_nothing_for_the_auxiliary_classifiers():
    # two of: 1x1 convolution on 5x5, 3200 -> 1024, 1024 -> 1000, with biases
    macs = [25 * channels * 128 + 3200 * 1024 + 1024 * 1000 for channels in (512, 528)]
    params = [channels * 128 + 128 + 3201 * 1024 + 1025 * 1000 for channels in (512, 528)]
    always = count(on_meta("googlenet", aux="always"), (3, 224, 224), convention="deep_roots")
    without = on_meta("googlenet", aux=None)
    for model in (without, on_meta("googlenet")):
        counted = count(model, (3, 224, 224), convention="deep_roots")
        assert always.macs - counted.macs == sum(macs) and always.params - counted.params == sum(params)
    assert not any("aux" in name for name in without.state_dict())


def test_maps_are_the_papers():
    layers = {layer.name: layer for layer in count(on_meta("googlenet", aux="always"), (3, 224, 224), convention="deep_roots").layers}
    shapes = {
        "conv1.conv": (64, 112, 112),
        "conv2.conv": (64, 56, 56),
        "conv3.conv": (192, 56, 56),
        "inception3b.branch3.1.conv": (96, 28, 28),
        "inception4a.branch2.1.conv": (208, 15, 15),
        "inception4e.branch4.1.conv": (128, 15, 15),
        "inception5b.branch1.conv": (384, 8, 8),
        "aux1.conv.conv": (128, 5, 5),
        "aux2.fc2": (1000,),
    }
    assert {name: layers[name].out_shape for name in shapes} == shapes
    assert layers["fc"].in_shape == (4096,) and layers["aux1.fc1"].in_shape == (3200,)
    ins = {"3a": 192, "3b": 256, "4a": 480, "4b": 512, "4c": 512, "4d": 512, "4e": 528, "5a": 832, "5b": 832}
    assert {name: layers[f"inception{name}.branch1.conv"].in_shape[0] for name in ins} == ins


def test_only_the_spatial_convolutions_behind_conv1_are_grouped():
    model = on_meta("googlenet_root_16")
    groups = {name: module.groups for name, module in model.named_modules() if isinstance(module, nn.Conv2d) and module.groups > 1}
    expected = {"conv3.conv": 16}
    for name, level in zip(("3a", "3b", "4a", "4b", "4c", "4d", "4e", "5a", "5b"), (8, 8, 4, 4, 4, 4, 4, 2, 2), strict=True):
        expected |= {f"inception{name}.branch2.1.conv": level, f"inception{name}.branch3.1.conv": level}
    assert groups == expected


def test_the_3x3_and_the_5x5_may_have_groups_of_their_own():
    model = GoogLeNet((4, (8, 2), 4, (1, 2)), conv=nn.Conv2d, **SMALL).eval()
    assert (model.inception3b.branch2[1].conv.groups, model.inception3b.branch3[1].conv.groups) == (8, 2)
    assert (model.inception4c.branch2[1].conv.groups, model.inception4c.branch3[1].conv.groups) == (4, 4)
    assert (model.inception5a.branch2[1].conv.groups, model.inception5a.branch3[1].conv.groups) == (1, 2)
    assert model(torch.randn(1, 3, 64, 64)).shape == (1, 7)


def test_results_in_training_and_in_inference():
    model, x = create_model("googlenet_root_2", **SMALL), torch.randn(2, 3, 64, 64)
    out = model(x)
    assert isinstance(out, GoogLeNetOutputs) and out._fields == ("logits", "aux2", "aux1")
    assert {part.shape for part in out} == {(2, 7)}
    logits = model.eval()(x)
    assert logits.shape == (2, 7)
    model.aux = "always"
    assert torch.equal(model(x).logits, logits)
    assert create_model("googlenet", aux=None, **SMALL)(x).shape == (2, 7)


@pytest.mark.parametrize("batch_norm", [False, True])
def test_backward_reaches_every_parameter(batch_norm):
    model = create_model("googlenet_root_8", **SMALL, batch_norm=batch_norm)
    out = model(torch.randn(3, 3, 64, 64))
    (out.logits.square().sum() + 0.3 * (out.aux1.square().sum() + out.aux2.square().sum())).backward()
    for name, parameter in model.named_parameters():
        assert parameter.grad is not None and parameter.grad.isfinite().all(), name
        # batch-norm takes the mean out again that a bias adds
        assert parameter.grad.abs().sum() > 0 or (batch_norm and name.endswith("conv.bias")), name
    norms = [module for module in model.modules() if isinstance(module, nn.BatchNorm2d)]
    assert len(norms) == (59 if batch_norm else 0) and not any(norm.affine for norm in norms)


def test_every_convolution_gives_the_same_function():
    ours, plain = create_model("googlenet_root_8", **SMALL).eval(), create_model("googlenet_root_8", conv=nn.Conv2d, **SMALL).eval()
    ours.load_state_dict(plain.state_dict())
    assert not any(isinstance(module, nn.ReLU) for module in ours.modules())
    x = torch.randn(2, 3, 64, 64)
    expected = plain.double()(x.double())
    for given in (x, x.to(memory_format=torch.channels_last)):
        with torch.no_grad():
            # float32's own error, through twenty or so convolutions
            assert (ours(given) - expected).abs().max() < 1e-5 * expected.abs().max()


@pytest.mark.parametrize("size", [(32, 32), (33, 47), (64, 96), (100, 75)])
def test_other_inputs(size):
    model = create_model("googlenet", input_shape=(3, *size), classes=3, aux="always").eval()
    assert {part.shape for part in model(torch.randn(1, 3, *size))} == {(1, 3)}


def test_impossible_options_are_refused():
    with pytest.raises(ValueError, match="GoogLeNet: aux must be one of 'training', 'always', None; got True"):
        create_model("googlenet", aux=True)
    with pytest.raises(ValueError, match=r"GoogLeNet: input_shape must be \(3, H, W\) with H and W at least 32; got \(3, 16, 64\)"):
        create_model("googlenet", input_shape=(3, 16, 64))
    for groups in ((1, 1, 1), ((2, 1), 1, 1, 1), (1, (1, 1, 1), 1, 1)):
        with pytest.raises(ValueError, match=r"GoogLeNet: groups must be those of conv3 and, .* of inception 3, 4 and 5; got "):
            GoogLeNet(groups)
    with pytest.raises(ValueError, match="GroupedConv2d: in_channels must be a multiple of groups=16; got 24"):
        GoogLeNet((16, 16, 16, 16))
