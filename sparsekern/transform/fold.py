"""Batch-norm into the layer before it: in inference it is a factor and a term per output channel.

y = (W x + b - mean) * s + beta, s = gamma / sqrt(var + eps)   =   (s W) x + (b - mean) * s + beta
"""

from __future__ import annotations

from functools import singledispatch
from typing import Any

import torch
from torch import Tensor, fx, nn

from sparsekern.nn import GroupedConv2d, SparseLinear, StochasticConv2d, UnequalGroupedConv2d
from sparsekern.transform.graph import drop, layers, module_of, one_argument, only_call, only_reader, seen_dim
from sparsekern.transform.tracing import hooked

BATCH_NORMS = (nn.BatchNorm1d, nn.BatchNorm2d)


@singledispatch
def rows(layer: nn.Module, per_channel: Tensor) -> Tensor | None:
    """A value per output channel, spread to multiply the layer's weight; None for a layer that cannot take one."""
    return None


@rows.register(GroupedConv2d)
@rows.register(nn.Conv2d)
def _(layer: nn.Conv2d, per_channel: Tensor) -> Tensor:
    return per_channel[:, None, None, None]  # [K, C/G, KH, KW]


@rows.register
def _(layer: nn.Linear, per_channel: Tensor) -> Tensor:
    return per_channel[:, None]


@rows.register
def _(layer: SparseLinear, per_channel: Tensor) -> Tensor:
    if layer.weight.dim() == 2:
        return per_channel[:, None]  # [OB, F]
    return per_channel.reshape(layer.weight.shape[0], 1, -1, 1)  # [OB, F, BO, BI]


@rows.register
def _(layer: StochasticConv2d, per_channel: Tensor) -> Tensor:
    """``[nnz, BO, BI, BT]``: each kept block belongs to the output block whose range of ``indptr`` it is in."""
    counts = layer.indptr.diff().long()
    owner = torch.repeat_interleave(torch.arange(len(counts), device=counts.device), counts)
    return per_channel.reshape(len(counts), -1)[owner][:, :, None, None]


@rows.register
def _(layer: UnequalGroupedConv2d, per_channel: Tensor) -> None:
    return None  # a weight per run of equal groups


def _fits(layer: nn.Module, norm: nn.Module, read: fx.Node) -> bool:
    """Whether the channels of the norm are the outputs of the layer: behind a linear layer only where each row is one."""
    if isinstance(layer, (nn.Linear, SparseLinear)):
        return type(norm) is nn.BatchNorm1d and seen_dim(read) == 2 and norm.num_features == layer.out_features
    return type(norm) is nn.BatchNorm2d and norm.num_features == layer.out_channels


def _rows_alone(graph: fx.GraphModule, node: fx.Node, source: fx.Node) -> fx.Node:
    """What the layer gives, refused in another number of dimensions: there the norm would have taken another one for the channels."""
    with graph.graph.inserting_after(node):
        checked = graph.graph.call_function(must_be_rows, (source, str(node.target)))
    checked.meta = dict(node.meta)
    return checked


def must_be_rows(x: Any, norm: str) -> Any:
    """``x``, or raise unless each row of it is one of a batch."""
    if isinstance(x, fx.Proxy):
        return x.tracer.create_proxy("call_function", must_be_rows, (x, norm), {})
    if x.dim() != 2:
        raise ValueError(f"optimize: what {norm} reads must have 2 dimensions, as in the example; got {list(x.shape)}")
    return x


def fold_batch_norm(graph: fx.GraphModule) -> list[str]:
    """Fold every batch-norm that alone reads a layer which can take it, in a graph that :func:`record` ran. Returns the names of those
    that went."""
    folded = []
    for node, norm in layers(graph, *BATCH_NORMS):
        source: Any = node.args[0] if one_argument(node) else None
        layer = module_of(graph, source)
        if type(layer) not in rows.registry or norm.running_var is None or getattr(layer, "activation", "none") != "none":
            continue  # a class derived from torch's may do more than its weight says
        if not (only_reader(source) and only_call(graph, source) and _fits(layer, norm, source)) or hooked(norm):
            continue
        with torch.no_grad():
            scale = torch.rsqrt(norm.running_var + norm.eps)
            scale = scale if norm.weight is None else scale * norm.weight
            spread = rows(layer, scale)
            if spread is None:
                continue
            bias = norm.running_mean.neg() if layer.bias is None else layer.bias - norm.running_mean
            bias = bias * scale if norm.bias is None else bias * scale + norm.bias
            layer.weight = nn.Parameter(layer.weight * spread.to(layer.weight.dtype), requires_grad=False)
            layer.bias = nn.Parameter(bias.to(layer.weight.dtype), requires_grad=False)
            if getattr(layer, "_packed", None) is not None:
                layer.unpack()  # it holds the weight as it was
        drop(graph, node, _rows_alone(graph, node, source) if type(norm) is nn.BatchNorm1d else source)
        folded.append(str(node.target))
    return folded
