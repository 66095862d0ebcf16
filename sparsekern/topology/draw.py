"""Where random topologies come from: torch's own generator, or one made from a seed, which leaves torch's alone."""

from __future__ import annotations

import zlib
from collections.abc import Callable
from numbers import Real
from typing import Any

import numpy as np
import torch


def check_whole(op: str, **values: object) -> None:
    """Raise ``<op>: <arg> must be a whole number; got '3'`` unless each of them is an int, of Python or numpy, below 2^31."""
    for arg, value in values.items():
        if not is_whole(value):
            raise ValueError(f"{op}: {arg} must be a whole number; got {said(value)}")
        if value >= 2**31:  # type: ignore[operator] # a number
            raise ValueError(f"{op}: {arg} must be below 2^31; got {value}")


def is_whole(value: object) -> bool:
    """Arrays and tensors of one element are none, nor are types and truths."""
    return hasattr(value, "__index__") and not isinstance(value, bool | type | np.ndarray | torch.Tensor)


def said(value: object) -> str:
    """What was got, in short."""
    array = isinstance(value, np.ndarray) or (isinstance(value, torch.Tensor) and not value.is_nested)
    return f"{type(value).__name__} {list(value.shape)}" if array else repr(value)  # type: ignore[attr-defined] # of both


def check_real(op: str, rule: str, good: Callable[[Any], bool], **values: object) -> None:
    """Raise ``<op>: <arg> must be <rule>; got 'x'`` unless each of them is a number for which ``good`` holds."""
    for arg, value in values.items():
        if not isinstance(value, Real) or isinstance(value, bool) or not good(value):
            raise ValueError(f"{op}: {arg} must be {rule}; got {value if isinstance(value, Real | str) else said(value)}")


def check_flag(op: str, **values: object) -> None:
    """Raise unless each of them is a truth; None is none and a number is one, as torch's layers take it."""
    for arg, value in values.items():
        if not isinstance(value, int | np.bool_ | None):
            raise ValueError(f"{op}: {arg} must be True or False; got {said(value)}")


def check_pairs(op: str, **values: tuple[object, int]) -> None:
    """Raise unless each is a whole number of at least so many, or two, rows and columns, which 32 bits can name."""
    for arg, (value, least) in values.items():
        pair = value if isinstance(value, tuple | list) else (value, value)
        if len(pair) != 2 or not all(is_whole(n) and n >= least for n in pair):
            raise ValueError(f"{op}: {arg} must be a whole number of at least {least}, or two; got {said(value)}")
        if max(pair) >= 2**31:
            raise ValueError(f"{op}: {arg} must be below 2^31; got {said(value)}")


def check_dtype(op: str, dtype: object) -> None:
    if dtype is not None and not (isinstance(dtype, torch.dtype) and dtype.is_floating_point):
        raise ValueError(f"{op}: dtype must be a floating-point one; got {said(dtype)}")


def check_table(op: str, arg: str, table: object) -> None:
    """Raise unless ``table`` is a tensor ``[OB, F]`` of integers."""
    if not isinstance(table, torch.Tensor):
        raise TypeError(f"{op}: {arg} must be a tensor; got {type(table).__name__}")
    if table.dim() != 2 or table.is_floating_point() or table.is_complex() or table.dtype == torch.bool:
        raise ValueError(f"{op}: {arg} must be [OB, F] integers; got {list(table.shape)} {table.dtype}")


def check_seed(op: str, seed: object) -> None:
    if seed is not None and not (is_whole(seed) and -(2**63) <= int(seed) < 2**64):  # type: ignore[call-overload] # a number
        raise ValueError(f"{op}: seed must be None or a whole number of 64 bits; got {said(seed)}")


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
