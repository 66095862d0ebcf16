"""UnequalGroupedConv2d and SpatialBasisConv2d: convolutions side by side that are one convolution from outside."""

from __future__ import annotations

import copy
import inspect
import io
import pickle

import pytest
import torch
from torch import nn

from sparsekern.nn import GroupedConv2d, SpatialBasisConv2d, UnequalGroupedConv2d

SIZES = [(2, 4), (2, 4), (5, 1), (3, 15)]  # 12 -> 24, the first two one run
WINDOWS = [
    dict(kernel_size=3),
    dict(kernel_size=3, padding=1, bias=False),
    dict(kernel_size=(3, 5), stride=(1, 2), padding=(0, 2)),
    dict(kernel_size=3, dilation=2, padding=2),
    dict(kernel_size=3, padding="same", dilation=(1, 2)),
    dict(kernel_size=5, padding="valid"),
    dict(kernel_size=3, padding=(1, 2), padding_mode="reflect"),
    dict(kernel_size=3, padding=2, padding_mode="circular"),
    dict(kernel_size=5, padding=1, stride=2),
]
MAKE = {
    "unequal": lambda **options: GroupedConv2d(12, 24, group_sizes=SIZES, **options),
    "spatial": lambda **options: SpatialBasisConv2d(12, 24, groups=3, **options),
    "spatial_odd": lambda **options: SpatialBasisConv2d(12, 23, **options),
}
LAYER = pytest.mark.parametrize("make", MAKE.values(), ids=list(MAKE))


def bad(sentence, make, *args, **kwargs):
    with pytest.raises(ValueError) as raised:
        make(*args, **kwargs)
    assert str(raised.value) == sentence


def may_have(name, window):
    """[K, C, KH, KW] bool: the weights that the layer's description allows, written down anew."""
    height, width = (window["kernel_size"],) * 2 if isinstance(window["kernel_size"], int) else window["kernel_size"]
    outputs = 23 if name == "spatial_odd" else 24
    mask = torch.zeros(outputs, 12, height, width, dtype=torch.bool)
    if name == "unequal":
        row = channel = 0
        for inputs, filters in SIZES:
            mask[row : row + filters, channel : channel + inputs] = True
            row, channel = row + filters, channel + inputs
        return mask
    mask[:12, :, height // 2] = True
    mask[12:, :, :, width // 2] = True
    if name == "spatial":
        for k in range(24):
            group = k % 12 // 4  # 3 groups of 4 filters in each half, 4 input channels each
            for c in range(12):
                if c // 4 != group:
                    mask[k, c] = False
    return mask


@pytest.mark.parametrize("window", WINDOWS, ids=str)
@pytest.mark.parametrize("name", MAKE)
def test_is_the_dense_convolution_with_zeros(name, window):
    layer = MAKE[name](**window).double()
    conv = nn.Conv2d(12, layer.out_channels, **window).double()
    mask = may_have(name, window)
    with torch.no_grad():
        conv.weight.mul_(mask)
    layer.load_state_dict(conv.state_dict())
    assert torch.equal(layer.weight_dense(), conv.weight) and sum(part.weight.numel() for part in layer.parts) == mask.sum()
    assert abs(layer.density - mask.double().mean().item()) < 1e-12
    for shape in [(2, 12, 11, 14), (12, 11, 14), (0, 12, 11, 14), (1, 12, 9, 9)]:
        x, y = (torch.randn(shape, dtype=torch.float64, generator=torch.Generator().manual_seed(3)).requires_grad_() for _ in range(2))
        if shape[0] == 0 and window.get("padding_mode"):
            continue  # torch pads no empty batch
        out, want = layer(x), conv(y)
        torch.testing.assert_close(out, want)
        cotangent = torch.randn_like(want)
        got, truth = torch.autograd.grad(out, x, cotangent), torch.autograd.grad(want, y, cotangent)
        torch.testing.assert_close(got, truth)
    out, want = layer(x), conv(y)
    out.square().sum().backward(), want.square().sum().backward()
    gradients = copy.deepcopy(layer)
    gradients.load_state_dict({"weight": conv.weight.grad, **({} if conv.bias is None else {"bias": conv.bias.grad})})
    for p, q in zip(layer.parameters(), gradients.parameters()):
        torch.testing.assert_close(p.grad, q.detach())


@LAYER
def test_layouts(make):
    layer = make(kernel_size=3, padding=1)
    dense = layer.to_dense()
    for images in (1, 3):
        x = torch.randn(images, 12, 7, 6)
        out = layer(x)
        assert out.is_contiguous()
        torch.testing.assert_close(out, dense(x), rtol=1e-5, atol=1e-5)
        last = layer(x.to(memory_format=torch.channels_last))
        assert last.is_contiguous(memory_format=torch.channels_last) and not last.is_contiguous()
        torch.testing.assert_close(last, out, rtol=1e-5, atol=1e-5)
        torch.testing.assert_close(layer(x.transpose(2, 3).contiguous().transpose(2, 3)), out, rtol=1e-5, atol=1e-5)
        assert copy.deepcopy(layer).to(memory_format=torch.channels_last)(x).is_contiguous()


@LAYER
def test_activation_and_dense(make):
    plain, relu = make(kernel_size=3, padding=1).double(), make(kernel_size=3, padding=1, activation="relu").double()
    relu.load_state_dict(plain.state_dict())
    x = torch.randn(2, 12, 6, 6, dtype=torch.float64)
    torch.testing.assert_close(relu(x), plain(x).relu())
    torch.testing.assert_close(relu.to_dense()(x), relu(x))
    with torch.no_grad():
        torch.testing.assert_close(relu(x), plain(x).relu())
    assert isinstance(plain.to_dense(), nn.Conv2d) and plain.to_dense().weight.shape[1] == 12


@LAYER
def test_weight_dense_is_differentiable(make):
    layer = make(kernel_size=3)
    cotangent = torch.randn_like(layer.weight_dense())
    got = torch.autograd.grad(layer.weight_dense(), [part.weight for part in layer.parts], cotangent)
    want = copy.deepcopy(layer)
    want.load_state_dict({"weight": cotangent, "bias": layer.bias_dense().detach()})
    assert all(torch.equal(g, part.weight) for g, part in zip(got, want.parts))


@LAYER
def test_travels(make):
    layer = make(kernel_size=3, activation="relu")
    x = torch.randn(2, 12, 8, 8)
    buffer = io.BytesIO()
    torch.save(layer, buffer)
    buffer.seek(0)
    for copied in (copy.deepcopy(layer), pickle.loads(pickle.dumps(layer)), torch.load(buffer, weights_only=False)):
        assert type(copied) is type(layer) and torch.equal(copied(x), layer(x))
        copied.load_state_dict({"weight": layer.weight_dense().detach(), "bias": layer.bias_dense().detach()})  # the hook came along
        assert torch.equal(copied(x), layer(x))
    fresh = make(kernel_size=3, activation="relu")
    fresh.load_state_dict(layer.state_dict())
    assert torch.equal(fresh(x), layer(x))
    with torch.device("meta"):
        meta = make(kernel_size=3, activation="relu")
        assert meta(torch.empty(2, 12, 8, 8)).shape == layer(x).shape
    filled = meta.to_empty(device="cpu")
    filled.load_state_dict(layer.state_dict())
    assert torch.equal(filled(x), layer(x))


@LAYER
def test_inside_a_model(make):
    model, dense = nn.Sequential(make(kernel_size=3), nn.ReLU()), nn.Sequential(make(kernel_size=3).to_dense(), nn.ReLU())
    model.load_state_dict(dense.state_dict())  # keys 0.weight, 0.bias
    x = torch.randn(2, 12, 8, 8)
    torch.testing.assert_close(model(x), dense(x), rtol=1e-5, atol=1e-5)
    with pytest.raises(RuntimeError, match=r"Unexpected key\(s\) in state_dict: \"0.weight\""):
        model.load_state_dict(nn.Sequential(nn.Conv2d(12, 24, 7)).state_dict())
    optimiser = torch.optim.SGD(model.parameters(), 0.1)
    before = [p.detach().clone() for p in model.parameters()]
    model(x).square().sum().backward()
    optimiser.step()
    assert all(not torch.equal(p, q) for p, q in zip(model.parameters(), before))


@LAYER
def test_compiles_and_exports(make):
    layer, x = make(kernel_size=3, padding=1), torch.randn(2, 12, 8, 8)
    compiled = torch.compile(layer, backend="aot_eager", fullgraph=True)
    torch.testing.assert_close(compiled(x), layer(x))
    last = x.to(memory_format=torch.channels_last)
    assert compiled(last).stride() == layer(last).stride()
    with torch.no_grad():
        torch.testing.assert_close(torch.export.export(layer, (x,)).module()(x), layer(x))


@LAYER
def test_signature_is_conv2d_s(make):
    for kind in (GroupedConv2d, SpatialBasisConv2d):
        assert list(inspect.signature(kind).parameters)[:11] == list(inspect.signature(nn.Conv2d).parameters)
        assert "activation" in inspect.signature(kind).parameters
    text = make(kernel_size=3).explain((1, 12, 9, 9), channels_last=True)
    assert "side by side" in text and text.count("served by") == len(make(kernel_size=3).parts)
    bad(
        f"{type(make(kernel_size=3)).__name__}: x must be [N, 12, H, W] or [12, H, W]; got [1, 11, 5, 5]",
        make(kernel_size=3), torch.randn(1, 11, 5, 5),
    )  # fmt: skip


def test_equal_sizes_are_an_ordinary_layer():
    torch.manual_seed(3)
    layer = GroupedConv2d(12, 24, 3, group_sizes=[(4, 8)] * 3)
    torch.manual_seed(3)
    plain = GroupedConv2d(12, 24, 3, groups=3)
    assert type(layer) is GroupedConv2d and repr(layer) == repr(plain) and torch.equal(layer.weight, plain.weight)
    assert layer.group_sizes == [(4, 8)] * 3 and GroupedConv2d(12, 24, 3, group_sizes=[(12, 24)]).groups == 1


def test_unequal_runs():
    layer = GroupedConv2d(12, 24, 3, group_sizes=SIZES)
    assert type(layer) is UnequalGroupedConv2d and layer.groups == 4 and layer.group_sizes == SIZES
    assert [part.groups for part in layer.parts] == [2, 1, 1]
    assert "group_sizes=[(2, 4), (2, 4), (5, 1), (3, 15)]" in repr(layer)
    for part in layer.parts:  # each by its own fan-in
        bound = (part.in_channels // part.groups * 9) ** -0.5
        assert 0.5 * bound < part.weight.abs().max() <= bound
    dense = nn.Conv2d(12, 24, 3)
    kept = GroupedConv2d.from_dense(dense, group_sizes=SIZES)
    assert torch.equal(kept.weight_dense(), dense.weight * (kept.weight_dense() != 0)) and torch.equal(kept.bias_dense(), dense.bias)


def test_bad_group_sizes():
    def make(sizes, **options):
        return GroupedConv2d(12, 24, 3, group_sizes=sizes, **options)

    bad("GroupedConv2d: group_sizes must be sizes that add up to (12, 24); got (10, 24)", make, [(2, 8), (8, 16)])
    bad("GroupedConv2d: group_sizes must be sizes that add up to (12, 24); got (12, 20)", make, [(6, 10), (6, 10)])
    bad("GroupedConv2d: group_sizes must be pairs (in, out) of at least 1 channel; got [(12, 0), (0, 24)]", make, [(12, 0), (0, 24)])
    bad("GroupedConv2d: group_sizes must be pairs (in, out) of at least 1 channel; got []", make, [])
    bad("GroupedConv2d: groups must be left out, or 2 like group_sizes; got 3", make, [(4, 8), (8, 16)], groups=3)
    bad("GroupedConv2d: activation must be one of ('none', 'relu'); got 'gelu'", make, [(4, 8), (8, 16)], activation="gelu")


def test_spatial_basis():
    layer = SpatialBasisConv2d(12, 24, (3, 5), groups=2)
    assert [tuple(part.weight.shape) for part in layer.parts] == [(12, 6, 1, 5), (12, 6, 3, 1)]
    point = SpatialBasisConv2d(12, 24, 1, groups=2, bias=False, activation="relu")
    assert type(point) is GroupedConv2d and point.groups == 2 and point.bias is None and point.activation == "relu"
    assert [part.out_channels for part in SpatialBasisConv2d(12, 23, 3).parts] == [12, 11]
    dense = nn.Conv2d(12, 24, 3)
    kept = SpatialBasisConv2d.from_dense(dense, groups=4)
    assert kept.groups == 4 and torch.equal(kept.weight_dense(), dense.weight * (kept.weight_dense() != 0))
    grouped = nn.Conv2d(12, 24, 3, groups=3, bias=False)
    ours = SpatialBasisConv2d.from_dense(grouped)
    assert ours.groups == 3 and ours.bias_dense() is None


def test_bad_spatial_basis():
    make = SpatialBasisConv2d
    bad("SpatialBasisConv2d: kernel_size must be odd numbers; got (4, 4)", make, 8, 8, 4)
    bad("SpatialBasisConv2d: groups must be a divisor of both halves of out_channels, 5 and 4; got 2", make, 8, 9, 3, groups=2)
    bad("SpatialBasisConv2d: groups must be a divisor of both halves of out_channels, 6 and 6; got 4", make, 8, 12, 3, groups=4)
    bad("SpatialBasisConv2d: in_channels must be a multiple of groups=3; got 8", make, 8, 12, 3, groups=3)
    bad("SpatialBasisConv2d: out_channels must be at least 2, one row and one column; got 1", make, 8, 1, 3)
    bad("SpatialBasisConv2d: stride must be 1 with padding='same'; got (2, 2)", make, 8, 8, 3, 2, "same")
    bad("SpatialBasisConv2d: padding must be 'same', 'valid' or numbers; got 'full'", make, 8, 8, 3, 1, "full")
    bad("GroupedConv2d: activation must be one of ('none', 'relu'); got 'gelu'", make, 8, 8, 3, activation="gelu")


def test_stands_for_every_convolution_of_a_model():
    from sparsekern.models import create_model

    model = create_model("nin_root_8", conv=SpatialBasisConv2d)
    assert model(torch.randn(1, 3, 32, 32)).shape == (1, 10)
    assert [type(m).__name__ for m in (model.conv1a, model.conv1b, model.conv2a)] == [
        "SpatialBasisConv2d", "GroupedConv2d", "SpatialBasisConv2d"
    ]  # fmt: skip
