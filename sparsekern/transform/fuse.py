"""What follows a convolution, into it: a ReLU while the sums are in registers. And what inference does not need, away."""

from __future__ import annotations

import torch
from torch import fx, nn

from sparsekern.nn import GroupedConv2d
from sparsekern.transform.graph import drop, layers, module_of, only_call, only_reader, replace_module

_RELU_FUNCTIONS = (torch.relu, torch.relu_, nn.functional.relu, nn.functional.relu_)


def is_relu(graph: fx.GraphModule, node: fx.Node) -> bool:
    if node.op == "call_function":
        return node.target in _RELU_FUNCTIONS
    if node.op == "call_method":
        return node.target in ("relu", "relu_")
    return type(module_of(graph, node)) is nn.ReLU


def drop_identities(graph: fx.GraphModule) -> None:
    """Modules that hand their input on in inference."""
    for node, _ in layers(graph, nn.Dropout, nn.Dropout2d, nn.Identity):
        drop(graph, node, node.args[0])


def swap_convolutions(graph: fx.GraphModule) -> list[str]:
    """Every plain ``nn.Conv2d`` becomes a ``GroupedConv2d`` of the same weights, which lets torch serve where torch is faster."""
    swapped = []
    for node, conv in layers(graph, nn.Conv2d):
        if type(conv) is nn.Conv2d and only_call(graph, node):
            replace_module(graph, node, GroupedConv2d.from_dense(conv).eval())
            swapped.append(node.target)
    return swapped


def fuse_relu(graph: fx.GraphModule) -> list[str]:
    """A ReLU that alone reads a convolution of ours becomes that convolution's activation."""
    fused = []
    for node in list(graph.graph.nodes):
        source = node.args[0] if node.args else None
        conv = module_of(graph, source)
        if not (isinstance(conv, GroupedConv2d) and conv.activation == "none" and is_relu(graph, node)):
            continue
        if only_reader(source) and only_call(graph, source):
            conv.activation = "relu"
            drop(graph, node, source)
            fused.append(source.target)
    return fused
