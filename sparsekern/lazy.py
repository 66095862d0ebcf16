"""What the package offers by name and imports at first use: it would slow down every ``import sparsekern``."""

from __future__ import annotations

from typing import Any


def __getattr__(name: str) -> Any:
    if name == "optimize":
        from sparsekern.transform import optimize

        return optimize
    raise AttributeError(f"module 'sparsekern' has no attribute {name!r}")
