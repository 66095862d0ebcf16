"""Timing on a GPU: a CUDA graph of launches that rotate over several sets of inputs, and what the card does at most.

Without a GPU the same calls run once on the CPU, so that a dry run goes through every line but tells no time.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable

import torch

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"

Call = Callable[[], object]


def cache_bytes() -> int:
    """Of the second level."""
    return getattr(torch.cuda.get_device_properties(0), "L2_cache_size", 50 << 20)


def is_hot(sets: int, call_bytes: int) -> bool:
    """Whether the sets do not outgrow twice the cache, so that launches may read from it what no floor must count."""
    return DEVICE == "cuda" and sets * call_bytes < 2 * cache_bytes()


def sets_for(call_bytes: int) -> int:
    """How many sets of inputs outgrow twice the second-level cache, so that each launch reads from memory; at least 2, at most 32."""
    if DEVICE == "cpu":
        return 2
    return max(2, min(32, -(-2 * cache_bytes() // max(1, call_bytes))))


def capture(calls: list[Call], launches: int) -> torch.cuda.CUDAGraph:
    """``launches`` calls, the sets in turn, as one graph."""
    side = torch.cuda.Stream()
    side.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(side):
        for call in calls:
            call()
    torch.cuda.current_stream().wait_stream(side)
    torch.cuda.synchronize()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        for i in range(launches):
            calls[i % len(calls)]()
    for _ in range(2):
        graph.replay()
    return graph


def between_events(work: Call) -> float:
    """Microseconds of the device."""
    begin, end = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
    begin.record()
    work()
    end.record()
    end.synchronize()
    return begin.elapsed_time(end) * 1e3


def samples_us(providers: dict[str, list[Call]], rounds: int = 15) -> dict[str, dict]:
    """Microseconds per call of every provider, in interleaved rounds: ``{"us": [...], "by": "graph" or why not}``."""
    found: dict[str, dict] = {name: {"us": [], "by": "graph"} for name in providers}
    if DEVICE == "cpu":
        for name, calls in providers.items():
            begin = time.perf_counter()
            calls[0]()
            found[name] = {"us": [(time.perf_counter() - begin) * 1e6], "by": "dry run"}
        return found
    work = {}
    for name, calls in providers.items():
        launches = max(8, len(calls))
        try:
            work[name] = capture(calls, launches).replay, launches
        except Exception as error:  # a rival that waits for the device, for example: then between events, call by call
            torch.cuda.synchronize()
            found[name]["by"] = f"events: {type(error).__name__}"
            work[name] = (lambda calls=calls, n=launches: [calls[i % len(calls)]() for i in range(n)]), launches
    for turn in range(rounds):
        for name in list(work) if turn % 2 == 0 else list(work)[::-1]:
            run, launches = work[name]
            found[name]["us"].append(between_events(run) / launches)
    return found


def cold(call: Call, rounds: int = 7) -> dict:
    """``{"cold_us": ...}``: microseconds of one call after the second-level cache was overwritten; None with the reason, ``"not_cold"``.

    The graph is put in the queue while the card still overwrites: what the host takes does not count. So only a call that can be a graph
    is timed.
    """
    if DEVICE == "cpu":
        return {"cold_us": None, "not_cold": "dry run"}
    try:
        launch = capture([call], 1).replay
    except Exception as error:  # a call that waits for the device, for example
        torch.cuda.synchronize()
        return {"cold_us": None, "not_cold": f"no graph: {type(error).__name__}: {error}"[:200]}
    flush, taken = torch.empty(256 << 20, dtype=torch.uint8, device=DEVICE), []
    for _ in range(rounds):
        flush.zero_()
        taken.append(between_events(launch))
    return {"cold_us": statistics.median(taken)}


def spread(us: list[float]) -> dict[str, float]:
    """p20, p50, p80."""
    ordered = sorted(us)
    return {f"p{q}_us": ordered[min(len(ordered) - 1, len(ordered) * q // 100)] for q in (20, 50, 80)}


def ceilings() -> dict[str, float]:
    """Bytes copied and FLOPs of torch's products per second, and microseconds of one more launch, on this card in this run."""
    size = 1 << 30 if DEVICE == "cuda" else 1 << 16
    a = torch.empty(size, dtype=torch.uint8, device=DEVICE).random_()
    b = torch.empty_like(a)
    one = torch.zeros(1, device=DEVICE)
    calls: dict[str, list[Call]] = {"copy": [lambda: b.copy_(a)], "launch": [lambda: one.add_(1)]}
    products = {
        "bf16": (torch.bfloat16, False),
        "fp16": (torch.float16, False),
        "tf32": (torch.float32, True),
        "fp32": (torch.float32, False),
    }
    width = 8192 if DEVICE == "cuda" else 64
    out, before = {}, torch.backends.cuda.matmul.allow_tf32
    for name, (dtype, tf32) in products.items():
        torch.backends.cuda.matmul.allow_tf32 = tf32
        x, y = (torch.randn(width, width, device=DEVICE).to(dtype) for _ in range(2))
        taken = statistics.median(samples_us({name: [lambda x=x, y=y: x @ y]}, rounds=3)[name]["us"])
        out[f"{name}_flops_per_s"] = 2 * width**3 / taken * 1e6
    torch.backends.cuda.matmul.allow_tf32 = before
    taken = {name: statistics.median(t["us"]) for name, t in samples_us(calls, rounds=5).items()}
    return out | {"copy_bytes_per_s": 2 * size / taken["copy"] * 1e6, "launch_us": taken["launch"]}
