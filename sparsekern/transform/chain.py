"""A convolution and the 1x1 convolutions behind it, as one call that keeps what is between them in the cache."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, fx, nn

from sparsekern.nn import GroupedConv2d
from sparsekern.nn.grouped_conv2d import refuse_gradients
from sparsekern.ops import root_conv2d, root_conv2d_packed
from sparsekern.transform.graph import add_module, drop, module_of, one_argument, only_call, only_reader
from sparsekern.transform.race import ratio
from sparsekern.transform.writes import written_between

STAGES = 3
MOST_IMAGES = 8  # that a chain is timed with: more fit no cache either


class RootChain(nn.Sequential):
    """Two or three ``GroupedConv2d``, all but the first 1x1, as one :func:`~sparsekern.ops.root_conv2d`; all packed or none.

    ``names``: what the model called them; ``gain``: their time one by one over their time together. ``activation`` in a call takes the
    place of the last one's own.
    """

    def __init__(self, names: tuple[str, ...], convolutions: list[GroupedConv2d], gain: float = 1.0):
        super().__init__(*convolutions)
        self.names, self.gain = names, gain

    def forward(self, x: Tensor, shortcut: Tensor | None = None, activation: str | None = None) -> Tensor:
        convolutions: list[Any] = list(self)
        first, last = convolutions[0], convolutions[-1]
        options: dict[str, Any] = {
            "stride": first.stride, "padding": first.padding, "dilation": first.dilation, "groups": first.groups,
            "activation": first.activation, "last_activation": last.activation if activation is None else activation, "shortcut": shortcut,
        }  # fmt: skip
        packed = first._packed is not None
        tensors: list[Any] = [t for layer in convolutions for t in (layer._packed if packed else layer.weight, layer.bias)]
        tensors += [None] * (2 * STAGES - len(tensors))
        if packed:
            refuse_gradients(convolutions, x, shortcut)
            one: Any
            two: Any
            one, bias1, two, bias2, three, bias3 = (None if t is None else t.detach() for t in tensors)
            return root_conv2d_packed(x, one, bias1, two, bias2, three, bias3, last.out_channels, first.kernel_size, **options)
        return root_conv2d(x, *tensors, **options)


def _can_begin(conv: Any) -> bool:
    return isinstance(conv, GroupedConv2d) and conv.padding_mode == "zeros" and not isinstance(conv.padding, str)


def _can_follow(conv: Any) -> bool:
    plain = isinstance(conv, GroupedConv2d) and conv.kernel_size == (1, 1) and conv.stride == (1, 1)
    return plain and conv.padding in ((0, 0), 0, "valid", "same")


def find_chains(graph: fx.GraphModule) -> list[list[fx.Node]]:
    """The nodes of each chain: as long as they can be, none in two of them."""
    chains, taken = [], set()
    for node in graph.graph.nodes:
        if node in taken or not (_can_begin(module_of(graph, node)) and only_call(graph, node)):
            continue
        chain = [node]
        while len(chain) < STAGES and one_argument(chain[-1]) and only_reader(chain[-1]):
            reader = next(iter(chain[-1].users))
            conv = module_of(graph, reader)
            # every activation but the last is the same one
            same = len(chain) == 1 or module_of(graph, chain[-1]).activation == module_of(graph, node).activation
            fits = _can_follow(conv) and not reader.kwargs and reader.args[0] is chain[-1] and only_call(graph, reader) and same
            fits = fits and chain[-1] not in reader.args[1:]  # a map that is its own shortcut is needed as such
            fits = fits and not written_between(graph, node.args[0], node, reader)  # the chain runs when its last one would
            if not (fits and (conv._packed is None) == (module_of(graph, node)._packed is None)):
                break
            chain.append(reader)
        if len(chain) > 1:
            chains.append(chain)
            taken.update(chain)
    return chains


def fuse_chains(graph: fx.GraphModule, shapes: Mapping[str, tuple[int, ...]], left: dict[str, str]) -> None:
    """Put every chain that is faster as one call into the graph.

    Args:
        shapes: of the input of each convolution, by name; without one a chain is left alone.
        left: gets why a chain was left.
    """
    found: dict[tuple, float] = {}
    for chain in find_chains(graph):
        convolutions = [module_of(graph, node) for node in chain]
        names = tuple(str(node.target) for node in chain)
        shape = shapes.get(names[0])
        if shape is None or len(shape) != 4:
            continue
        made, shortcut = RootChain(names, convolutions), len(chain[-1].args) > 1
        key = (shape, shortcut, *map(repr, convolutions))
        if key not in found:
            found[key] = _gain(made, (min(shape[0], MOST_IMAGES), *shape[1:]), shortcut)
        made.gain = found[key]
        if made.gain <= 1.0:
            left[" + ".join(names)] = f"one by one is faster ({made.gain:.2f}x together)"
            continue
        _put(graph, chain, made)


def _gain(chain: RootChain, shape: tuple[int, ...], shortcut: bool) -> float:
    """Time one by one over time together, on random images of this shape in channels_last."""
    weight: Any = chain[0].weight
    x = torch.rand(shape, dtype=weight.dtype, device=weight.device).contiguous(memory_format=torch.channels_last)
    end = (torch.rand_like(chain(x)), "relu") if shortcut else ()

    def one_by_one() -> Tensor:
        y = x
        for conv in list(chain)[:-1]:
            y = conv(y)
        return chain[-1](y, *end)

    return ratio(one_by_one, lambda: chain(x, *end))


def _put(graph: fx.GraphModule, chain: list[fx.Node], made: RootChain) -> None:
    parent, _, name = str(chain[0].target).rpartition(".")
    target = add_module(graph, parent, f"{name}_chain", made)
    first, last = chain[0], chain[-1]
    with graph.graph.inserting_before(last):
        node = graph.graph.call_module(target, (first.args[0], *last.args[1:]))
    drop(graph, last, node)
    for old in reversed(chain[:-1]):
        graph.graph.erase_node(old)
