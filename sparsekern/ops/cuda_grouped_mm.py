"""grouped_mm on a GPU: who serves each product, our kernels or torch's."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from sparsekern.ops import cuda_cost
from sparsekern.ops.cuda_choice import serve, tf32
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
