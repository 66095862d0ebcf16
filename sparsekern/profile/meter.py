"""Reads a meter at the edges of modules and of autograd nodes while a model runs, and leaves the model as it was.

A meter is a clock, or the total of torch's FlopCounterMode. For the backward pass it is read around every autograd node, and a node
belongs to the innermost module whose forward made it. Nothing here knows a layer type.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_leaves


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
                module.register_forward_hook(self._after(path)),
            ]

    def detach(self) -> None:
        for handle in self._handles:
            handle.remove()
        self._handles, self._claimed = [], set()

    def _before(self, path: str) -> Callable:
        def hook(module: nn.Module, args: tuple, kwargs: dict) -> None:
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


@contextlib.contextmanager
def undisturbed(model: nn.Module, training: bool) -> Iterator[None]:
    """Set the mode, and put everything back that a pass changes: modes, gradients, buffers, random state."""
    modes = [(module, module.training) for module in model.modules()]
    grads = [(p, p.grad) for p in model.parameters()]
    buffers = [(b, b.clone()) for b in model.buffers()] if training else []
    model.train(training)
    for parameter, _ in grads:
        parameter.grad = None
    try:
        with torch.random.fork_rng():
            yield
    finally:
        for module, mode in modes:
            module.training = mode
        for parameter, grad in grads:
            parameter.grad = grad
        with torch.no_grad():
            for buffer, value in buffers:
                buffer.copy_(value)
