"""Layers that swap in for torch's."""

from sparsekern.nn.grouped_conv2d import GroupedConv2d
from sparsekern.nn.root_module import RootModule
from sparsekern.nn.sparse_linear import SparseLinear
from sparsekern.nn.stochastic_conv2d import StochasticConv2d

__all__ = ["GroupedConv2d", "RootModule", "SparseLinear", "StochasticConv2d"]
