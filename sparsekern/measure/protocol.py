"""How a time is taken: interleaved rounds in one process, medians with p20 and p80, wall and thread-CPU time.

    round 1:  a a a a | b b | c c c        each name runs long enough (`min_time_ms`) to be read off the clock,
    round 2:  c c c | b b | a a a a        and the order turns around, so that drift of the clock frequency,
    ...                                    a neighbour's load or a warmer cache hits every name alike.

Times of two names compare only inside one call of :func:`interleave`. Nothing here knows torch ops or layers.
"""

from __future__ import annotations

import contextlib
import gc
import math
import os
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace

import numpy as np

MAX_CALLS_PER_ROUND = 1 << 20


@dataclass(frozen=True)
class Timing:
    """What one callable took: one sample per round, each the mean over ``calls_per_round`` calls."""

    name: str
    samples_us: tuple[float, ...]
    cpu_samples_us: tuple[float, ...]
    calls_per_round: int

    @property
    def median_us(self) -> float:
        return float(np.median(self.samples_us))

    @property
    def p20_us(self) -> float:
        return float(np.quantile(self.samples_us, 0.2))

    @property
    def p80_us(self) -> float:
        return float(np.quantile(self.samples_us, 0.8))

    @property
    def cpu_median_us(self) -> float:
        """Median CPU time of the calling thread; far below ``median_us`` if the thread waited or others worked."""
        return float(np.median(self.cpu_samples_us))

    def by(self, clock: str) -> Timing:
        """The same rounds read off the "wall" clock (as they are) or the "cpu" clock of the calling thread.

        The wall clock decides on a quiet machine. On a shared core it measures the neighbours; CPU time then tells
        more, but only for one thread, and it still sees the caches that the neighbours emptied.
        """
        return replace(self, samples_us=self.cpu_samples_us) if clock == "cpu" else self


def interleave(
    callables: Mapping[str, Callable[[], object]],
    *,
    rounds: int = 9,
    min_time_ms: float = 3.0,
    before_each: Callable[[], object] | None = None,
    progress: Callable[[int, int], object] | None = None,
) -> dict[str, Timing]:
    """Time callables against each other in interleaved rounds.

    Args:
        callables: name → function without arguments.
        rounds: samples per name.
        min_time_ms: a sample repeats the call until it lasts about this long.
        before_each: runs, untimed, before every timed call, and makes a sample a single call: the cold mode
            (see :class:`Evict`). ``None`` is the hot mode.
        progress: called with (samples taken, samples in all) after each sample.

    Returns:
        name → :class:`Timing`, in the order of ``callables``.

    Example:
        >>> times = interleave({"sum": lambda: sum(range(1000)), "len": lambda: len("x")}, rounds=5, min_time_ms=0.1)
        >>> verdict(times["len"], times["sum"])
        'faster'
    """
    if rounds < 1 or not min_time_ms > 0:
        raise ValueError(f"interleave: rounds and min_time_ms must be above 0; got {rounds} and {min_time_ms}")
    calls = {name: 1 if before_each else _calls_per_round(f, min_time_ms) for name, f in callables.items()}
    wall: dict[str, list[float]] = {name: [] for name in callables}
    cpu: dict[str, list[float]] = {name: [] for name in callables}
    with _no_garbage_collection():
        for done in range(rounds):
            order = list(callables) if done % 2 == 0 else list(callables)[::-1]
            for position, name in enumerate(order):
                if before_each:
                    before_each()
                else:
                    callables[name]()  # its weights and code back into the cache after the other names ran
                sample_us, cpu_us = _sample(callables[name], calls[name])
                wall[name].append(sample_us)
                cpu[name].append(cpu_us)
                if progress:
                    progress(done * len(order) + position + 1, rounds * len(order))
    return {name: Timing(name, tuple(wall[name]), tuple(cpu[name]), calls[name]) for name in callables}


def _sample(f: Callable[[], object], calls: int) -> tuple[float, float]:
    """Mean wall and thread-CPU microseconds of one call over ``calls`` calls."""
    repeat = range(calls)
    cpu_ns, wall_ns = time.thread_time_ns(), time.perf_counter_ns()
    for _ in repeat:
        f()
    wall_ns, cpu_ns = time.perf_counter_ns() - wall_ns, time.thread_time_ns() - cpu_ns
    return wall_ns / calls / 1e3, cpu_ns / calls / 1e3


def _calls_per_round(f: Callable[[], object], min_time_ms: float) -> int:
    """Warm up, and find how many calls last ``min_time_ms``; the shortest of a few trials counts."""
    f()
    calls = 1
    while calls < MAX_CALLS_PER_ROUND:
        wall_us = min(_sample(f, calls)[0] for _ in range(2))
        if wall_us * calls >= 0.3 * min_time_ms * 1e3:
            return max(1, min(MAX_CALLS_PER_ROUND, math.ceil(min_time_ms * 1e3 / wall_us)))
        calls *= 4
    return MAX_CALLS_PER_ROUND


# ---- reading two timings


def ratio(a: Timing, b: Timing) -> tuple[float, float, float]:
    """How many times faster ``a`` is than ``b``: p20, median and p80 of the round-by-round ratio b/a.

    Rounds are paired, so slow drift of the machine cancels; both timings must come from one :func:`interleave`.
    """
    if len(a.samples_us) != len(b.samples_us):
        raise ValueError(f"ratio: b must be timed with a; got {len(b.samples_us)} rounds for {len(a.samples_us)}")
    p20, p50, p80 = np.quantile(np.array(b.samples_us) / np.array(a.samples_us), [0.2, 0.5, 0.8])
    return float(p20), float(p50), float(p80)


SAME_WITHIN = 0.05  # medians closer than this are called the same


def verdict(a: Timing, b: Timing) -> str:
    """``"faster"`` or ``"slower"`` if the p20..p80 intervals of ``a`` and ``b`` are apart; else there is no winner:
    ``"same"`` if the medians agree within 5 %, ``"ambiguous"`` if the noise hides the answer.
    """
    return judge((a.p20_us, a.median_us, a.p80_us), (b.p20_us, b.median_us, b.p80_us))


def judge(a: tuple[float, float, float], b: tuple[float, float, float]) -> str:
    """:func:`verdict` on two intervals (p20, median, p80) of time.

    Example:
        >>> judge((1.0, 1.1, 1.2), (1.3, 1.4, 1.5)), judge((1.0, 1.1, 1.2), (1.1, 1.12, 1.3))
        ('faster', 'same')
    """
    if a[2] < b[0]:
        return "faster"
    if a[0] > b[2]:
        return "slower"
    return "same" if abs(a[1] - b[1]) <= SAME_WITHIN * min(a[1], b[1]) else "ambiguous"


def winner(timings: Mapping[str, Timing]) -> str:
    """The name that is faster than every other, or ``"no winner"``."""
    best = min(timings, key=lambda name: timings[name].median_us)
    apart = all(verdict(timings[best], t) == "faster" for name, t in timings.items() if name != best)
    return best if apart else "no winner"


# ---- the state of the machine while timing


class Evict:
    """Pushes everything out of the private caches by writing through a large buffer: ``before_each=Evict()``.

    ``size_bytes`` should exceed the private caches many times; the last-level cache of a big server may still hold
    the weights, so *cold* means "not in L1 and L2".
    """

    def __init__(self, size_bytes: int = 64 << 20) -> None:
        self.size_bytes = size_bytes
        self._buffer = np.zeros(size_bytes // 8, np.int64)

    def __call__(self) -> None:
        self._buffer += 1


@contextlib.contextmanager
def pin(core: int | None) -> Iterator[int | None]:
    """Keep the calling thread on one core; yields the core, or None where the system cannot (or ``core`` is None).

    Threads that torch started before keep their cores: pin goes with :func:`one_thread`.
    """
    if core is None or not hasattr(os, "sched_setaffinity"):
        yield None
        return
    before = os.sched_getaffinity(0)
    if core not in before:
        raise ValueError(f"pin: core must be one of {sorted(before)}; got {core}")
    os.sched_setaffinity(0, {core})
    try:
        yield core
    finally:
        os.sched_setaffinity(0, before)


@contextlib.contextmanager
def threads(count: int) -> Iterator[None]:
    """Run torch with ``count`` intra-op threads inside the block."""
    import torch

    before = torch.get_num_threads()
    torch.set_num_threads(count)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def one_thread() -> contextlib.AbstractContextManager[None]:
    """``threads(1)``: what every committed row uses unless its case says otherwise."""
    return threads(1)


@contextlib.contextmanager
def _no_garbage_collection() -> Iterator[None]:
    was_on = gc.isenabled()
    gc.collect()
    gc.disable()
    try:
        yield
    finally:
        if was_on:
            gc.enable()
