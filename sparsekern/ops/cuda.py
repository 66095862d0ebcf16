"""Tensors on a GPU: who serves each product, our kernels or torch's, and the plan that ours read.

The kernels are the ops of a compiled library, ``torch.ops.sparsekern_cuda``. :func:`register` puts what chooses between them and
torch behind the cards' ops, where the dispatcher finds it; the tests do the same with the emulator's kernels.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import conv2d, linear

from sparsekern.ops import cuda_cost, cuda_grouped_mm, cuda_root_conv2d, cuda_sparse_conv2d
from sparsekern.ops.cuda_choice import serve, takes_torch
from sparsekern.ops.cuda_choice import tf32 as _tf32
from sparsekern.ops.define import GPU_PLANS, OPS
from sparsekern.ops.grouped_conv2d import _laid_out_like as image_like
from sparsekern.ops.grouped_conv2d import is_channels_last
from sparsekern.ops.sparse_linear import _blocks as blocks_of
from sparsekern.ops.sparse_linear import _laid_out_like as rows_like
from sparsekern.ops.sparse_linear import check, dense_weight, kept_weight
from sparsekern.ops.types import Shape

#: The ops that have kernels.
SERVED = ("grouped_conv2d", "sparse_linear", "sparse_conv2d", "grouped_mm")

Routes = dict[str, Callable[..., Tensor]]


def register(kernels: Any, key: str) -> torch.library.Library:
    """Serve the ops of :data:`SERVED` on the dispatch key ``key`` until the result is destroyed.

    ``kernels`` is the namespace of the compiled library. Tensors on a GPU never reach it with another key than ``"CUDA"``.
    """
    library = torch.library.Library("sparsekern", "IMPL")
    routes = {**_convolutions(kernels), **_linears(kernels), **cuda_sparse_conv2d.routes(kernels), **cuda_grouped_mm.routes(kernels)}
    for name, route in routes.items():
        library.impl(name, route, key)
        library.impl("_" + name, route, key)
    for name, route in cuda_root_conv2d.routes(kernels).items():  # no autograd: registered under its own name alone
        library.impl(name, route, key)
    return library


# ---- grouped_conv2d


def estimate_convolution(
    product: str, x: Tensor, weight: tuple, window: tuple, ends: int = 0, sizes: tuple | None = None
) -> cuda_cost.Estimate:
    """The estimate for an ``x`` (or grad_out) of this dtype, layout and device; ``sizes`` of the op's x where that is another."""
    tf32 = _tf32(torch.backends.cudnn, x.dtype)
    card, last = cuda_cost.card_of(x.device), is_channels_last(x)
    return cuda_cost.convolution(product, sizes or tuple(x.shape), tuple(weight), window, last, x.dtype, tf32, ends, card)


def _convolutions(kernels: Any) -> Routes:
    op = OPS["grouped_conv2d"]

    def forward(x: Tensor, weight: Tensor, bias: Tensor | None, shortcut: Tensor | None, *rest: Any) -> Tensor:
        *window, relu = rest
        if x.dtype == torch.float64:
            return op.forward.reference(x, weight, bias, shortcut, *rest)
        op.check(x, weight, bias, *window, shortcut)
        ends = (bias is not None) + (shortcut is not None) + relu
        fused = relu and shortcut is None

        def torchs() -> Tensor:
            out = image_like(x, conv2d(x, weight, bias, *_pairs(window), groups=window[-1]))
            return out.relu_() if fused else out

        def ours() -> Tensor:
            return kernels.grouped_conv2d(x, weight, bias, *window, fused, _tf32(torch.backends.cudnn, x.dtype))

        out = serve(estimate_convolution("forward", x, weight.shape, tuple(window), ends), x.device, ours, torchs)
        if shortcut is not None:
            out.add_(shortcut)
        return out.relu_() if relu and not fused else out

    def grad_x(grad_out: Tensor, weight: Tensor, height: int, width: int, *window: int) -> Tensor:
        sizes = (grad_out.shape[0], weight.shape[1] * window[-1], height, width)
        if grad_out.dtype == torch.float64:
            return op.grad_x.reference(grad_out, weight, height, width, *window)
        allowed = _tf32(torch.backends.cudnn, weight.dtype)
        return serve(
            estimate_convolution("grad_x", grad_out, weight.shape, window, sizes=sizes),
            grad_out.device,
            lambda: kernels.grouped_conv2d_grad_x(grad_out, weight, height, width, *window, allowed),
            lambda: image_like(grad_out, _backward(grad_out, grad_out.new_empty(sizes), weight, window, 0)),
        )

    def grad_weight(grad_out: Tensor, x: Tensor, kernel_h: int, kernel_w: int, *window: int) -> Tensor:
        sizes = (grad_out.shape[1], x.shape[1] // window[-1], kernel_h, kernel_w)
        if x.dtype == torch.float64:
            return op.grad_weight.reference(grad_out, x, kernel_h, kernel_w, *window)
        allowed = _tf32(torch.backends.cudnn, x.dtype)
        return serve(
            estimate_convolution("grad_weight", x, sizes, window),
            x.device,
            lambda: kernels.grouped_conv2d_grad_weight(grad_out, x, kernel_h, kernel_w, *window, allowed),
            lambda: _backward(grad_out, x, x.new_empty(sizes), window, 1).contiguous().flatten().view(sizes),  # strides without gaps
        )

    return {"grouped_conv2d": forward, "grouped_conv2d_grad_x": grad_x, "grouped_conv2d_grad_weight": grad_weight}


def _pairs(window: Shape) -> tuple[tuple[int, ...], tuple[int, ...], tuple[int, ...]]:
    return tuple(window[0:2]), tuple(window[2:4]), tuple(window[4:6])


def _backward(grad_out: Tensor, x: Tensor, weight: Tensor, window: Shape, which: int) -> Tensor:
    stride, padding, dilation = _pairs(window)
    mask = (which == 0, which == 1, False)
    arguments = (grad_out, x, weight, None, stride, padding, dilation, False, (0, 0), window[-1], mask)
    return torch.ops.aten.convolution_backward(*arguments)[which]


# ---- sparse_linear

MAGIC, HEADER = GPU_PLANS[0], 8  # words of a plan


def make_plan(index: Tensor, in_blocks: int, block_size: tuple[int, int] = (1, 1)) -> Tensor:
    """What the kernels read of an ``index [OB, F]`` that was checked, for ``grad_x``; without waiting for the device.

    Returns:
        int32 ``[8 + IB + 1 + 2 * OB * F]``: ``[magic, version, OB, F, BO, BI, IB, length]``, then the connections by input:
        ``indptr [IB + 1]``, and for each its output (block) and its place in the weight.

    Example:
        >>> make_plan(torch.tensor([[0, 2], [1, 2]], dtype=torch.int32), 3)[8:].tolist()
        [0, 1, 2, 4, 0, 1, 0, 1, 0, 2, 1, 3]
    """
    by_input, place = index.flatten().sort(stable=True)
    indptr = torch.searchsorted(by_input, torch.arange(in_blocks + 1, device=index.device, dtype=torch.int32), out_int32=True)
    head = [MAGIC, 1, *index.shape, *block_size, in_blocks, HEADER + in_blocks + 1 + 2 * index.numel()]
    header = torch.tensor(head, dtype=torch.int32).to(index.device, non_blocking=True)
    return torch.cat([header, indptr, (place // index.shape[1]).int(), place.int()])


def estimate_linear(product: str, x: Tensor, in_features: int, index_shape: tuple, block: tuple[int, int]) -> cuda_cost.Estimate:
    """The estimate for the rows of an ``x`` (or grad_out) ``[..., features]``, of its dtype and device."""
    tf32, rows = _tf32(torch.backends.cuda.matmul, x.dtype), math.prod(x.shape[:-1])
    return cuda_cost.linear(product, rows, in_features, tuple(index_shape), tuple(block), x.dtype, tf32, cuda_cost.card_of(x.device))


def _linears(kernels: Any) -> Routes:
    op = OPS["sparse_linear"]

    def tf32(x: Tensor) -> bool:
        return _tf32(torch.backends.cuda.matmul, x.dtype)

    def forward(x: Tensor, weight: Tensor, bias: Tensor | None, index: Tensor, plan: Tensor | None) -> Tensor:
        if x.dtype == torch.float64:
            return op.forward.reference(x, weight, bias, index, plan)
        check(x, weight, bias, index, plan, values=plan is None)
        e = estimate_linear("forward", x, x.shape[-1], index.shape, blocks_of(weight))
        return serve(
            e,
            x.device,
            lambda: kernels.sparse_linear(x, weight, bias, index, tf32(x), e.way == "wgmma"),
            lambda: rows_like(x, linear(x, dense_weight(weight, index, x.shape[-1]), bias)),
        )

    def grad_x(grad_out: Tensor, weight: Tensor, index: Tensor, plan: Tensor | None, in_features: int) -> Tensor:
        if grad_out.dtype == torch.float64:
            return op.grad_x.reference(grad_out, weight, index, plan, in_features)
        block = blocks_of(weight)

        def ours() -> Tensor:
            planned = make_plan(index, in_features // block[1], block) if plan is None else plan
            return kernels.sparse_linear_grad_x(grad_out, weight, index, planned, in_features, tf32(grad_out), e.way == "wgmma")

        e = estimate_linear("grad_x", grad_out, in_features, index.shape, block)
        return serve(e, grad_out.device, ours, lambda: rows_like(grad_out, grad_out @ dense_weight(weight, index, in_features)))

    def grad_weight(
        grad_out: Tensor, x: Tensor, index: Tensor, plan: Tensor | None, block_out: int, block_in: int, condensed: bool
    ) -> Tensor:
        if x.dtype == torch.float64:
            return op.grad_weight.reference(grad_out, x, index, plan, block_out, block_in, condensed)

        def torchs() -> Tensor:
            rows = math.prod(x.shape[:-1])
            dense = grad_out.reshape(rows, grad_out.shape[-1]).t() @ x.reshape(rows, x.shape[-1])
            kept = kept_weight(dense, index, (block_out, block_in))
            return kept.reshape(index.shape if condensed else (*index.shape, block_out, block_in))

        def ours() -> Tensor:
            return kernels.sparse_linear_grad_weight(grad_out, x, index, block_out, block_in, condensed, tf32(x), e.way == "wgmma")

        e = estimate_linear("grad_weight", x, x.shape[-1], index.shape, (block_out, block_in))
        return serve(e, x.device, ours, torchs)

    return {"sparse_linear": forward, "sparse_linear_grad_x": grad_x, "sparse_linear_grad_weight": grad_weight}


# ---- what will serve, in the words of the layers' explain()


def explain_convolution(
    x_shape: Shape, weight_shape: Shape, window: Shape, channels_last: bool, dtype: torch.dtype, device: torch.device
) -> dict[str, tuple[str, str]]:
    """Per product: ``"sparsekern"`` or ``"torch"``, and the two estimates."""
    if dtype == torch.float64:
        return {door: ("torch", "no kernel for float64") for door in OPS["grouped_conv2d"].products}
    tf32, card, out = _tf32(torch.backends.cudnn, dtype), cuda_cost.card_of(torch.device(device)), {}
    for door in OPS["grouped_conv2d"].products:
        arguments = tuple(x_shape), tuple(weight_shape), tuple(window), channels_last, dtype, tf32
        e = cuda_cost.convolution(door, *arguments, 1 if door == "forward" else 0, card)
        why = f"modelled: {e.ours_us:.1f} us ours, by {e.bound}, {e.torch_us:.1f} us torch" if e.fits else "no tile of these sizes fits"
        out[door] = ("torch" if takes_torch(e, torch.device(device)) else "sparsekern", why)
    return out


def explain_linear(
    rows: int, in_features: int, index_shape: Shape, block_size: Shape, dtype: torch.dtype, device: torch.device
) -> dict[str, dict[str, Any]]:
    """Per product: the kernel, and the two estimates in microseconds."""
    if dtype == torch.float64:
        return {door: {"kernel": "reference"} for door in OPS["sparse_linear"].products}
    tf32, card, out = _tf32(torch.backends.cuda.matmul, dtype), cuda_cost.card_of(torch.device(device)), {}
    for door in OPS["sparse_linear"].products:
        panels = cuda_cost.is_panels(door, rows, tuple(block_size))
        kernel = "shared words" if tuple(block_size) == (1, 1) else "picked lines" if panels else "matrix blocks"
        e = cuda_cost.linear(door, rows, in_features, tuple(index_shape), tuple(block_size), dtype, tf32, card)
        kernel = f"{e.way} {kernel.split()[1]}" if e.way else kernel
        out[door] = {
            "kernel": "dense" if takes_torch(e, torch.device(device)) else kernel,
            "ours_us": round(e.ours_us, 1),
            "dense_us": round(e.torch_us, 1),
        }
    return out
