"""Layers of torch that a comparison runs in the place of ours: the fastest ways it has to compute the same function.

They hold frozen weights and are for measuring only. ``dense_layer`` gives the plain layer of the same values, which is
the rival's starting point and the truth's.
"""

from __future__ import annotations

import inspect
import warnings
from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from sparsekern.models.parts import ConvFactory


class PrepackedConv2d(nn.Conv2d):
    """The strongest dense rival on CPU: oneDNN with weights reordered beforehand and the ReLU fused.

    Takes the arguments of ``nn.Conv2d`` and ``activation``. The weight is packed at the first forward and never again.
    """

    def __init__(self, *args: Any, activation: str = "none", **options: Any):
        super().__init__(*args, **options)
        self.activation = activation
        self._packed: Tensor | None = None

    def forward(self, x: Tensor, shortcut: Tensor | None = None) -> Tensor:
        shape = (self.padding, self.stride, self.dilation, self.groups)
        if self._packed is None:
            weight = self.weight.detach().contiguous(memory_format=torch.channels_last)
            self._packed = torch.ops.mkldnn._reorder_convolution_weight(weight, *shape, list(x.shape))
        convolve = torch.ops.mkldnn._convolution_pointwise
        if shortcut is None:
            return convolve(x, self._packed, self.bias, *shape, self.activation, [], "")
        return convolve.binary(x, shortcut, self._packed, self.bias, *shape, "add", 1.0, "relu", [], "")

    def add_relu(self, x: Tensor, shortcut: Tensor) -> Tensor:
        """``relu(conv(x) + shortcut)`` in one pass; goes through ``__call__`` so that hooks see it."""
        return self(x, shortcut)


class PrepackedLinear(nn.Linear):
    """MKL with the weight reordered beforehand for the batch of the first forward; other batches take ``F.linear``."""

    _packed: tuple[int, Tensor] | None = None

    def forward(self, x: Tensor) -> Tensor:
        if self._packed is None:
            self._packed = len(x), torch.ops.mkl._mkl_reorder_linear_weight(self.weight.detach(), len(x))
        batch, packed = self._packed
        if len(x) != batch or x.dim() != 2:
            return super().forward(x)
        return torch.ops.mkl._mkl_linear(x, packed, self.weight, self.bias, batch)

    def __getstate__(self) -> dict:
        return {name: value for name, value in self.__dict__.items() if name != "_packed"}  # opaque: a copy packs its own


class CsrLinear(nn.Linear):
    """``F.linear`` with torch's compressed sparse rows, made of the weight's nonzeros at the first forward."""

    _csr: Tensor | None = None

    def forward(self, x: Tensor) -> Tensor:
        if self._csr is None:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")  # torch's notice that CSR is in beta state
                self._csr = self.weight.detach().to_sparse_csr()
        return F.linear(x, self._csr, self.bias)


class FewImages(nn.Module):
    """A model on a few images at a time, so that what is between its layers stays in a cache, and its results joined."""

    def __init__(self, model: nn.Module, images: int):
        super().__init__()
        self.model, self.images = model, images

    def forward(self, x: Tensor) -> Tensor:
        return torch.cat([self.model(some) for some in x.split(self.images)])


class ConvReLU(nn.Module):
    """A convolution that has no ReLU of its own, and the ReLU behind it, under one name."""

    def __init__(self, conv: nn.Module):
        super().__init__()
        self.conv = conv

    def forward(self, x: Tensor) -> Tensor:
        return self.conv(x).relu_()


# ---- from any layer to torch's


def is_conv(layer: nn.Module) -> bool:
    """Whether ``layer`` is a convolution of torch's or ours."""
    return isinstance(layer, nn.Conv2d) or (hasattr(layer, "weight_dense") and hasattr(layer, "kernel_size"))


def is_linear(layer: nn.Module) -> bool:
    """Whether ``layer`` is a linear layer of torch's or ours."""
    return isinstance(layer, nn.Linear) or (hasattr(layer, "weight_dense") and hasattr(layer, "in_features"))


def is_sparse(layer: nn.Module) -> bool:
    """Whether ``layer`` keeps only some of its dense twin's weights: filter groups, a mask, a fixed fan-in."""
    return getattr(layer, "density", 1.0) < 1.0 or getattr(layer, "groups", 1) > 1


def has_relu(layer: nn.Module) -> bool:
    return getattr(layer, "activation", "none") == "relu"


def torch_conv(layer: Any, conv: ConvFactory) -> nn.Module:
    """``layer`` as ``conv`` computes it, in ``layer``'s equal groups or else dense with zeros, with its ReLU.

    The parameters are ``layer``'s own where they can be.
    """
    weight = layer._parameters.get("weight")
    if not isinstance(layer, nn.Conv2d) or weight is None:  # a mask or unequal groups go by the dense weight
        weight = nn.Parameter(layer.weight_dense().detach(), requires_grad=False)
    bias = layer.bias_dense() if hasattr(layer, "bias_dense") else layer.bias
    options: dict[str, Any] = {"stride": layer.stride, "padding": layer.padding, "dilation": layer.dilation}
    options |= {"groups": layer.in_channels // weight.shape[1], "bias": bias is not None}
    if layer.padding_mode != "zeros":
        options["padding_mode"] = layer.padding_mode
    fuses = has_relu(layer) and "activation" in inspect.signature(conv).parameters
    if fuses:
        options["activation"] = "relu"
    with torch.device("meta"):  # values come from ``layer``
        made = conv(layer.in_channels, layer.out_channels, layer.kernel_size, **options)
    made.weight = weight
    if bias is not None:
        made.bias = bias if isinstance(bias, nn.Parameter) else nn.Parameter(bias.detach(), requires_grad=False)
    return ConvReLU(made) if has_relu(layer) and not fuses else made


def torch_linear(layer: Any, linear: Callable[..., nn.Linear] = nn.Linear) -> nn.Linear:
    """``layer`` as ``linear`` computes it, dense with zeros where ``layer`` has no weight."""
    with torch.device("meta"):
        made = linear(layer.in_features, layer.out_features, layer.bias is not None)
    sparse = hasattr(layer, "weight_dense")
    made.weight = nn.Parameter(layer.weight_dense().detach(), requires_grad=False) if sparse else layer.weight
    if layer.bias is not None:
        made.bias = layer.bias
    return made
