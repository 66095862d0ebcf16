"""How an op is made from its card: three products, four doors.

Every op here is, up to its bias, a bilinear map ``W(a, b)``. With a cotangent ``g`` it is the trilinear form ``<g, W(a, b)>``, and
its three products (forward, grad_x, grad_weight) are closed under differentiation: each derivative of one is another. A card
writes one ``vjp`` per product; double backward, forward mode and every higher order follow.

Each product is registered twice with the same kernels: ``sparsekern::_name`` (no autograd: eager calls) and ``sparsekern::name``
(with autograd: compile, export, direct calls). The default kernel is the reference, so an op works on every device; a compiled
library only adds faster ones. A call goes through the first door that fits:

1. ``torch.func`` or forward-mode AD is active: a Function with ``setup_context``, a vmap rule and ``jvp``
   (inside a compiled region the reference itself, which the compiler sees through);
2. compiling or exporting: ``torch.ops.sparsekern.name``;
3. a gradient is needed: a Function with ``ctx`` in ``forward`` (the cheapest way there is);
4. else ``torch.ops.sparsekern._name``.
"""

from __future__ import annotations

import functools
import weakref
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

import torch
import torch.autograd.forward_ad as forward_ad
from torch import Tensor
from torch._C import _functorch, _is_any_autocast_enabled
from torch.nn import Parameter

from sparsekern.arguments import said as said  # also for the cards
from sparsekern.ops import backends
from sparsekern.ops.flop_formulas import register_flops

if TYPE_CHECKING:
    from typing_extensions import TypeVarTuple, Unpack

    Ts = TypeVarTuple("Ts")

LIBRARY = torch.library.Library("sparsekern", "DEF")

_interpreter = _functorch.peek_interpreter_stack
_Interpreter = _functorch.CInterpreter
_compiling = torch.compiler.is_compiling
_unwrap = _functorch.unwrap_if_dead
is_wrapped = _functorch.is_functorch_wrapped_tensor
autocast_enabled = _is_any_autocast_enabled


@dataclass(frozen=True)
class Sample:
    """One good input of an op: keyword arguments of its public function."""

    name: str
    inputs: dict[str, Any]


@dataclass(frozen=True)
class BadSample:
    """One bad input, the exception and the exact sentence every implementation must answer with."""

    name: str
    inputs: dict[str, Any]
    error: type[Exception]
    sentence: str


@dataclass
class Product:
    """One of the three products of an op.

    ``schema`` lists two differentiable factors ``a, b``, then ``bias`` (if ``bias``), then ``structure`` (tensors that are not
    differentiated), then constants. ``reference`` and ``fake`` take exactly these; ``flops`` takes their shapes;
    ``vjp(doors, need, grad, a, b, shapes, rest)`` returns the gradients of ``a`` and ``b``, those in ``need``.
    """

    name: str
    schema: str
    reference: Callable[..., Tensor]
    fake: Callable[..., Tensor]
    flops: Callable[..., int]
    vjp: Callable[..., tuple[Tensor | None, Tensor | None]]
    structure: int = 0
    bias: bool = False
    fold: Callable[[Tensor], tuple[Tensor, Callable[[Tensor], Tensor]]] | None = None
    """Under vmap over ``a`` alone: ``a`` with the mapped dimension first -> (``a`` for one call, what to do with its output)."""
    kernel: Callable[..., Tensor] = field(init=False)  # no autograd
    public: Callable[..., Tensor] = field(init=False)  # with autograd

    def run(self, *args: Any) -> Tensor:
        return (self.reference if backends.forced_reference else self.kernel)(*args)


@dataclass
class Op:
    """An op as its card defines it. ``OPS[name]`` finds it."""

    name: str
    forward: Product
    grad_x: Product
    grad_weight: Product
    check: Callable[..., None]
    samples: Callable[[torch.device, torch.dtype], list[Sample]]
    bad_samples: Callable[[], list[BadSample]]
    factors: tuple[str, str] = ("x", "weight")  # what the public function calls a and b
    behind_bias: int = 0  # dimensions of the output behind the bias's
    cpu_provider: str | None = None  # who serves on the CPU, if not kernels compiled per instruction set
    function: Callable[..., Tensor] | None = None  # the public function
    gradients: Callable[..., tuple[Tensor | None, Tensor, Tensor]] | None = None
    """``(grad, a, b or None, b's shape, *structure, *constants) -> (grad_a if b, grad_b, grad_bias)`` in one call, for an eager backward
    without a graph of its own that wants at least the last two; None, or where it answers NotImplemented: product by product."""
    eager: SimpleNamespace = field(default_factory=SimpleNamespace)
    transformed: SimpleNamespace = field(default_factory=SimpleNamespace)
    compiled: SimpleNamespace = field(default_factory=SimpleNamespace)

    @property
    def products(self) -> dict[str, Product]:
        return {"forward": self.forward, "grad_x": self.grad_x, "grad_weight": self.grad_weight}

    call: Callable[..., Tensor] = field(init=False)
    """``call(a, b, *rest)``: through the first door that fits. ``rest`` is the forward product's schema after the factors."""


#: Every op by name.
OPS: dict[str, Op] = {}


def autocast(*tensors: Unpack[Ts]) -> tuple[Unpack[Ts]]:
    """The tensors (or None) in the autocast dtype, if autocast is on for their device. Differentiable; float64 stays, as in torch."""
    if not _is_any_autocast_enabled():
        return tensors
    given: Any = tensors
    device = next((t.device.type for t in given if t is not None), "meta")
    if device == "meta" or not torch.is_autocast_enabled(device):
        return tensors
    dtype = torch.get_autocast_dtype(device)
    cast: Any = tuple(t if t is None or t.dtype == torch.float64 or not t.is_floating_point() else t.to(dtype) for t in given)
    return cast


def compute(*tensors: Unpack[Ts]) -> tuple[Unpack[Ts]]:
    """fp16 and bf16 are computed in fp32, as the kernels do: the tensors (or None), the narrow ones as float32."""
    given: Any = tensors
    wide: Any = tuple(t.float() if t is not None and t.dtype in (torch.float16, torch.bfloat16) else t for t in given)
    return wide


def outside_autocast(reference: Callable[..., Tensor]) -> Callable[..., Tensor]:
    """A reference whose first argument is a tensor, left alone by autocast: it would cast to 16 bits again what is computed in float32."""

    @functools.wraps(reference)
    def computed(first: Tensor, *args: Any) -> Tensor:
        if not _is_any_autocast_enabled() or first.device.type == "meta":
            return reference(first, *args)
        with torch.autocast(first.device.type, enabled=False):
            return reference(first, *args)

    return computed


def transforming() -> bool:
    """Whether ``torch.func`` or forward-mode AD is active."""
    # there is an interpreter; `is not None` would do in eager mode, but Dynamo finds it always true
    return isinstance(_interpreter(), _Interpreter) or forward_ad._current_level >= 0


def of_a_transform(t: Tensor) -> bool:
    """Whether ``torch.func`` looks at it, which knows of few layouts."""
    return isinstance(_interpreter(), _Interpreter) if _compiling() else is_wrapped(t)


def has_tangent(*tensors: Tensor | None) -> bool:
    """Whether one of them (or None) bears a tangent of forward-mode AD, or the wrapper of a transform inside it."""
    if forward_ad._current_level < 0:
        return False
    return any(t is not None and (is_wrapped(t) or forward_ad.unpack_dual(t).tangent is not None) for t in tensors)


def define(op: Op) -> Op:
    """Register the three products of a card and open the four doors."""
    for door, product in op.products.items():
        product.reference = outside_autocast(product.reference)
        _register(product)
        setattr(op.eager, door, _eager_door(op, product))
        setattr(op.transformed, door, _transformed_door(op, product))
        setattr(op.compiled, door, product.public)
    for product in op.products.values():
        _register_autograd(op, product)
    op.call = _first_door(op)
    OPS[op.name] = op
    return op


def _first_door(op: Op) -> Callable[..., Tensor]:
    forward, eager, transformed = op.forward, op.eager.forward, op.transformed.forward

    def call(a: Tensor, b: Tensor, *rest: Any) -> Tensor:
        # torch.func is active if there is an interpreter. `is not None` would do in eager mode, but Dynamo finds it always true.
        if isinstance(_interpreter(), _Interpreter) or forward_ad._current_level >= 0:
            if _compiling():
                return forward.reference(a, b, *rest)
            return transformed(a, b, *rest)
        if _compiling():
            return forward.public(a, b, *rest)
        return eager(a, b, *rest)

    return call


def _register(product: Product) -> None:
    for name in ("_" + product.name, product.name):
        LIBRARY.define(f"{name}({product.schema}) -> Tensor", tags=(torch.Tag.pt2_compliant_tag,))
        LIBRARY.impl(name, product.reference, "CompositeExplicitAutograd")
        torch.library.register_fake(f"sparsekern::{name}", product.fake, lib=LIBRARY)
        register_flops(getattr(torch.ops.sparsekern, name), product.flops)
    product.kernel = getattr(torch.ops.sparsekern, "_" + product.name).default
    product.public = getattr(torch.ops.sparsekern, product.name).default
    _register_vmap(product)


def _register_vmap(product: Product) -> None:
    """Map over ``a`` alone in one call where the op can take it, else one call per slice."""

    def rule(call: Callable[..., Tensor]) -> Callable[..., tuple[Tensor, int]]:
        def batched(info: Any, in_dims: tuple[int | None, ...], *args: Any) -> tuple[Tensor, int]:
            if product.fold and in_dims[0] is not None and all(dim is None for dim in in_dims[1:]):
                a, unfold = product.fold(args[0].movedim(in_dims[0], 0))
                return unfold(call(a, *args[1:])), 0
            slices = [arg if dim is None else arg.movedim(dim, 0) for arg, dim in zip(args, in_dims)]
            out = [call(*(s if dim is None else s[i] for s, dim in zip(slices, in_dims))) for i in range(info.batch_size)]
            return torch.stack(out), 0

        return batched

    torch.library.register_vmap(f"sparsekern::_{product.name}", rule(product.kernel), lib=LIBRARY)
    torch.library.register_vmap(f"sparsekern::{product.name}", rule(product.public), lib=LIBRARY)


def _bias_grad(op: Op, grad: Tensor, shape: Sequence[int]) -> Tensor:
    if not op.behind_bias and grad.dim() == 2:
        return grad.sum(0)  # the same, and a third of the cost of a small one
    return grad.sum_to_size((*shape, *(1,) * op.behind_bias)).reshape(shape)


def _gradients(op: Op, product: Product, doors: SimpleNamespace, need: Sequence[bool], grad: Tensor, saved: tuple, shapes: tuple) -> tuple:
    """One gradient per argument of the product, None where there is none. ``saved``: its arguments, of a bias its shape."""
    a, b, *rest = saved
    if not product.bias:
        return product.vjp(doors, need, grad, a, b, shapes, rest) + (None,) * len(rest)
    bias_shape = rest.pop(0)
    bias_grad = _bias_grad(op, grad, bias_shape) if bias_shape is not None and need[2] else None
    return (*product.vjp(doors, need, grad, a, b, shapes, rest), bias_grad) + (None,) * len(rest)


def eager_gradients(op: Op, need: Sequence[bool], grad: Tensor, saved: tuple, shapes: tuple) -> tuple:
    """The gradients of an op's forward product, product by product, with a graph of their own where one is wanted."""
    return _gradients(op, op.forward, _door_of_cotangent(op, grad), need, grad, saved, shapes)


def _door_of_cotangent(op: Op, grad: Tensor) -> SimpleNamespace:
    """Of an eager backward: its cotangent may bear what the forward pass did not know of."""
    if _functorch.is_legacy_batchedtensor(grad):  # torch.autograd.functional's vectorize=True, is_grads_batched=True: needs a graph inside
        return op.compiled
    return op.transformed if transforming() else op.eager  # a tangent


def _eager_door(op: Op, product: Product) -> Callable[..., Tensor]:
    structure, has_bias = product.bias + product.structure, product.bias
    kernel, grad_enabled = backends.quick(product.kernel), torch.is_grad_enabled
    no_gradients = (None,) * (product.schema.count(",") - 2)  # of structure and constants

    class Eager(torch.autograd.Function):
        @staticmethod
        def forward(ctx: Any, a: Tensor, b: Tensor, *rest: Any) -> Tensor:
            # a factor is kept only if the other one's gradient needs it
            need_a, need_b, *_ = ctx.needs_input_grad
            # what save_for_backward does; of a bias its shape is all that counts
            ctx.to_save = (a if need_b else None, b if need_a else None, *rest[has_bias:structure])
            ctx.rest = rest[structure:], rest[0].shape if has_bias and rest[0] is not None else None, a.shape, b.shape
            return product.reference(a, b, *rest) if backends.forced_reference else kernel(a, b, *rest)

        @staticmethod
        def backward(ctx: Any, grad: Tensor) -> tuple:
            need, saved = ctx.needs_input_grad, ctx.saved_tensors
            constants, bias_shape, *shapes = ctx.rest
            door = _door_of_cotangent(op, grad)
            everyday = door is op.eager and not (grad_enabled() or backends.forced_reference)
            if has_bias and op.gradients and need[1] and need[2] and everyday:
                a, b, *rest = saved
                found = op.gradients(grad, a, b, shapes[1], *rest, *constants)
                if found is not NotImplemented:
                    return (*found, *no_gradients)
            given = (*saved[:2], *((bias_shape,) if has_bias else ()), *saved[2:], *constants)
            return _gradients(op, product, door, need, grad, given, shapes)

    Eager.__name__ = Eager.__qualname__ = product.name
    # What the engine calls; torch's own `apply` looks for `backward` at every call.
    Eager._backward_cls.apply = Eager.backward  # type: ignore[attr-defined] # its metaclass makes it for each class
    # What Eager.apply comes to outside of transforms, without looking at every argument: a tensor that escaped from torch.func.grad
    # still wears its wrapper; a Parameter has none.
    apply = super(torch.autograd.Function, Eager).apply

    def call(a: Tensor, b: Tensor, *rest: Any) -> Tensor:
        if grad_enabled() and (a.requires_grad or b.requires_grad or (has_bias and rest[0] is not None and rest[0].requires_grad)):
            if has_bias and rest[0] is not None and type(rest[0]) is not Parameter:
                rest = (_unwrap(rest[0]), *rest[1:])
            return apply(_unwrap(a), b if type(b) is Parameter else _unwrap(b), *rest)
        return product.reference(a, b, *rest) if backends.forced_reference else kernel(a, b, *rest)

    return call


def _add(p: Tensor | None, q: Tensor | None) -> Tensor | None:
    return q if p is None else p if q is None else p + q


def _shape_of_bias(product: Product, tensors: tuple) -> tuple:
    """A product's tensors, of the bias its shape."""
    if not product.bias or tensors[2] is None:
        return tensors
    return (*tensors[:2], tensors[2].shape, *tensors[3:])


def _transformed_door(op: Op, product: Product) -> Callable[..., Tensor]:
    tensors = 2 + product.bias + product.structure

    class Transformed(torch.autograd.Function):
        generate_vmap_rule = True

        @staticmethod
        def forward(a: Tensor, b: Tensor, *rest: Any) -> Tensor:
            return product.run(a, b, *rest)

        @staticmethod
        def setup_context(ctx: Any, inputs: tuple, output: Tensor) -> None:
            ctx.save_for_backward(*inputs[:tensors])
            ctx.save_for_forward(*inputs[:tensors])
            ctx.constants = inputs[tensors:]
            ctx.shapes = inputs[0].shape, inputs[1].shape
            ctx.out_shape = output.shape

        @staticmethod
        def backward(ctx: Any, grad: Tensor) -> tuple:
            saved = _shape_of_bias(product, ctx.saved_tensors) + ctx.constants
            return _gradients(op, product, op.transformed, (True, True, True), grad, saved, ctx.shapes)

        @staticmethod
        def jvp(ctx: Any, a_tangent: Tensor | None, b_tangent: Tensor | None, *tangents: Tensor | None) -> Tensor | None:
            a, b, *rest = ctx.saved_tensors + ctx.constants
            bias_tangent = None
            if product.bias:
                rest[0] = None
                bias_tangent = tangents[0]
            out = _add(
                None if a_tangent is None else Transformed.apply(a_tangent, b, *rest),
                None if b_tangent is None else Transformed.apply(a, b_tangent, *rest),
            )
            if bias_tangent is None:
                return out
            spread = bias_tangent.reshape(*bias_tangent.shape, *(1,) * op.behind_bias)
            return spread.expand(ctx.out_shape).clone() if out is None else out + spread

    Transformed.__name__ = Transformed.__qualname__ = product.name
    return Transformed.apply


def _register_autograd(op: Op, product: Product) -> None:
    tensors = 2 + product.bias + product.structure

    def setup_context(ctx: Any, inputs: tuple, output: Tensor) -> None:
        need_a, need_b = ctx.needs_input_grad[:2]
        a, b, *rest = _shape_of_bias(product, inputs[:tensors])
        ctx.bias_shape = rest.pop(0) if product.bias else None
        ctx.save_for_backward(a if need_b else None, b if need_a else None, *rest)
        ctx.constants = inputs[tensors:]
        ctx.shapes = a.shape, b.shape

    def backward(ctx: Any, grad: Tensor) -> tuple:
        a, b, *rest = ctx.saved_tensors
        saved = (a, b, *((ctx.bias_shape,) if product.bias else ()), *rest, *ctx.constants)
        return _gradients(op, product, op.compiled, ctx.needs_input_grad, grad, saved, ctx.shapes)

    torch.library.register_autograd(f"sparsekern::{product.name}", backward, setup_context=setup_context, lib=LIBRARY)


# ---- the pieces of error sentences: "<op>: <arg> must be <rule>; got <value>"


def must(condition: bool, op: str, arg: str, rule: str, got: Any) -> None:
    if not condition:
        raise ValueError(f"{op}: {arg} must be {rule}; got {got}")


def is_whole(value: Any) -> bool:
    """An int, if only a compiler's."""
    return isinstance(value, int | torch.SymInt)


def check_flags(op: str, **values: Any) -> None:
    for arg, value in values.items():
        must(isinstance(value, int), op, arg, "True or False", said(value))


def check_whole(op: str, **values: Any) -> None:
    for arg, value in values.items():
        must(is_whole(value), op, arg, "a whole number", said(value))


def check_pairs(op: str, **values: Any) -> None:
    for arg, value in values.items():
        both = value if isinstance(value, tuple | list) else (value, value)
        got = value if len(both) != 2 or both[0] is not both[1] else both[0]  # of one number two were made
        must(len(both) == 2 and all(map(is_whole, both)), op, arg, "an int or two", said(got))


def check_window(op: str, **pairs: tuple[int, int]) -> None:
    """Rows and columns of a window, none so large that sums and products of them could leave 64 bits."""
    for arg, pair in pairs.items():
        check_pairs(op, **{arg: pair})
        least = 0 if arg == "padding" else 1
        must(min(pair) >= least, op, arg, f"at least {least}", pair)
        must(max(pair) < 2**31, op, arg, "below 2^31", pair)


def useful_dilation(dilation: Sequence[int], kernel: Sequence[int]) -> tuple[int, ...]:
    """Of one tap it means nothing, but torch 2.13 may end the process for it (csrc/core/window_range.h)."""
    return tuple(1 if taps == 1 else step for step, taps in zip(dilation, kernel))


def convolve(
    x: Tensor, weight: Tensor, bias: Tensor | None, stride: Sequence[int], padding: Sequence[int], dilation: Sequence[int], groups: int = 1
) -> Tensor:
    """torch's convolution, out of the way of what ends the process: taps that lie apart in channels_last operands (core/conv_window.h)."""
    dilation = useful_dilation(dilation, weight.shape[2:])
    if max(dilation) > 1:
        x, weight = (t.clone(memory_format=torch.contiguous_format) for t in (x, weight))
    return torch.nn.functional.conv2d(x, weight, bias, stride, padding, dilation, groups)


def convolve_backward(
    product: int, grad_out: Tensor, x: Tensor, weight: Tensor, stride: Sequence[int], padding: Sequence[int], dilation: Sequence[int],
    groups: int = 1,
) -> Tensor:  # fmt: skip
    """torch's gradient of x (product 0) or of the weight (1), as :func:`convolve`, and with no channels_last operand where a stride passes
    pixels by: of one tap the weight's gradient would be wrong (core/conv_window.h)."""
    dilation = useful_dilation(dilation, weight.shape[2:])
    if max(dilation) > 1 or max(stride) > 1:
        grad_out, x, weight = (t.clone(memory_format=torch.contiguous_format) for t in (grad_out, x, weight))
    mask = [product == 0, product == 1, False]
    return torch.ops.aten.convolution_backward(grad_out, x, weight, None, stride, padding, dilation, False, [0, 0], groups, mask)[product]


def check_tensor(op: str, arg: str, value: Any) -> None:
    if not isinstance(value, Tensor):
        raise TypeError(f"{op}: {arg} must be a tensor; got {type(value).__name__}")
    plain = value.layout == torch.strided and not value.is_nested
    must(plain, op, arg, "a strided tensor", "a nested one" if value.is_nested else value.layout)


def check_floating(op: str, arg: str, value: Any) -> None:
    check_tensor(op, arg, value)
    floats = (torch.float32, torch.float64, torch.float16, torch.bfloat16)
    must(value.dtype in floats, op, arg, "float32, float64, float16 or bfloat16", value.dtype)


def check_like(op: str, arg: str, value: Any, x: Tensor, name: str = "x") -> None:
    """``value`` is a tensor of the dtype and device of ``x``."""
    check_tensor(op, arg, value)
    must(value.dtype == x.dtype, op, arg, f"{x.dtype} like {name}", value.dtype)
    must(value.device == x.device, op, arg, f"on {x.device} like {name}", value.device)


def check_int32(op: str, arg: str, value: Any, x: Tensor, dim: int, name: str = "x") -> None:
    check_tensor(op, arg, value)
    must(value.dtype == torch.int32, op, arg, "torch.int32", value.dtype)
    must(value.device == x.device, op, arg, f"on {x.device} like {name}", value.device)
    must(value.dim() == dim, op, arg, f"{dim}-dimensional", list(value.shape))


def seal_of(array: Tensor, place: int) -> int:
    """The seal of a plan or a pack, ``array [*]`` int32, whatever its word ``place`` holds, where it stands (csrc/core/seal.cpp)."""
    total = array.numel()
    for begin in range(0, array.numel(), 1 << 20):
        at = torch.arange(begin, min(array.numel(), begin + (1 << 20)), device=array.device)
        t = (array[begin : begin + (1 << 20)].long() + at * 0x9E3779B1) & 0xFFFFFFFF
        t = (t ^ (t >> 16)) * 0x85EBCA6B & 0xFFFFFFFF
        t = (t ^ (t >> 13)) * 0xC2B2AE35 & 0xFFFFFFFF
        t ^= t >> 16
        if begin <= place < begin + len(t):
            t[place - begin] = 0
        total += int(t.sum())
    return total & 0xFFFFFFFF


GPU_PLANS = 0x5C0DA, 0x5C0DB  # the first word of a GPU's plans, which bear no seal: to look at one is to wait for the device


def sealed(array: Tensor, place: int) -> bool:
    """Whether a plan or a pack is as it was made."""
    if array.numel() and int(array[0]) in GPU_PLANS:  # in a test of the GPU's kernels; the CPU's know it for none of theirs
        return True
    return array.numel() > place and int(array[place]) & 0xFFFFFFFF == seal_of(array, place)


_whole: dict[int, tuple[weakref.ref, int]] = {}  # plans and packs that were found whole, by id: who they are, and their version then


def require_whole(array: Tensor, place: int, message: str) -> None:
    """Raise RuntimeError for a plan or a pack that was damaged: each is read once, and again once it was written to."""
    known = _whole.get(id(array))
    version = -1 if array.is_inference() else array._version  # made in inference mode: nothing counts its writes
    if known is not None and known[0]() is array and known[1] == version:
        return
    if not (readable(array) and array.device.type == "cpu" and array.dtype == torch.int32 and array.dim() == 1 and array.numel() > place):
        return  # nothing to be read, or no array of ours, which others say
    if not sealed(array, place):
        raise RuntimeError(message)
    note_whole(array)


def note_whole(array: Tensor) -> None:
    """A plan or a pack that was found whole, or was just made, need not be read before it was written to."""
    version = -1 if array.is_inference() else array._version
    key = id(array)
    _whole[key] = weakref.ref(array, lambda _: _whole.pop(key, None)), version


def readable(*tensors: Tensor | None) -> bool:
    """Whether the values of these tensors can be read (not being compiled, not fake, not meta, not inside a transform)."""
    if _compiling():
        return False
    from torch._subclasses.fake_tensor import FakeTensor

    return not any(
        t is not None and (isinstance(t, FakeTensor) or t.device.type == "meta" or _functorch.is_functorch_wrapped_tensor(t))
        for t in tensors
    )
