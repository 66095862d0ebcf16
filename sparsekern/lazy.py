"""What the package offers by name and imports at first use: it would slow down every ``import sparsekern``."""

from __future__ import annotations

from typing import Any

TRANSFORMS = ("FanIn", "Groups", "Root", "Stochastic", "convert", "optimize", "to_dense")


def __getattr__(name: str) -> Any:
    if name in TRANSFORMS:
        from sparsekern import transform

        return getattr(transform, name)
    raise AttributeError(f"module 'sparsekern' has no attribute {name!r}")
