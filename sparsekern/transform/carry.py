"""A layer in another's place: its weights without what stands around them, and what stands around them for the new one."""

from __future__ import annotations

import copy
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel
from torch.nn.utils import parametrize

from sparsekern.nn import GroupedConv2d
from sparsekern.nn.computed import COMPUTING, now

HOOKS = (
    "_forward_hooks", "_forward_hooks_with_kwargs", "_forward_hooks_always_called", "_forward_pre_hooks", "_forward_pre_hooks_with_kwargs",
    "_backward_hooks", "_backward_pre_hooks", "_is_full_backward_hook",
)  # fmt: skip


def duplicate(model: nn.Module) -> nn.Module:
    """A deep copy, also of a pruned model, whose weights are no leaves of autograd and would refuse."""
    memo: dict[int, Any] = {}
    for module in model.modules():
        for value in vars(module).values():
            if isinstance(value, Tensor) and not value.is_leaf:
                memo[id(value)] = value.detach().clone()
    return copy.deepcopy(model, memo)


class Holder(nn.Module):
    """A model inside another, so that the model itself has a place in which another may stand."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        return self.model(*args, **kwargs)


def check_model(who: str, model: Any) -> None:
    """Whether layers of ``model`` can be replaced so that those who run it see it."""
    if not isinstance(model, nn.Module):
        raise ValueError(f"{who}: model must be an nn.Module; got {type(model).__name__}")
    if isinstance(model, (torch.jit.ScriptModule, DistributedDataParallel)) or hasattr(model, "_orig_mod"):
        rule = "as it is before torch.compile, torch.jit or DistributedDataParallel"
        raise ValueError(f"{who}: model must be {rule}; got {type(model).__name__}")


def torch_type(layer: nn.Module) -> type[nn.Module]:
    """The layer's class, also where a parametrization has put one of its own in its place."""
    return parametrize.type_before_parametrizations(layer)


# ---- the weight, and the mask over it


def is_pruned(layer: nn.Module, name: str = "weight") -> bool:
    """Whether ``torch.nn.utils.prune`` computes this parameter from two others."""
    return f"{name}_orig" in layer._parameters and f"{name}_mask" in layer._buffers


@torch.no_grad()
def value(layer: Any, name: str) -> Tensor | None:
    """The parameter as the next call will use it."""
    found = now(layer, name)
    return None if found is None else found.detach()


def mask_of(layer: Any) -> Tensor | None:
    """Bool of the weight's shape: what pruning keeps, else what is not 0; None where that is everything."""
    mask: Any = layer.weight_mask.bool() if is_pruned(layer) else value(layer, "weight") != 0
    return None if bool(mask.all()) else mask


def trains(layer: nn.Module, name: str) -> bool:
    """Whether the parameter is trained, also one that is computed from others or belongs to parts."""
    return any(p.requires_grad for key, p in layer.named_parameters() if {name, f"{name}_orig"} & {*key.split(".")})


def plain(layer: Any) -> Any:
    """The layer of torch (or a :class:`GroupedConv2d`) with the same weight and bias, shared, and nothing else: no hooks, no masks."""
    weight, bias = value(layer, "weight"), value(layer, "bias")
    if isinstance(layer, nn.Linear):
        twin: nn.Module = nn.Linear(layer.in_features, layer.out_features, bias is not None, device="meta")
    else:
        kind: Any
        kind, more = (GroupedConv2d, {"activation": layer.activation}) if isinstance(layer, GroupedConv2d) else (nn.Conv2d, {})
        twin = kind(
            layer.in_channels, layer.out_channels, layer.kernel_size, layer.stride, layer.padding, layer.dilation, layer.groups,
            bias is not None, layer.padding_mode, device="meta", **more,
        )  # fmt: skip
    for name, tensor in (("weight", weight), ("bias", bias)):
        if tensor is not None:
            setattr(twin, name, nn.Parameter(tensor, requires_grad=trains(layer, name)))
    return twin.train(layer.training)


# ---- what the new layer takes over


def as_trained(old: nn.Module, new: nn.Module) -> nn.Module:
    """Give ``new`` the mode of ``old``, and freeze what is frozen there; returns it."""
    trained = {name: trains(old, name) for name in ("weight", "bias")}
    for name, parameter in new.named_parameters():
        parameter.requires_grad_(trained[name.rpartition(".")[2]])
    return new.train(old.training)


def carry_over(old: nn.Module, new: Any) -> nn.Module:
    """Give ``new`` the hooks of ``old``, and what somebody has hung on it; returns it."""
    computing = {key for key, hook in old._forward_pre_hooks.items() if isinstance(hook, COMPUTING)}
    for name in HOOKS:
        hooks = vars(old)[name]
        if computing and name.startswith("_forward_pre_hooks"):
            hooks = type(hooks)((key, hook) for key, hook in hooks.items() if key not in computing)
        vars(new)[name] = hooks  # the very same: handles given out stay good
    attributes = _own_attributes(old)
    for name in attributes:
        setattr(new, name, vars(old)[name])
    if attributes:
        new._carried = tuple(attributes)  # torch's layers and ours hold different things beside: the way back knows these by name
    return new


def _own_attributes(layer: Any) -> list[str]:
    """What somebody has hung on a layer of torch's (or a :class:`GroupedConv2d`) beside what it is made of, or on what it was before."""
    if hasattr(layer, "_carried"):
        return [name for name in layer._carried if name in vars(layer)]
    if not isinstance(layer, (nn.Linear, nn.Conv2d)):
        return []
    usual = vars(plain(layer)).keys() | {"_packed", "_packed_for", "_carried"}
    return [name for name, attribute in vars(layer).items() if name not in usual and not isinstance(attribute, Tensor)]
