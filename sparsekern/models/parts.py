"""What every convolutional model here is built from: a named conv unit and the initialisation by true fan-in."""

from __future__ import annotations

import inspect
import math
from collections.abc import Callable

import torch
from torch import nn

ConvFactory = Callable[..., nn.Module]  # called as torch.nn.Conv2d is


def default_conv() -> ConvFactory:
    """The convolution a model uses unless it is given another: :class:`sparsekern.nn.GroupedConv2d`."""
    from sparsekern.nn.grouped_conv2d import GroupedConv2d

    return GroupedConv2d


def conv_unit(
    conv: ConvFactory,
    name: str,
    in_channels: int,
    out_channels: int,
    kernel_size: int,
    *,
    groups: int = 1,
    batch_norm: bool = False,
) -> dict[str, nn.Module]:
    """Return the named modules of *convolution, batch-norm if asked for, ReLU*, "same" padding, with bias.

    A factory that takes ``activation=`` (ours does) computes the ReLU while the result is still in registers; any other
    factory is followed by ``nn.ReLU``. Parameter names are the same either way, so a ``state_dict`` fits both.

    Returns:
        ``{"conv2a": ..., "bn2a": ..., "relu2a": ...}``, ready for an ``nn.Sequential``.
    """
    fused = not batch_norm and "activation" in inspect.signature(conv).parameters
    options = {"padding": kernel_size // 2, "groups": groups, "bias": True}
    units: dict[str, nn.Module] = {}
    if fused:
        units[f"conv{name}"] = conv(in_channels, out_channels, kernel_size, **options, activation="relu")
        return units
    units[f"conv{name}"] = conv(in_channels, out_channels, kernel_size, **options)
    if batch_norm:
        units[f"bn{name}"] = nn.BatchNorm2d(out_channels)
    units[f"relu{name}"] = nn.ReLU(inplace=True)
    return units


def he_init_(model: nn.Module, generator: torch.Generator | None = None) -> nn.Module:
    """Fill conv weights with N(0, 2 / fan_in) and biases with zero, in place.

    ``fan_in = (C/G)*KH*KW`` is what one output really sums: the row size of a grouped weight ``[K, C/G, KH, KW]``.

    Source: He et al., arXiv 1502.01852, equation 10; used by Deep Roots, section 4.1.
    """
    for module in model.modules():
        weight = getattr(module, "weight", None)
        if not isinstance(weight, torch.Tensor) or weight.dim() != 4:
            continue
        with torch.no_grad():
            weight.normal_(0.0, math.sqrt(2.0 / weight[0].numel()), generator=generator)
            if module.bias is not None:
                module.bias.zero_()
    return model
