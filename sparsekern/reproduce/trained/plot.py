"""The figure of an experiment: accuracy of every point, with its seeds, and the paper's where it prints one."""

from __future__ import annotations

import textwrap
from pathlib import Path

from sparsekern.drawing import BLUE, RUST, new_figure, save
from sparsekern.reproduce.trained.experiment import Experiment, Results


def plot_results(experiment: Experiment, results: Results, path: str | Path, *, caption: str) -> None:
    """A PNG with one panel per ``Point.panel``: mean and range of the seeds against x, the accuracies told as open rings.

    Raises:
        ModuleNotFoundError: ``plot_results: matplotlib must be installed: pip install sparsekern[plots]``
    """
    panels = list(dict.fromkeys(result.point.panel for result in results.values()))
    figure = new_figure("plot_results", 4.6 * len(panels) + 0.6, 3.8)
    for axes, panel in zip(figure.subplots(1, len(panels), squeeze=False)[0], panels):
        shown = sorted((r for r in results.values() if r.point.panel == panel), key=lambda r: r.point.x)
        xs, means = [r.point.x for r in shown], [r.mean for r in shown]
        axes.plot(xs, means, color=BLUE, linewidth=1, zorder=2)
        for r in shown:
            axes.vlines(r.point.x, min(r.values), max(r.values), color=BLUE, linewidth=1.2, zorder=2)
        axes.plot(xs, means, color=BLUE, marker="o", markersize=4.5, linestyle="none", label="ours, mean and range", zorder=3)
        told = [(r.point.x, r.point.paper) for r in shown if r.point.paper is not None]
        if told:
            axes.plot(
                *zip(*told), color=RUST, marker="o", markersize=7, fillstyle="none", linestyle="none", label=experiment.told, zorder=3
            )
        if experiment.log_x:
            axes.set_xscale("log")
        axes.set_xlabel(experiment.xlabel, fontsize=8)
        axes.set_ylabel("accuracy", fontsize=8)
        axes.set_title(panel, fontsize=9)
        axes.grid(color="#e6e6e6", linewidth=0.6)
        axes.set_axisbelow(True)
        axes.tick_params(labelsize=7)
        axes.legend(fontsize=7, frameon=False, loc="best")
        for side in ("top", "right"):
            axes.spines[side].set_visible(False)
    figure.suptitle("\n".join([experiment.title, *textwrap.wrap(caption, 70 * len(panels))]), fontsize=8.5)
    save(figure, path)
