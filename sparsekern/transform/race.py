"""Which of several ways is the fastest. Long calls are timed once, and again only where they may still win."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping

import torch

from sparsekern.measure.protocol import interleave

LONG_MS = 20.0  # a call this long is a sample by itself
CLOSE = 1.3  # a long call that took this much longer than the fastest one is not called again
SECONDS = 8.0  # about as long as all calls of a race may take: the rounds of very long ones are fewer
FEWEST_ROUNDS = 3


def clock() -> str:
    """Of one thread its CPU time tells more on a shared core."""
    return "cpu" if torch.get_num_threads() == 1 else "wall"


def ratio(slow: Callable[[], object], fast: Callable[[], object]) -> float:
    """Time of the first over the second, of calls that are short."""
    timings = interleave({"slow": slow, "fast": fast}, rounds=5, min_time_ms=1.0)
    return timings["slow"].by(clock()).median_us / timings["fast"].by(clock()).median_us


def race(
    calls: Mapping[str, Callable[[], object]],
    rounds: int,
    progress: Callable[[str], object],
    before_each: Callable[[], object] | None = None,
) -> dict[str, float]:
    """Microseconds of each call, all warm: the median of ``rounds`` interleaved ones, or of the one there was time for.

    ``before_each`` runs, untimed, before every call.
    """
    first_us = {}
    for name, call in calls.items():
        progress(f"timing {name}")
        if before_each:
            before_each()
        first_us[name] = _once(call)
    best_us = min(first_us.values())
    if best_us < LONG_MS * 1e3:
        timings = interleave(calls, rounds=rounds, before_each=before_each)
        return {name: timing.by(clock()).median_us for name, timing in timings.items()}
    last = {name: calls[name] for name, us in first_us.items() if us <= CLOSE * best_us}
    if len(last) == 1:
        return first_us
    pass_s = sum(first_us[name] for name in last) / 1e6
    timings = interleave(
        last,
        rounds=max(min(rounds, FEWEST_ROUNDS), min(rounds, int(SECONDS / pass_s))),
        before_each=before_each or (lambda: None),  # a sample is one call
        progress=lambda done, total: progress(f"timing the {len(last)} fastest, {done} of {total}"),
    )
    return first_us | {name: timing.by(clock()).median_us for name, timing in timings.items()}


def _once(call: Callable[[], object]) -> float:
    wall_ns, cpu_ns = time.perf_counter_ns(), time.thread_time_ns()
    call()
    wall_ns, cpu_ns = time.perf_counter_ns() - wall_ns, time.thread_time_ns() - cpu_ns
    return (cpu_ns if clock() == "cpu" else wall_ns) / 1e3
