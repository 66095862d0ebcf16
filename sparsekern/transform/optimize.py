"""optimize: a trained model, made ready for inference."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Tensor, fx, nn

from sparsekern.measure.protocol import interleave
from sparsekern.nn import GroupedConv2d, SparseLinear
from sparsekern.ops import backends
from sparsekern.transform.agree import agree, difference, flat
from sparsekern.transform.chain import RootChain, fuse_chains
from sparsekern.transform.depth_first import depth_first
from sparsekern.transform.fold import fold_batch_norm
from sparsekern.transform.fuse import drop_identities, fuse_add_relu, fuse_relu, swap_convolutions
from sparsekern.transform.graph import copied, layers, record, seen, seen_dim, tidy, traced
from sparsekern.transform.join import Joined, join_convolutions
from sparsekern.transform.normalise import swap_local_response_norms
from sparsekern.transform.pool import swap_pools
from sparsekern.transform.report import OptimizeReport

CONVOLUTIONS = (nn.Conv2d,)
PACKED = "channels_last, packed"
FEW_IMAGES = (2, 4, 8)  # that go through the convolutions together, where the batch is larger


def optimize(model: nn.Module, *example: Any, pack: bool = True, rounds: int = 5) -> nn.Module:
    """A frozen copy of ``model`` for inference that computes the same, faster; ``.report`` says what was done and what it brought.

    Folds batch-norms into the layers before them, lets convolutions add the shortcut and apply
    the ReLU behind them, drops what inference does not need, pools with kernels of our own, packs weights, computes a convolution and
    the 1x1 convolutions behind it in one call where that is faster, lets convolutions whose results are joined write them where they
    belong, and keeps one layout from end to end: the copy is timed with NCHW
    activations, with channels_last ones, with those and packed convolutions, and, for a batch, with the convolutions a few images at a
    time, against the model as it came, and the fastest is returned.

    Args:
        model: any module. Where ``torch.fx`` cannot trace it, its layers are packed where they stand and the report says why no more
            was done. It is not changed.
        example: inputs to trace, compare and time with; use the batch that you will run. Other batches stay correct.
        pack: whether weights are packed; packed layers cost memory and do not see later writes.
        rounds: of interleaved timing.

    Returns:
        A module in eval mode without gradients, with the input and output layouts of the model, and ``report``, an
        :class:`OptimizeReport`.

    Raises:
        ValueError: ``optimize: model must compute the same twice; got outputs that differ by 0.3`` for a model that is random or keeps
            state in eval mode.

    Cost:
        A few seconds to a minute, most of it for timing. Each candidate is a copy of the model's memory while it runs.

    Source:
        What Deep Roots (Ioannou et al.), section 6, leaves to the implementation: time from fewer FLOPs.

    Example:
        >>> model = nn.Sequential(nn.Conv2d(8, 16, 3, padding=1), nn.BatchNorm2d(16), nn.ReLU())
        >>> fast = optimize(model, torch.randn(1, 8, 14, 14))
        >>> fast.report.folded, fast.report.fused
        (['1'], ['0'])
    """
    model = copy.deepcopy(model).eval().requires_grad_(False)
    report = OptimizeReport()
    with torch.no_grad():
        expected = flat(model(*copied(example)))
        again = flat(model(*copied(example)))
        if not agree(expected, again):
            raise ValueError(f"optimize: model must compute the same twice; got outputs that differ by {difference(expected, again):.1g}")
        kept: dict[tuple[str, ...], float] = {}
        ways = {"model": model}
        for name, make in _candidates(model, example, pack, report, kept):
            way = _attempt(report, name, lambda make=make: _ready(make()))
            found = None if way is None else _attempt(report, name, lambda way=way: flat(way(*copied(example))))
            if found is not None and agree(expected, found):
                ways[name] = way
            elif found is not None:
                report.left[name] = f"differs from the model by {difference(expected, found):.1g}"
        inputs = copied(example)
        timings = interleave({name: (lambda way=way: way(*inputs)) for name, way in ways.items()}, rounds=rounds)
        clock = "cpu" if torch.get_num_threads() == 1 else "wall"  # of one thread it tells more on a shared core
        report.times_us = {name: timing.by(clock).median_us for name, timing in timings.items()}
        report.chosen = min(report.times_us, key=report.times_us.get)
        best = ways[report.chosen]
        report.packed += _packed_names(best)
        report.chains = {chain.names: kept[chain.names] for chain in best.modules() if isinstance(chain, RootChain)}
        report.error = difference(expected, flat(best(*copied(example))))
    best.report = report
    return best


def _attempt(report: OptimizeReport, name: str, make: Callable[[], Any], what: str = "fails") -> Any:
    """What ``make`` gives; None, and a line in the report, where it cannot."""
    try:
        return make()
    except Exception as error:  # whatever it is, the model as it came still serves
        report.left[name] = f"{what} ({type(error).__name__}: {(str(error).splitlines() or [''])[0]})"
        return None


def _ready(way: nn.Module | None) -> nn.Module | None:
    return None if way is None else way.eval().requires_grad_(False)


def _candidates(
    model: nn.Module, example: tuple, pack: bool, report: OptimizeReport, kept: dict
) -> Iterator[tuple[str, Callable[[], nn.Module | None]]]:
    """``(name, what makes it)``: makers may raise, or give None where there is nothing to make."""
    graph = _attempt(report, "graph", lambda: traced(model), "cannot be traced")
    if graph is not None:
        graph = _attempt(report, "optimized", lambda: _rewritten(graph, example, pack, report))
    if graph is None:
        yield "packed", lambda: _packed_where_they_stand(model, report) if pack else None
        return
    yield "optimized", lambda: graph
    if not any(layers(graph, *CONVOLUTIONS)):
        return
    last = _attempt(report, "channels_last", lambda: _channels_last(graph, example, report))
    if last is None:
        return
    yield "channels_last", lambda: _as_given(last, example)
    if pack:
        yield PACKED, lambda: _as_given(_packed(last, example, report, kept), example)
        for images in _few_images(example):
            yield f"{PACKED}, {images} images at a time", lambda images=images: _a_few_at_a_time(last, example, images, report, kept)


def _rewritten(graph: fx.GraphModule, example: tuple, pack: bool, report: OptimizeReport) -> fx.GraphModule:
    """The passes that hold for every layout."""
    drop_identities(graph)
    graph.recompile()
    record(graph, example)
    done = {
        "folded": fold_batch_norm(graph), "swapped": swap_convolutions(graph), "summed": fuse_add_relu(graph), "fused": fuse_relu(graph),
        "pooled": swap_pools(graph), "packed": _pack(graph) if pack else [],
    }  # fmt: skip
    tidy(graph)
    vars(report).update(done)  # all or nothing
    return graph


def _packed_where_they_stand(model: nn.Module, report: OptimizeReport) -> nn.Module | None:
    whole = copy.deepcopy(model)
    report.packed = _pack(whole)
    return whole if report.packed else None


def _a_few_at_a_time(last: fx.GraphModule, example: tuple, images: int, report: OptimizeReport, kept: dict) -> nn.Module | None:
    split = depth_first(_packed(last, example, report, kept, images), example, images)
    return None if split is None else _as_given(split, example)


def _few_images(example: tuple) -> list[int]:
    return [images for images in FEW_IMAGES if 2 * images <= min(_batches(example), default=0)]


def _batches(example: tuple) -> list[int]:
    return [v.shape[0] for v in example if isinstance(v, Tensor) and v.dim() == 4]


def _packed_names(model: nn.Module) -> list[str]:
    """The convolutions with packed weights, as the model called them."""
    names, inside = [], set()
    for name, module in model.named_modules():
        if isinstance(module, (Joined, RootChain)):
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


def _packed(graph: fx.GraphModule, example: tuple, report: OptimizeReport, kept: dict, images: int | None = None) -> fx.GraphModule:
    """The same with the weights of every ``GroupedConv2d`` in float32 in the order that its images on the example ask for, and chains;
    with ``images``, for as many at a time."""
    graph, shapes = copy.deepcopy(graph), {}
    record(graph, example)
    batch = max(_batches(example), default=0)
    for node, conv in layers(graph, GroupedConv2d):
        if not (node.args and seen_dim(node.args[0]) == 4 and conv.weight.dtype == torch.float32):
            continue
        count, *sizes = seen(node.args[0])[0]
        shape = shapes[node.target] = (images if images is not None and count == batch else count, *sizes)
        if conv.weight.device.type == "cpu" and backends.has_kernels("cpu"):
            conv.pack(shape)
    fuse_chains(graph, shapes, kept, report.left)
    report.joined = join_convolutions(graph)
    tidy(graph)
    return graph


def _channels_last(graph: fx.GraphModule, example: tuple, report: OptimizeReport) -> fx.GraphModule:
    """The same with one conversion in front; what is behind keeps the layout it is given."""
    graph = copy.deepcopy(graph)
    for tensor in (*graph.parameters(), *graph.buffers()):
        if tensor.dim() == 4:
            tensor.data = tensor.data.contiguous(memory_format=torch.channels_last)
    inputs = [node for node in graph.graph.nodes if node.op == "placeholder"]
    for node, value in zip(inputs, example):
        if isinstance(value, Tensor) and value.dim() == 4:
            with graph.graph.inserting_after(inputs[-1]):
                converted = graph.graph.call_method("contiguous", (node,), {"memory_format": torch.channels_last})
            node.replace_all_uses_with(converted, delete_user_cb=lambda user, keep=converted: user is not keep)
    for node in graph.graph.nodes:  # no view puts rows that lie apart side by side
        sizes = node.args[1:]
        if node.op == "call_method" and node.target == "view" and sizes and not isinstance(sizes[0], torch.dtype):
            node.target = "reshape"
    graph.recompile()
    record(graph, example)
    report.normalised = swap_local_response_norms(graph)
    return graph


def _as_given(graph: fx.GraphModule, example: tuple) -> nn.Module:
    """The same, handing out 4-D results in NCHW where all that came was NCHW."""
    plain = all(not isinstance(v, Tensor) or v.dim() != 4 or v.is_contiguous() for v in example)
    return Contiguous(graph) if plain and any(t.dim() == 4 for t in flat(graph(*copied(example)))) else graph


class Contiguous(nn.Module):
    """A model whose 4-D outputs are handed out in NCHW order, as its NCHW inputs came."""

    def __init__(self, model: nn.Module):
        super().__init__()
        self.model = model

    def forward(self, *inputs: Any, **keywords: Any) -> Any:
        return torch.utils._pytree.tree_map_only(Tensor, Tensor.contiguous, self.model(*inputs, **keywords))
