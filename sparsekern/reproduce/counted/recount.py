"""From a table's data to its judged cells: every paper's recount goes through here.

A row of the data holds ``printed`` (column to text, exactly as printed, or null), ``status`` (what each cell is expected to be),
``reason`` where there is one, and the integers that the recount must give: in ``counts``, or in the row itself. A column named
``flops_1e9`` prints the count ``flops`` in units of 10^9.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from fractions import Fraction
from functools import cache
from typing import Any

import torch

from sparsekern.models import create_model, model_card
from sparsekern.profile.count import Count, count
from sparsekern.reproduce.counted.cells import Cell, Number, Value, judge
from sparsekern.reproduce.paper import paper_table

Counts = Mapping[str, Value]  # key of a column to what was counted


@cache
def counted(model: str, convention: str, **options: Any) -> Count:
    """Count a registered model on the meta device: sizes alone, nothing allocated.

    Example:
        >>> counted("nin", "deep_roots").flops
        222487946
    """
    with torch.device("meta"):
        built = create_model(model, **options)
    return count(built, model_card(model).input_shape, convention)


def table_data(table: str) -> dict:
    """The data of ``"deep-roots/nin"``."""
    return paper_table(table.replace("-", "_").replace("/", "_"))


def row_cells(rows: list[dict], columns: Mapping[str, str], recount: Callable[[dict], Counts], *, padded: bool = False) -> list[Cell]:
    """Judge every cell of ``rows``.

    Args:
        rows: of the data.
        columns: their titles by key.
        recount: what is counted for a row, by key without the unit; keys it leaves out are printed only.
        padded: see :func:`~sparsekern.reproduce.counted.cells.judge`.
    """
    counts = {row["id"]: recount(row) for row in rows}
    cells = []
    for row in rows:
        for column, text in row["printed"].items():
            key, unit = key_and_unit(column)
            found = counts[row["id"]].get(key)
            others = {
                other["row"]: value
                for other in rows
                if other is not row and isinstance(value := counts[other["id"]].get(key), int | float | Fraction)
            }
            verdict = judge(text, in_units(found, unit), padded=padded, column=others)
            cells.append(make_cell(row, key, columns[column], text, found, verdict))
    return cells


def make_cell(row: dict, key: str, column: str, text: str | None, found: Value | None, verdict: tuple[str, str]) -> Cell:
    """A :class:`Cell` with what the data expects of it; ``verdict`` is the judge's status and evidence."""
    status, shown = verdict
    reason = "; ".join(filter(None, (shown, row.get("reason", {}).get(key))))
    known = row.get("counts", row).get(key)
    known = tuple(known) if isinstance(known, list) else known
    return Cell(f"{row['id']}/{key}", row["row"], column, text, found, status, reason, row["status"][key], known)


def claim_cell(claim: dict, found: Value | None, verdict: tuple[str, str] | None = None) -> Cell:
    """The cell of a number in the text."""
    status, shown = verdict or judge(claim["printed"], found)
    reason = "; ".join(filter(None, (shown, claim.get("reason"))))
    known = claim.get("counts")
    known = tuple(known) if isinstance(known, list) else known
    return Cell(
        claim["id"], claim["row"], claim["column"], claim["printed"], found, status, reason, claim["status"], known, claim["where"]
    )  # fmt: skip


def key_and_unit(column: str) -> tuple[str, int]:
    """What a column counts, and in which unit.

    Example:
        >>> key_and_unit("flops_1e9"), key_and_unit("cpu_ms")
        (('flops', 1000000000), ('cpu_ms', 1))
    """
    key, _, power = column.partition("_1e")
    return key, 10 ** int(power or 0)


def in_units(value: Value | None, unit: int) -> Value | None:
    """``value / unit``, exactly; several numbers are printed in no unit."""
    if value is None or isinstance(value, tuple) or unit == 1:
        return value
    return Fraction(value) / unit


def percent(part: Number, whole: Number) -> Fraction:
    return Fraction(100) * Fraction(part) / Fraction(whole)
