"""Triton twin of grouped_conv2d: implicit matrix products per group, pixels by filters over (channel, tap), in either layout."""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from sparsekern.ops.grouped_conv2d import _new_like as new_like
from sparsekern.ops.grouped_conv2d import _out_size as out_size
from sparsekern.ops.grouped_conv2d import check, reference, reference_grad_weight, reference_grad_x
from sparsekern.ops.triton.launch import WIDEN, pixels, power, product, programs, run, serves, tiles


@triton.jit
def convolved(
    x, weight, group, filters, in_k, n, y, z, in_m, C, H, W, x_n, x_c, x_h, x_w,
    stride_h, stride_w, pad_h, pad_w, dilation_h, dilation_w, KH: tl.constexpr, KW: tl.constexpr,
    WIDE: tl.constexpr, TM: tl.constexpr, TK: tl.constexpr, TJ: tl.constexpr,
):  # fmt: skip
    """Sums [TM, TK] of pixels (n, y, z) by filters of a group of C inputs, over j = (channel, tap), TJ of them at a time."""
    sums = tl.zeros((TM, TK), tl.float32)
    for first in range(0, C * KH * KW, TJ):
        j = first + tl.arange(0, TJ)
        in_j = j < C * KH * KW
        c, tap = group * C + j // (KH * KW), j % (KH * KW)
        row = (y * stride_h - pad_h)[:, None] + (tap // KW * dilation_h)[None, :]
        column = (z * stride_w - pad_w)[:, None] + (tap % KW * dilation_w)[None, :]
        inside = (row >= 0) & (row < H) & (column >= 0) & (column < W) & in_m[:, None] & in_j[None, :]
        image = tl.load(x + n[:, None] * x_n + c[None, :] * x_c + row * x_h + column * x_w, inside, 0.0)
        w = tl.load(weight + filters[None, :] * (C * KH * KW) + j[:, None], in_j[:, None] & in_k[None, :], 0.0)
        sums = product(image, w, sums, WIDE)
    return sums


@triton.jit
def _forward(
    x, weight, bias, shortcut, out, C, K, H, W, OH, OW, M, x_n, x_c, x_h, x_w, a_n, a_c, a_h, a_w, o_n, o_c, o_h, o_w,
    stride_h, stride_w, pad_h, pad_w, dilation_h, dilation_w, KH: tl.constexpr, KW: tl.constexpr,
    BIAS: tl.constexpr, ADD: tl.constexpr, RELU: tl.constexpr, WIDE: tl.constexpr,
    TM: tl.constexpr, TK: tl.constexpr, TJ: tl.constexpr,
):  # fmt: skip
    """out: a tile of pixels [TM] by filters [TK] of one group (C inputs, K filters)."""
    tile, part, group = programs(tl.cdiv(M, TM), tl.cdiv(K, TK))
    n, y, z, in_m = pixels(tile * TM, TM, M, OH, OW)
    k = part * TK + tl.arange(0, TK)
    in_k = k < K
    filters = group * K + k
    sums = convolved(
        x, weight, group, filters, in_k, n, y, z, in_m, C, H, W, x_n, x_c, x_h, x_w,
        stride_h, stride_w, pad_h, pad_w, dilation_h, dilation_w, KH, KW, WIDE, TM, TK, TJ,
    )  # fmt: skip
    if BIAS:
        sums += tl.load(bias + filters, in_k, 0.0).to(tl.float32)[None, :]
    inside = in_m[:, None] & in_k[None, :]
    if ADD:
        at = n[:, None] * a_n + filters[None, :] * a_c + y[:, None] * a_h + z[:, None] * a_w
        sums += tl.load(shortcut + at, inside, 0.0).to(tl.float32)
    if RELU:
        sums = tl.where(sums < 0, 0.0, sums)  # a NaN stays
    at = n[:, None] * o_n + filters[None, :] * o_c + y[:, None] * o_h + z[:, None] * o_w
    tl.store(out + at, sums.to(out.dtype.element_ty), inside)


@triton.jit
def _grad_x(
    g, weight, out, C, K, H, W, OH, OW, M, g_n, g_c, g_h, g_w, o_n, o_c, o_h, o_w,
    stride_h, stride_w, pad_h, pad_w, dilation_h, dilation_w, KH: tl.constexpr, KW: tl.constexpr,
    WIDE: tl.constexpr, TM: tl.constexpr, TC: tl.constexpr, TJ: tl.constexpr,
):  # fmt: skip
    """grad_x: a tile of pixels of x [TM] by channels [TC] of one group, over j = (filter, tap): which output pixel read it, if any."""
    tile, part, group = programs(tl.cdiv(M, TM), tl.cdiv(C, TC))
    n, y, z, in_m = pixels(tile * TM, TM, M, H, W)
    c = part * TC + tl.arange(0, TC)
    in_c = c < C
    sums = tl.zeros((TM, TC), tl.float32)
    for first in range(0, K * KH * KW, TJ):
        j = first + tl.arange(0, TJ)
        in_j = j < K * KH * KW
        k, tap = group * K + j // (KH * KW), j % (KH * KW)
        up = (y + pad_h)[:, None] - (tap // KW * dilation_h)[None, :]
        left = (z + pad_w)[:, None] - (tap % KW * dilation_w)[None, :]
        row, column = up // stride_h, left // stride_w
        inside = (up >= 0) & (up % stride_h == 0) & (row < OH) & (left >= 0) & (left % stride_w == 0) & (column < OW)
        inside = inside & in_m[:, None] & in_j[None, :]
        grad = tl.load(g + n[:, None] * g_n + k[None, :] * g_c + row * g_h + column * g_w, inside, 0.0)
        at = (k[:, None] * C + c[None, :]) * (KH * KW) + tap[:, None]
        sums = product(grad, tl.load(weight + at, in_j[:, None] & in_c[None, :], 0.0), sums, WIDE)
    at = n[:, None] * o_n + (group * C + c)[None, :] * o_c + y[:, None] * o_h + z[:, None] * o_w
    tl.store(out + at, sums.to(out.dtype.element_ty), in_m[:, None] & in_c[None, :])


@triton.jit
def _grad_weight(
    g, x, out, C, K, H, W, OH, OW, M, g_n, g_c, g_h, g_w, x_n, x_c, x_h, x_w,
    stride_h, stride_w, pad_h, pad_w, dilation_h, dilation_w, KH: tl.constexpr, KW: tl.constexpr,
    WIDE: tl.constexpr, TK: tl.constexpr, TJ: tl.constexpr, TM: tl.constexpr,
):  # fmt: skip
    """grad_weight: a tile of filters [TK] by j = (channel, tap) [TJ] of one group, over the output's pixels in their order."""
    group = tl.program_id(0).to(tl.int64)
    k = tl.program_id(1) * TK + tl.arange(0, TK)
    j = tl.program_id(2) * TJ + tl.arange(0, TJ)
    in_k, in_j = k < K, j < C * KH * KW
    filters, c, tap = group * K + k, group * C + j // (KH * KW), j % (KH * KW)
    sums = tl.zeros((TK, TJ), tl.float32)
    for first in range(0, M, TM):
        n, y, z, in_m = pixels(first, TM, M, OH, OW)
        at = n[None, :] * g_n + filters[:, None] * g_c + y[None, :] * g_h + z[None, :] * g_w
        grad = tl.load(g + at, in_k[:, None] & in_m[None, :], 0.0)
        row = (y * stride_h - pad_h)[:, None] + (tap // KW * dilation_h)[None, :]
        column = (z * stride_w - pad_w)[:, None] + (tap % KW * dilation_w)[None, :]
        inside = (row >= 0) & (row < H) & (column >= 0) & (column < W) & in_m[:, None] & in_j[None, :]
        image = tl.load(x + n[:, None] * x_n + c[None, :] * x_c + row * x_h + column * x_w, inside, 0.0)
        sums = product(grad, image, sums, WIDE)
    tl.store(out + filters[:, None] * (C * KH * KW) + j[None, :], sums.to(out.dtype.element_ty), in_k[:, None] & in_j[None, :])


def forward(x: Tensor, weight: Tensor, bias: Tensor | None, shortcut: Tensor | None, *window) -> Tensor:
    if not serves(x.dtype):
        return reference(x, weight, bias, shortcut, *window)
    *sizes, groups, relu = window
    stride_h, stride_w, pad_h, pad_w, dilation_h, dilation_w = sizes
    check(x, weight, bias, stride_h, stride_w, pad_h, pad_w, dilation_h, dilation_w, groups, shortcut)
    K, C, KH, KW = weight.shape
    height, width = (out_size(x.shape[2 + d], weight.shape[2 + d], sizes[d], sizes[2 + d], sizes[4 + d]) for d in (0, 1))
    out = new_like(x, (x.shape[0], K, height, width))
    M, K, weight = x.shape[0] * height * width, K // groups, weight.contiguous()
    TM, TK = power(M, 16, 32), power(K, 16, 64)
    grid = (tiles(M, TM) * tiles(K, TK) * groups,)
    added = x if shortcut is None else shortcut
    strides = (*x.stride(), *added.stride(), *out.stride())
    flags = (bias is not None, shortcut is not None, bool(relu), WIDEN)
    args = (x, weight, weight if bias is None else bias.contiguous(), added, out, C, K, *x.shape[2:], height, width, M, *strides, *sizes)
    run(_forward, grid, x.device, *args, KH, KW, *flags, TM, TK, power(C * KH * KW, 16, 32))
    return out


def grad_x(grad_out: Tensor, weight: Tensor, height: int, width: int, *window) -> Tensor:
    if not serves(grad_out.dtype):
        return reference_grad_x(grad_out, weight, height, width, *window)
    *sizes, groups = window
    K, C, KH, KW = weight.shape
    out = new_like(grad_out, (grad_out.shape[0], C * groups, height, width))
    M, K, weight = grad_out.shape[0] * height * width, K // groups, weight.contiguous()
    TM, TC = power(M, 16, 32), power(C, 16, 64)
    args = (grad_out, weight, out, C, K, height, width, *grad_out.shape[2:], M, *grad_out.stride(), *out.stride(), *sizes)
    run(_grad_x, (tiles(M, TM) * tiles(C, TC) * groups,), out.device, *args, KH, KW, WIDEN, TM, TC, 16)
    return out


def grad_weight(grad_out: Tensor, x: Tensor, kernel_h: int, kernel_w: int, *window) -> Tensor:
    if not serves(x.dtype):
        return reference_grad_weight(grad_out, x, kernel_h, kernel_w, *window)
    *sizes, groups = window
    C, K = x.shape[1] // groups, grad_out.shape[1] // groups
    out = torch.empty(K * groups, C, kernel_h, kernel_w, dtype=x.dtype, device=x.device)
    M, J = grad_out.shape[0] * grad_out.shape[2] * grad_out.shape[3], C * kernel_h * kernel_w
    TK, TJ = power(K, 16, 64), power(J, 16, 64)
    args = (grad_out, x, out, C, K, *x.shape[2:], *grad_out.shape[2:], M, *grad_out.stride(), *x.stride(), *sizes)
    run(_grad_weight, (groups, tiles(K, TK), tiles(J, TJ)), x.device, *args, kernel_h, kernel_w, WIDEN, TK, TJ, 32)
    return out
