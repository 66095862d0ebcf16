"""Degree-preserving swaps: two connections trade their inputs, so that every fan-in and every fan-out stays as it was."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from sparsekern.arguments import check_real, check_whole
from sparsekern.topology.draw import check_table, generator, uniform


def rewire(table: Tensor, in_blocks: int, fraction: float, *, seed: int | None = None) -> Tensor:
    """Let a share of the connections trade places at random.

    A ladder from a table (``fraction=0``) to nearly a random one with the same fans (``fraction=1``: all but the undone have moved);
    for example from the worst scatter, of ``local_table``, to that of a random topology.

    Args:
        table: ``[OB, fan_in]`` integers, distinct in each row.
        in_blocks: number of input blocks.
        fraction: of the connections that take part in a swap, in [0, 1]. A swap that would connect a pair twice is undone.
        seed: the same table on every machine, torch's generator untouched; None draws from torch's generator.

    Returns:
        ``[OB, fan_in]`` int32, strictly increasing in each row; each input block in as many rows as before.

    Raises:
        ValueError: ``rewire: fraction must be in [0, 1]; got 2``

    Cost:
        O(connections).

    Example:
        >>> local = torch.arange(8, dtype=torch.int32).reshape(4, 2)
        >>> rewire(local, 8, 1.0, seed=0).flatten().sort().values.tolist()
        [0, 1, 2, 3, 4, 5, 6, 7]
    """
    check_real("rewire", "in [0, 1]", lambda f: 0 <= f <= 1, fraction=fraction)
    check_table("rewire", "table", table)
    check_whole("rewire", in_blocks=in_blocks)
    if table.numel() and not (int(table.min()) >= 0 and int(table.max()) < in_blocks):
        got = int(table.min()) if int(table.min()) < 0 else int(table.max())
        raise ValueError(f"rewire: table must be in [0, {in_blocks}); got {got}")
    if has_duplicates(table.cpu().numpy()).any():  # swaps that connect a pair twice are undone until there is none: here without end
        raise ValueError("rewire: table must be without a connection twice; got duplicates")
    out, draw = table.int().cpu().numpy().copy(), generator(seed)
    flat = out.reshape(-1)
    pairs = int(fraction * flat.size) // 2
    swaps = np.argsort(uniform(flat.size, draw), kind="stable")[: 2 * pairs].reshape(pairs, 2)  # connections, each in one swap
    before = flat[swaps]
    flat[swaps] = before[:, ::-1]
    done = np.arange(pairs)
    while has_duplicates(out).any():
        # where a pair came to be connected twice, at least one of the two was moved here: all that were go back
        wrong = duplicates(out).reshape(-1)[swaps[done]].any(axis=1)
        flat[swaps[done[wrong]]] = before[done[wrong]]
        done = done[~wrong]
    out.sort(axis=1)
    return torch.from_numpy(out)


def separate(table: np.ndarray, draw: torch.Generator | None) -> None:
    """Remove, in place, connections that exist twice in ``table [OB, fan_in]``: each trades with a random one until none is left."""
    flat, fan_in = table.reshape(-1), table.shape[1]
    rows = np.arange(table.shape[0])  # that may hold one
    while rows.size:
        which, column = np.nonzero(duplicates(table[rows], later=True))
        own = rows[which] * fan_in + column
        others = np.floor(uniform(own.size, draw) * flat.size).astype(np.int64)
        others, first = np.unique(others, return_index=True)  # one trade each; who is left out trades in the next round
        left_out = np.delete(own, first)
        free = ~np.isin(others, own)
        own, others, left_out = own[first[free]], others[free], np.concatenate([left_out, own[first[~free]]])
        flat[own], flat[others] = flat[others], flat[own]
        rows = np.unique(np.concatenate([own, others, left_out]) // fan_in)


def has_duplicates(rows: np.ndarray) -> np.ndarray:
    """``[n, fan_in]`` -> ``[n]`` bool."""
    ordered = np.sort(rows, axis=1)
    return (ordered[:, 1:] == ordered[:, :-1]).any(axis=1)


def duplicates(table: np.ndarray, *, later: bool = False) -> np.ndarray:
    """``[OB, fan_in]`` bool: connections that their row holds twice; with ``later``, all but the first of each."""
    fan_in = max(1, table.shape[1])
    keys = table.astype(np.int64) * fan_in + np.arange(table.shape[1])  # sorting numbers is much faster than sorting their places
    keys.sort(axis=1)
    ordered, order = keys // fan_in, keys % fan_in
    same = ordered[:, 1:] == ordered[:, :-1]
    marks = np.zeros(table.shape, dtype=bool)
    marks[:, 1:] = same
    if not later:
        marks[:, :-1] |= same
    found = np.empty_like(marks)
    np.put_along_axis(found, order, marks, axis=1)
    return found
