"""Where random topologies come from: torch's own generator, or one made from a seed, which leaves torch's alone."""

from __future__ import annotations

import numpy as np
import torch


def generator(seed: int | None) -> torch.Generator | None:
    """None (torch's global generator) without a seed, else a fresh CPU generator: the same draws on every machine."""
    return None if seed is None else torch.Generator().manual_seed(seed)


def uniform(shape: int | tuple[int, ...], draw: torch.Generator | None) -> np.ndarray:
    """``shape`` float64 in [0, 1). Only such numbers are drawn here, never integers or permutations, whose making torch may change."""
    return torch.rand(shape, generator=draw, dtype=torch.float64, device="cpu").numpy()
