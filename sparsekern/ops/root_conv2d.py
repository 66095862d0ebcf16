"""root_conv2d: a grouped convolution and the one or two 1x1 convolutions behind it, in one call, for inference.

    x [N, C, H, W]   weight1 [K1, C/G, KH, KW]   weight2 [K2, K1, 1, 1]   weight3 [K3, K2, 1, 1] or None   biases [K] or None
    y1 = act(conv(x, weight1) + bias1),   y2 = act(conv(y1, weight2) + bias2),   out = act(conv(y2, weight3) + bias3)

A ``shortcut`` of the result's shape is added before the last activation. The root module of Ioannou et al., "Deep Roots", arXiv
1605.06489 (section 3.1), the block of their Network in Network and the end of their bottleneck. The kernels go chunk by chunk (a few
images, or a band of rows), so that what is between the convolutions stays in the cache. Where a gradient is needed, or torch serves a
convolution better, they run one after the other.
"""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor

from sparsekern.ops import define as d
from sparsekern.ops.flop_formulas import register_flops
from sparsekern.ops.grouped_conv2d import _WINDOW, ACTIVATIONS, _fuses, _laid_out_like, _new_like, _out_size, _pair
from sparsekern.ops.grouped_conv2d import grouped_conv2d as convolve
from sparsekern.ops.grouped_conv2d_packed import _SEAL, _SIZES, _is_pack, unpack_grouped_conv2d
from sparsekern.ops.types import Shape

NAME = "root_conv2d"


def _stages(*weights_and_biases: Any) -> list[tuple[Any, Any]]:
    """``[(weight, bias), ...]``, two or three."""
    pairs = list(zip(weights_and_biases[::2], weights_and_biases[1::2]))
    return pairs if pairs[-1][0] is not None else pairs[:-1]


def _check_third(weight: Any, bias: Any) -> None:
    d.must(weight is not None or bias is None, NAME, "bias3", "None without a third weight", d.said(bias))


# ---- check


def _check_x(x: Any) -> None:
    d.check_floating(NAME, "x", x)
    d.must(x.dim() == 4, NAME, "x", "[N, C, H, W]", list(x.shape))


def _check_first(x: Tensor, K: int, channels: int, kernel_h: int, kernel_w: int, window: Shape, what: str, shape: Any) -> tuple:
    """The window and what it gives: ``(rows, columns)``."""
    stride_h, stride_w, pad_h, pad_w, dilation_h, dilation_w, groups = window
    d.must(isinstance(groups, int | torch.SymInt) and groups > 0, NAME, "groups", "an int of at least 1", groups)
    d.must(K % groups == 0, NAME, what, f"of a multiple of groups={groups} filters", shape)
    d.must(x.shape[1] == channels * groups, NAME, "x", f"[N, {channels * groups}, H, W]", list(x.shape))
    d.check_window(NAME, stride=(stride_h, stride_w), padding=(pad_h, pad_w), dilation=(dilation_h, dilation_w))
    reach_h, reach_w = dilation_h * (kernel_h - 1) + 1, dilation_w * (kernel_w - 1) + 1
    fits = x.shape[2] + 2 * pad_h >= reach_h and x.shape[3] + 2 * pad_w >= reach_w
    d.must(fits, NAME, "x", f"at least {reach_h} x {reach_w} with its padding", list(x.shape))
    return _map(x.shape, kernel_h, kernel_w, window)


def _map(x: Shape, kernel_h: int, kernel_w: int, window: Shape) -> tuple:
    stride_h, stride_w, pad_h, pad_w, dilation_h, dilation_w, _ = window
    return _out_size(x[2], kernel_h, stride_h, pad_h, dilation_h), _out_size(x[3], kernel_w, stride_w, pad_w, dilation_w)


def _check_bias(i: int, bias: Any, x: Tensor, K: int) -> None:
    if bias is not None:
        d.check_like(NAME, f"bias{i}", bias, x)
        d.must(tuple(bias.shape) == (K,), NAME, f"bias{i}", f"[{K}]", list(bias.shape))


def _check_shortcut(shortcut: Any, x: Tensor, sizes: list) -> None:
    if shortcut is not None:
        d.check_like(NAME, "shortcut", shortcut, x)
        d.must(list(shortcut.shape) == sizes, NAME, "shortcut", f"{sizes} like the result", list(shortcut.shape))


def check(
    x: Tensor, weight1: Tensor, bias1: Tensor | None, weight2: Tensor, bias2: Tensor | None, weight3: Tensor | None, bias3: Tensor | None,
    shortcut: Tensor | None, *rest: Any,
) -> tuple:  # fmt: skip
    """Everything that can be wrong with the arguments; returns the shape of the result."""
    _check_x(x)
    stages = _stages(weight1, bias1, weight2, bias2, weight3, bias3)
    for i, (weight, _) in enumerate(stages, 1):
        d.check_like(NAME, f"weight{i}", weight, x)
        rule = "[K, C/G, KH, KW]" if i == 1 else "[K, C, 1, 1]"
        good = weight.dim() == 4 and min(weight.shape) > 0 and (i == 1 or tuple(weight.shape[2:]) == (1, 1))
        d.must(good, NAME, f"weight{i}", f"{rule}, each at least 1", list(weight.shape))
    shape = list(weight1.shape)
    height, width = _check_first(x, shape[0], shape[1], shape[2], shape[3], rest[:7], "weight1", shape)
    channels = shape[0]
    for i, (weight, bias) in enumerate(stages, 1):
        own = weight.shape[1]
        groups = rest[6] if i == 1 else channels // own
        good = i == 1 or (channels % own == 0 and weight.shape[0] % groups == 0)
        d.must(good, NAME, f"weight{i}", f"[K, {channels}, 1, 1]", list(weight.shape))
        _check_bias(i, bias, x, weight.shape[0])
        channels = weight.shape[0]
    sizes = [x.shape[0], channels, height, width]
    _check_shortcut(shortcut, x, sizes)
    return tuple(sizes)


def check_packed(
    x: Tensor, packed1: Tensor, bias1: Tensor | None, packed2: Tensor, bias2: Tensor | None, packed3: Tensor | None, bias3: Tensor | None,
    shortcut: Tensor | None, out_channels: int, kernel_h: int, kernel_w: int, *rest: Any,
) -> tuple:  # fmt: skip
    """The same for packs, whose headers are looked at where they can be read."""
    _check_x(x)
    d.must(x.dtype != torch.float64, NAME, "x", "float32, float16 or bfloat16", x.dtype)
    d.check_whole(NAME, out_channels=out_channels, groups=rest[6])
    d.check_pairs(NAME, kernel_size=(kernel_h, kernel_w))
    stages = _stages(packed1, bias1, packed2, bias2, packed3, bias3)
    height, width = _check_first(x, rest[6], x.shape[1] // rest[6] if rest[6] > 0 else 0, kernel_h, kernel_w, rest[:7], "packed1", rest[6])
    channels = x.shape[1]
    for i, (packed, bias) in enumerate(stages, 1):
        d.check_int32(NAME, f"packed{i}", packed, x, 1)
        d.must(packed.is_contiguous(), NAME, f"packed{i}", "contiguous", f"strides {packed.stride()}")
        if not d.readable(packed):
            continue
        d.must(_is_pack(packed), NAME, f"packed{i}", "made by pack_grouped_conv2d", f"{packed.numel()} other numbers")
        K, own, rows, columns, groups = packed[_SIZES].tolist()
        asked = [channels, kernel_h, kernel_w, rest[6]] if i == 1 else [channels, 1, 1, groups]
        d.must([own * groups, rows, columns, groups] == asked, NAME, f"packed{i}", f"of [C, KH, KW, groups] = {asked}",
               [own * groups, rows, columns, groups])  # fmt: skip
        d.must(i < len(stages) or out_channels == K, NAME, f"packed{i}", f"of {out_channels} filters", K)
        _check_bias(i, bias, x, K)
        channels = K
    sizes = [x.shape[0], out_channels, height, width]
    _check_shortcut(shortcut, x, sizes)
    return tuple(sizes)


# ---- reference, fake, FLOPs


def _chain(x: Tensor, stages: list[tuple[Any, Any]], shortcut: Tensor | None, window: Shape, relu: bool, last_relu: bool) -> Tensor:
    y = x
    for i, (weight, bias) in enumerate(stages):
        end = i == len(stages) - 1
        if i == 0:
            y = d.convolve(y, weight, bias, window[:2], window[2:4], window[4:6], window[6])
        else:
            y = torch.nn.functional.conv2d(y, weight, bias, groups=y.shape[1] // weight.shape[1])
        y = y + shortcut if end and shortcut is not None else y
        y = y.relu() if (last_relu if end else relu) else y
    return y


@d.outside_autocast
def reference(
    x: Tensor, weight1: Tensor, bias1: Tensor | None, weight2: Tensor, bias2: Tensor | None, weight3: Tensor | None, bias3: Tensor | None,
    shortcut: Tensor | None, *rest: Any,
) -> Tensor:  # fmt: skip
    tensors = (weight1, bias1, weight2, bias2, weight3, bias3)
    check(x, *tensors, shortcut, *rest)
    xc, added, *given = d.compute(x, shortcut, *tensors)
    return _laid_out_like(x, _chain(xc, _stages(*given), added, rest[:7], *rest[7:]).to(x.dtype))


@d.outside_autocast
def reference_packed(
    x: Tensor, packed1: Tensor, bias1: Tensor | None, packed2: Tensor, bias2: Tensor | None, packed3: Tensor | None, bias3: Tensor | None,
    shortcut: Tensor | None, out_channels: int, kernel_h: int, kernel_w: int, *rest: Any,
) -> Tensor:  # fmt: skip
    tensors = (packed1, bias1, packed2, bias2, packed3, bias3)
    check_packed(x, *tensors, shortcut, out_channels, kernel_h, kernel_w, *rest)
    xc, added, *biases = d.compute(x, shortcut, bias1, bias2, bias3)
    stages = [(unpack_grouped_conv2d(p), b) for (p, _), b in zip(_stages(*tensors), biases)]
    return _laid_out_like(x, _chain(xc, stages, added, rest[:7], *rest[7:]).to(x.dtype))


def fake(x: Tensor, *rest: Any) -> Tensor:
    return _new_like(x, check(x, *rest))


def fake_packed(x: Tensor, *rest: Any) -> Tensor:
    return _new_like(x, check_packed(x, *rest))


def flops(
    x: Shape, weight1: Shape, bias1: Shape | None, weight2: Shape, bias2: Shape | None, weight3: Shape | None, bias3: Shape | None,
    shortcut: Shape | None, *rest: Any, **kwargs: Any,
) -> int:  # fmt: skip
    height, width = _map(x, weight1[2], weight1[3], rest[:7])
    per_pixel = sum(w[0] * w[1] * w[2] * w[3] for w in (weight1, weight2, weight3) if w is not None)
    return 2 * x[0] * height * width * per_pixel


def flops_packed(
    x: Tensor, packed1: Tensor, bias1: Tensor | None, packed2: Tensor, bias2: Tensor | None, packed3: Tensor | None, bias3: Tensor | None,
    shortcut: Tensor | None, out_channels: int, kernel_h: int, kernel_w: int, *rest: Any, **kwargs: Any,
) -> int:  # fmt: skip
    """The header of a pack knows its filters; where none can be read (a fake tensor), the size of the pack, padding included."""
    height, width = _map(x.shape, kernel_h, kernel_w, rest[:7])
    packs = [packed for packed in (packed1, packed2, packed3) if packed is not None]
    weights = [math.prod(packed[_SIZES][:4].tolist()) if d.readable(packed) else packed.numel() for packed in packs]
    return 2 * x.shape[0] * height * width * sum(weights)


_REST = f"{_WINDOW}, bool relu, bool last_relu"
_SCHEMAS = {
    NAME: "Tensor x, Tensor weight1, Tensor? bias1, Tensor weight2, Tensor? bias2, Tensor? weight3, Tensor? bias3, Tensor? shortcut",
    f"{NAME}_packed": "Tensor x, Tensor packed1, Tensor? bias1, Tensor packed2, Tensor? bias2, Tensor? packed3, Tensor? bias3, "
    "Tensor? shortcut, int out_channels, int kernel_h, int kernel_w",
}
for _name, _reference, _fake in ((NAME, reference, fake), (f"{NAME}_packed", reference_packed, fake_packed)):
    d.LIBRARY.define(f"{_name}({_SCHEMAS[_name]}, {_REST}) -> Tensor", tags=(torch.Tag.pt2_compliant_tag,))
    d.LIBRARY.impl(_name, _reference, "CompositeExplicitAutograd")
    torch.library.register_fake(f"sparsekern::{_name}", _fake, lib=d.LIBRARY)
register_flops(torch.ops.sparsekern.root_conv2d, flops)
register_flops(torch.ops.sparsekern.root_conv2d_packed, flops_packed, raw=True)


# ---- public


def root_conv2d(
    x: Tensor,
    weight1: Tensor,
    bias1: Tensor | None,
    weight2: Tensor,
    bias2: Tensor | None = None,
    weight3: Tensor | None = None,
    bias3: Tensor | None = None,
    *,
    stride: int | tuple[int, int] = 1,
    padding: int | tuple[int, int] = 0,
    dilation: int | tuple[int, int] = 1,
    groups: int = 1,
    activation: str = "relu",
    last_activation: str | None = None,
    shortcut: Tensor | None = None,
) -> Tensor:
    """A grouped convolution and the 1x1 convolutions behind it, each with its bias and activation.

    Args:
        x: ``[N, C, H, W]``, floating point; channels_last float32 is what the kernels are for.
        weight1, bias1: ``[K1, C/G, KH, KW]`` and ``[K1]`` or None.
        weight2, bias2: ``[K2, K1, 1, 1]`` (or fewer channels, for groups) and ``[K2]`` or None.
        weight3, bias3: the same once more, or None.
        stride, padding, dilation, groups: of the first convolution, in numbers.
        activation: ``"relu"`` or ``"none"``, after every convolution.
        last_activation: another one after the last.
        shortcut: of the result's shape and dtype, added before the last activation.

    Returns:
        ``[N, K, OH, OW]``, channels_last if ``x`` is. Differentiable: where a gradient is needed it is a composition of
        :func:`~sparsekern.ops.grouped_conv2d`.

    Raises:
        ValueError: ``root_conv2d: weight2 must be [K, 16, 1, 1]; got [8, 12, 1, 1]``

    Cost:
        ``2*N*OH*OW*(K1*C/G*KH*KW + K2*K1 + K3*K2)`` FLOPs; the maps between are never written to memory.

    Source:
        Ioannou et al., "Deep Roots: Improving CNN Efficiency with Hierarchical Filter Groups", section 3.1 (root module).

    Example:
        >>> x, weight1, weight2 = torch.ones(1, 4, 3, 3), torch.ones(4, 2, 3, 3), torch.ones(1, 4, 1, 1)
        >>> root_conv2d(x, weight1, None, weight2, padding=1, groups=2)[0, 0]
        tensor([[32., 48., 32.],
                [48., 72., 48.],
                [32., 48., 32.]])
    """
    _check_activations(activation, last_activation)
    _check_third(weight3, bias3)
    relu, last_relu = activation == "relu", (last_activation or activation) == "relu"
    tensors = (weight1, bias1, weight2, bias2, weight3, bias3)
    window = (*_pair(stride), *_pair(padding), *_pair(dilation), groups)
    try:
        if not _fuses(x, *tensors, shortcut):
            check(x, *tensors, shortcut, *window, relu, last_relu)
            return _composed(x, _stages(*tensors), shortcut, window, activation, last_activation or activation)
        if d.autocast_enabled():
            x, shortcut, weight1, bias1, weight2, bias2, weight3, bias3 = d.autocast(x, shortcut, *tensors)
            tensors = (weight1, bias1, weight2, bias2, weight3, bias3)
        forced = d.backends.forced_reference and not torch.compiler.is_compiling()
        return (reference if forced else torch.ops.sparsekern.root_conv2d)(x, *tensors, shortcut, *window, relu, last_relu)
    except (RuntimeError, TypeError, AttributeError, IndexError):
        _check_x(x)
        d.check_pairs(NAME, stride=stride, padding=padding, dilation=dilation)
        check(x, *tensors, shortcut, *window, relu, last_relu)
        raise


def _check_activations(activation: str, last_activation: str | None) -> None:
    d.must(activation in ACTIVATIONS, NAME, "activation", f"one of {ACTIVATIONS}", repr(activation))
    d.must(last_activation in (None, *ACTIVATIONS), NAME, "last_activation", f"None or one of {ACTIVATIONS}", repr(last_activation))


def _composed(
    x: Tensor, stages: list[tuple[Any, Any]], shortcut: Tensor | None, window: tuple[int, ...], activation: str, last_activation: str
) -> Tensor:
    y = x
    for i, (weight, bias) in enumerate(stages):
        end = i == len(stages) - 1
        given: Any = (window[:2], window[2:4], window[4:6], window[6]) if i == 0 else (1, 0, 1, y.shape[1] // weight.shape[1])
        stride, padding, dilation, groups = given
        act, added = (last_activation, shortcut) if end else (activation, None)
        y = convolve(y, weight, bias, stride, padding, dilation, groups, act, added)
    return y


def root_conv2d_packed(
    x: Tensor,
    packed1: Tensor,
    bias1: Tensor | None,
    packed2: Tensor,
    bias2: Tensor | None,
    packed3: Tensor | None,
    bias3: Tensor | None,
    out_channels: int,
    kernel_size: int | tuple[int, int],
    *,
    stride: int | tuple[int, int] = 1,
    padding: int | tuple[int, int] = 0,
    dilation: int | tuple[int, int] = 1,
    groups: int = 1,
    activation: str = "relu",
    last_activation: str | None = None,
    shortcut: Tensor | None = None,
) -> Tensor:
    """:func:`root_conv2d` on weights from :func:`~sparsekern.ops.pack_grouped_conv2d`, for inference.

    Args:
        x: ``[N, C, H, W]`` float32, float16 or bfloat16; channels_last float32 is what packs are for.
        packed1, packed2, packed3: of the three weights, the last one may be None.
        out_channels: filters of the last weight.
        kernel_size, groups: of the first weight.
        bias1, bias2, bias3, stride, padding, dilation, activation, last_activation, shortcut: as in ``root_conv2d``.

    Raises:
        ValueError: ``root_conv2d: packed2 must be made by pack_grouped_conv2d; got 64 other numbers``
    """
    _check_activations(activation, last_activation)
    _check_third(packed3, bias3)
    sizes = (out_channels, *_pair(kernel_size), *_pair(stride), *_pair(padding), *_pair(dilation), groups)
    tensors, relus = (packed1, bias1, packed2, bias2, packed3, bias3), (activation == "relu", (last_activation or activation) == "relu")
    try:
        if not torch.compiler.is_compiling():
            for pack in (packed1, packed2) if packed3 is None else (packed1, packed2, packed3):
                d.require_whole(pack, _SEAL, "root_conv2d: packed")
        if d.autocast_enabled():
            x, shortcut, *biases = d.autocast(x, shortcut, bias1, bias2, bias3)
            tensors = (packed1, biases[0], packed2, biases[1], packed3, biases[2])
        forced = d.backends.forced_reference and not torch.compiler.is_compiling()
        run = reference_packed if forced else torch.ops.sparsekern.root_conv2d_packed
        return run(x, *tensors, shortcut, *sizes, *relus)
    except (RuntimeError, TypeError, AttributeError, IndexError):
        _check_x(x)
        d.check_pairs(NAME, stride=stride, padding=padding, dilation=dilation)
        check_packed(x, *tensors, shortcut, *sizes, *relus)
        raise
