"""Convolutions whose results are joined by channel, as one call that writes each where it belongs: the end of an Inception module."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, fx, nn

from sparsekern.nn import GroupedConv2d
from sparsekern.nn.grouped_conv2d import refuse_gradients
from sparsekern.ops import joined_conv2d_packed
from sparsekern.transform.graph import add_module, drop, module_of, one_argument, only_call, only_reader, seen_dim
from sparsekern.transform.writes import written_between

CONCATENATIONS = (torch.cat, torch.concat, torch.concatenate)


class DenseJoined(nn.ModuleList):
    """The concatenation by channel of what its layers make of an input each."""

    def forward(self, *xs: Tensor) -> Tensor:
        return torch.cat([layer(x) for layer, x in zip(self, xs, strict=True)], 1)


class Joined(nn.ModuleList):
    """The concatenation of packed ``GroupedConv2d`` of one activation by channel. ``names``: what the model called them."""

    def __init__(self, names: tuple[str, ...], convolutions: list[GroupedConv2d]):
        super().__init__(convolutions)
        self.names = names
        self.windows = [n for c in convolutions for n in (*c.kernel_size, *c.stride, *c.padding, *c.dilation, c.groups)]
        for i, conv in enumerate(convolutions):
            self.register_buffer(f"bias{i}", conv.weight.new_zeros(conv.out_channels) if conv.bias is None else None, persistent=False)

    def forward(self, *xs: Tensor) -> Tensor:
        convolutions = self._convolutions()
        packs = [conv._packed for conv in convolutions]
        if any(packed is None for packed in packs):  # moved to float64, or to where nothing reads a pack
            return torch.cat([conv(x) for conv, x in zip(convolutions, xs, strict=True)], 1)
        refuse_gradients(convolutions, *xs)
        biases = [getattr(self, f"bias{i}") if conv.bias is None else conv.bias.detach() for i, conv in enumerate(convolutions)]
        return joined_conv2d_packed(xs, packs, biases, self.windows, convolutions[0].activation)

    def _convolutions(self) -> list[Any]:
        return list(self)

    def to_dense(self) -> DenseJoined:
        """The same in torch's dense convolutions and a concatenation: what a profile times it against."""
        return DenseJoined([conv.to_dense() for conv in self._convolutions()])


def by_channel(node: Any) -> bool:
    """Whether the node is a concatenation ``[N, C, H, W]`` along C."""
    if node.op != "call_function" or node.target not in CONCATENATIONS or not set(node.kwargs) <= {"dim"}:
        return False
    if not (node.args and isinstance(node.args[0], list | tuple)):
        return False
    return (node.args[1] if len(node.args) > 1 else node.kwargs.get("dim", 0)) == 1


def _can_join(graph: fx.GraphModule, node: fx.Node, end: fx.Node) -> bool:
    conv = module_of(graph, node)
    if not (isinstance(conv, GroupedConv2d) and conv._packed is not None and conv.padding_mode == "zeros"):
        return False
    alone = only_reader(node) and only_call(graph, node) and one_argument(node) and seen_dim(node) in (None, 4)
    return alone and not isinstance(conv.padding, str) and not written_between(graph, node.all_input_nodes[0], node, end)


def join_convolutions(graph: fx.GraphModule) -> list[tuple[str, ...]]:
    """Every concatenation that reads nothing but convolutions of ours; the names of these, one tuple for each."""
    joined = []
    for node in list(graph.graph.nodes):
        if not (by_channel(node) and len(node.args[0]) > 1 and all(_can_join(graph, part, node) for part in node.args[0])):
            continue
        parts = list(node.args[0])
        if len(set(parts)) < len(parts):
            continue
        convolutions = [module_of(graph, part) for part in parts]
        if len({conv.activation for conv in convolutions}) > 1:
            continue
        names = tuple(part.target for part in parts)
        parent, _, _ = names[0].rpartition(".")
        name = add_module(graph, parent, "joined", Joined(names, convolutions))
        with graph.graph.inserting_before(node):
            call = graph.graph.call_module(name, tuple(part.args[0] for part in parts))
        drop(graph, node, call)
        for part in parts:
            graph.graph.erase_node(part)
        joined.append(names)
    return joined
