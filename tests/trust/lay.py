"""Ways in which the same values can lie in memory: strides, offsets, addresses that no vector likes."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor


def _inside(t: Tensor, before: int, after: int, dim: int) -> Tensor:
    """A part of something larger along ``dim``, between numbers that would be noticed."""
    sizes = list(t.shape)
    sizes[dim] += before + after
    whole = t.new_full(sizes, float("nan") if t.is_floating_point() else -7)
    part = whole.narrow(dim, before, t.shape[dim])
    return part.copy_(t)


def _unaligned(t: Tensor, bytes_off: int) -> Tensor:
    """At an address that is no multiple of the element's size."""
    size = t.numel() * t.element_size()
    memory = torch.empty(size + 64, dtype=torch.uint8)
    if not size:
        return t.clone()
    buffer = memory.numpy()[bytes_off : bytes_off + size]
    return torch.frombuffer(buffer, dtype=t.dtype).view(t.shape).copy_(t)


def _steps(t: Tensor, step: int) -> Tensor:
    """Every ``step``-th element of the last dimension of something larger."""
    sizes = [*t.shape[:-1], t.shape[-1] * step]
    return t.new_full(sizes, float("nan") if t.is_floating_point() else -7)[..., ::step].copy_(t)


def _expanded(t: Tensor) -> Tensor:
    """The first slice again and again, with stride 0: other values than ``t``'s, the same for every slice."""
    return t[:1].expand(t.shape) if t.dim() and t.shape[0] else t


def _flipped(t: Tensor) -> Tensor:
    """What numpy's negative strides come to, which torch can only copy."""
    return torch.from_numpy(t.contiguous().view(torch.int16 if t.element_size() == 2 else t.dtype).numpy()[..., ::-1].copy()).view(t.dtype)


def _permuted(t: Tensor) -> Tensor:
    """The last dimension outermost: of a matrix, its columns one after the other."""
    return t.movedim(-1, 0).contiguous().movedim(0, -1)


#: Each returns a tensor of the same shape and dtype; all but the last two of the same values.
LAYS: dict[str, Callable[[Tensor], Tensor]] = {
    "contiguous": lambda t: t.contiguous(),
    "offset 1": lambda t: _inside(t.flatten(), 1, 1, 0).view(t.shape),
    "offset 3": lambda t: _inside(t.flatten(), 3, 0, 0).view(t.shape),
    "off by a byte": lambda t: _unaligned(t, 1),
    "off by 2 bytes": lambda t: _unaligned(t, 2),
    "wide rows": lambda t: _inside(t, 2, 3, -1) if t.dim() else t,
    "wide rows of an odd many": lambda t: _inside(t, 0, 1, -1) if t.dim() else t,
    "every second": lambda t: _steps(t, 2) if t.dim() else t,
    "inside": lambda t: _inside(t, 1, 2, 0) if t.dim() else t,
    "last dimension first": lambda t: _permuted(t) if t.dim() > 1 else t,
    "channels last": lambda t: t.contiguous(memory_format=torch.channels_last) if t.dim() == 4 else t,
    "channels last, off by a byte": lambda t: _unaligned(t.movedim(1, -1).contiguous(), 1).movedim(-1, 1) if t.dim() == 4 else t,
    "flipped": lambda t: _flipped(t) if t.dim() else t,
    "expanded": _expanded,
}
