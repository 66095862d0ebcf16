"""What every convolutional model here is built from: a named conv unit and initialisations by true fan-in."""

from __future__ import annotations

import inspect
import math
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, nn

ConvFactory = Callable[..., nn.Module]  # called as torch.nn.Conv2d is
Groups = int | Sequence[tuple[int, int]]  # equal groups by their number, or unequal ones by their (in, out) channels


def default_conv() -> ConvFactory:
    """The convolution a model uses unless it is given another: :class:`sparsekern.nn.GroupedConv2d`."""
    from sparsekern.nn.grouped_conv2d import GroupedConv2d

    return GroupedConv2d


def make_conv(
    conv: ConvFactory,
    in_channels: int,
    out_channels: int,
    kernel_size: int,
    *,
    stride: int = 1,
    padding: int | None = None,
    groups: Groups = 1,
    bias: bool = True,
    relu: bool = False,
) -> tuple[nn.Module, bool]:
    """Return a convolution, "same" padding unless told, and whether it computes the ReLU that was asked for.

    A factory that takes ``activation=`` (ours does) can compute the ReLU while the result is still in registers; with any
    other factory the caller adds ``nn.ReLU``. Parameter names are the same either way, so a ``state_dict`` fits both.
    """
    options: dict = {"stride": stride, "padding": kernel_size // 2 if padding is None else padding, "bias": bias}
    options |= {"group_sizes": list(groups)} if isinstance(groups, Sequence) else {"groups": groups}
    fused = relu and "activation" in inspect.signature(conv).parameters
    if fused:
        options["activation"] = "relu"
    return conv(in_channels, out_channels, kernel_size, **options), fused


def conv_unit(
    conv: ConvFactory,
    name: str,
    in_channels: int,
    out_channels: int,
    kernel_size: int,
    *,
    stride: int = 1,
    padding: int | None = None,
    groups: Groups = 1,
    bias: bool = True,
    batch_norm: bool = False,
) -> dict[str, nn.Module]:
    """Return the named modules of *convolution, batch-norm if asked for, ReLU*, "same" padding unless told.

    Returns:
        ``{"conv2a": ..., "bn2a": ..., "relu2a": ...}``, ready for an ``nn.Sequential``; no ``relu2a`` where it is fused.
    """
    layer, fused = make_conv(
        conv, in_channels, out_channels, kernel_size,
        stride=stride, padding=padding, groups=groups, bias=bias, relu=not batch_norm,
    )  # fmt: skip
    units: dict[str, nn.Module] = {f"conv{name}": layer}
    if batch_norm:
        units[f"bn{name}"] = nn.BatchNorm2d(out_channels)
    if not fused:
        units[f"relu{name}"] = nn.ReLU(inplace=True)
    return units


def add_relu(conv: Any, x: Tensor, shortcut: Tensor) -> Tensor:
    """``relu(conv(x) + shortcut)``, the end of a residual block; in one pass where the convolution offers ``add_relu``."""
    if hasattr(conv, "add_relu"):
        return conv.add_relu(x, shortcut)
    return torch.relu_(conv(x).add_(shortcut))


def he_init_(model: nn.Module, generator: torch.Generator | None = None) -> nn.Module:
    """Fill conv weights with N(0, 2 / fan_in) and biases with zero, in place.

    ``fan_in = (C/G)*KH*KW`` is what one output really sums: the row size of a grouped weight ``[K, C/G, KH, KW]``. Layers that
    know their own fan-in better (masks, fixed fan-in) have no such weight and keep what they drew.

    Source: He et al., arXiv 1502.01852, equation 10; used by Deep Roots, section 4.1.
    """
    for module in model.modules():
        weight = getattr(module, "weight", None)
        if not isinstance(module, nn.Conv2d) or not isinstance(weight, torch.Tensor):
            continue
        with torch.no_grad():
            weight.normal_(0.0, math.sqrt(2.0 / weight[0].numel()), generator=generator)
            if module.bias is not None:
                module.bias.zero_()
    return model


def linear_init_(layer: nn.Linear, generator: torch.Generator | None = None, *, relu: bool = False) -> nn.Linear:
    """Fill ``weight [out, in]`` with N(0, 1 / in), or N(0, 2 / in) where a ReLU follows, and the bias with zero, in place.

    Source: He et al., arXiv 1502.01852, section 2.2: the factor 2 makes up for the half that a ReLU removes.
    """
    with torch.no_grad():
        layer.weight.normal_(0.0, math.sqrt((2.0 if relu else 1.0) / layer.in_features), generator=generator)
        if layer.bias is not None:
            layer.bias.zero_()
    return layer
