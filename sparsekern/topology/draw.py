"""Where random topologies come from: torch's own generator, or one made from a seed, which leaves torch's alone."""

from __future__ import annotations

import zlib

import numpy as np
import torch


def generator(seed: int | None) -> torch.Generator | None:
    """None (torch's global generator) without a seed, else a fresh CPU generator: the same draws on every machine."""
    return None if seed is None else torch.Generator().manual_seed(seed)


def uniform(shape: int | tuple[int, ...], draw: torch.Generator | None) -> np.ndarray:
    """``shape`` float64 in [0, 1). Only such numbers are drawn here, never integers or permutations, whose making torch may change."""
    return torch.rand(shape, generator=draw, dtype=torch.float64, device="cpu").numpy()


def named_seed(seed: int | None, name: str) -> int | None:
    """Another one for every seed and name (of a layer), whatever others there are; 32 bits, for torch's generator reads no more."""
    return None if seed is None else zlib.crc32(f"{seed} {name}".encode())
