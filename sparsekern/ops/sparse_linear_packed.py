"""sparse_linear_packed: sparse_linear on a weight that was packed, on request, into the kernels' own order.

    x [..., IB*BI]   packed [*] int32 (weights, by their bits, and index)   bias [OB*BO] or None   out [..., OB*BO]

Inference only. The pack is a real tensor, seen by compile and export; nothing writes it after :func:`pack_sparse_linear`.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from sparsekern.ops import define as d
from sparsekern.ops.flop_formulas import register_flops
from sparsekern.ops.sparse_linear import _laid_out_like, _rows, _rows_like, check_features, check_index, dense_weight
from sparsekern.ops.types import Shape

NAME = "sparse_linear_packed"

# words of the header (core/sparse_linear_pack.cpp)
_MAGIC, _SIZES, _LENGTH, _WIDE, _PANELS, _SOURCE, _WEIGHT, _ENTRIES, _NATURAL, _MASK, _BALANCED, _PLACES, _LEFT_OVER, _SEAL = (
    0, slice(2, 7), 7, 8, 11, 12, 13, 15, 20, 21, 22, 26, 27, 39,
)  # fmt: skip
_MAGIC_VALUE = 0x534B5031


def check(x: Any, packed: Any, bias: Any, out_features: int, kept: int) -> None:
    """Everything that can be wrong with the arguments; the header of ``packed`` where it can be read."""
    d.check_tensor(NAME, "x", x)
    d.must(x.dtype in (torch.float32, torch.float16, torch.bfloat16), NAME, "x", "float32, float16 or bfloat16", x.dtype)
    d.must(x.dim() >= 1, NAME, "x", "[..., in_features]", list(x.shape))
    d.check_whole(NAME, out_features=out_features, kept=kept)
    d.check_int32(NAME, "packed", packed, x, 1)
    d.must(packed.is_contiguous(), NAME, "packed", "contiguous", f"strides {packed.stride()}")
    if bias is not None:
        d.check_like(NAME, "bias", bias, x)
        d.must(tuple(bias.shape) == (out_features,), NAME, "bias", f"[{out_features}]", list(bias.shape))
    if d.readable(packed):
        d.must(_is_pack(packed), NAME, "packed", "made by pack_sparse_linear", f"{packed.numel()} other numbers")
        ob, fan_in, bo, bi, ib = packed[_SIZES].tolist()
        d.must(ob * bo == out_features and ob * fan_in * bo * bi == kept, NAME, "packed", f"of {out_features} outputs and {kept} weights",
               f"{ob * bo} and {ob * fan_in * bo * bi}")  # fmt: skip
        d.must(x.shape[-1] == ib * bi, NAME, "x", f"[..., {ib * bi}]", list(x.shape))


def _is_pack(packed: Tensor) -> bool:
    whole = packed.numel() > 40 and int(packed[_MAGIC]) == _MAGIC_VALUE and int(packed[_LENGTH]) == packed.numel()
    return whole and d.sealed(packed, _SEAL)


def unpack_sparse_linear(packed: Tensor) -> tuple[Tensor, Tensor]:
    """``(weight [OB, F] or [OB, F, BO, BI] float32, index [OB, F] int32)`` of a pack."""
    ob, fan_in, bo, bi, ib = packed[_SIZES].tolist()

    def section(word: int, count: int) -> Tensor:
        return packed[int(packed[word]) :][:count]

    if bo * bi > 1:
        weight = section(_WEIGHT, ob * fan_in * bo * bi).view(torch.float32)
        return weight.reshape(ob, fan_in, bo, bi), section(_ENTRIES, 2 * ob * fan_in).reshape(-1, 2)[:, 0].reshape(ob, fan_in)
    count = ob * fan_in
    if not int(packed[_PANELS]):  # rows as they are, and a bit for each input
        words = -(-ib // 32)
        bits = (section(_MASK, ob * words).reshape(ob, words, 1) >> torch.arange(32)) & 1
        inputs = torch.arange(words * 32, dtype=torch.int32)
        if ib > 32:  # the last word ends where the row ends
            inputs[-32:] = torch.arange(ib - 32, ib)
        index = inputs.expand(ob, -1)[bits.reshape(ob, -1).bool()].reshape(ob, fan_in)
        return section(_NATURAL, count).view(torch.float32).reshape(ob, fan_in), index
    # in the order of the segments: lists of runs (length, rows), then (row in its panel, first connection) for each row of the runs
    table, rows, lengths = packed[int(packed[_PANELS]) :], [], []
    panels, blocks, panel_rows = table[:3].tolist()
    for number in range(panels * blocks):
        segments = table[int(table[4 + number]) :]
        runs = segments[1 : 1 + 2 * int(segments[0])].reshape(-1, 2).long()
        heads = segments[1 + runs.numel() :][: 2 * int(runs[:, 1].sum())].reshape(-1, 2)
        rows.append(heads[:, 0].long() + number // blocks * panel_rows)
        lengths.append(runs[:, 0].repeat_interleave(runs[:, 1]))
    row = torch.cat(rows).repeat_interleave(torch.cat(lengths))
    source = section(_SOURCE, count) if int(packed[_WIDE]) else section(_SOURCE, -(-count // 2)).view(torch.uint16)[:count].int()
    order = (row * ib + source).argsort()
    weight = section(_WEIGHT, count).view(torch.float32)
    return weight[order].reshape(ob, fan_in), source[order].reshape(ob, fan_in)


def packed_windows(packed: Tensor) -> tuple[bool, int, int]:
    """For the kernels that take 32 inputs at a time: is the table window-balanced; else how many connections of an output find a place in
    each window, and how many at most find none."""
    return bool(packed[_BALANCED]), int(packed[_PLACES]), int(packed[_LEFT_OVER])


@d.outside_autocast
def reference(x: Tensor, packed: Tensor, bias: Tensor | None, out_features: int, kept: int) -> Tensor:
    check(x, packed, bias, out_features, kept)
    weight, index = unpack_sparse_linear(packed)
    out = torch.nn.functional.linear(x.float(), dense_weight(weight, index, x.shape[-1]), None if bias is None else bias.float())
    return _laid_out_like(x, out.to(x.dtype))


def fake(x: Tensor, packed: Tensor, bias: Tensor | None, out_features: int, kept: int) -> Tensor:
    check(x, packed, bias, out_features, kept)
    return _rows_like(x, out_features)


def flops(x: Shape, packed: Shape, bias: Shape | None, out_features: int, kept: int, *args: Any, **kwargs: Any) -> int:
    return 2 * _rows(x) * kept


d.LIBRARY.define(
    f"{NAME}(Tensor x, Tensor packed, Tensor? bias, int out_features, int kept) -> Tensor", tags=(torch.Tag.pt2_compliant_tag,)
)
d.LIBRARY.define("pack_sparse_linear(Tensor weight, Tensor index, int in_features) -> Tensor")
d.LIBRARY.impl(NAME, reference, "CompositeExplicitAutograd")
torch.library.register_fake(f"sparsekern::{NAME}", fake, lib=d.LIBRARY)
register_flops(torch.ops.sparsekern.sparse_linear_packed, flops)
_kernel = d.backends.quick(torch.ops.sparsekern.sparse_linear_packed.default)
_quick = d.backends.quick_call.packed_linear if d.backends.quick_call and d.backends.missing is None else None
_compiling = torch.compiler.is_compiling


def pack_sparse_linear(weight: Tensor, index: Tensor, in_features: int) -> Tensor:
    """Put a weight and its index into the kernels' own order, once.

    Args:
        weight: ``[OB, F]`` or ``[OB, F, BO, BI]``, float32, float16 or bfloat16 (kept as float32; bfloat16, on a processor with
            matrix tiles, as the operands of those too, for rows of x in bfloat16).
        index: ``[OB, F]`` int32, strictly increasing in each row.
        in_features: features of the x to come, ``IB*BI``.

    Returns:
        ``[*]`` int32 on the CPU: 8 bytes per weight in blocks. Condensed, about 6 per weight for many rows, unless two thirds of all
        connections are kept and there is AVX-512, and for few rows one of these: 6 per weight; from a third kept, 4 per position, zeros
        and all; with AVX-512, where it is faster, 5 to 10 per weight in places of windows (an empty place is a product with zero, so
        there an Inf in an unconnected input may give NaN, as in a dense product); for window-balanced tables 5 to 8. With AVX-512, from
        a sixth kept on, 4 more per weight and a bit per position. With matrix tiles 2 more per bfloat16 weight, and a bit per position.

    Raises:
        ValueError: ``sparse_linear_packed: weight must be float32, float16 or bfloat16 on a CPU with compiled kernels; got ...``
    """
    d.check_tensor(NAME, "weight", weight)
    rule = "float32, float16 or bfloat16 on a CPU with compiled kernels"
    d.must(d.backends.can_pack(weight), NAME, "weight", rule, f"{weight.dtype} on {weight.device.type}")
    d.must(weight.dim() in (2, 4), NAME, "weight", "[OB, F] or [OB, F, BO, BI]", list(weight.shape))
    d.must(min(weight.shape[1:]) > 0, NAME, "weight", "of fan-in and block size at least 1", list(weight.shape))
    d.check_int32(NAME, "index", index, weight, 2, "weight")
    d.must(index.shape == weight.shape[:2], NAME, "index", f"{list(weight.shape[:2])} like weight", list(index.shape))
    check_features(NAME, in_features, weight.shape[3] if weight.dim() == 4 else 1)
    try:
        return torch.ops.sparsekern.pack_sparse_linear(weight.detach(), index, in_features)
    except RuntimeError:
        check_index(index, in_features // (weight.shape[3] if weight.dim() == 4 else 1))
        raise


def sparse_linear_packed(x: Tensor, packed: Tensor, bias: Tensor | None, out_features: int, kept: int) -> Tensor:
    """:func:`~sparsekern.ops.sparse_linear` on a packed weight, for inference.

    Args:
        x: ``[..., in_features]`` float32, float16 or bfloat16; layout rule and autocast as for ``sparse_linear``.
        packed: from :func:`pack_sparse_linear`.
        bias: ``[out_features]`` or None, dtype of ``x``.
        out_features: outputs of the weight.
        kept: number of its stored weights.

    Returns:
        ``[..., out_features]``, dtype of ``x``; accumulated in float32.

    Raises:
        ValueError: ``sparse_linear_packed: x must be [..., 4]; got [2, 5]``

    Example:
        >>> index = torch.tensor([[0, 2], [1, 3]], dtype=torch.int32)
        >>> packed = pack_sparse_linear(torch.tensor([[1.0, 10.0], [100.0, 1000.0]]), index, 4)
        >>> sparse_linear_packed(torch.tensor([[1.0, 2.0, 3.0, 4.0]]), packed, None, 2, 4)
        tensor([[  31., 4200.]])
    """
    try:
        if not _compiling():
            d.require_whole(packed, _SEAL, "sparse_linear_packed: packed")
            if _quick is not None:
                out = _quick(x, packed, bias, out_features, kept)
                if out is not NotImplemented:
                    return out
        if d.autocast_enabled():
            x, bias = d.autocast(x, bias)
        if _compiling():
            return torch.ops.sparsekern.sparse_linear_packed(x, packed, bias, out_features, kept)
        return (reference if d.backends.forced_reference else _kernel)(x, packed, bias, out_features, kept)
    except (RuntimeError, TypeError, AttributeError, IndexError, OverflowError):
        check(x, packed, bias, out_features, kept)
        raise
