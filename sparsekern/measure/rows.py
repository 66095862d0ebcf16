"""Rows: one measurement each, with its rivals, its error, who served it, and the machine it was taken on.

A file of rows is JSON lines. A line ``{"machine": {...}}`` is the card that holds for the rows after it:

    {"machine": {"cpu": ..., "threads": 1, "torch": ..., "git": ...}}
    {"op": "sparse_linear", "case": "sparse_linear/3072-768/0.1/n64/float32/rows", "provider": "ours", ...}
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from sparsekern.measure import protocol
from sparsekern.measure.cases import AnyCase
from sparsekern.measure.machine import machine_card
from sparsekern.measure.records import record, to_json

Key = tuple[str, str, str, str, str]  # case, mode, cache, threads, provider
TIMES = ("p20_us", "p50_us", "p80_us", "wall_us", "cpu_us")


@dataclass(frozen=True)
class Row:
    """One provider on one case. Times are microseconds per call; FLOPs count multiply and add separately."""

    op: str
    case: str
    provider: str
    mode: str  # "fwd" or "fwd_bwd"
    cache: str  # "hot" or "cold": where the weights were when the call began
    dtype: str
    layout: str
    batch: int
    sizes: dict
    density: float
    flops: int  # of the kept weights
    dense_flops: int  # of the dense twin
    bytes: int  # read and written at least in a call: input, kept weights, index tables, output
    threads: int
    served_by: str
    packed: bool = False
    reason: str = ""  # why the provider is not available; then all below is empty
    p20_us: float | None = None
    p50_us: float | None = None
    p80_us: float | None = None
    wall_us: float | None = None  # medians of both clocks
    cpu_us: float | None = None
    clock: str = "wall"  # which of them p20, p50, p80 and the ratios are of
    rounds: int = 0
    calls_per_round: int = 0
    error: float | None = None  # largest error against float64, relative to the largest magnitude
    ratios: dict[str, list[float]] = field(default_factory=dict)  # ours only: rival → times faster, p20 p50 p80
    gated: list[str] = field(default_factory=list)  # ours only: rivals that it must not lose to
    memory_bytes: dict[str, int] = field(default_factory=dict)  # held between calls: weight, index, bias, plan, pack
    machine: dict = field(default_factory=dict)

    @property
    def key(self) -> Key:
        """What makes two rows of different runs the same measurement; the threads are in it, as ``1t``."""
        return self.case, self.mode, self.cache, f"{self.threads}t", self.provider

    @property
    def ours(self) -> bool:
        return self.provider.startswith("ours")

    @property
    def memory(self) -> int | None:
        """Bytes held between calls, all parts; None where they are not known."""
        return sum(self.memory_bytes.values()) or None

    @property
    def gflops(self) -> float | None:
        """Real GF/s: work that was needed."""
        return self.flops / self.p50_us / 1e3 if self.p50_us else None

    @property
    def effective_gflops(self) -> float | None:
        """GF/s of a dense kernel that would take as long."""
        return self.dense_flops / self.p50_us / 1e3 if self.p50_us else None

    @property
    def interval_us(self) -> tuple[float, float, float]:
        """p20, median and p80 of a row that was measured; ValueError for one that could not run."""
        if self.p20_us is None or self.p50_us is None or self.p80_us is None:
            raise ValueError(f"row: {self.provider} of {self.case} must be measured; got {self.reason or 'no time'}")
        return self.p20_us, self.p50_us, self.p80_us

    def best_rival(self) -> tuple[str, list[float]] | None:
        """The strongest gated rival and our ratio to it; None for rivals and for cases without one."""
        known = {name: self.ratios[name] for name in self.gated if name in self.ratios}
        return min(known.items(), key=lambda item: item[1][1]) if known else None


def measure(
    case: AnyCase,
    *,
    mode: str = "fwd",
    cold: bool = False,
    rounds: int = 9,
    min_time_ms: float = 3.0,
    layer: object = None,
    clock: str = "wall",
    progress: Callable[[int, int], object] | None = None,
) -> list[Row]:
    """Build, check and time every provider of a case.

    Args:
        mode: "fwd", or "fwd_bwd" for forward and all gradients.
        cold: evict the private caches before every call; three times the rounds, as a sample is one call.
        layer: ours, in place of the layer that the case describes.
        clock: "wall", or "cpu" for one thread on a core that others use too.

    Returns:
        one row per provider, those that are not available included.

    Raises:
        ArithmeticError: a provider is not close enough to float64.
        ValueError: ``bench: clock must be wall for more than one thread; got cpu``
    """
    import torch

    from sparsekern.measure.providers import SETUPS

    if clock not in ("wall", "cpu"):
        raise ValueError(f"bench: clock must be wall or cpu; got {clock}")
    if clock == "cpu" and machine_card()["threads"] > 1:
        raise ValueError("bench: clock must be wall for more than one thread; got cpu")
    with torch.random.fork_rng(devices=[]):  # some setups seed torch's generator: the caller's stays as it was
        setup = SETUPS[case.op](case, mode, layer)
        errors = setup.check()
    calls = {provider.name: provider.call for provider in setup.providers if provider.call is not None}
    times = protocol.interleave(
        calls,
        rounds=3 * rounds if cold else rounds,
        min_time_ms=min_time_ms,
        before_each=protocol.Evict() if cold else None,
        progress=progress,
    )
    card = machine_card()
    rows = []
    walls = {name: t.median_us for name, t in times.items()}
    times = {name: t.by(clock) for name, t in times.items()}
    for provider in setup.providers:
        name = provider.name
        taken: dict[str, Any] = {"clock": clock}
        if name in times:
            t = times[name]
            taken |= dict(
                p20_us=t.p20_us,
                p50_us=t.median_us,
                p80_us=t.p80_us,
                wall_us=walls[name],
                cpu_us=t.cpu_median_us,
                rounds=len(t.samples_us),
                calls_per_round=t.calls_per_round,
                error=errors[name],
            )
            if provider.ours:
                rivals = [p.name for p in setup.available.values() if not p.ours]
                taken |= dict(ratios={r: list(protocol.ratio(t, times[r])) for r in rivals}, gated=setup.gated(provider))
        rows.append(
            Row(
                case.op,
                case.id,
                name,
                setup.mode,
                "cold" if cold else "hot",
                case.dtype,
                provider.layout,
                case.batch,
                case.sizes,
                setup.density,
                setup.flops,
                setup.dense_flops,
                setup.bytes_moved,
                card["threads"],
                provider.served_by,
                provider.packed,
                provider.reason,
                memory_bytes=provider.memory,
                machine=card,
                **taken,
            )
        )
    return rows


def write_rows(path: str | Path, rows: Iterable[Row], *, append: bool = False) -> None:
    """Write rows as JSON lines, numbers to four digits; with ``append`` behind what the file holds.

    Raises:
        ValueError: ``rows: p50_us of ours of <case> must be finite and above 0, or None as all its times; got nan``;
            then the file stays as it was.
    """
    lines, machine = [], None
    for row in rows:
        _check(row, f"{row.provider} of {row.case}")
        if row.machine != machine:
            machine = row.machine
            lines.append(to_json("rows", {"machine": machine}))
        values = {name: value for name, value in asdict(row).items() if name != "machine"}
        lines.append(to_json("rows", _rounded(values)))
    Path(path).parent.mkdir(parents=True, exist_ok=True)
    with open(path, "a" if append else "w", encoding="utf-8") as file:
        file.write("".join(f"{line}\n" for line in lines))


def read_rows(path: str | Path) -> list[Row]:
    """Read rows; fields that this version does not know are left out.

    Raises:
        ValueError: ``rows: <path> line <n> must be a row; got <text>``, or
            ``rows: p50_us of <path> line <n> must be finite and above 0, or None as all its times; got -1.0``
    """
    rows, machine = [], {}
    # not splitlines: to it U+2028, which JSON may hold as it is, ends a line
    for number, line in enumerate(Path(path).read_text(encoding="utf-8", errors="replace").split("\n"), 1):
        if not line.strip():
            continue
        where = f"{Path(path).name} line {number}"
        try:
            values = json.loads(line)
            if "machine" in values and "case" not in values:
                machine = values["machine"]
                continue
            rows.append(record(Row, values | {"machine": machine}))
        except (ValueError, TypeError, AttributeError, RecursionError) as error:
            raise ValueError(f"rows: {where} must be a row; got {line[:60]}") from error
        _check(rows[-1], where)
    return rows


def _check(row: Row, where: str) -> None:
    """Refuse times and ratios that no measurement gives, and times where some are missing."""
    times = {name: getattr(row, name) for name in TIMES}
    for name, time in times.items() if any(time is not None for time in times.values()) else ():
        coarse = name == "cpu_us" and time == 0  # of a clock whose steps are longer than a sample
        if time is None or not (0 < time < float("inf") or coarse):
            raise ValueError(f"rows: {name} of {where} must be finite and above 0, or None as all its times; got {time}")
    for rival, ratio in row.ratios.items():
        if len(ratio) != 3 or not all(0 < part < float("inf") for part in ratio):
            raise ValueError(f"rows: the ratio to {rival} of {where} must be three finite numbers above 0; got {ratio}")


def _rounded(value: Any) -> Any:
    if isinstance(value, float):
        return float(f"{value:.4g}")
    if isinstance(value, dict):
        return {k: _rounded(v) for k, v in value.items()}
    return [_rounded(v) for v in value] if isinstance(value, list) else value
