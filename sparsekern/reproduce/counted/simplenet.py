"""SimpleNet (arXiv 1608.06037): Table 1, the sizes of Tables 2 and 6, and the appendix table of operations.

Only the authors' own networks are counted live. Rows of other networks are data: their counts come from the public presets of the
tool that the paper used, and are judged like any other.
"""

from __future__ import annotations

from fractions import Fraction

from torch import nn

from sparsekern.profile.count import Count
from sparsekern.reproduce.counted.cells import Cell
from sparsekern.reproduce.counted.recount import Counts, counted, row_cells, table_data

TABLES = ("simplenet/archs", "simplenet/flops")
MIB = 2**20


def cells(table: str) -> list[Cell]:
    """Every cell of ``table``.

    Cost:
        About a second.
    """
    data = table_data(table)

    def recount(row: dict) -> Counts:
        if "model" not in row:
            return row["counts"]
        return _operations(row["model"]) if table == "simplenet/flops" else _sizes(row["model"])

    return row_cells(data["rows"], data["columns"], recount, padded=data["padded"])


def _sizes(model: str) -> Counts:
    found = _count(model)
    return {"params": found.synapses, "ops": found.macs, "storage": Fraction(found.operations["size_with_biases_bytes"], MIB)}


def _operations(model: str) -> Counts:
    found = _count(model)
    done = found.operations
    return {
        "MACC": found.macs,
        "COMP": done["comp"],
        "ADD": done["add"],
        "DIV": done["div"],
        "EXP": done["exp"],
        "Activations": done["activations"],
        "Params": sum(layer.params for layer in found.layers),
        "SIZE(MB)": Fraction(done["size_with_biases_bytes"], MIB),
    }


def _count(model: str) -> Count:
    # The table leaves batch-norm out. torch's convolution keeps every ReLU where the published files have it: behind pool4.
    return counted(model, "netscope", batch_norm=False, conv=nn.Conv2d)
