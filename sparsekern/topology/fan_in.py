"""Fixed fan-in: every output (block) reads the same number of inputs (blocks)."""

from __future__ import annotations

import torch
from torch import Tensor

from sparsekern.arguments import as_whole
from sparsekern.topology.draw import generator
from sparsekern.topology.huge import huge_fan_in_table, is_huge

_CHUNK = 1 << 22  # random numbers drawn at a time


def fan_in_table(in_blocks: int, out_blocks: int, fan_in: int, *, seed: int | None = None) -> Tensor:
    """Draw, for each output block, ``fan_in`` different input blocks, uniformly at random.

    Args:
        in_blocks: number of input blocks ``IB``.
        out_blocks: number of output blocks ``OB``.
        fan_in: kept blocks per output block, in ``[1, in_blocks]``.
        seed: with a seed the table is the same on every machine and torch's generator is not touched; without, it is drawn from it.

    Returns:
        ``[OB, fan_in]`` int32, strictly increasing in each row.

    Raises:
        ValueError: ``fan_in_table: fan_in must be in [1, 8]; got 9``

    Cost:
        O(OB * IB); O(connections) where more than 2^28 are possible and at most one in 32 is kept.

    Source:
        Pre-defined sparsity with fixed fan-in: Dey et al., "Characterizing Sparse Connectivity Patterns in Neural Networks", section 2.

    Example:
        >>> fan_in_table(4, 2, 3, seed=0).shape
        torch.Size([2, 3])
    """
    in_blocks, out_blocks, fan_in = as_whole("fan_in_table", in_blocks=in_blocks, out_blocks=out_blocks, fan_in=fan_in)
    if out_blocks < 0:
        raise ValueError(f"fan_in_table: out_blocks must be at least 0; got {out_blocks}")
    if not 1 <= fan_in <= in_blocks:
        raise ValueError(f"fan_in_table: fan_in must be in [1, {in_blocks}]; got {fan_in}")
    draw = generator(seed)
    if is_huge(in_blocks, out_blocks, fan_in):
        return torch.from_numpy(huge_fan_in_table(in_blocks, out_blocks, fan_in, draw))
    table = torch.empty(out_blocks, fan_in, dtype=torch.int32, device="cpu")
    step = max(1, _CHUNK // in_blocks)
    for first in range(0, out_blocks, step):
        rows = table[first : first + step]
        keys = torch.rand(len(rows), in_blocks, generator=draw, dtype=torch.float64, device="cpu")
        rows.copy_(keys.topk(fan_in, dim=1, sorted=False).indices.sort(dim=1).values)
    return table
