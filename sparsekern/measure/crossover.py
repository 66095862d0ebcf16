"""From which density on sparse is slower: linear rows of one layer at several densities, as a table and as a plot.

A *curve* is one layer (shape, kind of fan-in, dtype) in one run (mode, cache, threads) at one batch; its points are the densities.

    sparse wins below d:  d is where our ratio to the rival falls to WINS, between the densest density that wins and the next one;
                          ">= 50 %" if the densest one timed still wins, "never" if none does
"""

from __future__ import annotations

import math
import textwrap
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from sparsekern.measure.protocol import SAME_WITHIN
from sparsekern.measure.rows import Row

if TYPE_CHECKING:
    from rich.table import Table

WINS = 1 + SAME_WITHIN  # a ratio below is the same, or slower: our layers run the dense product themselves where it is faster

# provider: (label, colour, line style, width); drawn in this order, ours on top
LINES = {
    "csr": ("torch CSR", "#b9b9b9", "-", 1.0),
    "mkl_ie_features": ("MKL sparse, free transposes", "#e8b06b", ":", 1.4),
    "mkl_ie": ("MKL sparse", "#d9822b", "-", 1.4),
    "dense_bf16": ("dense in bfloat16", "#a99fd6", "-", 1.4),
    "dense_prepacked": ("dense prepacked", "#6a5fa8", "-", 1.4),
    "ours_packed": ("ours, packed", "#14533c", "--", 2.2),
    "ours": ("ours", "#2a9f74", "-", 2.2),
}


@dataclass
class Curve:
    """The rows of one layer, run and batch: density → provider → row."""

    layer: str  # "3072-768"
    kind: str  # "random", "balanced", "blocks of 32"
    dtype: str
    batch: int
    mode: str
    cache: str
    threads: int
    points: dict[float, dict[str, Row]] = field(default_factory=dict)

    @property
    def page(self) -> tuple[str, ...]:
        """What shares a plot: one kind, dtype and run."""
        run = [self.mode] * (self.mode != "fwd") + [self.cache] * (self.cache != "hot") + [f"{self.threads}t"] * (self.threads > 1)
        return (self.kind.split()[0], self.dtype, *run)

    def ratios(self, ours: str, rival: str) -> list[tuple[float, float]]:
        """(density, how many times faster ``ours`` is), sparsest first; rival "best" is the strongest gated one."""
        found = []
        for density, rows in sorted(self.points.items()):
            row = rows.get(ours)
            if row is None or not row.p50_us:
                continue
            best = row.best_rival() if rival == "best" else None
            ratio = best[1] if best else row.ratios.get(rival)
            if ratio:
                found.append((density, ratio[1]))
        return found


def curves(rows: Iterable[Row]) -> list[Curve]:
    """Curves of at least two densities, in the order of the rows."""
    found: dict[tuple, Curve] = {}
    for row in rows:
        if row.op != "sparse_linear":
            continue
        block = row.sizes.get("block_size", 1)
        kind = f"blocks of {block}" if block != 1 else row.sizes.get("topology", "random")
        key = row.case.split("/")[1], kind, row.dtype, row.batch, row.mode, row.cache, row.threads
        curve = found.setdefault((*key, row.case.rsplit("/", 1)[-1]), Curve(*key))
        curve.points.setdefault(row.density, {})[row.provider] = row
    return [curve for curve in found.values() if len(curve.points) > 1]


def wins_below(ratios: list[tuple[float, float]]) -> tuple[float, bool]:
    """The density below which ours wins, and whether that is only the densest one timed.

    Args:
        ratios: (density, ratio), sparsest first. Between two densities the ratio is taken as a straight line on logarithmic axes.

    Example:
        >>> wins_below([(0.01, 20.0), (0.1, 4.2), (0.4, 0.525)])
        (0.25..., False)
        >>> wins_below([(0.1, 4.0), (0.5, 1.3)]), wins_below([(0.1, 0.9)])
        ((0.5, True), (0.0, False))
    """
    winning = [at for at, (_, ratio) in enumerate(ratios) if ratio > WINS]
    if not winning:
        return 0.0, False
    last = winning[-1]
    density, ratio = ratios[last]
    if last + 1 == len(ratios):
        return density, True
    above, lost = ratios[last + 1]
    share = math.log(ratio / WINS) / math.log(ratio / lost)
    return density * (above / density) ** share, False


def said(ratios: list[tuple[float, float]]) -> str:
    """:func:`wins_below` in words; densities below it that do not win are named."""
    if not ratios:
        return "-"
    density, densest = wins_below(ratios)
    if density == 0:
        return "never"
    lost = [f"{100 * at:.2g} %" for at, ratio in ratios if at < density and ratio <= WINS]
    return f"{'>= ' * densest}{100 * density:.2g} %" + (f" (not at {', '.join(lost)})" if lost else "")


def table(found: list[Curve]) -> Table:
    """One line per curve: below which density ours wins, against dense, against everything gated, and against MKL."""
    from rich.markup import escape
    from rich.table import Table

    out = Table(title=f"sparse is more than {SAME_WITHIN:.0%} faster below this density", title_justify="left", box=None, pad_edge=False)
    for head in ("layer", "fan-in", "dtype", "run"):
        out.add_column(head)
    for head in ("batch", "ours : dense", "ours : best", "packed : best prepacked", "packed : MKL"):
        out.add_column(head, justify="right")
    for curve in found:
        run = " ".join(curve.page[2:]) or "fwd"
        packed = "ours_packed" if any("ours_packed" in rows for rows in curve.points.values()) else "ours"
        out.add_row(
            *map(escape, (curve.layer, curve.kind, curve.dtype, run, str(curve.batch))),
            said(curve.ratios("ours", "dense")),
            said(curve.ratios("ours", "best")),
            said(curve.ratios("ours_packed", "best")),
            said(curve.ratios(packed, "mkl_ie")),
        )
    return out


def plot(found: list[Curve], path: str | Path) -> list[Path]:
    """Draw speedup over ``F.linear`` against density: a row of panels per layer, a column per batch, a file per page.

    Returns:
        the files: ``path``, or with several pages ``path`` with the page's name before its ending.
    """
    pages: dict[tuple[str, ...], list[Curve]] = {}
    for curve in found:
        pages.setdefault(curve.page, []).append(curve)
    # pages of whole curves where there are some: two densities of an odd batch need no column
    most = {page: max(len(curve.points) for curve in some) for page, some in pages.items()}
    pages = {page: [curve for curve in some if len(curve.points) > min(2, most[page] - 1)] for page, some in pages.items()}
    path, files = Path(path), []
    for page, some in pages.items():
        file = path if len(pages) == 1 else path.with_name(f"{path.stem}-{'-'.join(page)}{path.suffix}")
        _draw(page, some, file)
        files.append(file)
    return files


def _draw(page: tuple[str, ...], found: list[Curve], file: Path) -> None:
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt
    from matplotlib.ticker import FixedLocator, FuncFormatter, LogLocator, NullLocator

    layers = list(dict.fromkeys((curve.layer, curve.kind) for curve in found))
    batches = sorted({curve.batch for curve in found})
    size = 1.2 + 2.5 * len(batches), 1.3 + 2.15 * len(layers)
    figure, grid = plt.subplots(len(layers), len(batches), figsize=size, squeeze=False, sharex="row", sharey="row", layout="constrained")
    handles: dict[str, Any] = {}
    for axes in grid.flat:
        axes.set_visible(False)
    for curve in found:
        at = layers.index((curve.layer, curve.kind)), batches.index(curve.batch)
        axes = grid[at]
        axes.set_visible(True)
        axes.set_xscale("log")
        axes.set_yscale("log")
        handles |= _lines(axes, curve)
        axes.axhline(1.0, color="black", linewidth=1.0)
        words = [_in_words(name, curve.ratios(name, "best")) for name in ("ours", "ours_packed")]
        style = dict(ha="right", va="top", fontsize=6.5, bbox={"facecolor": "white", "edgecolor": "none", "alpha": 0.8, "pad": 1})
        axes.text(0.97, 0.96, "\n".join(filter(None, words)), transform=axes.transAxes, **style)
        density, densest = wins_below(curve.ratios("ours", "best"))
        if density and not densest:
            axes.axvline(density, color=LINES["ours"][1], linewidth=0.9, linestyle=":")
        densities = sorted(curve.points)
        axes.xaxis.set_major_locator(FixedLocator(_apart(densities)))
        axes.xaxis.set_major_formatter(FuncFormatter(lambda d, _: f"{100 * d:.2g}"))
        axes.xaxis.set_minor_locator(NullLocator())
        axes.yaxis.set_major_locator(LogLocator(10, subs=(1, 2, 5)))
        axes.yaxis.set_major_formatter(FuncFormatter(lambda y, _: f"{y:g}×"))
        axes.yaxis.set_minor_locator(NullLocator())
        axes.tick_params(labelsize=7)
        axes.grid(alpha=0.25, linewidth=0.5)
        axes.set_title(f"batch {curve.batch}" if at[0] == 0 else "", fontsize=9)
    for (layer, kind), row in zip(layers, grid):
        low, high = row[0].get_ylim()
        low, high = min(max(low, 0.2), 0.5), high * 1.9  # what is far below dense is left out; room for the words
        for axes in row:
            axes.set_ylim(low, high)
            axes.axhspan(low, 1.0, color="#b5523b", alpha=0.07, linewidth=0)
        row[0].set_ylabel(f"{layer.replace('-', ' → ')}" + (f"\n{kind}" if kind.startswith("blocks") else ""), fontsize=9)
    for axes in grid[-1]:
        axes.set_xlabel("kept weights, %", fontsize=8)
    row = next(iter(next(iter(found[0].points.values())).values()))
    mode = "training step" if "fwd_bwd" in page else "forward"
    kind, dtype = page[:2]
    what = "blocks" if kind == "blocks" else f"{kind} fan-in"
    title = f"SparseLinear, {what}, {dtype}, {mode}, {row.cache} weights: times faster than F.linear (1× = dense)"
    caption = f"{row.machine.get('cpu')}, {row.threads} thread{'s' * (row.threads > 1)}, torch {row.machine.get('torch')}"
    caption += f"; wins: more than {SAME_WITHIN:.0%} faster than every same-dtype way of torch"
    wide = round(14 * size[0])  # characters in the figure's width
    figure.suptitle("\n".join(textwrap.wrap(title, wide) + textwrap.wrap(caption, wide)), fontsize=9)
    order = [name for name in reversed(LINES) if name in handles]
    labels, columns = [LINES[name][0] for name in order], 6 if len(batches) > 2 else 3 if len(batches) > 1 else 2
    figure.legend([handles[name] for name in order], labels, loc="outside lower center", ncols=columns, fontsize=8)
    figure.savefig(file, dpi=130)
    plt.close(figure)


def _in_words(name: str, ratios: list[tuple[float, float]]) -> str:
    """One line of a panel: from which density on a provider of ours wins."""
    if not ratios:
        return ""
    density, densest = wins_below(ratios)
    lost = any(ratio <= WINS for at, ratio in ratios if at < density)
    everywhere = "at most densities timed" if lost else "at all densities timed"
    what = "nowhere" if density == 0 else everywhere if densest else f"below {100 * density:.2g} %" + ", with gaps" * lost
    return f"{LINES[name][0]}: wins {what}"


def _lines(axes: Any, curve: Curve) -> dict[str, Any]:
    """Draw a line per provider, as times faster than dense; the lines by provider."""
    drawn = {}
    for name, (_, colour, style, width) in LINES.items():
        times = [(density, _times_faster(rows, name)) for density, rows in sorted(curve.points.items())]
        points = [(density, speedup) for density, speedup in times if speedup]
        if points:
            marker = "o" if name.startswith("ours") else None
            (drawn[name],) = axes.plot(*zip(*points), style, color=colour, linewidth=width, marker=marker, markersize=3.5)
    return drawn


def _times_faster(rows: dict[str, Row], name: str) -> float | None:
    """How many times faster than dense a provider is, by the ratios of paired rounds that the words are taken from."""
    row = rows.get(name if name.startswith("ours") else "ours")
    if row is None or "dense" not in row.ratios:
        return None
    times = row.ratios["dense"][1]
    if row.provider == name:
        return times
    return times / row.ratios[name][1] if name in row.ratios else None


def _apart(densities: list[float]) -> list[float]:
    """The densities that have room for a label on a logarithmic axis."""
    kept: list[float] = []
    for density in reversed(densities):
        if not kept or kept[-1] / density > 1.45:
            kept.append(density)
    return kept
