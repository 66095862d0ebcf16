"""joined_conv2d_packed: convolutions side by side whose results are joined by channel, each written where it belongs; for inference.

    xs[i] [N, Ci, Hi, Wi]   packed[i] of weight [Ki, Ci/Gi, KHi, KWi]   biases[i] [Ki]        out [N, K1 + K2 + ..., OH, OW]
    out = concatenation of act(conv(xs[i], weight i) + biases[i])

The end of an Inception module (Szegedy et al., arXiv 1409.4842) without the copy that joins its branches.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from sparsekern.ops import define as d
from sparsekern.ops.flop_formulas import register_flops
from sparsekern.ops.grouped_conv2d import ACTIVATIONS, _laid_out_like, _new_like, _out_size
from sparsekern.ops.grouped_conv2d_packed import _SEAL, _SIZES, _is_pack, pack_grouped_conv2d, unpack_grouped_conv2d  # noqa: F401 (the example)
from sparsekern.ops.types import Shape

NAME = "joined_conv2d"
NUMBERS = 9  # of a window: kernel, stride, padding, dilation, each (rows, columns); groups


def _windows(numbers: Sequence[int]) -> list[Sequence[int]]:
    return [numbers[i : i + NUMBERS] for i in range(0, len(numbers), NUMBERS)]


def _map(x: Sequence[int], window: Sequence[int]) -> tuple:
    """(OH, OW) of a convolution."""
    kernel_h, kernel_w, stride_h, stride_w, pad_h, pad_w, dilation_h, dilation_w, _ = window
    return _out_size(x[2], kernel_h, stride_h, pad_h, dilation_h), _out_size(x[3], kernel_w, stride_w, pad_w, dilation_w)


def check(xs: Any, packed: Any, biases: Any, windows: Sequence[int], relu: bool) -> tuple:
    """Everything that can be wrong with the arguments; returns the shape of the result."""
    count = len(xs)
    d.must(count > 0, NAME, "xs", "at least one image", count)
    d.must(len(packed) == count and len(biases) == count, NAME, "packed", f"{count} packs with their biases", (len(packed), len(biases)))
    d.must(len(windows) == NUMBERS * count, NAME, "windows", f"{NUMBERS} numbers for each of {count}", len(windows))
    maps, channels = [], 0
    d.must(all(map(d.is_whole, windows)), NAME, "windows", "of whole numbers", list(windows))
    for x, pack, bias, window in zip(xs, packed, biases, _windows(windows)):
        d.check_tensor(NAME, "xs", x)
        d.must(x.dtype in (torch.float32, torch.float16, torch.bfloat16), NAME, "xs", "float32, float16 or bfloat16", x.dtype)
        d.must(x.dim() == 4, NAME, "xs", "[N, C, H, W] each", list(x.shape))
        d.check_like(NAME, "xs", x, xs[0], "the first")
        d.check_int32(NAME, "packed", pack, x, 1)
        d.must(pack.is_contiguous(), NAME, "packed", "contiguous", f"strides {pack.stride()}")
        d.check_like(NAME, "biases", bias, x)
        good = min(window[:4]) > 0 and min(window[4:6]) >= 0 and min(window[6:]) > 0 and max(window) < 2**31
        d.must(good, NAME, "windows", "of positive numbers" if max(window) < 2**31 else "of numbers below 2^31", list(window))
        if d.readable(pack):
            d.must(_is_pack(pack), NAME, "packed", "made by pack_grouped_conv2d", f"{pack.numel()} other numbers")
            filters, own, *rest, groups = pack[_SIZES].tolist()
            asked, held = [bias.shape[0], x.shape[1], *window[:2], window[8]], [filters, own * groups, *rest, groups]
            d.must(asked == held, NAME, "packed", f"of [K, C, KH, KW, groups] = {asked}", held)
        maps.append([x.shape[0], *_map(x.shape, window)])
        d.must(min(maps[-1][1:]) > 0, NAME, "xs", f"at least {window[0]} x {window[1]} with its padding", list(x.shape))
        d.must(maps[-1] == maps[0], NAME, "xs", f"of results [N, OH, OW] = {maps[0]} like the first", maps[-1])
        channels += bias.shape[0]
    return (maps[0][0], channels, *maps[0][1:])


def reference(xs: Sequence[Tensor], packed: Tensor, biases: Sequence[Tensor], windows: Shape, relu: bool) -> Tensor:
    check(xs, packed, biases, windows, relu)
    parts = []
    with torch.autocast(xs[0].device.type, enabled=False):  # in float32, as the kernels
        for x, pack, bias, w in zip(xs, packed, biases, _windows(windows)):
            xc, bc = d.compute(x, bias)
            parts.append(d.convolve(xc, unpack_grouped_conv2d(pack), bc, w[2:4], w[4:6], w[6:8], w[8]))
    out = torch.cat(parts, 1)
    return _laid_out_like(xs[0], (out.relu() if relu else out).to(xs[0].dtype))


def fake(xs: Sequence[Tensor], packed: Tensor, biases: Sequence[Tensor], windows: Shape, relu: bool) -> Tensor:
    return _new_like(xs[0], check(xs, packed, biases, windows, relu))


def flops(xs: Sequence[Shape], packed: Shape, biases: Sequence[Shape], windows: Shape, relu: bool, **kwargs: Any) -> int:
    total = 0
    for x, bias, w in zip(xs, biases, _windows(windows)):
        height, width = _map(x, w)
        total += 2 * x[0] * height * width * bias[0] * (x[1] // w[8]) * w[0] * w[1]
    return total


d.LIBRARY.define(
    f"{NAME}_packed(Tensor[] xs, Tensor[] packed, Tensor[] biases, int[] windows, bool relu) -> Tensor",
    tags=(torch.Tag.pt2_compliant_tag,),
)
d.LIBRARY.impl(f"{NAME}_packed", reference, "CompositeExplicitAutograd")
torch.library.register_fake(f"sparsekern::{NAME}_packed", fake, lib=d.LIBRARY)
register_flops(torch.ops.sparsekern.joined_conv2d_packed, flops)


def joined_conv2d_packed(
    xs: Sequence[Tensor], packed: Sequence[Tensor], biases: Sequence[Tensor], windows: Sequence[int], activation: str = "none"
) -> Tensor:
    """Convolutions whose results are joined by channel, on packed weights, for inference.

    Args:
        xs: ``[N, C, H, W]`` each, float32, float16 or bfloat16; the same tensor may come several times. Under autocast, its dtype.
        packed: from :func:`~sparsekern.ops.pack_grouped_conv2d`, one per image.
        biases: ``[K]`` each, dtype of the images.
        windows: nine numbers per convolution: kernel, stride, padding and dilation, each rows and columns, and groups.
        activation: ``"none"`` or ``"relu"``, after all of them.

    Returns:
        ``[N, sum of K, OH, OW]``, channels_last if the first image is; the results must be of one size.

    Raises:
        ValueError: ``joined_conv2d: xs must be of results [N, OH, OW] = [1, 5, 5] like the first; got [1, 4, 4]``

    Example:
        >>> x, weight, bias = torch.ones(1, 2, 3, 3), torch.ones(1, 2, 1, 1), torch.zeros(1)
        >>> joined_conv2d_packed([x, x], [pack_grouped_conv2d(weight)] * 2, [bias, bias + 1], [1, 1, 1, 1, 0, 0, 1, 1, 1] * 2)[0, :, 0, 0]
        tensor([2., 3.])
    """
    d.must(activation in ACTIVATIONS, NAME, "activation", f"one of {ACTIVATIONS}", repr(activation))
    for arg, given in (("xs", xs), ("packed", packed), ("biases", biases), ("windows", windows)):
        d.must(isinstance(given, Sequence) and not isinstance(given, str), NAME, arg, "a sequence", type(given).__name__)
    arguments: tuple[Any, ...] = list(xs), list(packed), list(biases), list(windows), activation == "relu"
    try:
        if not torch.compiler.is_compiling():
            for pack in packed:
                d.require_whole(pack, _SEAL, "joined_conv2d: packed")
        if d.autocast_enabled():
            arguments = list(d.autocast(*xs)), list(packed), list(d.autocast(*biases)), *arguments[3:]
        if d.backends.forced_reference and not torch.compiler.is_compiling():
            return reference(*arguments)
        return torch.ops.sparsekern.joined_conv2d_packed(*arguments)
    except (RuntimeError, TypeError, AttributeError, IndexError):
        check(*arguments)
        raise
