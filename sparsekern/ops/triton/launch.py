"""What every twin needs around its kernels: grids, sizes, the device that a launch goes to."""

from __future__ import annotations

import contextlib
from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

#: Under the interpreter a bf16 product of matrices is wrong, and so operands are widened first: the same numbers, exactly.
WIDEN = triton.knobs.runtime.interpret


def serves(dtype: torch.dtype) -> bool:
    """float64 is left to the references: their sums are as exact as a double's."""
    return dtype in (torch.float32, torch.float16, torch.bfloat16)


def power(size: int, least: int, most: int) -> int:
    """The power of two from ``size`` on, within [least, most]: the length of a tile."""
    return min(most, max(least, triton.next_power_of_2(max(1, size))))


def run(kernel: Any, grid: tuple[int, ...], device: torch.device, *args: Any, **constants: Any) -> None:
    """Launch on the device of the tensors, which need not be the current one; an empty grid launches nothing."""
    if min(grid) == 0:
        return
    with torch.cuda.device(device) if device.type == "cuda" else contextlib.nullcontext():
        kernel[grid](*args, **constants)


def tiles(size: int, tile: int) -> int:
    return -(-size // tile)


def by_input(index: Tensor, inputs: int) -> tuple[Tensor, Tensor]:
    """``index`` (which input a connection reads) turned round: connections in the order of their inputs, and where each input's begin.

    ``[nnz] -> order [nnz] int32, begin [inputs + 1] int32``, without waiting for the device.
    """
    inputs_in_order, order = index.flatten().sort(stable=True)
    begin = torch.searchsorted(inputs_in_order, torch.arange(inputs + 1, dtype=index.dtype, device=index.device))
    return order.int(), begin.int()


@triton.jit
def programs(tiles, parts):
    """Which tile, which part, and which of what is left, this program of ``tiles * parts * ...`` is: only one axis of a grid is long."""
    program = tl.program_id(0).to(tl.int64)
    return program % tiles, program // tiles % parts, program // tiles // parts


@triton.jit
def product(a, b, sums, WIDE: tl.constexpr):
    """``sums [M, N] + a [M, K] @ b [K, N]`` in strict float32 sums."""
    if WIDE:
        a, b = a.to(tl.float32), b.to(tl.float32)
    return tl.dot(a, b, sums, input_precision="ieee")


@triton.jit
def pixels(first, TM: tl.constexpr, M, height, width):
    """A run of pixels [TM] of all images: image, row, column, and whether there is such a pixel."""
    m = first + tl.arange(0, TM).to(tl.int64)
    return m // (height * width), m // width % height, m % width, m < M
