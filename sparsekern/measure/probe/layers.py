"""The layers to probe, each with its float64 reference, at sizes that are no multiple of a vector."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from sparsekern.measure.cases import ConvCase
from sparsekern.measure.probe.core import Subject
from sparsekern.measure.providers.common import layer_of
from sparsekern.measure.providers.conv import dense_grouped, dense_stochastic
from sparsekern.measure.providers.linear import dense_weight


def subjects() -> list[Subject]:
    """The layers of :mod:`sparsekern.nn`, at sizes that are no multiple of a vector."""
    return [
        _linear("SparseLinear", 48, 22, fan_in=7),
        _linear("SparseLinear block 16", 64, 48, fan_in=32, block_size=16),
        _stochastic("StochasticConv2d spatial", granularity="spatial"),
        _stochastic("StochasticConv2d synapse", granularity="synapse"),
        _grouped("GroupedConv2d"),
    ]


def _linear(name: str, in_features: int, out_features: int, **settings: Any) -> Subject:
    def make(seed: int = 0, bias: bool = True, **more: Any) -> nn.Module:
        torch.manual_seed(seed)
        return layer_of("SparseLinear")(in_features, out_features, bias, seed=seed, **settings, **more)

    def densify(layer: Any, weight: Tensor) -> Tensor:
        return dense_weight(weight, layer.index, layer.in_features)[0]

    def wide() -> tuple[nn.Module, Tensor]:
        layer = layer_of("SparseLinear")(70_000, 6, fan_in=2000, seed=0)
        return layer, _draw((2, 70_000))

    return Subject(
        name,
        make,
        lambda batch: _draw((batch, in_features)),
        densify,
        F.linear,
        lambda layer: 2 * layer.weight.numel(),
        wide=wide if "block_size" not in settings else None,
    )


def _stochastic(name: str, **settings: Any) -> Subject:
    channels, out_channels, kernel, size = 20, 40, 3, 9  # large and sparse enough that our kernels serve it, not dense

    def make(seed: int = 0, bias: bool = True, density: float = 0.1, channels: int = channels, **more: Any) -> nn.Module:
        torch.manual_seed(seed)
        return layer_of("StochasticConv2d")(
            channels, out_channels, kernel, padding=1, bias=bias, density=density, seed=seed, **settings, **more
        )

    def densify(layer: Any, weight: Tensor) -> Tensor:
        case = ConvCase(name, 1, channels=layer.in_channels, out_channels=out_channels, kernel=kernel)
        return dense_stochastic(weight, layer.indptr, layer.index, case)[0]

    def wide() -> tuple[nn.Module, Tensor]:
        return make(channels=8000, density=0.05), _draw((1, 8000, 3, 3))  # 8000 * 9 positions

    return Subject(
        name,
        make,
        lambda batch: _draw((batch, channels, size, size)),
        densify,
        lambda x, w, b: F.conv2d(x, w, b, padding=1),
        lambda layer: 2 * layer.weight.numel() * size**2,
        wide=wide,
        ragged=lambda: make(density=0.05, count="bernoulli"),
    )


def _grouped(name: str) -> Subject:
    def make(seed: int = 0, bias: bool = True, **more: Any) -> nn.Module:
        torch.manual_seed(seed)
        return layer_of("GroupedConv2d")(20, 36, 3, padding=1, groups=4, bias=bias, **more)

    return Subject(
        name,
        make,
        lambda batch: _draw((batch, 20, 9, 9)),
        lambda layer, weight: dense_grouped(weight, 4)[0],
        lambda x, w, b: F.conv2d(x, w, b, padding=1),
        lambda layer: 2 * layer.weight.numel() * 81,
    )


def _draw(shape: tuple[int, ...]) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(sum(shape)))
