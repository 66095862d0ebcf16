"""SpatialBasisConv2d: half of the filters are rows, half are columns, in filter groups."""

from __future__ import annotations

import inspect
from typing import Any

import torch
from torch import nn
from torch.nn.modules.utils import _pair

from sparsekern.arguments import check_pairs, check_whole
from sparsekern.nn.group_weights import window_of
from sparsekern.nn.grouped_conv2d import GroupedConv2d
from sparsekern.nn.side_by_side import ConvsSideBySide, Place


class SpatialBasisConv2d(ConvsSideBySide):
    """A ``k x k`` convolution whose filters are ``1 x k`` (the first half) and ``k x 1`` (the second), in groups.

    Each filter is the central row or column of a ``k x k`` one, so the output has the size that the ``k x k`` convolution's has,
    whatever stride, padding and dilation are. The 1x1 convolution that combines rows and columns is the next layer of a model, as it
    is for filter groups. A 1x1 convolution has neither rows nor columns: for it an ordinary :class:`GroupedConv2d` is made, so this
    class can stand for every convolution of a model (``create_model("nin_root_8", conv=SpatialBasisConv2d)``).

    Args:
        in_channels, out_channels, stride, padding, dilation, bias, padding_mode, device, dtype: as in ``nn.Conv2d``.
        kernel_size: odd numbers.
        groups: filter groups of both halves; divides ``in_channels`` and both halves of ``out_channels``, of which the first is the
            larger where the number is odd.
        activation: ``"none"`` or ``"relu"``, as in :class:`GroupedConv2d`.

    Attributes:
        parts: the two :class:`GroupedConv2d`, ``1 x k`` and ``k x 1``.

    Shape:
        ``[N, in_channels, H, W] -> [N, out_channels, OH, OW]``, or without ``N``. A channels_last input gives a channels_last output.

    Raises:
        ValueError: ``SpatialBasisConv2d: kernel_size must be odd numbers; got (4, 4)``;
            ``SpatialBasisConv2d: groups must be a divisor of both halves of out_channels, 5 and 4; got 2``

    Cost:
        ``2*N*OH*OW*(in_channels/groups)*out_channels*k`` FLOPs: a ``k``-th of the grouped ``k x k`` convolution's.

    Source:
        Filter groups and low-rank filters together: Ioannou et al., "Deep Roots: Improving CNN Efficiency with Hierarchical Filter
        Groups", sections 2 and 6; the filters: Ioannou et al., "Training CNNs with Low-Rank Filters for Efficient Image
        Classification", ICLR 2016.

    Example:
        >>> layer = SpatialBasisConv2d(96, 192, 5, padding=2, groups=8)
        >>> layer(torch.randn(1, 96, 16, 16)).shape
        torch.Size([1, 192, 16, 16])
        >>> [list(part.weight.shape) for part in layer.parts]
        [[96, 12, 1, 5], [96, 12, 5, 1]]
        >>> SpatialBasisConv2d(96, 192, 1)
        GroupedConv2d(96, 192, kernel_size=(1, 1), stride=(1, 1))
    """

    def __new__(cls, in_channels: int = 0, out_channels: int = 0, kernel_size: Any = None, *args: Any, **kwargs: Any) -> Any:
        numbers: Any = int | tuple | list
        if isinstance(kernel_size, numbers) and _pair(kernel_size) == (1, 1):
            return GroupedConv2d(in_channels, out_channels, kernel_size, *args, **kwargs)
        return super().__new__(cls)

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
    ) -> None:
        super().__init__()
        check_whole("SpatialBasisConv2d", in_channels=in_channels, out_channels=out_channels, groups=groups)
        check_pairs("SpatialBasisConv2d", stride=(stride, 1), dilation=(dilation, 1))
        if not isinstance(padding, str):
            check_pairs("SpatialBasisConv2d", padding=(padding, 0))
        pair = _pair(kernel_size)
        numbers = len(pair) == 2 and all(isinstance(size, int) for size in pair)
        self._check(numbers, "kernel_size", "a whole number or two", repr(kernel_size))
        height, width = self.kernel_size = pair
        self._check(height % 2 == 1 and width % 2 == 1, "kernel_size", "odd numbers", self.kernel_size)
        halves = (out_channels + 1) // 2, out_channels // 2
        self._check(halves[1] > 0, "out_channels", "at least 2, one row and one column", out_channels)
        divides = groups > 0 and not any(half % groups for half in halves)
        self._check(divides, "groups", f"a divisor of both halves of out_channels, {halves[0]} and {halves[1]}", groups)
        self._check(in_channels % groups == 0, "in_channels", f"a multiple of groups={groups}", in_channels)
        self.in_channels, self.out_channels, self.groups = in_channels, out_channels, groups
        self.stride, self.dilation = _pair(stride), _pair(dilation)
        self.padding = padding if isinstance(padding, str) else _pair(padding)
        self.padding_mode, self.activation = padding_mode, activation

        centre = height // 2, width // 2
        reach = tuple(d * c for d, c in zip(self.dilation, centre))  # from the central tap to the kernel's edge
        if isinstance(padding, str):
            self._check(padding in ("same", "valid"), "padding", "'same', 'valid' or numbers", repr(padding))
            self._check(padding == "valid" or self.stride == (1, 1), "stride", "1 with padding='same'", self.stride)
            total = reach if padding == "same" else (0, 0)
        else:
            total = _pair(padding)
        # A row of filters has no taps above and below its centre: what the padding leaves of that reach, or lacks, is cut off or added.
        spare = tuple(p - r for p, r in zip(total, reach))
        row_pad, column_pad = (max(0, spare[0]), total[1]), (total[0], max(0, spare[1]))
        options: dict[str, Any] = dict(dilation=dilation, groups=groups, bias=bias, padding_mode=padding_mode, device=device, dtype=dtype)
        rows = GroupedConv2d(in_channels, halves[0], (1, width), stride, row_pad, **options, activation=activation)
        columns = GroupedConv2d(in_channels, halves[1], (height, 1), stride, column_pad, **options, activation=activation)
        self._set_parts(
            [rows, columns],
            [Place(tap=(centre[0], 0), crop=(max(0, -spare[0]), 0)), Place(tap=(0, centre[1]), crop=(0, max(0, -spare[1])))],
        )

    __new__.__signature__ = inspect.signature(__init__)  # type: ignore[attr-defined] # what help() and factories read of the class

    @classmethod
    def from_dense(cls, conv: nn.Conv2d, *, groups: int | None = None, activation: str = "none") -> nn.Module:
        """The central rows and columns, inside the groups, of an ``nn.Conv2d``; ``groups`` as in :meth:`GroupedConv2d.from_dense`.

        Example:
            >>> SpatialBasisConv2d.from_dense(nn.Conv2d(8, 16, 3), groups=4).parts[1].weight.shape
            torch.Size([8, 2, 3, 1])
        """
        grouped: Any = GroupedConv2d.from_dense(conv, groups=groups, activation=activation)
        layer = cls(
            conv.in_channels, conv.out_channels, *window_of(conv), grouped.groups,
            conv.bias is not None, conv.padding_mode, device=conv.weight.device, dtype=conv.weight.dtype, activation=activation,
        )  # fmt: skip
        dense = {"weight": grouped.weight_dense().detach()}
        layer.load_state_dict(dense if conv.bias is None else {**dense, "bias": conv.bias.detach()})
        return layer

    def extra_repr(self) -> str:
        text = f"{self.in_channels}, {self.out_channels}, kernel_size={self.kernel_size}, stride={self.stride}"
        return text + (f", padding={self.padding!r}" if self.padding != (0, 0) else "") + f", groups={self.groups}"
