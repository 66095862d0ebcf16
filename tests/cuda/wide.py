"""Products of sparse_linear that wgmma makes, asked for by name: sizes as small as these the cost model gives to other kernels.

On the emulated device (tests/cuda/test_contract_on_emu.py) and on a card (bench/gpu.py). Where a card or a build has no wgmma, or a
tensor does not lie as it wants, the other kernels serve the same calls.
"""

from __future__ import annotations

from functools import partial
from typing import Any

import torch
from torch import Tensor

from sparsekern.ops import cuda
from sparsekern.ops.sparse_linear import dense_weight, kept_weight

#: rows, block rows, blocks of each, block size, input blocks
SAMPLES = {
    "panels": (43, 2, 70, (64, 1), 90),
    "blocks": (67, 2, 3, (64, 64), 5),
    "whole_panels": (264, 1, 130, (128, 1), 140),
    "tall_blocks": (130, 3, 1, (128, 64), 4),
    "broad_blocks": (1, 1, 2, (64, 128), 3),
    "many_rows": (261, 1, 2, (192, 128), 2),
}
#: Beside x and grad_out by row: feature-major ones, and memory that begins anywhere.
LAYOUTS = ("by row", "feature-major", "shifted")


def _laid_out(x: Tensor, layout: str) -> Tensor:
    if layout == "feature-major":
        return x.t().contiguous().t()
    return x if layout == "by row" else torch.cat([x.new_zeros(1), x.flatten()])[1:].view(x.shape)


def hold_to_truth(kernels: Any, name: str, dtype: torch.dtype, device: str = "cpu") -> None:
    """All three products against float64, in every layout, twice."""
    rows, out_blocks, fan_in, block, in_blocks = SAMPLES[name]
    generator = torch.Generator().manual_seed(7)
    draw = lambda *size: torch.randn(size, generator=generator).to(dtype)  # noqa: E731
    inputs, outputs = in_blocks * block[1], out_blocks * block[0]
    index = torch.stack([torch.randperm(in_blocks, generator=generator)[:fan_in].sort().values for _ in range(out_blocks)]).int()
    x, grad_out, weight, bias = draw(rows, inputs), draw(rows, outputs), draw(out_blocks, fan_in, *block), draw(outputs)

    def products(x: Tensor, weight: Tensor, bias: Tensor, grad_out: Tensor) -> list[Tensor]:
        dense = dense_weight(weight, index, inputs)
        return [x @ dense.t() + bias, grad_out @ dense, kept_weight(grad_out.t() @ x, index, block)]

    wanted, sizes = (products(*(f(t.double()) for t in (x, weight, bias, grad_out))) for f in (torch.clone, torch.abs))
    terms = (fan_in * block[1] + 1, outputs, rows)
    unit = 2.0**-8 if dtype == torch.bfloat16 else 2.0**-11
    weight, bias, index = (t.to(device) for t in (weight, bias, index))
    plan = cuda.make_plan(index, in_blocks, block)
    for layout in LAYOUTS:
        rows_in, rows_out = (_laid_out(t.to(device), layout) for t in (x, grad_out))
        calls = (
            partial(kernels.sparse_linear, rows_in, weight, bias, index, False, True),
            partial(kernels.sparse_linear_grad_x, rows_out, weight, index, plan, inputs, False, True),
            partial(kernels.sparse_linear_grad_weight, rows_out, rows_in, index, *block, False, False, True),
        )
        for what, call, right, size, count in zip(("forward", "grad_x", "grad_weight"), calls, wanted, sizes, terms):
            got = call()
            limit = unit * right.abs() + (3 * count + 8) * 2.0**-23 * size + 2.0**-24  # storing; sums that truncate; fp16's least number
            error = (got.cpu().double() - right).abs()
            assert got.shape == right.shape and (error <= limit).all(), f"{what} of {layout} {name} is off by {error.max():.3g}"
            assert torch.equal(got, call()), f"{what} of {layout} {name} differs between two runs"
