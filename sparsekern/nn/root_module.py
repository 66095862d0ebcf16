"""RootModule: a grouped convolution and the 1x1 convolution that mixes its groups again."""

from __future__ import annotations

import torch
from torch import nn

from sparsekern.nn.grouped_conv2d import GroupedConv2d


class RootModule(nn.Sequential):
    """``grouped k x k -> ReLU -> 1x1 -> ReLU``: a convolution of low cost in place of a dense k x k one.

    The k x k filters see only the channels of their group; the 1x1 filters combine all groups. It is an ``nn.Sequential`` of two
    layers, ``grouped`` and ``pointwise``, each with its activation.

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
        options = dict(bias=bias, activation=activation, device=device, dtype=dtype)
        self.grouped = GroupedConv2d(in_channels, mid_channels, kernel_size, stride, padding, groups=groups, **options)
        self.pointwise = GroupedConv2d(mid_channels, out_channels, 1, **options)
