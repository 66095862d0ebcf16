"""RootModule: a grouped convolution and the 1x1 convolution that mixes its groups again."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules import module

from sparsekern.nn.grouped_conv2d import GroupedConv2d
from sparsekern.ops import root_conv2d


class RootModule(nn.Sequential):
    """``grouped k x k -> ReLU -> 1x1 -> ReLU``: a convolution of low cost in place of a dense k x k one.

    The k x k filters see only the channels of their group; the 1x1 filters combine all groups. It is an ``nn.Sequential`` of two
    layers, ``grouped`` and ``pointwise``, each with its activation; under ``torch.no_grad()`` they run in one call
    (:func:`~sparsekern.ops.root_conv2d`), which keeps what is between them in the cache.

    Args:
        in_channels: channels of the input.
        mid_channels: channels between the two convolutions; a multiple of ``groups``, as ``in_channels``.
        out_channels: channels of the output.
        kernel_size: of the grouped convolution.
        groups: filter groups of the grouped convolution.
        stride, padding: of the grouped convolution.
        bias: whether both add a bias.
        activation: ``"relu"`` or ``"none"``, after both.
        device, dtype: as in ``nn.Conv2d``.

    Raises:
        ValueError: ``GroupedConv2d: in_channels must be a multiple of groups=5; got 96``

    Cost:
        ``2*N*OH*OW*mid_channels*(in_channels/groups*KH*KW + out_channels)`` FLOPs.

    Source:
        Ioannou et al., "Deep Roots: Improving CNN Efficiency with Hierarchical Filter Groups", section 3.1 (root module).

    Example:
        >>> root = RootModule(96, 192, 192, 5, groups=16, padding=2)
        >>> root(torch.randn(1, 96, 16, 16)).shape
        torch.Size([1, 192, 16, 16])
    """

    def __init__(
        self,
        in_channels: int,
        mid_channels: int,
        out_channels: int,
        kernel_size: int | tuple[int, int],
        *,
        groups: int,
        stride: int | tuple[int, int] = 1,
        padding: int | tuple[int, int] | str = 0,
        bias: bool = True,
        activation: str = "relu",
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__()
        options: dict[str, Any] = dict(bias=bias, activation=activation, device=device, dtype=dtype)
        self.grouped = GroupedConv2d(in_channels, mid_channels, kernel_size, stride, padding, groups=groups, **options)
        self.pointwise = GroupedConv2d(mid_channels, out_channels, 1, **options)

    def forward(self, input: Tensor) -> Tensor:
        """``[N, in_channels, H, W] -> [N, out_channels, OH, OW]``, or without ``N``."""
        if not self._in_one_call(input):
            return super().forward(input)
        first, second = self.grouped, self.pointwise
        options: dict[str, Any] = dict(stride=first.stride, padding=first.padding, dilation=first.dilation, groups=first.groups)
        options |= dict(activation=first.activation, last_activation=second.activation)
        return root_conv2d(input, first.weight, first.bias, second.weight, second.bias, **options)

    def _in_one_call(self, x: Tensor) -> bool:
        """Inference, the two layers that this module was made of with their natural weights, and nobody who looks at them one by one."""
        if torch.is_grad_enabled() or not isinstance(x, Tensor) or x.dim() != 4 or tuple(self._modules) != ("grouped", "pointwise"):
            return False
        first, second = self.grouped, self.pointwise
        if _heard_everywhere() or not _plain(first) or not _plain(second) or isinstance(first.padding, str):
            return False
        return (second.groups, second.kernel_size, second.stride, second.padding) == (1, (1, 1), (1, 1), (0, 0))


def _plain(layer: nn.Module) -> bool:
    """Whether a call of it comes to its natural weight, its window and nothing else."""
    if type(layer) is not GroupedConv2d or layer._packed is not None or layer.padding_mode != "zeros":
        return False
    return not (layer._forward_hooks or layer._forward_pre_hooks or "forward" in layer.__dict__)


def _heard_everywhere() -> bool:
    """Whether there are hooks of every module."""
    return bool(module._global_forward_hooks or module._global_forward_pre_hooks)
