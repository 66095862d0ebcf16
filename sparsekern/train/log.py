"""What a training leaves behind beside its checkpoint: a table for other programs, and curves for people."""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

from sparsekern.drawing import BLUE, RUST, new_figure, save
from sparsekern.train.checkpoint import write_whole

COLUMNS = ("epoch", "steps", "rate", "train_loss", "train_accuracy", "val_loss", "val_accuracy", "seconds", "samples_per_s")


def write_log(out: Path, facts: Mapping[str, Any], rows: Sequence[Mapping[str, Any]]) -> None:
    """``log.csv`` with a line per epoch, and ``log.json`` with the same and what was trained. Rewritten whole: no epoch is in it twice."""
    text = io.StringIO()
    writer = csv.DictWriter(text, COLUMNS, lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    document = json.dumps({**facts, "epochs": list(rows)}, indent=1) + "\n"
    for name, content in (("log.csv", text.getvalue()), ("log.json", document)):
        write_whole(out / name, partial(_write_text, content))


def _write_text(content: str, file: str) -> None:
    Path(file).write_text(content, encoding="utf-8")


def plot_curves(path: str | Path, rows: Sequence[Mapping[str, Any]], *, title: str) -> None:
    """Loss and accuracy against epochs, of training and validation.

    Raises:
        ModuleNotFoundError: ``plot_curves: matplotlib must be installed: pip install sparsekern[plots]``
    """
    figure = new_figure("plot_curves", 8.0, 3.2)
    epochs = [row["epoch"] for row in rows]
    for axes, what in zip(figure.subplots(1, 2), ("loss", "accuracy")):
        for split, colour in (("train", BLUE), ("val", RUST)):
            axes.plot(epochs, [row[f"{split}_{what}"] for row in rows], color=colour, marker="o", markersize=3, label=split)
        axes.set_xlabel("epoch", fontsize=8)
        axes.set_title(what, fontsize=9)
        axes.tick_params(labelsize=7)
        axes.legend(fontsize=7, frameon=False)
        for side in ("top", "right"):
            axes.spines[side].set_visible(False)
    figure.suptitle(title, fontsize=9)
    save(figure, path)
