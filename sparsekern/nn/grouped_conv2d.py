"""GroupedConv2d: a drop-in nn.Conv2d whose filter groups are really faster."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.utils import _pair

from sparsekern.ops import backends
from sparsekern.ops.grouped_conv2d import ACTIVATIONS, explain_grouped_conv2d, grouped_conv2d


def _check(condition: bool, arg: str, rule: str, got: Any) -> None:
    if not condition:
        raise ValueError(f"GroupedConv2d: {arg} must be {rule}; got {got}")


class GroupedConv2d(nn.Conv2d):
    """``nn.Conv2d``, same arguments, same parameters, same values, on kernels made for filter groups.

    Args:
        in_channels, out_channels, kernel_size, stride, padding, dilation, groups, bias, padding_mode, device, dtype: as in ``nn.Conv2d``.
        activation: ``"none"`` or ``"relu"``; the ReLU is computed while the result is in registers when no gradient is needed.

    Attributes:
        weight: ``[out_channels, in_channels/groups, KH, KW]``, initialised by its true fan-in as ``nn.Conv2d``'s is.

    Shape:
        ``[N, in_channels, H, W] -> [N, out_channels, OH, OW]``, or without ``N``. A channels_last input gives a channels_last output.

    Raises:
        ValueError: ``GroupedConv2d: activation must be one of ('none', 'relu'); got 'gelu'``

    Cost:
        ``2*N*OH*OW*out_channels*(in_channels/groups)*KH*KW`` FLOPs.

    Source:
        Ioannou et al., "Deep Roots: Improving CNN Efficiency with Hierarchical Filter Groups", section 3.

    Example:
        >>> layer = GroupedConv2d(96, 192, 5, padding=2, groups=16, activation="relu")
        >>> layer(torch.randn(1, 96, 16, 16)).shape
        torch.Size([1, 192, 16, 16])
        >>> layer
        GroupedConv2d(96, 192, kernel_size=(5, 5), stride=(1, 1), padding=(2, 2), groups=16, activation=relu)
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
    ) -> None:
        _check(activation in ACTIVATIONS, "activation", f"one of {ACTIVATIONS}", repr(activation))
        _check(groups > 0 and in_channels % groups == 0, "in_channels", f"a multiple of groups={groups}", in_channels)
        _check(out_channels % groups == 0, "out_channels", f"a multiple of groups={groups}", out_channels)
        super().__init__(in_channels, out_channels, kernel_size, stride, padding, dilation, groups, bias, padding_mode, device, dtype)
        self.activation = activation

    @property
    def density(self) -> float:
        """Kept fraction of the dense layer's weights."""
        return 1 / self.groups

    def _conv_forward(self, x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        padding = self.padding
        if self.padding_mode != "zeros":
            x = nn.functional.pad(x, self._reversed_padding_repeated_twice, mode=self.padding_mode)
            padding = 0
        return grouped_conv2d(x, weight, bias, self.stride, padding, self.dilation, self.groups, self.activation)

    # ---- to and from dense

    def weight_dense(self) -> Tensor:
        """``[out_channels, in_channels, KH, KW]`` with zeros between the groups; differentiable."""
        blocks = self.weight.unflatten(0, (self.groups, -1))  # [G, K/G, C/G, KH, KW]
        same = torch.eye(self.groups, device=self.weight.device, dtype=self.weight.dtype)
        dense = torch.einsum("gkchw,gf->gkfchw", blocks, same)  # f: the group that is read
        return dense.flatten(2, 3).flatten(0, 1)

    def to_dense(self) -> nn.Module:
        """A dense ``nn.Conv2d`` that computes the same (followed by ``nn.ReLU`` if this layer has one)."""
        dense = nn.Conv2d(
            self.in_channels, self.out_channels, self.kernel_size, self.stride, self.padding, self.dilation,
            bias=self.bias is not None, padding_mode=self.padding_mode, device="meta", dtype=self.weight.dtype,
        ).to_empty(device=self.weight.device)  # fmt: skip
        with torch.no_grad():
            dense.weight.copy_(self.weight_dense())
            if self.bias is not None:
                dense.bias.copy_(self.bias)
        return nn.Sequential(dense, nn.ReLU()) if self.activation == "relu" else dense

    @classmethod
    def from_dense(cls, conv: nn.Conv2d, *, groups: int | None = None, activation: str = "none") -> GroupedConv2d:
        """A grouped layer from an ``nn.Conv2d``, with its weights inside the groups.

        ``groups`` defaults to the layer's own; a larger number, a multiple of it, drops the weights between the new groups.

        Example:
            >>> GroupedConv2d.from_dense(nn.Conv2d(8, 16, 3), groups=4).weight.shape
            torch.Size([16, 2, 3, 3])
        """
        groups = conv.groups if groups is None else groups
        _check(groups > 0 and groups % conv.groups == 0, "groups", f"a multiple of the layer's {conv.groups}", groups)
        layer = cls(
            conv.in_channels, conv.out_channels, conv.kernel_size, conv.stride, conv.padding, conv.dilation, groups,
            conv.bias is not None, conv.padding_mode, device=conv.weight.device, dtype=conv.weight.dtype, activation=activation,
        )  # fmt: skip
        with torch.no_grad():
            layer.weight.copy_(layer._inside_groups(conv.weight))
            if conv.bias is not None:
                layer.bias.copy_(conv.bias)
        return layer

    def _inside_groups(self, weight: Tensor) -> Tensor:
        """The entries of ``weight [K, C/G', KH, KW]`` of fewer groups that lie inside this layer's groups."""
        finer = self.groups * weight.shape[1] // self.in_channels  # groups of ours in one of the given weight's
        rows = weight.unflatten(0, (-1, finer, self.out_channels // self.groups)).unflatten(3, (finer, -1))  # [G', f, K/G, f, C/G, ..]
        return rows.diagonal(dim1=1, dim2=3).movedim(-1, 1).flatten(0, 2)

    def _has_fewer_groups(self, shape: tuple[int, ...]) -> bool:
        """Whether this is the weight's shape of the same convolution with fewer groups that ours divide."""
        filters, channels, *kernel = self.weight.shape
        same = len(shape) == 4 and (shape[0], *shape[2:]) == (filters, *kernel)
        return same and shape[1] > channels and shape[1] % channels == 0 and self.in_channels % shape[1] == 0

    def _load_from_state_dict(self, state_dict, prefix, *args) -> None:
        weight = state_dict.get(prefix + "weight")
        if weight is not None and self._has_fewer_groups(tuple(weight.shape)):
            state_dict = {**state_dict, prefix + "weight": self._inside_groups(weight)}
        super()._load_from_state_dict(state_dict, prefix, *args)

    # ---- what it is, and what runs

    def extra_repr(self) -> str:
        return super().extra_repr() + ("" if self.activation == "none" else f", activation={self.activation}")

    def explain(self, x_shape: tuple[int, ...] | None = None, *, channels_last: bool = False) -> str:
        """Who serves each product for an input ``[N, C, H, W]`` (default: one image of 32 x 32), and why.

        Example:
            >>> print(GroupedConv2d(96, 192, 5, padding=2, groups=16).explain((1, 96, 16, 16)))  # doctest: +ELLIPSIS
            GroupedConv2d 96 -> 192, 5x5, 16 groups, [1, 96, 16, 16], float32, served by ...
        """
        shape = (1, self.in_channels, 32, 32) if x_shape is None else tuple(x_shape)
        _check(len(shape) == 4 and shape[1] == self.in_channels, "x_shape", f"(N, {self.in_channels}, H, W)", shape)
        kernel, stride, dilation = _pair(self.kernel_size), _pair(self.stride), _pair(self.dilation)
        dtype = str(self.weight.dtype).removeprefix("torch.")
        who = backends.serves("grouped_conv2d", self.weight.device)
        layout = " channels_last" if channels_last else ""
        lines = [
            f"GroupedConv2d {self.in_channels} -> {self.out_channels}, {kernel[0]}x{kernel[1]}, {self.groups} groups, "
            f"{list(shape)}{layout}, {dtype}, served by {who}"
        ]
        if who != "reference":
            pad = tuple(self._reversed_padding_repeated_twice[2::-2]) if isinstance(self.padding, str) else _pair(self.padding)
            if self.padding_mode != "zeros":
                shape, pad = (*shape[:2], shape[2] + 2 * pad[0], shape[3] + 2 * pad[1]), (0, 0)
            window = (*stride, *pad, *dilation, self.groups)
            for door, (server, why) in explain_grouped_conv2d(shape, self.weight.shape, window, channels_last, self.weight.dtype).items():
                lines.append(f"  {door:12s} {server:11s} {why}")
        return "\n".join(lines)
