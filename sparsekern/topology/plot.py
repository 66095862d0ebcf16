"""Pictures of a topology: adjacency matrices, window matrices, bars of scatter."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

from torch import Tensor

from sparsekern.drawing import BLUE, GREY, RUST, heat_map, new_figure, save
from sparsekern.topology.junctions import as_junctions, path_counts
from sparsekern.topology.scatter import Scatter, window_matrices
from sparsekern.topology.windows import Shape


def plot_adjacency(junctions: Sequence[Tensor], sizes: Sequence[Shape] | None, path: str | Path) -> None:
    """Draw the adjacency matrix of each junction and, for more than one, the path counts from input to output, into an image file.

    Args:
        junctions, sizes: as for :func:`~sparsekern.topology.scatter`.

    Raises:
        ValueError: ``plot_adjacency: sizes must be one per junction, 2, or one per layer; got 1``
        ModuleNotFoundError: ``plot_adjacency: matplotlib must be installed: pip install sparsekern[plots]``
    """
    matrices = [junction.dense() for junction in as_junctions(junctions, sizes, "plot_adjacency")]
    names = [f"junction {i + 1}" for i in range(len(matrices))]
    if len(matrices) > 1:
        matrices.append(path_counts(junctions, sizes))
        names.append(f"paths, junctions 1:{len(junctions)}")
    figure = new_figure("plot_adjacency", 3.6 * len(matrices), 3.9)
    for i, (axes, matrix, name) in enumerate(zip(figure.subplots(1, len(matrices), squeeze=False)[0], matrices, names)):
        counts, title = i == len(junctions), f"{name}: {int((matrix > 0).sum())} of {matrix.numel()}"
        image = heat_map(
            axes, matrix.cpu().numpy(), title=title, xlabel="left neuron", ylabel="right neuron",
            cmap="viridis" if counts else "Greys", vmin=0, vmax=None if counts else 1,
        )  # fmt: skip
        if counts:
            figure.colorbar(image, ax=axes, shrink=0.8).ax.tick_params(labelsize=7)
    save(figure, path)


def plot_windows(junctions: Sequence[Tensor], sizes: Sequence[Shape], path: str | Path) -> None:
    """Draw the window matrices of each junction and of the equivalent one: entries over the ideal, white at the ideal number.

    Blue cells got more than their share, red ones less; the scatter counts the cells with at least one connection.

    Args:
        junctions, sizes: as for :func:`~sparsekern.topology.scatter`.
    """
    windows = window_matrices(junctions, sizes)
    figure = new_figure("plot_windows", 3.6 * len(windows) + 0.8, 6.6)
    grid = figure.subplots(2, len(windows), squeeze=False)
    for i, one in enumerate(windows):
        name = f"junction {i + 1}" if i < len(junctions) else f"junctions 1:{len(junctions)}"
        forward, backward = (f"{score:.3f}" for score in one.scatter())
        image = heat_map(
            grid[0][i], (one.left / one.ideal_left).cpu().numpy(), title=f"{name}, left windows: {one.left.shape[1]}, $S_f$ = {forward}",
            xlabel="left window", ylabel="right neuron", cmap="RdBu", vmin=0, vmax=2,
        )  # fmt: skip
        heat_map(
            grid[1][i], (one.right / one.ideal_right).cpu().numpy(), title=f"right windows: {one.right.shape[0]}, $S_b$ = {backward}",
            xlabel="left neuron", ylabel="right window", cmap="RdBu", vmin=0, vmax=2,
        )  # fmt: skip
    bar = figure.colorbar(image, ax=grid, shrink=0.6, extend="max")
    bar.set_label("connections (paths) / ideal number", fontsize=8)
    bar.ax.tick_params(labelsize=7)
    save(figure, path)


def plot_scatter(scatters: Mapping[str, Scatter], path: str | Path) -> None:
    """Draw the scatter vectors of some topologies as bars; the smallest entry of each, its scatter, is red.

    Args:
        scatters: by name; one row of bars each.
    """
    if not scatters:
        raise ValueError("plot_scatter: scatters must be at least one; got none")
    longest = max(len(one.vector) for one in scatters.values())
    figure = new_figure("plot_scatter", max(4.2, 0.55 * longest + 2.2), 1.35 * len(scatters) + 0.5)
    rows = figure.subplots(len(scatters), 1, squeeze=False)[:, 0]
    for axes, (name, one) in zip(rows, scatters.items()):
        lowest = one.vector.index(one.value)
        labels = [f"${name[:2]}{{{name[2:]}}}$" for name in one.names]  # S_1f with a subscript
        bars = axes.bar(labels, one.vector, color=[RUST if i == lowest else BLUE for i in range(len(one.vector))], width=0.6)
        axes.bar_label(bars, fmt="%.3g", fontsize=7, padding=1)
        axes.set_ylim(0, 1.18)
        axes.set_yticks([0, 0.5, 1])
        axes.axhline(1, color=GREY, linewidth=0.7, linestyle=(0, (1, 2)))
        axes.tick_params(labelsize=7)
        axes.set_title(f"{name}: S = {one.value:.3f}", fontsize=9, loc="left")
        axes.spines[["top", "right"]].set_visible(False)
    save(figure, path)
