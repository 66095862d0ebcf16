"""Who makes a product on a GPU, our kernel or torch: by policy, by the closed cost model, or, where asked for, by timing both once.

The cost model (:mod:`~sparsekern.ops.cuda_cost`) knows sizes alone. :func:`measure` asks this card instead: the first call of every kind
(op, product, sizes, layout, dtype) runs both ways, is timed on the device, and the faster one serves all later calls of its kind.
"""

from __future__ import annotations

import json
import statistics
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from sparsekern.ops import backends, cuda_cost

_measured: dict[str, tuple[float, float]] | None = None  # microseconds, ours and torch's, by kind of call; None: nobody asked
_file: Path | None = None


def measure(on: bool = True, file: str | Path | None = None) -> None:
    """Time both ways at the first call of every kind on a GPU, and keep the faster; ``on=False`` returns to the cost model.

    Args:
        on: whether to measure from now on; what was measured is forgotten when it is switched off.
        file: JSON in which measurements are kept from run to run (read now, written after each new one). It names the card, so that
            one file may serve several kinds.

    Cost:
        Some twenty runs of a product, once per kind of call. Nothing is timed while a graph is captured: the model chooses there.
    """
    global _measured, _file
    _measured, _file = ({} if on else None), (Path(file) if on and file else None)
    if _measured is not None and _file and _file.is_file():
        _measured.update((key, tuple(times)) for key, times in json.loads(_file.read_text()).items())


def _kind(estimate: cuda_cost.Estimate, device: torch.device) -> str:
    card = torch.cuda.get_device_name(device) if device.type == "cuda" else device.type
    return " ".join(map(str, (card, *estimate.key)))


def takes_torch(estimate: cuda_cost.Estimate, device: torch.device | None = None) -> bool:
    """Whether torch serves. With policy "never" a kernel that does not take the sizes (:mod:`~sparsekern.ops.cuda_fits`) is asked all the
    same, and says so; measurements, where there are any for ``device``, go before the model."""
    policy = backends.dense_policy()
    if policy != "auto":
        return policy == "always"
    if not estimate.fits:
        return True
    times = _measured.get(_kind(estimate, device)) if _measured and device else None
    return not estimate.ours if times is None else times[1] <= times[0]


def serve(estimate: cuda_cost.Estimate, device: torch.device, ours: Callable[[], Tensor], torchs: Callable[[], Tensor]) -> Tensor:
    """One of two ways to the same result."""
    capturing = device.type == "cuda" and torch.cuda.is_current_stream_capturing()
    if _measured is not None and estimate.fits and not capturing and backends.dense_policy() == "auto":
        kind = _kind(estimate, device)
        if kind not in _measured:
            _measured[kind] = _time(device, ours, torchs)
            if _file:
                _file.write_text(json.dumps(_measured, indent=1))
    return torchs() if takes_torch(estimate, device) else ours()


def _time(device: torch.device, ours: Callable[[], Tensor], torchs: Callable[[], Tensor], rounds: int = 5) -> tuple[float, float]:
    """Median microseconds of each, in turns, behind a first run that makes plans and loads modules."""
    ours(), torchs()
    taken: tuple[list[float], list[float]] = ([], [])
    with torch.cuda.device(device) if device.type == "cuda" else torch.no_grad():
        for _ in range(rounds):
            for call, times in zip((ours, torchs), taken):
                times.append(_run_us(device, call))
    return statistics.median(taken[0]), statistics.median(taken[1])


def _run_us(device: torch.device, call: Callable[[], Tensor]) -> float:
    if device.type != "cuda":
        begun = time.perf_counter()
        call()
        return (time.perf_counter() - begun) * 1e6
    begin, end = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
    begin.record()
    call()
    end.record()
    end.synchronize()
    return begin.elapsed_time(end) * 1e3


def tf32(of: Any, dtype: torch.dtype) -> bool:
    """Whether torch's flags allow ten bits of fraction. ``of``: torch.backends.cudnn or torch.backends.cuda.matmul."""
    if dtype != torch.float32:
        return False
    try:
        return of.allow_tf32
    except RuntimeError:  # set through the newer name
        return (of.conv if hasattr(of, "conv") else of).fp32_precision == "tf32"
