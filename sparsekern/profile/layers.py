"""Where a model spends its time and its multiply-adds, layer by layer, measured inside the running model.

Hooks read a meter when a module begins and ends: a clock, or the total of torch's FlopCounterMode. For the backward
pass the same meter is read around every autograd node, and a node belongs to the innermost module whose forward made
it. Nothing here knows a layer type: an op counts as soon as it has a FLOP formula.
"""

from __future__ import annotations

import contextlib
import statistics
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_leaves
from torch.utils.flop_counter import FlopCounterMode

from sparsekern.measure.machine import machine_card
from sparsekern.measure.roof import Roof, measure_roof

OWN_SHARE = 0.01  # a container is listed for its own work (what no child did) from this share of the time


@dataclass(frozen=True)
class LayerProfile:
    """One module's own work in one pass; ``flops`` count multiply and add separately and include backward if it ran."""

    name: str
    kind: str
    in_shape: tuple[int, ...] | None
    out_shape: tuple[int, ...] | None
    params: int
    bytes: int  # input, parameters, tables and output
    flops: int
    ms: float  # median forward
    backward_ms: float | None
    calls: int

    @property
    def total_ms(self) -> float:
        return self.ms + (self.backward_ms or 0.0)

    @property
    def gflops(self) -> float:
        """GF/s, 0 for layers without multiply-adds."""
        return self.flops / self.total_ms / 1e6 if self.total_ms else 0.0


@dataclass(frozen=True)
class Profile:
    """Layers in the order of their first call, and the whole model's median pass."""

    model: str
    in_shape: tuple[int, ...]
    layers: list[LayerProfile]
    ms: float
    backward_ms: float | None
    params: int
    roof: Roof
    threads: int
    machine: dict = field(repr=False, default_factory=dict)

    @property
    def total_ms(self) -> float:
        return self.ms + (self.backward_ms or 0.0)

    @property
    def flops(self) -> int:
        return sum(layer.flops for layer in self.layers)

    def roof_percent(self, layer: LayerProfile | Profile) -> float:
        """Share of the measured fp32 multiply-add peak of the threads in use."""
        return 100.0 * layer.flops / layer.total_ms / 1e6 / (self.roof.gflops * self.threads) if layer.total_ms else 0.0


def profile(model: nn.Module, example_input: Tensor | tuple, *, backward: bool = False, rounds: int = 5, name: str = "") -> Profile:
    """Profile a model on one input.

    Args:
        model: any module. It is left as found: hooks removed; modes, gradients, buffers and random state restored.
        example_input: a tensor, or a tuple of positional arguments.
        backward: run in training mode and time the gradients of all parameters too; else eval mode, no gradients.
        rounds: passes of which the medians are taken, after two passes to warm up.

    Returns:
        one :class:`LayerProfile` per module that did work of its own.

    Cost:
        ``rounds + 3`` passes; the time of the hooks is taken out, but for about a microsecond per module.

    Example:
        >>> found = profile(nn.Sequential(nn.Linear(8, 4), nn.ReLU()), torch.randn(2, 8), rounds=1)
        >>> [(layer.name, layer.kind, layer.flops) for layer in found.layers if layer.flops]
        [('0', 'Linear', 128)]
    """
    arguments = example_input if isinstance(example_input, tuple) else (example_input,)
    with _undisturbed(model, training=backward):
        for _ in range(2):  # plans, packed weights and pages of the first calls
            _run(model, arguments, _Recorder(time.perf_counter_ns, backward), backward)
        counter = FlopCounterMode(display=False)
        counted = _Recorder(counter.get_total_flops, backward)
        with counter:
            _run(model, arguments, counted, backward)
        timed = []
        for _ in range(rounds):
            recorder = _Recorder(time.perf_counter_ns, backward)
            _run(model, arguments, recorder, backward)
            timed.append(recorder)

    whole_ms = statistics.median(t.forward[""] for t in timed) / 1e6
    layers = []
    for path, seen in counted.seen.items():
        ms = statistics.median(t.own(path) for t in timed) / 1e6
        backward_ms = statistics.median(t.backward_by.get(path, 0) for t in timed) / 1e6 if backward else None
        flops = int(counted.own(path) + counted.backward_by.get(path, 0))
        if path in counted.parents and not flops and ms < OWN_SHARE * whole_ms:
            continue
        module = seen.module
        own = [*module.parameters(recurse=False), *module.buffers(recurse=False)]
        own += [
            p
            for child, sub in module.named_modules()
            if child and not counted.saw(path, child)
            for p in [*sub.parameters(recurse=False), *sub.buffers(recurse=False)]
        ]
        layers.append(
            LayerProfile(
                path or "(model)",
                type(module).__name__,
                seen.in_shape,
                seen.out_shape,
                sum(p.numel() for p in own if isinstance(p, nn.Parameter)),
                seen.bytes + sum(p.nbytes for p in own),
                flops,
                ms,
                backward_ms,
                seen.calls,
            )
        )
    shapes = [tuple(a.shape) for a in arguments if isinstance(a, Tensor)]
    return Profile(
        name or type(model).__name__,
        shapes[0] if shapes else (),
        layers,
        whole_ms,
        statistics.median(t.backward_total for t in timed) / 1e6 if backward else None,
        sum(p.numel() for p in model.parameters()),
        measure_roof(),
        torch.get_num_threads(),
        machine_card(),
    )


@dataclass
class _Seen:
    """What a module was called with, first call; bytes of its inputs and outputs, all calls."""

    module: nn.Module
    in_shape: tuple[int, ...] | None
    out_shape: tuple[int, ...] | None = None
    bytes: int = 0
    calls: int = 0


class _Recorder:
    """Reads ``meter`` at the edges of modules and of autograd nodes during one pass."""

    def __init__(self, meter: Callable[[], float], backward: bool) -> None:
        self.meter, self.backward = meter, backward
        self.forward: dict[str, float] = {}  # path → amount, children included
        self.children: dict[str, float] = {}  # path → amount of the children
        self.parents: set[str] = set()
        self.seen: dict[str, _Seen] = {}
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
            inputs = _tensors((args, kwargs))
            if path not in self.seen:
                self.seen[path] = _Seen(module, tuple(inputs[0].shape) if inputs else None)
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
            outputs = _tensors(out)
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


def _run(model: nn.Module, arguments: tuple, recorder: _Recorder, backward: bool) -> None:
    recorder.attach(model)
    try:
        with torch.set_grad_enabled(backward):
            outputs = [t for t in _tensors(model(*arguments)) if t.requires_grad]
        if backward:
            start = recorder.meter()
            torch.autograd.backward(outputs, [torch.ones_like(t) for t in outputs])
            recorder.backward_total = recorder.meter() - start
    finally:
        recorder.detach()
    for parameter in model.parameters():
        parameter.grad = None


def _tensors(tree: Any) -> list[Tensor]:
    return [t for t in tree_leaves(tree) if isinstance(t, Tensor)]


@contextlib.contextmanager
def _undisturbed(model: nn.Module, training: bool) -> Iterator[None]:
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
