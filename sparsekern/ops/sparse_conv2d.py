"""sparse_conv2d: 2-D convolution with a fixed random mask, of which only the kept weights exist.

    x [N, C, H, W]   weight [nnz, BO, BI, BT]   indptr [OB+1] int32   index [nnz] int32   bias [OB*BO] or None
    out[n, ob*BO + o, y, z] = bias[ob*BO + o] + sum over e in [indptr[ob], indptr[ob+1]), i < BI, t < BT of weight[e, o, i, t]
        * x[n, (index[e] // TB)*BI + i, y*stride + ky*dilation - padding, z*stride + kx*dilation - padding]
    with tap = (index[e] % TB)*BT + t = ky*KW + kx and TB = KH*KW / BT;   BT is 1 or KH*KW

The block [BO, BI, BT] says what is kept or dropped together: (1, 1, 1) one synapse; (1, C, 1) one tap of a filter for all input
channels, the masks of Shafiee, Fieguth and Wong, "StochasticNet in StochasticNet"; (1, 1, KH*KW) a whole kernel; (V, ..) shared
by V filters. Rows are ragged: a random mask does not keep the same number everywhere.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from types import SimpleNamespace
from typing import Any

import torch
from torch import Tensor

from sparsekern.ops import define as d
from sparsekern.ops.types import Gradients, Shape

NAME = "sparse_conv2d"

# ---- layout: channels_last stays channels_last, everything else comes out contiguous


def _channels_last(x: Tensor) -> bool:
    return x.is_contiguous(memory_format=torch.channels_last) and not x.is_contiguous()


def _images_like(x: Tensor, channels: int, height: int, width: int) -> Tensor:
    sizes = (x.shape[0], channels, height, width)
    if _channels_last(x):
        return x.new_empty_strided(sizes, (channels * height * width, 1, width * channels, channels))
    return x.new_empty(sizes)


def _laid_out_like(x: Tensor, out: Tensor) -> Tensor:
    if d.of_a_transform(out):  # its strides are not its own to choose
        return out
    last = _images_like(x, *out.shape[1:])
    return out if out.stride() == last.stride() else last.copy_(out)


def _out_size(
    height: int, width: int, KH: int, KW: int, stride_h: int, stride_w: int, pad_h: int, pad_w: int, dilation_h: int, dilation_w: int
) -> tuple[int, int]:
    return (
        (height + 2 * pad_h - dilation_h * (KH - 1) - 1) // stride_h + 1,
        (width + 2 * pad_w - dilation_w * (KW - 1) - 1) // stride_w + 1,
    )


def _arguments(window: Shape) -> tuple[list[int], list[int], list[int]]:
    """Stride, padding, dilation, as torch's convolutions take them."""
    return list(window[2:4]), list(window[4:6]), list(d.useful_dilation(window[6:8], window[:2]))


# ---- check

_SEAL = 11  # a word of a plan's header (core/sparse_conv2d_plan.h)


def check(x: Any, weight: Any, bias: Any, indptr: Any, index: Any, plan: Any, *window: int, values: bool = True) -> None:
    """Everything that can be wrong with the arguments; with ``values`` those of the tables too, where they can be read."""
    KH, KW, stride_h, stride_w, pad_h, pad_w, dilation_h, dilation_w = window
    d.check_floating(NAME, "x", x)
    d.must(x.dim() == 4, NAME, "x", "[N, C, H, W] or [C, H, W]", list(x.shape))
    d.check_like(NAME, "weight", weight, x)
    d.must(weight.dim() == 4, NAME, "weight", "[nnz, BO, BI, BT]", list(weight.shape))
    d.check_window(NAME, kernel_size=(KH, KW), stride=(stride_h, stride_w), padding=(pad_h, pad_w), dilation=(dilation_h, dilation_w))
    nnz, block_out, block_in, block_taps = weight.shape
    d.must(
        block_out > 0 and block_in > 0 and block_taps in (1, KH * KW), NAME, "weight",
        f"[nnz, BO, BI, 1 or {KH * KW}] with BO and BI at least 1", list(weight.shape),
    )  # fmt: skip
    d.must(x.shape[1] > 0 and x.shape[1] % block_in == 0, NAME, "x", f"[N, a positive multiple of BI={block_in}, H, W]", list(x.shape))
    height, width = dilation_h * (KH - 1) + 1 - 2 * pad_h, dilation_w * (KW - 1) + 1 - 2 * pad_w
    d.must(
        x.shape[2] >= height and x.shape[3] >= width, NAME, "x",
        f"of at least {max(0, height)} x {max(0, width)} pixels", list(x.shape),
    )  # fmt: skip
    d.check_int32(NAME, "indptr", indptr, x, 1)
    d.must(indptr.shape[0] > 1, NAME, "indptr", "[OB+1] with OB at least 1", list(indptr.shape))
    channels = (indptr.shape[0] - 1) * block_out
    if bias is not None:
        d.check_like(NAME, "bias", bias, x)
        d.must(tuple(bias.shape) == (channels,), NAME, "bias", f"[{channels}]", list(bias.shape))
    d.check_int32(NAME, "index", index, x, 1)
    d.must(index.shape[0] == nnz, NAME, "index", f"[{nnz}] like weight", list(index.shape))
    if values:
        check_tables(indptr, index, x.shape[1] // block_in * (KH * KW // block_taps))
    if plan is not None:
        d.check_int32(NAME, "plan", plan, x, 1)
        d.must(plan.is_contiguous(), NAME, "plan", "contiguous", f"strides {plan.stride()}")
        if d.readable(plan) and plan.device.type == "cpu":
            want = [channels, x.shape[1], KH, KW, block_out, block_in, block_taps, nnz]
            got = plan[2:10].tolist()
            d.must(got == want, NAME, "plan", f"made by plan_sparse_conv2d for sizes {want}", got)
            d.must(d.sealed(plan, _SEAL), NAME, "plan", "as plan_sparse_conv2d made it", "other numbers")


def check_tables(indptr: Tensor, index: Tensor, codes: int) -> None:
    """The values of the tables: rows in order, codes in range and strictly increasing in each row (so no block twice)."""
    if not d.readable(indptr, index):
        return
    starts, nnz = indptr.long(), index.numel()
    d.must(int(starts[0]) == 0, NAME, "indptr", "0 at its start", int(starts[0]))
    down = (starts[1:] < starts[:-1]).nonzero()
    if len(down):
        row = int(down[0]) + 1
        d.must(False, NAME, "indptr", "non-decreasing", f"{int(starts[row])} at [{row}]")
    d.must(int(starts[-1]) == nnz, NAME, "indptr", f"{nnz} at its end, like index", int(starts[-1]))
    bad = ((index < 0) | (index >= codes)).nonzero()
    same_row = torch.ones(max(0, nnz - 1), dtype=torch.bool, device=index.device)
    inner = starts[1:-1]
    same_row[inner[(inner > 0) & (inner < nnz)] - 1] = False
    unsorted = ((index[1:] <= index[:-1]) & same_row).nonzero() + 1 if nnz else bad
    first_bad, first_unsorted = int(bad[0]) if len(bad) else nnz, int(unsorted[0]) if len(unsorted) else nnz
    if first_bad < nnz and first_bad <= first_unsorted:
        d.must(False, NAME, "index", f"in [0, {codes})", f"{int(index[first_bad])} at [{first_bad}]")
    if first_unsorted < nnz:
        d.must(False, NAME, "index", "strictly increasing in each row", f"{int(index[first_unsorted])} at [{first_unsorted}]")


# ---- the three products: reference, fake, FLOPs (shapes in, 2 per multiply-add)


def _places(indptr: Tensor, index: Tensor, codes: int) -> Tensor:
    """[nnz]: where each kept block lies among all [OB, codes] blocks."""
    counts = (indptr[1:] - indptr[:-1]).long()
    rows = torch.arange(len(counts), device=index.device).repeat_interleave(counts, output_size=index.shape[0])
    return rows * codes + index.long()


def dense_weight(weight: Tensor, indptr: Tensor, index: Tensor, channels: int, kernel_size: Shape) -> Tensor:
    """``weight [nnz, BO, BI, BT]`` as the dense ``[OB*BO, C, KH, KW]`` it stands for. Differentiable."""
    _, block_out, block_in, block_taps = weight.shape
    out_blocks, in_blocks, tap_blocks = indptr.shape[0] - 1, channels // block_in, kernel_size[0] * kernel_size[1] // block_taps
    empty = weight.new_zeros(out_blocks * in_blocks * tap_blocks, block_out, block_in, block_taps)
    blocks = empty.index_copy(0, _places(indptr, index, in_blocks * tap_blocks), weight)
    blocks = blocks.reshape(out_blocks, in_blocks, tap_blocks, block_out, block_in, block_taps)
    return blocks.permute(0, 3, 1, 4, 2, 5).reshape(out_blocks * block_out, channels, *kernel_size)


def block_view(dense: Tensor, block: tuple[int, int, int]) -> Tensor:
    """``dense [K, C, KH, KW]`` as ``[OB*IB*TB, BO, BI, BT]``: every block, kept or not, in the order of the tables."""
    block_out, block_in, block_taps = block
    blocks = dense.flatten(2).unflatten(2, (-1, block_taps)).unflatten(1, (-1, block_in)).unflatten(0, (-1, block_out))
    return blocks.permute(0, 2, 4, 1, 3, 5).flatten(0, 2)


def kept_weight(dense: Tensor, indptr: Tensor, index: Tensor, block: tuple[int, int, int]) -> Tensor:
    """The blocks of ``dense [K, C, KH, KW]`` at the kept positions: ``[nnz, BO, BI, BT]``."""
    codes = dense[0].numel() // (block[1] * block[2])
    return block_view(dense, block)[_places(indptr, index, codes)]


def reference(x: Tensor, weight: Tensor, bias: Tensor | None, indptr: Tensor, index: Tensor, plan: Tensor | None, *window: int) -> Tensor:
    check(x, weight, bias, indptr, index, plan, *window)
    xc, wc, bc = d.compute(x, weight, bias)
    dense = dense_weight(wc, indptr, index, x.shape[1], window[:2])
    return _laid_out_like(x, d.convolve(xc, dense, bc, *_arguments(window)).to(x.dtype))


def reference_grad_x(
    grad_out: Tensor, weight: Tensor, indptr: Tensor, index: Tensor, plan: Tensor | None, channels: int, height: int, width: int,
    *window: int,
) -> Tensor:  # fmt: skip
    g, w = d.compute(grad_out, weight)
    x = g.new_empty(grad_out.shape[0], channels, height, width)  # read for its sizes
    dense = dense_weight(w, indptr, index, channels, window[:2])
    return _laid_out_like(grad_out, d.convolve_backward(0, g, x, dense, *_arguments(window)).to(grad_out.dtype))


def reference_grad_weight(
    grad_out: Tensor, x: Tensor, indptr: Tensor, index: Tensor, plan: Tensor | None, block_out: int, block_in: int, block_taps: int,
    *window: int,
) -> Tensor:  # fmt: skip
    g, xc = d.compute(grad_out, x)
    dense = xc.new_empty(grad_out.shape[1], x.shape[1], *window[:2])  # read for its sizes
    grad = d.convolve_backward(1, g, xc, dense, *_arguments(window))
    return kept_weight(grad, indptr, index, (block_out, block_in, block_taps)).to(x.dtype).contiguous()


def fake(x: Tensor, weight: Tensor, bias: Tensor | None, indptr: Tensor, index: Tensor, plan: Tensor | None, *window: int) -> Tensor:
    check(x, weight, bias, indptr, index, plan, *window)
    return _images_like(x, (indptr.shape[0] - 1) * weight.shape[1], *_out_size(*x.shape[2:], *window))


def fake_grad_x(
    grad_out: Tensor, weight: Tensor, indptr: Tensor, index: Tensor, plan: Tensor | None, channels: int, height: int, width: int,
    *window: int,
) -> Tensor:  # fmt: skip
    return _images_like(grad_out, channels, height, width)


def fake_grad_weight(
    grad_out: Tensor, x: Tensor, indptr: Tensor, index: Tensor, plan: Tensor | None, block_out: int, block_in: int, block_taps: int,
    *window: int,
) -> Tensor:  # fmt: skip
    return x.new_empty(index.shape[0], block_out, block_in, block_taps)


def _flops(images: int, out_size: Shape, weights: int) -> int:
    return 2 * images * out_size[0] * out_size[1] * weights


def _numel(shape: Shape) -> int:
    count = 1
    for size in shape:
        count *= size
    return count


def flops(x: Shape, weight: Shape, bias: Shape | None, indptr: Shape, index: Shape, plan: Shape | None, *window: int, **kwargs: Any) -> int:
    return _flops(x[0], _out_size(*x[2:], *window), _numel(weight))


def flops_grad_x(grad_out: Shape, weight: Shape, *args: Any, **kwargs: Any) -> int:
    return _flops(grad_out[0], grad_out[2:], _numel(weight))


def flops_grad_weight(grad_out: Shape, x: Shape, indptr: Shape, index: Shape, plan: Shape | None, *sizes: int, **kwargs: Any) -> int:
    return _flops(grad_out[0], grad_out[2:], index[0] * _numel(sizes[:3]))


# ---- derivatives: each one is another product


def _vjp(
    doors: SimpleNamespace, need: Sequence[bool], grad: Tensor, x: Tensor, weight: Tensor, shapes: Sequence[torch.Size], rest: list[Any]
) -> Gradients:
    indptr, index, plan, *window = rest
    return (
        doors.grad_x(grad, weight, indptr, index, plan, *shapes[0][1:], *window) if need[0] else None,
        doors.grad_weight(grad, x, indptr, index, plan, *shapes[1][1:], *window) if need[1] else None,
    )


def _vjp_grad_x(
    doors: SimpleNamespace, need: Sequence[bool], grad: Tensor, grad_out: Tensor, weight: Tensor, shapes: Sequence[torch.Size],
    rest: list[Any],
) -> Gradients:  # fmt: skip
    indptr, index, plan, _, _, _, *window = rest
    return (
        doors.forward(grad, weight, None, indptr, index, plan, *window) if need[0] else None,
        doors.grad_weight(grad_out, grad, indptr, index, plan, *shapes[1][1:], *window) if need[1] else None,
    )


def _vjp_grad_weight(
    doors: SimpleNamespace, need: Sequence[bool], grad: Tensor, grad_out: Tensor, x: Tensor, shapes: Sequence[torch.Size], rest: list[Any]
) -> Gradients:
    indptr, index, plan, _, _, _, *window = rest
    return (
        doors.forward(x, grad, None, indptr, index, plan, *window) if need[0] else None,
        doors.grad_x(grad_out, grad, indptr, index, plan, *shapes[1][1:], *window) if need[1] else None,
    )


def _fold(a: Tensor) -> tuple[Tensor, Callable[[Tensor], Tensor]]:
    """Mapped images are images: [B, N, C, H, W] -> [B*N, C, H, W] and back."""
    mapped = a.shape[:2]
    return a.flatten(0, 1), lambda out: out.unflatten(0, mapped)


# ---- samples


def _sample(
    device: torch.device | str, dtype: torch.dtype, images: int, channels: int, size: Shape, filters: int, kernel: tuple[int, int],
    block: tuple[int, int, int], kept: int, window: tuple[int, ...] = (1, 1, 0, 0, 1, 1), bias: bool = True,
) -> dict[str, Any]:  # fmt: skip
    """``kept`` blocks out of all, drawn at random; ``window`` is stride, padding, dilation, each high and wide."""
    generator = torch.Generator().manual_seed(images * 7 + channels * 31 + filters)
    block_out, block_in, block_taps = block
    codes = channels // block_in * (kernel[0] * kernel[1] // block_taps)
    keep = torch.randperm(filters // block_out * codes, generator=generator)[:kept].sort().values
    indptr = torch.searchsorted(keep, torch.arange(filters // block_out + 1) * codes)

    def draw(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=generator, dtype=torch.float64).to(device, dtype)

    return dict(
        x=draw(images, channels, *size), weight=draw(kept, *block), indptr=indptr.int().to(device), index=(keep % codes).int().to(device),
        kernel_size=kernel, bias=draw(filters) if bias else None, stride=window[:2], padding=window[2:4], dilation=window[4:],
    )  # fmt: skip


def samples(device: torch.device, dtype: torch.dtype) -> list[d.Sample]:
    make = lambda *args, **kwargs: _sample(device, dtype, *args, **kwargs)  # noqa: E731
    same = (1, 1, 1, 1, 1, 1)
    good = {
        "one_synapse": make(1, 1, (3, 3), 1, (1, 1), (1, 1, 1), 1),
        "odd_batch": make(3, 4, (5, 6), 6, (3, 3), (1, 1, 1), 60, same),
        "empty_batch": make(0, 3, (5, 5), 4, (3, 3), (1, 1, 1), 20, same),
        "spatial": make(2, 20, (9, 7), 10, (3, 3), (1, 20, 1), 30, same),
        "spatial_no_bias": make(1, 16, (8, 16), 9, (5, 5), (1, 16, 1), 60, (1, 1, 2, 2, 1, 1), bias=False),
        "spatial_few_channels": make(2, 3, (16, 16), 12, (3, 3), (1, 3, 1), 40, same),
        "spatial_strided": make(2, 18, (9, 10), 5, (3, 3), (1, 18, 1), 20, (2, 2, 1, 1, 1, 1)),
        "dilated": make(1, 4, (11, 9), 6, (3, 2), (1, 1, 1), 50, (1, 2, 2, 0, 2, 3)),
        "kernel": make(2, 5, (7, 7), 6, (3, 3), (1, 1, 9), 11, same),
        "shared": make(2, 5, (8, 8), 12, (3, 3), (4, 1, 1), 40, same),
        "shared_spatial": make(1, 16, (6, 6), 8, (3, 3), (4, 16, 1), 9, same),
        "block": make(1, 32, (6, 5), 32, (3, 3), (16, 16, 9), 3, same),
        "pointwise": make(2, 17, (5, 4), 7, (1, 1), (1, 1, 1), 30),
        "empty_mask": make(1, 3, (4, 4), 5, (3, 3), (1, 1, 1), 0, same),
        "full_mask": make(1, 3, (4, 4), 5, (3, 3), (1, 1, 1), 135, same),
        "shared_by_many": make(2, 5, (7, 6), 22, (3, 3), (11, 1, 1), 40, same),
        "empty_rows": make(2, 16, (5, 5), 40, (3, 3), (1, 16, 1), 20, same),
    }
    odd = good["odd_batch"]
    good["channels_last"] = {**odd, "x": odd["x"].to(memory_format=torch.channels_last)}
    good["channels_last_spatial"] = {**good["spatial"], "x": good["spatial"]["x"].to(memory_format=torch.channels_last)}
    good["sliced"] = {**odd, "x": make(3, 4, (5, 12), 6, (3, 3), (1, 1, 1), 60)["x"][..., ::2]}
    good["expanded"] = {**odd, "x": odd["x"][:1].expand(3, 4, 5, 6)}
    good["unbatched"] = {**odd, "x": odd["x"][0]}
    return [d.Sample(name, inputs) for name, inputs in good.items()]


def bad_samples() -> list[d.BadSample]:
    good = _sample("cpu", torch.float32, 2, 4, (5, 5), 3, (3, 3), (1, 1, 1), 20, (1, 1, 1, 1, 1, 1))
    index, indptr = good["index"], good["indptr"]
    put = lambda table, at, value: table.index_put((torch.tensor([at]),), torch.tensor(value).int())  # noqa: E731
    middle = int(indptr[1])
    bad = [
        ("x_not_tensor", {**good, "x": [1.0]}, TypeError, "x must be a tensor; got list"),
        ("x_integer", {**good, "x": good["x"].long()}, ValueError, "x must be float32, float64, float16 or bfloat16; got torch.int64"),
        ("x_dim", {**good, "x": good["x"][0, 0]}, ValueError, "x must be [N, C, H, W] or [C, H, W]; got [5, 5]"),
        ("x_small", {**good, "padding": 0, "x": torch.ones(2, 4, 2, 5)}, ValueError,
         "x must be of at least 3 x 3 pixels; got [2, 4, 2, 5]"),
        ("x_indivisible", {**good, "weight": torch.ones(20, 1, 3, 1)}, ValueError,
         "x must be [N, a positive multiple of BI=3, H, W]; got [2, 4, 5, 5]"),
        ("weight_dtype", {**good, "weight": good["weight"].double()}, ValueError, "weight must be torch.float32 like x; got torch.float64"),
        ("weight_device", {**good, "weight": good["weight"].to("meta")}, ValueError, "weight must be on cpu like x; got meta"),
        ("weight_dim", {**good, "weight": good["weight"][0]}, ValueError, "weight must be [nnz, BO, BI, BT]; got [1, 1, 1]"),
        ("weight_taps", {**good, "weight": torch.ones(20, 1, 1, 3)}, ValueError,
         "weight must be [nnz, BO, BI, 1 or 9] with BO and BI at least 1; got [20, 1, 1, 3]"),
        ("kernel_zero", {**good, "kernel_size": (0, 3)}, ValueError, "kernel_size must be at least 1; got (0, 3)"),
        ("stride_zero", {**good, "stride": 0}, ValueError, "stride must be at least 1; got (0, 0)"),
        ("padding_negative", {**good, "padding": (0, -1)}, ValueError, "padding must be at least 0; got (0, -1)"),
        ("dilation_zero", {**good, "dilation": 0}, ValueError, "dilation must be at least 1; got (0, 0)"),
        ("stride_list", {**good, "stride": (1, 2, 3)}, ValueError, "stride must be an int or two; got (1, 2, 3)"),
        ("bias_shape", {**good, "bias": torch.ones(5)}, ValueError, "bias must be [3]; got [5]"),
        ("bias_dtype", {**good, "bias": torch.ones(3).half()}, ValueError, "bias must be torch.float32 like x; got torch.float16"),
        ("indptr_dtype", {**good, "indptr": indptr.long()}, ValueError, "indptr must be torch.int32; got torch.int64"),
        ("indptr_empty", {**good, "indptr": indptr[:1], "bias": None}, ValueError, "indptr must be [OB+1] with OB at least 1; got [1]"),
        ("index_dtype", {**good, "index": index.long()}, ValueError, "index must be torch.int32; got torch.int64"),
        ("index_shape", {**good, "index": index[:7]}, ValueError, "index must be [20] like weight; got [7]"),
        ("index_dim", {**good, "index": index[None]}, ValueError, "index must be 1-dimensional; got [1, 20]"),
        ("indptr_values_start", {**good, "indptr": put(indptr, 0, 1)}, ValueError, "indptr must be 0 at its start; got 1"),
        ("indptr_values_order", {**good, "indptr": put(indptr, 1, 50)}, ValueError,
         f"indptr must be non-decreasing; got {int(indptr[2])} at [2]"),
        ("indptr_values_end", {**good, "indptr": put(indptr, 3, 19)}, ValueError, "indptr must be 20 at its end, like index; got 19"),
        ("index_above", {**good, "index": put(index, middle - 1, 36)}, ValueError, f"index must be in [0, 36); got 36 at [{middle - 1}]"),
        ("index_negative", {**good, "index": put(index, middle, -1)}, ValueError, f"index must be in [0, 36); got -1 at [{middle}]"),
        ("index_twice", {**good, "index": put(index, 1, int(index[0]))}, ValueError,
         f"index must be strictly increasing in each row; got {int(index[0])} at [1]"),
        ("plan_of_another", {**good, "plan": torch.zeros(64, dtype=torch.int32)}, ValueError,
         "plan must be made by plan_sparse_conv2d for sizes [3, 4, 3, 3, 1, 1, 1, 20]; got [0, 0, 0, 0, 0, 0, 0, 0]"),
        ("plan_dtype", {**good, "plan": torch.zeros(64)}, ValueError, "plan must be torch.int32; got torch.float32"),
    ]  # fmt: skip
    return [d.BadSample(name, inputs, error, f"{NAME}: {sentence}") for name, inputs, error, sentence in bad]


# ---- the op

_TABLES = "Tensor indptr, Tensor index, Tensor? plan"
_WINDOW = ", ".join(f"int {name}" for name in ["KH", "KW", "stride_h", "stride_w", "pad_h", "pad_w", "dilation_h", "dilation_w"])

OP = d.define(
    d.Op(
        name=NAME,
        forward=d.Product(
            NAME,
            f"Tensor x, Tensor weight, Tensor? bias, {_TABLES}, {_WINDOW}",
            reference, fake, flops, _vjp, structure=3, bias=True, fold=_fold,
        ),
        grad_x=d.Product(
            NAME + "_grad_x",
            f"Tensor grad_out, Tensor weight, {_TABLES}, SymInt C, SymInt H, SymInt W, {_WINDOW}",
            reference_grad_x, fake_grad_x, flops_grad_x, _vjp_grad_x, structure=3, fold=_fold,
        ),
        grad_weight=d.Product(
            NAME + "_grad_weight",
            f"Tensor grad_out, Tensor x, {_TABLES}, SymInt BO, SymInt BI, SymInt BT, {_WINDOW}",
            reference_grad_weight, fake_grad_weight, flops_grad_weight, _vjp_grad_weight, structure=3,
        ),
        check=check,
        samples=samples,
        bad_samples=bad_samples,
        behind_bias=2,
    )
)  # fmt: skip

d.LIBRARY.define("plan_sparse_conv2d(Tensor indptr, Tensor index, int C, int KH, int KW, int BO, int BI, int BT) -> Tensor")
d.LIBRARY.define(
    "choose_sparse_conv2d(Tensor like, int N, int H, int W, int K, int C, int KH, int KW, int stride_h, int stride_w, int pad_h, "
    "int pad_w, int dilation_h, int dilation_w, int BO, int BI, int BT, int nnz, int product, int type, bool channels_last) -> Tensor"
)


def plan_sparse_conv2d(
    indptr: Tensor, index: Tensor, channels: int, kernel_size: tuple[int, int], block: tuple[int, int, int]
) -> Tensor | None:
    """What the kernels derive from the tables alone, once: a flat int32 tensor for the ``plan`` argument.

    Checks order, range and duplicates. One plan serves every image size, stride, padding and dilation. None on a device whose
    kernels need no plan.

    Args:
        indptr: ``[OB+1]`` int32.
        index: ``[nnz]`` int32.
        channels: input channels ``C``.
        kernel_size: ``(KH, KW)``.
        block: ``(BO, BI, BT)``.

    Raises:
        ValueError: ``sparse_conv2d: index must be in [0, 36); got 36 at [7]``

    Cost:
        O(kept blocks); about 12 bytes per kept block.
    """
    for arg, table in (("indptr", indptr), ("index", index)):
        d.check_tensor(NAME, arg, table)
        d.must(
            table.dtype == torch.int32 and table.dim() == 1, NAME, arg, "1-dimensional torch.int32", f"{list(table.shape)} {table.dtype}"
        )
    for arg, sizes, count in (("kernel_size", kernel_size, 2), ("block", block, 3)):
        whole = isinstance(sizes, tuple | list) and len(sizes) == count and all(d.is_whole(n) and 0 < n < 2**31 for n in sizes)
        d.must(whole, NAME, arg, f"{count} whole numbers of at least 1 and below 2^31", d.said(sizes))
    d.check_whole(NAME, channels=channels)
    d.must(channels < 2**31, NAME, "channels", "below 2^31", channels)
    taps = kernel_size[0] * kernel_size[1]
    d.must(indptr.shape[0] > 1, NAME, "indptr", "[OB+1] with OB at least 1", list(indptr.shape))
    d.must(block[2] in (1, taps) and min(block) > 0, NAME, "block", f"(BO, BI, 1 or {taps})", tuple(block))
    d.must(channels > 0 and channels % block[1] == 0, NAME, "channels", f"a positive multiple of BI={block[1]}", channels)
    codes = channels // block[1] * (taps // block[2])
    if index.device.type == "cuda" and d.backends.has_kernels("cuda"):
        from sparsekern.ops.cuda_sparse_conv2d import make_plan  # imports this file

        check_tables(indptr, index, codes)
        return make_plan(indptr, index, channels, kernel_size, block)
    if index.device.type != "cpu" or not d.backends.has_kernels("cpu"):
        check_tables(indptr, index, codes)
        return None
    try:
        return torch.ops.sparsekern.plan_sparse_conv2d(indptr, index, channels, *kernel_size, *block)
    except RuntimeError:
        check_tables(indptr, index, codes)
        raise


KERNELS = ("tile", "list", "dense")  # by the codes of core/sparse_conv2d.h


def explain_sparse_conv2d(
    x_shape: Shape, filters: int, window: Shape, block: Shape, nnz: int, dtype: torch.dtype, channels_last: bool = False
) -> dict[str, dict[str, Any]]:
    """Per product: which kernel serves ``x_shape [N, C, H, W]``, and the sparse kernels' estimated time over dense time.

    ``window``: kernel size, stride, padding and dilation, two ints each.
    """
    if not d.backends.has_kernels("cpu"):
        return {door: {"kernel": "reference"} for door in OP.products}
    images, channels, *size = x_shape
    like, code_of = torch.empty(0, dtype=torch.float64, device="cpu"), {torch.bfloat16: 1, torch.float16: 2}
    out = {}
    for code, door in enumerate(OP.products):
        sizes = (images, *size, filters, channels, *window, *block, nnz)
        kernel, cost = torch.ops.sparsekern.choose_sparse_conv2d(like, *sizes, code, code_of.get(dtype, 0), channels_last).tolist()
        out[door] = {"kernel": "plain fp64" if dtype == torch.float64 else KERNELS[int(kernel)], "relative_cost": round(cost, 2)}
    return out


def _two(arg: str, value: Any) -> Shape:
    if not isinstance(value, (tuple, list)):
        return value, value
    d.must(len(value) == 2, NAME, arg, "an int or two", value)
    return value  # what they are is left to the schema and, where that refuses, to the check


def sparse_conv2d(
    x: Tensor,
    weight: Tensor,
    indptr: Tensor,
    index: Tensor,
    kernel_size: int | tuple[int, int],
    bias: Tensor | None = None,
    stride: int | tuple[int, int] = 1,
    padding: int | tuple[int, int] = 0,
    dilation: int | tuple[int, int] = 1,
    plan: Tensor | None = None,
) -> Tensor:
    """Convolve with the kept weights of a masked filter bank.

    Args:
        x: ``[N, C, H, W]`` or ``[C, H, W]`` float32, float64, float16 or bfloat16. Any strides. A channels_last x gives a
            channels_last output.
        weight: ``[nnz, BO, BI, BT]``, dtype and device of ``x``: only the kept blocks. ``BT`` is 1 or ``KH*KW``.
        indptr: ``[OB+1]`` int32: the blocks of output block ``ob`` (``BO`` filters) are ``indptr[ob]`` to ``indptr[ob+1]``.
        index: ``[nnz]`` int32: ``input_block * (KH*KW/BT) + tap`` of each block; strictly increasing in each row.
        kernel_size: ``KH, KW``.
        bias: ``[OB*BO]`` or None.
        stride, padding, dilation: as in ``torch.nn.functional.conv2d``.
        plan: from :func:`plan_sparse_conv2d` for the same tables; without it they are checked and planned at every call.

    Returns:
        ``[N, OB*BO, OH, OW]``, dtype of ``x``; accumulated in float32 (float64 for float64). Filters without kept weights give
        their bias.

    Raises:
        ValueError: ``sparse_conv2d: weight must be [nnz, BO, BI, BT]; got [1, 1, 1]``
        TypeError: ``sparse_conv2d: x must be a tensor; got list``

    Cost:
        ``2*N*OH*OW*nnz*BO*BI*BT`` FLOPs. Where a dense convolution is estimated faster it runs instead (see the layer's ``explain``).

    Source:
        Random connectivity of convolutions: Shafiee, Fieguth and Wong, "StochasticNet in StochasticNet".

    Example:
        >>> indptr, index = torch.tensor([0, 1, 2], dtype=torch.int32), torch.tensor([0, 3], dtype=torch.int32)
        >>> weight = torch.tensor([1.0, 10.0]).reshape(2, 1, 1, 1)  # the first and the last tap of a 2x2 kernel
        >>> sparse_conv2d(torch.arange(9.0).reshape(1, 1, 3, 3), weight, indptr, index, kernel_size=2)
        tensor([[[[ 0.,  1.],
                  [ 3.,  4.]],
        <BLANKLINE>
                 [[40., 50.],
                  [70., 80.]]]])
    """
    window = (
        *_two("kernel_size", kernel_size), *_two("stride", stride), *_two("padding", padding), *_two("dilation", dilation)
    )  # fmt: skip
    return run_sparse_conv2d(x, weight, bias, indptr, index, plan, window)


def run_sparse_conv2d(
    x: Tensor, weight: Tensor, bias: Tensor | None, indptr: Tensor, index: Tensor, plan: Tensor | None, window: Shape
) -> Tensor:
    """:func:`sparse_conv2d` with its ``window`` ready: kernel size, stride, padding and dilation, two ints each."""
    try:
        if x.dim() == 3:
            return run_sparse_conv2d(x.unsqueeze(0), weight, bias, indptr, index, plan, window).squeeze(0)
        if plan is not None and not torch.compiler.is_compiling():
            d.require_whole(plan, _SEAL, "sparse_conv2d: plan")
        x, weight, bias = d.autocast(x, weight, bias)
        return OP.call(x, weight, bias, indptr, index, plan, *window)
    except (RuntimeError, TypeError, AttributeError, IndexError):
        check(x, weight, bias, indptr, index, plan, *window)  # says it in our words; falls through when the error was another one
        raise


OP.function = sparse_conv2d
