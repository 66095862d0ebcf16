"""Reads a meter at the edges of modules and of autograd nodes while a model runs, and leaves the model as it was.

A meter is a clock, or the total of torch's FlopCounterMode. For the backward pass it is read around every autograd node, and a node
belongs to the innermost module whose forward made it. No part of that knows a layer type.

:func:`counting` starts torch's counter with the formulas that it lacks.
"""

from __future__ import annotations

import contextlib
import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn.parameter import is_lazy
from torch.utils._pytree import tree_leaves, tree_map_only
from torch.utils.flop_counter import FlopCounterMode, sdpa_backward_flop_count, sdpa_flop_count


class Like(NamedTuple):
    """What is needed to make another tensor like one that was seen."""

    shape: tuple[int, ...]
    stride: tuple[int, ...]
    dtype: torch.dtype
    device: torch.device
    requires_grad: bool

    def make(self) -> Tensor:
        x = torch.empty_strided(self.shape, self.stride, dtype=self.dtype, device=self.device).normal_()
        return x.requires_grad_(self.requires_grad)


@dataclass
class Seen:
    """What a module was called with, first call; bytes of its inputs and outputs, all calls."""

    module: nn.Module
    like: tuple[Like, ...]  # its inputs, where all are ordinary tensors of floats in places; else the first, if it is one
    in_shape: tuple[int, ...] | None
    out_shape: tuple[int, ...] | None = None
    bytes: int = 0
    calls: int = 0


class Recorder:
    """Reads ``meter`` at the edges of modules and of autograd nodes during one pass."""

    def __init__(self, meter: Callable[[], float], backward: bool) -> None:
        self.meter, self.backward = meter, backward
        self.forward: dict[str, float] = {}  # path → amount, children included
        self.children: dict[str, float] = {}  # path → amount of the children
        self.parents: set[str] = set()
        self.seen: dict[str, Seen] = {}
        self.backward_by: dict[str, float] = {}
        self.backward_total = 0.0
        self.in_backward = False
        self._stack: list[tuple[str, float, set]] = []
        self._claimed: set = set()
        self._handles: list = []
        self._node_start = 0.0
        self._in_hooks = 0.0  # spent in these hooks so far; belongs to nobody

    def own(self, path: str) -> float:
        return self.forward.get(path, 0) - self.children.get(path, 0)

    def saw(self, path: str, child: str) -> bool:
        return (f"{path}.{child}" if path else child) in self.seen

    def attach(self, model: nn.Module) -> None:
        for path, module in model.named_modules():
            self._handles += [
                module.register_forward_pre_hook(self._before(path), with_kwargs=True),
                module.register_forward_hook(self._after(path), always_call=True),  # a caller may catch what a child raised
            ]

    def detach(self) -> None:
        for handle in self._handles:
            handle.remove()
        self._handles, self._claimed = [], set()

    def _before(self, path: str) -> Callable:
        def hook(module: nn.Module, args: tuple, kwargs: dict) -> None:
            if self.in_backward:  # a checkpoint computes again, inside a node, which is metered and so has that work
                return
            begin = self.meter()
            inputs = tensors_of((args, kwargs))
            if path not in self.seen:
                self.seen[path] = Seen(module, _likes(args, inputs), tuple(inputs[0].shape) if inputs else None)
            self.seen[path].bytes += sum(t.nbytes for t in inputs)
            self.seen[path].calls += 1
            borders = {t.grad_fn for t in inputs if t.grad_fn is not None} if self.backward else set()
            start = self.meter()
            self._in_hooks += start - begin
            self._stack.append((path, start - self._in_hooks, borders))

        return hook

    def _after(self, path: str) -> Callable:
        def hook(module: nn.Module, args: tuple, out: Any) -> None:
            if self.in_backward or not self._stack or self._stack[-1][0] != path:  # another hook raised before ours began
                return
            end = self.meter()
            _, start, borders = self._stack.pop()
            amount = end - self._in_hooks - start
            self.forward[path] = self.forward.get(path, 0) + amount
            if self._stack:
                parent = self._stack[-1][0]
                self.children[parent] = self.children.get(parent, 0) + amount
                self.parents.add(parent)
            outputs = tensors_of(out)
            seen = self.seen[path]
            seen.out_shape = seen.out_shape or (tuple(outputs[0].shape) if outputs else None)
            seen.bytes += sum(t.nbytes for t in outputs)
            if self.backward:
                self._claim(path, [t.grad_fn for t in outputs], borders)
            self._in_hooks += self.meter() - end

        return hook

    def _claim(self, path: str, outputs: list, borders: set) -> None:
        """Meter every autograd node between the module's outputs and its inputs that no child has claimed."""
        todo, visited = [node for node in outputs if node is not None], set(borders)
        while todo:
            node = todo.pop()
            if node in visited:
                continue
            visited.add(node)
            todo += [n for n, _ in node.next_functions if n is not None]
            if node not in self._claimed:
                self._claimed.add(node)
                self._handles += [node.register_prehook(self._node_begins), node.register_hook(self._node_ends(path))]

    def _node_begins(self, grads: Any) -> None:
        self._node_start = self.meter()

    def _node_ends(self, path: str) -> Callable:
        def hook(grad_inputs: Any, grad_outputs: Any) -> None:
            self.backward_by[path] = self.backward_by.get(path, 0) + self.meter() - self._node_start

        return hook


def run_once(model: nn.Module, arguments: tuple, recorder: Recorder, backward: bool, *, attached: bool = True) -> None:
    """One pass; gradients of the parameters are dropped again. Not ``attached``, the recorder sees the backward pass alone, as one."""
    if attached:
        recorder.attach(model)
    try:
        with torch.set_grad_enabled(backward):
            outputs = [t for t in tensors_of(model(*arguments)) if t.requires_grad]
        if backward:
            recorder.in_backward = True
            start = recorder.meter()
            torch.autograd.backward(outputs, [torch.ones_like(t) for t in outputs])
            recorder.backward_total = recorder.meter() - start
    finally:
        recorder.detach()
    for parameter in model.parameters():
        parameter.grad = None


def _likes(args: tuple, inputs: list[Tensor]) -> tuple[Like, ...]:
    found = [_like(arg) for arg in args] if len(args) == len(inputs) else [None]
    if None in found:
        found = [_like(inputs[0]) if inputs else None]
    return tuple(like for like in found if like is not None)


def _like(x: Any) -> Like | None:
    if type(x) not in (Tensor, nn.Parameter) or not x.is_floating_point() or x.layout != torch.strided:
        return None
    return Like(tuple(x.shape), x.stride(), x.dtype, x.device, x.requires_grad)


def tensors_of(tree: Any) -> list[Tensor]:
    return [t for t in tree_leaves(tree) if isinstance(t, Tensor)]


class Arguments:
    """A model's arguments as copies: the caller's tensors keep their values and get no gradients."""

    def __init__(self, given: tuple) -> None:
        self.given = given
        self._copy()

    def fresh(self) -> tuple:
        """The copies, with the values that were given and without gradients."""
        if any(t.is_inference() or t._version != version for t, version in zip(tensors_of(self._copied), self._versions)):
            self._copy()  # the model writes into its input
        for t in tensors_of(self._copied):
            t.grad = None
        return self._copied

    def _copy(self) -> None:
        copies: dict[int, Tensor] = {}  # one tensor passed twice stays one

        def copy(t: Tensor) -> Tensor:
            if id(t) not in copies:
                copies[id(t)] = t.detach().clone().requires_grad_(t.requires_grad)
            return copies[id(t)]

        self._copied = tree_map_only(Tensor, copy, self.given)
        self._versions = [0 if t.is_inference() else t._version for t in tensors_of(self._copied)]


@contextlib.contextmanager
def undisturbed(model: nn.Module, training: bool) -> Iterator[None]:
    """Set the mode, and put everything back that a pass changes: modes, gradients, buffers, random state."""
    modes = [(module, module.training) for module in model.modules()]
    grads = [(p, p.grad) for p in model.parameters()]
    model.train(training)
    for parameter, _ in grads:
        parameter.grad = None
    try:
        with kept_buffers(model), torch.random.fork_rng():
            yield
    finally:
        for module, mode in modes:
            module.training = mode
        for parameter, grad in grads:
            parameter.grad = grad


@contextlib.contextmanager
def kept_buffers(model: nn.Module) -> Iterator[None]:
    """Put every buffer back afterwards: the same tensor under its name, with the values that it had."""
    held = [(module, name, b, _value(b)) for module in model.modules() for name, b in module._buffers.items()]
    try:
        yield
    finally:
        for module, name, buffer, value in held:
            module._buffers[name] = buffer
            if buffer is not None and value is not None:
                _put_back(buffer, value)


def _value(buffer: Tensor | None) -> Tensor | None:
    """A copy of the values; None where there are none, or none that a pass could change."""
    if buffer is None or is_lazy(buffer) or buffer.is_meta or buffer.is_inference():
        return None
    return buffer.detach().clone()


def _put_back(buffer: Tensor, value: Tensor) -> None:
    with torch.no_grad():
        if buffer.shape != value.shape:
            buffer.data = value
        elif not bool(((buffer == value) | (buffer != buffer) & (value != value)).all()):  # NaN is what it was
            buffer.copy_(value)  # only here: writing an index table with its own values would drop its plan


# ---- FLOPs that torch's counter leaves out, or counts as if filters had no groups


def _conv_gradients(
    grad: Sequence[int], x: Sequence[int], weight: Sequence[int], bias: Any, stride: Any, padding: Any, dilation: Any, transposed: bool,
    output_padding: Any, groups: int, wanted: Sequence[bool], **_: Any,
) -> int:  # fmt: skip
    """The gradients of input and weight multiply as often as the forward pass."""
    positions = math.prod((x if transposed else grad)[2:])
    return 2 * math.prod(weight) * x[0] * positions * (wanted[0] + wanted[1])


def _attention(query: Sequence[int], key: Sequence[int], value: Sequence[int], *_: Any, **__: Any) -> int:
    return sdpa_flop_count(query, key, value)


def _attention_gradients(grad: Sequence[int], query: Sequence[int], key: Sequence[int], value: Sequence[int], *_: Any, **__: Any) -> int:
    """As torch counts it on GPUs: the scores, which are computed again, too."""
    return sdpa_backward_flop_count(grad, query, key, value)


def _lstm(x: Sequence[int], weight_x: Sequence[int], weight_h: Sequence[int], *_: Any, **__: Any) -> int:
    """One layer in one direction: each weight once per step of each sequence."""
    return 2 * math.prod(x[:-1]) * (math.prod(weight_x) + math.prod(weight_h))


def _lstm_gradients(*args: Any, **kwargs: Any) -> int:
    return 2 * _lstm(*args, **kwargs)


FORMULAS = {
    torch.ops.aten.convolution_backward: _conv_gradients,
    torch.ops.aten._scaled_dot_product_flash_attention_for_cpu: _attention,
    torch.ops.aten._scaled_dot_product_flash_attention_for_cpu_backward: _attention_gradients,
    torch.ops.aten.mkldnn_rnn_layer: _lstm,
    torch.ops.aten.mkldnn_rnn_layer_backward: _lstm_gradients,
}


@contextlib.contextmanager
def counting() -> Iterator[FlopCounterMode]:
    """Torch's FLOP counter, with :data:`FORMULAS`, and without the one call for a whole attention layer, which counts as nothing."""
    enabled = torch.backends.mha.get_fastpath_enabled()
    torch.backends.mha.set_fastpath_enabled(False)
    try:
        with FlopCounterMode(display=False, custom_mapping=FORMULAS) as counter:
            yield counter
    finally:
        torch.backends.mha.set_fastpath_enabled(enabled)
