"""grouped_conv2d_packed: grouped_conv2d on a weight that was packed, on request, into the kernels' own order.

    x [N, C, H, W]   packed [*] int32 (weights, by their bits)   bias [K] or None   shortcut [N, K, OH, OW] or None

Inference only. The pack is a real tensor, seen by compile and export; nothing writes it after :func:`pack_grouped_conv2d`.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from sparsekern.ops import define as d
from sparsekern.ops.flop_formulas import register_flops
from sparsekern.ops.grouped_conv2d import _WINDOW, ACTIVATIONS, _flops, _laid_out_like, _new_like, _out_size, _pair
from sparsekern.ops.types import Shape

NAME = "grouped_conv2d_packed"

# words of the header (core/grouped_conv2d_pack.cpp)
_MAGIC, _SIZES, _LENGTH, _BLOCKED, _ORDER, _VECTORS, _SPANNING, _LANES = 0, slice(2, 7), 7, 8, 9, 10, 11, 12
_BUNDLE, _STEPS, _SEAL, _HEADER = 13, 14, 31, 32
_TILES = 2  # in the word _BLOCKED: bf16 in matrix tiles
_MAGIC_VALUE = 0x534B4331
_TAP_MAJOR, _ROW_MAJOR = 0, 1


def check(x: Any, packed: Any, bias: Any, shortcut: Any, out_channels: int, kernel_h: int, kernel_w: int, *rest: Any) -> None:
    """Everything that can be wrong with the arguments; the header of ``packed`` where it can be read. ``x`` may be one image."""
    stride_h, stride_w, pad_h, pad_w, dilation_h, dilation_w, groups, _ = rest
    d.check_whole(NAME, out_channels=out_channels)
    d.check_pairs(NAME, kernel_size=(kernel_h, kernel_w))
    d.check_tensor(NAME, "x", x)
    d.must(x.dtype in (torch.float32, torch.float16, torch.bfloat16), NAME, "x", "float32, float16 or bfloat16", x.dtype)
    d.must(x.dim() in (3, 4), NAME, "x", "[N, C, H, W] or [C, H, W]", list(x.shape))
    d.check_int32(NAME, "packed", packed, x, 1)
    d.must(packed.is_contiguous(), NAME, "packed", "contiguous", f"strides {packed.stride()}")
    d.must(isinstance(groups, int | torch.SymInt) and groups > 0, NAME, "groups", "an int of at least 1", groups)
    if d.readable(packed):
        d.must(_is_pack(packed), NAME, "packed", "made by pack_grouped_conv2d", f"{packed.numel()} other numbers")
        filters, channels, rows, columns, held = packed[_SIZES].tolist()
        asked, sizes = [out_channels, kernel_h, kernel_w, groups], [filters, rows, columns, held]
        d.must(asked == sizes, NAME, "packed", f"of [K, KH, KW, groups] = {asked}", sizes)
        d.must(x.shape[-3] == channels * groups, NAME, "x", f"[..., {channels * groups}, H, W]", list(x.shape))
    if bias is not None:
        d.check_like(NAME, "bias", bias, x)
        d.must(tuple(bias.shape) == (out_channels,), NAME, "bias", f"[{out_channels}]", list(bias.shape))
    d.check_window(NAME, stride=(stride_h, stride_w), padding=(pad_h, pad_w), dilation=(dilation_h, dilation_w))
    reach_h, reach_w = dilation_h * (kernel_h - 1) + 1, dilation_w * (kernel_w - 1) + 1
    fits = x.shape[-2] + 2 * pad_h >= reach_h and x.shape[-1] + 2 * pad_w >= reach_w
    d.must(fits, NAME, "x", f"at least {reach_h} x {reach_w} with its padding", list(x.shape))
    if shortcut is not None:
        d.check_like(NAME, "shortcut", shortcut, x)
        height, width = (
            _out_size(x.shape[-2], kernel_h, stride_h, pad_h, dilation_h),
            _out_size(x.shape[-1], kernel_w, stride_w, pad_w, dilation_w),
        )
        sizes = [*x.shape[:-3], out_channels, height, width]
        d.must(list(shortcut.shape) == sizes, NAME, "shortcut", f"{sizes} like the result", list(shortcut.shape))


def _is_pack(packed: Tensor) -> bool:
    whole = packed.numel() > _HEADER and int(packed[_MAGIC]) == _MAGIC_VALUE and int(packed[_LENGTH]) == packed.numel()
    return whole and d.sealed(packed, _SEAL)


def unpack_grouped_conv2d(packed: Tensor) -> Tensor:
    """The ``weight [K, C/G, KH, KW]`` float32 of a pack.

    Blocks hold ``V * lanes`` output channels each, cut inside a group or (``spanning``) regardless of groups; a block is
    ``[KH, KW, C/G, V*lanes]``, ``[KH, C/G, KW, V*lanes]`` or ``[C/G, KH, KW, V*lanes]``.
    """
    filters, channels, rows, columns, groups = packed[_SIZES].tolist()
    blocked, order, vectors, spanning, lanes = packed[_BLOCKED : _LANES + 1].tolist()
    values = packed[_HEADER:].view(torch.float32)
    if blocked == _TILES:
        return _unpack_tiles(packed, filters, channels, rows, columns, groups)
    if not blocked:
        return values[: filters * channels * rows * columns].reshape(filters, channels, rows, columns).clone()
    width, one_line = vectors * lanes, spanning or channels == 1 == filters // groups  # depthwise: vectors as they come
    runs, run = (1, filters) if one_line else (groups, filters // groups)
    per_run = -(-run // width)
    sizes = {_TAP_MAJOR: (rows, columns, channels), _ROW_MAJOR: (rows, channels, columns)}.get(order, (channels, rows, columns))
    back = {_TAP_MAJOR: (2, 0, 1), _ROW_MAJOR: (1, 0, 2)}.get(order, (0, 1, 2))
    blocks = values[: runs * per_run * channels * rows * columns * width].reshape(runs, per_run, *sizes, width)
    weight = blocks.permute(0, 1, 5, *(2 + i for i in back)).reshape(runs, per_run * width, channels, rows, columns)
    return weight[:, :run].reshape(filters, channels, rows, columns)


def _unpack_tiles(packed: Tensor, filters: int, channels: int, rows: int, columns: int, groups: int) -> Tensor:
    """From tiles ``[bundles, tiles, pairs, 16, 2]`` behind a table ``[pairs, 4]``: the weight column that each of two values meets (-1:
    none), and their groups in the bundle."""
    bundle, steps = packed[_BUNDLE : _STEPS + 1].tolist()
    pairs, bundles = 16 * steps, -(-groups // bundle)
    tiles = -(-bundle * (filters // groups) // 16)
    table = packed[_HEADER : _HEADER + 4 * pairs].view(pairs, 2, 2)  # [pairs, column or group, low or high]
    values = packed[_HEADER + 4 * pairs :][: bundles * tiles * pairs * 16].view(torch.bfloat16).view(bundles, tiles, pairs, 16, 2)
    weight = torch.zeros(filters, channels * rows * columns)
    for k in range(filters):
        channel = k % (bundle * (filters // groups))
        mine = (table[:, 0] >= 0) & (table[:, 1] == channel // (filters // groups))
        row = values[k // (bundle * (filters // groups)), channel // 16, :, channel % 16]
        weight[k, table[:, 0][mine].long()] = row[mine].float()
    return weight.view(filters, channels, rows, columns)


def explain_packed(packed: Tensor) -> str:
    """What a pack holds, in words."""
    blocked, _, vectors, _, lanes = packed[_BLOCKED : _LANES + 1].tolist()
    if blocked == _TILES:
        return "matrix tiles"
    return f"blocks of {vectors * lanes} channels" if blocked else "the natural weight"


@d.outside_autocast
def reference(
    x: Tensor, packed: Tensor, bias: Tensor | None, shortcut: Tensor | None, out_channels: int, kernel_h: int, kernel_w: int, *rest: Any
) -> Tensor:
    check(x, packed, bias, shortcut, out_channels, kernel_h, kernel_w, *rest)
    *window, groups, relu = rest
    xc, bc, added = d.compute(x, bias, shortcut)
    out = d.convolve(xc, unpack_grouped_conv2d(packed), bc, window[:2], window[2:4], window[4:], groups)
    out = out if added is None else out + added
    return _laid_out_like(x, (out.relu() if relu else out).to(x.dtype))


def fake(
    x: Tensor, packed: Tensor, bias: Tensor | None, shortcut: Tensor | None, out_channels: int, kernel_h: int, kernel_w: int, *rest: Any
) -> Tensor:
    check(x, packed, bias, shortcut, out_channels, kernel_h, kernel_w, *rest)
    stride_h, stride_w, pad_h, pad_w, dilation_h, dilation_w, *_ = rest
    height = _out_size(x.shape[2], kernel_h, stride_h, pad_h, dilation_h)
    width = _out_size(x.shape[3], kernel_w, stride_w, pad_w, dilation_w)
    return _new_like(x, (x.shape[0], out_channels, height, width))


def flops(
    x: Shape, packed: Shape, bias: Shape | None, shortcut: Shape | None, out_channels: int, kernel_h: int, kernel_w: int, *rest: Any,
    **kwargs: Any,
) -> int:  # fmt: skip
    stride_h, stride_w, pad_h, pad_w, dilation_h, dilation_w, groups, *_ = rest
    height, width = _out_size(x[2], kernel_h, stride_h, pad_h, dilation_h), _out_size(x[3], kernel_w, stride_w, pad_w, dilation_w)
    return _flops((x[0], out_channels, height, width), (out_channels, x[1] // groups, kernel_h, kernel_w))


d.LIBRARY.define(
    f"{NAME}(Tensor x, Tensor packed, Tensor? bias, Tensor? shortcut, int out_channels, int kernel_h, int kernel_w, {_WINDOW}, "
    "bool relu) -> Tensor",
    tags=(torch.Tag.pt2_compliant_tag,),
)
d.LIBRARY.define(f"pack_grouped_conv2d(Tensor weight, int N, int H, int W, {_WINDOW.replace('SymInt', 'int')}) -> Tensor")
d.LIBRARY.impl(NAME, reference, "CompositeExplicitAutograd")
torch.library.register_fake(f"sparsekern::{NAME}", fake, lib=d.LIBRARY)
register_flops(torch.ops.sparsekern.grouped_conv2d_packed, flops)


def pack_grouped_conv2d(
    weight: Tensor,
    stride: int | tuple[int, int] = 1,
    padding: int | tuple[int, int] = 0,
    dilation: int | tuple[int, int] = 1,
    groups: int = 1,
    *,
    images: tuple[int, int, int] = (1, 28, 28),
) -> Tensor:
    """Put a weight into the order in which the kernels of channels_last images read it, once.

    Args:
        weight: ``[K, C/G, KH, KW]`` float32, float16 or bfloat16, contiguous or channels_last. Kept as float32; bfloat16 as such
            where matrix tiles serve it, which then are for bfloat16 images and this stride and dilation.
        stride, padding, dilation, groups: of the convolution.
        images: ``(N, H, W)`` of the images that the order is chosen for; others are served too, perhaps less well.

    Returns:
        ``[*]`` int32 on the CPU: 4 bytes per weight (2 in tiles), more where the channels of a group do not fill vectors.

    Raises:
        ValueError: ``grouped_conv2d_packed: weight must be float32, float16 or bfloat16 on a CPU with compiled kernels; got ...``
    """
    d.check_tensor(NAME, "weight", weight)
    rule = "float32, float16 or bfloat16 on a CPU with compiled kernels"
    d.must(d.backends.can_pack(weight), NAME, "weight", rule, f"{weight.dtype} on {weight.device.type}")
    d.must(weight.dim() == 4 and min(weight.shape) > 0, NAME, "weight", "[K, C/G, KH, KW], each at least 1", list(weight.shape))
    d.check_whole(NAME, groups=groups)
    d.must(groups > 0 and weight.shape[0] % groups == 0, NAME, "groups", f"a divisor of the {weight.shape[0]} filters", groups)
    d.check_pairs(NAME, stride=stride, padding=padding, dilation=dilation)
    pairs = dict(stride=_pair(stride), padding=_pair(padding), dilation=_pair(dilation))
    d.check_window(NAME, **pairs)
    sizes = isinstance(images, tuple | list) and len(images) == 3 and all(d.is_whole(n) and 0 <= n < 2**31 for n in images)
    d.must(sizes, NAME, "images", "(N, H, W), each at least 0 and below 2^31", d.said(images))
    count, *size = images
    reach = [step * (taps - 1) + 1 for step, taps in zip(pairs["dilation"], weight.shape[2:])]  # smaller images than the window are none
    size = [max(n, least - 2 * pad) for n, least, pad in zip(size, reach, pairs["padding"])]
    kept = weight.detach() if weight.dtype == torch.bfloat16 else weight.detach().float()
    return torch.ops.sparsekern.pack_grouped_conv2d(kept, count, *size, *(n for pair in pairs.values() for n in pair), groups)


def grouped_conv2d_packed(
    x: Tensor,
    packed: Tensor,
    bias: Tensor | None,
    out_channels: int,
    kernel_size: int | tuple[int, int],
    stride: int | tuple[int, int] = 1,
    padding: int | tuple[int, int] = 0,
    dilation: int | tuple[int, int] = 1,
    groups: int = 1,
    activation: str = "none",
    shortcut: Tensor | None = None,
) -> Tensor:
    """:func:`~sparsekern.ops.grouped_conv2d` on a packed weight, for inference.

    Args:
        x: ``[N, C, H, W]`` or ``[C, H, W]``, float32, float16 or bfloat16. channels_last is what the pack is for; for other
            layouts, as on another processor than the one that packed, the weight is put back at every call.
        packed: from :func:`pack_grouped_conv2d`.
        bias: ``[out_channels]`` or None, dtype of ``x``.
        out_channels, kernel_size, groups: of the weight.
        stride, padding, dilation, activation, shortcut: as in ``grouped_conv2d``; padding in numbers.

    Returns:
        As ``grouped_conv2d``.

    Raises:
        ValueError: ``grouped_conv2d_packed: packed must be made by pack_grouped_conv2d; got 64 other numbers``

    Example:
        >>> x, weight = torch.ones(1, 4, 3, 3), torch.ones(2, 2, 3, 3)
        >>> packed = pack_grouped_conv2d(weight, padding=1, groups=2)
        >>> grouped_conv2d_packed(x, packed, None, 2, 3, padding=1, groups=2)[0, 0]
        tensor([[ 8., 12.,  8.],
                [12., 18., 12.],
                [ 8., 12.,  8.]])
    """
    sizes = (out_channels, *_pair(kernel_size), *_pair(stride), *_pair(padding), *_pair(dilation), groups, activation == "relu")
    if activation not in ACTIVATIONS:
        d.must(False, NAME, "activation", f"one of {ACTIVATIONS}", repr(activation))
    try:
        one = x.dim() == 3
        image, b, added = x.unsqueeze(0) if one else x, bias, shortcut.unsqueeze(0) if one and shortcut is not None else shortcut
        if not torch.compiler.is_compiling():
            d.require_whole(packed, _SEAL, "grouped_conv2d_packed: packed")
        if d.autocast_enabled():
            image, b, added = d.autocast(image, b, added)
        if d.backends.forced_reference and not torch.compiler.is_compiling():
            out = reference(image, packed, b, added, *sizes)
        else:
            out = torch.ops.sparsekern.grouped_conv2d_packed(image, packed, b, added, *sizes)
        return out.squeeze(0) if one else out
    except (RuntimeError, TypeError, AttributeError, IndexError):
        d.check_tensor(NAME, "x", x)
        d.check_pairs(NAME, stride=stride, padding=padding, dilation=dilation)
        check(x, packed, bias, shortcut, *sizes)
        raise
