"""Which connections exist: index tables for the ops. Nothing here knows an op or a layer."""

from sparsekern.arguments import check_whole
from sparsekern.topology.balanced import balanced_counts, balanced_table
from sparsekern.topology.budget import DensityPlan, equal_budget_splits, plan_densities
from sparsekern.topology.clash_free import clash_free_table
from sparsekern.topology.conv_masks import conv_mask, mask_tables
from sparsekern.topology.fan_in import fan_in_table
from sparsekern.topology.groups import expand_blocks, grouped_table, local_table
from sparsekern.topology.junctions import Connected, adjacency, connected_units, path_counts
from sparsekern.topology.regular import fan_in_step, regular_table
from sparsekern.topology.scatter import Scatter, Windows, scatter, window_adjacency, window_matrices
from sparsekern.topology.spread import spread_table
from sparsekern.topology.swap import rewire
from sparsekern.topology.windows import neurons, window_counts, window_ids

__all__ = [
    "Connected",
    "DensityPlan",
    "Scatter",
    "Windows",
    "adjacency",
    "balanced_counts",
    "balanced_table",
    "check_whole",
    "clash_free_table",
    "connected_units",
    "conv_mask",
    "equal_budget_splits",
    "expand_blocks",
    "fan_in_step",
    "fan_in_table",
    "grouped_table",
    "local_table",
    "mask_tables",
    "neurons",
    "path_counts",
    "plan_densities",
    "regular_table",
    "rewire",
    "scatter",
    "spread_table",
    "window_adjacency",
    "window_counts",
    "window_ids",
    "window_matrices",
]
