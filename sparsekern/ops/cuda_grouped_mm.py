"""grouped_mm on a GPU: who serves each product, our kernels or torch's."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from sparsekern.ops import backends, cuda_cost
from sparsekern.ops.cuda_choice import serve, takes_torch, tf32
from sparsekern.ops.define import OPS
from sparsekern.ops.grouped_mm import _columns, _rows, check


def estimate(product: str, rows: Tensor, groups: int, inner: int, columns: int, ragged: bool) -> cuda_cost.Estimate:
    """The estimate for ``rows [..., inner or columns]`` of this dtype and device; ``inner`` and ``columns`` of the forward product."""
    allowed, height = tf32(torch.backends.cuda.matmul, rows.dtype), rows.shape[:-1].numel()
    return cuda_cost.grouped_mm(product, height, groups, inner, columns, ragged, rows.dtype, allowed, cuda_cost.card_of(rows.device))


def _capturing(t: Tensor) -> bool:
    return t.device.type == "cuda" and torch.cuda.is_current_stream_capturing()


def routes(kernels: Any) -> dict[str, Any]:
    """What serves the card's ops; ``kernels`` is the namespace of the compiled library.

    The ends of ragged groups are read by every call that checks them, but for one that a graph captures. Wrong ends then make wrong
    results; no kernel leaves its tensors for them. torch's product of ragged groups reads them always.
    """
    op = OPS["grouped_mm"]

    def forward(a: Tensor, b: Tensor, offsets: Tensor | None) -> Tensor:
        if a.dtype == torch.float64:
            return op.forward.reference(a, b, offsets)
        check(a, b, offsets, values=not _capturing(a))
        return serve(
            estimate("forward", a, b.shape[0], b.shape[1], b.shape[2], offsets is not None),
            a.device,
            lambda: kernels.grouped_mm(a, b, offsets, tf32(torch.backends.cuda.matmul, a.dtype)),
            lambda: _rows(a, b, offsets),
        )

    def grad_a(grad_out: Tensor, b: Tensor, offsets: Tensor | None) -> Tensor:
        if b.dtype == torch.float64:
            return op.grad_x.reference(grad_out, b, offsets)
        return serve(
            estimate("grad_x", grad_out, b.shape[0], b.shape[1], b.shape[2], offsets is not None),
            grad_out.device,
            lambda: kernels.grouped_mm_grad_a(grad_out, b, offsets, tf32(torch.backends.cuda.matmul, b.dtype)),
            lambda: _rows(grad_out, b.transpose(1, 2), offsets),
        )

    def grad_b(grad_out: Tensor, a: Tensor, offsets: Tensor | None) -> Tensor:
        if a.dtype == torch.float64:
            return op.grad_weight.reference(grad_out, a, offsets)
        groups = a.shape[0] if offsets is None else offsets.shape[0]
        return serve(
            estimate("grad_weight", a, groups, a.shape[-1], grad_out.shape[-1], offsets is not None),
            a.device,
            lambda: kernels.grouped_mm_grad_b(grad_out, a, offsets, tf32(torch.backends.cuda.matmul, a.dtype)),
            lambda: _columns(grad_out, a, offsets),
        )

    return {"grouped_mm": forward, "grouped_mm_grad_a": grad_a, "grouped_mm_grad_b": grad_b}


def explain_grouped_mm(a: Tensor, b: Tensor, offsets: Tensor | None = None) -> str:
    """Which kernel serves each product of ``grouped_mm(a, b, offsets)``, and the estimates by which; nothing is computed.

    Args:
        a, b, offsets: as in :func:`~sparsekern.ops.grouped_mm`; only their sizes, dtype and device are looked at.

    Returns:
        A line on the call, and where a GPU's kernels serve it one for each product: ``direct`` (small matrices, a warp for each 16 x 32
        of the result), ``tile`` (64 x 64) or ``torch``.

    Raises:
        ValueError: ``grouped_mm: b must be [G, K, N]; got [7, 5]``

    Example:
        >>> explain_grouped_mm(torch.ones(3, 4, 8), torch.ones(3, 8, 2))  # doctest: +ELLIPSIS
        'grouped_mm 3 x [4, 8] @ [8, 2], float32, served by ...
    """
    check(a, b, offsets, values=False)
    (groups, inner, columns), rows, who = b.shape, a.shape[:-1].numel(), backends.serves("grouped_mm", a.device)
    heights = f"{a.shape[-2]}" if offsets is None else f"{rows} rows in all"
    lines = [f"grouped_mm {groups} x [{heights}, {inner}] @ [{inner}, {columns}], {str(a.dtype)[6:]}, served by {who}"]
    if who in backends.GPU_PROVIDERS:
        for door in OPS["grouped_mm"].products:
            if a.dtype == torch.float64:
                lines.append(f"  {door:12s} reference  no kernel for float64")
                continue
            e = estimate(door, a, groups, inner, columns, offsets is not None)
            kernel = "torch" if takes_torch(e, a.device) else cuda_cost.way_of_products(door, rows, groups, inner, columns)
            lines.append(f"  {door:12s} {kernel:10s} modelled: {e.ours_us:.1f} us ours, by {e.bound}, {e.torch_us:.1f} us torch")
    return "\n".join(lines)
