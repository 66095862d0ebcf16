"""The experiments by name."""

from __future__ import annotations

from sparsekern.reproduce.trained import accuracy, digits, morse
from sparsekern.reproduce.trained.experiment import Experiment

_ALL = (
    morse.DENSITY,
    morse.JUNCTIONS,
    morse.SCATTER,
    digits.DENSITY,
    accuracy.DEEP_ROOTS,
    accuracy.SIS,
    accuracy.SIMPLENET_NETS,
)

EXPERIMENTS: dict[str, Experiment] = {experiment.name: experiment for experiment in _ALL}
