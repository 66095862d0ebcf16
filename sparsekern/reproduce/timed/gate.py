"""The gate before any timing: every layer of every competitor against float64, within a bound that is proved.

A sum of n products and a bias in float32, in any order and with or without fused multiply-add, is off by at most

    gamma(n + 1) * (sum |w * x| + |bias|),   gamma(m) = m*u / (1 - m*u),   u = 2**-24

(Higham, Accuracy and Stability of Numerical Algorithms, section 3.1); n counts the nonzero weights, since adding a zero
is exact. A shortcut that is added is one more term, at whatever place. ReLU never enlarges a difference.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from sparsekern.reproduce.timed.rivals import has_relu, is_conv, torch_conv, torch_linear

UNIT_ROUNDOFF = 2.0**-24


class WrongResult(RuntimeError):
    """A competitor does not compute what it should; nothing of the table is timed."""


@dataclass(frozen=True)
class LayerTruth:
    """One layer, with its ReLU if it has one: the truth and the largest allowed error of some images, in float64."""

    images: list[int]  # which images of the batch are compared
    out: Tensor  # [len(images), ...]
    magnitude: Tensor  # same shape: the sum of the terms' magnitudes
    terms: int  # products and bias
    relu: bool

    @property
    def bound(self) -> Tensor:
        return self.magnitude * gamma(self.terms)

    def plus(self, shortcut: Tensor) -> LayerTruth:
        """The truth of ``relu(layer(x) + shortcut)``, for a layer without ReLU: one more term in every sum."""
        s = shortcut[self.images].double()
        return LayerTruth(self.images, (self.out + s).relu_(), self.magnitude + s.abs(), self.terms + 1, True)


def gamma(m: int) -> float:
    return m * UNIT_ROUNDOFF / (1 - m * UNIT_ROUNDOFF)


def some_images(batch: int) -> list[int]:
    """The first and the last image: kernels are chosen by the size of the whole batch, which is run."""
    return sorted({0, batch - 1})


def terms(layer: Any) -> int:
    """The most terms that one output of ``layer`` sums up: its nonzero weights and the bias."""
    weight = layer.weight_dense() if hasattr(layer, "weight_dense") else layer.weight
    return int((weight != 0).flatten(1).sum(1).max()) + 1


def layer_truth(layer: nn.Module, x: Tensor) -> LayerTruth:
    """Work out in float64 what ``layer`` computes of ``x``, from its weights alone: no kernel of ours takes part.

    Args:
        layer: any convolution or linear layer, ours or torch's; ours are taken by ``weight_dense()`` where they have masks.
        x: ``[N, C, H, W]`` or ``[N, features]`` float32; the first and the last image are compared.
    """
    images = some_images(len(x))
    x64 = x[images].double()
    plain: Any = torch_conv(layer, nn.Conv2d) if is_conv(layer) else torch_linear(layer)
    plain = getattr(plain, "conv", plain)
    weight, bias = plain.weight.double(), None if plain.bias is None else plain.bias.double()

    def product(x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        return plain._conv_forward(x, weight, bias) if isinstance(plain, nn.Conv2d) else F.linear(x, weight, bias)

    out = product(x64, weight, bias)
    magnitude = product(x64.abs(), weight.abs(), None if bias is None else bias.abs())
    return LayerTruth(images, out.relu_() if has_relu(layer) else out, magnitude, terms(layer), has_relu(layer))


def check_layer(layer: Any, x: Tensor, truth: LayerTruth, who: str) -> None:
    """Raise :class:`WrongResult` unless ``layer`` is within its bound on ``x``, with a shortcut too where it adds one.

    Args:
        who: layer, model and competitor, for the message.
    """
    _compare(layer(x), truth, who)
    if hasattr(layer, "add_relu") and not truth.relu:
        shape = (len(x), *truth.out.shape[1:])
        shortcut = torch.randn(shape, generator=torch.Generator().manual_seed(1), dtype=x.dtype)
        if x.dim() == 4 and x.is_contiguous(memory_format=torch.channels_last):
            shortcut = shortcut.contiguous(memory_format=torch.channels_last)
        expected = truth.plus(shortcut)  # before the call, which may write into its shortcut
        _compare(layer.add_relu(x, shortcut), expected, f"add_relu of {who}")


def _compare(out: Tensor, truth: LayerTruth, who: str) -> None:
    out = out[truth.images].double()
    right_shape = out.shape == truth.out.shape
    excess = (out - truth.out).abs() - truth.bound if right_shape else torch.tensor(float("nan"))
    if not bool((excess <= 0).all()):  # not(<=) is also true for NaN
        raise WrongResult(
            f"reproduce: {who} must be within the float32 bound of the float64 result; got {excess.max().item():.3g} beyond it"
        )


def check_output(out: Tensor, expected: Tensor, images: list[int], num_sums: int, who: str) -> None:
    """Raise :class:`WrongResult` unless the whole model's output is near float64: layers are right, now their order is.

    Args:
        expected: ``[len(images), classes]`` float64.
        num_sums: terms of all layers, no fewer than along the longest path; to first order each adds one relative rounding.
    """
    error = ((out[images].double() - expected).norm() / expected.norm()).item()
    if not error <= num_sums * UNIT_ROUNDOFF:
        raise WrongResult(
            f"reproduce: output of {who} must be within {num_sums * UNIT_ROUNDOFF:.2g} of the float64 result; got {error:.3g}"
        )


def check_layers(models: Mapping[str, tuple], layers: Mapping[str, nn.Module], inputs: Mapping[str, Tensor]) -> None:
    """Hold every layer of several models against the same truths, which live no longer than their layer's turn.

    Args:
        models: model and competitor, for messages -> (the model, ``prepare``: brings an input into its layout).
        layers: the layers that define the function, by module path.
        inputs: what met each of them, same keys.

    Raises:
        WrongResult: ``reproduce: conv1a of nin by ... must be within the float32 bound of the float64 result; got ...``
    """
    for path, layer in layers.items():
        truth = layer_truth(layer, inputs[path])
        for who, (model, prepare) in models.items():
            check_layer(model.get_submodule(path), prepare(inputs[path]), truth, f"{path} of {who}")
