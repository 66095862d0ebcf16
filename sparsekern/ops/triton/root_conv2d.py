"""Triton twin of root_conv2d: a grouped convolution and the 1x1 behind it; what lies between never leaves the program that made it."""

from __future__ import annotations

import triton
import triton.language as tl
from torch import Tensor

from sparsekern.ops.grouped_conv2d import _new_like as new_like
from sparsekern.ops.root_conv2d import check
from sparsekern.ops.triton.grouped_conv2d import convolved
from sparsekern.ops.triton.launch import WIDEN, pixels, power, product, programs, run, tiles


@triton.jit
def _root(
    x, weight1, bias1, weight2, bias2, out, C, K, GROUPS, OUTS, H, W, OH, OW, M, x_n, x_c, x_h, x_w, o_n, o_c, o_h, o_w,
    stride_h, stride_w, pad_h, pad_w, dilation_h, dilation_w, KH: tl.constexpr, KW: tl.constexpr,
    BIAS1: tl.constexpr, BIAS2: tl.constexpr, RELU: tl.constexpr, LAST_RELU: tl.constexpr, WIDE: tl.constexpr,
    TM: tl.constexpr, TK: tl.constexpr, TO: tl.constexpr, TJ: tl.constexpr,
):  # fmt: skip
    """out: a tile of pixels [TM] by outputs [TO]. C inputs and K channels between of a group, TK of these at a time."""
    tile, part, _ = programs(tl.cdiv(M, TM), tl.cdiv(OUTS, TO))
    n, y, z, in_m = pixels(tile * TM, TM, M, OH, OW)
    o = part * TO + tl.arange(0, TO)
    in_o = o < OUTS
    parts = tl.cdiv(K, TK)
    sums = tl.zeros((TM, TO), tl.float32)
    for chunk in range(0, GROUPS * parts):
        group = (chunk // parts).to(tl.int64)
        k = chunk % parts * TK + tl.arange(0, TK)
        in_k = k < K
        filters = group * K + k
        between = convolved(
            x, weight1, group, filters, in_k, n, y, z, in_m, C, H, W, x_n, x_c, x_h, x_w,
            stride_h, stride_w, pad_h, pad_w, dilation_h, dilation_w, KH, KW, WIDE, TM, TK, TJ,
        )  # fmt: skip
        if BIAS1:
            between += tl.load(bias1 + filters, in_k, 0.0).to(tl.float32)[None, :]
        if RELU:
            between = tl.where(between < 0, 0.0, between)  # a NaN stays
        w = tl.load(weight2 + o[None, :].to(tl.int64) * (GROUPS * K) + filters[:, None], in_k[:, None] & in_o[None, :], 0.0)
        sums = product(between.to(out.dtype.element_ty), w, sums, WIDE)  # rounded as if it had been written
    if BIAS2:
        sums += tl.load(bias2 + o, in_o, 0.0).to(tl.float32)[None, :]
    if LAST_RELU:
        sums = tl.where(sums < 0, 0.0, sums)
    at = n[:, None] * o_n + o[None, :] * o_c + y[:, None] * o_h + z[:, None] * o_w
    tl.store(out + at, sums.to(out.dtype.element_ty), in_m[:, None] & in_o[None, :])


def forward(x: Tensor, weight1: Tensor, bias1: Tensor | None, weight2: Tensor, bias2: Tensor | None, *rest) -> Tensor:
    """``rest``: the window, and whether an activation follows the first convolution and the second. Of float32, float16 and bfloat16.

    The channels between are made once for every 128 outputs.
    """
    *sizes, groups, relu, last_relu = rest
    shape = check(x, weight1, bias1, weight2, bias2, None, None, None, *rest)
    out = new_like(x, shape)
    (K, C, KH, KW), outs = weight1.shape, shape[1]
    M, K = shape[0] * shape[2] * shape[3], K // groups
    weight1, weight2 = weight1.contiguous(), weight2.contiguous()
    TM, TO = power(M, 16, 32), power(outs, 16, 128)
    biases = (weight1 if bias1 is None else bias1.contiguous(), weight2 if bias2 is None else bias2.contiguous())
    strides, flags = (*x.stride(), *out.stride()), (bias1 is not None, bias2 is not None, bool(relu), bool(last_relu), WIDEN)
    args = (x, weight1, biases[0], weight2, biases[1], out, C, K, groups, outs, *x.shape[2:], *shape[2:], M, *strides, *sizes)
    tile_sizes = (TM, power(K, 16, 32), TO, power(C * KH * KW, 16, 32))
    run(_root, (tiles(M, TM) * tiles(outs, TO),), x.device, *args, KH, KW, *flags, *tile_sizes, num_warps=8)  # four would spill
    return out
