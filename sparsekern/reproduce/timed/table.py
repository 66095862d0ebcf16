"""A timed table for people: milliseconds, speedups beside FLOP reduction, and the layers of one variant."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from sparsekern.measure.protocol import verdict
from sparsekern.reproduce.timed.bench import PARTS
from sparsekern.reproduce.timed.caption import caption, notes, plural
from sparsekern.reproduce.timed.runner import Result, Row

if TYPE_CHECKING:
    from rich.console import RenderableType
    from rich.table import Table


def measured_tables(result: Result, width: int = 120, layers: bool = False) -> list[RenderableType]:
    """The rich tables and the caption that goes with their numbers.

    Stack and whole model stand side by side where ``width`` columns have room for both, else one below the other.

    Args:
        layers: also the layers of the sparsest variant.
    """
    from rich.padding import Padding
    from rich.text import Text

    side_by_side = measured_table(result, PARTS)
    fits = natural_width(side_by_side) <= width
    tables: list[RenderableType] = [side_by_side] if fits else [measured_table(result, [part]) for part in PARTS]
    if layers:
        tables += ["", layer_table(result)]
    return [*tables, Padding(Text("\n".join(notes(result) + caption(result)), style="dim"), (1, 0, 0, 0))]


def natural_width(table: Table) -> int:
    """How many columns of characters ``table`` needs so that no cell is cut."""
    from rich.console import Console

    return Console(width=1000).measure(table).maximum


def measured_table(result: Result, parts: Sequence[str] = PARTS) -> Table:
    """Milliseconds per image and realised speedups beside the FLOP reduction, both parts side by side or one alone."""
    titles, role = part_titles(result), result.table.sparse_role
    has_variants = any(not row.of.is_dense for row in result.rows)
    table = _table(
        f"Measured, {' and '.join(titles[part] for part in parts)}: {result.clock} ms per image "
        f"({plural(result.batch, 'image')} per call, {plural(result.threads, 'thread')}, float32, median of interleaved rounds)"
    )
    table.add_column("model", no_wrap=True)
    table.add_column("FLOPs\n÷", justify="right", no_wrap=True)
    if result.table.plotted == "stack":
        table.add_column("its\nlayers'\n÷", justify="right", no_wrap=True)
    roles = {"dense": "dense\nbest", **({role: f"torch\n{role}"} if has_variants else {}), "ours": "ours"}
    for part in parts:
        for head in ("dense\ndefault", *roles.values(), "ours\nspeedup", "p20..p80"):
            over = titles[part] if head == "dense\ndefault" and len(parts) > 1 else ""
            table.add_column(f"{over}\n{head}", justify="right", no_wrap=True)
    whole = has_variants and "model" in parts
    if has_variants:
        for head in (f"torch\n{role}\nspeedup", "like\nfor\nlike", "paper\nCPU\nspeedup"):
            table.add_column(head, justify="right", no_wrap=True)
    if whole:
        table.add_column(f"{role}\nlayers'\nshare", justify="right", no_wrap=True)
    for i, row in enumerate(result.rows):
        cells = [row.of.label, f"{row.flop_reduction:.2f}"]
        if result.table.plotted == "stack":
            cells.append(f"{row.stack_reduction:.2f}" if row.stack_reduction < 99.5 else f"{row.stack_reduction:.0f}")
        for part in parts:
            times = (row.torch_default(part), *(row.best(part, by) for by in roles))
            cells += [_ms(timing.median_us / 1e3 / result.batch if timing else None) for timing in times]
            cells += [_speedup(row, part, "ours", emphasis=True), _spread(row, part)]
        paper, share = paper_cpu_speedup(row, result), row.share("ours", result.clock)
        if has_variants:
            cells += [_speedup(row, parts[-1], role), _speedup(row, parts[-1], "ours", "ours_dense"), f"{paper:.2f}" if paper else "–"]
        if whole:
            cells.append("–" if share is None else f"{share:.0%}")
        table.add_row(*cells, end_section=_ends_family(result.rows, i))
    return table


def layer_table(result: Result) -> Table:
    """Milliseconds of each layer in the running model, of the variant that saves most by sparse layers."""
    row = max(result.rows, key=lambda row: (any(layer.sparse for layer in row.layers), row.flop_reduction))
    roles = [role for role in ("dense", result.table.sparse_role, "ours") if role in row.layer_times]
    table = _table(f"Layers of {row.of.label} in the running model, {result.clock} ms per image (dense best: the twin's layer)")
    table.add_column("layer", no_wrap=True)
    table.add_column("weight", no_wrap=True)
    for role in roles:
        table.add_column({"dense": "dense\nbest", "ours": "\nours"}.get(role, f"torch\n{role}"), justify="right", no_wrap=True)
    table.add_column("served by", no_wrap=True)
    served = row.served.get(row.profiled.get("ours", ""), {})
    for layer in row.layers:
        times = [row.layer_times[role].layers[result.clock].get(layer.path) for role in roles]
        cells = [_ms(None if ms is None else ms / result.batch) for ms in times]
        table.add_row(layer.path, layer.weight, *cells, served.get(layer.path, "torch"), style="bold" if layer.sparse else "")
    wholes = [row.layer_times[role].model[result.clock] for role in roles]
    rest = [ms - sum(row.layer_times[role].layers[result.clock].values()) for ms, role in zip(wholes, roles, strict=True)]
    table.add_section()
    table.add_row("all else", "", *(_ms(ms / result.batch) for ms in rest), "")
    table.add_row("whole model", "", *(_ms(ms / result.batch) for ms in wholes), "")
    return table


def part_titles(result: Result) -> dict[str, str]:
    """What a part is called in this table."""
    return {"stack": result.table.stack_of, "model": "whole model"}


def paper_cpu_speedup(row: Row, result: Result) -> float | None:
    """The paper's CPU milliseconds of the dense twin over those of this row, where it printed both."""
    dense = next((r.of for r in result.rows if r.of.variant == row.of.variant.dense), None)
    if dense is None or dense is row.of:
        return None
    whole, part = _printed_ms(dense.paper), _printed_ms(row.of.paper)
    return None if whole is None or part is None else whole / part


def _printed_ms(paper: dict) -> float | None:
    try:
        return float(paper["printed"]["cpu_ms"])
    except (KeyError, TypeError, ValueError):
        return None


def _table(title: str) -> Table:
    from rich import box
    from rich.table import Table

    return Table(title=title, title_justify="left", title_style="bold", box=box.SIMPLE_HEAD, pad_edge=False, padding=(0, 1, 0, 0))


def _ms(ms: float | None) -> str:
    return "–" if ms is None else f"{ms:.4f}" if ms < 0.0995 else f"{ms:.3f}"


def _speedup(row: Row, part: str, role: str, rival: str = "dense", emphasis: bool = False) -> str:
    found, ours, theirs = row.speedup(part, role, rival), row.best(part, role), row.best(part, rival)
    if found is None or ours is None or theirs is None:
        return "–"
    text = f"{found[1]:.2f}"
    if verdict(ours, theirs) not in ("faster", "slower"):
        return f"({text})"
    return f"[bold]{text}[/]" if emphasis else text


def _spread(row: Row, part: str) -> str:
    found = row.speedup(part, "ours")
    return f"{found[0]:.2f}..{found[2]:.2f}" if found else "–"


def _ends_family(rows: Sequence[Row], i: int) -> bool:
    """Whether the next row is of another kind: dense, root, tree, column or other."""
    return i + 1 < len(rows) and _kind(rows[i]) != _kind(rows[i + 1])


def _kind(row: Row) -> tuple[str, bool]:
    return row.of.family, row.of.is_dense
