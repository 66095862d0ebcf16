"""Convolutions, grouped and masked, whose images have more than 2^31 elements: outputs and both gradients. Within 16 GiB."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from trust.test_large import GIB, MANY, free_bytes, our_kernels, pattern

from sparsekern.ops import OPS, backends
from sparsekern.ops.sparse_conv2d import dense_weight, kept_weight, plan_sparse_conv2d
from sparsekern.topology import conv_mask

__all__ = ["our_kernels"]  # a fixture of this file too
pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(free_bytes() < 16 * GIB, reason="less than 16 GiB of memory are free"),
    pytest.mark.skipif(not backends.has_kernels("cpu"), reason="built without kernels"),
]
CHANNELS, FILTERS, SIZE = 16, 4, 11600
LAYOUTS = pytest.mark.parametrize("channels_last", [False, True], ids=["NCHW", "channels_last"])
TRIED = pytest.mark.parametrize("name", ["grouped_conv2d", "sparse_conv2d"])


def places(size: int) -> list[tuple[int, int]]:
    """Of squares of 9 by 9 pixels in a map of this size."""
    return [(0, 0), (0, size - 9), (size - 9, 0), (size - 9, size - 9), (size // 2, size // 3)]


def images(channels: int, channels_last: bool, made=pattern, count: int = 1, size: int = SIZE) -> torch.Tensor:
    """[count, channels, size, size]"""
    return made(count, size, size, channels).permute(0, 3, 1, 2) if channels_last else made(count, channels, size, size)


def layer(name: str, channels: int, filters: int):
    """3x3, padding 1: weight, tables, the window's numbers, and the dense weight [filters, channels, 3, 3] that it stands for."""
    if name == "grouped_conv2d":
        weight, dense = pattern(filters, channels // 4, 3, 3), torch.zeros(filters, channels, 3, 3)
        for own, rows in zip(dense.chunk(4), weight.chunk(4)):
            own[:, : channels // 4] = rows
        dense = torch.cat([own.roll(group * (channels // 4), 1) for group, own in enumerate(dense.chunk(4))])
        return weight, (), (1, 1, 1, 1, 1, 1, 4), dense
    indptr, index = conv_mask(filters, channels * 9, density=0.3, seed=0)
    weight, plan = pattern(len(index), 1, 1, 1), plan_sparse_conv2d(indptr, index, channels, (3, 3), (1, 1, 1))
    return weight, (indptr, index, plan), (3, 3, 1, 1, 1, 1, 1, 1), dense_weight(weight, indptr, index, channels, (3, 3))


def square(t: torch.Tensor, row: int, column: int) -> torch.Tensor:
    return t[:, :, row : row + 9, column : column + 9]


def inner(t: torch.Tensor, row: int = 0, column: int = 0) -> torch.Tensor:
    """Of a square those pixels whose neighbours lie in it."""
    return square(t, row, column)[:, :, 1:8, 1:8]


@LAYOUTS
def test_outputs(channels_last):
    weight, tables, window, dense = layer("sparse_conv2d", FILTERS, CHANNELS)  # of grouped ones: test_large.py
    x = images(FILTERS, channels_last)
    out = OPS["sparse_conv2d"].forward.run(x, weight, None, *tables, *window)
    assert out.numel() > MANY
    for place in places(SIZE):
        assert torch.equal(inner(out, *place), F.conv2d(square(x, *place), dense)), place


@LAYOUTS
@TRIED
def test_gradients_of_images(name, channels_last):
    weight, tables, window, dense = layer(name, CHANNELS, FILTERS)
    grad = images(FILTERS, channels_last)
    sizes = (SIZE, SIZE) if name == "grouped_conv2d" else (CHANNELS, SIZE, SIZE)
    out = OPS[name].grad_x.run(grad, weight, *tables, *sizes, *window)
    assert out.numel() > MANY
    for place in places(SIZE):
        assert torch.equal(inner(out, *place), inner(F.conv_transpose2d(square(grad, *place), dense, padding=1))), place


@LAYOUTS
@TRIED
def test_gradients_of_weights(name, channels_last):
    """A gradient comes in at a few places only, far from one another: the sums are exact. A copy is made of one image at a time."""
    weight, tables, window, dense = layer(name, CHANNELS, FILTERS)
    several = {"count": 16, "size": SIZE // 4}
    x, grad = images(CHANNELS, channels_last, **several), images(FILTERS, channels_last, torch.zeros, **several)
    assert x.numel() > MANY
    want = torch.zeros_like(dense)
    for number, place in enumerate(places(SIZE // 4)):
        for image in (0, 15):
            came = inner(grad[image : image + 1], *place).copy_(pattern(1, FILTERS, 7, 7 + number + image)[..., :7])
            want += torch.nn.grad.conv2d_weight(square(x[image : image + 1], *place).contiguous(), dense.shape, came.contiguous())
    sizes = tuple(weight.shape[2:]) if name == "grouped_conv2d" else tuple(weight.shape[1:])
    got = OPS[name].grad_weight.run(grad, x, *tables, *sizes, *window)
    if name == "grouped_conv2d":  # one filter a group
        own = CHANNELS // FILTERS
        want = torch.cat([want[k : k + 1, k * own : (k + 1) * own] for k in range(FILTERS)])
    else:
        want = kept_weight(want, *tables[:2], (1, 1, 1))
    assert torch.equal(got, want)
