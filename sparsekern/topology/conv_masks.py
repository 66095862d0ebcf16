"""Random masks of convolutions: which blocks of a filter bank are kept, as the ragged tables that the op takes."""

from __future__ import annotations

import torch
from torch import Tensor

from sparsekern.arguments import as_whole, check_real
from sparsekern.topology.draw import generator
from sparsekern.topology.fan_in import fan_in_table

COUNTS = ("exact", "bernoulli")


def mask_tables(keep: Tensor) -> tuple[Tensor, Tensor]:
    """``keep [rows, positions]`` bool -> ``indptr [rows+1]`` and ``index [nnz]`` int32, increasing in each row.

    Example:
        >>> mask_tables(torch.tensor([[True, False, True], [False, False, False]]))
        (tensor([0, 2, 2], dtype=torch.int32), tensor([0, 2], dtype=torch.int32))
    """
    if not isinstance(keep, Tensor):
        raise TypeError(f"mask_tables: keep must be a tensor; got {type(keep).__name__}")
    if keep.dim() != 2 or keep.dtype != torch.bool:
        raise ValueError(f"mask_tables: keep must be [rows, positions] torch.bool; got {list(keep.shape)} {keep.dtype}")
    indptr = torch.zeros(len(keep) + 1, dtype=torch.int32, device=keep.device)
    indptr[1:] = keep.sum(1).cumsum(0)
    return indptr, keep.nonzero()[:, 1].int()


def conv_mask(
    rows: int,
    positions: int,
    *,
    density: float | None = None,
    fan_in: int | None = None,
    count: str = "exact",
    seed: int | None = None,
) -> tuple[Tensor, Tensor]:
    """Draw which of ``positions`` blocks each of ``rows`` output blocks keeps.

    Args:
        rows: output blocks ``OB``.
        positions: blocks of one row, ``IB * TB``.
        density: kept fraction of all blocks, in (0, 1]. Rows are ragged and may be empty.
        fan_in: instead of ``density``: every row keeps exactly this many blocks.
        count: with ``density``: ``"exact"`` keeps ``round(density * rows * positions)`` blocks (at least one), drawn over the whole
            mask, so that shapes follow from the arguments; ``"bernoulli"`` keeps each block with that probability, as the paper does.
        seed: the same mask on every machine, torch's generator untouched; None draws from torch's generator.

    Returns:
        ``indptr [rows+1]`` and ``index [nnz]``, int32, strictly increasing in each row.

    Raises:
        ValueError: ``conv_mask: density must be in (0, 1]; got 0``

    Cost:
        O(rows * positions).

    Source:
        Shafiee, Fieguth and Wong, "StochasticNet in StochasticNet": each connection exists with a given probability.

    Example:
        >>> indptr, index = conv_mask(8, 25, density=0.25, seed=0)
        >>> index.shape
        torch.Size([50])
    """
    rows, positions = as_whole("conv_mask", rows=rows, positions=positions)
    if rows < 0 or positions < 1:
        raise ValueError(f"conv_mask: rows and positions must be at least 0 and 1; got {rows} and {positions}")
    if (fan_in is None) == (density is None):
        raise ValueError(
            f"conv_mask: density and fan_in must be given one without the other; got {'neither' if fan_in is None else 'both'}"
        )
    if fan_in is not None:
        table = fan_in_table(positions, rows, fan_in, seed=seed)
        fan_in = table.shape[1]
        return torch.arange(rows + 1, dtype=torch.int32, device="cpu") * fan_in, table.flatten()
    check_real("conv_mask", "in (0, 1]", lambda d: 0 < d <= 1, density=density)
    assert density is not None
    density = float(density)  # any real number will do, fractions too
    if count not in COUNTS:
        raise ValueError(f"conv_mask: count must be one of {COUNTS}; got {count!r}")
    keys = torch.rand(rows * positions, generator=generator(seed), dtype=torch.float64, device="cpu")
    keep = keys < density
    if count == "exact":
        kept = min(len(keys), max(1, round(density * rows * positions)))
        keep = torch.zeros_like(keep).index_fill(0, keys.topk(kept, largest=False, sorted=False).indices, True)
    return mask_tables(keep.reshape(rows, positions))
