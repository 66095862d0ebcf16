"""The Network in Network tables of Deep Roots for people: what is printed, what is counted, what is measured."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from sparsekern.measure.protocol import Timing, verdict
from sparsekern.reproduce.deep_roots import PARTS, QUIET, NinResult, NinRow

if TYPE_CHECKING:
    from rich.console import RenderableType
    from rich.table import Table

WIDE = 160  # columns that the two parts need side by side
PART_NAMES = {"stack": "convolutions", "model": "whole model"}
WINNER_TITLES = (("Best dense", "dense"), ("Best torch grouped", "grouped"), ("Ours, weights not packed", "ours"))


def nin_tables(result: NinResult, width: int = 120) -> list[RenderableType]:
    """The rich tables and the caption that goes with their numbers.

    From 160 columns on convolutions and whole model stand side by side; below, one table each, which fits 100 columns.
    """
    from rich.padding import Padding
    from rich.text import Text

    return [
        counted_table(result),
        "",
        *(measured_table(result, parts) for parts in ([PARTS] if width >= WIDE else [[part] for part in PARTS])),
        Padding(Text("\n".join(notes() + caption(result)), style="dim"), (1, 0, 0, 0)),
    ]


def counted_table(result: NinResult) -> Table:
    """The paper's cells beside the exact integers counted here."""
    table = _table("Deep Roots, tables 2 and 8, Network in Network on CIFAR-10: printed cells and our exact counts")
    table.add_column("model", no_wrap=True)
    for head in (
        "groups\n2a,3a",
        "FLOPS\nx10^8",
        "counted\nFLOPS",
        "",
        "Param.\nx10^5",
        "counted\nparameters",
        "",
        "accuracy\n(paper)",
        "CPU ms\n(paper)",
        "GPU ms\n(paper)",
    ):
        table.add_column(head, justify="left" if not head else "right", no_wrap=True)
    for row in result.rows:
        printed = row.paper["printed"]
        table.add_row(
            row.paper["row"],
            ",".join(map(str, row.paper["groups"])),
            printed["flops_1e8"],
            f"{row.flops:,}",
            _agreement(row.flops, row.paper["flops"], printed["flops_1e8"], 1e8),
            printed["params_1e5"],
            f"{row.params:,}",
            _agreement(row.params, row.paper["params"], printed["params_1e5"], 1e5),
            printed["accuracy"],
            printed["cpu_ms"],
            printed["gpu_ms"],
            end_section=_ends_family(row),
        )
    return table


def _agreement(counted: int, expected: int, printed: str, unit: float) -> str:
    decimals = len(printed.partition(".")[2])
    rounds = f"{counted / unit:.{decimals}f}" == printed
    return "[green]equal[/]" if counted == expected and rounds else "[red]differs[/]"


def measured_table(result: NinResult, parts: Sequence[str] = PARTS) -> Table:
    """Milliseconds per image and realised speedups beside the FLOP reduction, both parts side by side or one alone."""
    names = " and ".join(PART_NAMES[part] for part in parts)
    table = _table(
        f"Measured, {names}: {result.clock} ms per image ({_plural(result.batch, 'image')} per call, "
        f"{_plural(result.threads, 'thread')}, float32, median of interleaved rounds)"
    )
    table.add_column("model", no_wrap=True)
    table.add_column("FLOPs\n÷", justify="right", no_wrap=True)
    for part in parts:
        for head in ("dense\ndefault", "dense\nbest", "torch\ngrouped", "ours", "ours\nspeedup", "p20..p80"):
            over = PART_NAMES[part] if head == "dense\ndefault" and len(parts) > 1 else ""
            table.add_column(f"{over}\n{head}", justify="right", no_wrap=True)
    for head in ("torch\ngrouped\nspeedup", "like\nfor\nlike", "paper\nCPU\nspeedup"):
        table.add_column(head, justify="right", no_wrap=True)
    for row in result.rows:
        cells = [row.paper["row"], f"{row.flop_reduction:.2f}"]
        for part in parts:
            times = (row.default(part), *(row.best(part, role) for role in ("dense", "grouped", "ours")))
            cells += [_ms(timing, result.batch) for timing in times]
            cells += [_speedup(row, part, "ours", emphasis=True), _spread(row, part)]
        cells += [_speedup(row, parts[-1], "grouped"), _speedup(row, parts[-1], "ours", "ours_dense")]
        paper = paper_cpu_speedup(row, result)
        table.add_row(*cells, f"{paper:.2f}" if paper else "–", end_section=_ends_family(row))
    return table


def notes() -> list[str]:
    """How to read the columns."""
    return [
        "speedup: times faster than the best dense, network against network; in (brackets) where the p20..p80 "
        "intervals overlap: no winner.",
        "torch grouped speedup: also against the best dense. like for like: ours against the dense twin with our "
        "kernels. (Side by side: of the whole model.)",
    ]


def caption(result: NinResult) -> list[str]:
    """What the numbers mean and depend on: the same words under the table, under the plot and in the JSON file."""
    card = result.machine
    rounds = sorted({row.rounds for row in result.rows})
    winners = [f"{title}: {_winners(result, role)}" for title, role in WINNER_TITLES if _winners(result, role)]
    return [
        "A variant and its dense twin (groups = 1) are different functions of equal shape: the accuracy is the paper's "
        "column. Weights are untrained (He).",
        f"{'. '.join(winners)}. {_served(result)}Pooling: the fastest for the layout, for all alike.",
        f"Before timing, every layer and output was within its float32 bound of the float64 result. Input: {result.images}.",
        f"{card.get('cpu')}, {_plural(result.threads, 'thread')}, kernels {card.get('isa') or 'n/a'}, "
        f"malloc {card.get('allocator')}, float32, batch {result.batch}, median of "
        f"{'..'.join(str(n) for n in dict.fromkeys((rounds[0], rounds[-1])))} interleaved rounds, "
        f"torch {card.get('torch')}, sparsekern {card.get('sparsekern') or 'source tree'}.",
        *_busy(result),
    ]


def _busy(result: NinResult) -> list[str]:
    if result.share >= QUIET or result.threads > 1:
        return []
    return [
        f"The machine was busy: the measuring thread ran {result.share:.0%} of the time. Times are its CPU time, not "
        "the wall's, and less sure than on a quiet machine."
    ]


def paper_cpu_speedup(row: NinRow, result: NinResult) -> float | None:
    """The paper's CPU milliseconds of the dense net over those of this row."""
    dense = next((r.paper for r in result.rows if r.paper["model"] == "nin"), None)
    if dense is None or row.paper is dense:
        return None
    return float(dense["printed"]["cpu_ms"]) / float(row.paper["printed"]["cpu_ms"])


def _table(title: str) -> Table:
    from rich import box
    from rich.table import Table

    return Table(title=title, title_justify="left", title_style="bold", box=box.SIMPLE_HEAD, pad_edge=False, padding=(0, 1, 0, 0))


def _plural(n: int, word: str) -> str:
    return f"{n} {word}{'s' * (n != 1)}"


def _ms(timing: Timing | None, batch: int) -> str:
    return f"{timing.median_us / 1e3 / batch:.3f}" if timing else "–"


def _speedup(row: NinRow, part: str, role: str, rival: str = "dense", emphasis: bool = False) -> str:
    found = row.speedup(part, role, rival)
    if found is None:
        return "–"
    text = f"{found[1]:.2f}"
    if verdict(row.best(part, role), row.best(part, rival)) not in ("faster", "slower"):
        return f"({text})"
    return f"[bold]{text}[/]" if emphasis else text


def _spread(row: NinRow, part: str) -> str:
    found = row.speedup(part, "ours")
    return f"{found[0]:.2f}..{found[2]:.2f}" if found else "–"


def _ends_family(row: NinRow) -> bool:
    return row.paper["row"] in ("Orig.", "root-16", "tree-16")


def _served(result: NinResult) -> str:
    """Which layers of our fastest nets run torch's convolution inside GroupedConv2d, or no compiled kernel at all."""
    by_others: dict[str, set[str]] = {}
    for row in result.rows:
        best = row.best("model", "ours")
        for layer, who in row.served.get(_competitor(best), {}).items() if best else ():
            if not who.startswith("sparsekern"):
                by_others.setdefault("torch's" if who.startswith("torch") else "the reference", set()).add(layer)
    return "".join(f"GroupedConv2d left {', '.join(sorted(ls))} to {who} convolution. " for who, ls in by_others.items())


def _competitor(timing: Timing) -> str:
    return timing.name.rpartition(" | ")[2]


def _winners(result: NinResult, role: str) -> str:
    """Which competitor was fastest for whole models, and in how many rows: ``GroupedConv2d NCHW (13 of 13)``."""
    names = [_competitor(best) for row in result.rows if (best := row.best("model", role))]
    return ", ".join(f"{name} ({names.count(name)} of {len(names)})" for name in dict.fromkeys(sorted(names)))
