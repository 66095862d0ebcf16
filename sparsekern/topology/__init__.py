"""Which connections exist: index tables for the ops. Nothing here knows an op or a layer."""

from sparsekern.topology.conv_masks import conv_mask, mask_tables
from sparsekern.topology.fan_in import fan_in_table
from sparsekern.topology.regular import fan_in_step, regular_table
from sparsekern.topology.scatter import Scatter, adjacency, scatter, window_adjacency

__all__ = [
    "Scatter",
    "adjacency",
    "conv_mask",
    "fan_in_step",
    "fan_in_table",
    "mask_tables",
    "regular_table",
    "scatter",
    "window_adjacency",
]
