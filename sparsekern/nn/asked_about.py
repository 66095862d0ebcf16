"""What ``explain`` is asked about: the shape of an input, or an input as it is."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor


def images(
    check: Callable[[bool, str, str, Any], None],
    channels: int,
    x_shape: Sequence[int] | Tensor | None,
    channels_last: bool,
) -> tuple[tuple[int, int, int, int], bool]:
    """(``[N, C, H, W]``, whether channels_last); of a tensor both are its own, without one it is one image of 32 x 32."""
    shape: Any = (1, channels, 32, 32) if x_shape is None else x_shape
    if isinstance(shape, Tensor):
        last = shape.dim() == 4 and shape.is_contiguous(memory_format=torch.channels_last) and not shape.is_contiguous()
        shape, channels_last = tuple(shape.shape), channels_last or last
    numbers = isinstance(shape, Sequence) and not isinstance(shape, str) and all(isinstance(n, int) and n >= 0 for n in shape)
    check(numbers and len(shape) == 4 and shape[1] == channels, "x_shape", f"(N, {channels}, H, W)", shape)
    return tuple(shape), channels_last


def rows(in_features: int, rows: int | Tensor) -> Any:
    """How many rows, of a tensor ``[..., in_features]`` its own."""
    if not isinstance(rows, Tensor):
        return rows
    return rows.numel() // in_features if rows.dim() and rows.shape[-1] == in_features else tuple(rows.shape)
