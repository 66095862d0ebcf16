"""UnequalGroupedConv2d: filter groups of different sizes."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import groupby

import torch
from torch.nn.modules.utils import _pair

from sparsekern.arguments import check_whole
from sparsekern.nn.grouped_conv2d import GroupedConv2d, check_group_sizes
from sparsekern.nn.side_by_side import ConvsSideBySide, Place


class UnequalGroupedConv2d(ConvsSideBySide):
    """A convolution in filter groups of different sizes; made by ``GroupedConv2d(..., group_sizes=...)`` where they differ.

    Each run of equal groups is one :class:`GroupedConv2d` on its channels of the input.

    Args:
        in_channels, out_channels, kernel_size, stride, padding, dilation, bias, padding_mode, device, dtype: as in ``nn.Conv2d``.
        groups: 1 or the number of groups.
        activation: ``"none"`` or ``"relu"``, as in :class:`GroupedConv2d`.
        group_sizes: the ``(in, out)`` channels of each group, in order; they add up to ``(in_channels, out_channels)``.

    Attributes:
        parts: one :class:`GroupedConv2d` per run, with a weight ``[run's K, group's C, KH, KW]`` and a bias.

    Shape:
        ``[N, in_channels, H, W] -> [N, out_channels, OH, OW]``, or without ``N``. A channels_last input gives a channels_last output.

    Raises:
        ValueError: ``GroupedConv2d: group_sizes must be sizes that add up to (8, 16); got (8, 12)``

    Cost:
        ``2*N*OH*OW*KH*KW*sum(in*out over groups)`` FLOPs, and one copy of input and output.

    Source:
        Ioannou et al., "Deep Roots: Improving CNN Efficiency with Hierarchical Filter Groups", section 6 (future work).

    Example:
        >>> layer = GroupedConv2d(12, 24, 3, padding=1, group_sizes=[(2, 4), (2, 4), (8, 16)])
        >>> layer(torch.randn(1, 12, 8, 8)).shape
        torch.Size([1, 24, 8, 8])
        >>> {name: list(value.shape) for name, value in layer.state_dict().items() if "weight" in name}
        {'parts.0.weight': [8, 2, 3, 3], 'parts.1.weight': [16, 8, 3, 3]}
    """

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        kernel_size: int | tuple[int, int],
        stride: int | tuple[int, int] = 1,
        padding: int | tuple[int, int] | str = 0,
        dilation: int | tuple[int, int] = 1,
        groups: int = 1,
        bias: bool = True,
        padding_mode: str = "zeros",
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
        *,
        activation: str = "none",
        group_sizes: Sequence[tuple[int, int]],
    ) -> None:
        super().__init__()
        check_whole("GroupedConv2d", in_channels=in_channels, out_channels=out_channels, groups=groups)
        check_group_sizes(group_sizes, in_channels, out_channels, groups)
        self.in_channels, self.out_channels, self.padding_mode, self.activation = in_channels, out_channels, padding_mode, activation
        self.kernel_size, self.stride, self.dilation = _pair(kernel_size), _pair(stride), _pair(dilation)
        self.padding = padding if isinstance(padding, str) else _pair(padding)
        self.group_sizes = [tuple(pair) for pair in group_sizes]
        parts, places, channel = [], [], 0
        for (inputs, outputs), run in groupby(self.group_sizes):
            count = len(list(run))
            parts.append(
                GroupedConv2d(
                    count * inputs, count * outputs, kernel_size, stride, padding, dilation, count, bias, padding_mode, device, dtype,
                    activation=activation,
                )
            )  # fmt: skip
            places.append(Place(channel))
            channel += count * inputs
        self._set_parts(parts, places)

    @property
    def groups(self) -> int:
        """Number of groups."""
        return len(self.group_sizes)

    def extra_repr(self) -> str:
        return f"{self.in_channels}, {self.out_channels}, group_sizes={self.group_sizes}"
