"""Triton twin of sparse_conv2d: only kept blocks are read, one after the other, each for a run of pixels."""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from sparsekern.ops.sparse_conv2d import _images_like as images_like
from sparsekern.ops.sparse_conv2d import _out_size as out_size
from sparsekern.ops.sparse_conv2d import check, reference, reference_grad_weight, reference_grad_x
from sparsekern.ops.triton.launch import by_input, pixels, power, programs, run, serves, tiles


@triton.jit
def _forward(
    x, weight, bias, indptr, index, out, BO, BI, TAPS, H, W, OH, OW, M, x_n, x_c, x_h, x_w, o_n, o_c, o_h, o_w,
    KH, KW, stride_h, stride_w, pad_h, pad_w, dilation_h, dilation_w,
    BT: tl.constexpr, BIAS: tl.constexpr, TM: tl.constexpr, TO: tl.constexpr,
):  # fmt: skip
    """out: pixels [TM] by filters [TO] of an output block, over its kept blocks and their j = (input, tap)."""
    tile, part, ob = programs(tl.cdiv(M, TM), tl.cdiv(BO, TO))
    n, y, z, in_m = pixels(tile * TM, TM, M, OH, OW)
    o = part * TO + tl.arange(0, TO)
    in_o = o < BO
    sums = tl.zeros((TO, TM), tl.float32)
    for e in range(tl.load(indptr + ob), tl.load(indptr + ob + 1)):
        code = tl.load(index + e)
        for j in range(BI * BT):
            c, tap = tl.cast(code // TAPS * BI + j // BT, tl.int64), code % TAPS * BT + j % BT
            row, column = y * stride_h + tap // KW * dilation_h - pad_h, z * stride_w + tap % KW * dilation_w - pad_w
            inside = in_m & (row >= 0) & (row < H) & (column >= 0) & (column < W)
            image = tl.load(x + n * x_n + c * x_c + row * x_h + column * x_w, inside, 0.0).to(tl.float32)
            w = tl.load(weight + ((tl.cast(e, tl.int64) * BO + o) * BI + j // BT) * BT + j % BT, in_o, 0.0).to(tl.float32)
            sums += w[:, None] * image[None, :]
    filters = ob * BO + o
    if BIAS:
        sums += tl.load(bias + filters, in_o, 0.0).to(tl.float32)[:, None]
    at = n[None, :] * o_n + filters[:, None] * o_c + y[None, :] * o_h + z[None, :] * o_w
    tl.store(out + at, sums.to(out.dtype.element_ty), in_o[:, None] & in_m[None, :])


@triton.jit
def _grad_x(
    g, weight, index, order, begin, rows, out, BO, BI, TAPS, H, W, OH, OW, M, g_n, g_c, g_h, g_w, o_n, o_c, o_h, o_w,
    KH, KW, stride_h, stride_w, pad_h, pad_w, dilation_h, dilation_w, BT: tl.constexpr, TM: tl.constexpr, TI: tl.constexpr,
):  # fmt: skip
    """grad_x: pixels of x [TM] by channels [TI] of an input block, over the kept blocks that read it."""
    tile, part, ib = programs(tl.cdiv(M, TM), tl.cdiv(BI, TI))
    n, y, z, in_m = pixels(tile * TM, TM, M, H, W)
    i = part * TI + tl.arange(0, TI)
    in_i = i < BI
    sums = tl.zeros((TI, TM), tl.float32)
    for k in range(tl.load(begin + ib), tl.load(begin + ib + 1)):
        e = tl.load(order + k).to(tl.int64)
        ob, first_tap = tl.load(rows + e).to(tl.int64), tl.load(index + e) % TAPS * BT
        for t in range(BT):
            up = y + pad_h - (first_tap + t) // KW * dilation_h
            left = z + pad_w - (first_tap + t) % KW * dilation_w
            row, column = up // stride_h, left // stride_w
            inside = (up >= 0) & (up % stride_h == 0) & (row < OH) & (left >= 0) & (left % stride_w == 0) & (column < OW) & in_m
            for o in range(BO):
                grad = tl.load(g + n * g_n + (ob * BO + o) * g_c + row * g_h + column * g_w, inside, 0.0).to(tl.float32)
                w = tl.load(weight + ((e * BO + o) * BI + i) * BT + t, in_i, 0.0).to(tl.float32)
                sums += w[:, None] * grad[None, :]
    at = n[None, :] * o_n + (ib * BI + i)[:, None] * o_c + y[None, :] * o_h + z[None, :] * o_w
    tl.store(out + at, sums.to(out.dtype.element_ty), in_i[:, None] & in_m[None, :])


@triton.jit
def _grad_weight(
    g, x, index, rows, out, BO, BI, TAPS, H, W, OH, OW, M, g_n, g_c, g_h, g_w, x_n, x_c, x_h, x_w,
    KH, KW, stride_h, stride_w, pad_h, pad_w, dilation_h, dilation_w, BT: tl.constexpr, TJ: tl.constexpr, TM: tl.constexpr,
):  # fmt: skip
    """grad_weight: j = (filter, input, tap) [TJ] of a kept block, summed over the output's pixels in their order."""
    e = tl.program_id(0).to(tl.int64)
    j = tl.program_id(1) * TJ + tl.arange(0, TJ)
    in_j = j < BO * BI * BT
    code = tl.load(index + e)
    filters = tl.load(rows + e).to(tl.int64) * BO + j // BT // BI
    c, tap = (code // TAPS * BI + j // BT % BI).to(tl.int64), code % TAPS * BT + j % BT
    sums = tl.zeros((TJ, TM), tl.float32)
    for first in range(0, M, TM):
        n, y, z, in_m = pixels(first, TM, M, OH, OW)
        there = in_j[:, None] & in_m[None, :]
        at = n[None, :] * g_n + filters[:, None] * g_c + y[None, :] * g_h + z[None, :] * g_w
        grad = tl.load(g + at, there, 0.0).to(tl.float32)
        row = (y * stride_h - pad_h)[None, :] + (tap // KW * dilation_h)[:, None]
        column = (z * stride_w - pad_w)[None, :] + (tap % KW * dilation_w)[:, None]
        inside = (row >= 0) & (row < H) & (column >= 0) & (column < W) & there
        sums += grad * tl.load(x + n[None, :] * x_n + c[:, None] * x_c + row * x_h + column * x_w, inside, 0.0).to(tl.float32)
    tl.store(out + e * (BO * BI * BT) + j, tl.sum(sums, 1).to(out.dtype.element_ty), in_j)


def _rows(indptr: Tensor, nnz: int) -> Tensor:
    """[nnz] int32: the output block of each kept block, without waiting for the device."""
    return torch.searchsorted(indptr, torch.arange(nnz, dtype=torch.int32, device=indptr.device), right=True).sub_(1).int()


def forward(
    x: Tensor, weight: Tensor, bias: Tensor | None, indptr: Tensor, index: Tensor, plan: Tensor | None, *window, checked: bool = False
) -> Tensor:
    """``checked``: the arguments were, and nobody waits for the device to read the tables."""
    if not serves(x.dtype):
        return reference(x, weight, bias, indptr, index, plan, *window)
    if not checked:
        check(x, weight, bias, indptr, index, plan, *window)
    _, BO, BI, BT = weight.shape
    OB = indptr.shape[0] - 1
    height, width = out_size(*x.shape[2:], *window)
    out = images_like(x, OB * BO, height, width)
    M, taps = x.shape[0] * height * width, window[0] * window[1] // BT
    TM, TO = power(M, 16, 128), power(BO, 1, 32)
    args = (x, weight.contiguous(), weight if bias is None else bias.contiguous(), indptr.contiguous(), index.contiguous(), out)
    sizes = (BO, BI, taps, *x.shape[2:], height, width, M, *x.stride(), *out.stride(), *window)
    run(_forward, (tiles(M, TM) * tiles(BO, TO) * OB,), x.device, *args, *sizes, BT, bias is not None, TM, TO)
    return out


def grad_x(
    grad_out: Tensor, weight: Tensor, indptr: Tensor, index: Tensor, plan: Tensor | None, channels: int, height: int, width: int, *window
) -> Tensor:
    if not serves(grad_out.dtype):
        return reference_grad_x(grad_out, weight, indptr, index, plan, channels, height, width, *window)
    _, BO, BI, BT = weight.shape
    out = images_like(grad_out, channels, height, width)
    M, taps, IB = grad_out.shape[0] * height * width, window[0] * window[1] // BT, channels // BI
    order, begin = by_input(torch.div(index, taps, rounding_mode="floor"), IB)
    TM, TI = power(M, 16, 128), power(BI, 1, 32)
    args = (grad_out, weight.contiguous(), index.contiguous(), order, begin, _rows(indptr, index.shape[0]), out)
    sizes = (BO, BI, taps, height, width, *grad_out.shape[2:], M, *grad_out.stride(), *out.stride(), *window)
    run(_grad_x, (tiles(M, TM) * tiles(BI, TI) * IB,), out.device, *args, *sizes, BT, TM, TI)
    return out


def grad_weight(
    grad_out: Tensor, x: Tensor, indptr: Tensor, index: Tensor, plan: Tensor | None, block_out: int, block_in: int, block_taps: int, *window
) -> Tensor:
    if not serves(x.dtype):
        return reference_grad_weight(grad_out, x, indptr, index, plan, block_out, block_in, block_taps, *window)
    out = torch.empty(index.shape[0], block_out, block_in, block_taps, dtype=x.dtype, device=x.device)
    M, taps = grad_out.shape[0] * grad_out.shape[2] * grad_out.shape[3], window[0] * window[1] // block_taps
    TJ = power(block_out * block_in * block_taps, 1, 32)
    args = (grad_out, x, index.contiguous(), _rows(indptr, index.shape[0]), out, block_out, block_in, taps)
    sizes = (*x.shape[2:], *grad_out.shape[2:], M, *grad_out.stride(), *x.stride(), *window)
    grid = (index.shape[0], tiles(block_out * block_in * block_taps, TJ))
    run(_grad_weight, grid, x.device, *args, *sizes, block_taps, TJ, power(M, 16, 128))
    return out
