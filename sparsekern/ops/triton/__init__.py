"""Triton twins of the ops' products, for GPUs where the CUDA library is absent: one module per op, one function per product."""

from sparsekern.ops.triton.twins import DOORS, OPS, kernels, twin

__all__ = ["DOORS", "OPS", "kernels", "twin"]
