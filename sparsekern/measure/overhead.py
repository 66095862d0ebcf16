"""What a call costs beside the work in it: every layer at a size of almost no work, against torch's layer of the same arguments.

A call of a tiny layer is a measure of what lies around a kernel: Python, dispatch, checks, allocation and, in a training step, autograd.
Both are timed through the module, in interleaved rounds; ours is first held against the dense layer that computes the same.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from sparsekern.measure import protocol
from sparsekern.measure.machine import machine_card
from sparsekern.measure.providers.common import ERROR_MULTIPLE, layer_of, relative_error
from sparsekern.measure.rows import Row

if TYPE_CHECKING:
    from rich.table import Table

MODES = ("fwd", "fwd_bwd")


@dataclass(frozen=True)
class Pair:
    """A layer of ours, torch's layer that takes its place, and the input [..] of both."""

    name: str
    ours: Callable[[], nn.Module]
    torch: Callable[[], nn.Module]
    shape: tuple[int, ...]
    packed: bool = False  # has no training step


def _ours(name: str, *args: Any, **options: Any) -> Callable[[], Any]:
    return lambda: layer_of(name)(*args, **options)


def _two_convs() -> nn.Module:
    return nn.Sequential(nn.Conv2d(8, 8, 3, padding=1, groups=2), nn.ReLU(), nn.Conv2d(8, 8, 1), nn.ReLU())


IMAGE = (1, 8, 4, 4)
CONV = (8, 8, 3, 1, 1)  # channels in, channels out, kernel, stride, padding
LINEAR, DENSE_CONV = partial(nn.Linear, 16, 16), partial(nn.Conv2d, *CONV)

PAIRS = (
    Pair("linear", _ours("SparseLinear", 16, 16, density=0.25, seed=0), LINEAR, (1, 16)),
    Pair("linear_64_rows", _ours("SparseLinear", 16, 16, density=0.25, seed=0), LINEAR, (64, 16)),
    Pair("linear_blocks", _ours("SparseLinear", 64, 16, block_size=16, fan_in=16, seed=0), partial(nn.Linear, 64, 16), (1, 64)),
    Pair(
        "linear_balanced",
        _ours("SparseLinear", 64, 16, topology="balanced", fan_in=8, seed=0),
        partial(nn.Linear, 64, 16),
        (1, 64),
    ),
    Pair("linear_packed", lambda: _ours("SparseLinear", 16, 16, density=0.25, seed=0)().pack(), LINEAR, (1, 16), packed=True),
    Pair("grouped_conv", _ours("GroupedConv2d", *CONV, groups=2), partial(nn.Conv2d, *CONV, groups=2), IMAGE),
    Pair("stochastic_conv", _ours("StochasticConv2d", *CONV, density=0.25, seed=0), DENSE_CONV, IMAGE),
    Pair("spatial_basis_conv", _ours("SpatialBasisConv2d", *CONV), DENSE_CONV, IMAGE),
    Pair("root_module", _ours("RootModule", 8, 8, 8, 3, groups=2, padding=1), _two_convs, IMAGE),
)  # fmt: skip


def measure_overhead(pair: Pair, mode: str = "fwd", *, rounds: int = 9, min_time_ms: float = 3.0, clock: str = "wall") -> list[Row]:
    """Check and time one pair; ``"fwd"`` without gradient, ``"fwd_bwd"`` with the gradients of x and of all parameters.

    Returns:
        two rows, of "ours" and "torch"; none for the training step of a packed layer.

    Raises:
        ArithmeticError: ``overhead/linear: ours must be within <bound> of the dense layer; got <error>``
    """
    if pair.packed and mode == "fwd_bwd":
        return []
    calls, error = checked_calls(pair, mode)
    with torch.set_grad_enabled(mode == "fwd_bwd"):
        times = protocol.interleave(calls, rounds=rounds, min_time_ms=min_time_ms)
    walls = {name: timing.median_us for name, timing in times.items()}
    times = {name: timing.by(clock) for name, timing in times.items()}
    card = machine_card()
    rows = []
    for name, t in times.items():
        mine = name == "ours"
        rows.append(
            Row(
                "overhead", f"overhead/{pair.name}/n{pair.shape[0]}/float32", name, mode, "hot", "float32", "", pair.shape[0],
                {"x": "x".join(map(str, pair.shape))}, 1.0, 0, 0, 0, card["threads"], "module", pair.packed,
                p20_us=t.p20_us, p50_us=t.median_us, p80_us=t.p80_us, wall_us=walls[name], cpu_us=t.cpu_median_us, clock=clock,
                rounds=len(t.samples_us), calls_per_round=t.calls_per_round, error=error if mine else None,
                ratios={"torch": list(protocol.ratio(t, times["torch"]))} if mine else {}, machine=card,
            )
        )  # fmt: skip
    return rows


def checked_calls(pair: Pair, mode: str) -> tuple[dict[str, Callable[[], Any]], float]:
    """What is timed, of "ours" and "torch" (forward under ``torch.no_grad()``), and the error of ours."""
    with torch.random.fork_rng(devices=[]):  # the caller's random numbers stay as they were
        torch.default_generator.manual_seed(0)
        layers = {"ours": pair.ours(), "torch": pair.torch()}
        x = torch.randn(pair.shape)
        error = _checked(pair, layers["ours"], x)
    return {name: _call(layer, x, mode) for name, layer in layers.items()}, error


def _checked(pair: Pair, layer: nn.Module, x: Tensor) -> float:
    """The error of ours against what computes the same densely, relative to the largest magnitude."""
    parts: list[Any] = list(layer) if isinstance(layer, nn.Sequential) else [layer]
    dense = nn.Sequential(*(part.to_dense() for part in parts))
    with torch.no_grad():
        truth = dense.double()(x.double())
        error = relative_error(layer(x), truth)
        bound = ERROR_MULTIPLE[x.dtype] * max(relative_error(dense.float()(x), truth), torch.finfo(x.dtype).eps)
    if not error <= bound:
        raise ArithmeticError(f"overhead/{pair.name}: ours must be within {bound:.2g} of the dense layer; got {error:.2g}")
    return error


def _call(layer: nn.Module, x: Tensor, mode: str) -> Callable[[], Any]:
    if mode == "fwd":
        layer.requires_grad_(False)
        return lambda: layer(x)
    x = x.clone().requires_grad_()
    leaves, grad_out = [x, *layer.parameters()], torch.ones_like(layer(x))
    return lambda: torch.autograd.grad(layer(x), leaves, grad_out)


def overhead_table(rows: list[Row]) -> Table:
    """A rich table: both times, what ours takes more, and the ratio, a line per layer and mode."""
    from rich.table import Table

    first = rows[0]
    title = (
        f"call overhead, {first.threads} thread{'s' * (first.threads > 1)}, {first.clock} time: a layer of almost no work against torch's"
    )
    out = Table(title=title, title_justify="left", title_style="bold", box=None, pad_edge=False)
    for head in ("layer", "x", "mode"):
        out.add_column(head)
    for head in ("ours µs", "torch µs", "more µs", "torch / ours", "p20..p80", "error"):
        out.add_column(head, justify="right", no_wrap=True)
    out.add_column("ours is")
    torchs = {row.key[:-1]: row for row in rows if row.provider == "torch"}
    for row in rows:
        if row.provider != "ours":
            continue
        other = torchs[row.key[:-1]]
        more_us = row.interval_us[1] - other.interval_us[1]
        low, middle, high = row.ratios["torch"]
        said = protocol.judge(row.interval_us, other.interval_us)
        out.add_row(
            row.case.split("/")[1], row.sizes["x"], row.mode, f"{row.p50_us:.2f}", f"{other.p50_us:.2f}", f"{more_us:+.2f}",
            f"{middle:.2f}x", f"{low:.2f}..{high:.2f}", f"{row.error:.0e}", said,
        )  # fmt: skip
    return out
