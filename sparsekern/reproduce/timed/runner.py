"""The one runner behind every timed table: count, check and time each variant against its dense twin.

Per variant, in one set of interleaved rounds on the same images:

    dense            the twin through torch: the default (nn.Conv2d, NCHW) and the fastest of all torch ways
    grouped, masked  the variant itself through torch, fastest way: filter groups as groups, masks as zeros in dense weights
    ours             the variant through our layers, fastest of both layouts, natural or packed, and of what optimize makes of it
    ours_dense       the twin through our layers: ours against this is like for like

and, where poolings are asked for, with them alike on both sides (models only):

    dense_our_pooling      the dense twin through torch in channels_last, pooling on our kernel
    ours_torchs_pooling    the variant as optimize makes it with the poolings left to torch

each as *stack* (its convolutions with their ReLU, each on the input it met; or its connected layers) and as *model*. A
variant and its dense twin are different functions of equal shape; the weights are untrained.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import Tensor, nn

from sparsekern.measure.machine import machine_card
from sparsekern.measure.protocol import Timing, ratio, threads
from sparsekern.reproduce.timed.bench import PARTS, Bench, Call, Counted, Key
from sparsekern.reproduce.timed.competitors import (
    Competitor,
    our_competitors,
    ours_with_torchs_pooling,
    torch_competitors,
    torch_with_our_pooling,
)
from sparsekern.reproduce.timed.helpers import FastestHelpers
from sparsekern.reproduce.timed.layer_times import LayerTimes, layer_times
from sparsekern.reproduce.timed.rounds import LONG_MS, MAX_ROUNDS, better_clock, read_by, time_calls
from sparsekern.reproduce.timed.steps import StepBench
from sparsekern.reproduce.timed.tables import TimedTable
from sparsekern.reproduce.timed.variants import PaperRow, Variant

AnyBench = Any  # a Bench or, in training, a StepBench, which has the same face

Images = Callable[[tuple[int, ...]], Tensor]  # shape of one image -> [batch, *shape]
Progress = Callable[[str, float], object]


@dataclass(frozen=True)
class LayerFacts:
    """One layer of a variant: what it is, and who takes how long in the running model."""

    path: str
    weight: str  # "192 x 6 x 5 x 5", "192 x 96 x 5 x 5, 25 % kept"
    sparse: bool


@dataclass(frozen=True)
class Row:
    """One row: the paper's cells, our counts, and the timings of its rounds."""

    of: PaperRow
    counted: Counted
    flop_reduction: float  # FLOPs of the dense twin over FLOPs of this variant
    stack_reduction: float  # the same of the stack's multiply-adds
    timings: dict[Key, Timing]
    rounds: int
    left_out: dict[Key, float]
    served: dict[str, dict[str, str]]  # our competitor -> layer -> who serves it and why
    layers: list[LayerFacts]
    layer_times: dict[str, LayerTimes]  # role -> a fastest competitor in the running model
    profiled: dict[str, str]  # role -> which competitor that was
    default: str  # competitor that is torch's default

    def best(self, part: str, role: str) -> Timing | None:
        """The fastest competitor of a role, or None where the role is empty (no grouped twin of the dense net)."""
        found = [timing for key, timing in self.timings.items() if key[:2] == (part, role)]
        return min(found, key=lambda timing: timing.median_us, default=None)

    def competitor(self, part: str, role: str) -> str | None:
        """The name of :meth:`best`."""
        best = self.best(part, role)
        return next((key[2] for key, timing in self.timings.items() if key[:2] == (part, role) and timing is best), None)

    def torch_default(self, part: str) -> Timing:
        """The dense twin through plain ``nn.Conv2d`` in NCHW."""
        return self.timings[part, "dense", self.default]

    def speedup(self, part: str, role: str, rival: str = "dense") -> tuple[float, float, float] | None:
        """(p20, median, p80) of how many times faster the best of ``role`` is than the best of ``rival``."""
        ours, theirs = self.best(part, role), self.best(part, rival)
        return ratio(ours, theirs) if ours and theirs else None

    def like_pooling(self) -> dict[str, tuple[float, float, float]]:
        """(p20, median, p80) of ours over the best dense, with ``"torch's"`` poolings on both sides and with ``"our"``; empty where
        they were not asked for."""
        pooled = {c.name for c in our_competitors() if c.our_pooling}
        roles = ("ours", "ours_torchs_pooling")
        plain = [t for (part, role, who), t in self.timings.items() if part == "model" and role in roles and who not in pooled]
        ours = self.speedup("model", "ours", "dense_our_pooling")
        dense = self.best("model", "dense")
        if not plain or ours is None or dense is None:
            return {}
        return {"torch's": ratio(min(plain, key=lambda t: t.median_us), dense), "our": ours}

    def share(self, role: str, clock: str) -> float | None:
        """What the sparse layers still take of the whole model's time; None for a dense net."""
        sparse = [layer.path for layer in self.layers if layer.sparse]
        return self.layer_times[role].share(sparse, clock) if sparse and role in self.layer_times else None


@dataclass(frozen=True)
class Result:
    """All rows of one table and batch, and what the numbers depend on."""

    table: TimedTable
    rows: list[Row]
    clock: str  # "wall", or "CPU" where a busy machine made the wall clock count the neighbours' work too
    share: float  # CPU time over wall time of the calling thread; near 1 on a quiet machine
    images: str  # where the input came from
    batch: int
    threads: int
    machine: dict
    seconds: float


@dataclass
class Runner:
    """Times the rows of one table.

    Args:
        table: what is compared.
        images: gives the input of a shape; the batch is its.
        images_name: what the input is, for captions.
        batch: images per call.
        threads_count: threads inside an operation; torch's setting is restored.
        seconds_budget: about how long the whole run may take; rounds follow from it.
        max_rounds: samples per timing at most.
        ours: our competitors, default :func:`our_competitors`; an empty list times torch alone.
        mode: ``"fwd"``, or ``"fwd_bwd"`` for training steps of the models, without stacks, layers and masks through torch.
        poolings: also time models with the same poolings on both sides, torch's and ours.
        device: where the models run: ``"cpu"``.
        progress: called with what is being done and the fraction that is done.
    """

    table: TimedTable
    images: Images
    images_name: str
    batch: int = 1
    threads_count: int = 1
    seconds_budget: float = 90.0
    max_rounds: int = MAX_ROUNDS
    ours: Sequence[Competitor] = field(default_factory=our_competitors)
    mode: str = "fwd"
    poolings: bool = False
    device: str = "cpu"
    progress: Progress = lambda doing, fraction: None

    def run(self, rows: Sequence[PaperRow]) -> Result:
        """Count, check and time ``rows``.

        Raises:
            ValueError: ``reproduce: rows must have a registered model; got none``
            WrongResult: a competitor is not within the float32 bound of float64; its row is not timed then.
        """
        if not rows:
            raise ValueError("reproduce: rows must have a registered model; got none")
        start, done = time.monotonic(), []
        self._helpers = FastestHelpers()
        self._dense: tuple[Variant, AnyBench, dict[Key, Call]] | None = None
        self._behind: dict[Key, float] = {}  # calls of the dense twin that a row before has left out: milliseconds
        with threads(self.threads_count):
            for i, row in enumerate(rows):
                steps = _Steps(self.progress, row.label, i, len(rows))
                seconds = (self.seconds_budget - (time.monotonic() - start)) / (len(rows) - i)
                done.append(self._run_row(row, seconds, steps))
            self.progress("done", 1.0)
            card = machine_card()
        self._dense = None
        clock, share = better_clock((t for row in done for t in row.timings.values()), self.threads_count)
        done = [replace(row, timings=read_by(clock, row.timings)) for row in done]
        spent = time.monotonic() - start
        return Result(self.table, done, clock, share, self.images_name, self.batch, self.threads_count, card, spent)

    def _bench(self, variant: Variant, steps: _Steps) -> AnyBench:
        images = self.images(variant.input_shape)
        if self.mode == "fwd_bwd":
            return StepBench(variant, images, convention=self.table.convention)
        options: dict[str, Any] = {"convention": self.table.convention, "stack_of": self.table.stack_of, "device": self.device}
        options["progress"] = lambda doing: steps(f"{variant.model}, {doing}", 0.0)
        return Bench(variant, images, self._helpers, **options)

    def _dense_twin(self, variant: Variant, steps: _Steps) -> tuple[AnyBench, dict[Key, Call]]:
        """The bench and the calls of a dense net, kept as long as the rows have the same twin."""
        if self._dense is None or self._dense[0] != variant:
            self._dense, self._behind = None, {}  # frees the last one before the next is made
            bench = self._bench(variant, steps)
            calls = bench.callables("dense", torch_competitors(batch=self.batch)) | bench.callables("ours_dense", self.ours)
            if self.poolings and self.mode == "fwd":
                calls |= bench.callables("dense_our_pooling", torch_with_our_pooling(self.batch), ["model"])
            self._dense = variant, bench, calls
        return self._dense[1:]

    def _run_row(self, row: PaperRow, seconds: float, steps: _Steps) -> Row:
        start = time.monotonic()
        steps("checking against float64", 0.0)
        dense, dense_calls = self._dense_twin(row.variant.dense, steps)
        calls = {key: call for key, call in dense_calls.items() if key not in self._behind}
        role, forward = self.table.sparse_role, self.mode == "fwd"
        if row.is_dense:
            bench = dense
            calls = {_as(("ours_dense", "ours"), key): call for key, call in calls.items()}
            of_role = {"dense": dense, "ours": dense}
        else:
            bench = self._bench(row.variant, steps)
            calls = calls | bench.callables("ours", self.ours)
            if forward or role == "grouped":
                calls |= bench.callables(role, torch_competitors(bench.has_sparse_linear, self.batch))
            if self.poolings and forward:
                calls |= bench.callables("ours_torchs_pooling", ours_with_torchs_pooling(), ["model"])
            of_role = {"dense": dense, role: bench, "ours": bench}
        default = torch_competitors()[0].name
        seconds -= time.monotonic() - start
        with torch.inference_mode(forward):
            timed = time_calls(
                calls, seconds, self.max_rounds, {(part, "dense", default) for part in PARTS}, lambda fraction: steps("timing", fraction)
            )
            left_out = self._left_out(row, timed.left_out, dense_calls)
            steps("timing layers", 1.0)
            times, profiled = self._layer_times(timed.timings, of_role) if forward else ({}, {})
        return Row(
            row, bench.counted, dense.counted.flops / bench.counted.flops, dense.counted.stack_macs / bench.counted.stack_macs,
            timed.timings, timed.rounds, left_out, bench.served, _facts(bench), times, profiled, default,
        )  # fmt: skip

    def _left_out(self, row: PaperRow, now: dict[Key, float], dense_calls: Mapping[Key, Call]) -> dict[Key, float]:
        """All that is left out of a row, and what that leaves out of the rows of the same twin after it."""
        left_out = now if row.is_dense else now | self._behind
        for key, ms in now.items():
            key = _as(("ours", "ours_dense"), key) if row.is_dense else key
            if key in dense_calls:
                self._behind[key] = ms
        return left_out

    def _layer_times(self, timings: Mapping[Key, Timing], of_role: Mapping[str, Bench]) -> tuple[dict[str, LayerTimes], dict[str, str]]:
        """The fastest competitor of each role once more, with hooks on its layers, and its name."""
        competitors = {c.name: c for c in (*torch_competitors(True, self.batch), *self.ours)}
        timings = read_by(better_clock(timings.values(), self.threads_count)[0], timings)
        models, paths, names, slow = {}, {}, {}, False
        for role, bench in of_role.items():
            found = {
                key[2]: timing.median_us for key, timing in timings.items() if key[:2] == ("model", role) and competitors[key[2]].by_layers
            }
            if found:
                name = names[role] = min(found, key=found.__getitem__)
                models[role] = bench.models[name], bench.prepared(competitors[name], bench.images)
                paths[role] = list(bench.layers)
                slow |= found[name] >= LONG_MS * 1e3
        return layer_times(models, paths, passes=3 if slow else 9), names


@dataclass(frozen=True)
class _Steps:
    """Turns the progress within a row into that of the whole run."""

    report: Progress
    label: str
    index: int
    total: int

    def __call__(self, doing: str, fraction: float) -> None:
        self.report(f"{self.label}: {doing}", (self.index + fraction) / self.total)


def _as(roles: tuple[str, str], key: Key) -> Key:
    """``key`` with its role renamed from the first to the second: a dense net's own row calls ours what others call ours_dense."""
    part, role, who = key
    return part, roles[1] if role == roles[0] else role, who


def _facts(bench: Bench) -> list[LayerFacts]:
    found = []
    layers: dict[str, Any] = bench.layers
    for path, layer in layers.items():
        weight, kept = layer._parameters.get("weight"), ""
        if hasattr(layer, "weight_dense") and not isinstance(layer, nn.Conv2d):
            weight, kept = layer.weight_dense(), f", {100 * layer.density:.3g} % kept"
        shape = "unequal groups" if weight is None else " x ".join(map(str, weight.shape))
        found.append(LayerFacts(path, shape + kept, path in bench.sparse))
    return found
