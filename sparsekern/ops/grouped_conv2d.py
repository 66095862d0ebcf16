"""grouped_conv2d: a 2-D convolution in filter groups, with the exact meaning of ``torch.nn.functional.conv2d``.

    x [N, C, H, W]   weight [K, C/G, KH, KW]   bias [K] or None   shortcut [N, K, OH, OW] or None
    out[n, k, oy, ox] = bias[k] + sum_{j, ky, kx} weight[k, j, ky, kx]
                        * x[n, g*C/G + j, oy*stride + ky*dilation - padding, ox*stride + kx*dilation - padding],   g = k // (K/G)

A ``shortcut`` is added to it, and then comes the activation: the end of a residual block, in one pass.

Filter groups follow Ioannou et al., "Deep Roots", arXiv 1605.06489 (section 3): a k x k convolution in G groups costs 1/G.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from types import SimpleNamespace
from typing import Any, TypeAlias

import torch
from torch import Tensor

from sparsekern.ops import define as d
from sparsekern.ops.types import Gradients, Pair, Shape

NAME = "grouped_conv2d"
Window: TypeAlias = tuple[int, int, int, int, int, int, int]  # stride, padding, dilation, each (rows, columns); groups
ACTIVATIONS = ("none", "relu")

# ---- layout: channels_last stays so, everything else comes out contiguous. Strides decide (sizes of 1 make both true).


def is_channels_last(x: Tensor) -> bool:
    """Whether ``x [N, C, H, W]`` is NHWC in memory, by its strides."""
    _, channels, height, width = x.shape
    strides = (channels * height * width, 1, channels * width, channels)
    return channels * height * width > 1 and tuple(x.stride()) == strides


def _new_like(x: Tensor, shape: tuple[int, ...]) -> Tensor:
    if not is_channels_last(x):
        return x.new_empty(shape)
    _, channels, height, width = shape
    return x.new_empty_strided(shape, (channels * height * width, 1, channels * width, channels))


def _laid_out_like(x: Tensor, out: Tensor) -> Tensor:
    if is_channels_last(x):
        if not d.of_a_transform(out):
            return out.clone(memory_format=torch.channels_last)  # no view: a result may be written in place
        return out.permute(0, 2, 3, 1).clone(memory_format=torch.contiguous_format).permute(0, 3, 1, 2)
    return out.clone(memory_format=torch.contiguous_format)


# ---- check


def check(
    x: Any, weight: Any, bias: Any, stride_h: int, stride_w: int, pad_h: int, pad_w: int, dilation_h: int, dilation_w: int, groups: int,
    shortcut: Any = None,
) -> None:  # fmt: skip
    """Everything that can be wrong with the arguments of the op; ``x`` may still be one image ``[C, H, W]``."""
    _check_tensors(x, weight)
    d.must(min(weight.shape) > 0, NAME, "weight", "[K, C/G, KH, KW], each at least 1", list(weight.shape))
    d.must(isinstance(groups, int | torch.SymInt) and groups > 0, NAME, "groups", "an int of at least 1", groups)
    d.must(weight.shape[0] % groups == 0, NAME, "weight", f"[a multiple of groups={groups}, C/G, KH, KW]", list(weight.shape))
    channels = weight.shape[1] * groups
    rule = f"[..., {channels}, H, W] for groups={groups} and C/G={weight.shape[1]}"
    d.must(x.shape[-3] == channels, NAME, "x", rule, list(x.shape))
    if bias is not None:
        d.check_like(NAME, "bias", bias, x)
        d.must(tuple(bias.shape) == (weight.shape[0],), NAME, "bias", f"[{weight.shape[0]}]", list(bias.shape))
    d.check_window(NAME, stride=(stride_h, stride_w), padding=(pad_h, pad_w), dilation=(dilation_h, dilation_w))
    reach_h, reach_w = dilation_h * (weight.shape[2] - 1) + 1, dilation_w * (weight.shape[3] - 1) + 1
    fits = x.shape[-2] + 2 * pad_h >= reach_h and x.shape[-1] + 2 * pad_w >= reach_w
    d.must(fits, NAME, "x", f"at least {reach_h} x {reach_w} with its padding", list(x.shape))
    if shortcut is not None:
        d.check_like(NAME, "shortcut", shortcut, x)
        height = _out_size(x.shape[-2], weight.shape[2], stride_h, pad_h, dilation_h)
        width = _out_size(x.shape[-1], weight.shape[3], stride_w, pad_w, dilation_w)
        sizes = [*x.shape[:-3], weight.shape[0], height, width]
        d.must(list(shortcut.shape) == sizes, NAME, "shortcut", f"{sizes} like the result", list(shortcut.shape))


def _check_tensors(x: Any, weight: Any) -> None:
    d.check_floating(NAME, "x", x)
    d.must(x.dim() in (3, 4), NAME, "x", "[N, C, H, W] or [C, H, W]", list(x.shape))
    d.check_like(NAME, "weight", weight, x)
    d.must(weight.dim() == 4, NAME, "weight", "[K, C/G, KH, KW]", list(weight.shape))


def _pair(value: Any) -> tuple[int, int]:
    """Two numbers; what they are is left to the schema (this runs in every call) and to :func:`define.check_pairs`."""
    if isinstance(value, tuple | list) and len(value) == 2:
        return value  # type: ignore[return-value] # a list stays one: it is only unpacked
    return (value, value)


def _window_of(stride: Any, padding: Any, dilation: Any) -> tuple[int, ...] | None:
    """The six numbers, where all are given as tuples or all as ints."""
    if type(stride) is tuple and type(padding) is tuple and type(dilation) is tuple:
        return (*stride, *padding, *dilation)
    if type(stride) is int and type(padding) is int and type(dilation) is int:
        return (stride, stride, padding, padding, dilation, dilation)
    return None


# ---- the three products: reference, fake, FLOPs (shapes in, 2 per multiply-add)


def reference(
    x: Tensor, weight: Tensor, bias: Tensor | None, shortcut: Tensor | None, stride_h: int, stride_w: int, pad_h: int, pad_w: int,
    dilation_h: int, dilation_w: int, groups: int, relu: bool,
) -> Tensor:  # fmt: skip
    check(x, weight, bias, stride_h, stride_w, pad_h, pad_w, dilation_h, dilation_w, groups, shortcut)
    xc, wc, bc, added = d.compute(x, weight, bias, shortcut)
    out = d.convolve(xc, wc, bc, (stride_h, stride_w), (pad_h, pad_w), (dilation_h, dilation_w), groups)
    if added is not None:
        out = out + added
    return _laid_out_like(x, (out.relu() if relu else out).to(x.dtype))


def reference_grad_x(
    grad_out: Tensor, weight: Tensor, height: int, width: int, stride_h: int, stride_w: int, pad_h: int, pad_w: int, dilation_h: int,
    dilation_w: int, groups: int,
) -> Tensor:  # fmt: skip
    g, w = d.compute(grad_out, weight)
    x = g.new_empty(g.shape[0], w.shape[1] * groups, height, width)  # only its sizes are used
    window = (stride_h, stride_w), (pad_h, pad_w), (dilation_h, dilation_w), groups
    return _laid_out_like(grad_out, d.convolve_backward(0, g, x, w, *window).to(grad_out.dtype))


def reference_grad_weight(
    grad_out: Tensor, x: Tensor, kernel_h: int, kernel_w: int, stride_h: int, stride_w: int, pad_h: int, pad_w: int, dilation_h: int,
    dilation_w: int, groups: int,
) -> Tensor:  # fmt: skip
    g, xc = d.compute(grad_out, x)
    weight = g.new_empty(g.shape[1], xc.shape[1] // groups, kernel_h, kernel_w)  # only its sizes are used
    window = (stride_h, stride_w), (pad_h, pad_w), (dilation_h, dilation_w), groups
    grad = d.convolve_backward(1, g, xc, weight, *window)
    return grad.to(x.dtype).clone(memory_format=torch.contiguous_format)


def _out_size(size: int, kernel: int, stride: int, padding: int, dilation: int) -> int:
    return (size + 2 * padding - dilation * (kernel - 1) - 1) // stride + 1


def fake(
    x: Tensor, weight: Tensor, bias: Tensor | None, shortcut: Tensor | None, stride_h: int, stride_w: int, pad_h: int, pad_w: int,
    dilation_h: int, dilation_w: int, groups: int, relu: bool,
) -> Tensor:  # fmt: skip
    check(x, weight, bias, stride_h, stride_w, pad_h, pad_w, dilation_h, dilation_w, groups, shortcut)
    height = _out_size(x.shape[2], weight.shape[2], stride_h, pad_h, dilation_h)
    width = _out_size(x.shape[3], weight.shape[3], stride_w, pad_w, dilation_w)
    return _new_like(x, (x.shape[0], weight.shape[0], height, width))


def fake_grad_x(
    grad_out: Tensor, weight: Tensor, height: int, width: int, stride_h: int, stride_w: int, pad_h: int, pad_w: int, dilation_h: int,
    dilation_w: int, groups: int,
) -> Tensor:  # fmt: skip
    return _new_like(grad_out, (grad_out.shape[0], weight.shape[1] * groups, height, width))


def fake_grad_weight(
    grad_out: Tensor, x: Tensor, kernel_h: int, kernel_w: int, stride_h: int, stride_w: int, pad_h: int, pad_w: int, dilation_h: int,
    dilation_w: int, groups: int,
) -> Tensor:  # fmt: skip
    return x.new_empty(grad_out.shape[1], x.shape[1] // groups, kernel_h, kernel_w)


def _flops(grad_out: Shape, weight: Shape) -> int:
    return 2 * grad_out[0] * grad_out[2] * grad_out[3] * math.prod(weight)


def flops(
    x: Shape, weight: Shape, bias: Shape | None, shortcut: Shape | None, stride_h: int, stride_w: int, pad_h: int, pad_w: int,
    dilation_h: int, dilation_w: int, groups: int, *args: Any, **kwargs: Any,
) -> int:  # fmt: skip
    height = _out_size(x[2], weight[2], stride_h, pad_h, dilation_h)
    return _flops((x[0], weight[0], height, _out_size(x[3], weight[3], stride_w, pad_w, dilation_w)), weight)


def flops_grad_x(grad_out: Shape, weight: Shape, *args: Any, **kwargs: Any) -> int:
    return _flops(grad_out, weight)


def flops_grad_weight(
    grad_out: Shape, x: Shape, kernel_h: int, kernel_w: int, sh: int, sw: int, ph: int, pw: int, dh: int, dw: int, groups: int, *args: Any,
    **kwargs: Any,
) -> int:  # fmt: skip
    return _flops(grad_out, (grad_out[1], x[1] // groups, kernel_h, kernel_w))


# ---- derivatives: each of a product is another product


def _vjp(
    doors: SimpleNamespace, need: Sequence[bool], grad: Tensor, x: Tensor, weight: Tensor, shapes: Sequence[torch.Size], rest: list[Any]
) -> Gradients:
    shortcut, *window, relu = rest
    if relu or shortcut is not None:
        raise RuntimeError(f"{NAME}: a fused relu or shortcut has no gradient; call sparsekern.ops.{NAME}, which does not fuse then")
    return (
        doors.grad_x(grad, weight, *shapes[0][2:], *window) if need[0] else None,
        doors.grad_weight(grad, x, *shapes[1][2:], *window) if need[1] else None,
    )


def _vjp_grad_x(
    doors: SimpleNamespace, need: Sequence[bool], grad: Tensor, grad_out: Tensor, weight: Tensor, shapes: Sequence[torch.Size],
    rest: list[Any],
) -> Gradients:  # fmt: skip
    window = rest[2:]
    return (
        doors.forward(grad, weight, None, None, *window, False) if need[0] else None,
        doors.grad_weight(grad_out, grad, *shapes[1][2:], *window) if need[1] else None,
    )


def _vjp_grad_weight(
    doors: SimpleNamespace, need: Sequence[bool], grad: Tensor, grad_out: Tensor, x: Tensor, shapes: Sequence[torch.Size], rest: list[Any]
) -> Gradients:
    window = rest[2:]
    return (
        doors.forward(x, grad, None, None, *window, False) if need[0] else None,
        doors.grad_x(grad_out, grad, *shapes[1][2:], *window) if need[1] else None,
    )


# ---- samples


def _sample(
    device: torch.device | str, dtype: torch.dtype, x: Shape, out_channels: int, kernel: Pair, bias: bool = True,
    layout: torch.memory_format = torch.contiguous_format, shortcut: Shape | None = None, **window: Any,
) -> dict[str, Any]:  # fmt: skip
    generator = torch.Generator().manual_seed(sum(x) + out_channels)

    def draw(*size: int) -> Tensor:
        return torch.randn(*size, generator=generator, dtype=torch.float64).to(device, dtype)

    weight = draw(out_channels, x[-3] // window.get("groups", 1), *((kernel, kernel) if isinstance(kernel, int) else kernel))
    image = draw(*x)
    image = image.to(memory_format=layout) if len(x) == 4 else image
    inputs = dict(x=image, weight=weight, bias=draw(out_channels) if bias else None, **window)
    if shortcut is not None:
        inputs["shortcut"] = draw(*shortcut)
    return inputs


def samples(device: torch.device, dtype: torch.dtype) -> list[d.Sample]:
    make = lambda *args, **kwargs: _sample(device, dtype, *args, **kwargs)  # noqa: E731
    last = torch.channels_last
    good = {
        "image": make((6, 9, 11), 8, 3, padding=1, groups=2),
        "one": make((1, 6, 5, 7), 4, 3, groups=2),
        "two_no_bias": make((2, 24, 8, 8), 24, 3, bias=False, padding=1, groups=4),
        "empty_batch": make((0, 4, 5, 5), 4, 3, groups=2),
        "odd_batch": make((5, 4, 5, 6), 6, 3, padding=1, groups=2),
        "five": make((2, 12, 9, 16), 24, 5, padding=2, groups=2),
        "pointwise": make((2, 20, 7, 5), 33, 1),
        "pointwise_stride": make((2, 16, 8, 6), 16, 1, stride=2, groups=2),
        "depthwise": make((2, 20, 9, 9), 20, 3, padding=1, groups=20),
        "stride_dilation": make((2, 6, 13, 11), 9, 3, stride=(2, 3), padding=(2, 1), dilation=(2, 1), groups=3),
        "wide_kernel": make((1, 4, 9, 12), 4, (2, 7), padding=(1, 3), groups=2),
        "one_pixel": make((3, 32, 1, 1), 32, 3, padding=1, groups=4),
        "root": make((1, 96, 8, 8), 96, 3, padding=1, groups=8, activation="relu"),
        "last_odd_batch": make((3, 24, 9, 10), 48, 3, padding=1, groups=4, layout=last, activation="relu"),
        "last_five": make((2, 32, 7, 17), 64, 5, padding=2, groups=8, layout=last),
        "last_pointwise": make((2, 48, 6, 7), 40, 1, layout=last),
        "last_depthwise": make((2, 24, 9, 9), 24, 3, padding=1, groups=24, layout=last),
        "last_stride": make((2, 12, 9, 8), 18, 3, stride=2, padding=1, groups=6, layout=last),
        "last_seven": make((1, 8, 10, 9), 8, 7, padding=3, groups=2, layout=last),
        "last_one_channel": make((2, 1, 6, 6), 3, 3, layout=last),
        "shortcut": make((2, 6, 9, 11), 8, 3, padding=1, groups=2, shortcut=(2, 8, 9, 11)),
        "shortcut_image": make((6, 9, 8), 10, 1, bias=False, shortcut=(10, 9, 8)),
        "last_shortcut": make((1, 24, 15, 15), 48, 1, layout=last, shortcut=(1, 48, 15, 15)),
        "last_shortcut_stride": make((2, 12, 9, 8), 18, 3, stride=2, groups=6, layout=last, shortcut=(2, 18, 4, 3)),
    }
    bottleneck = good["last_shortcut"]
    good["last_both"] = {**bottleneck, "shortcut": bottleneck["shortcut"].to(memory_format=last)}
    root = good["last_odd_batch"]
    good["last_weight"] = {**root, "weight": root["weight"].to(memory_format=last)}
    good["weight_last"] = {**good["odd_batch"], "weight": good["odd_batch"]["weight"].to(memory_format=last)}
    good["sliced"] = {**good["one"], "x": make((3, 6, 5, 15), 4, 3, groups=2)["x"][1:2, :, :, 3:10]}
    good["expanded"] = {**good["one"], "x": good["one"]["x"].expand(3, 6, 5, 7)}
    good["same_padding"] = make((2, 4, 6, 5), 4, (4, 3), padding="same", groups=2)
    return [d.Sample(name, inputs) for name, inputs in good.items()]


def bad_samples() -> list[d.BadSample]:
    good = _sample("cpu", torch.float32, (2, 6, 5, 5), 4, 3, groups=2)
    x, weight = good["x"], good["weight"]
    bad = [
        ("x_not_tensor", {"x": [1.0]}, TypeError, "x must be a tensor; got list"),
        ("x_integer", {"x": x.long()}, ValueError, "x must be float32, float64, float16 or bfloat16; got torch.int64"),
        ("x_dim", {"x": x[0, 0]}, ValueError, "x must be [N, C, H, W] or [C, H, W]; got [5, 5]"),
        ("x_channels", {"x": x[:, :5]}, ValueError, "x must be [..., 6, H, W] for groups=2 and C/G=3; got [2, 5, 5, 5]"),
        ("x_small", {"x": x[..., :2]}, ValueError, "x must be at least 3 x 3 with its padding; got [2, 6, 5, 2]"),
        ("weight_not_tensor", {"weight": None}, TypeError, "weight must be a tensor; got NoneType"),
        ("weight_dtype", {"weight": weight.double()}, ValueError, "weight must be torch.float32 like x; got torch.float64"),
        ("weight_device", {"weight": weight.to("meta")}, ValueError, "weight must be on cpu like x; got meta"),
        ("weight_dim", {"weight": weight[0]}, ValueError, "weight must be [K, C/G, KH, KW]; got [3, 3, 3]"),
        ("weight_empty", {"weight": weight[:, :, :0]}, ValueError, "weight must be [K, C/G, KH, KW], each at least 1; got [4, 3, 0, 3]"),
        ("weight_groups", {"weight": weight[:3]}, ValueError, "weight must be [a multiple of groups=2, C/G, KH, KW]; got [3, 3, 3, 3]"),
        ("bias_shape", {"bias": torch.ones(5)}, ValueError, "bias must be [4]; got [5]"),
        ("bias_dtype", {"bias": torch.ones(4).half()}, ValueError, "bias must be torch.float32 like x; got torch.float16"),
        ("groups_zero", {"groups": 0}, ValueError, "groups must be an int of at least 1; got 0"),
        ("stride_zero", {"stride": 0}, ValueError, "stride must be at least 1; got (0, 0)"),
        ("stride_three", {"stride": (1, 1, 1)}, ValueError, "stride must be an int or two; got (1, 1, 1)"),
        ("padding_negative", {"padding": (0, -1)}, ValueError, "padding must be at least 0; got (0, -1)"),
        ("padding_word", {"padding": "full"}, ValueError, "padding must be an int, two, 'same' or 'valid'; got 'full'"),
        ("padding_same_stride", {"padding": "same", "stride": 2}, ValueError, "padding must be numbers where stride is not 1; got 'same'"),
        ("dilation_zero", {"dilation": (1, 0)}, ValueError, "dilation must be at least 1; got (1, 0)"),
        ("shortcut_not_tensor", {"shortcut": 1.0}, TypeError, "shortcut must be a tensor; got float"),
        ("shortcut_shape", {"shortcut": x[:, :4]}, ValueError, "shortcut must be [2, 4, 3, 3] like the result; got [2, 4, 5, 5]"),
        ("shortcut_broadcast", {"shortcut": torch.ones(1, 4, 1, 1)}, ValueError,
         "shortcut must be [2, 4, 3, 3] like the result; got [1, 4, 1, 1]"),
        ("shortcut_dtype", {"shortcut": torch.ones(2, 4, 3, 3).half()}, ValueError,
         "shortcut must be torch.float32 like x; got torch.float16"),
        ("shortcut_device", {"shortcut": torch.ones(2, 4, 3, 3, device="meta")}, ValueError, "shortcut must be on cpu like x; got meta"),
        ("activation", {"activation": "gelu"}, ValueError, "activation must be one of ('none', 'relu'); got 'gelu'"),
    ]  # fmt: skip
    return [d.BadSample(name, {**good, **inputs}, error, f"{NAME}: {sentence}") for name, inputs, error, sentence in bad]


# ---- the op

_WINDOW = "SymInt stride_h, SymInt stride_w, SymInt pad_h, SymInt pad_w, SymInt dilation_h, SymInt dilation_w, SymInt groups"

OP = d.define(
    d.Op(
        name=NAME,
        forward=d.Product(
            NAME, f"Tensor x, Tensor weight, Tensor? bias, Tensor? shortcut, {_WINDOW}, bool relu",
            reference, fake, flops, _vjp, bias=True, structure=1,
        ),
        grad_x=d.Product(
            NAME + "_grad_x", f"Tensor grad_out, Tensor weight, SymInt height, SymInt width, {_WINDOW}",
            reference_grad_x, fake_grad_x, flops_grad_x, _vjp_grad_x,
        ),
        grad_weight=d.Product(
            NAME + "_grad_weight", f"Tensor grad_out, Tensor x, SymInt kernel_h, SymInt kernel_w, {_WINDOW}",
            reference_grad_weight, fake_grad_weight, flops_grad_weight, _vjp_grad_weight,
        ),
        check=check,
        samples=samples,
        bad_samples=bad_samples,
        behind_bias=2,
    )
)  # fmt: skip

d.LIBRARY.define(
    "choose_grouped_conv2d(Tensor like, int N, int C, int H, int W, int K, int kernel_h, int kernel_w, int stride_h, int stride_w, "
    "int pad_h, int pad_w, int dilation_h, int dilation_w, int groups, bool channels_last, int product, int type) -> Tensor"
)


def explain_grouped_conv2d(
    x_shape: Shape, weight_shape: Shape, window: Shape, channels_last: bool, dtype: torch.dtype
) -> dict[str, tuple[str, str]]:
    """Per product: who serves it (``"sparsekern"``, ``"torch"``, ``"reference"``) and why. ``window`` as in the schema, seven ints."""
    if not d.backends.has_kernels("cpu"):
        return {door: ("reference", "no compiled kernels") for door in OP.products}
    if dtype == torch.float64:
        return {door: ("sparsekern", "plain fp64 loops") for door in OP.products}
    out, like, code_of = {}, torch.empty(0, dtype=torch.float64, device="cpu"), {torch.bfloat16: 1, torch.float16: 2}
    sizes = (*x_shape, weight_shape[0], *weight_shape[2:], *window, channels_last)
    for code, door in enumerate(OP.products):
        ours, *reason = torch.ops.sparsekern.choose_grouped_conv2d(like, *sizes, code, code_of.get(dtype, 0)).tolist()
        out[door] = ("sparsekern" if ours else "torch", "".join(chr(int(c)) for c in reason))
    return out


def _fuses(*tensors: Tensor | None) -> bool:
    """Whether shortcut and activation may run inside the op: nobody will differentiate it."""
    if isinstance(d._interpreter(), d._Interpreter) or d.forward_ad._current_level >= 0:
        return False
    return not (torch.is_grad_enabled() and any(t is not None and t.requires_grad for t in tensors))


def _resolve(
    x: Tensor, weight: Tensor, bias: Tensor | None, stride: Pair, padding: Pair | str, dilation: Pair, groups: int, activation: str
) -> tuple[Tensor, Window]:
    """The numbers behind the public arguments: (x, perhaps padded; the seven of the schema)."""
    if activation not in ACTIVATIONS:
        d.must(False, NAME, "activation", f"one of {ACTIVATIONS}", repr(activation))
    stride, dilation = _pair(stride), _pair(dilation)
    if isinstance(padding, str):
        return _resolve_word(x, weight, bias, stride, padding, dilation, groups)
    return x, (*stride, *_pair(padding), *dilation, groups)


def _resolve_word(
    x: Tensor, weight: Tensor, bias: Tensor | None, stride: tuple[int, int], padding: str, dilation: tuple[int, int], groups: int
) -> tuple[Tensor, Window]:
    d.must(padding in ("same", "valid"), NAME, "padding", "an int, two, 'same' or 'valid'", repr(padding))
    if padding == "valid":
        return x, (*stride, 0, 0, *dilation, groups)
    d.must(tuple(stride) == (1, 1), NAME, "padding", "numbers where stride is not 1", repr(padding))
    check(x, weight, bias, *stride, weight.shape[-2] * dilation[0], weight.shape[-1] * dilation[1], *dilation, groups)
    total_h, total_w = (dilation[i] * (weight.shape[2 + i] - 1) for i in (0, 1))
    if total_h % 2 or total_w % 2:  # one more row below, one more column to the right
        x = torch.nn.functional.pad(x, (0, total_w % 2, 0, total_h % 2))
    return x, (*stride, total_h // 2, total_w // 2, *dilation, groups)


def _call_with_end(x: Tensor, weight: Tensor, bias: Tensor | None, window: Shape, relu: bool, shortcut: Tensor | None) -> Tensor:
    """With a shortcut or a ReLU: inside the op, or behind it where the whole must be differentiable."""
    if _fuses(x, weight, bias, shortcut):
        return OP.call(x, weight, bias, shortcut, *window, relu)
    out = OP.call(x, weight, bias, None, *window, False)
    if shortcut is not None:
        if shortcut.shape != out.shape or shortcut.dtype != out.dtype or shortcut.device != out.device:
            raise RuntimeError("torch would broadcast or promote")  # the public function says it in our words
        out = out + shortcut  # in the layout of the first of the two
    if not relu:
        return out
    # in place where nobody else can see it: large maps would take fresh pages again
    return out.relu() if d.transforming() or d._compiling() or out._is_view() else out.relu_()


def grouped_conv2d(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None = None,
    stride: int | tuple[int, int] = 1,
    padding: int | tuple[int, int] | str = 0,
    dilation: int | tuple[int, int] = 1,
    groups: int = 1,
    activation: str = "none",
    shortcut: Tensor | None = None,
) -> Tensor:
    """Convolve in filter groups, as ``torch.nn.functional.conv2d`` does, optionally with a sum and a ReLU at the end.

    Args:
        x: ``[N, C, H, W]`` or ``[C, H, W]``, float32, float64, float16 or bfloat16. A channels_last x gives a channels_last output,
            anything else a contiguous one.
        weight: ``[K, C/G, KH, KW]``, dtype and device of ``x``; contiguous or channels_last.
        bias: ``[K]`` or None.
        stride, padding, dilation: an int or ``(rows, columns)``; padding also ``"same"`` (stride 1) or ``"valid"``.
        groups: the channels are cut into so many groups; ``groups=C`` is depthwise, 1 dense.
        activation: ``"none"`` or ``"relu"``, applied while the result is in registers if no gradient is needed.
        shortcut: a tensor of the result's shape and dtype in any layout, added before the activation; in registers like it.

    Returns:
        ``[N, K, OH, OW]`` (or ``[K, OH, OW]``), dtype of ``x``; accumulated in float32 (float64 for float64).

    Raises:
        ValueError: ``grouped_conv2d: x must be [..., 6, H, W] for groups=2 and C/G=3; got [2, 5, 5, 5]``
        TypeError: ``grouped_conv2d: x must be a tensor; got list``

    Cost:
        ``2*N*K*OH*OW*(C/G)*KH*KW`` FLOPs. Where torch's own convolution is faster it runs instead (see the layer's ``explain``).

    Source:
        Ioannou et al., "Deep Roots: Improving CNN Efficiency with Hierarchical Filter Groups", section 3.

    Example:
        >>> x, weight = torch.ones(1, 4, 3, 3), torch.ones(2, 2, 3, 3)
        >>> grouped_conv2d(x, weight, groups=2, padding=1)[0, 0]
        tensor([[ 8., 12.,  8.],
                [12., 18., 12.],
                [ 8., 12.,  8.]])
    """
    arguments = stride, padding, dilation, groups, activation
    try:
        if activation == "none" and shortcut is None and x.dim() == 4 and not d.autocast_enabled():
            window = _window_of(stride, padding, dilation)
            if window is not None:  # the everyday call, where every microsecond is seen
                return OP.call(x, weight, bias, None, *window, groups, False)
        image, w, b = d.autocast(x.unsqueeze(0) if x.dim() == 3 else x, weight, bias)
        image, window = _resolve(image, w, b, *arguments)
        if activation == "none" and shortcut is None:
            out = OP.call(image, w, b, None, *window, False)
        else:
            (added,) = d.autocast(shortcut.unsqueeze(0) if shortcut is not None and x.dim() == 3 else shortcut)
            out = _call_with_end(image, w, b, window, activation == "relu", added)
        return out.squeeze(0) if x.dim() == 3 else out
    except (RuntimeError, TypeError, AttributeError, IndexError):
        _check_tensors(x, weight)  # says it in our words; falls through when the error was another one
        d.check_pairs(NAME, stride=stride, dilation=dilation, **({} if isinstance(padding, str) else {"padding": padding}))
        padded, window = _resolve(x, weight, bias, *arguments)
        check(x if shortcut is None else padded, weight, bias, *window, shortcut)
        raise


OP.function = grouped_conv2d
