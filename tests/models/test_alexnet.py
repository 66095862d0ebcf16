"""AlexNet with 1, 2 and 4 groups: counts, maps, and the normalisation where the Caffe file has it."""

import pytest
import torch
from torch import nn

from sparsekern.models import create_model
from sparsekern.models.alexnet import AlexNet
from sparsekern.profile.count import count

# FLOPS (biases once per layer), params, convolution weights. 4 groups: conv2 25*24*256, conv4 9*96*384, conv5 9*96*256 weights
ROWS = {
    "alexnet": (1_135_266_664, 62_378_344, 3_745_824),
    "alexnet_groups_2": (724_417_384, 60_965_224, 2_332_704),
    "alexnet_groups_4": (518_992_744, 60_258_664, 1_626_144),
}


def on_meta(name: str) -> nn.Module:
    with torch.device("meta"):
        return create_model(name, conv=nn.Conv2d)


@pytest.mark.parametrize("name", ROWS)
def test_counts(name):
    counted = count(on_meta(name), (3, 227, 227), convention="deep_roots")
    conv_weights = sum(torch.Size(layer.weight_shape).numel() for layer in counted.layers if layer.name.startswith("conv"))
    assert (counted.flops, counted.params, conv_weights) == ROWS[name]


def test_the_papers_57_percent_is_the_growth_of_multiply_adds_without_groups():
    assert round(100 * (ROWS["alexnet"][0] / ROWS["alexnet_groups_2"][0] - 1)) == 57


def test_maps_and_order_are_bvlc_alexnets():
    model = on_meta("alexnet_groups_2")
    layers = {layer.name: layer.out_shape for layer in count(model, (3, 227, 227), convention="deep_roots").layers}
    assert layers == {
        "conv1": (96, 55, 55), "conv2": (256, 27, 27), "conv3": (384, 13, 13), "conv4": (384, 13, 13), "conv5": (256, 13, 13),
        "fc6": (4096,), "fc7": (4096,), "fc8": (1000,),
    }  # fmt: skip
    assert model.fc6.in_features == 9216
    names = [name for name, _ in model.named_children()]
    assert names[:8] == ["conv1", "relu1", "norm1", "pool1", "conv2", "relu2", "norm2", "pool2"]
    assert [getattr(model, f"conv{i}").groups for i in range(1, 6)] == [1, 2, 1, 2, 2]
    assert (model.norm1.size, model.norm1.alpha, model.norm1.beta, model.norm1.k) == (5, 1e-4, 0.75, 1.0)


def test_backward_reaches_every_parameter():
    model = create_model("alexnet_groups_2", input_shape=(3, 67, 67), classes=7)
    out = model(torch.randn(4, 3, 67, 67))
    assert out.shape == (4, 7)
    out.square().sum().backward()
    for name, parameter in model.named_parameters():
        assert parameter.grad is not None and parameter.grad.isfinite().all() and parameter.grad.abs().sum() > 0, name


def test_every_convolution_gives_the_same_function():
    options = {"input_shape": (3, 67, 83), "classes": 7}
    ours, plain = (create_model("alexnet_groups_4", conv=conv, **options).eval() for conv in (None, nn.Conv2d))
    ours.load_state_dict(plain.state_dict())
    x = torch.randn(2, 3, 67, 83)
    expected = plain.double()(x.double())
    for given in (x, x.to(memory_format=torch.channels_last)):
        with torch.no_grad():
            assert (ours(given) - expected).abs().max() < 1e-5 * expected.abs().max()  # float32's own error


def test_groups_of_their_own_and_bad_options():
    model = AlexNet((2, 4, [(192, 128), (96, 64), (96, 64)]), input_shape=(3, 67, 67), classes=2).eval()
    assert (model.conv2.groups, model.conv4.groups, model.conv5.groups) == (2, 4, 3)
    assert model(torch.randn(1, 3, 67, 67)).shape == (1, 2)
    with pytest.raises(ValueError, match=r"AlexNet: input_shape must be \(3, H, W\) with H and W at least 67; got \(3, 32, 32\)"):
        create_model("alexnet", input_shape=(3, 32, 32))
    with pytest.raises(ValueError, match="GroupedConv2d: out_channels must be a multiple of groups=3; got 256"):
        AlexNet((3, 1, 1))
