"""The measured roof of this machine: what one thread can multiply-add and read per second.

A layer's time means little alone; as a share of the roof it says how much is left to gain.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache

from sparsekern.measure.machine import instruction_set

STREAM_BYTES = 64 << 20  # beyond the private caches
CACHE_BYTES = 512 << 10  # inside the second-level cache of most cores, beyond the first


@dataclass(frozen=True)
class Roof:
    """Peak of one thread: fp32 GF/s (multiply and add count 2), GB/s of reading a 64 MiB buffer, who measured, GB/s of one of 512 KiB."""

    gflops: float
    read_gbytes: float
    source: str
    cache_gbytes: float = 0.0  # 0: not measured

    def attainable_gflops(self, flops: float, bytes_moved: float) -> float:
        """The roofline: the lower of the compute peak and what the bandwidth can feed.

        Example:
            >>> Roof(200.0, 10.0, "example").attainable_gflops(flops=4.0, bytes_moved=1.0)
            40.0
        """
        return min(self.gflops, self.read_gbytes * flops / bytes_moved) if bytes_moved else self.gflops


def measure_roof(seconds: float = 0.1) -> Roof:
    """Measure the roof once per process and instruction set; takes about three times ``seconds``."""
    return _measure(seconds, instruction_set())


@cache
def _measure(seconds: float, isa: str | None) -> Roof:
    if isa is not None:
        from sparsekern import _native

        if hasattr(_native, "roof_fma_gflops"):
            fma = _native.roof_fma_gflops(seconds)
            memory, cache = (_native.roof_read_gbytes(size, seconds) for size in (STREAM_BYTES, CACHE_BYTES))
            return Roof(fma, memory, f"register loop, {isa}", cache)
    return _measure_with_torch(seconds)


def _measure_with_torch(seconds: float) -> Roof:
    """Without the native module: a large matrix product and a sum stand in, and understate the roof."""
    import torch

    from sparsekern.measure.protocol import one_thread

    def best_rate(work: Callable[[], object], amount: float) -> float:
        best, deadline = 0.0, time.perf_counter() + seconds
        while time.perf_counter() < deadline or not best:
            begin = time.perf_counter()
            work()
            best = max(best, amount / (time.perf_counter() - begin))
        return best / 1e9

    with one_thread(), torch.no_grad():
        a, out = torch.randn(512, 512), torch.empty(512, 512)
        stream = torch.zeros(STREAM_BYTES // 4)
        gflops = best_rate(lambda: torch.mm(a, a, out=out), 2.0 * 512**3)
        return Roof(gflops, best_rate(stream.sum, STREAM_BYTES), "torch.mm and torch.sum (no native module)")
