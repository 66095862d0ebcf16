"""Triton twins of the ops' products, for GPUs where the CUDA library is absent: one module per op, one function per product.

A twin takes and returns what the card's reference does (its schema), in float32, float16 and bfloat16 with sums in float32; float64
goes to the reference. Nothing is summed by atomics, so results do not change between runs.
"""

from __future__ import annotations

import importlib
import importlib.util

OPS = ("sparse_linear", "grouped_conv2d", "sparse_conv2d", "grouped_mm")
DOORS = ("forward", "grad_x", "grad_weight")


def available() -> bool:
    """Whether Triton is installed; it comes with CUDA builds of torch."""
    return importlib.util.find_spec("triton") is not None


def twin(op: str):
    """The module of an op: its ``forward``, ``grad_x`` and ``grad_weight``."""
    return importlib.import_module(f"sparsekern.ops.triton.{op}")


def register(library) -> None:
    """Let the twins serve CUDA tensors, in eager calls and in compiled ones."""
    from sparsekern.ops import define

    for name in OPS:
        for door, product in define.OPS[name].products.items():
            run = getattr(twin(name), door)
            for registered in ("_" + product.name, product.name):
                library.impl(registered, run, "CUDA")
