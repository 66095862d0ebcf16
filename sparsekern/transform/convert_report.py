"""What :func:`sparsekern.convert` did to each layer, and what it brought."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from sparsekern.measure.machine import machine_card
from sparsekern.transform.rules import Rule


@dataclass
class LayerReport:
    """One layer that the plan speaks of.

    ``before_us`` and ``after_us`` are the medians of one call on what the layer is given in the example, ``error`` is
    ``|new - old| / |old|`` of its output there (2-norms); None where nothing was measured. Bytes are those of parameters, index tables
    and plans.
    """

    name: str
    rule: Rule
    kind: str = ""  # what it becomes
    density: float | None = None  # its weights over those of the dense layer; 1/density is the expected speedup
    weights_from: str = ""
    swapped: bool = False
    why_not: str = ""
    x_shape: tuple[int, ...] | None = None
    calls: int = 0
    before_us: float | None = None
    after_us: float | None = None
    verdict: str = ""  # faster, slower, same or ambiguous
    before_bytes: int = 0
    after_bytes: int | None = None
    error: float | None = None
    made_by: Rule | None = None  # of a swapped layer: what gives a fresh one of its shapes

    @property
    def expected(self) -> float | None:
        """The dense layer's FLOPs over the sparse one's."""
        return None if not self.density else 1 / self.density

    @property
    def measured(self) -> float | None:
        """The dense layer's time over the sparse one's."""
        return None if self.after_us is None or self.before_us is None else self.before_us / self.after_us


@dataclass
class ConvertReport:
    """Printable, with rich as a table; :meth:`to_json` for files.

    ``times_us`` holds the whole model's medians on the example, ``"before"`` and ``"after"``; empty where nothing was timed.
    ``error`` is the largest difference of the model's outputs from those of its dense twin, the model with zeros where nothing is
    kept, relative to the largest magnitude of that output.
    """

    policy: str
    training: bool  # times are of forward and backward
    threads: int
    layers: list[LayerReport] = field(default_factory=list)
    times_us: dict[str, float] = field(default_factory=dict)
    verdict: str = ""
    error: float | None = None
    note: str = ""

    @property
    def swapped(self) -> list[str]:
        """Names of the layers that are sparse now."""
        return [layer.name for layer in self.layers if layer.swapped]

    @property
    def left(self) -> dict[str, str]:
        """Names of the layers that stayed, and why."""
        return {layer.name: layer.why_not for layer in self.layers if not layer.swapped}

    @property
    def speedup(self) -> float | None:
        """Of the whole model; None where nothing was timed."""
        return self.times_us["before"] / self.times_us["after"] if self.times_us else None

    @property
    def plan(self) -> dict[str, Rule]:
        """What was swapped, as a plan that gives a fresh model the same structure, whatever its weights: ``convert(fresh, report.plan,
        policy="always").load_state_dict(...)``."""
        return {layer.name: layer.made_by for layer in self.layers if layer.made_by is not None}

    def to_json(self, path: str | Path | None = None) -> str:
        """The report with the machine it was measured on as JSON; also written to ``path``."""
        found = {key: value for key, value in asdict(self).items() if key != "layers"}
        found |= {"speedup": self.speedup, "machine": machine_card(), "layers": []}
        for layer in self.layers:
            row = {key: value for key, value in vars(layer).items() if key not in ("rule", "made_by")}
            found["layers"].append({**row, "rule": layer.rule.to_json(), "expected": layer.expected, "measured": layer.measured})
        text = json.dumps(found, indent=1) + "\n"
        if path is not None:
            Path(path).write_text(text, encoding="utf-8")
        return text

    # ---- for reading

    @property
    def title(self) -> str:
        threads = f"{self.threads} thread" + ("s" if self.threads > 1 else "")
        what = "training step" if self.training else "inference"
        lines = [f"convert: {len(self.swapped)} of {len(self.layers)} layers swapped ({self.policy}; {what}, {threads})"]
        if self.times_us:
            before, after = (self.times_us[name] / 1000 for name in ("before", "after"))
            lines.append(f"whole model {before:.3f} ms -> {after:.3f} ms, {self.speedup:.2f}x ({self.verdict})")
        if self.error is not None:
            lines.append(f"largest difference from the dense twin {self.error:.1e}")
        return "\n".join([*lines, *([self.note] if self.note else [])])

    COLUMNS = ("layer", "becomes", "kept", "weights from", "FLOPs ÷", "measured", "us", "KiB", "error", "why not")

    def rows(self) -> list[tuple[str, ...]]:
        """The table's cells, one row per layer."""
        return [_cells(layer) for layer in self.layers]

    def __str__(self) -> str:
        rows = [self.COLUMNS, *self.rows()]
        widths = [max(map(len, column)) for column in zip(*rows)]
        lines = ["  ".join(cell.ljust(width) for cell, width in zip(row, widths)).rstrip() for row in rows]
        return "\n".join([self.title, *(f"  {line}" for line in lines)])

    def __rich__(self) -> Any:
        from rich.markup import escape
        from rich.table import Table

        table = Table(title=escape(self.title), title_justify="left", title_style="bold", box=None, pad_edge=False)
        for column in self.COLUMNS:
            table.add_column(column, justify="left" if column in ("layer", "becomes", "weights from", "why not") else "right")
        for layer, row in zip(self.layers, self.rows()):
            table.add_row(*map(escape, row), style="" if layer.swapped else "dim")
        return table


def _cells(layer: LayerReport) -> tuple[str, ...]:
    def either(value: float | None, form: str) -> str:
        return "-" if value is None else format(value, form)

    return (
        layer.name,
        layer.kind or type(layer.rule).__name__,
        "-" if layer.density is None else f"{100 * layer.density:.1f} %",
        layer.weights_from or layer.rule.source,
        either(layer.expected, ".2f"),
        either(layer.measured, ".2f") + ("" if layer.measured is None else "x"),
        "-" if layer.after_us is None else f"{layer.before_us:.0f} -> {layer.after_us:.0f}",
        f"{layer.before_bytes / 1024:.0f}" + ("" if layer.after_bytes is None else f" -> {layer.after_bytes / 1024:.0f}"),
        either(layer.error, ".2g"),
        layer.why_not,
    )
