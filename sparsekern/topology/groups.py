"""Tables made of others: blocks and panels spelt out element by element, and groups that do not mix."""

from __future__ import annotations

import operator

import torch
from torch import Tensor

from sparsekern.arguments import as_whole, is_whole, said
from sparsekern.topology.draw import check_table


def expand_blocks(table: Tensor, block_size: int | tuple[int, int]) -> Tensor:
    """Spell out a table of blocks element by element, for the tools that look at single neurons.

    Args:
        table: ``[OB, F]`` integers, the input blocks of each output block, from any generator.
        block_size: ``(BO, BI)``, or one number for both; ``(V, 1)`` is a panel: ``V`` outputs share their inputs.

    Returns:
        ``[OB*BO, F*BI]`` int32, increasing where ``table`` is.

    Raises:
        ValueError: ``expand_blocks: block_size must be at least 1; got (0, 1)``;
            ``expand_blocks: table must be in [0, 536870912), for elements below 2^31; got 600000000``

    Example:
        >>> expand_blocks(torch.tensor([[0, 2]]), (2, 2)).tolist()
        [[0, 1, 4, 5], [0, 1, 4, 5]]
    """
    check_table("expand_blocks", "table", table)
    pair = block_size if isinstance(block_size, tuple | list) else (block_size, block_size)
    if len(pair) != 2 or not all(is_whole(size) and size < 2**31 for size in pair):
        raise ValueError(f"expand_blocks: block_size must be a whole number or two, below 2^31; got {said(block_size)}")
    rows, columns = map(operator.index, pair)
    if rows < 1 or columns < 1:
        raise ValueError(f"expand_blocks: block_size must be at least 1; got {block_size}")
    blocks = 2**31 // columns  # whose elements 32 bits can name
    low, high = (int(table.min()), int(table.max())) if table.numel() and not table.is_meta else (0, 0)
    if low < 0 or high >= blocks:
        raise ValueError(f"expand_blocks: table must be in [0, {blocks}), for elements below 2^31; got {low if low < 0 else high}")
    inside = torch.arange(columns, dtype=torch.int32, device=table.device)
    elements = (table.int()[:, :, None] * columns + inside).flatten(1)  # [OB, F*BI]
    return elements.repeat_interleave(rows, dim=0)


def grouped_table(in_blocks: int, out_blocks: int, groups: int) -> Tensor:
    """Groups that do not mix: outputs of group ``g`` read all inputs of group ``g``, as a grouped convolution's channels do.

    Returns:
        ``[OB, IB/groups]`` int32.

    Raises:
        ValueError: ``grouped_table: groups must divide in_blocks and out_blocks, 64 and 10; got 4``

    Example:
        >>> grouped_table(4, 2, 2).tolist()
        [[0, 1], [2, 3]]
    """
    in_blocks, out_blocks, groups = as_whole("grouped_table", in_blocks=in_blocks, out_blocks=out_blocks, groups=groups)
    if in_blocks < 0 or out_blocks < 0:
        raise ValueError(f"grouped_table: in_blocks and out_blocks must be at least 0; got {in_blocks} and {out_blocks}")
    if groups < 1 or in_blocks % groups or out_blocks % groups:
        raise ValueError(f"grouped_table: groups must divide in_blocks and out_blocks, {in_blocks} and {out_blocks}; got {groups}")
    inputs = torch.arange(in_blocks, dtype=torch.int32, device="cpu").reshape(groups, -1)
    return inputs.repeat_interleave(out_blocks // groups, dim=0)


def local_table(in_blocks: int, out_blocks: int, fan_in: int) -> Tensor:
    """Every output reads ``fan_in`` inputs that lie side by side: the worst forward scatter of its fan-in.

    The inputs are dealt round and round, so that each feeds the same number of outputs where that is a whole number.

    Returns:
        ``[OB, fan_in]`` int32, strictly increasing in each row.

    Example:
        >>> local_table(6, 3, 4).tolist()
        [[0, 1, 2, 3], [0, 1, 4, 5], [2, 3, 4, 5]]
    """
    in_blocks, out_blocks, fan_in = as_whole("local_table", in_blocks=in_blocks, out_blocks=out_blocks, fan_in=fan_in)
    if out_blocks < 0:
        raise ValueError(f"local_table: out_blocks must be at least 0; got {out_blocks}")
    if not 1 <= fan_in <= in_blocks:
        raise ValueError(f"local_table: fan_in must be in [1, {in_blocks}]; got {fan_in}")
    dealt = torch.arange(out_blocks * fan_in, device="cpu").reshape(out_blocks, fan_in) % in_blocks
    return dealt.sort(dim=1).values.int()
