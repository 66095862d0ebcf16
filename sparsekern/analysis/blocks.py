"""How much of a matrix lies in blocks along its diagonal: one number for what the paper's heat maps show."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from numbers import Integral

import torch
from torch import Tensor


@dataclass(frozen=True)
class BlockScore:
    """Of the absolute entries of a matrix."""

    score: float  # 1: all inside the blocks; 0: as much inside as their share of the area; below 0: less
    inside: float  # mean inside the blocks
    outside: float  # mean outside

    @property
    def contrast(self) -> float:
        """Mean inside over mean outside."""
        return self.inside / self.outside if self.outside > 0 else float("inf")


def block_diagonality(matrix: Tensor, groups: int | Sequence[tuple[int, int]]) -> BlockScore:
    """Score the blocks that ``groups`` filter groups would make.

    Args:
        matrix: ``[c1, c2]``, covariance or correlation between the inputs and the outputs of a grouped layer.
        groups: a number of equal groups, or the (in, out) channels of each.

    Raises:
        ValueError: ``block_diagonality: groups must divide the sizes of the matrix, [6, 8]; got 4``;
            ``block_diagonality: groups must be at least 2; got 1``;
            ``block_diagonality: groups must be a whole number, or a positive (in, out) of each group; got 2.0``;
            ``block_diagonality: matrix must be real and of at least one entry; got [0, 0] torch.float32``
        TypeError: ``block_diagonality: matrix must be a tensor; got ndarray``

    Example:
        >>> block_diagonality(torch.block_diag(torch.ones(2, 3), torch.ones(2, 3)), 2)
        BlockScore(score=1.0, inside=1.0, outside=0.0)
        >>> block_diagonality(torch.ones(4, 6), 2).score
        0.0
    """
    if not isinstance(matrix, Tensor):
        raise TypeError(f"block_diagonality: matrix must be a tensor; got {type(matrix).__name__}")
    if matrix.dim() != 2:
        raise ValueError(f"block_diagonality: matrix must be of two dimensions; got {list(matrix.shape)}")
    if matrix.is_complex() or matrix.numel() == 0:
        got = f"{list(matrix.shape)} {matrix.dtype}"
        raise ValueError(f"block_diagonality: matrix must be real and of at least one entry; got {got}")
    if isinstance(groups, Integral):
        groups = int(groups)  # numpy's too
    elif not _are_pairs(groups):
        rule = "a whole number, or a positive (in, out) of each group"
        raise ValueError(f"block_diagonality: groups must be {rule}; got {groups!r}")
    if isinstance(groups, int):
        if groups > 0 and any(size % groups for size in matrix.shape):
            raise ValueError(f"block_diagonality: groups must divide the sizes of the matrix, {list(matrix.shape)}; got {groups}")
        sizes = [(matrix.shape[0] // groups, matrix.shape[1] // groups)] * groups if groups > 0 else []
    else:
        sizes = [(int(rows), int(columns)) for rows, columns in groups]
    if len(sizes) < 2:
        raise ValueError(f"block_diagonality: groups must be at least 2; got {groups if isinstance(groups, int) else len(sizes)}")
    if [sum(side) for side in zip(*sizes)] != list(matrix.shape):
        raise ValueError(f"block_diagonality: groups must add up to the sizes of the matrix, {list(matrix.shape)}; got {sizes}")
    blocks = torch.block_diag(*(torch.ones(size, dtype=torch.float64, device="cpu") for size in sizes)).bool()
    values = matrix.detach().cpu().double().abs()
    inside, outside = values[blocks], values[~blocks]
    total, area = float(values.sum()), float(blocks.double().mean())
    share = float(inside.sum()) / total if total > 0 else area
    return BlockScore((share - area) / (1 - area), float(inside.mean()), float(outside.mean()))


def _are_pairs(groups: object) -> bool:
    pairs = list(groups) if isinstance(groups, Sequence) and not isinstance(groups, str) else [()]
    paired = all(isinstance(pair, tuple | list) and len(pair) == 2 for pair in pairs)
    return paired and all(isinstance(size, Integral) and int(size) > 0 for pair in pairs for size in pair)
