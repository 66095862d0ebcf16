"""Characterizing Sparse Connectivity Patterns (arXiv 1711.02131): Tables 1 and 2, and the numbers of the text."""

from __future__ import annotations

from fractions import Fraction
from typing import Any

import torch
from torch import nn

from sparsekern.models import create_model
from sparsekern.profile.count import Count
from sparsekern.reproduce.counted.cells import Cell, Value
from sparsekern.reproduce.counted.recount import Counts, claim_cell, counted, percent, row_cells, table_data
from sparsekern.topology.scatter import scatter

TABLES = ("patterns/densities", "patterns/savings")


def cells(table: str) -> list[Cell]:
    """Every cell of ``table``, and with the first the numbers of the text.

    Cost:
        About a second.
    """
    data = table_data(table)
    recount = _densities if table == "patterns/densities" else _savings
    found = row_cells(data["rows"], data["columns"], recount)
    claims = data.get("claims", [])
    values = _text(data) if claims else {}
    return found + [claim_cell(claim, values.get(claim["id"])) for claim in claims]


def _densities(row: dict) -> Counts:
    junctions = _junctions(_count(row))
    weights = tuple(w for _, _, w in junctions)
    return {
        "densities": tuple(percent(w, left * right) for left, right, w in junctions),
        "overall": percent(sum(weights), _full(junctions)),
        "fan_in": tuple(w // right if w % right == 0 else Fraction(w, right) for _, right, w in junctions),
        "weights": weights,
    }


def _savings(row: dict) -> dict[str, Any]:
    found = _count(row)
    junctions = _junctions(found)
    fc, sparse = _full(junctions), sum(w for _, _, w in junctions)
    conv_params, conv_ops = found.params - sparse, found.flops - sparse
    return {
        "layers": _layers(row),
        "conv_params": conv_params,
        "conv_ops": conv_ops,
        "fc": fc,
        "sparse": sparse,
        "param_red": percent(fc - sparse, conv_params + fc),
        "op_red": percent(fc - sparse, conv_ops + fc),
    }


def _layers(row: dict) -> tuple[int, int]:
    """Junctions, and all layers as the paper counts them: convolutions, batch-norms, poolings and junctions."""
    junctions = len(row["options"]["fan_out"])
    modules = list(create_model(row["model"], **_options(row)).modules())
    others = sum(isinstance(m, nn.BatchNorm2d | nn.MaxPool2d) for m in modules)
    return junctions, others + len(_count(row).layers)


def _text(data: dict) -> dict[str, Value]:
    cifar, mnist, morse = (
        _savings({"model": model, "options": {"fan_out": fan_out}})
        for model, fan_out in (("cifar10_conv_2cl", (1, 1)), ("mnist_conv_2cl", (16, 10)), ("morse_cl", (512, 32)))
    )
    left, whole = mnist["conv_params"] + mnist["sparse"], mnist["conv_params"] + mnist["fc"]
    example = data["scatter"]
    tables = [torch.tensor(example[key]) for key in ("inputs_of_hidden", "inputs_of_output")]
    spread = scatter(tables, example["layers"][:2])
    return {
        "dey/text/FC": cifar["fc"],
        "dey/text/sparse": cifar["sparse"],
        "dey/text/457x": Fraction(cifar["fc"], cifar["sparse"]),
        "dey/text/450x": Fraction(cifar["fc"], cifar["sparse"]),
        "dey/text/20x": Fraction(whole, left),
        "dey/text/0.11M": left,
        "dey/text/4.37": percent(left, whole),
        "dey/text/morse FC": morse["fc"],
        "dey/text/morse sparse": morse["sparse"],
        # 12.5 % of (784, 224, 10) takes 28 edges per input and 1.25 per hidden neuron: no fixed fan-out, so by the sizes alone
        "dey/text/equal": tuple(int(density * (784 * x + x * 10)) for x, density in ((224, 0.125), (112, 0.25), (56, 0.5), (28, 1.0))),
        "dey/scatter/S1f": Fraction(spread.vector[0]),
        "dey/scatter/S": Fraction(spread.value),
    }


def _junctions(found: Count) -> list[tuple[int, int, int]]:
    """``(N_left, N_right, weights)`` of each connected layer."""
    return [(layer.in_shape[-1], layer.out_shape[-1], layer.weights) for layer in found.layers if not layer.is_conv]


def _full(junctions: list[tuple[int, int, int]]) -> int:
    return sum(left * right for left, right, _ in junctions)


def _count(row: dict) -> Count:
    return counted(row["model"], "patterns", **_options(row))


def _options(row: dict) -> dict:
    return {"fan_out": tuple(row["options"]["fan_out"])}
