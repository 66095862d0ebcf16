"""The short way from Python to sparse_linear: it answers as the doors do, and leaves to them what is more than a plain call."""

from __future__ import annotations

import itertools
import sys

import pytest
import torch
import torch.autograd.forward_ad as forward_ad
import torch.nn.functional as F
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode

from sparsekern.nn import GroupedConv2d, SparseLinear, StochasticConv2d
from sparsekern.ops import OPS, backends, pack_sparse_linear, plan_sparse_linear, sparse_linear, sparse_linear_packed

quick = backends.quick_call
pytestmark = pytest.mark.skipif(quick is None, reason="built against another torch, or without Python.h")
SAMPLES = {s.name: s.inputs for s in OPS["sparse_linear"].samples(torch.device("cpu"), torch.float32)}


def arguments(inputs, plan=None):
    return inputs["x"], inputs["weight"], inputs["bias"], inputs["index"], plan


def value_and_gradients(call, inputs, plan, x_needs, weight_needs):
    x, weight, bias, index, plan = arguments(inputs, plan)
    leaves = [
        t if t is None else t.detach().requires_grad_(need) for t, need in ((x, x_needs), (weight, weight_needs), (bias, weight_needs))
    ]
    out = call(*leaves, index, plan)
    out.backward(torch.linspace(-1, 1, out.numel(), dtype=out.dtype).view_as(out))
    return [out, *(t.grad for t in leaves if t is not None)]


@pytest.mark.parametrize("name", SAMPLES)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float64], ids=str)
def test_answers_as_the_doors_do(name, dtype):
    inputs = {k: v.to(dtype) if isinstance(v, torch.Tensor) and v.is_floating_point() else v for k, v in SAMPLES[name].items()}
    weight = inputs["weight"]
    block = tuple(weight.shape[2:]) or (1, 1)
    for plan in (None, plan_sparse_linear(inputs["index"], inputs["x"].shape[-1], block)):
        given = arguments(inputs, plan)
        out, want = quick.linear(*given), OPS["sparse_linear"].call(*given)
        assert torch.equal(out, want) and out.stride() == want.stride() and out.dtype == want.dtype
        for needs in ((True, True), (False, True), (True, False)):
            got = value_and_gradients(quick.linear, inputs, plan, *needs)
            for a, b in zip(got, value_and_gradients(OPS["sparse_linear"].call, inputs, plan, *needs), strict=True):
                assert (a is None) == (b is None)
                if a is not None:
                    torch.testing.assert_close(
                        a, b, rtol=0, atol=4 * torch.finfo(dtype).eps * float(b.detach().abs().max()) if b.numel() else 0
                    )


class Subclass(torch.Tensor):
    pass


class Listening(TorchDispatchMode):
    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        return func(*args, **(kwargs or {}))


class Replacing(TorchFunctionMode):
    def __torch_function__(self, func, types, args=(), kwargs=None):
        return func(*args, **(kwargs or {}))


def test_leaves_to_the_doors_what_is_more_than_a_plain_call():
    x, weight, bias, index, _ = given = arguments(SAMPLES["odd_batch"])
    packed = pack_sparse_linear(weight, index, x.shape[1])
    frozen = (x, packed, bias, len(bias), weight.numel())

    def answers():
        return [quick.linear(*given) is not NotImplemented, quick.packed_linear(*frozen) is not NotImplemented]

    assert answers() == [True, True]
    for state in (Listening(), Replacing(), torch.autocast("cpu", torch.bfloat16), forward_ad.dual_level(), backends.use("reference")):
        with state:
            assert answers() == [False, False], state
    with torch.inference_mode():
        assert answers() == [True, True]
    assert torch.func.vmap(lambda _: x.new_tensor(answers()))(torch.zeros(2)).sum() == 0
    for other in (x.as_subclass(Subclass), torch._neg_view(x), x.to("meta")):
        assert quick.linear(other, *given[1:]) is NotImplemented
        assert quick.packed_linear(other, *frozen[1:]) is NotImplemented
    assert torch.equal(sparse_linear(torch._neg_view(x), weight, index, bias), sparse_linear(-x, weight, index, bias))
    assert quick.packed_linear(x.clone().requires_grad_(), *frozen[1:]) is NotImplemented


def off_by_a_byte(t):
    memory = torch.empty(t.numel() * t.element_size() + 1, dtype=torch.uint8).numpy()
    return torch.frombuffer(memory[1:], dtype=t.dtype).view(t.shape).copy_(t)


def test_leaves_to_the_doors_addresses_that_kernels_cannot_read():
    x, weight, bias, index, _ = arguments(SAMPLES["odd_batch"])
    given = (x, weight, bias, index, plan_sparse_linear(index, x.shape[1]))
    packed = pack_sparse_linear(weight, index, x.shape[1])
    frozen = (x, packed, bias, len(bias), weight.numel())
    for call, door, operands in ((quick.linear, OPS["sparse_linear"].call, given), (quick.packed_linear, sparse_linear_packed, frozen)):
        want = call(*operands)
        for i, operand in enumerate(operands):
            if isinstance(operand, torch.Tensor):
                moved = (*operands[:i], off_by_a_byte(operand), *operands[i + 1 :])
                assert call(*moved) is NotImplemented, i
                assert torch.equal(door(*moved), want), i
    image = torch.randn(2, 32, 6, 6)
    conv = StochasticConv2d(32, 16, 3, padding=1, density=0.1, seed=0).requires_grad_(False)
    groups = GroupedConv2d(32, 16, 3, padding=1, groups=4).requires_grad_(False)
    for layer, call in ((conv, quick.conv_layer), (groups, quick.grouped_layer)):
        want = call(layer.__dict__, image)
        assert call(layer.__dict__, off_by_a_byte(image)) is NotImplemented
        assert torch.equal(layer(off_by_a_byte(image)), want)
        layer.weight.data = off_by_a_byte(layer.weight)
        assert call(layer.__dict__, image) is NotImplemented
        assert torch.equal(layer(image), want)


def test_profilers_and_traces_see_the_op():
    x, weight, bias, index, _ = given = arguments(SAMPLES["odd_batch"])
    packed = pack_sparse_linear(weight, index, x.shape[1])
    with torch.profiler.profile() as profile:
        quick.linear(*given)
        sparse_linear_packed(x, packed, bias, len(bias), weight.numel())
    seen = {event.name for event in profile.events()}
    assert {"sparsekern::_sparse_linear", "sparsekern::sparse_linear_packed"} <= seen
    traced = torch.jit.trace(lambda t: sparse_linear(t, weight, index, bias), (x,), check_trace=False)
    assert torch.equal(traced(2 * x), sparse_linear(2 * x, weight, index, bias))


def test_a_graph_of_gradients_and_freed_buffers():
    layer = SparseLinear(24, 12, density=0.5, seed=0)
    x = torch.randn(5, 24, requires_grad=True)
    (first,) = torch.autograd.grad(layer(x).pow(2).sum(), x, create_graph=True)
    first.pow(2).sum().backward()
    dense = layer.to_dense()
    z = x.detach().clone().requires_grad_()
    (want,) = torch.autograd.grad(dense(z).pow(2).sum(), z, create_graph=True)
    want.pow(2).sum().backward()
    torch.testing.assert_close(x.grad, z.grad, rtol=1e-4, atol=1e-4)
    out = layer(x).sum()
    out.backward()
    with pytest.raises(RuntimeError, match="second time"):
        out.backward()
    out = layer(x).sum()
    with torch.no_grad():
        layer.index.copy_(layer.index)  # the same values, but written
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        out.backward()


def test_without_it_the_doors_serve(monkeypatch):
    layer, x = SparseLinear(24, 12, density=0.5, seed=0).requires_grad_(False), torch.randn(5, 24)
    want, want_packed = layer(x), layer.pack()(x)
    for name in ("ops.sparse_linear", "ops.sparse_linear_packed", "nn.sparse_linear"):
        monkeypatch.setattr(sys.modules[f"sparsekern.{name}"], "_quick", None)
    assert torch.equal(layer(x), want_packed)
    assert torch.equal(layer.unpack()(x), want)


def everyday(layer, x):
    return quick.linear_layer(layer.__dict__, x) is not NotImplemented


def test_a_layer_is_called_in_one_step_only_as_its_attributes_allow():
    layer, x = SparseLinear(24, 12, density=0.5, seed=0), torch.randn(5, 24)
    assert everyday(layer, x) and torch.equal(quick.linear_layer(layer.__dict__, x), layer(x))
    with torch.no_grad():
        layer.index.copy_(layer.index)
    assert not everyday(layer, x), "the table was written: the plan may be another's"
    layer(x)
    assert everyday(layer, x), "planned anew"
    layer.index = layer.index.clone()
    assert not everyday(layer, x), "another table"
    layer(x)
    torch.nn.utils.parametrize.register_parametrization(layer, "weight", torch.nn.Identity())
    assert not everyday(layer, x), "parametrized"
    torch.nn.utils.parametrize.remove_parametrizations(layer, "weight")
    assert everyday(layer, x)
    layer.pack()
    assert not everyday(layer, x), "a packed layer is not trained"
    with torch.no_grad():
        assert everyday(layer, x) and torch.equal(quick.linear_layer(layer.__dict__, x), layer(x))
    assert everyday(layer.eval(), x) and not everyday(layer, x.clone().requires_grad_())
    assert not layer(x).requires_grad
    with torch.inference_mode():
        made = SparseLinear(24, 12, density=0.5, seed=0)
        assert not everyday(made, x), "nothing tells when its table is written"


def test_a_layer_without_bias_is_called_in_one_step_too():
    layer, x = SparseLinear(24, 12, density=0.5, bias=False, seed=0).requires_grad_(False), torch.randn(3, 24)
    assert torch.equal(quick.linear_layer(layer.__dict__, x), layer(x))
    torch.testing.assert_close(layer(x), layer.to_dense()(x))


CONVOLUTIONS = {
    "spatial": dict(padding=1),
    "plain_bias": dict(padding=(0, 2), stride=(2, 1), bias=False),
    "synapse": dict(padding="same", dilation=2, granularity="synapse"),
    "shared": dict(padding=1, granularity="kernel", share=4),
    "groups": dict(groups=2, stride=2),
}


@pytest.mark.parametrize("name", CONVOLUTIONS)
@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last], ids=["nchw", "channels_last"])
def test_a_convolution_answers_as_the_doors_do(name, layout, monkeypatch):
    layer = StochasticConv2d(32, 16, 3, density=0.2, seed=0, **CONVOLUTIONS[name]).requires_grad_(False)
    for images in (1, 3):
        x = torch.randn(images, 32, 9, 7).contiguous(memory_format=layout)
        out = quick.conv_layer(layer.__dict__, x)
        assert torch.equal(out, layer(x))
        with monkeypatch.context() as patch:
            patch.setattr(sys.modules["sparsekern.nn.stochastic_conv2d"], "_quick", None)
            want = layer(x)
        assert torch.equal(out, want) and out.stride() == want.stride()


def test_a_convolution_is_called_in_one_step_only_as_its_attributes_allow():
    layer, x = StochasticConv2d(32, 16, 3, padding=1, density=0.1, seed=0), torch.randn(2, 32, 6, 6)

    def everyday(x=x):
        return quick.conv_layer(layer.__dict__, x) is not NotImplemented

    assert not everyday(), "the weight wants a gradient"
    assert layer(x).requires_grad
    with torch.no_grad():
        assert everyday()
    layer.requires_grad_(False)
    assert everyday() and not everyday(x.clone().requires_grad_())
    for state in (Listening(), Replacing(), torch.autocast("cpu", torch.bfloat16), forward_ad.dual_level(), backends.use("reference")):
        with state:
            assert not everyday(), state
    for state in (torch.profiler.profile(), backends.use(backends.serves("sparse_conv2d"), dense="always")):
        with state:
            assert not everyday(), state
    others = x.double(), x.bfloat16(), x[0], x[..., ::2], x[:0], x[:, :16], torch._neg_view(x), x.as_subclass(Subclass), x.to("meta")
    assert not any(map(everyday, others))
    for other in (x[0], x[..., ::2], x[:0], torch._neg_view(x)):
        torch.testing.assert_close(layer(other), layer.to_dense()(other))
    with pytest.raises(ValueError, match="StochasticConv2d: x must be"):
        layer(x[:, :16])
    for table in (layer.index, layer.indptr):
        table.copy_(table.clone())
        assert not everyday(), "the table was written: the plan may be another's"
        layer(x)
        assert everyday(), "planned anew"
    layer.indptr = layer.indptr.clone()
    assert not everyday(), "another table"
    layer(x)
    assert everyday()
    with torch.no_grad():
        layer.weight.mul_(2)
        torch.testing.assert_close(layer(x), layer.to_dense()(x))
    torch.nn.utils.parametrize.register_parametrization(layer, "weight", torch.nn.Identity())
    assert not everyday(), "parametrized"
    torch.nn.utils.parametrize.remove_parametrizations(layer, "weight", leave_parametrized=False)
    layer.kernel_size = (2, 2)
    assert not everyday(), "the plan is of another kernel"
    uneven = StochasticConv2d(32, 16, 2, padding="same", density=0.3, seed=0).requires_grad_(False)
    reflected = StochasticConv2d(32, 16, 3, padding=1, padding_mode="reflect", density=0.3, seed=0).requires_grad_(False)
    for padded in (uneven, reflected):
        assert quick.conv_layer(padded.__dict__, x) is NotImplemented, "padded before the kernel"


GROUPS = {  # (in, out, kernel, the rest)
    "groups": (32, 48, 3, dict(padding=1, groups=4, activation="relu")),
    "plain_bias": (32, 32, (1, 3), dict(padding=(0, 2), stride=(2, 1), bias=False, groups=8)),
    "pointwise": (24, 16, 1, dict()),
    "dilated": (32, 32, 3, dict(padding=2, dilation=2, groups=2)),
    "wide": (64, 64, 3, dict(stride=2, activation="relu")),
    "depthwise": (32, 32, 3, dict(padding=1, groups=32)),
}


@pytest.mark.parametrize("name", GROUPS)
@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last], ids=["nchw", "channels_last"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_groups_answer_as_the_doors_do(name, layout, dtype, monkeypatch):
    inputs, outputs, kernel, rest = GROUPS[name]
    served = 0
    for images, dense, packed, last_weight in itertools.product((1, 3), ("auto", "never", "always"), (False, True), (False, True)):
        torch.manual_seed(images)
        layer = GroupedConv2d(inputs, outputs, kernel, dtype=dtype, **rest).requires_grad_(False)
        layer = layer.to(memory_format=torch.channels_last) if last_weight else layer
        x = torch.randn(images, inputs, 9, 7, dtype=dtype).contiguous(memory_format=layout)
        with backends.use(backends.serves("grouped_conv2d"), dense=dense):
            layer = layer.pack(x.shape) if packed else layer
            out = quick.grouped_layer(layer.__dict__, x)
            with monkeypatch.context() as patch:
                patch.setattr(sys.modules["sparsekern.nn.grouped_conv2d"], "_quick", None)
                want = layer(x)
            if out is NotImplemented:
                assert dtype == torch.bfloat16 or (packed and (dense == "always" or layout == torch.contiguous_format))
                out = layer(x)
            else:
                served += 1
            assert torch.equal(out, layer(x))
        assert torch.equal(out, want) and out.stride() == want.stride() and out.dtype == dtype
        weight, bias = layer.weight.double(), None if layer.bias is None else layer.bias.double()
        window = layer.stride, layer.padding, layer.dilation, layer.groups
        truth, size = (F.conv2d(f(x.double()), f(weight), bias if bias is None else f(bias), *window) for f in (torch.clone, torch.abs))
        truth = truth.relu() if layer.activation == "relu" else truth
        stored = 2**-8 if dtype == torch.bfloat16 else 0
        assert ((out.double() - truth).abs() <= ((weight[0].numel() + 4) * 2**-24 + stored) * size).all()
    tiles = backends.serves("grouped_conv2d") == "cpu/amx"  # in bfloat16 the quick way is for them
    least = int(tiles) if dtype == torch.bfloat16 else 12 if layout == torch.contiguous_format else 20  # of 24
    assert served >= least, served


def test_groups_are_called_in_one_step_only_as_their_attributes_allow():
    layer, x = GroupedConv2d(32, 16, 3, padding=1, groups=4), torch.randn(2, 32, 6, 6).contiguous(memory_format=torch.channels_last)

    def everyday(x=x, layer=layer):
        return quick.grouped_layer(layer.__dict__, x) is not NotImplemented

    assert not everyday(), "the weight wants a gradient"
    assert layer(x).requires_grad
    with torch.no_grad():
        assert everyday()
    layer.requires_grad_(False)
    assert everyday() and not everyday(x.clone().requires_grad_())
    for state in (Listening(), Replacing(), torch.autocast("cpu", torch.bfloat16), forward_ad.dual_level(), backends.use("reference")):
        with state:
            assert not everyday(), state
    with torch.profiler.profile():
        assert not everyday()
    others = (
        x.double(),
        x.bfloat16(),
        x[0],
        x[..., ::2],
        x[:0],
        x[:, :16],
        torch._neg_view(x),
        x.as_subclass(Subclass),
        x.to("meta"),
        x[:, :, :1, :1].contiguous(),
    )
    assert not any(map(everyday, others)), "another dtype, layout, size, no image, taps that meet no pixel"
    for other in (x[0], x[..., ::2], x[:0], torch._neg_view(x), x[:, :, :1, :1]):
        torch.testing.assert_close(layer(other), layer.to_dense()(other))
    with pytest.raises(ValueError, match="grouped_conv2d: x must be"):
        layer(x[:, :16])
    with torch.no_grad():
        layer.weight.mul_(2)
        torch.testing.assert_close(layer(x), layer.to_dense()(x))
    torch.testing.assert_close(layer(x, layer(x)), 2 * layer.to_dense()(x))
    torch.testing.assert_close(layer(x, None, "relu"), layer.to_dense()(x).relu())
    torch.nn.utils.parametrize.register_parametrization(layer, "weight", torch.nn.Identity())
    assert not everyday(), "parametrized"
    torch.nn.utils.parametrize.remove_parametrizations(layer, "weight", leave_parametrized=False)
    for attribute, value in {"stride": (0, 1), "padding": (-1, 0), "dilation": (2**40, 1), "groups": 3, "activation": "gelu"}.items():
        before = getattr(layer, attribute)
        setattr(layer, attribute, value)
        assert not everyday(), attribute
        with pytest.raises(ValueError, match=f"{'weight' if attribute == 'groups' else attribute} must be|x must be"):
            layer(x)
        setattr(layer, attribute, before)
    assert everyday()
    word = GroupedConv2d(32, 16, 3, padding="same", groups=4).requires_grad_(False)
    reflected = GroupedConv2d(32, 16, 3, padding=1, padding_mode="reflect", groups=4).requires_grad_(False)
    for padded in (word, reflected):
        assert not everyday(layer=padded), "padded before the kernel"
        torch.testing.assert_close(padded(x), padded.to_dense()(x))


def test_packed_groups_are_called_in_one_step_too():
    layer = GroupedConv2d(32, 16, 3, padding=1, groups=4).pack((2, 32, 6, 6))  # so small that no torch is faster, on any processor
    x = torch.randn(2, 32, 6, 6).contiguous(memory_format=torch.channels_last)

    def everyday(x=x):
        return quick.grouped_layer(layer.__dict__, x) is not NotImplemented

    assert not everyday(), "a packed layer is not trained"
    with pytest.raises(ValueError, match="unpacked to be trained"):
        layer(x)
    layer.eval()
    assert everyday() and not layer(x).requires_grad and not everyday(x.clone().requires_grad_()) and not everyday(x.contiguous())
    torch.testing.assert_close(layer(x), layer.to_dense()(x))
    layer._packed[40] += 1
    assert not everyday(), "the pack was written"
    with pytest.raises(ValueError, match="packed must be made by pack_grouped_conv2d"):
        layer(x)
    layer.groups = 8
    layer.pack()
    layer.groups = 4
    assert not everyday(), "the pack is of other groups"
