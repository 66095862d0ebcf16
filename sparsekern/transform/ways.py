"""The ways to run a model that :func:`optimize` compares: rewritten graphs, in either layout, packed, a few images at a time."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

import torch
from torch import Tensor, fx, nn

from sparsekern.nn import GroupedConv2d, SparseLinear, StochasticConv2d
from sparsekern.ops import backends
from sparsekern.transform.agree import flat
from sparsekern.transform.chain import MOST_IMAGES, RootChain, fuse_chains
from sparsekern.transform.densify import dense_where_faster
from sparsekern.transform.depth_first import CONVOLUTIONS as IMAGE_CONVOLUTIONS
from sparsekern.transform.depth_first import depth_first
from sparsekern.transform.fold import fold_batch_norm
from sparsekern.transform.fuse import drop_identities, fuse_add_relu, fuse_relu, swap_convolutions
from sparsekern.transform.graph import copied, layers, record, seen, tidy, traced
from sparsekern.transform.join import Joined, join_convolutions
from sparsekern.transform.normalise import swap_local_response_norms
from sparsekern.transform.pool import swap_pools
from sparsekern.transform.report import OptimizeReport
from sparsekern.transform.sequence import Sequence2d, join_sequences
from sparsekern.transform.writes import may_be_a_copy, with_own_tensors

CONVOLUTIONS = (nn.Conv2d,)
PACKED = "channels_last, packed"
FEW_IMAGES = (2, 4, 8)  # that go through the convolutions together, where the batch is larger


def attempt(report: OptimizeReport, name: str, make: Callable[[], Any], what: str = "fails") -> Any:
    """What ``make`` gives; None, and a line in the report, where it cannot."""
    try:
        return make()
    except Exception as error:  # whatever it is, the model as it came still serves
        report.left[name] = f"{what} ({type(error).__name__}: {(str(error).splitlines() or [''])[0]})"
        return None


def ways(
    model: nn.Module, example: tuple, recorded: tuple, pack: bool, pool: bool, report: OptimizeReport
) -> Iterator[tuple[str, Callable[[], nn.Module | None]]]:
    """``(name, what makes it)``: makers may raise, or give None where there is nothing to make.

    Args:
        example: what the ways will be timed on: layout and batch are chosen for it.
        recorded: the same, or one of another batch, on which the graph is run to see shapes. Where it has a batch of more than one
            image, what is summed over the batch is not taken for an image.
    """
    graph = attempt(report, "graph", lambda: with_own_tensors(traced(model, example)), "cannot be traced")
    if graph is not None:
        graph = attempt(report, "optimized", lambda: _rewritten(graph, recorded, pack, pool, report))
    if graph is None:
        yield "packed", lambda: _packed_where_they_stand(model, report) if pack else None
        return
    yield "optimized", lambda: graph
    if not any(layers(graph, *CONVOLUTIONS)):
        return
    last = attempt(report, "channels_last", lambda: _channels_last(graph, recorded, report))
    if last is None:
        return
    yield "channels_last", lambda: _as_given(last, example, recorded)
    if pack:
        batch = max(_batches(example), default=0)
        yield PACKED, lambda: _as_given(_packed(last, recorded, report, batch), example, recorded)
        for images in _few_images(example):
            yield f"{PACKED}, {images} images at a time", partial(_a_few_at_a_time, last, example, recorded, images, report)


def _rewritten(graph: fx.GraphModule, recorded: tuple, pack: bool, pool: bool, report: OptimizeReport) -> fx.GraphModule:
    """The passes that hold for every layout."""
    drop_identities(graph)
    _reshape(graph)
    graph.recompile()
    record(graph, recorded)
    done = {
        "folded": fold_batch_norm(graph), "swapped": swap_convolutions(graph), "summed": fuse_add_relu(graph), "fused": fuse_relu(graph),
        "pooled": swap_pools(graph) if pool else [], "packed": _pack(graph) if pack else [],
    }  # fmt: skip
    tidy(graph)
    vars(report).update(done)  # all or nothing
    return graph


def _reshape(graph: fx.GraphModule) -> None:
    """No view puts rows that lie apart side by side, and our layers may give another layout than torch's."""
    for node in graph.graph.nodes:
        sizes = node.args[1:]
        is_view = node.op == "call_method" and node.target == "view" and sizes and not isinstance(sizes[0], torch.dtype)
        if is_view and may_be_a_copy(graph, node):
            node.target = "reshape"


def _packed_where_they_stand(model: nn.Module, report: OptimizeReport) -> nn.Module | None:
    whole = copy.deepcopy(model)
    report.packed = _pack(whole)
    return whole if report.packed else None


def _a_few_at_a_time(last: fx.GraphModule, example: tuple, recorded: tuple, images: int, report: OptimizeReport) -> nn.Module | None:
    packed = _packed(last, recorded, report, images, together=images)
    loose = [node for node, layer in layers(packed, *IMAGE_CONVOLUTIONS) if not isinstance(layer, Sequence2d)]
    in_sequence = any(layers(packed, Sequence2d)) and not loose
    split = packed if in_sequence else depth_first(packed, example, images)
    return None if split is None else _as_given(split, example, recorded)


def _few_images(example: tuple) -> list[int]:
    return [images for images in FEW_IMAGES if 2 * images <= min(_batches(example), default=0)]


def _batches(example: tuple) -> list[int]:
    return [v.shape[0] for v in example if isinstance(v, Tensor) and v.dim() == 4]


def packed_names(model: nn.Module) -> list[str]:
    """The convolutions with packed weights, as the model called them."""
    names: list[str] = []
    inside: set[nn.Module] = set()
    for name, module in model.named_modules():
        if isinstance(module, Sequence2d):
            loose = [(n, conv) for n, conv in zip(module.names, module) if isinstance(conv, GroupedConv2d)]
            names += [n for n, _ in loose]
            inside.update(conv for _, conv in loose)
        elif isinstance(module, (Joined, RootChain)):
            names += [n for n, conv in zip(module.names, module) if conv._packed is not None]
            inside.update(module)
        elif isinstance(module, GroupedConv2d) and module._packed is not None and module not in inside:
            names.append(name.removeprefix("model.").removeprefix("depth_first.part."))
    return names


def _pack(model: nn.Module) -> list[str]:
    packed = []
    for name, module in model.named_modules() if backends.has_kernels("cpu") else ():
        if isinstance(module, SparseLinear) and module.weight.dtype != torch.float64 and module.weight.device.type == "cpu":
            module.pack()
            packed.append(name)
    return packed


def _packed(graph: fx.GraphModule, recorded: tuple, report: OptimizeReport, images: int, together: int = 0) -> fx.GraphModule:
    """The same with the weights of every ``GroupedConv2d`` in float32 in the order that so many images ask for, chains, and sequences
    that take ``together`` images at a time (0: all)."""
    graph = copy.deepcopy(graph)
    shapes: dict[str, tuple[int, ...]] = {}
    weights: dict[str, Tensor] = {}
    record(graph, recorded)
    batch = max(_batches(recorded), default=0)
    for node, layer in layers(graph, GroupedConv2d, StochasticConv2d):
        found = seen(node.args[0]) if node.args else None
        if found is not None and len(found[0]) == 4:
            count, *sizes = found[0]
            weights[str(node.target)] = layer.weight
            shapes[str(node.target)] = (images if count == batch else count, *sizes)
    ours = {name: shape for name, shape in shapes.items() if _on_our_kernels(weights[name])}
    report.densified = dense_where_faster(graph, {name: (min(shape[0], MOST_IMAGES), *shape[1:]) for name, shape in ours.items()})
    for node, conv in layers(graph, GroupedConv2d):
        if str(node.target) in ours:
            conv.pack(ours[str(node.target)])
    fuse_chains(graph, {name: shape for name, shape in shapes.items() if weights[name].dtype == torch.float32}, report.left)
    report.joined = join_convolutions(graph)
    if backends.has_kernels("cpu"):
        join_sequences(graph, together)
    tidy(graph)
    return graph


def _on_our_kernels(weight: Tensor) -> bool:
    return weight.dtype == torch.float32 and weight.device.type == "cpu" and backends.has_kernels("cpu")


def _channels_last(graph: fx.GraphModule, recorded: tuple, report: OptimizeReport) -> fx.GraphModule:
    """The same with one conversion in front; what is behind keeps the layout it is given."""
    graph = copy.deepcopy(graph)
    for tensor in (*graph.parameters(), *graph.buffers()):
        if tensor.dim() == 4:
            tensor.data = tensor.data.contiguous(memory_format=torch.channels_last)
    inputs = [node for node in graph.graph.nodes if node.op == "placeholder"]
    for node, value in zip(inputs, recorded):
        if isinstance(value, Tensor) and value.dim() == 4:
            with graph.graph.inserting_after(inputs[-1]):
                converted = graph.graph.call_method("contiguous", (node,), {"memory_format": torch.channels_last})
            node.replace_all_uses_with(converted, delete_user_cb=lambda user, keep=converted: user is not keep)
    graph.recompile()
    record(graph, recorded)
    report.normalised = swap_local_response_norms(graph)
    return graph


def _as_given(graph: fx.GraphModule, example: tuple, recorded: tuple) -> nn.Module:
    """The same, handing out 4-D results in NCHW where all that came was NCHW."""
    plain = all(not isinstance(v, Tensor) or v.dim() != 4 or v.is_contiguous() for v in example)
    return Contiguous(graph) if plain and any(t.dim() == 4 for t in flat(graph(*copied(recorded)))) else graph


class Contiguous(nn.Module):
    """A model whose 4-D outputs are handed out in NCHW order, as its NCHW inputs came."""

    def __init__(self, model: nn.Module):
        super().__init__()
        self.model = model

    def forward(self, *inputs: Any, **keywords: Any) -> Any:
        return torch.utils._pytree.tree_map_only(Tensor, Tensor.contiguous, self.model(*inputs, **keywords))
