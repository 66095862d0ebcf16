"""Layers that swap in for torch's."""

from sparsekern.nn.grouped_conv2d import GroupedConv2d
from sparsekern.nn.root_module import RootModule
from sparsekern.nn.sparse_linear import SparseLinear

__all__ = ["GroupedConv2d", "RootModule", "SparseLinear"]
