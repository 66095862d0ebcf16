"""grouped_mm: many small matrix products in one call, of equal or of ragged height.

    equal    a [G, M, K]   b [G, K, N]                              out [G, M, N]   out[g] = a[g] @ b[g]
    ragged   a [T, K]      b [G, K, N]   offsets [G] int32 (ends)   out [T, N]      out[r] = a[r] @ b[g] for rows of group g

The batched product that Deep Roots (section 5) names as what filter groups need from a BLAS. On the CPU torch's own products serve it.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from types import SimpleNamespace
from typing import Any

import torch
from torch import Tensor

from sparsekern.ops import define as d
from sparsekern.ops.types import Gradients, Shape

NAME = "grouped_mm"


def check(a: Any, b: Any, offsets: Any = None, *, values: bool = True) -> None:
    """Everything that can be wrong with the arguments; with ``values`` those of the offsets too, where they can be read."""
    d.check_floating(NAME, "a", a)
    d.check_like(NAME, "b", b, a, "a")
    d.must(b.dim() == 3, NAME, "b", "[G, K, N]", list(b.shape))
    if offsets is None:
        d.must(a.dim() == 3, NAME, "a", "[G, M, K] without offsets", list(a.shape))
        d.must(a.shape[0] == b.shape[0] and a.shape[2] == b.shape[1], NAME, "a", f"[{b.shape[0]}, M, {b.shape[1]}] like b", list(a.shape))
        return
    d.must(a.dim() == 2, NAME, "a", "[T, K] with offsets", list(a.shape))
    d.must(a.shape[1] == b.shape[1], NAME, "a", f"[T, {b.shape[1]}] like b", list(a.shape))
    d.check_int32(NAME, "offsets", offsets, a, 1, "a")
    d.must(offsets.shape[0] == b.shape[0], NAME, "offsets", f"[{b.shape[0]}] like b", list(offsets.shape))
    if values and d.readable(offsets) and offsets.numel():
        ends = offsets.tolist()
        rising = all(p <= q for p, q in zip([0, *ends], ends))
        d.must(rising and ends[-1] == a.shape[0], NAME, "offsets", f"rising row ends, the last one {a.shape[0]}", ends)


# ---- the three products. grad_a is the forward with b transposed; grad_b[g] = a[g]^T @ grad[g].


def _groups(offsets: Tensor) -> list[tuple[int, int]]:
    ends = offsets.tolist()
    return list(zip([0, *ends], ends))


def _in_precision(fn: Callable[..., Any], dtype: torch.dtype, *tensors: Tensor) -> Tensor:
    half = dtype in (torch.float16, torch.bfloat16)
    return fn(*(t.float() if half else t for t in tensors)).to(dtype)


def _rows(a: Tensor, b: Tensor, offsets: Tensor | None) -> Tensor:
    """a @ b, group by group"""
    if offsets is None:
        return torch.bmm(a, b)
    parts = [a[begin:end] @ b[g] for g, (begin, end) in enumerate(_groups(offsets))]
    return torch.cat(parts) if parts else a.new_zeros(a.shape[0], b.shape[2])


def _columns(grad: Tensor, a: Tensor, offsets: Tensor | None) -> Tensor:
    """a^T @ grad, group by group"""
    if offsets is None:
        return torch.bmm(a.transpose(1, 2), grad)
    parts = [a[begin:end].t() @ grad[begin:end] for begin, end in _groups(offsets)]
    return torch.stack(parts) if parts else a.new_zeros(0, a.shape[1], grad.shape[1])


def reference(a: Tensor, b: Tensor, offsets: Tensor | None) -> Tensor:
    check(a, b, offsets)
    return _in_precision(lambda p, q: _rows(p, q, offsets), a.dtype, a, b)


def reference_grad_a(grad: Tensor, b: Tensor, offsets: Tensor | None) -> Tensor:
    return _in_precision(lambda p, q: _rows(p, q.transpose(1, 2), offsets), grad.dtype, grad, b)


def reference_grad_b(grad: Tensor, a: Tensor, offsets: Tensor | None) -> Tensor:
    return _in_precision(lambda p, q: _columns(p, q, offsets), a.dtype, grad, a)


def fake(a: Tensor, b: Tensor, offsets: Tensor | None) -> Tensor:
    check(a, b, offsets)
    return a.new_empty((*a.shape[:-1], b.shape[2]))


def fake_grad_a(grad: Tensor, b: Tensor, offsets: Tensor | None) -> Tensor:
    return grad.new_empty((*grad.shape[:-1], b.shape[1]))


def fake_grad_b(grad: Tensor, a: Tensor, offsets: Tensor | None) -> Tensor:
    groups = a.shape[0] if offsets is None else offsets.shape[0]
    return a.new_empty((groups, a.shape[-1], grad.shape[-1]))


def _multiply_adds(rows_shape: Shape, columns: int) -> int:
    total = columns
    for size in rows_shape:
        total *= size
    return total


def flops(a: Shape, b: Shape, offsets: Shape | None, *args: Any, **kwargs: Any) -> int:
    return 2 * _multiply_adds(a, b[2])


def flops_grad_a(grad: Shape, b: Shape, offsets: Shape | None, *args: Any, **kwargs: Any) -> int:
    return 2 * _multiply_adds(grad, b[1])


def flops_grad_b(grad: Shape, a: Shape, offsets: Shape | None, *args: Any, **kwargs: Any) -> int:
    return 2 * _multiply_adds(grad, a[-1])


def _vjp(
    doors: SimpleNamespace, need: Sequence[bool], grad: Tensor, a: Tensor, b: Tensor, shapes: Sequence[torch.Size], rest: list[Any]
) -> Gradients:
    (offsets,) = rest
    return doors.grad_x(grad, b, offsets) if need[0] else None, doors.grad_weight(grad, a, offsets) if need[1] else None


def _vjp_grad_a(
    doors: SimpleNamespace, need: Sequence[bool], v: Tensor, grad: Tensor, b: Tensor, shapes: Sequence[torch.Size], rest: list[Any]
) -> Gradients:
    (offsets,) = rest
    return doors.forward(v, b, offsets) if need[0] else None, doors.grad_weight(grad, v, offsets) if need[1] else None


def _vjp_grad_b(
    doors: SimpleNamespace, need: Sequence[bool], v: Tensor, grad: Tensor, a: Tensor, shapes: Sequence[torch.Size], rest: list[Any]
) -> Gradients:
    (offsets,) = rest
    return doors.forward(a, v, offsets) if need[0] else None, doors.grad_x(grad, v, offsets) if need[1] else None


# ---- samples


def _sample(device: torch.device | str, dtype: torch.dtype, groups: int, k: int, n: int, rows: int | list[int]) -> dict[str, Any]:
    """``rows``: one height for all groups (equal), or a list of them (ragged)."""
    generator = torch.Generator().manual_seed(groups * 13 + k)
    draw = lambda *size: torch.randn(*size, generator=generator, dtype=torch.float64).to(device, dtype)  # noqa: E731
    if isinstance(rows, int):
        return dict(a=draw(groups, rows, k), b=draw(groups, k, n))
    offsets = torch.tensor(rows, dtype=torch.int32, device=device).cumsum(0, dtype=torch.int32)
    return dict(a=draw(sum(rows), k), b=draw(groups, k, n), offsets=offsets)


def samples(device: torch.device, dtype: torch.dtype) -> list[d.Sample]:
    make = lambda *args: _sample(device, dtype, *args)  # noqa: E731
    good = {
        "one": make(1, 1, 1, 1),
        "equal": make(4, 7, 5, 9),
        "no_groups": make(0, 7, 5, 3),
        "no_rows": make(3, 7, 5, 0),
        "odd_batch": make(3, 7, 5, [4, 0, 6]),
        "ragged_one": make(1, 16, 16, [33]),
        "tiles": make(2, 20, 65, 33),
        "all_empty": make(2, 3, 4, [0, 0]),
    }
    good["transposed_b"] = {**good["equal"], "b": good["equal"]["b"].transpose(1, 2).contiguous().transpose(1, 2)}
    good["expanded"] = {**good["equal"], "a": good["equal"]["a"][:, :1].expand(4, 9, 7)}
    return [d.Sample(name, inputs) for name, inputs in good.items()]


def bad_samples() -> list[d.BadSample]:
    equal, ragged = _sample("cpu", torch.float32, 4, 7, 5, 9), _sample("cpu", torch.float32, 3, 7, 5, [4, 0, 6])
    ends = lambda *values: {**ragged, "offsets": torch.tensor(values, dtype=torch.int32)}  # noqa: E731
    bad = [
        ("a_not_tensor", {**equal, "a": None}, TypeError, "a must be a tensor; got NoneType"),
        ("a_integer", {**equal, "a": equal["a"].int()}, ValueError, "a must be float32, float64, float16 or bfloat16; got torch.int32"),
        ("b_dtype", {**equal, "b": equal["b"].double()}, ValueError, "b must be torch.float32 like a; got torch.float64"),
        ("b_dim", {**equal, "b": equal["b"][0]}, ValueError, "b must be [G, K, N]; got [7, 5]"),
        ("a_dim", {**equal, "a": equal["a"][0]}, ValueError, "a must be [G, M, K] without offsets; got [9, 7]"),
        ("a_shape", {**equal, "a": equal["a"][:2]}, ValueError, "a must be [4, M, 7] like b; got [2, 9, 7]"),
        ("ragged_dim", {**ragged, "a": equal["a"]}, ValueError, "a must be [T, K] with offsets; got [4, 9, 7]"),
        ("ragged_shape", {**ragged, "a": ragged["a"][:, :6]}, ValueError, "a must be [T, 7] like b; got [10, 6]"),
        ("offsets_dtype", {**ragged, "offsets": ragged["offsets"].long()}, ValueError, "offsets must be torch.int32; got torch.int64"),
        ("offsets_shape", {**ragged, "offsets": ragged["offsets"][:2]}, ValueError, "offsets must be [3] like b; got [2]"),
        ("values_end", ends(4, 4, 9), ValueError, "offsets must be rising row ends, the last one 10; got [4, 4, 9]"),
        ("values_falling", ends(4, 3, 10), ValueError, "offsets must be rising row ends, the last one 10; got [4, 3, 10]"),
        ("values_negative", ends(-1, 3, 10), ValueError, "offsets must be rising row ends, the last one 10; got [-1, 3, 10]"),
    ]
    return [d.BadSample(name, inputs, error, f"{NAME}: {sentence}") for name, inputs, error, sentence in bad]


OP = d.define(
    d.Op(
        name=NAME,
        forward=d.Product(NAME, "Tensor a, Tensor b, Tensor? offsets", reference, fake, flops, _vjp, structure=1),
        grad_x=d.Product(
            NAME + "_grad_a",
            "Tensor grad_out, Tensor b, Tensor? offsets",
            reference_grad_a,
            fake_grad_a,
            flops_grad_a,
            _vjp_grad_a,
            structure=1,
        ),
        grad_weight=d.Product(
            NAME + "_grad_b",
            "Tensor grad_out, Tensor a, Tensor? offsets",
            reference_grad_b,
            fake_grad_b,
            flops_grad_b,
            _vjp_grad_b,
            structure=1,
        ),
        check=check,
        samples=samples,
        bad_samples=bad_samples,
        factors=("a", "b"),
        cpu_provider="cpu/torch bmm",
    )
)


def grouped_mm(a: Tensor, b: Tensor, offsets: Tensor | None = None) -> Tensor:
    """Multiply many matrices at once.

    Args:
        a: ``[G, M, K]``, or ``[T, K]`` with ``offsets``: the rows of all groups, one group after the other.
        b: ``[G, K, N]``, dtype and device of ``a``.
        offsets: ``[G]`` int32, where each group's rows end; empty groups are fine, the last end is ``T``.

    Returns:
        ``[G, M, N]`` or ``[T, N]``.

    Raises:
        ValueError: ``grouped_mm: offsets must be rising row ends, the last one 10; got [4, 3, 10]``

    Cost:
        ``2*G*M*K*N`` or ``2*T*K*N`` FLOPs.

    Example:
        >>> a, b = torch.ones(3, 2), torch.stack([torch.eye(2), 2 * torch.eye(2)])
        >>> grouped_mm(a, b, torch.tensor([1, 3], dtype=torch.int32))
        tensor([[1., 1.],
                [2., 2.],
                [2., 2.]])
    """
    try:
        a, b = d.autocast(a, b)
        return OP.call(a, b, offsets)
    except (RuntimeError, TypeError, AttributeError, IndexError):
        check(a, b, offsets)
        raise


OP.function = grouped_mm
