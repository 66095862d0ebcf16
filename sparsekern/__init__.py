"""sparsekern: structured sparsity that is really faster, on PyTorch.

>>> layer = sparsekern.SparseLinear(3072, 768, density=0.1)
>>> print(layer.explain(rows=1))  # doctest: +ELLIPSIS
SparseLinear 3072 -> 768, 10.0 % kept, ...
"""

from sparsekern import nn, ops, topology
from sparsekern.lazy import __getattr__ as __getattr__
from sparsekern.nn import GroupedConv2d, RootModule, SparseLinear, SpatialBasisConv2d, StochasticConv2d
from sparsekern.version import __version__

__all__ = [
    "FanIn",
    "GroupedConv2d",
    "Groups",
    "Root",
    "RootModule",
    "SparseLinear",
    "SpatialBasisConv2d",
    "Stochastic",
    "StochasticConv2d",
    "__version__",
    "convert",
    "nn",
    "ops",
    "optimize",
    "to_dense",
    "topology",
]
