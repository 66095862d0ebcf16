"""Checks of arguments that every room needs, and how they say so: ``<op>: <arg> must be <rule>; got <value>``."""

from __future__ import annotations

import operator
from collections.abc import Callable
from numbers import Real
from typing import Any, TypeGuard

import numpy as np
import torch


def check_whole(op: str, **values: object) -> None:
    """Raise ``<op>: <arg> must be a whole number; got '3'`` unless each of them is an int, of Python or numpy, below 2^31."""
    for arg, value in values.items():
        if not is_whole(value):
            raise ValueError(f"{op}: {arg} must be a whole number; got {said(value)}")
        if value >= 2**31:
            raise ValueError(f"{op}: {arg} must be below 2^31; got {value}")


def as_whole(op: str, **values: Any) -> list[int]:
    """The same as Python's own, which have no largest one: products of numpy's wrap round. Raises as :func:`check_whole`."""
    check_whole(op, **values)
    return [operator.index(value) for value in values.values()]


def is_whole(value: object, most: int | None = None) -> TypeGuard[int]:
    """Arrays and tensors of one element are none, nor are types and truths; ``most``: up to there."""
    index: Any = getattr(value, "__index__", None)
    whole = index is not None and not isinstance(value, bool | type | np.ndarray | torch.Tensor)
    return whole and (most is None or index() <= most)


def said(value: object) -> str:
    """What was got, in short."""
    if isinstance(value, np.ndarray) or (isinstance(value, torch.Tensor) and not value.is_nested):
        return f"{type(value).__name__} {list(value.shape)}"
    return repr(value)


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


def check_seed(op: str, seed: object) -> None:
    if seed is not None and not (is_whole(seed) and -(2**63) <= int(seed) < 2**64):
        raise ValueError(f"{op}: seed must be None or a whole number of 64 bits; got {said(seed)}")
