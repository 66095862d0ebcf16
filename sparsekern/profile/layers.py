"""Where a model spends its time, its multiply-adds and its memory, layer by layer, measured inside the running model.

    warm up → one pass that counts FLOPs → one pass that watches memory → rounds of timed passes → each sparse layer against its dense twin

Several models are timed round by round in turn, so that drift of the machine hits them alike.
"""

from __future__ import annotations

import contextlib
import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from sparsekern.measure.machine import machine_card
from sparsekern.measure.roof import Roof, measure_roof
from sparsekern.profile.meter import Arguments, Recorder, Seen, counting, run_once, undisturbed
from sparsekern.profile.trace import Trace, traced
from sparsekern.profile.twins import Twin, dense_twins

OWN_SHARE = 0.01  # a container is listed for its own work (what no child did) from this share of the time
BACKWARD_BYTES = 3  # a training step moves about three times what the forward pass does: x, weight and their gradients, twice out


@dataclass(frozen=True)
class LayerProfile:
    """One module's own work in one pass; ``flops``, ``dense_flops`` and ``bytes`` include backward if it ran."""

    name: str
    kind: str
    in_shape: tuple[int, ...] | None
    out_shape: tuple[int, ...] | None
    params: int
    bytes: int  # input, parameters, tables and output; three times that with backward
    flops: int  # of the weights that exist; multiply and add count separately
    ms: float  # median forward
    backward_ms: float | None
    calls: int
    dense_flops: int = 0  # of the dense twin
    speedup: tuple[float, float, float] | None = None  # over the dense twin, both alone with hot weights: p20, median, p80
    peak_bytes: int | None = None  # of tensors alive while it ran forward, beyond those from before the pass
    samples_ms: tuple[float, ...] = field(default=(), repr=False)  # forward and backward, per round

    @property
    def total_ms(self) -> float:
        return self.ms + (self.backward_ms or 0.0)

    @property
    def gflops(self) -> float:
        """Real GF/s: work that was needed; 0 for layers without multiply-adds."""
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
    containers: dict[str, str] = field(repr=False, default_factory=dict)  # path → kind of the modules that hold the layers
    bare_ms: float = 0.0  # median pass without hooks: lower where a model computes several layers in one call
    peak_bytes: int | None = None
    samples_ms: tuple[float, ...] = field(repr=False, default=())
    trace: Trace | None = field(repr=False, compare=False, default=None)

    @property
    def total_ms(self) -> float:
        return self.ms + (self.backward_ms or 0.0)

    @property
    def flops(self) -> int:
        return sum(layer.flops for layer in self.layers)

    @property
    def dense_flops(self) -> int:
        return sum(layer.dense_flops for layer in self.layers)

    def roof_percent(self, layer: LayerProfile | Profile) -> float:
        """Share of the measured fp32 multiply-add peak of the threads in use."""
        return 100.0 * layer.flops / layer.total_ms / 1e6 / (self.roof.gflops * self.threads) if layer.total_ms else 0.0

    def attainable_gflops(self, flops: float, bytes_moved: float) -> float:
        """The roofline of the threads in use, with weights and activations from memory; what lies in caches may pass it."""
        return self.threads * self.roof.attainable_gflops(flops, bytes_moved)


def profile(
    model: nn.Module,
    example_input: Tensor | tuple,
    *,
    backward: bool = False,
    rounds: int = 5,
    name: str = "",
    twins: bool = True,
    memory: bool = True,
) -> Profile:
    """Profile a model on one input.

    Args:
        model: any module. It is left as found: hooks removed; modes, gradients, buffers and random state restored. FLOPs are those
            that torch's counter and this package know; LSTMs on GPUs count as nothing.
        example_input: a tensor, or a tuple of positional arguments. The model runs on copies.
        backward: run in training mode and time the gradients of all parameters too; else eval mode, no gradients.
        rounds: passes of which the medians are taken, after two passes to warm up.
        twins: whether each sparse layer is also timed against its dense twin (layers with ``to_dense``, and grouped ``nn.Conv2d``).
        memory: whether a pass under ``torch.profiler`` finds the memory peaks, and leaves a trace for viewers.

    Returns:
        one :class:`LayerProfile` per module that did work of its own.

    Raises:
        ValueError: ``profile: rounds must be a whole number of at least 1; got 0``

    Cost:
        ``2 * rounds + 4`` passes, and a few milliseconds per round and sparse layer for the twins; the time of the hooks is taken out,
        but for about a microsecond per module.

    Example:
        >>> found = profile(nn.Sequential(nn.Linear(8, 4), nn.ReLU()), torch.randn(2, 8), rounds=1)
        >>> [(layer.name, layer.kind, layer.flops) for layer in found.layers if layer.flops]
        [('0', 'Linear', 128)]
    """
    options: dict[str, Any] = {"backward": backward, "rounds": rounds, "twins": twins, "memory": memory}
    name = name or type(model).__name__
    return profile_together({name: model}, example_input, **options)[name]


def profile_together(
    models: Mapping[str, nn.Module],
    example_input: Tensor | tuple,
    *,
    backward: bool = False,
    rounds: int = 5,
    twins: bool = True,
    memory: bool = True,
) -> dict[str, Profile]:
    """:func:`profile` of several models by name on one input, timed round by round in turn: these times may be compared.

    Raises:
        ValueError: ``profile: rounds must be a whole number of at least 1; got 0``
    """
    if not isinstance(rounds, int) or rounds < 1:
        raise ValueError(f"profile: rounds must be a whole number of at least 1; got {rounds!r}")
    arguments = example_input if isinstance(example_input, tuple) else (example_input,)
    with contextlib.ExitStack() as stack:
        for model in models.values():
            stack.enter_context(undisturbed(model, training=backward))
        sessions = {name: _Session(name, model, arguments, backward) for name, model in models.items()}
        for session in sessions.values():
            session.count(memory)
        for _ in range(rounds):
            for session in sessions.values():
                session.time_once()
        return {name: session.result(rounds, twins) for name, session in sessions.items()}


class _Session:
    """One model's passes, and the profile that they make up."""

    def __init__(self, name: str, model: nn.Module, arguments: tuple, backward: bool) -> None:
        self.name, self.model, self.arguments, self.backward = name, model, Arguments(arguments), backward
        self.timed: list[Recorder] = []
        self.bare_ns: list[float] = []
        self.trace: Trace | None = None

    def count(self, memory: bool) -> None:
        for _ in range(2):  # plans, packed weights and pages of the first calls
            self._run(Recorder(time.perf_counter_ns, self.backward))
        with counting() as counter:
            self.counted = Recorder(counter.get_total_flops, self.backward)
            self._run(self.counted)
        if memory:
            self.trace = traced(self.model, self.arguments.fresh(), self.backward)

    def time_once(self) -> None:
        recorder = Recorder(time.perf_counter_ns, self.backward)
        self._run(recorder)
        self.timed.append(recorder)
        bare = Recorder(time.perf_counter_ns, self.backward)
        arguments = self.arguments.fresh()
        start = time.perf_counter_ns()
        run_once(self.model, arguments, bare, self.backward, attached=False)
        self.bare_ns.append(time.perf_counter_ns() - start)

    def _run(self, recorder: Recorder) -> None:
        run_once(self.model, self.arguments.fresh(), recorder, self.backward)

    def result(self, rounds: int, twins: bool) -> Profile:
        counted = self.counted
        forward_ms = _median([t.forward[""] for t in self.timed])
        found = dense_twins(counted.seen, counted.parents, self.backward, rounds) if twins else {}
        held = self._held()
        counted_before: set[int] = set()
        layers = [self._layer(path, seen, held[path], counted_before, found) for path, seen in reversed(counted.seen.items())][::-1]
        shown = [
            layer
            for path, layer in zip(counted.seen, layers)
            if path not in counted.parents or layer.flops or layer.ms >= OWN_SHARE * forward_ms
        ]
        shapes = [tuple(a.shape) for a in self.arguments.given if isinstance(a, Tensor)]
        return Profile(
            self.name,
            shapes[0] if shapes else (),
            shown,
            forward_ms,
            _median([t.backward_total for t in self.timed]) if self.backward else None,
            sum(p.numel() for p in self.model.parameters()),
            measure_roof(),
            torch.get_num_threads(),
            machine_card(),
            containers={path: type(counted.seen[path].module).__name__ for path in counted.seen if path in counted.parents},
            bare_ms=_median(self.bare_ns),
            peak_bytes=self.trace.peak_bytes if self.trace else None,
            samples_ms=tuple((t.forward[""] + t.backward_total) / 1e6 for t in self.timed),
            trace=self.trace,
        )

    def _held(self) -> dict[str, list[Tensor]]:
        """By path, the tensors of each module that ran and of those below it that did not, unless a module further below holds them."""
        counted = self.counted
        held: dict[str, list[Tensor]] = {}
        taken: set[int] = set()
        for path in sorted(counted.seen, key=lambda path: -len(_and_above(path))):
            module = counted.seen[path].module
            below = [sub for child, sub in module.named_modules() if child and not counted.saw(path, child)]
            others = [t for sub in below for t in _tensors_of(sub) if id(t) not in taken]
            held[path] = [*_tensors_of(module), *others]
            taken.update(map(id, held[path]))
        return held

    def _layer(self, path: str, seen: Seen, own: list[Tensor], counted_before: set[int], twins: dict[str, Twin]) -> LayerProfile:
        counted, module = self.counted, seen.module
        params = [p for p in own if isinstance(p, nn.Parameter) and id(p) not in counted_before]
        counted_before.update(map(id, params))
        flops = int(counted.own(path) + counted.backward_by.get(path, 0))
        twin = next((twins[above] for above in _and_above(path) if above in twins), None)
        return LayerProfile(
            path or "(model)",
            type(module).__name__,
            seen.in_shape,
            seen.out_shape,
            sum(p.numel() for p in params),
            (seen.bytes + sum(p.nbytes for p in own)) * (BACKWARD_BYTES if self.backward else 1),
            flops,
            _median([t.own(path) for t in self.timed]),
            _median([t.backward_by.get(path, 0) for t in self.timed]) if self.backward else None,
            seen.calls,
            dense_flops=round(flops * twin.flop_ratio) if twin else flops,
            speedup=twin.speedup if twin else None,
            peak_bytes=self.trace.peaks.get(path) if self.trace else None,
            samples_ms=tuple((t.own(path) + t.backward_by.get(path, 0)) / 1e6 for t in self.timed),
        )


def _tensors_of(module: nn.Module) -> list[Tensor]:
    return [*module.parameters(recurse=False), *module.buffers(recurse=False)]


def _median(nanoseconds: list[float]) -> float:
    """Milliseconds."""
    return float(np.median(nanoseconds)) / 1e6


def _and_above(path: str) -> list[str]:
    """``a.b.c``, ``a.b``, ``a`` and the model itself."""
    parts = path.split(".") if path else []
    return [".".join(parts[:n]) for n in range(len(parts), -1, -1)]
