"""Which connections exist: index tables for the ops. Nothing here knows an op or a layer."""

from sparsekern.topology.conv_masks import conv_mask, mask_tables
from sparsekern.topology.fan_in import fan_in_table

__all__ = ["conv_mask", "fan_in_table", "mask_tables"]
