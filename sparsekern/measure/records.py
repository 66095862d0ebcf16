"""Dataclasses whose values come from a file: of the types that their fields name, or refused; and JSON that others can read."""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Mapping
from functools import cache
from types import UnionType
from typing import Any, TypeVar, Union, get_args, get_origin, get_type_hints

Record = TypeVar("Record")


def record(kind: type[Record], values: Mapping[str, Any]) -> Record:
    """A ``kind`` of these values; names that it does not know are left out.

    Raises:
        TypeError: a value is not of its field's type, or one is missing.

    Example:
        >>> from sparsekern.measure.roof import Roof
        >>> record(Roof, {"gflops": 200.0, "read_gbytes": 10, "source": "example", "unknown": 1}).gflops
        200.0
    """
    hints = _hints(kind)
    known = {name: value for name, value in values.items() if name in hints}
    for name, value in known.items():
        if not fits(value, hints[name]):
            raise TypeError(f"{name} must be {hints[name]}")
    return kind(**known)


def fits(value: object, hint: Any) -> bool:
    """Whether a value is what an annotation of numbers, words, tuples, lists, dicts and unions of these says.

    Numbers are finite, and an int is below 2^63.

    Example:
        >>> fits((1, 2), tuple[int, ...] | None), fits((1, 2.5), tuple[int, ...] | None), fits(True, int)
        (True, False, False)
    """
    outer, inner = get_origin(hint), get_args(hint)
    if outer in (Union, UnionType):
        return any(fits(value, one) for one in inner)
    if outer is tuple and isinstance(value, tuple):
        each = inner[:1] * len(value) if inner[-1] is Ellipsis else inner
        return len(value) == len(each) and all(map(fits, value, each))
    if outer is list and isinstance(value, list):
        return all(fits(one, inner[0]) for one in value)
    if outer is dict and isinstance(value, dict):
        return all(fits(key, inner[0]) and fits(one, inner[1]) for key, one in value.items())
    if hint in (int, float) and isinstance(value, int):
        return not isinstance(value, bool) and abs(value) < 2**63
    if isinstance(value, float) and not math.isfinite(value):
        return False
    return outer is None and isinstance(value, hint)


def to_json(who: str, values: object, **options: Any) -> str:
    """``json.dumps``, which would write nan and inf: words that no other reader of JSON knows.

    Raises:
        ValueError: ``<who>: numbers must be finite to be written; got nan``

    Example:
        >>> to_json("rows", {"p50_us": 1.5})
        '{"p50_us": 1.5}'
    """
    try:
        return json.dumps(values, allow_nan=False, **options)
    except ValueError as error:
        raise ValueError(f"{who}: numbers must be finite to be written; got {_not_finite(values)}") from error


def _not_finite(values: Any) -> float | None:
    """The first number in nested values that is not finite."""
    if isinstance(values, dict | list | tuple):
        inner = values.values() if isinstance(values, dict) else values
        return next((found for one in inner if (found := _not_finite(one)) is not None), None)
    return values if isinstance(values, float) and not math.isfinite(values) else None


_hints: Callable[[Any], dict[str, Any]] = cache(get_type_hints)
