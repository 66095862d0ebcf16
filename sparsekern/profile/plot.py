"""A profile as a picture: the slowest layers as bars, and all of them under the roofline."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from sparsekern import drawing
from sparsekern.profile.layers import Profile
from sparsekern.profile.tree import Node, build_tree

SHOWN = 20  # layers that get a bar


def write_plot(found: Profile, path: str | Path) -> None:
    """Draw into a file of any format that matplotlib knows by its ending.

    Raises:
        ModuleNotFoundError: ``profile: matplotlib must be installed: pip install sparsekern[plots]``
    """
    nodes = [node for _, node in build_tree(found).walk() if node.layer]
    slowest = sorted(nodes, key=lambda node: -node.total_ms)[:SHOWN]
    figure = drawing.new_figure("profile", 11, max(4.2, 1.4 + 0.24 * len(slowest)))
    left, right = figure.subplots(1, 2)
    _bars(left, slowest, len(nodes))
    _roofline(right, found, nodes)
    card = found.machine
    mode = "forward and backward" if found.backward_ms is not None else "forward"
    figure.suptitle(
        f"{found.model} on {'x'.join(map(str, found.in_shape))}, {mode}: {found.total_ms:.4g} ms, {found.threads} thread(s), "
        f"{card.get('cpu')}, torch {card.get('torch')}",
        fontsize=9,
    )
    drawing.save(figure, path)


def _color(node: Node) -> str:
    return drawing.BLUE if node.speedup else drawing.GREY


def _bars(axes: Any, slowest: list[Node], count: int) -> None:
    rows = range(len(slowest))
    dense = [node.total_ms * (node.speedup or 0.0) for node in slowest]
    if any(dense):
        axes.barh(rows, dense, height=0.8, color="#c9dcea", label="its dense twin")
    axes.barh(rows, [node.ms for node in slowest], height=0.5, color=[_color(node) for node in slowest])
    if any(node.backward_ms for node in slowest):
        backward = [node.backward_ms or 0.0 for node in slowest]
        axes.barh(rows, backward, left=[node.ms for node in slowest], height=0.5, color="#c8843c", label="backward")
    own = max((node.total_ms for node in slowest), default=1.0)
    axes.set_xlim(0, 1.05 * max(own, min(3 * own, max(dense, default=0.0))))  # a slow twin may leave the picture
    axes.set_yticks(rows, [node.path for node in slowest], fontsize=7)
    axes.invert_yaxis()
    axes.set_xlabel("ms; blue: sparse layers", fontsize=8)
    axes.set_title("where the time goes" if count <= SHOWN else f"the {SHOWN} slowest of {count} layers", fontsize=9)
    axes.tick_params(labelsize=7)
    if axes.get_legend_handles_labels()[0]:
        axes.legend(fontsize=7, frameon=False)


def _roofline(axes: Any, found: Profile, nodes: list[Node]) -> None:
    dots = [node for node in nodes if node.flops and node.total_ms]
    peak, threads = found.roof.gflops * found.threads, found.threads
    axes.set_xscale("log")
    axes.set_yscale("log")
    if dots:
        sizes = [12 + 300 * node.total_ms / found.total_ms for node in dots]
        points = [node.intensity for node in dots], [node.gflops for node in dots]
        axes.scatter(*points, s=sizes, c=[_color(node) for node in dots], alpha=0.75, edgecolors="white", linewidths=0.5)
    rates = [("memory", found.roof.read_gbytes, "-"), ("cache", found.roof.cache_gbytes, "--")]
    ends = [node.intensity for node in dots] + [peak / (found.roof.read_gbytes * threads)]
    low, high = min(ends) / 2, max(ends) * 3
    for name, rate, style in rates:
        if rate:
            knee = peak / (rate * threads)
            line = [min(low, knee), knee, high]
            axes.plot(
                line, [line[0] * rate * threads, peak, peak], style, color=drawing.RUST, lw=1, label=f"{name}, {rate * threads:.0f} GB/s"
            )
    axes.set_xlim(low, high)
    axes.set_xlabel("FLOP per byte", fontsize=8)
    axes.set_ylabel("GF/s", fontsize=8)
    axes.set_title(f"roofline: {peak:.0f} GF/s measured; area of a dot: its time", fontsize=9)
    axes.tick_params(labelsize=7)
    axes.grid(alpha=0.25)
    axes.legend(fontsize=7, frameon=False, loc="lower right")
