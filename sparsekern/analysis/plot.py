"""Heat maps of covariances and correlations, bright where filters go together, as the paper's figures 6 and 10 to 13."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import torch
from torch import Tensor

from sparsekern.drawing import heat_map, new_figure, save

_ACROSS = 4  # maps side by side


def plot_heat_maps(
    maps: Mapping[str, Tensor], path: str | Path, *, axes: tuple[str, str] = ("filter", "filter"), shared_scale: bool = False
) -> None:
    """Draw the absolute values of one or more matrices into an image file.

    Args:
        maps: by title, ``[c1, c2]`` each, as ``LayerPair.whitened()`` or ``.correlation()``.
        axes: what the rows and the columns are.
        shared_scale: one scale of brightness for all maps, not one for each. A scale ends at the 99.9th percentile: single peaks, as
            the diagonal of a correlation matrix, would leave all else dark.

    Raises:
        ModuleNotFoundError: ``plot_heat_maps: matplotlib must be installed: pip install sparsekern[plots]``
    """
    if not maps:
        raise ValueError("plot_heat_maps: maps must be at least one; got none")
    values = {title: matrix.detach().cpu().double().abs() for title, matrix in maps.items()}
    tops = {title: _top(matrix) for title, matrix in values.items()}
    if shared_scale:
        tops = dict.fromkeys(tops, max(tops.values()))
    columns = min(_ACROSS, len(values))
    rows = -(-len(values) // columns)
    figure = new_figure("plot_heat_maps", 3.7 * columns, 3.4 * rows)
    grid = figure.subplots(rows, columns, squeeze=False).flatten()
    for place, (title, matrix) in zip(grid, values.items()):
        image = heat_map(
            place,
            matrix.numpy(),
            title=title,
            xlabel=axes[1],
            ylabel=axes[0],
            cmap="gray",
            vmin=0,
            vmax=tops[title],
            interpolation="nearest",
        )
        figure.colorbar(image, ax=place, shrink=0.8).ax.tick_params(labelsize=7)
    for place in grid[len(values) :]:
        place.set_axis_off()
    save(figure, path)


def _top(matrix: Tensor) -> float:
    flat = matrix.flatten().sort().values
    top = float(flat[min(len(flat) - 1, int(0.999 * len(flat)))]) if len(flat) else 0.0
    return top or float(torch.finfo(torch.float32).tiny)
