"""Providers of a sparse linear case: our layer against torch's dense, prepacked and sparse ways to the same product.

x [N, in]   weight [out, in], kept entries only   bias [out]   →   out [N, out]

dense            F.linear on the dense weight (kept entries, zeros elsewhere)
dense_prepacked  float32: MKL's packed weight; bfloat16: oneDNN's blocked weight ("pk16")
masked_dense     training only: F.linear(x, weight * mask), what mask-simulated sparsity costs
csr              F.linear with a CSR weight       csr_mm   addmv / addmm on x given feature-major
embedding_bag    rows of x, feature-major, gathered and summed with per-sample weights
"""

from __future__ import annotations

import copy
from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from sparsekern.measure.cases import LinearCase
from sparsekern.measure.providers.common import Setup, gradients_of, layer_of, leaf, served_by, to_csr


def linear_setup(case: LinearCase, mode: str = "fwd", layer: nn.Module | None = None, seed: int = 0) -> Setup:
    """All providers of ``case``.

    Args:
        mode: "fwd" without gradients, or "fwd_bwd": forward and the gradients of x, weight and bias.
        layer: ours; by default ``sparsekern.nn.SparseLinear`` of the case's sizes.
    """
    dtype = getattr(torch, case.dtype)
    generator = torch.Generator().manual_seed(seed)
    if layer is None:
        layer = layer_of("SparseLinear")(
            case.in_features,
            case.out_features,
            fan_in=case.fan_in,
            block_size=case.block_size,
            topology=case.topology,
            seed=seed,
        )
    layer = layer.to(dtype)
    x = torch.randn(case.batch, case.in_features, generator=generator).to(dtype)
    if case.layout == "features":
        x = x.t().contiguous().t()
    grad_out = torch.randn(case.batch, case.out_features, generator=generator).to(dtype)
    weight, mask = dense_weight(layer.weight.detach(), layer.index, case.in_features)
    bias = layer.bias.detach()

    setup = Setup(
        case,
        mode,
        reference=_reference(x, weight, mask, bias, grad_out, mode),
        baseline="dense",
        density=layer.weight.numel() / weight.numel(),
        flops=2 * case.batch * layer.weight.numel(),
        dense_flops=case.dense_flops,
        dtype=dtype,
        layout=case.layout or "rows",
        bytes_moved=sum(t.nbytes for t in (x, grad_out, layer.weight, layer.index, bias)),
    )
    if mode == "fwd_bwd":
        setup.flops, setup.dense_flops, setup.bytes_moved = (
            3 * setup.flops,
            3 * setup.dense_flops,
            3 * setup.bytes_moved,
        )
        _add_training(setup, layer, x, weight, mask, bias, grad_out)
    else:
        _add_inference(setup, layer, x, weight, bias)
    return setup


def _add_inference(setup: Setup, layer: nn.Module, x: Tensor, weight: Tensor, bias: Tensor) -> None:
    layout, batch = setup.layout, x.size(0)
    # a single row is both row-major and feature-major, so nothing has to be transposed for it
    other = layout if batch == 1 else "features"
    features = x.t().contiguous()  # [in, N]
    serves = served_by("sparse_linear", layer, x, setup.mode)
    layer.requires_grad_(False)
    setup.add("ours", lambda: lambda: layer(x), ours=True, layout=layout, served_by=serves)
    if hasattr(layer, "pack"):
        packed = copy.deepcopy(layer).pack()
        setup.add(
            "ours_packed",
            lambda: lambda: packed(x),
            ours=True,
            packed=True,
            layout=layout,
            served_by=served_by("sparse_linear", packed, x, setup.mode),
        )
    setup.add("dense", lambda: lambda: F.linear(x, weight, bias), layout=layout)
    setup.add("dense_prepacked", lambda: _prepacked(x, weight, bias), packed=True, layout=layout)
    csr = to_csr(weight)
    setup.add("csr", lambda: lambda: F.linear(x, csr, bias), layout=layout)
    row, column = x.reshape(-1), bias[:, None]
    if batch == 1:
        setup.add("csr_mm", lambda: lambda: torch.addmv(bias, csr, row)[None], layout=other)
    else:
        setup.add("csr_mm", lambda: lambda: torch.addmm(column, csr, features).t(), layout=other)
    table, values = condensed(layer.weight.detach(), layer.index)  # [out, fan_in] each
    setup.add(
        "embedding_bag",
        lambda: lambda: F.embedding_bag(table, features, per_sample_weights=values, mode="sum").add_(column).t(),
        layout=other,
    )


def _add_training(setup: Setup, layer: nn.Module, x: Tensor, weight: Tensor, mask: Tensor, bias: Tensor, grad_out: Tensor) -> None:
    layout = setup.layout
    layer.requires_grad_(True)
    ours = [leaf(x), layer.weight, layer.bias]

    def dense_grads(grads) -> dict[str, Tensor]:
        return {"grad_x": grads[0], "grad_weight": grads[1].double() * mask, "grad_bias": grads[2]}

    def our_grads(grads) -> dict[str, Tensor]:
        return {
            "grad_x": grads[0],
            "grad_weight": dense_weight(grads[1], layer.index, x.size(1))[0],
            "grad_bias": grads[2],
        }

    setup.add(
        "ours",
        lambda: lambda: torch.autograd.grad(layer(ours[0]), ours, grad_out),
        outputs=our_grads,
        ours=True,
        layout=layout,
        served_by=served_by("sparse_linear", layer, x, setup.mode),
    )
    leaves = [leaf(x), leaf(weight), leaf(bias)]
    keep = mask.to(weight.dtype)
    setup.add("dense", lambda: gradients_of(F.linear, leaves, grad_out), outputs=dense_grads, layout=layout)
    setup.add(
        "masked_dense",
        lambda: gradients_of(lambda x, w, b: F.linear(x, w * keep, b), leaves, grad_out),
        outputs=dense_grads,
        layout=layout,
    )
    csr = [leaf(x), to_csr(weight).requires_grad_(), leaf(bias)]
    setup.add(
        "csr",
        lambda: gradients_of(F.linear, csr, grad_out),
        layout=layout,
        outputs=lambda grads: dense_grads([g.to_dense() if g.layout != torch.strided else g for g in grads]),
    )
    setup.missing("dense_prepacked", "prepacked weights have no gradient", packed=True, layout=layout)


def _prepacked(x: Tensor, weight: Tensor, bias: Tensor) -> Callable[[], Tensor]:
    """The dense product with a weight that its library rearranged beforehand."""
    if x.dtype == torch.float32:
        packed = torch.ops.mkl._mkl_reorder_linear_weight(weight, x.size(0))
        return lambda: torch.ops.mkl._mkl_linear(x, packed, weight, bias, x.size(0))
    packed = torch.ops.mkldnn._reorder_linear_weight(weight, x.size(0))
    return lambda: torch.ops.mkldnn._linear_pointwise(x, packed, bias, "none", [], "")


def _reference(x: Tensor, weight: Tensor, mask: Tensor, bias: Tensor, grad_out: Tensor, mode: str) -> dict[str, Tensor]:
    x, weight, bias, grad_out = (t.double() for t in (x, weight, bias, grad_out))
    if mode == "fwd":
        return {"out": F.linear(x, weight, bias)}
    return {"grad_x": grad_out @ weight, "grad_weight": (grad_out.t() @ x) * mask, "grad_bias": grad_out.sum(0)}


def condensed(weight: Tensor, index: Tensor) -> tuple[Tensor, Tensor]:
    """Element indices and values, both ``[out, fan_in]``, of a condensed or a blocked weight."""
    if weight.dim() == 2:
        return index.long(), weight
    out_blocks, fan_in, block_out, block_in = weight.shape
    columns = index.long()[:, :, None] * block_in + torch.arange(block_in)  # [OB, F, BI]
    columns = columns.reshape(out_blocks, 1, fan_in * block_in).expand(-1, block_out, -1)
    values = weight.permute(0, 2, 1, 3)  # [OB, BO, F, BI]
    return columns.reshape(-1, fan_in * block_in).contiguous(), values.reshape(-1, fan_in * block_in).contiguous()


def dense_weight(weight: Tensor, index: Tensor, in_features: int) -> tuple[Tensor, Tensor]:
    """The dense weight ``[out, in]``, and as float64 the mask of kept entries, of a condensed or blocked weight."""
    columns, values = condensed(weight, index)
    dense = weight.new_zeros(columns.size(0), in_features).scatter_(1, columns, values)
    return dense, torch.zeros_like(dense, dtype=torch.float64).scatter_(1, columns, 1.0)
