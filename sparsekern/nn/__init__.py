"""Layers that swap in for torch's."""

from sparsekern.nn.grouped_conv2d import GroupedConv2d
from sparsekern.nn.root_module import RootModule
from sparsekern.nn.sparse_linear import SparseLinear
from sparsekern.nn.spatial_basis import SpatialBasisConv2d
from sparsekern.nn.stochastic_conv2d import StochasticConv2d
from sparsekern.nn.unequal_groups import UnequalGroupedConv2d

__all__ = ["GroupedConv2d", "RootModule", "SparseLinear", "SpatialBasisConv2d", "StochasticConv2d", "UnequalGroupedConv2d"]
