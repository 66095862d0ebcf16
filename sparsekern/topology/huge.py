"""Fixed fan-in, with or without fixed fan-out or balance, in time and memory of the connections alone: for layers of very many neurons.

The usual draws give every possible connection a random number, ``OB * IB`` of them. These give one to each real connection, and draw
again where a connection came twice.
"""

from __future__ import annotations

import numpy as np
import torch

from sparsekern.topology.draw import uniform
from sparsekern.topology.swap import has_duplicates, separate

POSSIBLE = 1 << 28  # possible connections from which on ...
_SPARSE = 32  # ... tables of at most one in so many are drawn here; of windows, any
_CHUNK = 1 << 22  # random numbers drawn at a time


def is_huge(in_blocks: int, out_blocks: int, fan_in: int) -> bool:
    """Whether a table is drawn here. It depends on the sizes alone, so a seed means the same table everywhere."""
    in_blocks, out_blocks, fan_in = int(in_blocks), int(out_blocks), int(fan_in)  # numpy's products would wrap round
    return in_blocks * out_blocks > POSSIBLE and fan_in * _SPARSE <= in_blocks


def huge_fan_in_table(in_blocks: int, out_blocks: int, fan_in: int, draw: torch.Generator | None) -> np.ndarray:
    """``[OB, fan_in]`` int32, increasing: every set of inputs is equally likely in each row, since no input is special."""
    table = np.floor(uniform((out_blocks, fan_in), draw) * in_blocks).astype(np.int32)
    table.sort(axis=1)
    rows = np.arange(out_blocks)
    while True:
        rows = rows[has_duplicates(table[rows])]
        if rows.size == 0:
            return table
        some = table[rows]
        again = np.zeros(some.shape, dtype=bool)
        again[:, 1:] = some[:, 1:] == some[:, :-1]
        some[again] = np.floor(uniform(int(again.sum()), draw) * in_blocks).astype(np.int32)
        some.sort(axis=1)
        table[rows] = some


def huge_regular_table(in_blocks: int, out_blocks: int, fan_in: int, draw: torch.Generator | None) -> np.ndarray:
    """``[OB, fan_in]`` int32, increasing; every input in ``fan_out`` rows: a shuffled deck of connections, dealt, repaired by swaps."""
    connections = out_blocks * fan_in
    deck = np.argsort(uniform(connections, draw), kind="stable")
    deck //= connections // in_blocks
    table = deck.astype(np.int32).reshape(out_blocks, fan_in)
    separate(table, draw)
    table.sort(axis=1)
    return table


def huge_window_table(outputs: int, counts: list[int], window: int, inputs: int, draw: torch.Generator | None) -> np.ndarray:
    """``[outputs, fan_in]`` int32, increasing: ``counts[w]`` inputs of the ``w``-th ``window`` (at most 63) neighbours of ``inputs``.

    In each window every set is equally likely (Floyd's sampling): a step draws one of the first ``last + 1`` inputs, and takes input
    ``last`` where that is taken already; ``last`` rises to the last input of the window.
    """
    used = np.flatnonzero(counts)  # windows
    kept, first = np.array(counts)[used], used * window
    width, begin = np.minimum(window, inputs - first), np.cumsum(kept) - kept  # and the column of each window's first connection
    table = np.empty((outputs, int(kept.sum())), dtype=np.int32)
    chunk = max(1, _CHUNK // table.shape[1])
    for top in range(0, outputs, chunk):
        rows = table[top : top + chunk]
        drawn = uniform(rows.shape, draw)
        taken = np.zeros((len(rows), used.size), dtype=np.int64)  # a bit per input of the window
        for step in range(int(kept.max())):
            w = np.flatnonzero(kept > step)
            last, columns = width[w] - kept[w] + step, begin[w] + step
            one = np.floor(drawn[:, columns] * (last + 1)).astype(np.int64)
            one = np.where(taken[:, w] >> one & 1, last, one)
            taken[:, w] |= np.int64(1) << one
            rows[:, columns] = first[w] + one
    table.sort(axis=1)
    return table
