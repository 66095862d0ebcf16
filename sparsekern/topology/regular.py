"""Fixed fan-in and fixed fan-out: every output (block) reads, and every input (block) feeds, the same number of others."""

from __future__ import annotations

import math

import numpy as np
import torch
from torch import Tensor

from sparsekern.arguments import as_whole
from sparsekern.topology.draw import generator
from sparsekern.topology.huge import huge_regular_table, is_huge

_CHUNK = 1 << 22  # random numbers drawn at a time


def regular_table(in_blocks: int, out_blocks: int, fan_in: int, *, seed: int | None = None) -> Tensor:
    """Draw, for each output block, ``fan_in`` different input blocks, so that every input block is drawn equally often.

    Row by row: an input that must still feed ``c`` of the ``r`` rows left is drawn with probability ``c/r`` (by Pareto sampling: its
    odds against a random number's). So one with ``c = r`` is always drawn, one with ``c = 0`` never, and no draw can get stuck.

    Args:
        in_blocks: number of input blocks ``IB``.
        out_blocks: number of output blocks ``OB``.
        fan_in: kept blocks per output block, in ``[1, in_blocks]``; ``fan_out = OB*fan_in/IB`` must be whole.
        seed: with a seed the table is the same on every machine and torch's generator is not touched; without, it is drawn from it.

    Returns:
        ``[OB, fan_in]`` int32, strictly increasing in each row; each of ``0 .. IB-1`` is in exactly ``fan_out`` rows.

    Raises:
        ValueError: ``regular_table: fan_in must be in [1, 8]; got 9``;
            ``regular_table: fan_in must be a multiple of 4, or fan_out = 6 * fan_in / 8 is not whole; got 3``

    Cost:
        O(OB * IB); O(connections) where more than 2^28 are possible and at most one in 32 is kept: then a shuffled deck is dealt, and
        connections that came twice trade places with others.

    Source:
        Fixed fan-in and fan-out: Dey et al., "Characterizing Sparse Connectivity Patterns in Neural Networks", section 2.
        Sampling with given probabilities: Rosén, "On sampling with probability proportional to size", 1997.

    Example:
        >>> table = regular_table(8, 4, 2, seed=0)
        >>> table.shape, table.flatten().sort().values.tolist()      # every input once
        (torch.Size([4, 2]), [0, 1, 2, 3, 4, 5, 6, 7])
    """
    in_blocks, out_blocks, fan_in, _ = check_regular("regular_table", in_blocks, out_blocks, fan_in)
    draw = generator(seed)
    if is_huge(in_blocks, out_blocks, fan_in):
        return torch.from_numpy(huge_regular_table(in_blocks, out_blocks, fan_in, draw))
    table = np.empty((out_blocks, fan_in), dtype=np.int32)
    unfed = np.full(in_blocks, out_blocks * fan_in / in_blocks)  # [IB] rows that each input must still feed, whole numbers
    chunk = max(1, _CHUNK // in_blocks)
    for first in range(0, out_blocks, chunk):
        rows = table[first : first + chunk]
        # Only + - * / on doubles: logarithms, which other schemes need, differ between machines in their last bit.
        uniform = torch.rand(len(rows), in_blocks, generator=draw, dtype=torch.float64, device="cpu").clamp_min_(2.0**-54)
        odds = (uniform / (1 - uniform)).numpy()
        for r, row in enumerate(rows):
            left = out_blocks - first - r
            with np.errstate(divide="ignore"):  # an input that feeds enough rows: its key is infinite
                keys = odds[r] * ((left - unfed) / unfed)
            row[:] = np.argpartition(keys, fan_in - 1)[:fan_in]
            unfed[row] -= 1
    table.sort(axis=1)
    return torch.from_numpy(table)


def check_regular(op: str, in_blocks: int, out_blocks: int, fan_in: int) -> tuple[int, int, int, int]:
    """Return the three as Python's numbers, and the fan-out; raise where it is not whole."""
    in_blocks, out_blocks, fan_in = as_whole(op, in_blocks=in_blocks, out_blocks=out_blocks, fan_in=fan_in)
    if out_blocks < 0:
        raise ValueError(f"{op}: out_blocks must be at least 0; got {out_blocks}")
    if not 1 <= fan_in <= in_blocks:
        raise ValueError(f"{op}: fan_in must be in [1, {in_blocks}]; got {fan_in}")
    step = fan_in_step(in_blocks, out_blocks)
    if fan_in % step:
        rule = f"a multiple of {step}, or fan_out = {out_blocks} * fan_in / {in_blocks} is not whole"
        raise ValueError(f"{op}: fan_in must be {rule}; got {fan_in}")
    return in_blocks, out_blocks, fan_in, out_blocks * fan_in // in_blocks


def fan_in_step(in_blocks: int, out_blocks: int) -> int:
    """The smallest fan-in, in blocks, that gives a whole fan-out: all others are its multiples.

    Example:
        >>> fan_in_step(8, 6), fan_in_step(64, 1024)
        (4, 1)
    """
    in_blocks, out_blocks = as_whole("fan_in_step", in_blocks=in_blocks, out_blocks=out_blocks)
    if in_blocks < 1:
        raise ValueError(f"fan_in_step: in_blocks must be at least 1; got {in_blocks}")
    return in_blocks // math.gcd(in_blocks, out_blocks)
