"""Which connections exist: index tables for the ops. Nothing here knows an op or a layer."""

from sparsekern.topology.fan_in import fan_in_table

__all__ = ["fan_in_table"]
