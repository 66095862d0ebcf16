"""How a row's calls are timed within a budget: which of them, how many rounds, and by which clock they are read."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, replace

import torch

from sparsekern.measure.protocol import Timing, interleave
from sparsekern.reproduce.timed.bench import Call, Key

MIN_TIME_MS = 4.0
MIN_ROUNDS, MAX_ROUNDS = 3, 31
ENOUGH_ROUNDS = 7  # if fewer fit, competitors that cannot be their role's fastest are left out
CLOSE = 1.5  # ... which are those that took this much longer in the first pass
SHORT_PASS_S = 0.5  # ... but never where a pass through all is this short
LONG_MS = 20.0  # a call this long is a sample by itself and needs no warming: its weights are in no private cache
QUIET = 0.95  # share of the wall time that a thread computes on a quiet machine, at least


@dataclass(frozen=True)
class Rounds:
    """The timings of one set of interleaved rounds, and what was left out of it."""

    timings: dict[Key, Timing]
    rounds: int
    left_out: dict[Key, float]  # milliseconds of the one call that was timed


def time_calls(
    calls: Mapping[Key, Call], seconds: float, max_rounds: int, keep: Iterable[Key], progress: Callable[[float], object]
) -> Rounds:
    """Time all calls against each other, about ``seconds`` long, at least ``MIN_ROUNDS`` rounds.

    Args:
        keep: never left out (the default of torch, which is a column of its own).
    """
    first = {key: _first(call) for key, call in calls.items()}
    first_s = {key: wall_s for key, (wall_s, _) in first.items()}
    pass_s = sum(first_s.values())
    budget_s = seconds - pass_s
    left_out: dict[Key, float] = {}
    if pass_s > SHORT_PASS_S and _rounds_within(first_s, budget_s, MAX_ROUNDS) < min(ENOUGH_ROUNDS, max_rounds):
        # A neighbour's work must not decide who takes part: one thread is judged by its own CPU time.
        judged_s = {key: cpu_s for key, (_, cpu_s) in first.items()} if torch.get_num_threads() == 1 else first_s
        left_out = {key: 1e3 * judged_s[key] for key in first_s if key not in keep and _is_behind(key, judged_s)}
    timed = {key: s for key, s in first_s.items() if key not in left_out}
    rounds = max(min(MIN_ROUNDS, max_rounds), _rounds_within(timed, budget_s, max_rounds))
    timings = interleave(
        {" | ".join(key): calls[key] for key in timed},
        rounds=rounds,
        min_time_ms=MIN_TIME_MS,
        before_each=_nothing if _all_long(timed) else None,
        progress=lambda done, total: progress(done / total),
    )
    return Rounds({key: timings[" | ".join(key)] for key in timed}, rounds, left_out)


def _nothing() -> None:
    """Makes a sample a single call."""


def _all_long(call_s: Mapping[Key, float]) -> bool:
    return min(call_s.values()) * 1e3 >= LONG_MS


def _first(call: Call) -> tuple[float, float]:
    """(wall, CPU) seconds of a call that the gate has warmed; of the second one where that costs nothing."""
    for _ in range(2):
        wall, cpu = time.perf_counter(), time.thread_time()
        call()
        wall_s, cpu_s = time.perf_counter() - wall, time.thread_time() - cpu
        if wall_s * 1e3 >= LONG_MS:
            break
    return wall_s, cpu_s


def _is_behind(key: Key, call_s: Mapping[Key, float]) -> bool:
    return call_s[key] > CLOSE * min(s for other, s in call_s.items() if other[:2] == key[:2])


def _rounds_within(call_s: Mapping[Key, float], seconds: float, max_rounds: int) -> int:
    """How many rounds fit: a sample is one warming call and at least MIN_TIME_MS, or a single long call."""
    if _all_long(call_s):
        return min(max_rounds, math.floor(seconds / sum(call_s.values())))
    needed_s = sum(s + max(s, MIN_TIME_MS * 1e-3) for s in call_s.values())
    calibration = 2.0  # interleave first finds out how many calls make a sample: about two rounds' worth
    return min(max_rounds, math.floor(seconds / needed_s - calibration))


def better_clock(timings: Iterable[Timing], threads_count: int) -> tuple[str, float]:
    """(clock, share): "wall", unless neighbours took so much of it that one thread's "CPU" time tells more."""
    timings = list(timings)
    share = sum(sum(t.cpu_samples_us) for t in timings) / sum(sum(t.samples_us) for t in timings)
    return ("wall" if threads_count > 1 or share >= QUIET else "CPU"), share


def read_by(clock: str, timings: Mapping[Key, Timing]) -> dict[Key, Timing]:
    """The same rounds as ``clock`` saw them."""
    if clock == "wall":
        return dict(timings)
    return {key: replace(t, samples_us=t.cpu_samples_us) for key, t in timings.items()}
