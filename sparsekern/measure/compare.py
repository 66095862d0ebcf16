"""Two runs against each other, and one run against what it promised.

Times of two runs differ by the machine's mood; ratios to rivals that were timed in the same rounds do not. So
:func:`compare` reads times and is for two runs on one machine; :func:`check` reads ratios and is for any.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from sparsekern.measure.floors import floors_of
from sparsekern.measure.protocol import judge
from sparsekern.measure.rows import Key, Row

VERDICTS = {"faster": "FAST", "slower": "SLOW", "same": "SAME", "ambiguous": "AMBG"}


@dataclass(frozen=True)
class Comparison:
    """One measurement in two runs: ``b`` took ``ratio`` times less time than ``a``."""

    key: Key
    a_us: float
    b_us: float
    verdict: str  # of b: FAST, SLOW, SAME or AMBG (no winner)

    @property
    def ratio(self) -> float:
        return self.a_us / self.b_us


def compare(a: Iterable[Row], b: Iterable[Row]) -> tuple[list[Comparison], list[tuple]]:
    """Compare the rows that both runs have.

    Returns:
        comparisons in the order of ``a``, and the keys that only one run has (or where one could not run).

    Raises:
        ValueError: ``compare: a must hold a measurement once; got <case, mode, cache, threads, provider> twice``
    """
    first, second = _by_key("compare: a", a), _by_key("compare: b", b)
    both = [
        Comparison(key, row.interval_us[1], second[key].interval_us[1], VERDICTS[judge(second[key].interval_us, row.interval_us)])
        for key, row in first.items()
        if key in second
    ]
    return both, [key for key in [*first, *second] if (key in first) != (key in second)]


def _by_key(who: str, rows: Iterable[Row]) -> dict[Key, Row]:
    """The rows that were measured; of two of one key, neither is the one to take."""
    found: dict[Key, Row] = {}
    for row in rows:
        if row.p50_us and found.setdefault(row.key, row) is not row:
            raise ValueError(f"{who} must hold a measurement once; got {' '.join(row.key)} twice")
    return found


@dataclass(frozen=True)
class Check:
    """One promise: ours must be ``floor`` times as fast as ``rival``."""

    key: Key
    rival: str
    ratio: tuple[float, float, float]  # p20, median, p80 of the round-by-round ratio
    floor: float
    committed: float | None  # the median ratio in the committed rows, if they have it

    @property
    def kept(self) -> bool:
        """Broken only if four of five rounds fall short, so that a neighbour's load breaks no promise."""
        return self.ratio[2] >= self.floor


def check(rows: Iterable[Row], committed: Iterable[Row] = ()) -> list[Check]:
    """Hold rows of ours against the floors of :mod:`sparsekern.measure.floors`.

    Raises:
        ValueError: ``check: committed must hold a measurement once; got <case, mode, cache, threads, provider> twice``
    """
    before = {key: row.ratios for key, row in _by_key("check: committed", committed).items() if row.ours}
    checks = []
    for row in rows:
        if not row.ours or not row.p50_us:
            continue
        floors = floors_of(row)
        best = row.best_rival()
        if best:
            floors.setdefault(best[0], floors["best"])
        for rival, floor in floors.items():
            if rival in row.ratios:
                old = before.get(row.key, {}).get(rival)
                low, middle, high = row.ratios[rival]
                checks.append(Check(row.key, rival, (low, middle, high), floor, old[1] if old else None))
    return checks
