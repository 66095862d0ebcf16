"""Providers of a sparse linear case: our layer against torch's dense, prepacked and sparse ways to the same product.

x [N, in]   weight [out, in], kept entries only   bias [out]   →   out [N, out]

dense            F.linear on the dense weight (kept entries, zeros elsewhere)
dense_prepacked  float32: MKL's packed weight; bfloat16: oneDNN's blocked weight ("pk16")
masked_dense     training only: F.linear(x, weight * mask), what mask-simulated sparsity costs
dense_bf16       training in float32 only: dense in bfloat16, which many would train in; printed, not gated
csr              F.linear with a CSR weight       csr_mm   addmv / addmm on x given feature-major
embedding_bag    rows of x, feature-major, gathered and summed with per-sample weights

Other packages', printed and not gated (see :mod:`~sparsekern.measure.providers.mkl`, :mod:`~sparsekern.measure.providers.packages`):

mkl_ie           MKL's inspector-executor, x and out as in the case: the fastest of its ways, transposes included
mkl_ie_features  the same with x given, and out left, feature-major: free transposes
sparseprop, sparselab   their layers, forward and training
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Sequence
from functools import cache, partial
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from sparsekern.measure.cases import LinearCase
from sparsekern.measure.providers import mkl, packages
from sparsekern.measure.providers.common import Setup, gradients_of, layer_of, leaf, served_by, to_bsr, to_csr


def linear_setup(case: LinearCase, mode: str = "fwd", layer: Any = None, seed: int = 0) -> Setup:
    """All providers of ``case``.

    Args:
        mode: "fwd" without gradients, or "fwd_bwd": forward and the gradients of x, weight and bias.
        layer: ours; by default ``sparsekern.nn.SparseLinear`` of the case's sizes.
    """
    dtype = getattr(torch, case.dtype)
    generator = torch.Generator().manual_seed(seed)
    layer = (layer if layer is not None else make_layer(case, seed)).to(dtype)
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
        _add_mkl(setup, x, weight, bias)
    _add_packages(setup, x, weight, bias, grad_out)
    return setup


def make_layer(case: LinearCase, seed: int = 0) -> Any:
    """``sparsekern.nn.SparseLinear`` of the case's sizes, float32, no kept weight zero."""
    sizes = case.in_features, case.out_features
    layer = layer_of("SparseLinear")(*sizes, fan_in=case.fan_in, block_size=case.block_size, topology=case.topology, seed=seed)
    with torch.no_grad():  # formats made from a dense weight would not keep a zero
        layer.weight.masked_fill_(layer.weight == 0, 2.0**-20)
    return layer


def _add_inference(setup: Setup, layer: Any, x: Tensor, weight: Tensor, bias: Tensor) -> None:
    layout, batch = setup.layout, x.size(0)
    # a single row is both row-major and feature-major, so nothing has to be transposed for it
    other = layout if batch == 1 else "features"
    features = x.t().contiguous()  # [in, N]
    serves = served_by("sparse_linear", layer, x, setup.mode)
    layer.requires_grad_(False)
    held, dense = layer_memory(layer), {"weight": weight.nbytes, "bias": bias.nbytes}
    setup.add("ours", lambda: lambda: layer(x), ours=True, layout=layout, served_by=serves, memory=held)
    if hasattr(layer, "pack"):
        packed = copy.deepcopy(layer).pack()
        setup.add(
            "ours_packed",
            lambda: lambda: packed(x),
            ours=True,
            packed=True,
            layout=layout,
            served_by=served_by("sparse_linear", packed, x, setup.mode),
            memory=layer_memory(packed),
        )
    setup.add("dense", lambda: lambda: F.linear(x, weight, bias), layout=layout, memory=dense)
    setup.add("dense_prepacked", lambda: _prepacked(x, weight, bias), packed=True, layout=layout)
    csr = to_csr(weight)
    csr_held = csr_memory(csr, bias)
    setup.add("csr", lambda: lambda: F.linear(x, csr, bias), layout=layout, memory=csr_held)
    row, column = x.reshape(-1), bias[:, None]
    if batch == 1:
        setup.add("csr_mm", lambda: lambda: torch.addmv(bias, csr, row)[None], layout=other, memory=csr_held)
    else:
        setup.add("csr_mm", lambda: lambda: torch.addmm(column, csr, features).t(), layout=other, memory=csr_held)
    table, values = condensed(layer.weight.detach(), layer.index)  # [out, fan_in] each
    setup.add(
        "embedding_bag",
        lambda: lambda: F.embedding_bag(table, features, per_sample_weights=values, mode="sum").add_(column).t(),
        layout=other,
        memory={"weight": values.nbytes, "index": table.nbytes, "bias": bias.nbytes},
    )


def _add_mkl(setup: Setup, x: Tensor, weight: Tensor, bias: Tensor) -> None:
    """MKL on x as the case has it, and with free transposes where those would cost something."""
    layout, block = setup.layout, setup.case.block_size
    about: dict[str, Any] = dict(packed=True, outside=True, served_by="MKL")
    if x.dtype != torch.float32:
        setup.missing("mkl_ie", "MKL's sparse product is timed in float32 only", layout=layout, **about)
        return

    @cache
    def weights() -> list[Tensor]:
        return [to_csr(weight)] + ([to_bsr(weight, block)] if block > 1 else [])

    if x.size(0) == 1:
        ways = {"mkl_ie": (layout, [mkl.one_row])}
    elif layout == "features":
        ways = {"mkl_ie": (layout, [mkl.features])}
    else:
        ways = {"mkl_ie": (layout, [mkl.transposed, mkl.column]), "mkl_ie_features": ("features", [mkl.features])}
    for name, (taken, calls) in ways.items():
        setup.add(name, partial(_fastest_mkl, calls, weights, bias, x), layout=taken, **about)


def _fastest_mkl(calls: list, weights: Callable[[], list[Tensor]], bias: Tensor, x: Tensor) -> Callable[[], Tensor]:
    return mkl.fastest(calls, weights(), bias, x)


def _forward(layer: Any, x: Tensor) -> Callable[[], Tensor]:
    return lambda: layer(x)


def _step(layer: Any, leaves: list[Any], grad_out: Tensor) -> Callable[[], tuple[Tensor, ...]]:
    return lambda: torch.autograd.grad(layer(leaves[0]), leaves, grad_out)


def _add_packages(setup: Setup, x: Tensor, weight: Tensor, bias: Tensor, grad_out: Tensor) -> None:
    """The layers of other packages: forward, or forward and their gradients as dense tensors."""
    kept = weight.nonzero(as_tuple=True)
    for name, make in (("sparseprop", packages.sparseprop_layer), ("sparselab", packages.sparselab_layer)):
        about: dict[str, Any] = dict(layout=setup.layout, outside=True, served_by=name)
        if x.dtype != torch.float32:
            setup.missing(name, "float32 only", **about)
            continue
        try:
            layer, values = make(weight, bias)
        except Exception as error:  # absent or broken: shown as the reason
            setup.missing(name, (str(error).strip() or type(error).__name__).splitlines()[0][:160], **about)
            continue
        about["memory"] = packages.memory(layer)
        if setup.mode == "fwd":
            layer.requires_grad_(False)
            setup.add(name, partial(_forward, layer, x), **about)
            continue
        leaves = [leaf(x), values, layer.bias]

        def outputs(grads: Sequence[Tensor]) -> dict[str, Tensor]:
            dense = torch.zeros_like(weight).index_put_(kept, grads[1].flatten())
            return {"grad_x": grads[0], "grad_weight": dense, "grad_bias": grads[2]}

        setup.add(
            name,
            partial(_step, layer, leaves, grad_out),
            outputs=outputs,
            **about,
        )


def _add_training(setup: Setup, layer: Any, x: Tensor, weight: Tensor, mask: Tensor, bias: Tensor, grad_out: Tensor) -> None:
    layout = setup.layout
    layer.requires_grad_(True)
    ours = [leaf(x), layer.weight, layer.bias]

    def dense_grads(grads: Sequence[Tensor]) -> dict[str, Tensor]:
        return {"grad_x": grads[0], "grad_weight": grads[1].double() * mask, "grad_bias": grads[2]}

    def our_grads(grads: Sequence[Tensor]) -> dict[str, Tensor]:
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
        memory=layer_memory(layer),
    )
    dense_held = {"weight": weight.nbytes, "bias": bias.nbytes}
    leaves = [leaf(x), leaf(weight), leaf(bias)]
    keep = mask.to(weight.dtype)
    setup.add("dense", lambda: gradients_of(F.linear, leaves, grad_out), outputs=dense_grads, layout=layout, memory=dense_held)
    if x.dtype == torch.float32:
        half = [leaf(t.bfloat16()) for t in (x, weight, bias)]
        about = dict(layout=layout, dtype=torch.bfloat16, memory={"weight": weight.nbytes // 2, "bias": bias.nbytes // 2})
        setup.add("dense_bf16", lambda: gradients_of(F.linear, half, grad_out.bfloat16()), outputs=dense_grads, **about)
    setup.add(
        "masked_dense",
        lambda: gradients_of(lambda x, w, b: F.linear(x, w * keep, b), leaves, grad_out),
        outputs=dense_grads,
        layout=layout,
        memory=dense_held | {"mask": keep.nbytes},
    )
    csr = [leaf(x), to_csr(weight).requires_grad_(), leaf(bias)]
    setup.add(
        "csr",
        lambda: gradients_of(F.linear, csr, grad_out),
        layout=layout,
        memory=csr_memory(csr[1].detach(), bias),
        outputs=lambda grads: dense_grads([g.to_dense() if g.layout != torch.strided else g for g in grads]),
    )
    setup.missing("dense_prepacked", "prepacked weights have no gradient", packed=True, layout=layout)
    reason = "MKL has no product for the gradient of kept weights"
    setup.missing("mkl_ie", reason, packed=True, layout=layout, outside=True, served_by="MKL")


def _prepacked(x: Tensor, weight: Tensor, bias: Tensor) -> Callable[[], Tensor]:
    """The dense product with a weight that its library rearranged beforehand."""
    if x.dtype == torch.float32:
        packed = torch.ops.mkl._mkl_reorder_linear_weight(weight, x.size(0))

        return remembered(
            lambda: torch.ops.mkl._mkl_linear(x, packed, weight, bias, x.size(0)),
            {"weight": weight.nbytes, "bias": bias.nbytes, "pack": torch.ops.mkldnn._nbytes(packed)},  # the op takes both
        )
    packed = torch.ops.mkldnn._reorder_linear_weight(weight, x.size(0))

    held = {"bias": bias.nbytes, "pack": torch.ops.mkldnn._nbytes(packed)}
    return remembered(lambda: torch.ops.mkldnn._linear_pointwise(x, packed, bias, "none", [], ""), held)


def remembered(call: Any, memory: dict[str, int]) -> Callable[[], Tensor]:
    """The call, with what it holds between calls in ``memory``, where :meth:`Setup.add` looks."""
    call.memory = memory
    return call


def _reference(x: Tensor, weight: Tensor, mask: Tensor, bias: Tensor, grad_out: Tensor, mode: str) -> dict[str, Tensor]:
    x, weight, bias, grad_out = (t.double() for t in (x, weight, bias, grad_out))
    if mode == "fwd":
        return {"out": F.linear(x, weight, bias)}
    return {"grad_x": grad_out @ weight, "grad_weight": (grad_out.t() @ x) * mask, "grad_bias": grad_out.sum(0)}


def layer_memory(layer: Any) -> dict[str, int]:
    """Bytes that a SparseLinear holds between calls; a packed one keeps its natural weight too, to be unpacked again."""
    held = {name: t.nbytes for name, t in (("weight", layer.weight), ("index", layer.index), ("bias", layer.bias)) if t is not None}
    derived = {"plan": getattr(layer, "_plan", None), "pack": getattr(layer, "_packed", None)}
    return held | {name: t.nbytes for name, t in derived.items() if t is not None}


def csr_memory(csr: Tensor, bias: Tensor) -> dict[str, int]:
    """Bytes of a CSR tensor and a bias; torch's indices are 64-bit."""
    return {"weight": csr.values().nbytes, "index": csr.crow_indices().nbytes + csr.col_indices().nbytes, "bias": bias.nbytes}


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
