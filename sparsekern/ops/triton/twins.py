"""Which twins there are, and how they stand in for the CUDA library.

Where the CUDA library would choose between its kernels and torch, these stand in for its kernels (:func:`kernels`).

A twin takes and returns what the card's reference does (its schema), in float32, float16 and bfloat16 with sums in float32; float64
goes to the reference. Nothing is summed by atomics, so results do not change between runs.
"""

from __future__ import annotations

import importlib
from types import ModuleType, SimpleNamespace
from typing import Any

from torch import Tensor

from sparsekern.ops.cuda import HEADER

OPS = ("sparse_linear", "grouped_conv2d", "sparse_conv2d", "grouped_mm")
DOORS = ("forward", "grad_x", "grad_weight")


def twin(op: str) -> ModuleType:
    """The module of an op: its ``forward``, ``grad_x`` and ``grad_weight``."""
    return importlib.import_module(f"sparsekern.ops.triton.{op}")


def kernels() -> SimpleNamespace:
    """What the compiled CUDA library offers, by twins: for :func:`sparsekern.ops.cuda.register`, which chooses between these and torch.

    The last arguments of most, whether ten bits of fraction would do and which kernel is meant, go unheeded: twins multiply float32 as
    it is.
    """
    linear, conv, masked, many, root = (twin(op) for op in (*OPS, "root_conv2d"))

    def grouped_conv2d(x: Tensor, weight: Tensor, bias: Tensor | None, *rest: Any) -> Tensor:
        *window, relu, _ = rest
        return conv.forward(x, weight, bias, None, *window, relu)

    def sparse_linear_grad_x(grad_out: Tensor, weight: Tensor, index: Tensor, plan: Tensor, in_features: int, *_: bool) -> Tensor:
        inputs = in_features // (weight.shape[3] if weight.dim() == 4 else 1)
        lists = plan[HEADER:].split([inputs + 1, index.numel(), index.numel()])  # where each input's begin, outputs, places
        return linear.grad_x(grad_out, weight, index, None, in_features, (lists[2], lists[0]))

    return SimpleNamespace(
        grouped_conv2d=grouped_conv2d,
        grouped_conv2d_grad_x=lambda *args: conv.grad_x(*args[:-1]),
        grouped_conv2d_grad_weight=lambda *args: conv.grad_weight(*args[:-1]),
        sparse_linear=lambda x, weight, bias, index, *_: linear.forward(x, weight, bias, index, None, checked=True),  # by who asks
        sparse_linear_grad_x=sparse_linear_grad_x,
        sparse_conv2d=lambda *args: masked.forward(*args[:-1], checked=True),  # by who asks
        sparse_conv2d_grad_x=lambda *args: masked.grad_x(*args[:-1]),
        sparse_conv2d_grad_weight=lambda *args: masked.grad_weight(*args[:-1]),
        grouped_mm=lambda *args: many.forward(*args[:-1], checked=True),
        grouped_mm_grad_a=lambda *args: many.grad_x(*args[:-1]),
        grouped_mm_grad_b=lambda *args: many.grad_weight(*args[:-1]),
        root_conv2d=lambda *args: root.forward(*args[:-1]),
        sparse_linear_grad_weight=lambda grad_out, x, index, *rest: linear.grad_weight(grad_out, x, index, None, *rest[:3]),
    )
