"""One picture for a table of sparse networks: realised speedup against FLOP reduction."""

from __future__ import annotations

import string
import textwrap
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

COLORS = {"root": "#1b6ca8", "tree": "#2a7f62", "column": "#b5523b", "other": "#6b4c9a"}
MARKERS = {"root": "o", "tree": "^", "column": "s", "other": "D"}
GREY = "#8a8a8a"
LONGEST_NAME = 12  # characters that have room beside a point
LOG_FROM = 5.0  # axes are logarithmic where the reductions span more than this factor
TICKS = (0.25, 0.5, 1, 1.5, 2, 3, 4, 5, 6, 8, 10, 15, 20, 30, 50, 100, 200, 500)  # of logarithmic axes


@dataclass(frozen=True)
class Point:
    """One variant; each speedup is (p20, median, p80) over the best dense, or None where it was not measured."""

    label: str
    family: str  # root, tree, column or other
    flop_reduction: float
    ours: tuple[float, float, float] | None
    torch: tuple[float, float, float] | None  # the variant through torch, fastest way
    paper: float | None  # the paper's own CPU times


def plot_speedups(
    points: Sequence[Point], path: str | Path, *, title: str, caption: Sequence[str], role: str = "grouped", of: str = "whole model"
) -> None:
    """Draw ``points``, at least one, into a PNG file.

    Raises:
        ModuleNotFoundError: ``plot_speedups: matplotlib must be installed: pip install sparsekern[plots]``
    """
    try:
        from matplotlib.backends.backend_agg import FigureCanvasAgg
        from matplotlib.figure import Figure
    except ModuleNotFoundError as missing:
        raise ModuleNotFoundError(
            "plot_speedups: matplotlib must be installed: pip install sparsekern[plots]", name=missing.name
        ) from missing

    names, key = _names(points)
    lines = [line for text in [*key, *caption] for line in textwrap.wrap(text, 150)]
    below_in = 0.75 + 0.15 * len(lines)  # axis labels, then the caption
    height_in = 0.5 + 4.75 + below_in
    figure = Figure(figsize=(9.0, height_in), dpi=150)
    FigureCanvasAgg(figure)
    axes = figure.add_axes((0.08, below_in / height_in, 0.89, 4.75 / height_in))
    (left, right), (low, high) = _limits(axes, points)
    ends = min(left, low), max(right, high)
    axes.plot(ends, ends, color="black", linewidth=0.9, zorder=1)
    axes.axhline(1.0, color="black", linewidth=0.9, linestyle=(0, (1, 2)), zorder=1)

    for point, name in zip(points, names, strict=True):
        style: dict[str, Any] = {"marker": MARKERS[point.family], "linestyle": "none", "zorder": 3}
        color = COLORS[point.family]
        if point.paper:
            axes.plot(point.flop_reduction, point.paper, markersize=5, color=GREY, fillstyle="none", **style)
        if point.torch:
            _whisker(axes, point.flop_reduction, point.torch, color)
            axes.plot(point.flop_reduction, point.torch[1], markersize=7, color=color, markerfacecolor="white", **style)
        if point.ours:
            _whisker(axes, point.flop_reduction, point.ours, color)
            axes.plot(point.flop_reduction, point.ours[1], markersize=8, color=color, **style)
            _name(axes, point, name, color)

    axes.set_xlim(left, right)
    axes.set_ylim(low, high)
    axes.set_xlabel(f"FLOP reduction, {of} (FLOPs of the dense twin / FLOPs of the variant)")
    axes.set_ylabel(f"realised speedup over the best dense, {of}")
    axes.grid(color="#e6e6e6", linewidth=0.7, zorder=0)
    axes.set_axisbelow(True)
    for side in ("top", "right"):
        axes.spines[side].set_visible(False)
    _legend(axes, points, role)
    figure.text(0.08, 1 - 0.3 / height_in, title, fontsize=11, fontweight="bold")
    small: dict[str, Any] = {"fontsize": 7, "va": "top", "color": "#444444", "linespacing": 1.35}
    figure.text(0.08, (below_in - 0.65) / height_in, "\n".join(lines), **small)
    figure.savefig(path)


def _names(points: Sequence[Point]) -> tuple[list[str], list[str]]:
    """What stands beside each point, and the lines that explain it: labels, or letters where labels would overlap."""
    labels = [point.label for point in points]
    if max(map(len, labels)) <= LONGEST_NAME:
        return labels, []
    letters = [string.ascii_letters[i] if i < 52 else str(i) for i in range(len(labels))]
    return letters, ["; ".join(f"{letter}: {label}" for letter, label in zip(letters, labels, strict=True)) + "."]


def _limits(axes: Any, points: Sequence[Point]) -> tuple[tuple[float, float], tuple[float, float]]:
    """(left, right), (low, high): all of the points, and on the speedup axis 1 and the largest FLOP reduction too."""
    reductions = [point.flop_reduction for point in points]
    values = [v for p in points for s in (p.ours, p.torch) if s for v in s] + [p.paper for p in points if p.paper]
    if max(reductions) > LOG_FROM * min(reductions):
        from matplotlib.ticker import FixedLocator, FuncFormatter, NullLocator

        axes.set_xscale("log")
        axes.set_yscale("log")
        for axis in (axes.xaxis, axes.yaxis):
            axis.set_major_locator(FixedLocator(TICKS))
            axis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
            axis.set_minor_locator(NullLocator())
        left, right = min(reductions) / 1.3, max(reductions) * 1.3
        return (left, right), (min([1.0, *values]) / 1.15, max([right, *values]) * 1.15)
    margin = max(0.02, 0.1 * (max(reductions) - min(reductions)))
    left, right = min(reductions) - margin, max(reductions) + margin
    return (left, right), (min([1.0, *values]) - 0.1, max([right, *values]) + 0.1)


def _name(axes: Any, point: Point, name: str, color: str) -> None:
    """Variants of one degree stand close together, in the order root, column, tree: name left, above and right."""
    from matplotlib.patheffects import withStroke

    drawn = [speedup for speedup in (point.ours, point.torch) if speedup]
    middle, top = drawn[0][1], max(speedup[2] for speedup in drawn)
    y, dx, dy, align = {
        "root": (middle, -7, 4, "right"),
        "column": (top, 0, 5, "center"),
        "tree": (middle, 7, -11, "left"),
        "other": (middle, -7, 4, "right"),
    }[point.family]
    at, offset = (point.flop_reduction, y), (dx, dy)
    halo = [withStroke(linewidth=2.5, foreground="white")]  # the diagonal runs through some of the names
    style = {"fontsize": 8.5, "color": color, "path_effects": halo, "zorder": 4}
    axes.annotate(name, at, offset, textcoords="offset points", ha=align, **style)


def _whisker(axes: Any, x: float, speedup: tuple[float, float, float], color: str) -> None:
    axes.plot([x, x], [speedup[0], speedup[2]], color=color, linewidth=1.0, alpha=0.6, zorder=2)


def _legend(axes: Any, points: Sequence[Point], role: str) -> None:
    from matplotlib.lines import Line2D

    def key(label: str, marker: str, color: str, **style: Any) -> Line2D:
        return Line2D([], [], marker=marker, color=color, linestyle="none", label=label, **style)

    families = [family for family in COLORS if any(point.family == family for point in points)]
    handles = []
    if any(point.ours for point in points):
        labels = {family: "ours" if family == "other" else f"ours, {family}" for family in families}
        handles += [key(labels[family], MARKERS[family], COLORS[family], markersize=8) for family in families]
    marker = MARKERS[families[0]] if len(families) == 1 else "o"
    if any(point.torch for point in points):
        handles.append(key(f"torch {role}, best (white inside)", marker, "#444444", markersize=7, markerfacecolor="white"))
    if any(point.paper for point in points):
        handles.append(key("the paper's CPU times", marker, GREY, markersize=5, fillstyle="none"))
    handles.append(Line2D([], [], color="black", linewidth=0.9, label="speedup = FLOP reduction"))
    handles.append(Line2D([], [], color="black", linewidth=0.9, linestyle=(0, (1, 2)), label="best dense"))
    axes.legend(handles=handles, loc="upper left", frameon=False, fontsize=8.5)
