"""Weights of convolutions in filter groups: between ``[K, C/G, KH, KW]`` and fewer groups, down to the dense ``[K, C, KH, KW]``."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from sparsekern.arguments import check_whole, is_whole, said


def spread_groups(weight: Tensor, groups: int) -> Tensor:
    """``weight [K, C/G, KH, KW]`` of ``groups`` as dense ``[K, C, KH, KW]`` with zeros between the groups; differentiable.

    Example:
        >>> spread_groups(torch.ones(4, 1, 1, 1), groups=2)[..., 0, 0].tolist()
        [[1.0, 0.0], [1.0, 0.0], [0.0, 1.0], [0.0, 1.0]]
    """
    blocks = weight.unflatten(0, (groups, -1))  # [G, K/G, C/G, KH, KW]
    same = torch.eye(groups, device=weight.device, dtype=weight.dtype)
    dense = torch.einsum("gkchw,gf->gkfchw", blocks, same)  # f: the group that is read
    return dense.flatten(2, 3).flatten(0, 1)


def inside_groups(weight: Tensor, in_channels: int, groups: int) -> Tensor:
    """The entries of ``weight [K, C/G', KH, KW]`` of fewer groups ``G'`` that lie inside ``groups`` groups: ``[K, C/G, KH, KW]``.

    Example:
        >>> inside_groups(torch.arange(8.0).reshape(4, 2, 1, 1), in_channels=2, groups=2).flatten().tolist()
        [0.0, 2.0, 5.0, 7.0]
    """
    finer = groups * weight.shape[1] // in_channels  # of the groups wanted, those in one of the given weight's
    rows = weight.unflatten(0, (-1, finer, weight.shape[0] // groups)).unflatten(3, (finer, -1))  # [G', f, K/G, f, C/G, ..]
    return rows.diagonal(dim1=1, dim2=3).movedim(-1, 1).flatten(0, 2)


def has_fewer_groups(shape: tuple[int, ...], wanted: tuple[int, ...], in_channels: int) -> bool:
    """Whether ``shape`` is the weight's shape of the same convolution as ``wanted``, with fewer groups that its groups divide."""
    filters, channels, *kernel = wanted
    same = len(shape) == 4 and (shape[0], *shape[2:]) == (filters, *kernel)
    return same and shape[1] > channels and shape[1] % channels == 0 and in_channels % shape[1] == 0


def window_of(conv: nn.Conv2d) -> tuple[tuple[int, int], tuple[int, int], tuple[int, int] | str, tuple[int, int]]:
    """``kernel_size, stride, padding, dilation``: two numbers each, though torch's annotations leave open how many."""
    window: Any = conv.kernel_size, conv.stride, conv.padding, conv.dilation
    return window


def check_conv(op: str, conv: Any, groups: Any) -> None:
    """What ``from_dense`` takes: a convolution, and groups that are a multiple of its own, or None."""
    if not isinstance(conv, nn.Conv2d):
        raise ValueError(f"{op}: conv must be an nn.Conv2d; got {type(conv).__name__}")
    if groups is not None:
        check_whole(op, groups=groups)
        if groups < 1 or groups % conv.groups:
            raise ValueError(f"{op}: groups must be a multiple of the layer's {conv.groups}; got {groups}")


def image_shape(op: str, x_shape: Any, channels: int, size: int) -> tuple[int, int, int, int]:
    """``(N, C, H, W)`` as given, or of one square image."""
    if x_shape is None:
        return 1, channels, size, size
    shape = tuple(x_shape) if isinstance(x_shape, Sequence) else (x_shape,)
    if len(shape) != 4 or shape[1] != channels or not all(is_whole(n) and 0 <= n < 2**31 for n in shape):
        raise ValueError(f"{op}: x_shape must be (N, {channels}, H, W); got {shape if isinstance(x_shape, Sequence) else said(x_shape)}")
    return shape


def dense_twin(layer: Any, weight: Tensor, bias: Tensor | None) -> nn.Conv2d:
    """An ``nn.Conv2d`` with the window of ``layer`` and the dense ``weight [K, C, KH, KW]``."""
    dense = nn.Conv2d(
        layer.in_channels, layer.out_channels, layer.kernel_size, layer.stride, layer.padding, layer.dilation,
        bias=bias is not None, padding_mode=layer.padding_mode, device="meta", dtype=weight.dtype,
    ).to_empty(device=weight.device)  # fmt: skip
    with torch.no_grad():
        dense.weight.copy_(weight)
        if dense.bias is not None and bias is not None:
            dense.bias.copy_(bias)
    return dense
