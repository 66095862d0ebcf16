"""sequence2d: convolutions and poolings one after the other in one call, a few images at a time; for inference.

    x [N, C, H, W]  ->  stage 1  ->  stage 2  ->  ...  ->  out [N, K, OH, OW]

A small network spends a tenth of its time between its layers: each call of an op goes through Python, a dispatcher and an allocator.
A stage is one of

    packed convolution    tensors packed [*], bias [K]?                          as grouped_conv2d_packed, then a ReLU?
    sparse convolution    tensors weight, indptr, index, plan, bias [K]?         as sparse_conv2d, then a ReLU?
    pooling               no tensors                                             as pool2d

and is said in ``NUMBERS`` numbers, see :class:`Stage`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

from sparsekern.ops import define as d
from sparsekern.ops.flop_formulas import register_flops
from sparsekern.ops.grouped_conv2d import _laid_out_like, _new_like
from sparsekern.ops.grouped_conv2d_packed import fake as fake_packed
from sparsekern.ops.grouped_conv2d_packed import flops as flops_packed
from sparsekern.ops.grouped_conv2d_packed import reference as reference_packed
from sparsekern.ops.pool2d import fake as fake_pool
from sparsekern.ops.pool2d import reference as reference_pool
from sparsekern.ops.sparse_conv2d import fake as fake_sparse
from sparsekern.ops.sparse_conv2d import flops as flops_sparse
from sparsekern.ops.sparse_conv2d import reference as reference_sparse
from sparsekern.ops.types import Shape

NAME = "sequence2d"
PACKED_CONV, SPARSE_CONV, POOL = 0, 1, 2
TENSORS = {PACKED_CONV: 1, SPARSE_CONV: 4, POOL: 0}  # of a stage, without its bias
MOST_TOGETHER = 3  # convolutions that go band by band


class Stage(NamedTuple):
    """One layer. ``flag``: whether a ReLU follows, or how to pool (:data:`~sparsekern.ops.pool2d.MAX` ...). ``option``: whether there
    is a bias, or ``ceil_mode``. ``with_next``: run band by band with the next stage, a packed 1x1, as ``root_conv2d`` does. A pooling
    over the whole image has a kernel of 0; it has neither dilation, groups nor ``out_channels``."""

    kind: int
    flag: int
    option: int
    with_next: int
    kernel_h: int
    kernel_w: int
    stride_h: int
    stride_w: int
    pad_h: int
    pad_w: int
    dilation_h: int = 1
    dilation_w: int = 1
    groups: int = 1
    out_channels: int = 0


NUMBERS = len(Stage._fields)


# ---- check


def _stages(tensors: Sequence[Any], numbers: Sequence[int], images: Any) -> list[tuple[Stage, list[Any], Any]]:
    """``[(stage, tensors, bias or None), ...]`` of numbers and tensors that fit each other."""
    d.must(len(numbers) > 0 and len(numbers) % NUMBERS == 0, NAME, "numbers", f"{NUMBERS} for each of at least one stage", len(numbers))
    d.must(isinstance(images, int | torch.SymInt) and images >= 0, NAME, "images", "at least 1, or 0 for all together", images)
    found: list[tuple[Stage, list[Any], Any]] = []
    at, together = 0, 1
    for i in range(0, len(numbers), NUMBERS):
        stage = Stage(*numbers[i : i + NUMBERS])
        d.must(stage.kind in TENSORS, NAME, "numbers", f"of a kind in {sorted(TENSORS)}", stage.kind)
        behind, last = bool(found and found[-1][0].with_next), i + NUMBERS == len(numbers)
        together = together + 1 if behind else 1
        plain = stage.kind == PACKED_CONV and stage[4:10] == (1, 1, 1, 1, 0, 0) and together <= MOST_TOGETHER
        good = (not behind or plain) and (not stage.with_next or (stage.kind == PACKED_CONV and not last))
        d.must(good, NAME, "numbers", f"with_next before up to {MOST_TOGETHER - 1} packed 1x1 convolutions", [int(v) for v in stage])
        own, has_bias = TENSORS[stage.kind], stage.kind != POOL and bool(stage.option)
        found.append((stage, list(tensors[at : at + own]), tensors[at + own] if has_bias and at + own < len(tensors) else None))
        at += own + has_bias
    d.must(at == len(tensors), NAME, "tensors", f"{at} for these stages", len(tensors))
    return found


def _calls(tensors: Sequence[Any], numbers: Sequence[int], images: Any) -> Iterator[tuple[Stage, tuple]]:
    """``(stage, what its own op takes behind x)``."""
    for stage, own, bias in _stages(tensors, numbers, images):
        window = stage[6:12]
        if stage.kind == PACKED_CONV:
            yield stage, (*own, bias, None, stage.out_channels, *stage[4:6], *window, stage.groups, bool(stage.flag))
        elif stage.kind == SPARSE_CONV:
            weight, indptr, index, plan = own
            yield stage, (weight, bias, indptr, index, plan, *stage[4:6], *window)
        else:
            yield stage, (*stage[4:10], bool(stage.option), stage.flag)


def _pool_arguments(x: Tensor, arguments: tuple) -> tuple:
    return (arguments[0] or x.shape[2], arguments[1] or x.shape[3], *arguments[2:])


def _walk(x: Any, tensors: Sequence[Tensor], numbers: Shape, images: int, ops: dict[int, Callable[..., Tensor]]) -> Tensor:
    """Stage by stage, each by its own op, which checks what it is given."""
    d.check_tensor(NAME, "x", x)
    d.must(x.dtype in (torch.float32, torch.float16, torch.bfloat16), NAME, "x", "float32, float16 or bfloat16", x.dtype)
    d.must(x.dim() == 4, NAME, "x", "[N, C, H, W]", list(x.shape))
    y = x
    for stage, arguments in _calls(tensors, numbers, images):
        y = ops[stage.kind](y, *(_pool_arguments(y, arguments) if stage.kind == POOL else arguments))
        if stage.kind != POOL:
            d.must(y.shape[1] == stage.out_channels, NAME, "numbers", f"of out_channels {y.shape[1]}", stage.out_channels)
        if stage.kind == SPARSE_CONV and stage.flag and ops is _REFERENCES:
            y = y.relu()
    return y


_REFERENCES: dict[int, Callable[..., Tensor]] = {PACKED_CONV: reference_packed, SPARSE_CONV: reference_sparse, POOL: reference_pool}
_FAKES: dict[int, Callable[..., Tensor]] = {PACKED_CONV: fake_packed, SPARSE_CONV: fake_sparse, POOL: fake_pool}
_FLOPS: dict[int, Callable[..., int]] = {PACKED_CONV: flops_packed, SPARSE_CONV: flops_sparse}


def check(x: Tensor, tensors: Sequence[Tensor], numbers: Shape, images: int) -> None:
    """Everything that can be wrong with the arguments; what is wrong with a stage is said by its own op."""
    _walk(x, tensors, numbers, images, _FAKES)


# ---- reference, fake, FLOPs


@d.outside_autocast
def reference(x: Tensor, tensors: Sequence[Tensor], numbers: Shape, images: int) -> Tensor:
    return _laid_out_like(x, _walk(x, tensors, numbers, images, _REFERENCES))


def fake(x: Tensor, tensors: Sequence[Tensor], numbers: Shape, images: int) -> Tensor:
    return _new_like(x, tuple(_walk(x, tensors, numbers, images, _FAKES).shape))


def flops(x: Shape, tensors: Sequence[Shape], numbers: Shape, images: int, **kwargs: Any) -> int:
    total, size = 0, torch.empty(x, device="meta")
    for stage, arguments in _calls([torch.empty(t, device="meta") for t in tensors], numbers, images):
        shapes = [a.shape if isinstance(a, Tensor) else a for a in arguments]
        if stage.kind == POOL:
            size = fake_pool(size, *_pool_arguments(size, arguments))
            continue
        total += _FLOPS[stage.kind](size.shape, *shapes)
        height, width = (
            (n + 2 * pad - dilation * (kernel - 1) - 1) // stride + 1
            for n, kernel, stride, pad, dilation in zip(size.shape[2:], stage[4:6], stage[6:8], stage[8:10], stage[10:12])
        )
        size = size.new_empty(size.shape[0], stage.out_channels, height, width)
    return total


d.LIBRARY.define(f"{NAME}(Tensor x, Tensor[] tensors, int[] numbers, int images) -> Tensor", tags=(torch.Tag.pt2_compliant_tag,))
d.LIBRARY.impl(NAME, reference, "CompositeExplicitAutograd")
torch.library.register_fake(f"sparsekern::{NAME}", fake, lib=d.LIBRARY)
register_flops(torch.ops.sparsekern.sequence2d, flops)


def sequence2d(x: Tensor, tensors: Sequence[Tensor], numbers: Sequence[int], images: int = 0) -> Tensor:
    """Convolutions and poolings one after the other, for inference.

    Args:
        x: ``[N, C, H, W]``, float32 (what the kernels are for), float16 or bfloat16. Under autocast, its dtype.
        tensors: of all stages in order, as the module says.
        numbers: ``NUMBERS`` for each stage: a :class:`Stage`.
        images: how many go through the stages together; 0 for all. Fewer keep what is between the stages in a cache.

    Returns:
        ``[N, K, OH, OW]``, channels_last if ``x`` is.

    Raises:
        ValueError: ``sequence2d: tensors must be 2 for these stages; got 1``

    Example:
        >>> from sparsekern.ops import pack_grouped_conv2d
        >>> packed = pack_grouped_conv2d(torch.ones(1, 2, 1, 1))
        >>> stages = [*Stage(PACKED_CONV, True, False, False, 1, 1, 1, 1, 0, 0, out_channels=1), *Stage(POOL, 0, 0, 0, 0, 0, 1, 1, 0, 0)]
        >>> sequence2d(torch.arange(8.0).reshape(1, 2, 2, 2), [packed], stages)
        tensor([[[[10.]]]])
    """
    try:
        if d.autocast_enabled():
            given: tuple[Tensor, ...] = (x, *tensors)
            x, *tensors = d.autocast(*given)
        if d.backends.forced_reference and not torch.compiler.is_compiling():
            return reference(x, tensors, numbers, images)
        return torch.ops.sparsekern.sequence2d(x, tensors, numbers, images)
    except (RuntimeError, TypeError, AttributeError, IndexError):
        check(x, tensors, numbers, images)
        raise
