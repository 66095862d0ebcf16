"""sparse_conv2d on a GPU: who serves each product, our kernels or torch's, and the plan that ours read."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from sparsekern.ops import cuda_cost
from sparsekern.ops.cuda_choice import serve, takes_torch, tf32
from sparsekern.ops.define import GPU_PLANS, OPS
from sparsekern.ops.sparse_conv2d import _arguments, _channels_last, _laid_out_like, check, dense_weight, kept_weight
from sparsekern.ops.types import Shape

MAGIC, HEADER = GPU_PLANS[1], 16  # words of a plan


def make_plan(indptr: Tensor, index: Tensor, channels: int, kernel_size: Shape, block: Shape) -> Tensor:
    """What the kernels read of tables that were checked; without waiting for the device.

    Returns:
        int32 ``[16 + IB + 1 + 3 * nnz + IB * TB + 1 + nnz]``: ``[magic, version, K, C, KH, KW, BO, BI, BT, nnz, 0...]``, then the kept
        blocks by input block: where each one's begin ``[IB + 1]``, their output blocks, their places in ``index``; the output block of
        every place; then the kept blocks by input block and tap: where each one's begin ``[IB * TB + 1]``, their places.

    Example:
        >>> indptr, index = torch.tensor([0, 2, 3], dtype=torch.int32), torch.tensor([0, 2, 1], dtype=torch.int32)
        >>> make_plan(indptr, index, 3, (1, 1), (1, 1, 1))[16:].tolist()
        [0, 1, 2, 3, 0, 1, 0, 0, 2, 1, 0, 0, 1, 0, 1, 2, 3, 0, 2, 1]
    """
    device, nnz = index.device, index.numel()
    row = torch.searchsorted(indptr, torch.arange(nnz, device=device, dtype=torch.int32), right=True, out_int32=True) - 1
    taps = kernel_size[0] * kernel_size[1] // block[2]
    by_input, place = torch.div(index, taps, rounding_mode="floor").sort(stable=True)
    inputs = channels // block[1]
    columns = torch.searchsorted(by_input, torch.arange(inputs + 1, device=device, dtype=torch.int32), out_int32=True)
    codes, cell_place = index.sort(stable=True)
    cells = torch.searchsorted(codes, torch.arange(inputs * taps + 1, device=device, dtype=torch.int32), out_int32=True)
    head = [MAGIC, 2, (indptr.shape[0] - 1) * block[0], channels, *kernel_size, *block, nnz]
    header = torch.tensor(head + [0] * (HEADER - len(head)), dtype=torch.int32).to(device, non_blocking=True)
    return torch.cat([header, columns, row[place], place.int(), row, cells, cell_place.int()])


def estimate(
    product: str, x: Tensor, channels: int, size: Shape, filters: int, block: Shape, nnz: int, window: Shape
) -> cuda_cost.Estimate:
    """The estimate for images ``[N, channels, *size]`` of the dtype and on the device of ``x``, which may be the other end's."""
    sizes, allowed = (x.shape[0], channels, *size), tf32(torch.backends.cudnn, x.dtype)
    sizes_of_mask = filters, tuple(block), nnz, tuple(window)
    e = cuda_cost.sparse_convolution(product, sizes, *sizes_of_mask, x.dtype, allowed, cuda_cost.card_of(x.device))
    return replace(e, key=(*e.key, _channels_last(x)))


def routes(kernels: Any) -> dict[str, Any]:
    """What serves the card's ops; ``kernels`` is the namespace of the compiled library."""
    op = OPS["sparse_conv2d"]

    def planned(plan: Tensor | None, indptr: Tensor, index: Tensor, channels: int, window: Shape, block: Shape) -> Tensor:
        return make_plan(indptr, index, channels, window[:2], block) if plan is None else plan

    def forward(x: Tensor, weight: Tensor, bias: Tensor | None, indptr: Tensor, index: Tensor, plan: Tensor | None, *window: int) -> Tensor:
        if x.dtype == torch.float64:
            return op.forward.reference(x, weight, bias, indptr, index, plan, *window)
        check(x, weight, bias, indptr, index, plan, *window, values=plan is None)
        (nnz, *block), filters = weight.shape, (indptr.shape[0] - 1) * weight.shape[1]

        def ours() -> Tensor:
            tables = indptr, index, planned(plan, indptr, index, x.shape[1], window, block)
            return kernels.sparse_conv2d(x, weight, bias, *tables, *window, tf32(torch.backends.cudnn, x.dtype))

        def torchs() -> Tensor:
            dense = dense_weight(weight, indptr, index, x.shape[1], window[:2])
            return _laid_out_like(x, torch.nn.functional.conv2d(x, dense, bias, *_arguments(window)))

        return serve(estimate("forward", x, x.shape[1], x.shape[2:], filters, block, nnz, window), x.device, ours, torchs)

    def grad_x(
        grad_out: Tensor, weight: Tensor, indptr: Tensor, index: Tensor, plan: Tensor | None, channels: int, height: int, width: int,
        *window: int,
    ) -> Tensor:  # fmt: skip
        if grad_out.dtype == torch.float64:
            return op.grad_x.reference(grad_out, weight, indptr, index, plan, channels, height, width, *window)
        nnz, *block = weight.shape

        def ours() -> Tensor:
            tables = indptr, index, planned(plan, indptr, index, channels, window, block)
            allowed = tf32(torch.backends.cudnn, grad_out.dtype)
            return kernels.sparse_conv2d_grad_x(grad_out, weight, *tables, channels, height, width, *window, allowed)

        def torchs() -> Tensor:
            x = grad_out.new_empty(grad_out.shape[0], channels, height, width)  # read for its sizes
            dense = dense_weight(weight, indptr, index, channels, window[:2])
            return _laid_out_like(grad_out, _backward(grad_out, x, dense, window, 0))

        e = estimate("grad_x", grad_out, channels, (height, width), grad_out.shape[1], block, nnz, window)
        return serve(e, grad_out.device, ours, torchs)

    def grad_weight(
        grad_out: Tensor, x: Tensor, indptr: Tensor, index: Tensor, plan: Tensor | None, block_out: int, block_in: int, block_taps: int,
        *window: int,
    ) -> Tensor:  # fmt: skip
        block = (block_out, block_in, block_taps)
        if x.dtype == torch.float64:
            return op.grad_weight.reference(grad_out, x, indptr, index, plan, *block, *window)

        def ours() -> Tensor:
            tables = indptr, index, planned(plan, indptr, index, x.shape[1], window, block)
            return kernels.sparse_conv2d_grad_weight(grad_out, x, *tables, *block, *window, tf32(torch.backends.cudnn, x.dtype))

        def torchs() -> Tensor:
            dense = x.new_empty(grad_out.shape[1], x.shape[1], *window[:2])  # read for its sizes
            return kept_weight(_backward(grad_out, x, dense, window, 1), indptr, index, block).contiguous()

        e = estimate("grad_weight", x, x.shape[1], x.shape[2:], grad_out.shape[1], block, index.shape[0], window)
        return serve(e, x.device, ours, torchs)

    return {"sparse_conv2d": forward, "sparse_conv2d_grad_x": grad_x, "sparse_conv2d_grad_weight": grad_weight}


def _backward(grad_out: Tensor, x: Tensor, weight: Tensor, window: Shape, which: int) -> Tensor:
    mask = [which == 0, which == 1, False]
    return torch.ops.aten.convolution_backward(grad_out, x, weight, None, *_arguments(window), False, [0, 0], 1, mask)[which]


def explain(
    x_shape: Shape, filters: int, window: Shape, block: Shape, nnz: int, dtype: torch.dtype, device: torch.device
) -> dict[str, dict[str, Any]]:
    """Per product: the kernel, and our estimated time over that of torch's dense convolution."""
    if dtype == torch.float64:
        return {door: {"kernel": "reference", "relative_cost": 1.0} for door in OPS["sparse_conv2d"].products}
    allowed, card, out = tf32(torch.backends.cudnn, dtype), cuda_cost.card_of(torch.device(device)), {}
    for door in OPS["sparse_conv2d"].products:
        e = cuda_cost.sparse_convolution(door, tuple(x_shape), filters, tuple(block), nnz, tuple(window), dtype, allowed, card)
        out[door] = {
            "kernel": "dense" if takes_torch(e, torch.device(device)) else e.way,
            "relative_cost": round(e.ours_us / e.torch_us, 2),
        }
    return out
