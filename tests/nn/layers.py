"""The layers that hold an index table or a weight of their own, small, for tests that every one of them must pass."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import nn

from sparsekern import nn as sknn


@dataclass(frozen=True)
class Layer:
    name: str
    make: Callable[..., nn.Module]  # make(**factory_kwargs)
    x_shape: tuple[int, ...]

    def x(self, rows: int | None = None, dtype: torch.dtype = torch.float32) -> torch.Tensor:
        shape = self.x_shape if rows is None else (rows, *self.x_shape[1:])
        return torch.randn(shape, dtype=dtype)


LAYERS = [
    Layer("SparseLinear", lambda **k: sknn.SparseLinear(24, 12, fan_in=5, **k), (4, 24)),
    Layer("GroupedConv2d", lambda **k: sknn.GroupedConv2d(8, 12, 3, padding=1, groups=4, **k), (2, 8, 6, 6)),
    Layer("StochasticConv2d", lambda **k: sknn.StochasticConv2d(6, 12, 3, padding=1, density=0.4, **k), (2, 6, 6, 6)),
    Layer(
        "StochasticConv2d_synapse",
        lambda **k: sknn.StochasticConv2d(6, 12, 3, padding=1, density=0.4, granularity="synapse", **k),
        (2, 6, 6, 6),
    ),
    Layer(
        "StochasticConv2d_groups",
        lambda **k: sknn.StochasticConv2d(8, 12, 3, padding=1, density=0.4, groups=4, **k),
        (2, 8, 6, 6),
    ),
    Layer("SparseLinear_regular", lambda **k: sknn.SparseLinear(24, 12, fan_out=3, **k), (4, 24)),
    Layer("SparseLinear_block", lambda **k: sknn.SparseLinear(32, 16, density=0.5, block_size=8, **k), (4, 32)),
]
