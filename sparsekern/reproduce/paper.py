"""The papers' printed cells and the exact integers behind them, kept as data in the folder ``data``."""

from __future__ import annotations

import json
from functools import cache
from importlib import resources


@cache
def paper_table(name: str) -> dict:
    """Load one table: its source, counting rule, column titles and rows. Do not write to what is returned.

    Example:
        >>> paper_table("deep_roots_nin")["columns"]["cpu_ms"]
        'CPU (ms)'
    """
    return json.loads(resources.files(__package__).joinpath("data").joinpath(f"{name}.json").read_text(encoding="utf-8"))


def paper_rows(name: str) -> list[dict]:
    """The rows of :func:`paper_table`: printed cells are strings, as printed; recomputed counts are integers.

    Example:
        >>> [row["row"] for row in paper_rows("deep_roots_nin")][:3]
        ['Orig.', 'root-2', 'root-4']
    """
    return paper_table(name)["rows"]
