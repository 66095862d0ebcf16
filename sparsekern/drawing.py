"""One way to open a figure: matplotlib, if it is there, without touching the caller's own figures or backend."""

from __future__ import annotations

from pathlib import Path
from typing import Any

INK, GREY, BLUE, RUST = "#222222", "#8a8a8a", "#1b6ca8", "#b5523b"


def new_figure(op: str, width_in: float, height_in: float) -> Any:
    """A matplotlib figure that draws into files alone.

    Raises:
        ModuleNotFoundError: ``plot_scatter: matplotlib must be installed: pip install sparsekern[plots]``
    """
    try:
        from matplotlib.backends.backend_agg import FigureCanvasAgg
        from matplotlib.figure import Figure
    except ModuleNotFoundError as missing:
        raise ModuleNotFoundError(f"{op}: matplotlib must be installed: pip install sparsekern[plots]", name=missing.name) from missing
    figure = Figure(figsize=(width_in, height_in), dpi=150, layout="constrained")
    FigureCanvasAgg(figure)
    return figure


def save(figure: Any, path: str | Path) -> None:
    figure.savefig(path, metadata={"Software": None} if str(path).endswith(".png") else None)


def heat_map(axes: Any, matrix: Any, *, title: str, xlabel: str, ylabel: str, **options: Any) -> Any:
    """``matrix [rows, columns]``, row 0 on top, stretched to the axes; axes count from 0, few ticks, no grid."""
    image = axes.imshow(matrix, aspect="auto", **options)
    axes.set_title(title, fontsize=9)
    axes.set_xlabel(xlabel, fontsize=8)
    axes.set_ylabel(ylabel, fontsize=8)
    axes.tick_params(labelsize=7)
    for axis, size in ((axes.xaxis, matrix.shape[1]), (axes.yaxis, matrix.shape[0])):
        if size == 1:
            axis.set_ticks([0])
        else:
            axis.get_major_locator().set_params(integer=True)
    return image
