"""The dense twin of a sparse layer, and how many times faster than it the layer really is.

A layer is sparse where it offers ``to_dense()``, or has filter groups; nothing else is known of it. Both run alone, on numbers of the
shape and layout that the layer saw in its model, in interleaved rounds: a twin of a layer that fits the caches is timed in them.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from sparsekern.measure.protocol import interleave, ratio
from sparsekern.profile.meter import Like, Seen, counting

MIN_TIME_MS = 1.0


@dataclass(frozen=True)
class Twin:
    """How many times the FLOPs, and how many times the time, of the sparse layer its dense twin takes."""

    flop_ratio: float
    speedup: tuple[float, float, float]  # p20, median, p80


def dense_twin(module: Any) -> nn.Module | None:
    """A dense layer of the same shape, in the same mode; None for what is dense, or has no such thing.

    Example:
        >>> dense_twin(nn.Conv2d(8, 16, 3, groups=4))
        Conv2d(8, 16, kernel_size=(3, 3), stride=(1, 1))
        >>> dense_twin(nn.Linear(4, 4)) is None
        True
    """
    if getattr(module, "density", 0.5) == 1:
        return None
    if hasattr(module, "to_dense"):
        return module.to_dense().train(module.training)
    if isinstance(module, nn.Sequential):  # computes with layers that it does not call
        twins = [dense_twin(child) for child in module]
        joined = nn.Sequential(*(child if twin is None else twin for child, twin in zip(module, twins)))
        return joined.train(module.training) if any(twin is not None for twin in twins) else None
    if type(module) is nn.Conv2d and module.groups > 1:
        weight = module.weight
        conv: Any = module  # torch types what it stores as tuples of any length
        dense = nn.Conv2d(
            conv.in_channels, conv.out_channels, conv.kernel_size, conv.stride, conv.padding, conv.dilation, 1,
            conv.bias is not None, conv.padding_mode, device=weight.device, dtype=weight.dtype,
        )  # fmt: skip
        return dense.train(module.training)
    return None


def dense_twins(seen: dict[str, Seen], containers: set[str], backward: bool, rounds: int) -> dict[str, Twin]:
    """By path, the twin of every layer that has one; of layers inside one another the outermost. Equal layers are timed once.

    A container, which called its children, has one only where it says so (``to_dense``).
    """
    found: dict[str, Twin] = {}
    known: dict[tuple, Twin | None] = {}
    for path, layer in seen.items():
        inside = any(path.startswith(f"{other}.") for other in found)
        only_holds = path in containers and not hasattr(layer.module, "to_dense")
        if inside or only_holds or not layer.like or layer.like[0].device.type != "cpu":
            continue
        key = (repr(layer.module), layer.like, layer.module.training)
        if key not in known:
            known[key] = _measured(layer.module, layer.like, backward, rounds)
        twin = known[key]
        if twin is not None:
            found[path] = twin
    return found


def _measured(module: nn.Module, likes: tuple[Like, ...], backward: bool, rounds: int) -> Twin | None:
    dense: Any = dense_twin(module)
    if dense is None:
        return None
    xs = [like.make() for like in likes]
    if xs[0].dim() == 4 and xs[0].is_contiguous(memory_format=torch.channels_last) and not xs[0].is_contiguous():
        dense = dense.to(memory_format=torch.channels_last)
    flops = {name: _flops(layer, xs) for name, layer in (("sparse", module), ("dense", dense))}
    if not flops["sparse"]:
        return None
    with torch.set_grad_enabled(backward):
        calls = {name: _call(layer, xs, backward) for name, layer in (("sparse", module), ("dense", dense))}
        times = interleave(calls, rounds=rounds, min_time_ms=MIN_TIME_MS)
    clock = "cpu" if torch.get_num_threads() == 1 else "wall"  # of one thread it tells more on a shared core
    return Twin(flops["dense"] / flops["sparse"], ratio(times["sparse"].by(clock), times["dense"].by(clock)))


def _flops(layer: nn.Module, xs: list[Tensor]) -> int:
    with counting() as counter, torch.no_grad():
        layer(*xs)
    return counter.get_total_flops()


def _call(layer: nn.Module, xs: list[Tensor], backward: bool) -> Callable[[], Any]:
    if not backward:
        return lambda: layer(*xs)
    leaves = [t for t in (*layer.parameters(), *xs) if t.requires_grad]
    grad_out = torch.ones_like(layer(*xs))
    return lambda: torch.autograd.grad(layer(*xs), leaves, grad_out)
