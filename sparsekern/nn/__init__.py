"""Layers that swap in for torch's."""

from sparsekern.nn.sparse_linear import SparseLinear

__all__ = ["SparseLinear"]
