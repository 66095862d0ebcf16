"""to_dense: the way back from sparse layers to torch's, for a whole model."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Iterator
from typing import Any

from torch import fx, nn

from sparsekern.arguments import check_flag
from sparsekern.nn import GroupedConv2d, RootModule, SparseLinear, StochasticConv2d
from sparsekern.nn.side_by_side import ConvsSideBySide
from sparsekern.transform.carry import Holder, as_trained, carry_over, check_model, duplicate, plain
from sparsekern.transform.convert_report import ConvertReport
from sparsekern.transform.places import Places, restore_fast_paths
from sparsekern.transform.tracing import Tracer

OURS = (SparseLinear, StochasticConv2d, GroupedConv2d, ConvsSideBySide, RootModule)


def to_dense(model: nn.Module, *, keep_groups: bool = False, inplace: bool = False) -> nn.Module:
    """A copy of ``model`` in which every sparse layer is torch's own again, with zeros where nothing was kept: the same function.

    For what knows torch's layers alone, such as ONNX or a compiler of another vendor. It takes back what :func:`convert` did, names
    included, and works for any model with layers of ours; mode, frozen parameters, hooks, dtype and device stay.

    Args:
        model: any module, not one that :func:`optimize` made.
        keep_groups: a :class:`~sparsekern.nn.GroupedConv2d` becomes an ``nn.Conv2d`` with its ``groups`` and weights in place of one
            with zeros between the groups.
        inplace: change ``model`` itself.

    Returns:
        The model. A layer that computed its own ReLU is an ``nn.Sequential`` of two layers now.

    Raises:
        ValueError: ``to_dense: model must be as it was before optimize(); got one that holds RootChain``

    Cost:
        The memory of the dense weights; without ``inplace`` also a copy of the model.

    Example:
        >>> net = nn.Sequential(sparsekern.SparseLinear(64, 32, density=0.1), nn.ReLU(), nn.Linear(32, 10))
        >>> dense = to_dense(net)
        >>> dense[0], torch.allclose(dense(torch.ones(1, 64)), net(torch.ones(1, 64)), atol=1e-5)
        (Linear(in_features=64, out_features=32, bias=True), True)
    """
    check_model("to_dense", model)
    check_flag("to_dense", keep_groups=keep_groups, inplace=inplace)
    made = [type(module).__name__ for module in model.modules() if type(module).__module__.startswith("sparsekern.transform")]
    made += ["a graph" for module in model.modules() if isinstance(module, fx.GraphModule) and vars(module).get("_tracer_cls") is Tracer]
    if made:
        raise ValueError(f"to_dense: model must be as it was before optimize(); got one that holds {made[0]}")
    holder = Holder(model if inplace else duplicate(model))
    Places(holder, {layer: dense_of(layer, keep_groups) for layer in _found(holder)}).put(after=True)
    restore_fast_paths(holder)
    if isinstance(vars(holder.model).get("report"), ConvertReport):
        del holder.model.report
    return holder.model


def _found(module: nn.Module) -> Iterator[nn.Module]:
    """Layers of ours, the outermost where they hold each other."""
    for child in module.children():
        if isinstance(child, OURS):
            yield child
        else:
            yield from _found(child)


def dense_of(layer: Any, keep_groups: bool = False) -> nn.Module:
    """The layer of torch that computes what a layer of ours does, in its place."""
    if isinstance(layer, RootModule):
        return carry_over(layer, nn.Sequential(OrderedDict((name, dense_of(part, keep_groups)) for name, part in layer.named_children())))
    if keep_groups and isinstance(layer, GroupedConv2d):
        dense = _with_groups(layer)
    else:
        dense = layer.to_dense()
    return carry_over(layer, as_trained(layer, dense))


def _with_groups(layer: GroupedConv2d) -> nn.Module:
    held = plain(layer)
    dense = nn.Conv2d(
        layer.in_channels, layer.out_channels, layer.kernel_size, layer.stride, layer.padding, layer.dilation, layer.groups,
        layer.bias is not None, layer.padding_mode, device="meta",
    )  # fmt: skip
    dense.weight = nn.Parameter(held.weight.detach().clone())
    if held.bias is not None:
        dense.bias = nn.Parameter(held.bias.detach().clone())
    return nn.Sequential(dense, nn.ReLU()) if layer.activation == "relu" else dense
