"""pool2d: max and average pooling with the exact meaning of ``torch.nn.functional.max_pool2d`` and ``avg_pool2d``.

    x [N, C, H, W]
    out[n, c, oy, ox] = max, or mean, of x[n, c, oy*stride - padding + ky, ox*stride - padding + kx] over the window

For networks whose convolutions run in channels_last: torch's pooling takes a quarter of a fast GoogLeNet. Where a gradient is
needed, torch's own pooling runs.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from sparsekern.ops import define as d
from sparsekern.ops.grouped_conv2d import _laid_out_like, _new_like, _pair

NAME = "pool2d"
MAX, AVERAGE, AVERAGE_COUNTING_PADDING = 0, 1, 2
POOLINGS = ("max", "average")


def check(
    x: Any, kernel_h: int, kernel_w: int, stride_h: int, stride_w: int, pad_h: int, pad_w: int, ceil_mode: bool, pooling: int
) -> None:
    """Everything that can be wrong with the arguments of the op; ``x`` may still be one image ``[C, H, W]``."""
    d.check_floating(NAME, "x", x)
    d.must(x.dim() in (3, 4), NAME, "x", "[N, C, H, W] or [C, H, W]", list(x.shape))
    sizes = (kernel_h, kernel_w, stride_h, stride_w, pad_h, pad_w)
    for arg, pair in zip(("kernel_size", "stride", "padding"), zip(sizes[::2], sizes[1::2])):
        d.must(all(map(d.is_whole, pair)), NAME, arg, "an int or two", pair)
    d.check_window(NAME, kernel_size=(kernel_h, kernel_w), stride=(stride_h, stride_w))
    inside = 0 <= 2 * pad_h <= kernel_h and 0 <= 2 * pad_w <= kernel_w
    d.must(inside, NAME, "padding", f"0 to half of the window {(kernel_h, kernel_w)}", (pad_h, pad_w))
    sides = zip(x.shape[-2:], sizes[:2], sizes[2:4], sizes[4:])
    fits = min(x.shape[-3:]) > 0 and all(_pooled(*side, ceil_mode) > 0 for side in sides)
    d.must(fits, NAME, "x", f"at least {kernel_h} x {kernel_w} with its padding", list(x.shape))


def _pooled(size: int, kernel: int, stride: int, padding: int, ceil_mode: bool) -> int:
    """torch's rule: with ceil_mode the last window may hang over, but begins inside the image or the padding before it."""
    out = (size + 2 * padding - kernel + (stride - 1 if ceil_mode else 0)) // stride + 1
    return out - 1 if ceil_mode and (out - 1) * stride >= size + padding else out


def _torch(x: Tensor, kernel: tuple[int, ...], stride: tuple[int, ...], padding: tuple[int, ...], ceil_mode: bool, pooling: int) -> Tensor:
    if pooling == MAX:
        return torch.nn.functional.max_pool2d(x, kernel, stride, padding, 1, ceil_mode)
    return torch.nn.functional.avg_pool2d(x, kernel, stride, padding, ceil_mode, pooling == AVERAGE_COUNTING_PADDING)


def reference(
    x: Tensor, kernel_h: int, kernel_w: int, stride_h: int, stride_w: int, pad_h: int, pad_w: int, ceil_mode: bool, pooling: int
) -> Tensor:
    check(x, kernel_h, kernel_w, stride_h, stride_w, pad_h, pad_w, ceil_mode, pooling)
    return _laid_out_like(x, _torch(x, (kernel_h, kernel_w), (stride_h, stride_w), (pad_h, pad_w), ceil_mode, pooling))


def fake(
    x: Tensor, kernel_h: int, kernel_w: int, stride_h: int, stride_w: int, pad_h: int, pad_w: int, ceil_mode: bool, pooling: int
) -> Tensor:
    check(x, kernel_h, kernel_w, stride_h, stride_w, pad_h, pad_w, ceil_mode, pooling)
    height = _pooled(x.shape[2], kernel_h, stride_h, pad_h, ceil_mode)
    return _new_like(x, (x.shape[0], x.shape[1], height, _pooled(x.shape[3], kernel_w, stride_w, pad_w, ceil_mode)))


d.LIBRARY.define(
    f"{NAME}(Tensor x, SymInt kernel_h, SymInt kernel_w, SymInt stride_h, SymInt stride_w, SymInt pad_h, SymInt pad_w, bool ceil_mode, "
    "int pooling) -> Tensor",
    tags=(torch.Tag.pt2_compliant_tag,),
)
d.LIBRARY.impl(NAME, reference, "CompositeExplicitAutograd")
torch.library.register_fake(f"sparsekern::{NAME}", fake, lib=d.LIBRARY)


def pool2d(
    x: Tensor,
    kernel_size: int | tuple[int, int] | None = None,
    stride: int | tuple[int, int] | None = None,
    padding: int | tuple[int, int] = 0,
    ceil_mode: bool = False,
    pooling: str = "max",
    count_include_pad: bool = True,
) -> Tensor:
    """Pool ``x`` as torch does, on kernels made for channels_last images.

    Args:
        x: ``[N, C, H, W]`` or ``[C, H, W]``, floating point. Float32 on the CPU is what the kernels are for; torch serves the rest.
        kernel_size: the window; None: the whole image.
        stride: None: the window's size.
        padding: at most half of the window.
        ceil_mode: whether windows that hang over the padding count.
        pooling: ``"max"`` or ``"average"``.
        count_include_pad: whether an average counts the padding's zeros.

    Returns:
        ``[N, C, OH, OW]``, channels_last if ``x`` is. A NaN in a window makes its maximum NaN.

    Raises:
        ValueError: ``pool2d: padding must be 0 to half of the window (3, 3); got (2, 2)``

    Cost:
        One pass over ``x`` for each tap of the window, from the caches.

    Example:
        >>> x = torch.arange(16.0).reshape(1, 1, 4, 4)
        >>> pool2d(x, 3, stride=2, ceil_mode=True)[0, 0]
        tensor([[10., 11.],
                [14., 15.]])
    """
    d.must(pooling in POOLINGS, NAME, "pooling", f"one of {POOLINGS}", repr(pooling))
    d.check_flags(NAME, ceil_mode=ceil_mode, count_include_pad=count_include_pad)
    way = MAX if pooling == "max" else AVERAGE_COUNTING_PADDING if count_include_pad else AVERAGE
    try:
        window: tuple[int, ...] = tuple(x.shape[-2:]) if kernel_size is None else _pair(kernel_size)
        sizes: tuple[Any, ...] = (*window, *(window if stride is None else _pair(stride)), *_pair(padding), bool(ceil_mode), way)
        # a window that hangs over all of x: only torch serves it
        wider = ceil_mode and any(n + 2 * p < k for n, k, p in zip(x.shape[-2:], sizes[:2], sizes[4:6]))
        if wider or d.transforming() or (torch.is_grad_enabled() and x.requires_grad):
            check(x, *sizes)
            return _torch(x, sizes[0:2], sizes[2:4], sizes[4:6], ceil_mode, way)
        image = x.unsqueeze(0) if x.dim() == 3 else x
        forced = d.backends.forced_reference and not torch.compiler.is_compiling()
        out = (reference if forced else torch.ops.sparsekern.pool2d)(image, *sizes)
        return out.squeeze(0) if x.dim() == 3 else out
    except (RuntimeError, TypeError, AttributeError, IndexError):
        d.check_floating(NAME, "x", x)
        check(x, *sizes)
        raise
