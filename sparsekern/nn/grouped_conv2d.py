"""GroupedConv2d: a drop-in nn.Conv2d whose filter groups are really faster."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterable, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.utils import _pair

from sparsekern.arguments import check_dtype, check_flag, check_pairs, check_whole, said
from sparsekern.nn import asked_about
from sparsekern.nn.computed import now
from sparsekern.nn.group_weights import check_conv, dense_twin, has_fewer_groups, image_shape, inside_groups, spread_groups, window_of
from sparsekern.ops import backends
from sparsekern.ops.cuda import explain_convolution
from sparsekern.ops.define import has_tangent
from sparsekern.ops.grouped_conv2d import ACTIVATIONS, explain_grouped_conv2d, grouped_conv2d
from sparsekern.ops.grouped_conv2d_packed import explain_packed, grouped_conv2d_packed, pack_grouped_conv2d

_compiling = torch.compiler.is_compiling
_quick = backends.quick_call.grouped_layer if backends.quick_call and backends.missing is None else None


def _check(condition: bool, arg: str, rule: str, got: Any) -> None:
    if not condition:
        raise ValueError(f"GroupedConv2d: {arg} must be {rule}; got {got}")


def refuse_gradients(layers: Iterable[GroupedConv2d], *inputs: Tensor | None) -> None:
    """Packed weights hand no gradient on: not to what is read, nor to weights in training."""
    wanted = has_tangent(*inputs)
    if torch.is_grad_enabled():
        wanted = wanted or any(x is not None and x.requires_grad for x in inputs)
        wanted = wanted or any(layer.training and layer.weight.requires_grad for layer in layers)
    _check(not wanted, "layer", "unpacked to be trained (call unpack())", "a packed one where a gradient is needed")


def check_group_sizes(sizes: Sequence[tuple[int, int]], in_channels: int, out_channels: int, groups: int) -> None:
    """Whether ``sizes``, the (in, out) channels of each group, make up a layer."""
    pair = lambda p: isinstance(p, tuple | list) and len(p) == 2 and all(isinstance(n, int) and n > 0 for n in p)  # noqa: E731
    pairs = isinstance(sizes, Sequence) and len(sizes) > 0 and all(map(pair, sizes))
    _check(pairs, "group_sizes", "pairs (in, out) of at least 1 channel", list(sizes) if isinstance(sizes, Sequence) else said(sizes))
    total = tuple(sum(channels) for channels in zip(*sizes))
    _check(total == (in_channels, out_channels), "group_sizes", f"sizes that add up to {(in_channels, out_channels)}", total)
    _check(groups in (1, len(sizes)), "groups", f"left out, or {len(sizes)} like group_sizes", groups)


class GroupedConv2d(nn.Conv2d):
    """``nn.Conv2d``, same arguments, same parameters, same values, on kernels made for filter groups.

    Args:
        in_channels, out_channels, kernel_size, stride, padding, dilation, groups, bias, padding_mode, device, dtype: as in ``nn.Conv2d``.
        activation: ``"none"`` or ``"relu"``; the ReLU is computed while the result is in registers when no gradient is needed.
        group_sizes: instead of ``groups``: the ``(in, out)`` channels of each group, in order. Where they differ the layer made is an
            :class:`~sparsekern.nn.UnequalGroupedConv2d`, one grouped convolution per run of equal groups.

    Attributes:
        weight: ``[out_channels, in_channels/groups, KH, KW]``, initialised by its true fan-in as ``nn.Conv2d``'s is.

    Shape:
        ``[N, in_channels, H, W] -> [N, out_channels, OH, OW]``, or without ``N``. A channels_last input gives a channels_last output.

    Raises:
        ValueError: ``GroupedConv2d: activation must be one of ('none', 'relu'); got 'gelu'``;
            ``GroupedConv2d: group_sizes must be sizes that add up to (8, 16); got (8, 12)``

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
        >>> GroupedConv2d(8, 16, 3, group_sizes=[(4, 8), (4, 8)]).groups
        2
    """

    kernel_size: tuple[int, int]
    stride: tuple[int, int]
    padding: tuple[int, int] | str
    dilation: tuple[int, int]
    _packed: Tensor | None = None

    def __new__(cls, *args: Any, group_sizes: Sequence[tuple[int, int]] | None = None, **kwargs: Any) -> Any:
        pairs = isinstance(group_sizes, Sequence) and all(isinstance(pair, tuple | list) for pair in group_sizes)
        if group_sizes is not None and pairs and len({tuple(pair) for pair in group_sizes}) > 1:
            from sparsekern.nn.unequal_groups import UnequalGroupedConv2d

            return UnequalGroupedConv2d(*args, group_sizes=group_sizes, **kwargs)
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
        group_sizes: Sequence[tuple[int, int]] | None = None,
    ) -> None:
        check_whole("GroupedConv2d", in_channels=in_channels, out_channels=out_channels, groups=groups)
        if group_sizes is not None:
            check_group_sizes(group_sizes, in_channels, out_channels, groups)
            groups = len(group_sizes)
        _check(activation in ACTIVATIONS, "activation", f"one of {ACTIVATIONS}", repr(activation))
        modes = ("zeros", "reflect", "replicate", "circular")
        _check(isinstance(padding_mode, str) and padding_mode in modes, "padding_mode", f"one of {modes}", said(padding_mode))
        check_dtype("GroupedConv2d", dtype)
        check_flag("GroupedConv2d", bias=bias)
        _check(groups > 0, "groups", "at least 1", groups)
        _check(in_channels > 0 and out_channels > 0, "in_channels and out_channels", "at least 1", (in_channels, out_channels))
        check_pairs("GroupedConv2d", kernel_size=(kernel_size, 1), stride=(stride, 1), dilation=(dilation, 1))
        if not isinstance(padding, str):
            check_pairs("GroupedConv2d", padding=(padding, 0))
        _check(not isinstance(padding, str) or padding in ("same", "valid"), "padding", "'same', 'valid' or numbers", repr(padding))
        _check(in_channels % groups == 0, "in_channels", f"a multiple of groups={groups}", in_channels)
        _check(out_channels % groups == 0, "out_channels", f"a multiple of groups={groups}", out_channels)
        super().__init__(in_channels, out_channels, kernel_size, stride, padding, dilation, groups, bias, padding_mode, device, dtype)  # type: ignore[arg-type] # torch checks padding_mode
        self.activation = activation

    __new__.__signature__ = inspect.signature(__init__)  # type: ignore[attr-defined] # what help() and factories read of the class

    @property
    def group_sizes(self) -> list[tuple[int, int]]:
        """The (in, out) channels of each group."""
        return [(self.in_channels // self.groups, self.out_channels // self.groups)] * self.groups

    @property
    def density(self) -> float:
        """Kept fraction of the dense layer's weights."""
        return 1 / self.groups

    def forward(self, input: Tensor, shortcut: Tensor | None = None, activation: str | None = None) -> Tensor:
        """``activation(conv(input) + shortcut)``; ``activation`` takes the place of the layer's own for this call."""
        if shortcut is None and activation is None and _quick is not None and not _compiling():
            out = _quick(self.__dict__, input)
            if out is not NotImplemented:
                return out
        padding: int | tuple[int, int] | str = self.padding
        parameters: dict[str, Any] = self._parameters  # what is not there is parametrized
        everyday = self._packed is None and shortcut is None and activation is None and self.padding_mode == "zeros" and not _compiling()
        if everyday and "weight" in parameters and "bias" in parameters:  # torch would look for them in three places
            weight, bias = parameters["weight"], parameters["bias"]
            return grouped_conv2d(input, weight, bias, self.stride, padding, self.dilation, self.groups, self.activation)
        if self.padding_mode != "zeros":
            input = nn.functional.pad(input, self._reversed_padding_repeated_twice, mode=self.padding_mode)
            padding = 0
        activation = self.activation if activation is None else activation
        if self._packed is not None:
            return self._forward_packed(input, padding, activation, shortcut)
        return grouped_conv2d(input, self.weight, self.bias, self.stride, padding, self.dilation, self.groups, activation, shortcut)

    # ---- packed, on request: a frozen layer for inference

    def pack(self, x_shape: tuple[int, ...] | None = None) -> GroupedConv2d:
        """Put the weights, as they are now, into the kernels' own order for channels_last images, and freeze the layer; returns it.

        A packed layer runs :func:`~sparsekern.ops.grouped_conv2d_packed`, says so in its ``repr``, refuses training, and does not see
        later writes to ``weight``. It computes in float32 whatever the dtype (in bfloat16 on matrix tiles, where they serve), and
        costs the memory that :meth:`explain` prints, beside the weight. Images that are not channels_last are served too, but slower
        than by an unpacked layer. :meth:`unpack` goes back, and so does a move to float64 or to another device.

        Args:
            x_shape: ``(N, C, H, W)`` of the images that the order is chosen for (default: one image of 28 x 28).

        Example:
            >>> GroupedConv2d(64, 64, 3, padding=1, groups=8).pack()
            GroupedConv2d(64, 64, kernel_size=(3, 3), stride=(1, 1), padding=(1, 1), groups=8, packed)
        """
        shape = image_shape("GroupedConv2d", x_shape, self.in_channels, 28)
        rows, columns = shape[2:]
        padding = self._numeric_padding() if self.padding_mode == "zeros" else ()
        if not padding:  # forward pads by itself
            left, right, top, bottom = self._reversed_padding_repeated_twice
            rows, columns, padding = rows + top + bottom, columns + left + right, (0, 0)
        images = shape[0], rows, columns
        self._packed = pack_grouped_conv2d(now(self, "weight"), self.stride, padding, self.dilation, self.groups, images=images)
        self._packed_for = shape
        return self

    def unpack(self) -> GroupedConv2d:
        """Read the natural weight at every call again; returns the layer."""
        self._packed = None
        return self

    def _numeric_padding(self) -> tuple[int, int] | tuple[()]:
        """Rows and columns of zeros on both sides; nothing where the sides differ."""
        if not isinstance(self.padding, str):
            return _pair(self.padding)
        left, right, top, bottom = self._reversed_padding_repeated_twice
        return (top, left) if left == right and top == bottom else ()

    def _forward_packed(self, x: Tensor, padding: Any, activation: str, shortcut: Tensor | None) -> Tensor:
        bias = self.bias
        refuse_gradients((self,), *(given for given in (x, shortcut) if isinstance(given, Tensor)))
        if torch.is_grad_enabled():
            bias = None if bias is None else bias.detach()
        if isinstance(padding, str):
            padding = self._numeric_padding()
            if not padding:
                x, padding = nn.functional.pad(x, self._reversed_padding_repeated_twice), 0
        return grouped_conv2d_packed(
            x,
            self._packed,  # type: ignore[arg-type] # it is there, or this is not called
            bias,
            self.out_channels,
            self.kernel_size,
            self.stride,
            padding,
            self.dilation,
            self.groups,
            activation,
            shortcut,
        )

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> nn.Module:
        packed, self._packed = self._packed is not None, None
        super()._apply(fn, recurse)
        return self.pack(self._packed_for) if packed and backends.can_pack(self.weight) else self

    def add_relu(self, x: Tensor, shortcut: Tensor) -> Tensor:
        """``relu(self(x) + shortcut)``, the end of a residual block, in one pass; hooks of the layer see it as a call.

        Args:
            x: as in a call of the layer.
            shortcut: of the result's shape and dtype, in any layout.

        Raises:
            ValueError: ``grouped_conv2d: shortcut must be [1, 16, 5, 5] like the result; got [1, 16, 1, 1]``

        Example:
            >>> layer, x = GroupedConv2d(8, 16, 1), torch.randn(1, 8, 5, 5)
            >>> shortcut = torch.randn(1, 16, 5, 5)
            >>> torch.allclose(layer.add_relu(x, shortcut), (layer(x) + shortcut).relu(), atol=1e-5)
            True
        """
        if self.activation != "none":  # two activations
            return torch.relu(self(x) + shortcut)
        return self(x, shortcut, "relu")

    # ---- to and from dense

    def weight_dense(self) -> Tensor:
        """``[out_channels, in_channels, KH, KW]`` with zeros between the groups; differentiable."""
        return spread_groups(now(self, "weight"), self.groups)

    def to_dense(self) -> nn.Module:
        """A dense ``nn.Conv2d`` that computes the same (followed by ``nn.ReLU`` if this layer has one)."""
        dense = dense_twin(self, self.weight_dense(), now(self, "bias"))
        return nn.Sequential(dense, nn.ReLU()) if self.activation == "relu" else dense

    @classmethod
    def from_dense(
        cls,
        conv: nn.Conv2d,
        *,
        groups: int | None = None,
        activation: str = "none",
        group_sizes: Sequence[tuple[int, int]] | None = None,
    ) -> nn.Module:
        """A grouped layer from an ``nn.Conv2d``, with its weights inside the groups.

        ``groups`` defaults to the layer's own; a larger number, a multiple of it, drops the weights between the new groups. So do
        ``group_sizes``, for a layer without groups.

        Example:
            >>> GroupedConv2d.from_dense(nn.Conv2d(8, 16, 3), groups=4).weight.shape
            torch.Size([16, 2, 3, 3])
        """
        check_conv("GroupedConv2d", conv, groups)
        if group_sizes is not None:
            _check(groups is None and conv.groups == 1, "groups", "1 in the layer and left out with group_sizes", groups or conv.groups)
            groups = 1
        groups = conv.groups if groups is None else groups
        layer = cls(
            conv.in_channels, conv.out_channels, *window_of(conv), groups,
            conv.bias is not None, conv.padding_mode, device=conv.weight.device, dtype=conv.weight.dtype, activation=activation,
            group_sizes=group_sizes,
        )  # fmt: skip
        layer.load_state_dict({k: v.detach() for k, v in (("weight", conv.weight), ("bias", conv.bias)) if v is not None})
        return layer

    def _load_from_state_dict(self, state_dict: dict[str, Any], prefix: str, *args: Any) -> None:
        weight = state_dict.get(prefix + "weight")
        if weight is not None and has_fewer_groups(tuple(weight.shape), tuple(self.weight.shape), self.in_channels):
            state_dict = {**state_dict, prefix + "weight": inside_groups(weight, self.in_channels, self.groups)}
        super()._load_from_state_dict(state_dict, prefix, *args)
        if self._packed is not None:
            self.pack(self._packed_for)

    # ---- what it is, and what runs

    def extra_repr(self) -> str:
        packed = "" if self._packed is None else ", packed"
        return super().extra_repr() + ("" if self.activation == "none" else f", activation={self.activation}") + packed

    def explain(self, x_shape: Sequence[int] | Tensor | None = None, *, channels_last: bool = False) -> str:
        """Who serves each product for an input ``[N, C, H, W]`` (a shape or a tensor; default: one image of 32 x 32), and why.

        Example:
            >>> print(GroupedConv2d(96, 192, 5, padding=2, groups=16).explain((1, 96, 16, 16)))  # doctest: +ELLIPSIS
            GroupedConv2d 96 -> 192, 5x5, 16 groups, [1, 96, 16, 16], float32, served by ...
        """
        shape, channels_last = asked_about.images("GroupedConv2d", self.in_channels, x_shape, channels_last)
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
            sizes = shape, self.weight.shape, window, channels_last, self.weight.dtype
            on_gpu = who in backends.GPU_PROVIDERS
            choices = explain_convolution(*sizes, self.weight.device) if on_gpu else explain_grouped_conv2d(*sizes)
            for door, (server, why) in choices.items():
                lines.append(f"  {door:12s} {server:11s} {why}")
        if self._packed is not None:
            kernel = explain_packed(self._packed)
            lines = [lines[0], f"  packed       {kernel}, {self._packed.numel() * 4} bytes beside the weight; channels_last, forward only"]
        return "\n".join(lines)
