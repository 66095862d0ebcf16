"""optimize: a trained model, made ready for inference."""

from __future__ import annotations

import copy
from typing import Any

import torch
from torch import Tensor, fx, nn

from sparsekern.measure.protocol import interleave
from sparsekern.nn import GroupedConv2d, SparseLinear
from sparsekern.ops import backends
from sparsekern.transform.chain import RootChain, fuse_chains
from sparsekern.transform.depth_first import depth_first
from sparsekern.transform.fold import fold_batch_norm
from sparsekern.transform.fuse import drop_identities, fuse_add_relu, fuse_relu, swap_convolutions
from sparsekern.transform.graph import layers, tidy, traced
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
        expected = _flat(model(*example))
        kept: dict[tuple[str, ...], float] = {}
        ways = {"model": model, **_candidates(model, example, pack, report, kept)}
        for name, way in list(ways.items()):
            error = _difference(expected, _flat(way(*example)))
            if error > _allowed(expected):
                if name == "model":
                    raise ValueError(f"optimize: model must compute the same twice; got outputs that differ by {error:.1g}")
                report.left[name] = f"differs from the model by {error:.1g}"
                del ways[name]
        timings = interleave({name: (lambda way=way: way(*example)) for name, way in ways.items()}, rounds=rounds)
        clock = "cpu" if torch.get_num_threads() == 1 else "wall"  # of one thread it tells more on a shared core
        report.times_us = {name: timing.by(clock).median_us for name, timing in timings.items()}
        report.chosen = min(report.times_us, key=report.times_us.get)
        best = ways[report.chosen]
        report.packed += _packed_names(best)
        report.chains = {chain.names: kept[chain.names] for chain in best.modules() if isinstance(chain, RootChain)}
        report.error = _difference(expected, _flat(best(*example)))
    best.report = report
    return best


def _candidates(model: nn.Module, example: tuple, pack: bool, report: OptimizeReport, kept: dict) -> dict[str, nn.Module]:
    try:
        graph = traced(model)
    except Exception as error:
        report.left["graph"] = f"cannot be traced ({type(error).__name__}: {str(error).splitlines()[0]})"
        whole = copy.deepcopy(model)
        report.packed = _pack(whole) if pack else []
        return {"packed": whole} if report.packed else {}
    drop_identities(graph)
    report.folded = fold_batch_norm(graph)
    report.swapped = swap_convolutions(graph)
    report.summed = fuse_add_relu(graph)
    report.fused = fuse_relu(graph)
    report.pooled = swap_pools(graph)
    report.packed = _pack(graph) if pack else []
    tidy(graph)
    found = {"optimized": graph}
    if any(layers(graph, *CONVOLUTIONS)):
        last = _channels_last(graph, example)
        report.normalised = swap_local_response_norms(last)
        found["channels_last"] = _as_given(last, example)
        if pack:
            found[PACKED] = _as_given(_packed(last, example, report, kept), example)
            for images in _few_images(example):
                few = tuple(v[:images] if isinstance(v, Tensor) and v.dim() == 4 else v for v in example)
                split = depth_first(_packed(last, few, report, kept), example, images)
                if split is not None:
                    found[f"{PACKED}, {images} images at a time"] = _as_given(split, example)
    return found


def _few_images(example: tuple) -> list[int]:
    batch = min((v.shape[0] for v in example if isinstance(v, Tensor) and v.dim() == 4), default=0)
    return [images for images in FEW_IMAGES if 2 * images <= batch]


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
    for name, module in model.named_modules():
        if isinstance(module, SparseLinear) and module.weight.dtype != torch.float64 and module.weight.device.type == "cpu":
            module.pack()
            packed.append(name)
    return packed


def _packed(graph: fx.GraphModule, example: tuple, report: OptimizeReport, kept: dict) -> fx.GraphModule:
    """The same with the weights of every ``GroupedConv2d`` in float32 in the order that its images on the example ask for, and chains."""
    graph, shapes = copy.deepcopy(graph), {}
    own = {name: m for name, m in graph.named_modules() if isinstance(m, GroupedConv2d) and m.weight.dtype == torch.float32}
    hooks = [m.register_forward_pre_hook(lambda _, args, name=name: shapes.update({name: tuple(args[0].shape)})) for name, m in own.items()]
    graph(*example)
    for hook in hooks:
        hook.remove()
    for name, shape in shapes.items():
        if len(shape) == 4 and own[name].weight.device.type == "cpu" and backends.has_kernels("cpu"):
            own[name].pack(shape)
    fuse_chains(graph, shapes, kept, report.left)
    report.joined = join_convolutions(graph)
    tidy(graph)
    return graph


def _channels_last(graph: fx.GraphModule, example: tuple) -> fx.GraphModule:
    """The same with one conversion in front; what is behind keeps the layout it is given."""
    graph = copy.deepcopy(graph).to(memory_format=torch.channels_last)
    inputs = [node for node in graph.graph.nodes if node.op == "placeholder"]
    for node, value in zip(inputs, example):
        if isinstance(value, Tensor) and value.dim() == 4:
            with graph.graph.inserting_after(inputs[-1]):
                converted = graph.graph.call_method("contiguous", (node,), {"memory_format": torch.channels_last})
            node.replace_all_uses_with(converted, delete_user_cb=lambda user, keep=converted: user is not keep)
    graph.recompile()
    return graph


def _as_given(graph: fx.GraphModule, example: tuple) -> nn.Module:
    """The same, handing out 4-D results in NCHW where all that came was NCHW."""
    plain = all(not isinstance(v, Tensor) or v.dim() != 4 or v.is_contiguous() for v in example)
    return Contiguous(graph) if plain and any(t.dim() == 4 for t in _flat(graph(*example))) else graph


class Contiguous(nn.Module):
    """A model whose 4-D outputs are handed out in NCHW order, as its NCHW inputs came."""

    def __init__(self, model: nn.Module):
        super().__init__()
        self.model = model

    def forward(self, *inputs: Any) -> Any:
        return torch.utils._pytree.tree_map_only(Tensor, Tensor.contiguous, self.model(*inputs))


def _flat(output: Any) -> list[Tensor]:
    return [leaf for leaf in torch.utils._pytree.tree_leaves(output) if isinstance(leaf, Tensor)]


def _difference(expected: list[Tensor], found: list[Tensor]) -> float:
    """Largest difference of an output, relative to its largest magnitude."""
    worst = 0.0
    for e, f in zip(expected, found, strict=True):
        if e.numel() and e.is_floating_point():
            worst = max(worst, float((e.double() - f.double()).abs().max() / e.double().abs().max().clamp_min(1e-300)))
    return worst


def _allowed(expected: list[Tensor]) -> float:
    """Rounding grows with depth; what is wrong is wrong by far more than the root of a unit in the last place."""
    return max((torch.finfo(t.dtype).eps for t in expected if t.is_floating_point()), default=0.0) ** 0.5
