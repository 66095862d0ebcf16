"""root_conv2d on a GPU: one kernel for a grouped convolution and the 1x1 behind it, or the convolutions one after the other."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from sparsekern.ops import cuda_cost
from sparsekern.ops.cuda_choice import serve, tf32
from sparsekern.ops.grouped_conv2d import is_channels_last
from sparsekern.ops.root_conv2d import _stages, check, reference


def estimate(x: Tensor, weight1: tuple, weight2: tuple, window: tuple) -> cuda_cost.Estimate:
    """Of one kernel, and of two calls, whoever serves each."""
    allowed, card, last = tf32(torch.backends.cudnn, x.dtype), cuda_cost.card_of(x.device), is_channels_last(x)
    return cuda_cost.root_convolution(tuple(x.shape), tuple(weight1), weight2[0], tuple(window), last, x.dtype, allowed, card)


def routes(kernels: Any) -> dict[str, Any]:
    """What serves the op; ``kernels`` is the namespace of the compiled library, or of Triton's twins."""
    convolve = torch.ops.sparsekern.grouped_conv2d

    def forward(
        x: Tensor, weight1: Tensor, bias1: Tensor | None, weight2: Tensor, bias2: Tensor | None, weight3: Tensor | None,
        bias3: Tensor | None, shortcut: Tensor | None, *rest: Any,
    ) -> Tensor:  # fmt: skip
        *window, relu, last_relu = rest
        tensors = (weight1, bias1, weight2, bias2, weight3, bias3)
        if x.dtype == torch.float64:
            return reference(x, *tensors, shortcut, *rest)
        check(x, *tensors, shortcut, *rest)

        def chain() -> Tensor:
            y, stages = x, _stages(*tensors)
            for i, (weight, bias) in enumerate(stages):
                end = i + 1 == len(stages)
                here = window if i == 0 else (1, 1, 0, 0, 1, 1, y.shape[1] // weight.shape[1])
                y = convolve(y, weight, bias, shortcut if end else None, *here, last_relu if end else relu)
            return y

        if weight3 is not None or shortcut is not None or weight2.shape[1] != weight1.shape[0]:
            return chain()
        allowed = tf32(torch.backends.cudnn, x.dtype)
        ours = lambda: kernels.root_conv2d(x, weight1, bias1, weight2, bias2, *window, relu, last_relu, allowed)  # noqa: E731
        return serve(estimate(x, weight1.shape, weight2.shape, tuple(window)), x.device, ours, chain)

    return {"root_conv2d": forward}
