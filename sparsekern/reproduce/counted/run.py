"""The part of ``sparsekern reproduce`` that times nothing: recount, judge, print, write JSON."""

from __future__ import annotations

import json
import os
import time
from fractions import Fraction
from pathlib import Path
from typing import TYPE_CHECKING, Any

from sparsekern.console import open_console
from sparsekern.reproduce.counted import deep_roots, patterns, simplenet, sis
from sparsekern.reproduce.counted.cells import STATUSES, Cell, Value
from sparsekern.reproduce.counted.recount import table_data

if TYPE_CHECKING:
    from rich.console import Console

PAPERS = {"deep-roots": deep_roots, "sis": sis, "simplenet": simplenet, "patterns": patterns}


def table_cells(table: str) -> list[Cell]:
    """Every cell of a table, recounted and judged.

    Example:
        >>> [cell.status for cell in table_cells("sis/svhn") if cell.id.endswith("/eff")]
        ['exact', 'off by 0.01', 'exact', 'off by 0.01']
    """
    return PAPERS[table.partition("/")[0]].cells(table)


def run_counted(name: str, tables: list[str], out: Path, json_path: Path | None = None) -> int:
    """Print ``tables`` and write their cells; 0 if every cell is as expected, else 1.

    Args:
        name: of the run, for its file: ``"deep-roots/nin"``, or ``"all"``.
        tables: names of tables; several end in a summary.
        out: folder of ``<name>_counts.json``, made where it is missing.
        json_path: the file instead.
    """
    found = show_tables(tables)
    path = Path(json_path or Path(out) / f"{name.replace('-', '_').replace('/', '_')}_counts.json")
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(counts_json(found), indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
    _console().print(f"cells: {path}", soft_wrap=True)
    return 0 if all_ok(found) else 1


def show_tables(tables: list[str]) -> dict[str, list[Cell]]:
    """Recount and print; the cells by table."""
    from sparsekern.reproduce.counted.table import cells_table, summary_table

    console = _console()
    found: dict[str, list[Cell]] = {}
    seconds: dict[str, float] = {}
    for table in tables:
        begin = time.perf_counter()
        found[table] = table_cells(table)
        seconds[table] = time.perf_counter() - begin
        for part in cells_table(table_data(table), found[table], console.width):
            console.print(part)
    if len(tables) > 1:
        console.print(summary_table(found, seconds))
    return found


def all_ok(found: dict[str, list[Cell]]) -> bool:
    return all(cell.ok for cells in found.values() for cell in cells)


def _console() -> Console:
    console = open_console()
    # A pipe has no width of its own: then what the widest table needs.
    console.width = max(100, console.width) if console.is_terminal or "COLUMNS" in os.environ else 160
    return console


def counts_json(found: dict[str, list[Cell]]) -> dict[str, Any]:
    """Cells as plain data, ready for ``json.dump``."""
    documents = []
    for table, cells in found.items():
        data = table_data(table)
        documents.append({"table": table, "source": data["source"], "rule": data["rule"], "cells": [_plain(cell) for cell in cells]})
    return {"statuses": STATUSES, "tables": documents}


def _plain(cell: Cell) -> dict[str, Any]:
    return {
        "id": cell.id,
        "row": cell.row,
        "column": cell.column,
        "where": cell.where,
        "printed": cell.printed,
        "recomputed": _number(cell.recomputed),
        "status": cell.status,
        "expected": cell.expected,
        "ok": cell.ok,
        "reason": cell.reason,
    }


def _number(value: Value | None) -> Any:
    if isinstance(value, tuple):
        return [_number(one) for one in value]
    if isinstance(value, Fraction):
        return value.numerator if value.denominator == 1 else round(float(value), 6)
    return value
