"""What ``explain`` is asked about: the shape of an input, or an input as it is."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from sparsekern.arguments import check_flag
from sparsekern.nn.group_weights import image_shape


def images(op: str, channels: int, x_shape: Sequence[int] | Tensor | None, channels_last: bool) -> tuple[tuple[int, int, int, int], bool]:
    """(``[N, C, H, W]``, whether channels_last); of a tensor both are its own, without one it is one image of 32 x 32."""
    check_flag(op, channels_last=channels_last)
    if isinstance(x_shape, Tensor):
        last = x_shape.dim() == 4 and x_shape.is_contiguous(memory_format=torch.channels_last) and not x_shape.is_contiguous()
        x_shape, channels_last = tuple(x_shape.shape), channels_last or last
    return image_shape(op, x_shape, channels, 32), channels_last


def rows(in_features: int, rows: int | Tensor) -> Any:
    """How many rows, of a tensor ``[..., in_features]`` its own."""
    if not isinstance(rows, Tensor):
        return rows
    return rows.numel() // in_features if rows.dim() and rows.shape[-1] == in_features else tuple(rows.shape)
