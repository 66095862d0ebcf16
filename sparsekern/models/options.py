"""What models ask of the options that several of them have, and how they say so: ``<model>: <option> must be <rule>; got <value>``."""

from __future__ import annotations

import inspect
from collections.abc import Mapping
from typing import Any

from sparsekern.arguments import check_flag, check_real, check_whole, is_whole, said


def check(op: str, condition: bool, arg: str, rule: str, got: object) -> None:
    if not condition:
        raise ValueError(f"{op}: {arg} must be {rule}; got {said(got)}")


def check_numbers(op: str, arg: str, values: Any, rule: str, *, number: int | None = None, bits: int = 31) -> None:
    """Raise unless they are ``number`` (None: at least one) positive whole numbers, in a list or tuple, each below ``2^bits``."""
    listed = isinstance(values, tuple | list) and len(values) > 0 and number in (None, len(values))
    check(op, listed and all(is_whole(n) and n >= 1 for n in values), arg, rule, values)
    check(op, max(values) < 2**bits, arg, f"below 2^{bits}", values)


def check_image(op: str, input_shape: Any, least: int) -> None:
    rule = f"(3, H, W) with H and W at least {least}"
    check_numbers(op, "input_shape", input_shape, rule, number=3, bits=16)
    check(op, input_shape[0] == 3 and min(input_shape[1:]) >= least, "input_shape", rule, input_shape)


def check_groups(op: str, groups: Any, number: int, rule: str) -> None:
    """Raise unless there are so many entries; each is a number or a list of pairs, which the convolution looks at."""
    listed = isinstance(groups, tuple | list) and len(groups) == number
    check(op, listed and all(is_whole(entry) or isinstance(entry, tuple | list) for entry in groups), "groups", rule, groups)


def check_options(op: str, *, classes: Any, conv: Any, dropouts: Mapping[str, object] | None = None, **flags: object) -> None:
    """Raise unless classes are counted, ``conv`` is None or takes what ``nn.Conv2d`` takes, dropouts are in [0, 1], flags truths."""
    check_whole(op, classes=classes)
    check(op, classes >= 1, "classes", "at least 1", classes)
    check_real(op, "in [0, 1]", lambda p: 0 <= p <= 1, **(dropouts or {}))
    check_flag(op, **flags)
    try:
        if conv is not None:
            inspect.signature(conv).bind(3, 4, 3, stride=1, padding=1, groups=1, bias=True)
    except (TypeError, ValueError):
        raise ValueError(f"{op}: conv must be called as torch.nn.Conv2d is; got {said(conv)}") from None
