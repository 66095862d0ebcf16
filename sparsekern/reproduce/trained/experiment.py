"""What an experiment is: points to train, several seeds each, and what their accuracies must show."""

from __future__ import annotations

import statistics
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

from torch import Tensor

from sparsekern.train import Recipe


@dataclass(frozen=True)
class Point:
    """One network of an experiment.

    Attributes:
        label: of its row, unique in the experiment.
        recipe: how it is trained.
        x: where it stands in the plot.
        paper: the paper's accuracy in [0, 1], if it prints one.
        panel: of the plot.
        tables: ``seed -> [index table of junction 1, 2, ...]``, connections to train with in place of the drawn ones.
        facts: further columns.
    """

    label: str
    recipe: Recipe
    x: float
    paper: float | None = None
    panel: str = ""
    tables: Callable[[int], list[Tensor]] | None = None
    facts: dict[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Result:
    """A point and its accuracies, one per seed, on data that was not trained on."""

    point: Point
    accuracies: dict[int, float]

    @property
    def values(self) -> list[float]:
        return list(self.accuracies.values())

    @property
    def mean(self) -> float:
        return statistics.fmean(self.values)

    @property
    def spread(self) -> float:
        """Half the distance from the worst seed to the best."""
        return (max(self.values) - min(self.values)) / 2


@dataclass(frozen=True)
class Claim:
    """A sentence about the results, whether it holds, and the figures it was judged by."""

    text: str
    holds: bool
    figures: str


Results = dict[str, Result]  # by the point's label, in the experiment's order


@dataclass(frozen=True)
class Experiment:
    """Points, how they are drawn, and what is judged.

    Attributes:
        claims: ``(results, preset) -> claims``, of what was trained.
        log_x: whether the plot's axis is logarithmic.
        told: whose the accuracies beside ours are.
        measure, split: which accuracy is taken.
    """

    name: str
    title: str
    source: str
    points: Callable[[str], Sequence[Point]]  # of a preset
    xlabel: str
    claims: Callable[[Results, str], list[Claim]] = lambda results, preset: []
    log_x: bool = False
    told: str = "paper"  # head of the column beside ours
    measure: str = "best"  # accuracy of the best epoch, or of the "last"
    split: str = "validation"  # what the paper calls the samples that are judged by

    @property
    def measured(self) -> str:
        """What an accuracy here is, in words."""
        return f"best {self.split} accuracy of all epochs" if self.measure == "best" else f"{self.split} accuracy after the last epoch"
