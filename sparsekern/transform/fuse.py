"""What follows a convolution, into it: a shortcut and a ReLU while the sums are in registers. And what inference does not need, away."""

from __future__ import annotations

import operator
from typing import Any

import torch
from torch import fx, nn

from sparsekern.nn import GroupedConv2d
from sparsekern.transform.graph import (
    drop,
    follows_inputs,
    layers,
    module_of,
    one_argument,
    only_call,
    only_reader,
    replace_module,
    seen,
)
from sparsekern.transform.tracing import hooked, in_place
from sparsekern.transform.writes import alone, writes, written_between

_RELU_FUNCTIONS = (torch.relu, torch.relu_, nn.functional.relu, nn.functional.relu_)


def is_relu(graph: fx.GraphModule, node: fx.Node) -> bool:
    if node.op == "call_function":
        return node.target in _RELU_FUNCTIONS
    if node.op == "call_method":
        return node.target in ("relu", "relu_")
    module = module_of(graph, node)
    return type(module) is nn.ReLU and not hooked(module)


def drop_identities(graph: fx.GraphModule) -> None:
    """Modules that hand their input on in inference."""
    for node, module in layers(graph, nn.Dropout, nn.Dropout2d, nn.Identity):
        if type(module) in (nn.Dropout, nn.Dropout2d, nn.Identity) and one_argument(node) and not hooked(module):
            drop(graph, node, node.all_input_nodes[0])


def swap_convolutions(graph: fx.GraphModule) -> list[str]:
    """Every plain ``nn.Conv2d`` becomes a ``GroupedConv2d`` of the same weights, which lets torch serve where torch is faster."""
    swapped = []
    for node, conv in layers(graph, nn.Conv2d):
        if type(conv) is nn.Conv2d and only_call(graph, node):
            replace_module(graph, node, GroupedConv2d.from_dense(conv).eval().requires_grad_(False))
            swapped.append(str(node.target))
    return swapped


_ADD_FUNCTIONS = (operator.add, torch.add)
_ADD_METHODS = ("add", "add_")


def _summands(node: fx.Node) -> tuple[Any, Any] | None:
    """The two that an addition adds; None for what is none, or adds anything else."""
    if node.target is in_place:
        is_add = node.args[2] == "iadd"
    else:
        is_add = node.target in _ADD_FUNCTIONS if node.op == "call_function" else node.op == "call_method" and node.target in _ADD_METHODS
    read: Any = tuple(node.args)[:2]
    plain = is_add and len(read) == 2 and len(node.args) == (3 if node.target is in_place else 2) and not node.kwargs
    return read if plain and all(isinstance(a, fx.Node) for a in read) else None


def _sum_of(graph: fx.GraphModule, node: fx.Node) -> tuple[fx.Node, fx.Node] | None:
    """``(convolution, shortcut)`` behind an addition that can become part of the convolution."""
    read = _summands(node)
    if read is None:
        return None
    for source, shortcut in (read, read[::-1]):
        conv = module_of(graph, source)
        ours = isinstance(conv, GroupedConv2d) and conv.activation == "none" and one_argument(source) and source is not shortcut
        if not (ours and only_reader(source) and only_call(graph, source)):
            continue
        if seen(source) is None or seen(source) != seen(shortcut) or not follows_inputs(shortcut):
            continue  # spread over the images, the channels or the places, perhaps for another batch only; or of another dtype
        if writes(graph, node) and read[0] is shortcut and not alone(graph, shortcut):
            continue  # x += conv(y), and x is read again, perhaps by the caller
        if not written_between(graph, source.args[0], source, node):
            return source, shortcut
    return None


def fuse_add_relu(graph: fx.GraphModule) -> list[str]:
    """The end of a residual block, ``relu(conv(x) + shortcut)``, becomes one call of the convolution; for graphs that
    :func:`record` ran."""
    fused = []
    for node in list(graph.graph.nodes):
        added = node.args[0] if node.args else None
        if not (isinstance(added, fx.Node) and is_relu(graph, node) and only_reader(added)):
            continue
        found = _sum_of(graph, added)
        if found is None:
            continue
        conv, shortcut = found
        added.prepend(conv)  # by then the shortcut is there
        conv.args = (*conv.args, shortcut, "relu")
        drop(graph, node, conv)
        graph.graph.erase_node(added)
        fused.append(str(conv.target))
    return fused


def fuse_relu(graph: fx.GraphModule) -> list[str]:
    """A ReLU that alone reads a convolution of ours becomes that convolution's activation."""
    fused = []
    for node in list(graph.graph.nodes):
        source: Any = node.args[0] if node.args else None
        conv = module_of(graph, source)
        if not (isinstance(conv, GroupedConv2d) and one_argument(source) and conv.activation == "none" and is_relu(graph, node)):
            continue
        if only_reader(source) and only_call(graph, source):
            conv.activation = "relu"
            drop(graph, node, source)
            fused.append(str(source.target))
    return fused
