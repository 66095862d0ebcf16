"""Providers of a grouped or stochastic convolution case: our layer against torch's dense, grouped and prepacked ones.

    x [N, C, H, W]   dense weight [K, C, k, k] with zeros where nothing is kept   bias [K]   →   out [N, K, H', W']

    ours, ours_packed           the layer; packed: channels_last groups only
    dense, dense_prepacked      F.conv2d on the dense weight; oneDNN's operator with a rearranged weight
    grouped, grouped_prepacked  the same with the filter groups of the case
    masked_dense                F.conv2d(x, weight * mask): mask-simulated sparsity
    csr_unfold                  a CSR weight times the unfolded input, image by image

A name ends in ``_other`` where input and output have the other memory format than the case: printed, not gated.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from sparsekern.measure.cases import ConvCase
from sparsekern.measure.providers.common import Setup, gradients_of, layer_of, leaf, served_by, to_csr

FORMATS = {"nchw": torch.contiguous_format, "channels_last": torch.channels_last}


def conv_setup(case: ConvCase, mode: str = "fwd", layer: Any = None, seed: int = 0) -> Setup:
    """All providers of ``case``; ``layer`` is ours, by default ``GroupedConv2d`` or ``StochasticConv2d``."""
    dtype = getattr(torch, case.dtype)
    generator = torch.Generator().manual_seed(seed)
    layer = (layer or _layer(case, seed)).to(dtype)
    x = torch.randn(case.batch, case.channels, case.size, case.size, generator=generator).to(dtype)
    grad_out = torch.randn(case.batch, case.out_channels, case.out_size, case.out_size, generator=generator).to(dtype)
    densify = (
        (lambda values: dense_grouped(values, case.groups))
        if not case.granularity
        else (lambda values: dense_stochastic(values, layer.indptr, layer.index, case))
    )
    weight, mask = densify(layer.weight.detach())
    bias = layer.bias.detach()

    flops = 2 * case.batch * layer.weight.numel() * case.out_size**2
    tables = sum(t.nbytes for t in layer.buffers())
    setup = Setup(
        case,
        mode,
        reference=_reference(case, x, weight, mask, bias, grad_out, mode),
        baseline="dense",
        density=layer.weight.numel() / weight.numel(),
        flops=flops,
        dense_flops=case.dense_flops,
        dtype=dtype,
        layout=case.layout or "nchw",
        bytes_moved=sum(t.nbytes for t in (x, grad_out, layer.weight, bias)) + tables,
    )
    add = _add_inference
    if mode == "fwd_bwd":
        setup.flops, setup.dense_flops, setup.bytes_moved = 3 * flops, 3 * setup.dense_flops, 3 * setup.bytes_moved
        add = _add_training
    for layout in sorted(FORMATS, key=lambda layout: layout != setup.layout):  # the case's own first
        to = {"memory_format": FORMATS[layout]}
        # torch wants the weight in the input's format too; ours keeps its natural one
        add(setup, layer, layout, x.contiguous(**to), weight.contiguous(**to), bias, grad_out.contiguous(**to), densify)
    return setup


def _add_inference(
    setup: Setup,
    layer: Any,
    layout: str,
    x: Tensor,
    weight: Tensor,
    bias: Tensor,
    grad_out: Tensor,
    densify: Callable,
) -> None:
    case, end, about = setup.case, "" if layout == setup.layout else "_other", {"layout": layout}
    settings = case.stride, case.padding, case.dilation
    layer.requires_grad_(False)
    setup.add("ours" + end, lambda: lambda: layer(x), ours=True, served_by=served_by(case.op, layer, x, setup.mode), **about)
    if hasattr(layer, "pack") and layout == "channels_last" and not end:
        packed = copy.deepcopy(layer).pack(tuple(x.shape))
        serves = served_by(case.op, packed, x, setup.mode)
        setup.add("ours_packed", lambda: lambda: packed(x), ours=True, packed=True, served_by=serves, **about)
    setup.add("dense" + end, lambda: lambda: F.conv2d(x, weight, bias, *settings), **about)
    setup.add("dense_prepacked" + end, lambda: _prepacked(x, weight, bias, case, 1), packed=True, **about)
    if not case.granularity:
        grouped = layer.weight.detach().contiguous(memory_format=FORMATS[layout])
        setup.add("grouped" + end, lambda: lambda: F.conv2d(x, grouped, bias, *settings, case.groups), **about)
        setup.add("grouped_prepacked" + end, lambda: _prepacked(x, grouped, bias, case, case.groups), packed=True, **about)
    elif not end:
        mask = densify(layer.weight)[1].to(x.dtype).contiguous(memory_format=FORMATS[layout])
        setup.add("masked_dense", lambda: lambda: F.conv2d(x, weight * mask, bias, *settings), **about)
        setup.add("csr_unfold", lambda: _csr_unfold(x, weight, bias, case), **about)


def _add_training(
    setup: Setup,
    layer: Any,
    layout: str,
    x: Tensor,
    weight: Tensor,
    bias: Tensor,
    grad_out: Tensor,
    densify: Callable,
) -> None:
    case, end, about = setup.case, "" if layout == setup.layout else "_other", {"layout": layout}
    mask = densify(layer.weight.detach())[1]
    keep = mask.to(x.dtype).contiguous(memory_format=FORMATS[layout])

    def ours(grads: Sequence[Tensor]) -> dict[str, Tensor]:
        return {"grad_x": grads[0], "grad_weight": densify(grads[1])[0], "grad_bias": grads[2]}

    def dense(grads: Sequence[Tensor]) -> dict[str, Tensor]:
        return {"grad_x": grads[0], "grad_weight": grads[1].double() * mask, "grad_bias": grads[2]}

    def conv(groups: int) -> Callable:
        return lambda x, w, b: F.conv2d(x, w, b, case.stride, case.padding, case.dilation, groups)

    layer.requires_grad_(True)
    leaves = [leaf(x), layer.weight, layer.bias]
    setup.add(
        "ours" + end,
        lambda: lambda: torch.autograd.grad(layer(leaves[0]), leaves, grad_out),
        outputs=ours,
        ours=True,
        served_by=served_by(case.op, layer, x, setup.mode),
        **about,
    )
    setup.add(
        "dense" + end,
        lambda: gradients_of(conv(1), [leaf(x), leaf(weight), leaf(bias)], grad_out),
        outputs=dense,
        **about,
    )
    if not case.granularity:
        grouped = leaf(layer.weight.contiguous(memory_format=FORMATS[layout]))
        setup.add(
            "grouped" + end,
            lambda: gradients_of(conv(case.groups), [leaf(x), grouped, leaf(bias)], grad_out),
            outputs=ours,
            **about,
        )
    elif not end:
        setup.add(
            "masked_dense",
            lambda: gradients_of(lambda x, w, b: conv(1)(x, w * keep, b), [leaf(x), leaf(weight), leaf(bias)], grad_out),
            outputs=dense,
            **about,
        )
    setup.missing("dense_prepacked" + end, "prepacked weights have no gradient", packed=True, **about)


def _layer(case: ConvCase, seed: int) -> nn.Module:
    sizes = case.channels, case.out_channels, case.kernel, case.stride, case.padding, case.dilation
    if not case.granularity:
        torch.manual_seed(seed)
        return layer_of("GroupedConv2d")(*sizes, groups=case.groups)
    return layer_of("StochasticConv2d")(*sizes, density=case.density, granularity=case.granularity, share=case.share, seed=seed)


def _prepacked(x: Tensor, weight: Tensor, bias: Tensor, case: ConvCase, groups: int) -> Callable[[], Tensor]:
    padding, stride, dilation = [case.padding] * 2, [case.stride] * 2, [case.dilation] * 2
    packed = torch.ops.mkldnn._reorder_convolution_weight(weight, padding, stride, dilation, groups, list(x.shape))
    run = torch.ops.mkldnn._convolution_pointwise
    return lambda: run(x, packed, bias, padding, stride, dilation, groups, "none", [], "")


def _csr_unfold(x: Tensor, weight: Tensor, bias: Tensor, case: ConvCase) -> Callable[[], Tensor]:
    csr, column = to_csr(weight.flatten(1)), bias[:, None]

    def run() -> Tensor:
        columns = F.unfold(x, case.kernel, case.dilation, case.padding, case.stride)  # [N, C*k*k, L]
        out = torch.stack([torch.addmm(column, csr, image) for image in columns])
        return out.view(x.size(0), -1, case.out_size, case.out_size)

    return run


def _reference(case: ConvCase, x: Tensor, weight: Tensor, mask: Tensor, bias: Tensor, grad_out: Tensor, mode: str) -> dict[str, Tensor]:
    x, weight, bias = (t.double().requires_grad_(mode == "fwd_bwd") for t in (x, weight, bias))
    out = F.conv2d(x, weight, bias, case.stride, case.padding, case.dilation)
    if mode == "fwd":
        return {"out": out}
    grad_x, grad_weight, grad_bias = torch.autograd.grad(out, [x, weight, bias], grad_out.double())
    return {"grad_x": grad_x, "grad_weight": grad_weight * mask, "grad_bias": grad_bias}


def dense_grouped(weight: Tensor, groups: int) -> tuple[Tensor, Tensor]:
    """The dense weight ``[K, C, k, k]`` and, as float64, its mask, of a grouped weight ``[K, C/G, k, k]``."""
    out_channels, in_group, *kernel = weight.shape
    dense = weight.new_zeros(groups, out_channels // groups, groups, in_group, *kernel)
    mask = torch.zeros_like(dense, dtype=torch.float64)
    diagonal = torch.arange(groups)
    dense[diagonal, :, diagonal] = weight.view(groups, -1, in_group, *kernel)
    mask[diagonal, :, diagonal] = 1.0
    shape = out_channels, groups * in_group, *kernel
    return dense.view(shape), mask.view(shape)


def dense_stochastic(weight: Tensor, indptr: Tensor, index: Tensor, case: ConvCase) -> tuple[Tensor, Tensor]:
    """The dense weight ``[K, C, k, k]`` and, as float64, its mask, of kept blocks ``[nnz, BO, BI, BT]``.

    ``index`` holds input_block * (k*k / BT) + tap; ``indptr [K/BO + 1]`` says where each output block's entries begin.
    """
    _, block_out, block_in, block_taps = weight.shape
    taps = case.kernel**2 // block_taps
    out_blocks = torch.repeat_interleave(torch.arange(indptr.numel() - 1), indptr.long().diff())  # [nnz]
    in_blocks, tap = index.long() // taps, index.long() % taps
    dense = weight.new_zeros(case.out_channels // block_out, case.channels // block_in, taps, block_out, block_in, block_taps)
    mask = torch.zeros_like(dense, dtype=torch.float64)
    dense[out_blocks, in_blocks, tap] = weight
    mask[out_blocks, in_blocks, tap] = 1.0
    shape = case.out_channels, case.channels, case.kernel, case.kernel
    order = 0, 3, 1, 4, 2, 5  # [OB, BO, IB, BI, taps, BT]
    return dense.permute(order).reshape(shape), mask.permute(order).reshape(shape)
