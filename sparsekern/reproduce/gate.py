"""The gate before any timing: every layer of every competitor against float64, within a bound that is proved.

A sum of n products and a bias in float32, in any order and with or without fused multiply-add, is off by at most

    gamma(n + 1) * (sum |w * x| + |bias|),   gamma(m) = m*u / (1 - m*u),   u = 2**-24

(Higham, Accuracy and Stability of Numerical Algorithms, section 3.1). ReLU never enlarges a difference.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

import torch.nn.functional as F
from torch import Tensor, nn

UNIT_ROUNDOFF = 2.0**-24


class WrongResult(RuntimeError):
    """A competitor does not compute what it should; nothing of the table is timed."""


@dataclass(frozen=True)
class LayerTruth:
    """A convolution with its ReLU: input in float32, the truth and the largest allowed error in float64."""

    x: Tensor  # [N, C, H, W] float32, the whole batch
    images: list[int]  # which images of the batch are compared
    out: Tensor  # [len(images), K, OH, OW] float64
    bound: Tensor  # same shape


def layer_truths(model: nn.Sequential, x: Tensor) -> dict[str, LayerTruth]:
    """Run ``model`` (built from ``nn.Conv2d``) in float32 and work out each convolution's truth on the input it met.

    The whole batch is run, since kernels are chosen by its size; the first and the last image are compared.
    """
    images = sorted({0, len(x) - 1})
    truths: dict[str, LayerTruth] = {}
    for name, layer in model.named_children():
        if isinstance(layer, nn.Conv2d):
            truths[name] = _truth(layer, x.clone(), images)
        x = layer(x)
    return truths


def _truth(conv: nn.Conv2d, x: Tensor, images: list[int]) -> LayerTruth:
    settings = (conv.stride, conv.padding, conv.dilation, conv.groups)
    x64, weight, bias = x[images].double(), conv.weight.double(), conv.bias.double()
    out = F.conv2d(x64, weight, bias, *settings).relu_()
    m = weight[0].numel() + 1
    gamma = m * UNIT_ROUNDOFF / (1 - m * UNIT_ROUNDOFF)
    bound = F.conv2d(x64.abs(), weight.abs(), bias.abs(), *settings).mul_(gamma)
    return LayerTruth(x, images, out, bound)


def check_layers(model: nn.Module, prepare: Callable[[Tensor], Tensor], truths: Mapping[str, LayerTruth], who: str) -> None:
    """Raise :class:`WrongResult` unless every convolution of ``model`` is within its bound.

    Args:
        prepare: brings an input into the layout that ``model`` runs in.
        who: model and competitor, for the message.
    """
    for name, truth in truths.items():
        layer = getattr(model, name)
        out = layer(prepare(truth.x))[truth.images].double()
        if getattr(layer, "activation", "none") != "relu":
            out = out.relu()
        excess = (out - truth.out).abs() - truth.bound
        if out.shape != truth.out.shape or not bool((excess <= 0).all()):  # not(<=) is also true for NaN
            raise WrongResult(
                f"reproduce: {name} of {who} must be within the float32 bound of the float64 result; "
                f"got {excess.max().item():.3g} beyond it"
            )


def check_output(model: nn.Module, x: Tensor, expected: Tensor, images: list[int], num_sums: int, who: str) -> None:
    """Raise :class:`WrongResult` unless the whole model's output is near float64: layers are right, now their order is.

    Args:
        expected: ``[len(images), classes]`` float64.
        num_sums: products along the longest path (sum of fan-ins); to first order each adds one relative rounding.
    """
    out = model(x)[images].double()
    error = ((out - expected).norm() / expected.norm()).item()
    if not error <= num_sums * UNIT_ROUNDOFF:
        raise WrongResult(
            f"reproduce: output of {who} must be within {num_sums * UNIT_ROUNDOFF:.2g} of the float64 result; got {error:.3g}"
        )
