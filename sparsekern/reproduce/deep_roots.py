"""Deep Roots, Tables 2 and 8 for Network in Network: count every variant exactly, and time it against its dense twin.

Per variant, in one set of interleaved rounds on the same images:

    dense        the twin with groups = 1 through torch: the default (nn.Conv2d, NCHW) and the fastest of all torch ways
    grouped      the variant itself through torch's grouped convolution, fastest way
    ours         the variant through GroupedConv2d with its natural weights, faster of both layouts
    ours_dense   the twin through GroupedConv2d: ours against this is like for like

each as *stack* (convolutions with their ReLU, no pooling) and as *model* (with the fastest pooling for the layout).
A variant and its dense twin are different functions of equal shape; the weights are untrained.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor, nn

from sparsekern.measure.machine import machine_card
from sparsekern.measure.protocol import Timing, interleave, ratio, threads
from sparsekern.models import create_model
from sparsekern.profile.count import count
from sparsekern.reproduce.competitors import FORMATS, Competitor, fastest_pools, our_competitors, torch_competitors
from sparsekern.reproduce.gate import check_layers, check_output, layer_truths
from sparsekern.reproduce.paper import paper_rows

TABLE = "deep_roots_nin"
DENSE = "nin"
PARTS = ("stack", "model")
MIN_TIME_MS = 4.0
MIN_ROUNDS, MAX_ROUNDS = 3, 31
QUIET = 0.95  # share of the wall time that a thread computes on a quiet machine, at least

Key = tuple[str, str, str]  # part, role, competitor
Call = Callable[[], object]


@dataclass(frozen=True)
class NinRow:
    """One row: the paper's cells, our counts, and the timings of its rounds."""

    paper: dict  # as in deep_roots_nin.json
    flops: int
    params: int
    flop_reduction: float  # FLOPs of the dense twin over FLOPs of this variant
    timings: dict[Key, Timing]
    rounds: int
    served: dict[str, dict[str, str]]  # our competitor -> layer -> who serves it and why

    def best(self, part: str, role: str) -> Timing | None:
        """The fastest competitor of a role, or None where the role is empty (no grouped twin of the dense net)."""
        found = [timing for key, timing in self.timings.items() if key[:2] == (part, role)]
        return min(found, key=lambda timing: timing.median_us, default=None)

    def default(self, part: str) -> Timing:
        """The dense twin through plain ``nn.Conv2d`` in NCHW."""
        return next(timing for key, timing in self.timings.items() if key[:2] == (part, "dense"))

    def speedup(self, part: str, role: str, rival: str = "dense") -> tuple[float, float, float] | None:
        """(p20, median, p80) of how many times faster the best of ``role`` is than the best of ``rival``."""
        ours, theirs = self.best(part, role), self.best(part, rival)
        return ratio(ours, theirs) if ours and theirs else None


@dataclass(frozen=True)
class NinResult:
    """All rows of one run and what the numbers depend on."""

    rows: list[NinRow]
    clock: str  # "wall", or "CPU" where a busy machine made the wall clock count the neighbours' work too
    share: float  # CPU time over wall time of the calling thread; near 1 on a quiet machine
    images: str  # where the input came from
    batch: int
    threads: int
    machine: dict
    seconds: float


def run_nin(
    images: Tensor,
    *,
    images_name: str,
    threads_count: int = 1,
    seconds_budget: float = 90.0,
    max_rounds: int = MAX_ROUNDS,
    models: Sequence[str] | None = None,
    ours: Sequence[Competitor] | None = None,
    progress: Callable[[str, float], object] | None = None,
) -> NinResult:
    """Count, check and time the variants of Network in Network.

    Args:
        images: ``[N, 3, 32, 32]`` float32; N is the batch.
        images_name: what the images are, for captions.
        threads_count: threads inside an operation; torch's setting is restored.
        seconds_budget: about how long the whole run may take; rounds follow from it.
        max_rounds: samples per timing at most.
        models: registered names, default all 13 rows of Table 8.
        ours: our competitors, default :func:`our_competitors`; an empty list times torch alone.
        progress: called with what is being done and the fraction that is done.

    Raises:
        ValueError: ``reproduce: images must be [N, 3, 32, 32] float32 with N >= 1; got [3, 32, 32] torch.float32``
        WrongResult: a competitor is not within the float32 bound of float64; nothing is timed then.
    """
    if images.dim() != 4 or images.shape[1:] != (3, 32, 32) or len(images) < 1 or images.dtype != torch.float32:
        raise ValueError(f"reproduce: images must be [N, 3, 32, 32] float32 with N >= 1; got {list(images.shape)} {images.dtype}")
    papers = [row for row in paper_rows(TABLE) if models is None or row["model"] in models]
    if not papers or (models is not None and len(papers) != len(set(models))):
        known = ", ".join(row["model"] for row in paper_rows(TABLE))
        raise ValueError(f"reproduce: models must be some of {known}; got {', '.join(models or ())}")
    ours = our_competitors() if ours is None else ours
    progress = progress or (lambda doing, fraction: None)
    start = time.monotonic()
    rows = []
    with threads(threads_count), torch.inference_mode():
        progress("checking the dense twin against float64", 0.0)
        dense = _Bench(DENSE, images)
        dense_calls = dense.callables("dense", torch_competitors()) | dense.callables("ours_dense", ours)
        for i, paper in enumerate(papers):
            steps = _Steps(progress, paper["model"], i, len(papers))
            seconds = (seconds_budget - (time.monotonic() - start)) / (len(papers) - i)
            rows.append(_run_row(paper, dense, dense_calls, ours, seconds, max_rounds, steps))
        progress("done", 1.0)
        card = machine_card()
    seconds = time.monotonic() - start
    return NinResult(*_on_the_better_clock(rows, threads_count), images_name, len(images), threads_count, card, seconds)


def _on_the_better_clock(rows: list[NinRow], threads_count: int) -> tuple[list[NinRow], str, float]:
    """(rows, clock, share): wall time, unless neighbours took so much of it that one thread's CPU time tells more."""
    all_timings = [timing for row in rows for timing in row.timings.values()]
    share = sum(sum(t.cpu_samples_us) for t in all_timings) / sum(sum(t.samples_us) for t in all_timings)
    if threads_count > 1 or share >= QUIET:
        return rows, "wall", share
    on_cpu = [{key: replace(t, samples_us=t.cpu_samples_us) for key, t in row.timings.items()} for row in rows]
    return [replace(row, timings=timings) for row, timings in zip(rows, on_cpu, strict=True)], "CPU", share


@dataclass(frozen=True)
class _Steps:
    """Turns the progress within a row into that of the whole run."""

    report: Callable[[str, float], object]
    model: str
    index: int
    total: int

    def __call__(self, doing: str, fraction: float) -> None:
        self.report(f"{self.model}: {doing}", (self.index + fraction) / self.total)


def _run_row(
    paper: dict,
    dense: _Bench,
    dense_calls: dict[Key, Call],
    ours: Sequence[Competitor],
    seconds: float,
    max_rounds: int,
    steps: _Steps,
) -> NinRow:
    start = time.monotonic()
    steps("checking against float64", 0.0)
    if paper["model"] == DENSE:
        bench = dense
        calls = {(part, "ours" if role == "ours_dense" else role, who): f for (part, role, who), f in dense_calls.items()}
    else:
        bench = _Bench(paper["model"], dense.images, dense.pools)
        calls = dense_calls | bench.callables("grouped", torch_competitors()) | bench.callables("ours", ours)
    rounds = _rounds_within(calls.values(), seconds - (time.monotonic() - start), max_rounds)
    named = {" | ".join(key): call for key, call in calls.items()}
    timings = interleave(named, rounds=rounds, min_time_ms=MIN_TIME_MS, progress=lambda done, total: steps("timing", done / total))
    by_key = {key: timings[" | ".join(key)] for key in calls}
    return NinRow(paper, bench.flops, bench.params, dense.flops / bench.flops, by_key, rounds, bench.served)


class _Bench:
    """One model with fixed weights, its counts, its truth, and callables of each competitor that passes the gate."""

    def __init__(self, model_name: str, images: Tensor, pools: dict[str, dict[str, nn.Module]] | None = None):
        generator = torch.Generator().manual_seed(0)
        plain = create_model(model_name, conv=nn.Conv2d, generator=generator).eval()
        counted = count(plain, tuple(images.shape[1:]), "deep_roots")
        self.flops, self.params = counted.flops, counted.params
        for name, parameter in plain.named_parameters():
            if name.endswith("bias"):
                parameter.normal_(0.0, 0.1, generator=generator)  # a zero bias would hide a forgotten one
        self.model_name, self.images, self.weights = model_name, images, plain.state_dict()
        self.compared = sorted({0, len(images) - 1})
        self.served: dict[str, dict[str, str]] = {}
        self.truths = layer_truths(plain, images)
        self.block_inputs, pool_inputs = [images], {}
        for block, pool in zip(plain.blocks(), ("pool1", "pool2", "pool3"), strict=True):
            pool_inputs[pool] = block(self.block_inputs[-1])
            self.block_inputs.append(getattr(plain, pool)(pool_inputs[pool]))
        self.num_sums = sum(getattr(plain, name).weight[0].numel() + 1 for name in self.truths)
        # The shapes that meet the poolings are the same in every variant, so the choice is made once.
        self.pools = pools or {layout: fastest_pools(plain, layout, pool_inputs) for layout in FORMATS}
        self.expected = plain.double()(images[self.compared].double())  # converts plain in place: keep this last

    def callables(self, role: str, competitors: Sequence[Competitor]) -> dict[Key, Call]:
        calls = {}
        for competitor in competitors:
            stack, model = self.checked(competitor)
            calls["stack", role, competitor.name], calls["model", role, competitor.name] = stack, model
        return calls

    def checked(self, competitor: Competitor) -> tuple[Call, Call]:
        """(stack, model) as callables without arguments, after both agreed with float64."""
        who = f"{self.model_name} by {competitor.name}"
        model = competitor.build(self.model_name, self.weights, self.pools[competitor.layout])
        x = competitor.prepare(self.images)
        check_layers(model, competitor.prepare, self.truths, who)
        check_output(model, x, self.expected, self.compared, self.num_sums, who)
        self.served |= {competitor.name: served} if (served := competitor.served(model, self.truths)) else {}
        blocks = model.blocks()
        inputs = [competitor.prepare(block_input) for block_input in self.block_inputs[: len(blocks)]]

        def stack() -> None:
            for block, block_input in zip(blocks, inputs, strict=True):
                block(block_input)

        return stack, lambda: model(x)


def _rounds_within(calls: Iterable[Call], seconds: float, max_rounds: int) -> int:
    """How many interleaved rounds fit, from one timed pass: a sample is one warming call and at least MIN_TIME_MS."""
    needed = 0.0
    for call in calls:
        call()
        began = time.perf_counter()
        call()
        call_s = time.perf_counter() - began
        needed += call_s + max(call_s, MIN_TIME_MS * 1e-3)
    calibration = 2.0  # interleave first finds out how many calls make a sample: about two rounds' worth
    rounds = math.floor(seconds / needed - calibration)
    return max(min(MIN_ROUNDS, max_rounds), min(max_rounds, rounds))
