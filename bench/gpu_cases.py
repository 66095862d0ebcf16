"""What `bench/gpu.py` times: shapes, and for each of them ours and every rival, as calls over several sets of inputs.

A set is all that a call reads but its bias: images or rows, weight, index, the other factor, so that nothing of it stays in a cache.
"""

from __future__ import annotations

import copy
import functools
import importlib.util
import math
import os
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from unittest import mock

import gpu_bsr
import torch
from gpu_timing import DEVICE, Call, sets_for
from torch.nn import functional as F
from torch.utils.flop_counter import FlopCounterMode

from sparsekern import models, ops, topology
from sparsekern.ops import backends, cuda, cuda_cost, cuda_grouped_mm, cuda_root_conv2d, cuda_sparse_conv2d
from sparsekern.ops.sparse_conv2d import dense_weight as masked_dense
from sparsekern.ops.sparse_linear import dense_weight

Make = Callable[[int], Call]  # set -> its call


@dataclass
class Setup:
    """One case, ready to run. ``providers`` of one function of ``truth``; ours begin with "ours"."""

    key: str
    flops: int  # of the kept weights
    bytes: int
    estimates: dict[str, float]
    providers: dict[str, Make]
    truth: Callable[[], tuple[torch.Tensor, ...]]  # of set 0, in float64: the output, or the gradients of its factors and bias
    sets: int
    refused: dict[str, str] = field(default_factory=dict)  # rivals that cannot run, and why
    depth: int = 1  # products one behind the other: the root of it is how many times the error of one is allowed


def _never(call: Call) -> Call:
    """Ours whatever the cost model says; it is what is measured here."""

    def run():
        with backends.use(backends.providers(DEVICE)[-1], DEVICE, dense="never" if backends.native or DEVICE == "cuda" else "auto"):
            return call()

    return run


def _without_wgmma(call: Call) -> Call:
    """The same by the kernels of a card that has none."""
    card_of = cuda_cost.card_of

    def run():
        with mock.patch.object(cuda_cost, "card_of", lambda device: replace(card_of(device), wgmma=0.0)):
            return call()

    return run


def _with_twins(providers: dict[str, Make], dtype: torch.dtype, training: bool, call: Callable[..., Make]) -> None:
    """Triton's twin of the op, forward, in one type (each shape is compiled): for the eye, no rival. ``call(kernels)`` makes it."""
    runs = DEVICE == "cuda" or os.environ.get("TRITON_INTERPRET") == "1"
    if runs and not training and dtype == torch.bfloat16 and importlib.util.find_spec("triton"):
        from sparsekern.ops import triton

        providers["triton"] = call(triton.kernels())


def _truth(function, leaves, cotangent, training: bool) -> Callable[[], tuple[torch.Tensor, ...]]:
    wide = [t.detach().double() for t in leaves]

    def compute():
        if not training:
            return (function(*wide),)
        needing = [t.requires_grad_() for t in wide]
        return torch.autograd.grad(function(*needing), needing, cotangent.double())

    return compute


def _with_gradients(call: Callable[..., torch.Tensor], leaves: list[torch.Tensor], cotangent: torch.Tensor) -> Call:
    return lambda: torch.autograd.grad(call(*leaves), leaves, cotangent)


# ---- grouped convolutions

#: (what, N, C, H, K, kernel, stride, groups): networks with filter groups, at the batches where each is a different problem
CONVOLUTIONS = [
    *(("resnet conv2", n, 64, 56, 64, 3, 1, g) for n in (64, 1) for g in (4, 8, 16, 32)),
    *(("resnet conv3", n, 128, 28, 128, 3, 1, g) for n in (64, 1) for g in (8, 16, 64)),
    *(("resnet conv4", 64, 256, 14, 256, 3, 1, g) for g in (8, 64)),
    *(("resnet conv5", 64, 512, 7, 512, 3, 1, g) for g in (8, 64)),
    *(("nin conv2a", n, 96, 16, 192, 5, 1, g) for n in (128, 1) for g in (2, 4, 8, 16)),
    *(("googlenet 3a", 64, 96, 28, 128, 3, 1, g) for g in (4, 8)),
    ("resnext stride", 64, 256, 56, 256, 3, 2, 32),
]
DRY_CONVOLUTIONS = [("dry", 2, 12, 6, 24, 3, 1, 3), ("dry", 1, 16, 5, 16, 3, 2, 16)]


def convolution(case, dtype: torch.dtype, training: bool) -> Setup:
    what, n, c, size, k, kernel, stride, groups = case
    pad, out = kernel // 2, (size + 2 * (kernel // 2) - kernel) // stride + 1
    moved = dtype.itemsize * (n * c * size * size + n * k * out * out + k * c // groups * kernel * kernel)
    sets = sets_for(moved)
    generator = torch.Generator(DEVICE).manual_seed(1)
    draw = lambda *shape: torch.randn(shape, device=DEVICE, generator=generator).to(dtype)  # noqa: E731
    weights = [draw(k, c // groups, kernel, kernel) / math.sqrt(c // groups * kernel * kernel) for _ in range(sets)]
    bias = draw(k)
    images = [draw(n, c, size, size) for _ in range(sets)]
    last = [x.to(memory_format=torch.channels_last) for x in images]
    weights_last = [w.to(memory_format=torch.channels_last) for w in weights]
    expanded = [_expanded(w, groups) for w in weights]
    cotangents = [draw(n, k, out, out) for _ in range(sets if training else 1)]
    cotangents_last = [g.to(memory_format=torch.channels_last) for g in cotangents]
    window = dict(stride=stride, padding=pad)

    def ours(x, w, b):
        return ops.grouped_conv2d(x, w, b, **window, groups=groups)

    def torchs(x, w, b):
        return F.conv2d(x, w, b, **window, groups=groups)

    def dense(x, w, b):
        return F.conv2d(x, w, b, **window)

    def loop(x, w, b):
        parts = zip(x.chunk(groups, 1), w.chunk(groups), b.chunk(groups))
        return torch.cat([F.conv2d(part, filters, offset, **window) for part, filters, offset in parts], 1)

    def unfolded(x, w, b):
        columns = F.unfold(x, kernel, 1, pad, stride).view(n, groups, c // groups * kernel * kernel, -1)
        product = torch.matmul(w.view(groups, k // groups, -1), columns)
        return product.flatten(1, 2).view(n, k, out, out) + b.view(-1, 1, 1)

    def calls(function, xs, ws, gs) -> Make:
        if not training:
            return lambda i: lambda: function(xs[i], ws[i], bias)
        leaves = [[t.detach().requires_grad_() for t in (x, w, bias)] for x, w in zip(xs, ws)]
        return lambda i: _with_gradients(function, leaves[i], gs[i])

    mine = {"ours_nhwc": calls(ours, last, weights_last, cotangents_last), "ours_nchw": calls(ours, images, weights, cotangents)}
    providers = {name: (lambda i, make=make: _never(make(i))) for name, make in mine.items()}
    providers |= {
        "cudnn_nhwc": calls(torchs, last, weights_last, cotangents_last),
        "cudnn_nchw": calls(torchs, images, weights, cotangents),
        "dense_expanded": calls(dense, last, expanded, cotangents_last),
        "unfold_bmm": calls(unfolded, images, weights, cotangents),
    }
    if groups <= 32:
        providers["loop"] = calls(loop, images, weights, cotangents)
    if DEVICE == "cuda" and not training and dtype == torch.bfloat16 and groups in (8, 16):  # compiling takes long
        providers["max_autotune"] = calls(torch.compile(torchs, mode="max-autotune-no-cudagraphs"), last, weights_last, cotangents_last)
    sizes = (stride, stride, pad, pad, 1, 1, groups)
    shape = weights[0].shape
    _with_twins(
        providers, dtype, training, lambda k: lambda i: lambda: k.grouped_conv2d(last[i], weights_last[i], bias, *sizes, False, False)
    )
    estimates = [cuda.estimate_convolution("forward", last[0], shape, sizes, 1)]
    if training:
        estimates.append(cuda.estimate_convolution("grad_x", cotangents_last[0], shape, sizes, sizes=tuple(last[0].shape)))
        estimates.append(cuda.estimate_convolution("grad_weight", last[0], shape, sizes))
    name = (
        f"grouped_conv2d/{what} n{n} {c}-{k}@{size} {kernel}x{kernel} s{stride} g{groups}/{str(dtype)[6:]}/{'step' if training else 'fwd'}"
    )
    flops = 2 * n * k * out * out * c // groups * kernel * kernel
    truth = _truth(torchs, (images[0], weights[0], bias), cotangents[0], training)
    return Setup(name, flops * (3 if training else 1), moved, _modelled(estimates), providers, truth, sets)


def _expanded(weight: torch.Tensor, groups: int) -> torch.Tensor:
    """``[K, C/G, KH, KW]`` -> the dense ``[K, C, KH, KW]`` that does the same, channels_last."""
    k, in_group, *kernel = weight.shape
    dense = weight.new_zeros(groups, k // groups, groups, in_group, *kernel)
    for g in range(groups):
        dense[g, :, g] = weight[g * k // groups : (g + 1) * k // groups]
    return dense.view(k, groups * in_group, *kernel).to(memory_format=torch.channels_last)


def _modelled(estimates) -> dict[str, float]:
    """Of all the products of a call."""
    return {"ours_us": sum(e.ours_us for e in estimates), "torch_us": sum(e.torch_us for e in estimates)}


# ---- fixed fan-in

#: (rows, in, out, density, block)
LINEARS = [
    *((n, 3072, 768, 0.1, (1, 1)) for n in (1, 16, 256, 4096)),
    *((n, 4096, 4096, d, (1, 1)) for n in (1, 16, 4096) for d in (0.1, 0.01)),
    *((n, 4096, 4096, d, (b, b)) for n in (16, 4096) for d in (0.25, 0.1) for b in (16, 32, 64, 128)),
    *((4096, 4096, 4096, 0.1, (v, 1)) for v in (16, 64, 128)),
    *((n, 4096, 4096, 0.1, (128, 1)) for n in (256, 4097)),
]
DOORS = ("forward", "grad_x", "grad_weight")
DRY_LINEARS = [(3, 40, 24, 0.25, (1, 1)), (5, 64, 32, 0.5, (16, 16)), (4, 20, 32, 0.3, (16, 1))]


def linear(case, dtype: torch.dtype, training: bool) -> Setup:
    rows, inputs, outputs, density, block = case
    fan_in = max(1, round(inputs * density / block[1]))
    index = topology.fan_in_table(inputs // block[1], outputs // block[0], fan_in, seed=0).to(DEVICE)
    kept = outputs * fan_in * block[1]
    moved = dtype.itemsize * (rows * (inputs + outputs) + kept) + 4 * index.numel()
    sets = sets_for(moved)
    generator = torch.Generator(DEVICE).manual_seed(1)
    draw = lambda *shape: torch.randn(shape, device=DEVICE, generator=generator).to(dtype)  # noqa: E731
    shape = tuple(index.shape) if block == (1, 1) else (*index.shape, *block)
    weights, bias = [draw(*shape) / math.sqrt(fan_in * block[1]) for _ in range(sets)], draw(outputs)
    xs, cotangents = [draw(rows, inputs) for _ in range(sets)], [draw(rows, outputs) for _ in range(sets if training else 1)]
    indices, plan = [index.clone() for _ in range(sets)], ops.plan_sparse_linear(index, inputs, block)
    plans, full = [plan.clone() for _ in range(sets)], [dense_weight(w, index, inputs) for w in weights]

    def ours(i: int):
        return lambda x, w, b: ops.sparse_linear(x, w, indices[i], b, plans[i])

    def calls(function, ws) -> Make:
        if not training:
            return lambda i: functools.partial(function(i), xs[i], ws[i], bias)
        leaves = [[t.detach().requires_grad_() for t in (x, w, bias)] for x, w in zip(xs, ws)]
        return lambda i: _with_gradients(function(i), leaves[i], cotangents[i])

    mine = calls(ours, weights)
    providers: dict[str, Make] = {"ours": lambda i: _never(mine(i)), "dense": calls(lambda i: F.linear, full)}
    refused = {}
    if not training:
        compressed = {
            "csr": lambda w: w.to_sparse_csr(),
            "bsr": lambda w: w.to_sparse_bsr(block),
            "two_of_four": lambda w: torch.sparse.to_sparse_semi_structured(_two_of_four(w)),
        }
        for name, make in compressed.items():
            if (name == "bsr" and block[1] == 1) or (name == "two_of_four" and (DEVICE == "cpu" or dtype == torch.float32)):
                continue
            try:
                ws = [make(w) for w in full]
                if name == "bsr" and DEVICE == "cuda":  # compiling takes long
                    providers["bsr_tuned"] = gpu_bsr.tuned(ws, xs, bias)
                providers[name] = lambda i, ws=ws, name=name: lambda: _sparse_product(ws[i], xs[i], bias, name)
            except Exception as error:
                refused[name] = f"{type(error).__name__}: {error}"[:200]
        if block == (1, 1) and rows * kept <= 2**28:
            places = [i.long() for i in indices]
            providers["gather"] = lambda i: lambda: (xs[i][:, places[i]] * weights[i]).sum(-1) + bias
    _with_twins(providers, dtype, training, lambda k: lambda i: lambda: k.sparse_linear(xs[i], weights[i], bias, indices[i], False))
    estimates = [cuda.estimate_linear(door, xs[0], inputs, index.shape, block) for door in (DOORS if training else DOORS[:1])]
    if any(e.way for e in estimates) and DEVICE == "cuda":  # beside the kernels that the model takes the other ones
        providers["ours_mma"] = lambda i: _without_wgmma(_never(mine(i)))
    name = f"sparse_linear/{inputs}-{outputs} n{rows} {density:g} {block[0]}x{block[1]}/{str(dtype)[6:]}/{'step' if training else 'fwd'}"
    truth = _truth(lambda x, w, b: F.linear(x, dense_weight(w, index, inputs), b), (xs[0], weights[0], bias), cotangents[0], training)
    return Setup(name, 2 * rows * kept * (3 if training else 1), moved, _modelled(estimates), providers, truth, sets, refused)


def _two_of_four(weight: torch.Tensor) -> torch.Tensor:
    """Another function than ours: it keeps half of the weights. Printed, never compared in value."""
    groups = weight.unflatten(1, (-1, 4))
    mask = torch.zeros_like(groups).scatter_(2, groups.abs().topk(2, dim=2).indices, 1)
    return (groups * mask).flatten(1).contiguous()


def _sparse_product(weight, x, bias, name):
    return F.linear(x, weight, bias) if name == "two_of_four" else (weight @ x.t()).t() + bias


# ---- masked convolutions

#: (what, N, C, H, K, kernel, density, block): the papers' spatial masks, single weights, and blocks
MASKS = [
    *(("nin conv2a", n, 96, 16, 192, 5, d, (1, 96, 1)) for n in (128, 1) for d in (0.25, 0.067)),
    *(("nin conv3a", 128, 192, 8, 192, 3, d, (1, 192, 1)) for d in (0.25, 0.067)),
    *(("nin conv2a", n, 96, 16, 192, 5, 0.067, (1, 1, 1)) for n in (128, 1)),
    *(("nin conv2a", 128, 96, 16, 192, 5, d, b) for d in (0.25, 0.067) for b in ((4, 1, 1), (16, 1, 1), (64, 16, 1))),
    ("resnet conv4", 64, 256, 14, 256, 3, 0.1, (16, 16, 9)),
]
DRY_MASKS = [("dry", 2, 8, 6, 12, 3, 0.3, (1, 8, 1)), ("dry", 1, 8, 5, 16, 3, 0.3, (16, 1, 1))]


def masked(case, dtype: torch.dtype, training: bool) -> Setup:
    what, n, c, size, k, kernel, density, block = case
    codes = c // block[1] * (kernel * kernel // block[2])
    kept = max(1, round(density * k // block[0] * codes))
    keep = torch.randperm(k // block[0] * codes, generator=torch.Generator().manual_seed(1))[:kept].sort().values
    indptr = torch.searchsorted(keep, torch.arange(k // block[0] + 1) * codes).int().to(DEVICE)
    index = (keep % codes).int().to(DEVICE)
    moved = dtype.itemsize * (n * c * size * size + n * k * size * size + kept * math.prod(block)) + 4 * kept
    sets = sets_for(moved)
    generator = torch.Generator(DEVICE).manual_seed(1)
    draw = lambda *shape: torch.randn(shape, device=DEVICE, generator=generator).to(dtype)  # noqa: E731
    weights, bias = [draw(kept, *block) / math.sqrt(density * c * kernel * kernel) for _ in range(sets)], draw(k)
    images, cotangents = [draw(n, c, size, size) for _ in range(sets)], [draw(n, k, size, size) for _ in range(sets if training else 1)]
    last, cotangents_last = ([t.to(memory_format=torch.channels_last) for t in all_] for all_ in (images, cotangents))
    indices, indptrs = [index.clone() for _ in range(sets)], [indptr.clone() for _ in range(sets)]
    plan = ops.plan_sparse_conv2d(indptr, index, c, (kernel, kernel), block)
    plans = [None if plan is None else plan.clone() for _ in range(sets)]
    full = [masked_dense(w, indptr, index, c, (kernel, kernel)) for w in weights]
    full_last = [w.to(memory_format=torch.channels_last) for w in full]
    pad = kernel // 2

    def ours(i: int):
        return lambda x, w, b: ops.sparse_conv2d(x, w, indptrs[i], indices[i], kernel, b, padding=pad, plan=plans[i])

    def dense(_: int):
        return lambda x, w, b: F.conv2d(x, w, b, padding=pad)

    def calls(function, xs, ws, gs) -> Make:
        if not training:
            return lambda i: functools.partial(function(i), xs[i], ws[i], bias)
        leaves = [[t.detach().requires_grad_() for t in (x, w, bias)] for x, w in zip(xs, ws)]
        return lambda i: _with_gradients(function(i), leaves[i], gs[i])

    mine = {"ours_nhwc": calls(ours, last, weights, cotangents_last), "ours_nchw": calls(ours, images, weights, cotangents)}
    providers = {name: (lambda i, make=make: _never(make(i))) for name, make in mine.items()}
    providers |= {"cudnn_nhwc": calls(dense, last, full_last, cotangents_last), "cudnn_nchw": calls(dense, images, full, cotangents)}
    window = (kernel, kernel, 1, 1, pad, pad, 1, 1)
    twin = lambda k: lambda i: lambda: k.sparse_conv2d(images[i], weights[i], bias, indptrs[i], indices[i], None, *window, False)  # noqa: E731
    _with_twins(providers, dtype, training, twin)
    doors = DOORS if training else DOORS[:1]
    estimates = [cuda_sparse_conv2d.estimate(door, images[0], c, (size, size), k, block, kept, window) for door in doors]
    name = f"sparse_conv2d/{what} n{n} {c}-{k}@{size} {kernel}x{kernel} {density:g} {'x'.join(map(str, block))}/{str(dtype)[6:]}"
    flops = 2 * n * size * size * kept * math.prod(block)
    wide = lambda x, w, b: F.conv2d(x, masked_dense(w, indptr, index, c, (kernel, kernel)), b, padding=pad)  # noqa: E731
    truth = _truth(wide, (images[0], weights[0], bias), cotangents[0], training)
    return Setup(
        f"{name}/{'step' if training else 'fwd'}", flops * (3 if training else 1), moved, _modelled(estimates), providers, truth, sets
    )


# ---- a grouped convolution and the 1x1 behind it, for inference

#: (what, N, C, H, K, kernel, groups, outputs)
ROOTS = [
    *(("resnet conv2", n, 64, 56, 64, 3, g, 256) for n in (64, 1) for g in (8, 16)),
    *(("nin conv2", n, 96, 16, 192, 5, g, 192) for n in (128, 1) for g in (4, 8)),
    *(("googlenet 3a", 64, 96, 28, 128, 3, g, 128) for g in (4, 8)),
]
DRY_ROOTS = [("dry", 2, 12, 6, 24, 3, 3, 20)]


def root(case, dtype: torch.dtype, training: bool) -> Setup:
    what, n, c, size, k, kernel, groups, outs = case
    moved = dtype.itemsize * (n * size * size * (c + outs) + k * c // groups * kernel * kernel + k * outs)
    sets = sets_for(moved)
    generator = torch.Generator(DEVICE).manual_seed(1)
    draw = lambda *shape: torch.randn(shape, device=DEVICE, generator=generator).to(dtype)  # noqa: E731
    first = [draw(k, c // groups, kernel, kernel) / math.sqrt(c // groups * kernel * kernel) for _ in range(sets)]
    second, bias1, bias2 = [draw(outs, k, 1, 1) / math.sqrt(k) for _ in range(sets)], draw(k), draw(outs)
    images = [draw(n, c, size, size) for _ in range(sets)]
    last = [x.to(memory_format=torch.channels_last) for x in images]
    window = dict(padding=kernel // 2, groups=groups)

    def one(x, w, v):
        return ops.root_conv2d(x, w, bias1, v, bias2, **window)

    def two(x, w, v):
        return ops.grouped_conv2d(ops.grouped_conv2d(x, w, bias1, **window, activation="relu"), v, bias2, activation="relu")

    def torchs(x, w, v):
        return F.conv2d(F.conv2d(x, w, bias1.to(x.dtype), **window).relu(), v, bias2.to(x.dtype)).relu()

    def calls(function, xs) -> Make:
        return lambda i: functools.partial(function, xs[i], first[i], second[i])

    mine = {"ours_nhwc": calls(one, last), "ours_nchw": calls(one, images), "ours_two_calls": calls(two, last)}
    providers = {name: (lambda i, make=make: _never(make(i))) for name, make in mine.items()}
    providers |= {"cudnn_nhwc": calls(torchs, last), "cudnn_nchw": calls(torchs, images)}
    sizes = (1, 1, kernel // 2, kernel // 2, 1, 1, groups)
    twin = lambda k: lambda i: lambda: k.root_conv2d(last[i], first[i], bias1, second[i], bias2, *sizes, True, True, False)  # noqa: E731
    _with_twins(providers, dtype, training, twin)
    e = cuda_root_conv2d.estimate(last[0], first[0].shape, second[0].shape, sizes)
    name = f"root_conv2d/{what} n{n} {c}-{k}-{outs}@{size} {kernel}x{kernel} g{groups}/{str(dtype)[6:]}/fwd"
    flops = 2 * n * size * size * (k * c // groups * kernel * kernel + k * outs)
    truth = _truth(torchs, (images[0], first[0], second[0]), images[0], False)
    return Setup(name, flops, moved, _modelled([e]), providers, truth, sets)


# ---- many products at once

#: (groups, rows of each, inner, columns, whether the heights differ)
MULTIPLICATIONS = [
    *(
        (g, m, k, n, False)
        for g, m, k, n in ((64, 256, 256, 256), (128, 64, 64, 64), (4096, 16, 16, 16), (20000, 8, 8, 8), (512, 128, 32, 32))
    ),
    *((g, m, k, n, True) for g, m, k, n in ((16, 512, 512, 512), (64, 256, 256, 256), (128, 64, 128, 128), (512, 16, 32, 32))),
]
DRY_MULTIPLICATIONS = [(3, 4, 8, 8, False), (3, 4, 8, 8, True)]


def multiplication(case, dtype: torch.dtype, training: bool) -> Setup:
    groups, rows, inner, columns, ragged = case
    moved = dtype.itemsize * groups * (rows * inner + inner * columns + rows * columns)
    sets = sets_for(moved)
    generator = torch.Generator(DEVICE).manual_seed(1)
    draw = lambda *shape: torch.randn(shape, device=DEVICE, generator=generator).to(dtype)  # noqa: E731
    heights = torch.randint(0, 2 * rows, (groups,), generator=torch.Generator().manual_seed(1)) if ragged else torch.full((groups,), rows)
    heights[-1] += groups * rows - heights.sum()  # the same work
    if heights[-1] < 0:
        heights = torch.full((groups,), rows)
    ends, parts = heights.cumsum(0).int().to(DEVICE), heights.tolist()
    offsets = [ends.clone() if ragged else None for _ in range(sets)]
    a = [draw(groups * rows, inner) if ragged else draw(groups, rows, inner) for _ in range(sets)]
    b, cotangents = (
        [draw(groups, inner, columns) for _ in range(sets)],
        [draw(*a[0].shape[:-1], columns) for _ in range(sets if training else 1)],
    )

    def ours(i: int):
        return lambda x, y: ops.grouped_mm(x, y, offsets[i])

    def loop(_: int):
        return lambda x, y: torch.cat([p @ q for p, q in zip(x.split(parts) if ragged else x, y)]).view(*x.shape[:-1], columns)

    def calls(function) -> Make:
        if not training:
            return lambda i: functools.partial(function(i), a[i], b[i])
        leaves = [[t.detach().requires_grad_() for t in pair] for pair in zip(a, b)]
        return lambda i: _with_gradients(function(i), leaves[i], cotangents[i])

    mine = calls(ours)
    providers: dict[str, Make] = {"ours": lambda i: _never(mine(i))}
    if not ragged:
        providers["bmm"] = calls(lambda i: torch.bmm)
    if groups <= 256:
        providers["loop"] = calls(loop)
    if dtype == torch.bfloat16 and hasattr(torch, "_grouped_mm"):
        providers["torch_grouped_mm"] = calls(lambda i: lambda x, y: torch._grouped_mm(x, y, offs=offsets[i]))
    _with_twins(providers, dtype, training, lambda k: lambda i: lambda: k.grouped_mm(a[i], b[i], offsets[i], False))
    doors = DOORS if training else DOORS[:1]
    estimates = [cuda_grouped_mm.estimate(door, cotangents[0] if door == "grad_x" else a[0], *b[0].shape, ragged) for door in doors]
    kind = "ragged " if ragged else ""
    name = f"grouped_mm/{kind}{groups} of {rows}x{inner}x{columns}/{str(dtype)[6:]}/{'step' if training else 'fwd'}"
    truth = _truth(loop(0), (a[0], b[0]), cotangents[0], training)
    return Setup(name, 2 * groups * rows * inner * columns * (3 if training else 1), moved, _modelled(estimates), providers, truth, sets)


# ---- whole networks, for inference: as a user gets them, so that each layer goes to whom the cost model says

#: (model, its dense twin, images, width of an image)
NETWORKS = [("nin_root_8", "nin", n, 32) for n in (128, 1)] + [("resnet50_root_16", "resnet50", n, 224) for n in (64, 1)]
DRY_NETWORKS = [("nin_root_8", "nin", 1, 32)]


def network(case, dtype: torch.dtype, training: bool) -> Setup:
    name, twin, n, size = case
    with torch.random.fork_rng():
        torch.manual_seed(1)
        wide, dense = (models.create_model(which).eval().requires_grad_(False) for which in (name, twin))
    net, twin_net = (copy.deepcopy(m).to(DEVICE, dtype) for m in (wide, dense))
    weights = sum(p.numel() for p in net.parameters())
    moved = dtype.itemsize * (n * 3 * size * size + weights)
    generator = torch.Generator(DEVICE).manual_seed(1)
    images = [torch.randn(n, 3, size, size, device=DEVICE, generator=generator).to(dtype) for _ in range(4)]  # a network outgrows the cache
    last = [x.to(memory_format=torch.channels_last) for x in images]
    last_net, last_twin = (copy.deepcopy(m).to(memory_format=torch.channels_last) for m in (net, twin_net))
    with FlopCounterMode(display=False) as counter:
        net(images[0][:1])

    def by_torch(call: Call) -> Call:
        def run():
            with backends.use(backends.providers(DEVICE)[-1], DEVICE, dense="always" if backends.native or DEVICE == "cuda" else "auto"):
                return call()

        return run

    def calls(model, xs) -> Make:
        return lambda i: functools.partial(model, xs[i])

    providers = {"ours_nhwc": calls(last_net, last), "ours_nchw": calls(net, images)}
    providers |= {f"cudnn_{layout}": lambda i, m=m, xs=xs: by_torch(calls(m, xs)(i)) for layout, m, xs in
                  (("nhwc", last_net, last), ("nchw", net, images))}  # fmt: skip
    providers["dense_twin"] = calls(last_twin, last)

    def truth() -> tuple[torch.Tensor, ...]:
        with backends.use("reference", DEVICE):
            return (wide.to(DEVICE, torch.float64)(images[0].double()),)

    depth = sum(isinstance(m, torch.nn.Conv2d) for m in net.modules())
    key = f"network/{name} n{n} @{size}/{str(dtype)[6:]}/fwd"
    return Setup(key, n * counter.get_total_flops(), moved, {}, providers, truth, len(images), depth=depth)


def kinds(dry: bool):
    """What makes the cases of each kind, and their shapes."""
    return (
        (convolution, DRY_CONVOLUTIONS if dry else CONVOLUTIONS),
        (linear, DRY_LINEARS if dry else LINEARS),
        (masked, DRY_MASKS if dry else MASKS),
        (root, DRY_ROOTS if dry else ROOTS),
        (multiplication, DRY_MULTIPLICATIONS if dry else MULTIPLICATIONS),
        (network, DRY_NETWORKS if dry else NETWORKS),
    )


def cases(dry: bool):
    """``(key, make)`` of every case, what matters most first."""
    bf16, fp16, fp32 = torch.bfloat16, torch.float16, torch.float32
    runs = (
        [(False, bf16), (False, fp32), (True, fp32)] if dry else [(False, bf16), (False, fp32), (True, bf16), (True, fp32), (False, fp16)]
    )
    for training, dtype in runs:
        for make, shapes in kinds(dry):
            for shape in shapes if make not in (root, network) or not training else ():
                key = f"{make.__name__} {shape} {str(dtype)[6:]} {'step' if training else 'fwd'}"
                yield key, lambda make=make, shape=shape, dtype=dtype, training=training: make(shape, dtype, training)
