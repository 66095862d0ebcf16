"""Convolutions side by side: several grouped convolutions that together are one convolution to those around them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from sparsekern.nn import asked_about
from sparsekern.nn.computed import now
from sparsekern.nn.group_weights import dense_twin, inside_groups
from sparsekern.nn.grouped_conv2d import GroupedConv2d
from sparsekern.ops.define import of_a_transform


class Place(NamedTuple):
    """Where a part lies in the dense convolution ``[K, C, KH, KW]``, and what of ``x`` it sees."""

    channel: int = 0  # the first input channel that it reads
    tap: tuple[int, int] = (0, 0)  # the first kernel row and column that it has
    crop: tuple[int, int] = (0, 0)  # rows and columns of x cut off on each side before it runs


class ConvsSideBySide(nn.Module):
    """``parts`` run one after the other; their outputs are concatenated over channels. From outside it is one ``nn.Conv2d``.

    Subclasses set what an ``nn.Conv2d`` has (``in_channels`` to ``padding_mode``, ``activation``) and call :meth:`_set_parts`.

    Attributes:
        parts: the :class:`GroupedConv2d` in order; a ``state_dict`` holds their parameters, ``parts.0.weight`` and so on. A dense one
            (``weight [K, C, KH, KW]``, ``bias``) loads too: each part takes what lies inside it.
    """

    in_channels: int
    out_channels: int
    kernel_size: tuple[int, int]
    activation: str
    parts: Sequence[GroupedConv2d]

    def _set_parts(self, parts: Sequence[GroupedConv2d], places: Sequence[Place]) -> None:
        self.parts = nn.ModuleList(parts)  # type: ignore[assignment] # which knows nothing of what is in it
        self._places = list(places)
        self.register_load_state_dict_pre_hook(_load_dense)

    def __setattr__(self, name: str, value: Any) -> None:
        """The parts were made for this window."""
        fixed = name in ("stride", "padding", "dilation", "padding_mode", "activation") and "_places" in self.__dict__
        self._check(not fixed, name, f"the one that the layer was made with, {getattr(self, name, None)!r}", repr(value))
        super().__setattr__(name, value)

    def _check(self, condition: bool, arg: str, rule: str, got: Any) -> None:
        if not condition:
            raise ValueError(f"{type(self).__name__}: {arg} must be {rule}; got {got}")

    def forward(self, input: Tensor) -> Tensor:
        if not isinstance(input, Tensor):
            raise TypeError(f"{type(self).__name__}: x must be a tensor; got {type(input).__name__}")
        if input.dim() not in (3, 4) or input.shape[-3] != self.in_channels:
            self._check(False, "x", f"[N, {self.in_channels}, H, W] or [{self.in_channels}, H, W]", list(input.shape))
        plain = input.is_contiguous()
        last = not plain and input.dim() == 4 and not of_a_transform(input) and input.is_contiguous(memory_format=torch.channels_last)
        layout = torch.channels_last if last else torch.contiguous_format
        outs = []
        for part, place in zip(self.parts, self._places):
            seen = _seen(input, part, place)
            outs.append(part(seen if seen is input and (plain or last) else seen.contiguous(memory_format=layout)))
        out = torch.cat(outs, dim=-3)
        return out if of_a_transform(out) else out.contiguous(memory_format=layout)

    @property
    def density(self) -> float:
        """Kept fraction of the dense layer's weights."""
        height, width = self.kernel_size
        return sum(part.weight.numel() for part in self.parts) / (self.out_channels * self.in_channels * height * width)

    # ---- to and from dense

    def weight_dense(self) -> Tensor:
        """``[out_channels, in_channels, KH, KW]`` with zeros where no part has a weight; differentiable."""
        whole = self.in_channels, *self.kernel_size
        rows = []
        for part, place in zip(self.parts, self._places):
            dense = part.weight_dense()  # [K', C', KH', KW']
            pads = [(at, size - at - own) for at, size, own in zip((place.channel, *place.tap), whole, dense.shape[1:])]
            rows.append(nn.functional.pad(dense, [n for pair in reversed(pads) for n in pair]))
        return torch.cat(rows)

    def bias_dense(self) -> Tensor | None:
        """``[out_channels]``: the parts' biases; None without."""
        biases = [now(part, "bias") for part in self.parts if part.bias is not None]
        return torch.cat(biases) if biases else None

    def to_dense(self) -> nn.Module:
        """A dense ``nn.Conv2d`` that computes the same (followed by ``nn.ReLU`` if this layer has one)."""
        dense = dense_twin(self, self.weight_dense(), self.bias_dense())
        return nn.Sequential(dense, nn.ReLU()) if self.activation == "relu" else dense

    # ---- what it is, and what runs

    def explain(self, x_shape: Sequence[int] | Tensor | None = None, *, channels_last: bool = False) -> str:
        """Who serves each part for an input ``[N, C, H, W]`` (a shape or a tensor; default: one image of 32 x 32), and why."""
        shape, channels_last = asked_about.images(type(self).__name__, self.in_channels, x_shape, channels_last)
        lines = [f"{type(self).__name__} {self.in_channels} -> {self.out_channels}, {len(self.parts)} convolutions side by side"]
        for part, place in zip(self.parts, self._places):
            size = (side - 2 * crop for side, crop in zip(shape[2:], place.crop))
            lines.append(part.explain((shape[0], part.in_channels, *size), channels_last=channels_last))
        return "\n".join(lines)


def _seen(x: Tensor, part: GroupedConv2d, place: Place) -> Tensor:
    """What of ``x [..., C, H, W]`` the part reads."""
    if part.in_channels < x.shape[-3]:
        x = x.narrow(-3, place.channel, part.in_channels)
    if place.crop == (0, 0):
        return x
    for dim, crop in zip((-2, -1), place.crop):
        if crop:
            x = x.narrow(dim, crop, max(0, x.shape[dim] - 2 * crop))
    return x


def _load_dense(module: ConvsSideBySide, state_dict: dict[str, Any], prefix: str, *args: Any) -> None:
    """Before loading: a dense weight and bias are cut up into the parts' own."""
    weight = state_dict.get(prefix + "weight")
    if weight is None or tuple(weight.shape) != (module.out_channels, module.in_channels, *module.kernel_size):
        return
    dense = {name: state_dict.pop(prefix + name) for name in ("weight", "bias") if prefix + name in state_dict}
    first = 0
    for i, (part, place) in enumerate(zip(module.parts, module._places)):
        rows = slice(first, first + part.out_channels)
        channels = slice(place.channel, place.channel + part.in_channels)
        taps = (slice(at, at + size) for at, size in zip(place.tap, part.kernel_size))
        inside = (rows, channels, *taps)
        own = inside_groups(dense["weight"][inside], part.in_channels, part.groups)
        state_dict[f"{prefix}parts.{i}.weight"] = own
        if "bias" in dense:
            state_dict[f"{prefix}parts.{i}.bias"] = dense["bias"][rows]
        first += part.out_channels
