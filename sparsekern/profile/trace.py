"""One pass under ``torch.profiler``: the memory peak of each layer, and a trace for Chrome's and Perfetto's viewers.

hooks name what runs → the profiler's events: modules, operators, allocations → peaks, and a file without names of the machine
"""

from __future__ import annotations

import json
import tempfile
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import nn
from torch.profiler import ProfilerActivity, record_function

MARK = "layer: "  # begins the profiler's names of modules


@dataclass(frozen=True)
class Trace:
    """``events`` as the viewers want them, times in microseconds from the start of the pass; peaks in bytes beyond what was there."""

    peak_bytes: int
    peaks: dict[str, int]  # path → highest amount alive while it ran
    events: list[dict] = field(repr=False, default_factory=list)


def traced(model: nn.Module, arguments: tuple, backward: bool) -> Trace:
    """Run one pass of a model that is ready for it (see :func:`~sparsekern.profile.meter.undisturbed`)."""
    handles = []
    for path, module in model.named_modules():
        handles += _marks(path, module)
    try:
        with torch.profiler.profile(activities=[ProfilerActivity.CPU], profile_memory=True) as watched:
            with torch.set_grad_enabled(backward), record_function("forward"):
                out = model(*arguments)
            if backward:
                with record_function("backward"):
                    outputs = [t for t in torch.utils._pytree.tree_leaves(out) if isinstance(t, torch.Tensor) and t.requires_grad]
                    torch.autograd.backward(outputs, [torch.ones_like(t) for t in outputs])
    finally:
        for handle in handles:
            handle.remove()
        for parameter in model.parameters():
            parameter.grad = None
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "trace.json"
        watched.export_chrome_trace(str(file))
        raw = json.loads(file.read_text())["traceEvents"]
    return _read(raw)


def write_trace(trace: Trace, path: str | Path, *, model: str = "") -> None:
    """Write a file for ``chrome://tracing`` or Perfetto: modules and operators on one track, memory alive on another."""
    about = {"ph": "M", "pid": 1, "tid": 1, "name": "process_name", "args": {"name": f"sparsekern profile {model}".strip()}}
    Path(path).write_text(json.dumps({"displayTimeUnit": "ms", "traceEvents": [about, *trace.events]}) + "\n")


def _marks(path: str, module: nn.Module) -> list:
    running = []

    def before(*_: Any) -> None:
        running.append(record_function(MARK + path))
        running[-1].__enter__()

    def after(*_: Any) -> None:
        if running:  # else another hook raised before ours began
            running.pop().__exit__(None, None, None)

    # always: a caller may catch what a child raised
    return [module.register_forward_pre_hook(before), module.register_forward_hook(after, always_call=True)]


def _read(raw: list[dict]) -> Trace:
    """Peaks and events of the profiler's own JSON; its process, threads, addresses and host are left behind."""
    spans = [e for e in raw if e.get("ph") == "X" and e.get("cat") in ("cpu_op", "user_annotation")]
    start = min((e["ts"] for e in spans), default=0.0)
    threads = {thread: number for number, thread in enumerate(dict.fromkeys(e["tid"] for e in spans), 1)}
    events, alive, changes = [], 0, []
    for e in sorted((e for e in raw if e.get("name") == "[memory]"), key=lambda e: e["ts"]):
        alive += e["args"]["Bytes"]
        changes.append((e["ts"], alive))
        events.append({"ph": "C", "pid": 1, "name": "memory alive", "ts": e["ts"] - start, "args": {"bytes": alive}})
    peaks: dict[str, int] = {}
    for e in spans:
        module = e["name"].startswith(MARK)
        path = e["name"].removeprefix(MARK)
        if module:
            inside = [amount for at, amount in changes if e["ts"] <= at <= e["ts"] + e["dur"]]
            before = next((amount for at, amount in reversed(changes) if at < e["ts"]), 0)
            peaks[path] = max(peaks.get(path, 0), before, *inside)
        span = {"ph": "X", "pid": 1, "tid": threads[e["tid"]], "ts": e["ts"] - start, "dur": e["dur"]}
        events.append(span | {"name": path or "(model)" if module else path, "cat": "layer" if module else "operator"})
    return Trace(max((amount for _, amount in changes), default=0), peaks, events)
