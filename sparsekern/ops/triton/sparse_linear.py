"""Triton twin of sparse_linear. Unstructured rows: lanes along the rows of x; blocks and panels: matrix tiles of gathered columns."""

from __future__ import annotations

import math

import torch
import triton
import triton.language as tl
from torch import Tensor

from sparsekern.ops.sparse_linear import _blocks as block_size
from sparsekern.ops.sparse_linear import _rows_like as rows_like
from sparsekern.ops.sparse_linear import check, reference, reference_grad_weight, reference_grad_x
from sparsekern.ops.triton.launch import WIDEN, by_input, power, product, programs, run, serves, tiles

_FEW_ROWS = 8


@triton.jit
def _gather_rows(x, weight, index, bias, out, N, OB, F, x_n, x_c, out_n, out_c, BIAS: tl.constexpr, TN: tl.constexpr, TO: tl.constexpr):
    """out [N, OB]: a tile of rows and outputs; each step reads one connection of every output, down a run of rows."""
    tile, outputs, _ = programs(tl.cdiv(N, TN), tl.cdiv(OB, TO))
    n = tile * TN + tl.arange(0, TN)
    o = outputs * TO + tl.arange(0, TO)
    in_o = o < OB
    inside = in_o[:, None] & (n < N)[None, :]
    sums = tl.zeros((TO, TN), tl.float32)
    for f in range(F):
        column = tl.load(index + o * F + f, in_o, 0).to(tl.int64)
        w = tl.load(weight + o * F + f, in_o, 0.0).to(tl.float32)
        sums += w[:, None] * tl.load(x + column[:, None] * x_c + n[None, :] * x_n, inside, 0.0).to(tl.float32)
    if BIAS:
        sums += tl.load(bias + o, in_o, 0.0).to(tl.float32)[:, None]
    tl.store(out + o[:, None] * out_c + n[None, :] * out_n, sums.to(out.dtype.element_ty), inside)


@triton.jit
def _gather_row(x, weight, index, bias, out, OB, F, x_n, x_c, out_n, out_c, BIAS: tl.constexpr, TO: tl.constexpr, TF: tl.constexpr):
    """The same for few rows, one at a time: lanes along the connections of an output, which lie side by side."""
    o = tl.program_id(0).to(tl.int64) * TO + tl.arange(0, TO)
    n = tl.program_id(1).to(tl.int64)
    in_o = o < OB
    sums = tl.zeros((TO, TF), tl.float32)
    for first in range(0, F, TF):
        f = first + tl.arange(0, TF)
        inside = in_o[:, None] & (f < F)[None, :]
        at = o[:, None] * F + f[None, :]
        column = tl.load(index + at, inside, 0).to(tl.int64)
        w = tl.load(weight + at, inside, 0.0).to(tl.float32)
        sums += w * tl.load(x + n * x_n + column * x_c, inside, 0.0).to(tl.float32)
    total = tl.sum(sums, 1)
    if BIAS:
        total += tl.load(bias + o, in_o, 0.0).to(tl.float32)
    tl.store(out + n * out_n + o * out_c, total.to(out.dtype.element_ty), in_o)


@triton.jit
def _scatter_rows(g, weight, order, begin, out, N, F, g_n, g_c, out_n, out_c, TN: tl.constexpr):
    """grad_x [N, inputs]: the connections of one input, in the order of their outputs."""
    tile, _, i = programs(tl.cdiv(N, TN), 1)
    n = tile * TN + tl.arange(0, TN)
    inside = n < N
    sums = tl.zeros((TN,), tl.float32)
    for k in range(tl.load(begin + i), tl.load(begin + i + 1)):
        at = tl.load(order + k).to(tl.int64)
        sums += tl.load(weight + at).to(tl.float32) * tl.load(g + n * g_n + at // F * g_c, inside, 0.0).to(tl.float32)
    tl.store(out + n * out_n + i * out_c, sums.to(out.dtype.element_ty), inside)


@triton.jit
def _pairs(g, x, index, out, N, F, g_n, g_c, x_n, x_c, TF: tl.constexpr, TN: tl.constexpr):
    """grad_weight [OB, F]: a run of an output's connections, summed over rows."""
    o = tl.program_id(0).to(tl.int64)
    f = tl.program_id(1).to(tl.int64) * TF + tl.arange(0, TF)
    in_f = f < F
    column = tl.load(index + o * F + f, in_f, 0).to(tl.int64)
    sums = tl.zeros((TF, TN), tl.float32)
    for first in range(0, N, TN):
        n = (first + tl.arange(0, TN)).to(tl.int64)
        in_n = n < N
        there = in_f[:, None] & in_n[None, :]
        along = tl.load(g + n * g_n + o * g_c, in_n, 0.0).to(tl.float32)
        sums += along[None, :] * tl.load(x + column[:, None] * x_c + n[None, :] * x_n, there, 0.0).to(tl.float32)
    tl.store(out + o * F + f, tl.sum(sums, 1).to(out.dtype.element_ty), in_f)


@triton.jit
def _blocks(
    x, weight, index, bias, out, N, F, BO, BI, x_n, x_c, out_n, out_c,
    BIAS: tl.constexpr, WIDE: tl.constexpr, TN: tl.constexpr, TO: tl.constexpr, TK: tl.constexpr,
):  # fmt: skip
    """out [N, OB*BO], a tile of rows and of one block's outputs: x's gathered columns [TN, TK] times weights [TK, TO]."""
    tile, part, ob = programs(tl.cdiv(N, TN), tl.cdiv(BO, TO))
    n = tile * TN + tl.arange(0, TN)
    o = part * TO + tl.arange(0, TO)
    in_n, in_o = n < N, o < BO
    sums = tl.zeros((TN, TO), tl.float32)
    for first in range(0, F * BI, TK):
        k = first + tl.arange(0, TK)  # input k % BI of the output's block k // BI
        in_k = k < F * BI
        f, i = k // BI, k % BI
        column = tl.load(index + ob * F + f, in_k, 0).to(tl.int64) * BI + i
        columns = tl.load(x + n[:, None] * x_n + column[None, :] * x_c, in_n[:, None] & in_k[None, :], 0.0)
        at = ((ob * F + f)[:, None] * BO + o[None, :]) * BI + i[:, None]
        sums = product(columns, tl.load(weight + at, in_k[:, None] & in_o[None, :], 0.0), sums, WIDE)
    to = ob * BO + o
    if BIAS:
        sums += tl.load(bias + to, in_o, 0.0).to(tl.float32)[None, :]
    tl.store(out + n[:, None] * out_n + to[None, :] * out_c, sums.to(out.dtype.element_ty), in_n[:, None] & in_o[None, :])


@triton.jit
def _blocks_grad_x(
    g, weight, order, begin, out, N, F, BO, BI, g_n, g_c, out_n, out_c,
    WIDE: tl.constexpr, TN: tl.constexpr, TI: tl.constexpr, TK: tl.constexpr,
):  # fmt: skip
    """grad_x [N, IB*BI], a tile of rows and of one input block: over the blocks that read it, g [TN, TK] times weights [TK, TI]."""
    tile, part, ib = programs(tl.cdiv(N, TN), tl.cdiv(BI, TI))
    n = tile * TN + tl.arange(0, TN)
    i = part * TI + tl.arange(0, TI)
    in_n, in_i = n < N, i < BI
    sums = tl.zeros((TN, TI), tl.float32)
    for e in range(tl.load(begin + ib), tl.load(begin + ib + 1)):
        block = tl.load(order + e).to(tl.int64)
        for first in range(0, BO, TK):
            o = first + tl.arange(0, TK)
            in_o = o < BO
            grad = tl.load(g + n[:, None] * g_n + (block // F * BO + o)[None, :] * g_c, in_n[:, None] & in_o[None, :], 0.0)
            at = (block * BO + o)[:, None] * BI + i[None, :]
            sums = product(grad, tl.load(weight + at, in_o[:, None] & in_i[None, :], 0.0), sums, WIDE)
    tl.store(out + n[:, None] * out_n + (ib * BI + i)[None, :] * out_c, sums.to(out.dtype.element_ty), in_n[:, None] & in_i[None, :])


@triton.jit
def _blocks_grad_weight(
    g, x, index, out, N, F, BO, BI, g_n, g_c, x_n, x_c,
    WIDE: tl.constexpr, TO: tl.constexpr, TK: tl.constexpr, TN: tl.constexpr,
):  # fmt: skip
    """grad_weight [OB, F, BO, BI]: a tile of one block row's weights, g [TO, TN] times x's gathered columns [TN, TK]."""
    ob = tl.program_id(0).to(tl.int64)
    k = tl.program_id(1) * TK + tl.arange(0, TK)
    o = tl.program_id(2) * TO + tl.arange(0, TO)
    in_k, in_o = k < F * BI, o < BO
    f, i = k // BI, k % BI
    column = tl.load(index + ob * F + f, in_k, 0).to(tl.int64) * BI + i
    sums = tl.zeros((TO, TK), tl.float32)
    for first in range(0, N, TN):
        n = (first + tl.arange(0, TN)).to(tl.int64)
        in_n = n < N
        grad = tl.load(g + (ob * BO + o)[:, None] * g_c + n[None, :] * g_n, in_o[:, None] & in_n[None, :], 0.0)
        columns = tl.load(x + n[:, None] * x_n + column[None, :] * x_c, in_n[:, None] & in_k[None, :], 0.0)
        sums = product(grad, columns, sums, WIDE)
    at = ((ob * F + f)[None, :] * BO + o[:, None]) * BI + i[None, :]
    tl.store(out + at, sums.to(out.dtype.element_ty), in_o[:, None] & in_k[None, :])


def _two_dims(t: Tensor) -> Tensor:
    return t.reshape(math.prod(t.shape[:-1]), t.shape[-1])


def forward(x: Tensor, weight: Tensor, bias: Tensor | None, index: Tensor, plan: Tensor | None, *, checked: bool = False) -> Tensor:
    """``checked``: the arguments were; reading the values of ``index`` again would wait for the device."""
    if not serves(x.dtype):
        return reference(x, weight, bias, index, plan)
    if not checked:
        check(x, weight, bias, index, plan)
    (OB, F), (BO, BI) = index.shape, block_size(weight)
    out = rows_like(x, OB * BO)
    rows, flat = _two_dims(x), _two_dims(out)
    N, weight, index = rows.shape[0], weight.contiguous(), index.contiguous()
    strides, has_bias = (*rows.stride(), *flat.stride()), bias is not None
    bias = weight if bias is None else bias.contiguous()
    if BO * BI > 1:
        TO = power(BO, 16, 128)
        sizes = (N, F, BO, BI, *strides)
        run(_blocks, (tiles(N, 32) * tiles(BO, TO) * OB,), x.device, rows, weight, index, bias, flat, *sizes, has_bias, WIDEN, 32, TO, 32)
    elif N <= _FEW_ROWS:
        TF = power(F, 1, 128)
        run(_gather_row, (tiles(OB, 16), N), x.device, rows, weight, index, bias, flat, OB, F, *strides, has_bias, 16, TF)
    else:
        TN = power(N, 16, 128)
        grid = (tiles(N, TN) * tiles(OB, 16),)
        run(_gather_rows, grid, x.device, rows, weight, index, bias, flat, N, OB, F, *strides, has_bias, TN, 16)
    return out


def grad_x(
    grad_out: Tensor,
    weight: Tensor,
    index: Tensor,
    plan: Tensor | None,
    in_features: int,
    lists: tuple[Tensor, Tensor] | None = None,
) -> Tensor:
    """``lists``: what :func:`~sparsekern.ops.triton.launch.by_input` finds, if it is known."""
    if not serves(grad_out.dtype):
        return reference_grad_x(grad_out, weight, index, plan, in_features)
    (_, F), (BO, BI) = index.shape, block_size(weight)
    out = rows_like(grad_out, in_features)
    g, flat = _two_dims(grad_out), _two_dims(out)
    N, IB, weight = g.shape[0], in_features // BI, weight.contiguous()
    order, begin = lists or by_input(index, IB)
    TN, strides = power(N, 16, 128), (*g.stride(), *flat.stride())
    if BO * BI > 1:
        TI = power(BI, 16, 128)
        sizes = (N, F, BO, BI, *strides)
        run(_blocks_grad_x, (tiles(N, 32) * tiles(BI, TI) * IB,), g.device, g, weight, order, begin, flat, *sizes, WIDEN, 32, TI, 16)
    else:
        run(_scatter_rows, (tiles(N, TN) * IB,), g.device, g, weight, order, begin, flat, N, F, *strides, TN)
    return out


def grad_weight(grad_out: Tensor, x: Tensor, index: Tensor, plan: Tensor | None, block_out: int, block_in: int, condensed: bool) -> Tensor:
    if not serves(x.dtype):
        return reference_grad_weight(grad_out, x, index, plan, block_out, block_in, condensed)
    OB, F = index.shape
    out = torch.empty(index.shape if condensed else (OB, F, block_out, block_in), dtype=x.dtype, device=x.device)
    g, rows, index = _two_dims(grad_out), _two_dims(x), index.contiguous()
    N, strides = rows.shape[0], (*g.stride(), *rows.stride())
    if block_out * block_in > 1:
        TO, TK = power(block_out, 16, 64), power(F * block_in, 16, 64)
        grid = (OB, tiles(F * block_in, TK), tiles(block_out, TO))
        sizes = (N, F, block_out, block_in, *strides)
        run(_blocks_grad_weight, grid, x.device, g, rows, index, out, *sizes, WIDEN, TO, TK, 32)
    else:
        TF = power(F, 1, 32)
        run(_pairs, (OB, tiles(F, TF)), x.device, g, rows, index, out, N, F, *strides, TF, power(N, 1, 64))
    return out
