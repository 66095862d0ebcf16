"""Sparse convolutions that keep so much that the dense one, packed, is faster: a first layer at half its weights."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import fx, nn

from sparsekern.nn import GroupedConv2d, StochasticConv2d
from sparsekern.transform.graph import layers, only_call, replace_module
from sparsekern.transform.race import ratio

CLEARLY = 1.05  # times faster; the dense weight costs memory


def dense_where_faster(graph: fx.GraphModule, shapes: Mapping[str, tuple[int, ...]]) -> list[str]:
    """Replace sparse convolutions by dense ones of the same values where those, packed, are faster; their names.

    Args:
        shapes: of the images that each layer is timed on, by name; one without is left. Float32, on a CPU with our kernels.
    """
    swapped = []
    for node, layer in layers(graph, StochasticConv2d):
        shape = shapes.get(str(node.target))
        plain = type(layer) is StochasticConv2d or "activation" in vars(type(layer))  # no class that computes something else
        if shape is None or not (plain and only_call(graph, node) and layer._kernel_pads):
            continue
        made: Any = layer.to_dense()
        conv: Any = made[0] if isinstance(made, nn.Sequential) else made  # the other one is the layer's own ReLU
        dense: Any = GroupedConv2d.from_dense(conv).eval().requires_grad_(False)
        dense.activation = getattr(layer, "activation", "none")
        dense.pack(shape)
        planes = torch.rand(shape)  # what a sequence hands to a sparse convolution and takes from it
        pixels = planes.contiguous(memory_format=torch.channels_last)
        if ratio(lambda: layer(planes), lambda: dense(pixels)) > CLEARLY:  # noqa: B023 (called here and now)
            replace_module(graph, node, dense)
            swapped.append(str(node.target))
    return swapped
