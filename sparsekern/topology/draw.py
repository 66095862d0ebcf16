"""Where random topologies come from: torch's own generator, or one made from a seed, which leaves torch's alone."""

from __future__ import annotations

import torch


def generator(seed: int | None) -> torch.Generator | None:
    """None (torch's global generator) without a seed, else a fresh CPU generator: the same draws on every machine."""
    return None if seed is None else torch.Generator().manual_seed(seed)
