"""Draws cases and holds each: the same ones for the same seed."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import hypothesis
from hypothesis import HealthCheck, given, settings
from hypothesis.strategies import SearchStrategy
from trust.tally import tally


def drawn(name: str, cases: SearchStrategy[Any], hold: Callable[[Any], None], count: int, seed: int) -> None:
    """``count`` of ``cases``, each given to ``hold``; a failure is shrunk, and all are counted."""
    tried = []

    @hypothesis.seed(seed)
    @settings(max_examples=count, deadline=None, database=None, suppress_health_check=list(HealthCheck), print_blob=False)
    @given(case=cases)
    def every(case):
        tried.append(1)
        hold(case)

    try:
        every()
    finally:
        tally(f"{name}, drawn", len(tried))
