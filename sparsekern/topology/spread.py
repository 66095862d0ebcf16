"""Window-spread junctions: every neuron reaches every window of the other side equally often, so their scatter is 1 by construction."""

from __future__ import annotations

import math

import numpy as np
import torch
from torch import Tensor

from sparsekern.topology.draw import generator, uniform
from sparsekern.topology.huge import huge_regular_table, is_huge
from sparsekern.topology.regular import check_regular
from sparsekern.topology.windows import Shape, neurons, window_counts, window_ids


def spread_table(in_shape: Shape, out_shape: Shape, fan_in: int, *, seed: int | None = None) -> Tensor:
    """Draw a junction of fixed fan-in and fan-out in which each output reads every window of inputs, and each input feeds every window
    of outputs, equally often.

    The windows are those of :func:`~sparsekern.topology.scatter`. A window of inputs and one of outputs form a small junction of their
    own; each is drawn as a random one with the fans that fall to it (a random permutation in the usual case of one connection each).

    Args:
        in_shape, out_shape: neurons (or blocks) of the two layers: ``N``, ``(H, W)`` or ``(C, H, W)``.
        fan_in: kept inputs per output, in ``[1, N_in]``; ``fan_out = N_out * fan_in / N_in`` must be whole.
        seed: the same table on every machine, torch's generator untouched; None draws from torch's generator.

    Returns:
        ``[N_out, fan_in]`` int32, strictly increasing in each row; both scatters of the junction are exactly 1, in either measure. The
        equivalent junction of several such may still be below 1.

    Raises:
        ValueError: ``spread_table: fan_in must be in [1, 8]; got 9``, or not giving a whole fan-out.

    Cost:
        O(connections) where ``fan_in`` divides ``N_in`` and ``fan_out`` divides ``N_out``, else as ``regular_table``.

    Source:
        Dey et al., "Characterizing Sparse Connectivity Patterns in Neural Networks", section 3: what the paper calls ideal.

    Example:
        >>> from sparsekern.topology import scatter
        >>> table = spread_table((28, 28), 224, 392, seed=0)
        >>> scatter([table], [(28, 28)]).vector
        (1.0, 1.0)
    """
    inputs, outputs = neurons(in_shape), neurons(out_shape)
    inputs, outputs, fan_in, fan_out = check_regular("spread_table", inputs, outputs, fan_in)
    left, right = window_counts(in_shape, fan_in), window_counts(out_shape, fan_out)
    k_left, k_right = math.prod(left), math.prod(right)
    local = _junctions(k_right * k_left, inputs // k_left, outputs // k_right, fan_in // k_left, seed)  # [junctions, s_right, a]
    members_left = window_ids(in_shape, left).numpy().argsort(kind="stable").reshape(k_left, -1)  # [k_left, s_left] neurons of a window
    members_right = window_ids(out_shape, right).numpy().argsort(kind="stable")  # [N_out]
    local = local.reshape(k_right, k_left, outputs // k_right, -1).transpose(0, 2, 1, 3)  # [k_right, s_right, k_left, a]
    table = np.empty((outputs, fan_in), dtype=np.int32)
    table[members_right] = members_left[np.arange(k_left)[:, None], local].reshape(outputs, fan_in)
    table.sort(axis=1)
    return torch.from_numpy(table)


def _junctions(count: int, left: int, right: int, fan_in: int, seed: int | None) -> np.ndarray:
    """``[count, right, fan_in]``: so many independent regular junctions of ``left`` to ``right`` neurons, inputs in any order."""
    draw = generator(seed)
    if fan_in == 1 and left == right:
        return np.argsort(uniform((count, left), draw), axis=1, kind="stable")[:, :, None]
    if is_huge(left, count * right, fan_in):
        return np.stack([huge_regular_table(left, right, fan_in, draw) for _ in range(count)])
    table = np.empty((count, right, fan_in), dtype=np.int64)
    unfed = np.full((count, left), right * fan_in / left)  # as regular_table, all junctions at once
    for row in range(right):
        odds = np.maximum(uniform((count, left), draw), 2.0**-54)
        odds /= 1 - odds
        with np.errstate(divide="ignore"):
            keys = odds * ((right - row - unfed) / unfed)
        table[:, row] = np.argpartition(keys, fan_in - 1, axis=1)[:, :fan_in]
        np.put_along_axis(unfed, table[:, row], np.take_along_axis(unfed, table[:, row], 1) - 1, 1)
    return table
