"""Measuring: protocol (interleaved timing), cases, providers (ours and rivals), rows, comparison, machine and roof."""

from sparsekern.measure.machine import machine_card, machine_kind
from sparsekern.measure.protocol import Timing, interleave, judge, one_thread, pin, ratio, threads, verdict, winner
from sparsekern.measure.roof import Roof, measure_roof

__all__ = [
    "Roof",
    "Timing",
    "interleave",
    "judge",
    "machine_card",
    "machine_kind",
    "measure_roof",
    "one_thread",
    "pin",
    "ratio",
    "threads",
    "verdict",
    "winner",
]
