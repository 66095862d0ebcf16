"""Where random topologies come from: torch's own generator, or one made from a seed, which leaves torch's alone."""

from __future__ import annotations

import zlib

import numpy as np
import torch

from sparsekern.arguments import check_seed


def check_table(op: str, arg: str, table: object) -> None:
    """Raise unless ``table`` is a tensor ``[OB, F]`` of integers."""
    if not isinstance(table, torch.Tensor):
        raise TypeError(f"{op}: {arg} must be a tensor; got {type(table).__name__}")
    if table.dim() != 2 or table.is_floating_point() or table.is_complex() or table.dtype == torch.bool:
        raise ValueError(f"{op}: {arg} must be [OB, F] integers; got {list(table.shape)} {table.dtype}")


def generator(seed: int | None) -> torch.Generator | None:
    """None (torch's global generator) without a seed, else a fresh CPU generator: the same draws on every machine.

    Raises:
        ValueError: ``topology: seed must be None or a whole number of 64 bits; got '3'``
    """
    check_seed("topology", seed)
    if seed is None:
        return None
    seed = int(seed)  # torch's generator reads 32 bits: without this, seeds that differ above them would draw alike
    return torch.Generator().manual_seed(seed if 0 <= seed < 2**32 else zlib.crc32(str(seed).encode()))


def uniform(shape: int | tuple[int, ...], draw: torch.Generator | None) -> np.ndarray:
    """``shape`` float64 in [0, 1). Only such numbers are drawn here, never integers or permutations, whose making torch may change."""
    return torch.rand(shape, generator=draw, dtype=torch.float64, device="cpu").numpy()


def named_seed(seed: int | None, name: str) -> int | None:
    """Another one for every seed and name (of a layer), whatever others there are; 32 bits, for torch's generator reads no more."""
    return None if seed is None else zlib.crc32(f"{seed} {name}".encode())
