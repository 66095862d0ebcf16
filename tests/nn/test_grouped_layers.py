"""GroupedConv2d is nn.Conv2d in everything but speed; RootModule is two of them."""

from __future__ import annotations

import copy
import inspect
import io
import math
import pickle

import pytest
import torch
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode

from sparsekern.nn import GroupedConv2d, RootModule, SparseLinear, SpatialBasisConv2d, StochasticConv2d

VARIANTS = [
    dict(kernel_size=3),
    dict(kernel_size=3, padding=1, bias=False),
    dict(kernel_size=(3, 5), stride=(1, 2), padding=(0, 2)),
    dict(kernel_size=3, dilation=2, padding=2),
    dict(kernel_size=3, padding="same", dilation=(1, 2)),
    dict(kernel_size=4, padding="same"),
    dict(kernel_size=3, padding="valid"),
    dict(kernel_size=3, padding=(1, 2), padding_mode="reflect"),
    dict(kernel_size=3, padding="same", padding_mode="circular"),
    dict(kernel_size=5, padding=2, padding_mode="replicate", stride=2),
    dict(kernel_size=1),
]
VARIANT = pytest.mark.parametrize("options", VARIANTS, ids=str)


def twins(options, **kwargs):
    """A GroupedConv2d and an nn.Conv2d with the same weights."""
    ours = GroupedConv2d(12, 24, groups=4, **options, **kwargs)
    theirs = nn.Conv2d(12, 24, groups=4, **options, **kwargs)
    theirs.load_state_dict(ours.state_dict())
    return ours, theirs


@VARIANT
@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last], ids=str)
def test_is_conv2d(options, layout):
    ours, theirs = twins(options)
    x = torch.randn(3, 12, 11, 14).to(memory_format=layout)
    torch.testing.assert_close(ours(x), theirs(x), rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(ours(x[0]), theirs(x[0]), rtol=1e-5, atol=1e-5)
    for module in (ours, theirs):
        module(x).square().sum().backward()
    for p, q in zip(ours.parameters(), theirs.parameters()):
        torch.testing.assert_close(p.grad, q.grad, rtol=1e-4, atol=1e-3)


def test_signature_repr_and_initial_weights():
    ours, theirs = inspect.signature(GroupedConv2d), inspect.signature(nn.Conv2d)
    assert list(ours.parameters) == [*theirs.parameters, "activation", "group_sizes"]
    for name, parameter in theirs.parameters.items():
        assert ours.parameters[name].default == parameter.default and ours.parameters[name].kind == parameter.kind
    for options in (*VARIANTS, dict(kernel_size=3, groups=6)):
        options = {"groups": 4, **options}
        torch.manual_seed(1)
        a = GroupedConv2d(12, 24, **options)
        torch.manual_seed(1)
        b = nn.Conv2d(12, 24, **options)
        assert repr(a) == "Grouped" + repr(b) and all(torch.equal(p, q) for p, q in zip(a.parameters(), b.parameters()))
    layer = GroupedConv2d(64, 64, 3, groups=16, activation="relu")
    bound = 1 / math.sqrt(4 * 9)
    assert 0.9 * bound < layer.weight.abs().max() <= bound
    assert "activation=relu" in repr(layer)


def test_bad_arguments():
    for sentence, args, kwargs in [
        ("activation must be one of ('none', 'relu'); got 'gelu'", (8, 8, 3), dict(activation="gelu")),
        ("in_channels must be a multiple of groups=3; got 8", (8, 9, 3), dict(groups=3)),
        ("out_channels must be a multiple of groups=4; got 9", (8, 9, 3), dict(groups=4)),
    ]:
        with pytest.raises(ValueError) as raised:
            GroupedConv2d(*args, **kwargs)
        assert str(raised.value) == f"GroupedConv2d: {sentence}"
    with pytest.raises(ValueError, match=r"^grouped_conv2d: x must be \[..., 8, H, W\] for groups=2 and C/G=4; got \[1, 6, 5, 5\]$"):
        GroupedConv2d(8, 8, 3, groups=2)(torch.randn(1, 6, 5, 5))


@pytest.mark.parametrize("activation", ["none", "relu"])
@VARIANT
def test_to_and_from_dense(options, activation):
    layer = GroupedConv2d(12, 24, groups=4, activation=activation, **options).double()
    x = torch.randn(2, 12, 9, 10, dtype=torch.float64)
    torch.testing.assert_close(layer.to_dense()(x), layer(x))
    dense = layer.to_dense()[0] if activation == "relu" else layer.to_dense()
    assert (layer.weight_dense() != 0).sum() == layer.weight.numel()
    back = GroupedConv2d.from_dense(dense, groups=4, activation=activation)
    assert torch.equal(back.weight, layer.weight) and torch.equal(back(x), layer(x))
    same = GroupedConv2d.from_dense(dense)
    torch.testing.assert_close(same(x), dense(x))


def test_weight_dense_is_differentiable():
    layer = GroupedConv2d(6, 4, 3, groups=2)
    grad = torch.randn(4, 6, 3, 3)
    (got,) = torch.autograd.grad(layer.weight_dense(), layer.weight, grad)
    assert torch.equal(got, torch.cat([grad[:2, :3], grad[2:, 3:]]))


def test_checkpoint_of_fewer_groups_loads():
    for groups in (1, 2):
        dense = nn.Conv2d(12, 24, 3, groups=groups)
        layer = GroupedConv2d(12, 24, 3, groups=4)
        layer.load_state_dict(dense.state_dict())
        full = GroupedConv2d.from_dense(dense).weight_dense()
        assert torch.equal(layer.weight_dense(), full * (layer.weight_dense() != 0)) and torch.equal(layer.bias, dense.bias)
    with pytest.raises(RuntimeError, match="size mismatch"):
        GroupedConv2d(12, 24, 3, groups=4).load_state_dict(nn.Conv2d(12, 24, 5).state_dict())
    with pytest.raises(RuntimeError, match="size mismatch"):
        GroupedConv2d(12, 24, 3, groups=2).load_state_dict(nn.Conv2d(12, 24, 3, groups=4).state_dict())


def test_channels_last_model():
    ours, theirs = twins(dict(kernel_size=3, padding=1))
    ours, theirs = ours.to(memory_format=torch.channels_last), theirs.to(memory_format=torch.channels_last)
    x = torch.randn(2, 12, 8, 9).to(memory_format=torch.channels_last)
    assert ours.weight.is_contiguous(memory_format=torch.channels_last)
    assert ours(x).is_contiguous(memory_format=torch.channels_last)
    torch.testing.assert_close(ours(x), theirs(x), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("activation", ["none", "relu"])
@VARIANT
def test_add_relu(options, activation):
    layer, theirs = twins(options)
    layer.activation = activation
    x = torch.randn(2, 12, 11, 14).to(memory_format=torch.channels_last)
    shortcut = torch.randn(theirs(x).shape)
    want = theirs(x).relu() if activation == "relu" else theirs(x)
    want = (want + shortcut).relu()
    torch.testing.assert_close(layer.add_relu(x, shortcut), want, rtol=1e-5, atol=1e-5)
    seen = []
    handle = layer.register_forward_hook(lambda module, args, out: seen.append(out.shape))
    with torch.no_grad():
        torch.testing.assert_close(layer.add_relu(x, shortcut), want, rtol=1e-5, atol=1e-5)
        compiled = torch.compile(layer.add_relu, backend="aot_eager", fullgraph=True)
        torch.testing.assert_close(compiled(x, shortcut), want, rtol=1e-5, atol=1e-5)
    handle.remove()
    assert seen[0] == want.shape
    layer.add_relu(x, shortcut.requires_grad_()).square().sum().backward()
    torch.testing.assert_close(shortcut.grad, 2 * want, rtol=1e-4, atol=1e-4)


@VARIANT
@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last], ids=str)
def test_packed_is_the_same(options, layout):
    layer, theirs = twins(options)
    x = torch.randn(3, 12, 11, 14).to(memory_format=layout)
    want, layer = theirs(x), layer.eval()
    for x_shape in (None, tuple(x.shape)):
        packed = layer.pack(x_shape)
        assert packed is layer and repr(layer).endswith(", packed)") and "packed" in layer.explain()
        with torch.no_grad():
            torch.testing.assert_close(layer(x), want, rtol=1e-5, atol=1e-5)
            torch.testing.assert_close(layer(x[0]), want[0], rtol=1e-5, atol=1e-5)
            torch.testing.assert_close(layer.add_relu(x, want), (want + want).relu(), rtol=1e-5, atol=1e-5)
            compiled = torch.compile(layer, backend="aot_eager", fullgraph=True)
            torch.testing.assert_close(compiled(x), want, rtol=1e-5, atol=1e-5)
    assert "packed" not in repr(layer.unpack())


def test_packed_is_frozen_until_told():
    layer = GroupedConv2d(12, 24, 3, groups=4, activation="relu").eval().pack()
    x = torch.randn(1, 12, 8, 8).to(memory_format=torch.channels_last)
    with torch.no_grad():
        before = layer(x)
        layer.weight.mul_(2)
        layer.bias.zero_()
        assert torch.equal(layer(x), torch.nn.functional.relu(layer(x))) and not torch.equal(layer(x), before)  # the bias is read
        frozen = layer(x)
        fresh = layer.unpack()(x)
        torch.testing.assert_close(fresh, 2 * frozen)
        layer.pack()
        for copied in (copy.deepcopy(layer), pickle.loads(pickle.dumps(layer)), layer.to(memory_format=torch.channels_last)):
            torch.testing.assert_close(copied(x), fresh)
        layer.load_state_dict({k: v / 2 for k, v in layer.state_dict().items()})  # packs what it loaded
        torch.testing.assert_close(layer(x), frozen)
    for needs in (x.clone().requires_grad_(), x):
        layer.train(needs is x)
        with pytest.raises(
            ValueError, match=r"^GroupedConv2d: layer must be unpacked to be trained \(call unpack\(\)\); got a packed one where"
        ):
            layer(needs)
    with pytest.raises(ValueError, match=r"^GroupedConv2d: x_shape must be \(N, 12, H, W\); got \(1, 8, 5, 5\)$"):
        layer.pack((1, 8, 5, 5))


def test_travels():
    layer = GroupedConv2d(12, 24, 3, groups=4, activation="relu")
    x = torch.randn(2, 12, 8, 8)
    buffer = io.BytesIO()
    torch.save(layer, buffer)
    buffer.seek(0)
    for copied in (copy.deepcopy(layer), pickle.loads(pickle.dumps(layer)), torch.load(buffer, weights_only=False)):
        assert torch.equal(copied(x), layer(x))
    meta = GroupedConv2d(12, 24, 3, groups=4, device="meta")
    assert meta(torch.empty(2, 12, 8, 8, device="meta")).shape == (2, 24, 6, 6)
    filled = meta.to_empty(device="cpu")
    filled.load_state_dict(layer.state_dict())
    assert torch.equal(filled(x).relu(), layer(x))


def test_compiles_and_exports():
    layer = RootModule(12, 24, 10, 3, groups=4, padding=1)
    x = torch.randn(2, 12, 8, 8)
    compiled = torch.compile(layer, backend="aot_eager", fullgraph=True)
    torch.testing.assert_close(compiled(x), layer(x))
    with torch.no_grad():
        torch.testing.assert_close(compiled(x), layer(x))
        torch.testing.assert_close(torch.export.export(layer, (x,)).module()(x), layer(x))


def ops_of(layer, x):
    """The ops of ours that a call runs."""
    names = []

    class Recorder(TorchDispatchMode):
        def __torch_dispatch__(self, func, types, args=(), kwargs=None):
            names.extend([func._schema.name.removeprefix("sparsekern::")] if func.namespace == "sparsekern" else [])
            return func(*args, **(kwargs or {}))

    with Recorder():
        layer(x)
    return names


def test_root_module():
    root = RootModule(12, 24, 10, 3, groups=4, stride=2, padding=1)
    x = torch.randn(2, 12, 9, 9)
    want = nn.functional.conv2d(x, root.grouped.weight, root.grouped.bias, 2, 1, groups=4).relu()
    want = nn.functional.conv2d(want, root.pointwise.weight, root.pointwise.bias).relu()
    torch.testing.assert_close(root(x), want, rtol=1e-5, atol=1e-5)
    with torch.no_grad():
        torch.testing.assert_close(root(x), want, rtol=1e-5, atol=1e-5)
    with torch.no_grad():  # one call, unless somebody looks at the layers
        assert ops_of(root, x) == ["root_conv2d"]
        torch.testing.assert_close(root(x.to(memory_format=torch.channels_last)), want, rtol=1e-5, atol=1e-5)
        seen = []
        hook = root.grouped.register_forward_hook(lambda *_: seen.append(1))
        assert "root_conv2d" not in ops_of(root, x) and seen
        hook.remove()
        assert "root_conv2d" not in ops_of(root, x[0])
    assert list(root.state_dict()) == ["grouped.weight", "grouped.bias", "pointwise.weight", "pointwise.bias"]
    assert root.grouped.weight.shape == (24, 3, 3, 3) and root.pointwise.weight.shape == (10, 24, 1, 1)
    plain = RootModule(12, 24, 10, 3, groups=4, bias=False, activation="none", dtype=torch.float64)
    assert len(list(plain.parameters())) == 2 and (plain(x.double()) < 0).any()


def test_says_who_serves():
    text = GroupedConv2d(96, 192, 5, padding=2, groups=16).explain((1, 96, 16, 16), channels_last=True)
    assert text.startswith("GroupedConv2d 96 -> 192, 5x5, 16 groups, [1, 96, 16, 16] channels_last, float32, served by")
    for options in VARIANTS:
        assert "served by" in GroupedConv2d(12, 24, groups=4, **options).explain()
    with pytest.raises(ValueError, match=r"^GroupedConv2d: x_shape must be \(N, 12, H, W\); got \(1, 8, 5, 5\)$"):
        GroupedConv2d(12, 24, 3).explain((1, 8, 5, 5))


def test_explain_takes_the_input_itself():
    for layer in (
        GroupedConv2d(16, 16, 3, groups=4),
        StochasticConv2d(16, 16, 3, density=0.5),
        SpatialBasisConv2d(16, 16, 3),
    ):
        for x in (torch.randn(2, 16, 9, 9), torch.randn(2, 16, 9, 9).to(memory_format=torch.channels_last), torch.randn(0, 16, 9, 9)):
            last = x.is_contiguous(memory_format=torch.channels_last) and not x.is_contiguous()
            assert layer.explain(x) == layer.explain(list(x.shape), channels_last=last)
        for wrong in (torch.randn(2, 8, 9, 9), torch.randn(3), (1, 16, "9", 9), 5, (1, 16, -1, 9)):
            with pytest.raises(ValueError, match=r"x_shape must be \(N, 16, H, W\); got .{1,40}$"):
                layer.explain(wrong)
    linear = SparseLinear(16, 8, density=0.5)
    assert linear.explain(torch.randn(3, 5, 16)) == linear.explain(15) and linear.explain(torch.randn(16)) == linear.explain(1)
    with pytest.raises(ValueError, match=r"rows must be a whole number; got \(3, 5\)"):
        linear.explain(torch.randn(3, 5))
