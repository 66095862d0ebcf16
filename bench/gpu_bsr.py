"""torch's block-sparse product, launched in the way that suits this card: torch itself ships parameters for one older card alone."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator

import torch
from gpu_timing import Call, between_events


def ways(rows: int, block: int) -> Iterator[dict[str, int]]:
    """Launch parameters to try: what torch takes where it knows nothing, then more stages, warps and other tiles of rows."""
    yield {"SPLIT_N": max(1, rows // block), "num_stages": 1, "num_warps": 4, "GROUP_SIZE_ROW": 1}
    widths = [width for width in (64, 128, 256) if rows % width == 0] or [rows]
    for width, stages, warps in itertools.product(widths, (3, 4), (4, 8)):
        yield {"SPLIT_N": rows // width, "num_stages": stages, "num_warps": warps, "GROUP_SIZE_ROW": 4}


def quickest(calls: list[tuple[dict[str, int], Call]], time_us: Callable[[Call], float] = between_events) -> dict[str, int]:
    """The parameters of the call that takes least, of three runs behind a first one; those that this card cannot launch are left out."""
    taken: list[tuple[float, int]] = []
    for number, (_, call) in enumerate(calls):
        try:
            call()  # compiles
            taken.append((min(time_us(call) for _ in range(3)), number))
        except Exception:  # too much shared memory for so many stages, for example
            continue
    if not taken:
        raise RuntimeError("none of the launch parameters serves")
    return calls[min(taken)[1]][0]


def tuned(weights: list[torch.Tensor], xs: list[torch.Tensor], bias: torch.Tensor) -> Callable[[int], Call]:
    """Set -> its product ``xs[i] @ weights[i].t() + bias``; the parameters are chosen at the first one. ``weights``: BSR."""
    added = bias[:, None].expand(-1, len(xs[0])).contiguous()
    chosen: list[dict[str, int]] = []

    def product(i: int, way: dict[str, int]) -> torch.Tensor:
        from torch.sparse._triton_ops import bsr_dense_addmm  # only where Triton is

        return bsr_dense_addmm(added, weights[i], xs[i].t(), meta=way).t()

    def make(i: int) -> Call:
        if not chosen:
            each = ways(len(xs[0]), weights[0].values().shape[-2])
            chosen.append(quickest([(way, lambda way=way: product(0, way)) for way in each]))
        return lambda: product(i, chosen[0])

    return make
