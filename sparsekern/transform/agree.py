"""Whether two models gave the same: value by value within rounding, and all else to the letter."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import fields, is_dataclass
from typing import Any

import torch
from torch import Tensor


def flat(output: Any) -> list[Tensor]:
    """Every tensor of an output: of lists, dictionaries and data classes, as deep as they go."""
    found: list[Tensor] = []
    for leaf in torch.utils._pytree.tree_leaves(output):
        if isinstance(leaf, Tensor):
            found.append(leaf)
        elif is_dataclass(leaf):
            found += flat([getattr(leaf, field.name) for field in fields(leaf)])
    return found


def _differences(expected: list[Tensor], found: list[Tensor]) -> Iterator[float]:
    """Of each output the largest difference, relative to its largest magnitude; infinite where shape, dtype, what is not finite or
    anything of a whole number is another."""
    for e, f in zip(expected, found):
        if e.shape != f.shape or e.dtype != f.dtype:
            yield math.inf
        elif not (e.is_floating_point() or e.is_complex()):
            yield 0.0 if torch.equal(e, f) else math.inf
        else:
            e, f = (t.to(torch.complex128 if t.is_complex() else torch.float64) for t in (e, f))
            finite = e.isfinite()
            odd_e, odd_f, e, f = e[~finite], f[~finite], e[finite], f[finite]
            same = bool(f.isfinite().all()) and torch.allclose(odd_e, odd_f, rtol=0, atol=0, equal_nan=True)
            yield float((e - f).abs().max() / e.abs().max().clamp_min(1e-300)) if same and e.numel() else 0.0 if same else math.inf


def difference(expected: list[Tensor], found: list[Tensor]) -> float:
    return max(_differences(expected, found), default=0.0) if len(expected) == len(found) else math.inf


def agree(expected: list[Tensor], found: list[Tensor]) -> bool:
    return len(expected) == len(found) and all(d <= _allowed(e.dtype) for e, d in zip(expected, _differences(expected, found)))


def _allowed(dtype: torch.dtype) -> float:
    """Rounding grows with depth; what is wrong is wrong by far more than the root of a unit in the last place."""
    return torch.finfo(dtype).eps ** 0.5 if dtype.is_floating_point or dtype.is_complex else 0.0
