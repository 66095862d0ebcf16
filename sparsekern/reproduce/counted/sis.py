"""StochasticNet in StochasticNet, Tables 1 and 2: synapses by kind of layer, and the efficiency that follows from them.

The counts of the convolutional layers are one draw each of a random mask. What can be recomputed is their expected value, by how much
draws differ, and that a mask shared over input channels only makes multiples of what those channels have in common.
"""

from __future__ import annotations

import math
from fractions import Fraction
from typing import Any, NamedTuple

from sparsekern.profile.count import LayerCount
from sparsekern.reproduce.counted.cells import Cell, judge_draw
from sparsekern.reproduce.counted.recount import counted, make_cell, row_cells, table_data

TABLES = ("sis/cifar10", "sis/svhn")


class Draw(NamedTuple):
    """What a random mask of the convolutional layers can come to."""

    expected: int  # synapses
    sd: float
    divisor: int  # of every possible count


def cells(table: str) -> list[Cell]:
    """Every cell of ``table``; totals and efficiencies follow from the row's own printed draw.

    Cost:
        About a second.
    """
    data = table_data(table)
    synapses = {row["id"]: _synapses(row) for row in data["rows"]}
    dense_total = next(synapses[row["id"]]["total"] for row in data["rows"] if row["model"] == "sis_nin")

    def recount(row: dict) -> dict:
        return {**synapses[row["id"]], "eff": Fraction(dense_total, synapses[row["id"]]["total"])}

    rows = {f"{row['id']}/cl": row for row in data["rows"]}

    def as_draw(cell: Cell) -> Cell:
        row = rows[cell.id]
        return make_cell(row, "cl", cell.column, cell.printed, cell.recomputed, judge_draw(cell.printed or "", *draw_of(row)))

    return [as_draw(cell) if cell.id in rows else cell for cell in row_cells(data["rows"], data["columns"], recount)]


def draw_of(row: dict) -> Draw:
    """Mean, deviation and common divisor of the convolutional synapses, from the row's network and its twin without masks.

    A position (filter, ky, kx) of a layer with C input channels is kept with probability p for all of them: C synapses at once, so
    the variance is the sum of ``p * (1 - p) * positions * C^2`` over the layers.
    """
    expected, variance, channels = 0, Fraction(0), []
    for layer, dense in zip(_split(row["model"])[0], _split("sis_nin", t_p=row["mp_width"])[0]):
        filters, c, kh, kw = dense.weight_shape
        p = Fraction(layer.weights, dense.weights)
        expected += layer.weights
        variance += p * (1 - p) * filters * kh * kw * c**2
        channels.append(c)
    return Draw(expected, math.sqrt(variance), math.gcd(*channels))


def _synapses(row: dict) -> dict[str, int]:
    convs, micros = _split(row["model"])
    mp = sum(layer.weights for layer in micros)
    return {"cl": sum(layer.weights for layer in convs), "mp": mp, "total": int(row["printed"]["cl"]) + mp}


def _split(model: str, **options: Any) -> tuple[list[LayerCount], list[LayerCount]]:
    """The convolutional layers (CL) and the 1x1 layers of the multilayer perceptrons (MP)."""
    layers = counted(model, "sis", **options).layers
    spatial = ("conv1a", "conv2a", "conv3a")
    return [layer for layer in layers if layer.name in spatial], [layer for layer in layers if layer.name not in spatial]
