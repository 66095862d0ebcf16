"""Depth first: a large batch goes through the convolutions a few images at a time, so that their maps stay in the cache."""

from __future__ import annotations

import operator

import torch
from torch import Tensor, fx, nn

from sparsekern.nn import GroupedConv2d, StochasticConv2d, UnequalGroupedConv2d
from sparsekern.transform.chain import RootChain
from sparsekern.transform.fuse import is_relu
from sparsekern.transform.graph import module_of
from sparsekern.transform.join import Joined, by_channel
from sparsekern.transform.normalise import LocalResponseNorm
from sparsekern.transform.pool import Pool2d
from sparsekern.transform.sequence import Sequence2d
from sparsekern.transform.tracing import in_place
from sparsekern.transform.writes import sharing, written

# layers whose images do not see each other in inference: [N, C, H, W] -> [N, K, OH, OW]
CONVOLUTIONS = (nn.Conv2d, GroupedConv2d, StochasticConv2d, UnequalGroupedConv2d, RootChain, Joined, Sequence2d)
IMAGE_BY_IMAGE = (
    *CONVOLUTIONS, Pool2d, nn.MaxPool2d, nn.AvgPool2d, nn.AdaptiveAvgPool2d, nn.AdaptiveMaxPool2d, nn.BatchNorm2d, nn.LocalResponseNorm,
    LocalResponseNorm, nn.ReLU, nn.Sigmoid, nn.Tanh, nn.GELU, nn.SiLU,
)  # fmt: skip
_FUNCTIONS = (operator.add, operator.mul, torch.add, torch.mul)
_IN_PLACE = ("iadd", "imul")
_METHODS = ("add", "add_", "mul", "relu", "relu_", "sigmoid", "tanh")


class DepthFirst(nn.Module):
    """``part`` on ``images`` images at a time; its results, one or several, joined along the batch."""

    def __init__(self, part: nn.Module, images: int):
        super().__init__()
        self.part, self.images = part, images

    def forward(self, *inputs: Tensor) -> tuple[Tensor, ...]:
        count = inputs[0].shape[0]
        if count <= self.images or any(x.shape[0] != count for x in inputs):  # one image may stand for all
            return self.part(*inputs)
        pieces = [self.part(*(x[i : i + self.images] for x in inputs)) for i in range(0, count, self.images)]
        return tuple(torch.cat(results) for results in zip(*pieces))

    def extra_repr(self) -> str:
        return f"images={self.images}"


def _is_image_by_image(graph: fx.GraphModule, node: fx.Node, images: set[fx.Node]) -> bool:
    read = node.all_input_nodes
    if not read or any(other not in images for other in read):
        return False
    if node.op == "call_module":
        module = module_of(graph, node)
        if isinstance(module, nn.BatchNorm2d) and not module.track_running_stats:
            return False
        return isinstance(module, IMAGE_BY_IMAGE)
    if node.op == "call_method" and node.target == "contiguous":
        return True
    if node.target is in_place:
        return node.args[2] in _IN_PLACE
    return by_channel(node) or is_relu(graph, node) or node.target in (_METHODS if node.op == "call_method" else _FUNCTIONS)


def _written_across(graph: fx.GraphModule, node: fx.Node, inside: set[fx.Node]) -> bool:
    """Whether the node changes memory that is read, or written, in the part and outside of it, where the order would no longer hold:
    the part runs as a whole, before what is outside, and hands out copies."""
    changed = written(graph, node)
    if not changed:
        return False
    shared = sharing(graph, changed)
    order = {other: place for place, other in enumerate(graph.graph.nodes)}
    first_outside = min((order[user] for value in shared for user in value.users if user not in inside), default=len(order))
    last_inside = max((order[user] for value in shared for user in value.users if user in inside), default=-1)
    handed_out = [value for value in shared & inside if any(user not in inside for user in value.users)]
    return first_outside < last_inside or (node not in inside and len(handed_out) > 1)


def depth_first(graph: fx.GraphModule, example: tuple, images: int) -> fx.GraphModule | None:
    """A graph whose convolutions run ``images`` images at a time; None where no part of it is known to take images one by one.

    Args:
        graph: not changed, but its layers are shared.
        example: inputs of the graph; those ``[N, C, H, W]`` with one N are the images.
    """
    inputs = [node for node in graph.graph.nodes if node.op == "placeholder"]
    sizes = {value.shape[0] for value in example if isinstance(value, Tensor) and value.dim() == 4}
    if len(sizes) != 1:
        return None
    inside = {node for node, value in zip(inputs, example) if isinstance(value, Tensor) and value.dim() == 4}
    begin = set(inside)
    for node in graph.graph.nodes:
        if node.op not in ("placeholder", "output") and _is_image_by_image(graph, node, inside):
            inside.add(node)
    if any(_written_across(graph, node, inside) for node in graph.graph.nodes):
        return None
    part = [node for node in graph.graph.nodes if node in inside and node not in begin]
    results = [node for node in part if any(user not in inside for user in node.users)]
    if not any(isinstance(module_of(graph, node), CONVOLUTIONS) for node in part):
        return None
    read = [node for node in graph.graph.nodes if node in begin and any(user in inside for user in node.users)]
    return _split(graph, read, part, results, images)


def _split(graph: fx.GraphModule, read: list[fx.Node], part: list[fx.Node], results: list[fx.Node], images: int) -> fx.GraphModule:
    inner, outer = (fx.Graph(tracer_cls=graph.graph._tracer_cls) for _ in range(2))
    inside: dict[fx.Node, fx.Node] = {}
    outside: dict[fx.Node, fx.Node] = {}
    for node in read:
        inside[node] = inner.placeholder(node.name)
    for node in part:
        inside[node] = inner.node_copy(node, lambda n: inside[n])
    inner.output(tuple(inside[node] for node in results))
    done = set(part)
    for node in graph.graph.nodes:
        if node is part[0]:  # placeholders stand before it
            call = outer.call_module("depth_first", tuple(outside[n] for n in read))
            for i, result in enumerate(results):
                outside[result] = outer.call_function(operator.getitem, (call, i))
        if node not in done:
            outside[node] = outer.node_copy(node, lambda n: outside[n])
    named = {"depth_first": DepthFirst(fx.GraphModule(graph, inner), images)}
    for node in outer.nodes:
        if node.op in ("call_module", "get_attr") and node.target not in named:
            named[node.target] = operator.attrgetter(node.target)(graph)
    return fx.GraphModule(named, outer)
