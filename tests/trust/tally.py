"""How many cases a test tried: pytest counts a test of a thousand drawn cases as one."""

from __future__ import annotations

import os


def tally(what: str, cases: int) -> None:
    """Note them for the table of ``tests/run.py``."""
    if path := os.environ.get("TEST_TALLY"):
        with open(path, "a") as file:
            file.write(f"{cases} {what}\n")
