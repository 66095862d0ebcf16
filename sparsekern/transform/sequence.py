"""Layers that only hand their image on to the next one, as one call: what a small network loses between its layers."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, fx, nn

from sparsekern.nn import GroupedConv2d, StochasticConv2d
from sparsekern.nn.grouped_conv2d import refuse_gradients
from sparsekern.ops import backends, sequence2d
from sparsekern.ops.grouped_conv2d_packed import explain_packed
from sparsekern.ops.pool2d import AVERAGE, AVERAGE_COUNTING_PADDING, MAX
from sparsekern.ops.sequence2d import PACKED_CONV, POOL, SPARSE_CONV, Stage
from sparsekern.transform.chain import RootChain
from sparsekern.transform.fuse import is_relu
from sparsekern.transform.graph import add_module, drop, module_of, one_argument, only_call, only_reader, seen_dim
from sparsekern.transform.pool import Pool2d
from sparsekern.transform.writes import written_between

FEWEST = 3  # layers that are worth it


class Sequence2d(nn.ModuleList):
    """Packed ``GroupedConv2d``, ``RootChain`` of them, ``StochasticConv2d`` and ``Pool2d``, one after the other.

    Args:
        names: what the model called them.
        layers: the layers.
        relus: whether a ReLU follows each of them that computes none itself.
        images: that go through them together; 0 for all.
    """

    def __init__(self, names: tuple[str, ...], layers: list[nn.Module], relus: list[bool], images: int):
        super().__init__(layers)
        self.names, self.relus, self.images = names, relus, images
        self.in_one_call = True
        self.numbers = [n for layer, relu in zip(layers, relus) for stage in _stages(layer, relu) for n in stage]

    def forward(self, x: Tensor) -> Tensor:
        if not self.in_one_call:
            for layer, relu in zip(self, self.relus):
                x = torch.relu(layer(x)) if relu else layer(x)
            return x
        refuse_gradients((), x)
        tensors: list[Any] = []
        for layer in self:
            if isinstance(layer, StochasticConv2d):
                own, tables = layer._parameters, layer._buffers
                tensors += [own["weight"], tables["indptr"], tables["index"], layer._current_plan()]
                tensors += [] if layer.bias is None else [layer.bias]
            elif not isinstance(layer, Pool2d):
                convolutions: Any = layer if isinstance(layer, RootChain) else (layer,)
                for conv in convolutions:
                    tensors += [conv._packed] if conv.bias is None else [conv._packed, conv.bias]
        return sequence2d(x, tensors, self.numbers, self.images)

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> nn.Module:
        super()._apply(fn, recurse)
        parts: list[Any] = [
            part for layer in self for part in (layer if isinstance(layer, RootChain) else (layer,)) if not isinstance(part, Pool2d)
        ]
        self.in_one_call = all(backends.can_pack(part.weight) and getattr(part, "_packed", part) is not None for part in parts)
        return self

    def to_dense(self) -> nn.Sequential:
        """The same in torch's dense convolutions, called one after the other: what a profile times it against."""
        parts: list[nn.Module] = []
        for layer, relu in zip(self, self.relus):
            own: list[Any] = list(layer) if isinstance(layer, RootChain) else [layer]
            parts += [part.to_dense() if hasattr(part, "to_dense") else part for part in own]
            parts += [nn.ReLU()] if relu else []
        return nn.Sequential(*parts)

    def extra_repr(self) -> str:
        return f"images={self.images or 'all'}"


def _stages(layer: Any, relu: bool) -> list[Stage]:
    """A layer as the op's numbers say it; a chain is as many stages as it has convolutions."""
    if isinstance(layer, Pool2d):
        options = layer.options
        way = MAX if options["pooling"] == "max" else AVERAGE_COUNTING_PADDING if options.get("count_include_pad", True) else AVERAGE
        if "kernel_size" not in options:
            return [Stage(POOL, way, False, False, 0, 0, 1, 1, 0, 0)]
        kernel = options["kernel_size"]
        pairs = (kernel, kernel if options["stride"] is None else options["stride"], options["padding"])
        return [Stage(POOL, way, int(options["ceil_mode"]), False, *(v for pair in pairs for v in _pair(pair)))]
    if isinstance(layer, StochasticConv2d):
        return [_convolution(layer, SPARSE_CONV, relu or getattr(layer, "activation", "none") == "relu", False, 1)]
    convolutions: list[Any] = list(layer) if isinstance(layer, RootChain) else [layer]
    last = convolutions[-1]
    return [_convolution(c, PACKED_CONV, c.activation == "relu" or (relu and c is last), c is not last, c.groups) for c in convolutions]


def _convolution(layer: Any, kind: int, relu: bool, with_next: bool, groups: int) -> Stage:
    padding = layer._kernel_padding if kind == SPARSE_CONV else _pair(layer.padding)
    window: tuple[int, ...] = (*layer.kernel_size, *layer.stride, *padding, *layer.dilation)
    return Stage._make((kind, int(relu), int(layer.bias is not None), int(with_next), *window, groups, layer.out_channels))


def _pair(value: int | tuple[int, int]) -> tuple[int, int]:
    return (value, value) if isinstance(value, int) else (value[0], value[1])


def _can_take(layer: Any) -> bool:
    if isinstance(layer, RootChain):
        return all(_can_take(conv) for conv in layer)
    if isinstance(layer, GroupedConv2d):
        plain = layer.padding_mode == "zeros" and not isinstance(layer.padding, str)
        return plain and layer._packed is not None and explain_packed(layer._packed).startswith("blocks")  # else torch serves it
    if isinstance(layer, StochasticConv2d):  # one that says its activation computes that and no more
        plain = type(layer) is StochasticConv2d or "activation" in vars(type(layer))
        return plain and layer._kernel_pads and layer._current_plan() is not None and layer.weight.dtype == torch.float32
    return isinstance(layer, Pool2d)


def _runs(graph: fx.GraphModule) -> list[tuple[list[fx.Node], list[fx.Node | None]]]:
    """Layers, each the only reader of the one before, and the ReLU node behind each if it has one."""
    runs: list[tuple[list[fx.Node], list[fx.Node | None]]] = []
    taken: set[fx.Node] = set()

    def begins(node: fx.Node) -> bool:
        good = node not in taken and _can_take(module_of(graph, node)) and only_call(graph, node) and one_argument(node)
        return good and seen_dim(node) in (None, 4)

    for node in graph.graph.nodes:
        if not begins(node):
            continue
        layers: list[fx.Node] = [node]
        relus: list[fx.Node | None] = [None]
        last = node
        while only_reader(last):
            reader = next(iter(last.users))
            is_conv = not isinstance(module_of(graph, layers[-1]), Pool2d)
            if is_conv and relus[-1] is None and is_relu(graph, reader):
                relus[-1] = last = reader
            elif begins(reader) and reader.args[0] is last:
                layers.append(reader)
                relus.append(None)
                last = reader
            else:
                break
        if len(layers) >= FEWEST and not written_between(graph, node.args[0], node, last):  # it runs when its last layer would
            runs.append((layers, relus))
            taken.update(layers)
    return runs


def join_sequences(graph: fx.GraphModule, images: int) -> list[tuple[str, ...]]:
    """Put every run of layers into one call, ``images`` at a time (0: all); their names, one tuple for each."""
    joined = []
    for layers, relus in _runs(graph):
        names = tuple(str(node.target) for node in layers)
        parent, _, name = names[0].rpartition(".")
        modules = [module_of(graph, node) for node in layers]
        target = add_module(graph, parent, f"{name}_sequence", Sequence2d(names, modules, [r is not None for r in relus], images))
        last = relus[-1] or layers[-1]
        with graph.graph.inserting_before(last):
            call = graph.graph.call_module(target, (layers[0].args[0],))
        drop(graph, last, call)
        for node in reversed([n for pair in zip(layers, relus) for n in pair if n is not None and n is not last]):
            graph.graph.erase_node(node)
        joined.append(names)
    return joined
