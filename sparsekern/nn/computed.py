"""Parameters that a hook computes from others before each call: pruned ones, and those of torch's older weight and spectral norms."""

from __future__ import annotations

from typing import Any

from torch import Tensor, nn
from torch.nn.utils.prune import BasePruningMethod
from torch.nn.utils.spectral_norm import SpectralNorm
from torch.nn.utils.weight_norm import WeightNorm

COMPUTING = (BasePruningMethod, WeightNorm, SpectralNorm)


def now(layer: nn.Module, name: str) -> Any:
    """The parameter as the next call will use it, differentiable: the attribute is what the last call used."""
    for hook in layer._forward_pre_hooks.values():
        if isinstance(hook, COMPUTING) and name == (hook._tensor_name if isinstance(hook, BasePruningMethod) else hook.name):
            return _computed(hook, layer)
    return getattr(layer, name)


def _computed(hook: Any, layer: nn.Module) -> Tensor:
    if isinstance(hook, BasePruningMethod):
        return hook.apply_mask(layer)
    return hook.compute_weight(layer) if isinstance(hook, WeightNorm) else hook.compute_weight(layer, do_power_iteration=False)
