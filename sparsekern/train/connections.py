"""The connections of one sparse layer and all that hangs on them: weights, and what an optimiser has gathered for each."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from sparsekern.nn import SparseLinear, StochasticConv2d
from sparsekern.ops.sparse_conv2d import dense_weight as dense_filters
from sparsekern.ops.sparse_conv2d import kept_weight as kept_filters
from sparsekern.ops.sparse_linear import dense_weight, kept_weight

Tables = tuple[Tensor, ...]  # (index,) of a SparseLinear, (indptr, index) of a StochasticConv2d


class Connections:
    """A view on ``layer`` and on its weight's entries in ``optimiser``."""

    def __init__(self, layer: SparseLinear | StochasticConv2d, optimiser: torch.optim.Optimizer) -> None:
        self.layer, self.optimiser = layer, optimiser

    def entries(self) -> dict[str, Tensor]:
        """One value per connection: the weight, and the optimiser's tensors of its shape."""
        state = self.optimiser.state.get(self.layer.weight, {})
        shaped = {key: value for key, value in state.items() if isinstance(value, Tensor) and value.shape == self.layer.weight.shape}
        return {"weight": self.layer.weight, **shaped}

    def dense(self, values: Tensor) -> Tensor:
        """``values`` of the kept connections as a dense weight, zero where nothing is connected."""
        layer = self.layer
        if isinstance(layer, SparseLinear):
            return dense_weight(values, layer.index, layer.in_features)
        return dense_filters(values, layer.indptr, layer.index, layer.in_channels, layer.kernel_size)

    def kept(self, dense: Tensor, tables: Tables) -> Tensor:
        layer = self.layer
        if isinstance(layer, SparseLinear):
            return kept_weight(dense, tables[0], layer.block_size)
        return kept_filters(dense, tables[0], tables[1], layer.block)

    @torch.no_grad()
    def move(self, tables: Tables, store: dict[str, Tensor] | None = None) -> None:
        """Take other connections, as many as before.

        A connection that stays keeps its weight and what was gathered for it. A new one starts at zero; with a ``store`` of dense
        values, at what lies there, and those that go leave theirs in it.
        """
        tables = tuple(table.to(self.layer.weight.device) for table in tables)
        own = self.entries()
        dense = {key: self.dense(value.detach()) for key, value in own.items()}
        if store is not None:
            connected = self.dense(torch.ones_like(self.layer.weight)) != 0
            for key, value in dense.items():
                store[key] = torch.where(connected, value, store[key]) if key in store else value
            dense = store
        moved = {key: self.kept(dense[key], tables) for key in own}
        set_topology: Callable[..., None] = self.layer.set_topology  # takes the tables of its layer, one or two
        set_topology(*tables, weight=moved.pop("weight"))
        for key, value in moved.items():
            own[key].copy_(value)
