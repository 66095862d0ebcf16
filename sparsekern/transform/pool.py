"""Pooling in an inference graph: our kernel in the place of torch's, which in a fast channels_last network is what takes the time."""

from __future__ import annotations

from typing import Any

from torch import Tensor, fx, nn

from sparsekern.ops import pool2d
from sparsekern.transform.graph import layers, only_call, replace_module


class Pool2d(nn.Module):
    """What ``nn.MaxPool2d``, ``nn.AvgPool2d`` or ``nn.AdaptiveAvgPool2d(1)`` computes."""

    def __init__(self, pool: nn.MaxPool2d | nn.AvgPool2d | nn.AdaptiveAvgPool2d):
        super().__init__()
        self.options: dict[str, Any] = {"pooling": "max" if isinstance(pool, nn.MaxPool2d) else "average"}
        if not isinstance(pool, nn.AdaptiveAvgPool2d):
            self.options |= {"kernel_size": pool.kernel_size, "stride": pool.stride, "padding": pool.padding, "ceil_mode": pool.ceil_mode}
        if isinstance(pool, nn.AvgPool2d):
            self.options["count_include_pad"] = pool.count_include_pad

    def forward(self, x: Tensor) -> Tensor:
        return pool2d(x, **self.options)

    def extra_repr(self) -> str:
        return ", ".join(f"{name}={value}" for name, value in self.options.items())


def can_pool(pool: Any) -> bool:
    """Whether :func:`~sparsekern.ops.pool2d` computes what a pooling of torch's does."""
    if type(pool) is nn.MaxPool2d:
        return pool.dilation in (1, (1, 1)) and not pool.return_indices
    if type(pool) is nn.AvgPool2d:
        return pool.divisor_override is None
    return type(pool) is nn.AdaptiveAvgPool2d and pool.output_size in (1, (1, 1))


def swap_pools(graph: fx.GraphModule) -> list[str]:
    """Every pooling that :func:`~sparsekern.ops.pool2d` can do, by name."""
    swapped = []
    for node, pool in layers(graph, nn.MaxPool2d, nn.AvgPool2d, nn.AdaptiveAvgPool2d):
        if can_pool(pool) and only_call(graph, node):
            replace_module(graph, node, Pool2d(pool))
            swapped.append(str(node.target))
    return swapped
