"""Count parameters, multiply-adds and FLOPs of any model, in one of two conventions.

"flops"       multiply and add count 2; every operation that torch's FlopCounterMode knows, ours included through
              register_flop_formula; params are all of the model's.
"deep_roots"  the rule of Deep Roots (arXiv 1605.06489): one multiply-add is 1; only convolutions and linear layers;
              FLOPS = sum(weights * H_out * W_out) + sum(biases), each bias once per layer; params = weights + biases.
              Batch-norm, ReLU and pooling count nothing.

Both are for one image. Layers are found by forward hooks: any module with a 4-D or 2-D ``weight`` of its own counts,
whatever its type.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field

import torch
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

CONVENTIONS = ("flops", "deep_roots")


@dataclass(frozen=True)
class LayerCount:
    """One layer: ``macs`` are its multiply-adds for one image; ``params`` its weights and biases."""

    name: str
    kind: str
    weight_shape: tuple[int, ...]
    in_shape: tuple[int, ...]  # of one image: [C, H, W] or [features]
    out_shape: tuple[int, ...]
    params: int
    macs: int


@dataclass(frozen=True)
class Count:
    """Totals for one image; ``flops`` follows the ``convention``."""

    convention: str
    params: int
    macs: int
    flops: int
    layers: list[LayerCount] = field(repr=False)


def count(model: nn.Module, input_shape: tuple[int, ...], convention: str = "flops") -> Count:
    """Count one image's work by running the model once, without gradients, in eval mode.

    Args:
        model: any module that maps one floating-point tensor; left as it was found.
        input_shape: shape of one image without the batch dimension, for example ``(3, 32, 32)``.
        convention: ``"flops"`` or ``"deep_roots"``, see the module's text.

    Raises:
        ValueError: ``count: convention must be one of flops, deep_roots; got 'mac'``

    Cost:
        One forward pass of one image.

    Example:
        >>> from torch import nn
        >>> c = count(nn.Conv2d(4, 8, 3, groups=2), (4, 5, 5), convention="deep_roots")
        >>> c.params, c.macs, c.flops     # 8*2*9 + 8, 144 weights at 3x3 positions, + 8 biases
        (152, 1296, 1304)
    """
    if convention not in CONVENTIONS:
        raise ValueError(f"count: convention must be one of {', '.join(CONVENTIONS)}; got {convention!r}")
    input_shape = tuple(input_shape)
    if not input_shape or min(input_shape) < 1:
        raise ValueError(f"count: input_shape must be positive sizes of one image, like (3, 32, 32); got {input_shape}")
    like = next((p for p in model.parameters() if p.is_floating_point()), torch.empty(0))
    x = torch.zeros(1, *input_shape, dtype=like.dtype, device=like.device)
    counter = FlopCounterMode(display=False)
    with _eval_mode(model), _recorded_layers(model) as layers, counter, torch.no_grad():
        model(x)
    layers = list(layers.values())
    if convention == "flops":
        flops = counter.get_total_flops()
        return Count(convention, sum(p.numel() for p in model.parameters()), flops // 2, flops, layers)
    params, macs = sum(layer.params for layer in layers), sum(layer.macs for layer in layers)
    biases = params - sum(math.prod(layer.weight_shape) for layer in layers)
    return Count(convention, params, macs, macs + biases, layers)


@contextmanager
def _eval_mode(model: nn.Module) -> Iterator[None]:
    training = [module for module in model.modules() if module.training]
    model.eval()
    try:
        yield
    finally:
        for module in training:
            module.training = True


@contextmanager
def _recorded_layers(model: nn.Module) -> Iterator[dict[str, LayerCount]]:
    """Fill the yielded dict with one entry per layer that runs; the multiply-adds of one that runs twice add up."""
    layers: dict[str, LayerCount] = {}

    def record(name: str):
        def hook(module: nn.Module, args: tuple, out: Tensor) -> None:
            if not args[0].is_floating_point():
                return  # an embedding reads its weight, it does not multiply by it
            weight, bias = module.weight, getattr(module, "bias", None)
            # Each weight is used once per output position: H_out*W_out of a feature map, rows of a linear output.
            is_conv = weight.dim() == 4 and out.dim() == 4
            positions = out[0, 0].numel() if is_conv else out[0].numel() // out.shape[-1]
            before = layers[name].macs if name in layers else 0
            layers[name] = LayerCount(
                name,
                type(module).__name__,
                tuple(weight.shape),
                tuple(args[0].shape[1:]),
                tuple(out.shape[1:]),
                weight.numel() + (bias.numel() if isinstance(bias, Tensor) else 0),
                before + weight.numel() * positions,
            )

        return hook

    handles = [
        module.register_forward_hook(record(name))
        for name, module in model.named_modules()
        if isinstance(module._parameters.get("weight"), Tensor) and module.weight.dim() in (2, 4)
    ]
    try:
        yield layers
    finally:
        for handle in handles:
            handle.remove()
