"""Triton twin of grouped_mm: one launch for all products; of ragged groups, tiles beyond a group's rows end at once."""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from sparsekern.ops.grouped_mm import check, reference, reference_grad_a, reference_grad_b
from sparsekern.ops.triton.launch import WIDEN, power, product, programs, run, serves, tiles


@triton.jit
def _rows(
    a, b, offsets, out, M, N, K, a_g, a_m, a_k, b_g, b_k, b_n, o_g, o_m, o_n,
    RAGGED: tl.constexpr, WIDE: tl.constexpr, TM: tl.constexpr, TN: tl.constexpr, TK: tl.constexpr,
):  # fmt: skip
    """out[g] = a[g] @ b[g], a tile [TM, TN]; ragged: rows of group g from the end of the group before."""
    tile, part, group = programs(tl.cdiv(M, TM), tl.cdiv(N, TN))
    end = M
    m = tile * TM + tl.arange(0, TM)
    if RAGGED:
        m += tl.load(offsets + group - 1, group > 0, 0)
        end = tl.load(offsets + group)
    else:
        a += group * a_g
        out += group * o_g
    n = part * TN + tl.arange(0, TN)
    in_m, in_n = m < end, n < N
    if tl.max(in_m.to(tl.int32), 0) > 0:
        sums = tl.zeros((TM, TN), tl.float32)
        for first in range(0, K, TK):
            k = (first + tl.arange(0, TK)).to(tl.int64)
            in_k = k < K
            left = tl.load(a + m[:, None] * a_m + k[None, :] * a_k, in_m[:, None] & in_k[None, :], 0.0)
            right = tl.load(b + group * b_g + k[:, None] * b_k + n[None, :] * b_n, in_k[:, None] & in_n[None, :], 0.0)
            sums = product(left, right, sums, WIDE)
        tl.store(out + m[:, None] * o_m + n[None, :] * o_n, sums.to(out.dtype.element_ty), in_m[:, None] & in_n[None, :])


@triton.jit
def _columns(
    a, g, offsets, out, M, N, K, a_g, a_m, a_k, g_g, g_m, g_n,
    RAGGED: tl.constexpr, WIDE: tl.constexpr, TK: tl.constexpr, TN: tl.constexpr, TM: tl.constexpr,
):  # fmt: skip
    """out[g] [K, N] = a[g]^T @ g[g], a tile [TK, TN], over the group's rows."""
    group = tl.program_id(0).to(tl.int64)
    k = tl.program_id(1) * TK + tl.arange(0, TK)
    n = tl.program_id(2) * TN + tl.arange(0, TN)
    in_k, in_n = k < K, n < N
    begin, end = 0, M
    if RAGGED:
        begin = tl.load(offsets + group - 1, group > 0, 0)
        end = tl.load(offsets + group)
    else:
        a += group * a_g
        g += group * g_g
    sums = tl.zeros((TK, TN), tl.float32)
    for first in range(begin, end, TM):
        m = (first + tl.arange(0, TM)).to(tl.int64)
        in_m = m < end
        left = tl.load(a + k[:, None] * a_k + m[None, :] * a_m, in_k[:, None] & in_m[None, :], 0.0)
        right = tl.load(g + m[:, None] * g_m + n[None, :] * g_n, in_m[:, None] & in_n[None, :], 0.0)
        sums = product(left, right, sums, WIDE)
    tl.store(out + (group * K + k)[:, None] * N + n[None, :], sums.to(out.dtype.element_ty), in_k[:, None] & in_n[None, :])


def _strides(t: Tensor) -> tuple[int, ...]:
    """Of groups (0 where the groups' rows are one after the other), rows and columns."""
    return t.stride() if t.dim() == 3 else (0, *t.stride())


def _products(a: Tensor, b: Tensor, offsets: Tensor | None) -> Tensor:
    groups, K, N = b.shape
    M = a.shape[-2]
    out = torch.empty(*a.shape[:-1], N, dtype=a.dtype, device=a.device)
    TM, TN = power(M, 16, 64), power(N, 16, 64)
    args = (a, b, b if offsets is None else offsets.contiguous(), out, M, N, K, *_strides(a), *b.stride(), *_strides(out))
    grid = (tiles(M, TM) * tiles(N, TN) * groups,)
    run(_rows, grid, a.device, *args, offsets is not None, WIDEN, TM, TN, power(K, 16, 32))
    return out


def forward(a: Tensor, b: Tensor, offsets: Tensor | None, checked: bool = False) -> Tensor:
    """``checked``: the arguments were, and nobody waits for the device to read the offsets."""
    if not serves(a.dtype):
        return reference(a, b, offsets)
    if not checked:
        check(a, b, offsets)
    return _products(a, b, offsets)


def grad_x(grad_out: Tensor, b: Tensor, offsets: Tensor | None) -> Tensor:
    if not serves(b.dtype):
        return reference_grad_a(grad_out, b, offsets)
    return _products(grad_out, b.transpose(1, 2), offsets)


def grad_weight(grad_out: Tensor, a: Tensor, offsets: Tensor | None) -> Tensor:
    if not serves(a.dtype):
        return reference_grad_b(grad_out, a, offsets)
    groups = a.shape[0] if offsets is None else offsets.shape[0]
    M, K, N = a.shape[-2], a.shape[-1], grad_out.shape[-1]
    out = torch.empty(groups, K, N, dtype=a.dtype, device=a.device)
    TK, TN = power(K, 16, 64), power(N, 16, 64)
    args = (a, grad_out, out if offsets is None else offsets.contiguous(), out, M, N, K, *_strides(a), *_strides(grad_out))
    run(_columns, (groups, tiles(K, TK), tiles(N, TN)), a.device, *args, offsets is not None, WIDEN, TK, TN, 32)
    return out
