"""sparse_linear: a linear map in which every output reads the same number of inputs (fixed fan-in).

    x [..., IB*BI]   weight [OB, F, BO, BI] or [OB, F] (condensed: BO = BI = 1)   index [OB, F] int32   bias [OB*BO] or None
    out[..., ob*BO + o] = bias[ob*BO + o] + sum_f sum_i  x[..., index[ob, f]*BI + i] * weight[ob, f, o, i]

Pre-defined sparsity with a fixed fan-in follows Dey et al., "Characterizing Sparse Connectivity Patterns in Neural Networks"
(section 2); condensed storage is the constant fan-in form of the dynamic sparse training literature.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from types import SimpleNamespace
from typing import Any

import torch
from torch import Tensor

from sparsekern.ops import define as d
from sparsekern.ops.flop_formulas import register_flops
from sparsekern.ops.types import Gradients, Shape

NAME = "sparse_linear"

# ---- layout: [N, features] with strides (1, N) stays so (feature-major), everything else comes out contiguous


def _feature_major(x: Tensor) -> bool:
    return x.dim() == 2 and x.stride(0) == 1 and x.shape[0] > 1 and x.shape[1] > 1 and x.stride(1) == x.shape[0]


def _rows_like(x: Tensor, features: int) -> Tensor:
    if _feature_major(x):
        return x.new_empty_strided((x.shape[0], features), (1, x.shape[0]))
    return x.new_empty((*x.shape[:-1], features))


def _laid_out_like(x: Tensor, out: Tensor) -> Tensor:
    if not _feature_major(x):
        return out.contiguous()
    if d.of_a_transform(out):
        return out.t().contiguous().t()
    return out.new_empty_strided(out.shape, (1, out.shape[0])).copy_(out)  # no view: a result may be written in place


def _blocks(weight: Tensor) -> tuple[int, int]:
    return (weight.shape[2], weight.shape[3]) if weight.dim() == 4 else (1, 1)


# ---- check

_SEAL = 23  # a word of a plan's header (core/sparse_linear_plan.h)


def check(x: Any, weight: Any, bias: Any, index: Any, plan: Any = None, *, values: bool = True) -> None:
    """Everything that can be wrong with the arguments; the values of ``index`` too, where they can be read and ``values`` asks."""
    d.check_floating(NAME, "x", x)
    d.must(x.dim() >= 1, NAME, "x", "[..., in_features]", list(x.shape))
    d.check_like(NAME, "weight", weight, x)
    d.must(weight.dim() in (2, 4), NAME, "weight", "[OB, F] or [OB, F, BO, BI]", list(weight.shape))
    block_out, block_in = _blocks(weight)
    d.must(
        weight.shape[1] > 0 and block_out > 0 and block_in > 0, NAME, "weight", "of fan-in and block size at least 1", list(weight.shape)
    )
    d.must(x.shape[-1] % block_in == 0, NAME, "x", f"[..., a multiple of BI={block_in}]", list(x.shape))
    if bias is not None:
        d.check_like(NAME, "bias", bias, x)
        d.must(tuple(bias.shape) == (weight.shape[0] * block_out,), NAME, "bias", f"[{weight.shape[0] * block_out}]", list(bias.shape))
    d.check_int32(NAME, "index", index, x, 2)
    d.must(index.shape == weight.shape[:2], NAME, "index", f"{list(weight.shape[:2])} like weight", list(index.shape))
    d.must(index.numel() <= 2**28, NAME, "index", "of at most 2^28 blocks", index.numel())
    if values:
        check_index(index, x.shape[-1] // block_in)
    if plan is not None:
        d.check_int32(NAME, "plan", plan, x, 1)
        d.must(plan.is_contiguous(), NAME, "plan", "contiguous", f"strides {plan.stride()}")
        if d.readable(plan) and plan.device.type == "cpu":
            head = plan[2:8].tolist() if plan.numel() >= 8 else []
            want = [weight.shape[0], weight.shape[1], block_out, block_in, x.shape[-1] // block_in, plan.numel()]
            d.must(head == want, NAME, "plan", f"made by plan_sparse_linear for sizes {want[:5]}", head[:5])
            d.must(d.sealed(plan, _SEAL), NAME, "plan", "as plan_sparse_linear made it", "other numbers")


def check_features(op: str, in_features: Any, block_in: int) -> None:
    """Features of x: blocks that an index of 32 bits can name."""
    d.check_whole(op, in_features=in_features)
    d.must(in_features >= 0 and in_features % block_in == 0, op, "in_features", f"a multiple of BI={block_in}", in_features)
    d.must(in_features // block_in < 2**31, op, "in_features", "of less than 2^31 blocks", in_features)


def check_index(index: Tensor, blocks: int) -> None:
    """The values of an index table: in range, strictly increasing in each row (so no connection twice)."""
    if not d.readable(index) or index.numel() == 0:
        return
    bad = ((index < 0) | (index >= blocks)).nonzero()
    increasing = (index[:, 1:] <= index[:, :-1]).nonzero()
    if len(bad) and not (len(increasing) and tuple(increasing[0].tolist()) < tuple(bad[0].tolist())):
        row, position = bad[0].tolist()
        d.must(False, NAME, "index", f"in [0, {blocks})", f"{int(index[row, position])} at [{row}, {position}]")
    if len(increasing):
        row, position = increasing[0].tolist()
        d.must(False, NAME, "index", "strictly increasing in each row", f"{int(index[row, position + 1])} at [{row}, {position + 1}]")


# ---- the three products: reference, fake, FLOPs (shapes in, 2 per multiply-add)


def _positions(index: Tensor, block: int) -> Tensor:
    """[OB, F] -> [OB, F*block]: the features behind each row's blocks."""
    return (index.long().unsqueeze(-1) * block + torch.arange(block, device=index.device)).flatten(1)


def dense_weight(weight: Tensor, index: Tensor, in_features: int) -> Tensor:
    """``weight [OB, F, BO, BI]`` (or ``[OB, F]``) as the dense matrix ``[OB*BO, in_features]`` it stands for. Differentiable."""
    block_out, block_in = _blocks(weight)
    rows = weight.reshape(*index.shape, block_out, block_in).transpose(1, 2).flatten(2)  # [OB, BO, F*BI]
    columns = _positions(index, block_in).unsqueeze(1).expand(rows.shape)
    empty = rows.new_zeros(rows.shape[0], block_out, in_features)
    return empty.scatter(2, columns, rows).flatten(0, 1)


def kept_weight(dense: Tensor, index: Tensor, block_size: tuple[int, int] = (1, 1)) -> Tensor:
    """The entries of ``dense [OB*BO, IB*BI]`` at the connections ``index [OB, F]``: ``[OB, F]`` or ``[OB, F, BO, BI]``."""
    block_out, block_in = block_size
    rows = dense.unflatten(0, (index.shape[0], block_out))
    columns = _positions(index, block_in).unsqueeze(1).expand(-1, block_out, -1)
    kept = rows.gather(2, columns).unflatten(2, (index.shape[1], block_in)).transpose(1, 2).contiguous()  # [OB, F, BO, BI]
    return kept.reshape(index.shape) if block_size == (1, 1) else kept


def reference(x: Tensor, weight: Tensor, bias: Tensor | None, index: Tensor, plan: Tensor | None) -> Tensor:
    check(x, weight, bias, index, plan)
    xc, wc, bc = d.compute(x, weight, bias)
    return _laid_out_like(x, torch.nn.functional.linear(xc, dense_weight(wc, index, x.shape[-1]), bc).to(x.dtype))


def reference_grad_x(grad_out: Tensor, weight: Tensor, index: Tensor, plan: Tensor | None, in_features: int) -> Tensor:
    g, w = d.compute(grad_out, weight)
    return _laid_out_like(grad_out, (g @ dense_weight(w, index, in_features)).to(grad_out.dtype))


def reference_grad_weight(
    grad_out: Tensor, x: Tensor, index: Tensor, plan: Tensor | None, block_out: int, block_in: int, condensed: bool
) -> Tensor:
    g, xc = d.compute(grad_out, x)
    dense = g.flatten(0, -2).t() @ xc.flatten(0, -2) if x.dim() > 1 else torch.outer(g, xc)  # [OB*BO, IB*BI]
    kept = kept_weight(dense, index, (block_out, block_in)).to(x.dtype)
    return kept.reshape(index.shape) if condensed else kept.reshape(*index.shape, block_out, block_in)


def fake(x: Tensor, weight: Tensor, bias: Tensor | None, index: Tensor, plan: Tensor | None) -> Tensor:
    check(x, weight, bias, index, plan)
    return _rows_like(x, weight.shape[0] * _blocks(weight)[0])


def fake_grad_x(grad_out: Tensor, weight: Tensor, index: Tensor, plan: Tensor | None, in_features: int) -> Tensor:
    return _rows_like(grad_out, in_features)


def fake_grad_weight(
    grad_out: Tensor, x: Tensor, index: Tensor, plan: Tensor | None, block_out: int, block_in: int, condensed: bool
) -> Tensor:
    return x.new_empty(index.shape if condensed else (*index.shape, block_out, block_in))


def _rows(shape: Shape) -> int:
    rows = 1
    for size in shape[:-1]:
        rows *= size
    return rows


def _numel(shape: Shape) -> int:
    return _rows(shape) * shape[-1]


def flops(x: Shape, weight: Shape, bias: Shape | None, index: Shape, plan: Shape | None, *args: Any, **kwargs: Any) -> int:
    return 2 * _rows(x) * _numel(weight)


def flops_grad_x(grad_out: Shape, weight: Shape, index: Shape, plan: Shape | None, in_features: int, *args: Any, **kwargs: Any) -> int:
    return 2 * _rows(grad_out) * _numel(weight)


def flops_grad_weight(
    grad_out: Shape, x: Shape, index: Shape, plan: Shape | None, block_out: int, block_in: int, condensed: bool, *args: Any, **kwargs: Any,
) -> int:  # fmt: skip
    return 2 * _rows(x) * _numel(index) * block_out * block_in


# ---- derivatives: each one is another product


def _grad_weight_of(doors: SimpleNamespace, grad: Tensor, x: Tensor, weight_shape: Shape, index: Tensor, plan: Tensor | None) -> Tensor:
    condensed = len(weight_shape) == 2
    block_out, block_in = (1, 1) if condensed else weight_shape[2:]
    return doors.grad_weight(grad, x, index, plan, block_out, block_in, condensed)


def _vjp(
    doors: SimpleNamespace, need: Sequence[bool], grad: Tensor, x: Tensor, weight: Tensor, shapes: Sequence[torch.Size], rest: list[Any]
) -> Gradients:
    index, plan = rest
    return (
        doors.grad_x(grad, weight, index, plan, shapes[0][-1]) if need[0] else None,
        _grad_weight_of(doors, grad, x, shapes[1], index, plan) if need[1] else None,
    )


def _vjp_grad_x(
    doors: SimpleNamespace, need: Sequence[bool], grad: Tensor, grad_out: Tensor, weight: Tensor, shapes: Sequence[torch.Size],
    rest: list[Any],
) -> Gradients:  # fmt: skip
    index, plan, _ = rest
    return (
        doors.forward(grad, weight, None, index, plan) if need[0] else None,
        _grad_weight_of(doors, grad_out, grad, shapes[1], index, plan) if need[1] else None,
    )


def _vjp_grad_weight(
    doors: SimpleNamespace, need: Sequence[bool], grad: Tensor, grad_out: Tensor, x: Tensor, shapes: Sequence[torch.Size], rest: list[Any]
) -> Gradients:
    index, plan, *_ = rest
    return (
        doors.forward(x, grad, None, index, plan) if need[0] else None,
        doors.grad_x(grad_out, grad, index, plan, shapes[1][-1]) if need[1] else None,
    )


# ---- samples


def _sample(
    device: torch.device | str, dtype: torch.dtype, lead: Shape, in_blocks: int, out_blocks: int, fan_in: int,
    block: tuple[int, int] = (1, 1), bias: bool = True,
) -> dict[str, Any]:  # fmt: skip
    generator = torch.Generator().manual_seed(in_blocks * 7 + out_blocks)
    rows = [torch.randperm(in_blocks, generator=generator)[:fan_in].sort().values for _ in range(out_blocks)]
    index = torch.stack(rows).int().to(device) if rows else torch.empty(0, fan_in, dtype=torch.int32, device=device)
    shape = (out_blocks, fan_in) if block == (1, 1) else (out_blocks, fan_in, *block)

    def draw(*size: int) -> Tensor:
        return torch.randn(*size, generator=generator, dtype=torch.float64).to(device, dtype)

    return dict(x=draw(*lead, in_blocks * block[1]), weight=draw(*shape), index=index, bias=draw(out_blocks * block[0]) if bias else None)


def _balanced(sample: dict[str, Any]) -> dict[str, Any]:
    """The same with a window-balanced table: every row takes the first row's count in each window of 32 inputs."""
    x, index = sample["x"], sample["index"]
    generator = torch.Generator().manual_seed(x.shape[-1])
    first, rows = index[0].tolist(), []
    for _ in range(len(index)):
        row = []
        for begin in range(0, x.shape[-1], 32):
            size, count = min(32, x.shape[-1] - begin), sum(begin <= i < begin + 32 for i in first)
            row += sorted((begin + torch.randperm(size, generator=generator)[:count]).tolist())
        rows.append(row)
    return {**sample, "index": torch.tensor(rows, dtype=torch.int32).to(index.device)}


def samples(device: torch.device, dtype: torch.dtype) -> list[d.Sample]:
    make = lambda *args, **kwargs: _sample(device, dtype, *args, **kwargs)  # noqa: E731
    good = {
        "row": make((), 9, 6, 3),
        "one": make((1,), 9, 6, 3),
        "two_no_bias": make((2,), 33, 17, 16, bias=False),
        "empty_batch": make((0,), 9, 6, 3),
        "odd_batch": make((5,), 40, 23, 7),
        "wide_vectors": make((67,), 300, 130, 40),
        "leading_dims": make((2, 3), 31, 5, 31),
        "fan_in_one": make((19,), 50, 3, 1),
        "no_outputs": make((4,), 8, 0, 2),
        "panel": make((3,), 20, 3, 5, block=(16, 1)),
        "panel_one_row": make((1,), 20, 3, 5, block=(20, 1)),
        "block": make((21,), 5, 4, 2, block=(16, 16)),
        "block_one_row": make((1,), 5, 4, 2, block=(16, 16)),
        "odd_block": make((9,), 6, 3, 4, block=(5, 3)),
        "block_of_tiles": make((45,), 7, 3, 4, block=(32, 32)),
        "block_of_tiles_few_rows": make((3,), 30, 2, 3, block=(48, 16)),
        "half_kept": make((70,), 99, 50, 49),
        "most_kept_one_row": make((1,), 99, 50, 80),
        "most_kept_few_rows": make((7,), 70, 21, 60),
        "most_kept_narrow": make((3,), 20, 9, 17, bias=False),
        "windows": make((3,), 331, 40, 34),  # packed: places in windows of inputs, and connections that find none
        "balanced_one_row": _balanced(make((1,), 200, 37, 21)),
        "balanced_few_rows": _balanced(make((7,), 128, 50, 44, bias=False)),
        "balanced_narrow": make((2, 2), 31, 20, 6),  # one window
        "balanced_many_rows": _balanced(make((70,), 99, 18, 30)),
        "panel_many_rows": make((40,), 24, 2, 5, block=(16, 1)),
        "block_many_rows": make((67,), 4, 2, 2, block=(20, 9)),
    }
    wide = make((18,), 12, 7, 4)
    good["sliced"] = {**wide, "x": make((18,), 25, 7, 4)["x"][:, 3:15]}
    few = _balanced(make((3,), 70, 20, 15))
    good["balanced_feature_major"] = {**few, "x": few["x"].t().contiguous().t()}
    good["feature_major"] = {**wide, "x": wide["x"].t().contiguous().t()}
    good["feature_major_wide"] = {**(big := make((128,), 12, 7, 4)), "x": big["x"].t().contiguous().t()}
    good["expanded"] = {**wide, "x": wide["x"][:1].expand(18, 12)}
    good["transposed_weight"] = {**wide, "weight": wide["weight"].t().contiguous().t()}
    return [d.Sample(name, inputs) for name, inputs in good.items()]


def bad_samples() -> list[d.BadSample]:
    good = _sample("cpu", torch.float32, (4,), 9, 6, 3)
    block = _sample("cpu", torch.float32, (4,), 3, 2, 2, block=(4, 4))
    with_index = lambda row, value: {**good, "index": good["index"].index_put((torch.tensor([row]),), torch.tensor(value).int())}  # noqa: E731
    first = good["index"][0].tolist()
    bad = [
        ("x_not_tensor", {**good, "x": [1.0]}, TypeError, "x must be a tensor; got list"),
        ("x_integer", {**good, "x": good["x"].long()}, ValueError, "x must be float32, float64, float16 or bfloat16; got torch.int64"),
        ("x_scalar", {**good, "x": torch.tensor(1.0)}, ValueError, "x must be [..., in_features]; got []"),
        ("weight_dtype", {**good, "weight": good["weight"].double()}, ValueError, "weight must be torch.float32 like x; got torch.float64"),
        ("weight_device", {**good, "weight": good["weight"].to("meta")}, ValueError, "weight must be on cpu like x; got meta"),
        ("weight_dim", {**good, "weight": good["weight"][0]}, ValueError, "weight must be [OB, F] or [OB, F, BO, BI]; got [3]"),
        ("fan_in_zero", {**good, "weight": torch.ones(6, 0), "index": torch.ones(6, 0).int()}, ValueError,
         "weight must be of fan-in and block size at least 1; got [6, 0]"),
        ("x_indivisible", {**block, "x": torch.ones(4, 11)}, ValueError, "x must be [..., a multiple of BI=4]; got [4, 11]"),
        ("bias_shape", {**good, "bias": torch.ones(5)}, ValueError, "bias must be [6]; got [5]"),
        ("bias_dtype", {**good, "bias": torch.ones(6).half()}, ValueError, "bias must be torch.float32 like x; got torch.float16"),
        ("index_dtype", {**good, "index": good["index"].long()}, ValueError, "index must be torch.int32; got torch.int64"),
        ("index_shape", {**good, "index": good["index"][:, :2]}, ValueError, "index must be [6, 3] like weight; got [6, 2]"),
        ("index_dim", {**good, "index": good["index"].flatten()}, ValueError, "index must be 2-dimensional; got [18]"),
        ("index_above", with_index(0, [first[0], first[1], 9]), ValueError, "index must be in [0, 9); got 9 at [0, 2]"),
        ("index_negative", with_index(1, [-1, 2, 3]), ValueError, "index must be in [0, 9); got -1 at [1, 0]"),
        ("index_twice", with_index(2, [1, 4, 4]), ValueError, "index must be strictly increasing in each row; got 4 at [2, 2]"),
        ("index_unsorted", with_index(3, [5, 2, 7]), ValueError, "index must be strictly increasing in each row; got 2 at [3, 1]"),
        ("plan_of_another", {**good, "plan": torch.zeros(64, dtype=torch.int32)}, ValueError,
         "plan must be made by plan_sparse_linear for sizes [6, 3, 1, 1, 9]; got [0, 0, 0, 0, 0]"),
        ("plan_dtype", {**good, "plan": torch.zeros(64)}, ValueError, "plan must be torch.int32; got torch.float32"),
    ]  # fmt: skip
    return [d.BadSample(name, inputs, error, f"{NAME}: {sentence}") for name, inputs, error, sentence in bad]


# ---- the op: leading dimensions are free, so a mapped one is just another


def _fold(a: Tensor) -> tuple[Tensor, Any]:
    return a, lambda out: out


OP = d.define(
    d.Op(
        name=NAME,
        forward=d.Product(
            NAME,
            "Tensor x, Tensor weight, Tensor? bias, Tensor index, Tensor? plan",
            reference, fake, flops, _vjp, structure=2, bias=True, fold=_fold,
        ),
        grad_x=d.Product(
            NAME + "_grad_x",
            "Tensor grad_out, Tensor weight, Tensor index, Tensor? plan, SymInt in_features",
            reference_grad_x, fake_grad_x, flops_grad_x, _vjp_grad_x, structure=2, fold=_fold,
        ),
        grad_weight=d.Product(
            NAME + "_grad_weight",
            "Tensor grad_out, Tensor x, Tensor index, Tensor? plan, SymInt block_out, SymInt block_in, bool condensed",
            reference_grad_weight, fake_grad_weight, flops_grad_weight, _vjp_grad_weight, structure=2,
        ),
        check=check,
        samples=samples,
        bad_samples=bad_samples,
    )
)  # fmt: skip

d.LIBRARY.define(
    "_sparse_linear_gradients(Tensor grad_out, Tensor x, Tensor? weight, Tensor index, Tensor? plan, int block_out, int block_in, "
    "bool condensed) -> (Tensor, Tensor, Tensor)"
)


def _flops_gradients(
    grad_out: Shape, x: Shape, weight: Shape, index: Shape, plan: Shape | None, block_out: int, block_in: int, condensed: bool, *args: Any,
    **kwargs: Any,
) -> int:  # fmt: skip
    products = 1 if weight is None else 2
    return products * flops_grad_weight(grad_out, x, index, plan, block_out, block_in, condensed)


register_flops(torch.ops.sparsekern._sparse_linear_gradients, _flops_gradients)


_all_gradients = torch.ops.sparsekern._sparse_linear_gradients.default._op


def _gradients(grad_out: Tensor, x: Tensor, weight: Tensor | None, weight_shape: Shape, index: Tensor, plan: Tensor | None) -> Any:
    served = d.backends.missing is None and grad_out.is_cpu and grad_out.dtype != torch.float64
    if not served or type(grad_out) is not Tensor or d.is_wrapped(grad_out):  # fakes and vmap know the products only
        return NotImplemented
    blocks = (1, 1, True) if len(weight_shape) == 2 else (*weight_shape[2:], False)
    grads = _all_gradients(grad_out, x, weight, index, plan, *blocks)
    return grads if weight is not None else (None, *grads[1:])


OP.gradients = _gradients


def _quick_doors() -> Callable[..., Any] | None:
    """``(x, weight, bias, index, plan) -> out`` of the plain call, else NotImplemented; None where it was not built for this torch."""
    quick = d.backends.quick_call
    if quick is None or d.backends.missing is not None:
        return None

    def general(
        need: Sequence[bool], grad: Tensor, x: Tensor, weight: Tensor, bias: Tensor | None, index: Tensor, plan: Tensor | None,
        x_shape: Shape, weight_shape: Shape,
    ) -> tuple:  # fmt: skip
        bias_shape = None if bias is None else bias.shape
        return d.eager_gradients(OP, need, grad, (x, weight, bias_shape, index, plan), (x_shape, weight_shape))

    products = [f"sparsekern::_{product.name}" for product in OP.products.values()]
    quick.set_up_linear(*products, "sparsekern::_sparse_linear_gradients", general)
    return quick.linear


_quick = _quick_doors()
_compiling = torch.compiler.is_compiling

d.LIBRARY.define("plan_sparse_linear(Tensor index, int in_features, int block_out, int block_in) -> Tensor")
d.LIBRARY.define(
    "choose_sparse_linear(Tensor like, int N, int in_features, int OB, int F, int BO, int BI, int product, int type, "
    "bool balanced, int places, int left_over) -> Tensor"
)


def plan_sparse_linear(index: Tensor, in_features: int, block_size: tuple[int, int] = (1, 1)) -> Tensor | None:
    """What the kernels derive from ``index`` alone, once: a flat int32 tensor for the ``plan`` argument.

    Checks range, order and duplicates. None on a device whose kernels need no plan.

    Args:
        index: ``[OB, F]`` int32.
        in_features: features of x, ``IB*BI``.
        block_size: ``(BO, BI)``.

    Raises:
        ValueError: ``sparse_linear: index must be in [0, 9); got 9 at [0, 2]``

    Cost:
        O(kept connections); about 9 bytes per connection, up to 20 where rows are short, and on a processor with matrix tiles, where
        at least one connection in 32 is kept, a bit per position of the dense matrix; for a window-balanced table with AVX-512, 1 to 4
        bytes more per connection.
    """
    d.check_tensor(NAME, "index", index)
    d.must(index.dtype == torch.int32 and index.dim() == 2, NAME, "index", "[OB, F] torch.int32", f"{list(index.shape)} {index.dtype}")
    whole = isinstance(block_size, tuple | list) and len(block_size) == 2 and all(d.is_whole(n) and 0 < n < 2**31 for n in block_size)
    d.must(whole, NAME, "block_size", "two whole numbers of at least 1 and below 2^31", d.said(block_size))
    check_features(NAME, in_features, block_size[1])
    if index.device.type != "cpu" or not d.backends.has_kernels("cpu"):
        check_index(index, in_features // block_size[1])
        if not d.backends.has_kernels(index.device):
            return None
        from sparsekern.ops.cuda import make_plan

        return make_plan(index, in_features // block_size[1], block_size)
    try:
        return torch.ops.sparsekern.plan_sparse_linear(index, in_features, *block_size)
    except RuntimeError:
        check_index(index, in_features // block_size[1])
        raise


# by the codes of core/sparse_linear.h
KERNELS = (
    "gather",
    "feature-major",
    "block dot",
    "block tile",
    "dense",
    "block amx",
    "expanded amx",
    "expanded",
    "dense rows",
    "balanced",
    "windows",
    "expanded strips",
)
TYPES = {torch.float16: 1, torch.bfloat16: 2}


# a word of a plan's header (core/sparse_linear_plan.h), not 0 where the table is window-balanced
_BALANCED = 19


def planned_balanced(plan: Tensor | None) -> bool:
    """Did the plan find that every output has equally many inputs in each window of 32, and a processor to use it?"""
    return plan is not None and bool(plan[_BALANCED])


def explain_sparse_linear(
    rows: int, in_features: int, index_shape: Shape, block_size: Shape, dtype: torch.dtype, balanced: bool = False
) -> dict[str, dict[str, Any]]:
    """Per product: which kernel serves ``rows`` rows, and the two estimates (microseconds) the choice was made by."""
    if not d.backends.has_kernels("cpu"):
        return {door: {"kernel": "reference"} for door in OP.products}
    sizes = (rows, in_features, *index_shape, *block_size)
    like = torch.empty(0, dtype=torch.float64, device="cpu")
    out = {}
    for code, door in enumerate(OP.products):
        kernel, ours_us, dense_us = torch.ops.sparsekern.choose_sparse_linear(
            like, *sizes, code, TYPES.get(dtype, 0), balanced, 0, 0
        ).tolist()
        name = "plain fp64" if dtype == torch.float64 else KERNELS[int(kernel)]
        out[door] = {"kernel": name, "ours_us": round(ours_us, 1), "dense_us": round(dense_us, 1)}
    return out


def explain_packed(
    rows: int, in_features: int, index_shape: Shape, block_size: Shape, dtype: torch.dtype, windows: tuple[bool, int, int]
) -> str:
    """Which kernel serves ``rows`` rows on a weight packed in ``dtype``; ``windows`` as the pack says (``packed_windows``)."""
    if not d.backends.has_kernels("cpu"):
        return "reference"
    sizes, packed = (rows, in_features, *index_shape, *block_size), 3
    like = torch.empty(0, dtype=torch.float64, device="cpu")
    kernel, *_ = torch.ops.sparsekern.choose_sparse_linear(like, *sizes, packed, TYPES.get(dtype, 0), *windows).tolist()
    return KERNELS[int(kernel)]


def sparse_linear(x: Tensor, weight: Tensor, index: Tensor, bias: Tensor | None = None, plan: Tensor | None = None) -> Tensor:
    """Multiply by a weight of fixed fan-in.

    Args:
        x: ``[..., IB*BI]`` float32, float64, float16 or bfloat16. Any strides. A feature-major x, ``[N, IB*BI]`` with strides
            ``(1, N)``, gives a feature-major output, so that a stack of these does not transpose in between.
        weight: ``[OB, F]`` (condensed) or ``[OB, F, BO, BI]``, dtype and device of ``x``: only the kept connections.
        index: ``[OB, F]`` int32, same device: the input (block) behind each weight; strictly increasing in each row.
        bias: ``[OB*BO]`` or None.
        plan: from :func:`plan_sparse_linear` for the same index; without it the table is checked and planned at every call.

    Returns:
        ``[..., OB*BO]``, dtype of ``x``; accumulated in float32 (float64 for float64).

    Raises:
        ValueError: ``sparse_linear: weight must be [OB, F] or [OB, F, BO, BI]; got [3]``
        TypeError: ``sparse_linear: x must be a tensor; got list``

    Cost:
        ``2*N*OB*F*BO*BI`` FLOPs. Where a dense product is estimated faster it runs instead (see the layer's ``explain``).

    Example:
        >>> index = torch.tensor([[0, 2], [1, 3]], dtype=torch.int32)
        >>> weight = torch.tensor([[1.0, 10.0], [100.0, 1000.0]])
        >>> sparse_linear(torch.tensor([[1.0, 2.0, 3.0, 4.0]]), weight, index)
        tensor([[  31., 4200.]])
    """
    try:
        if not _compiling():
            if plan is not None:
                d.require_whole(plan, _SEAL, "sparse_linear: plan")
            if _quick is not None:
                out = _quick(x, weight, bias, index, plan)
                if out is not NotImplemented:
                    return out
        if d.autocast_enabled():
            x, weight, bias = d.autocast(x, weight, bias)
        return OP.call(x, weight, bias, index, plan)
    except (RuntimeError, TypeError, AttributeError, IndexError):
        check(x, weight, bias, index, plan)  # says it in our words; falls through when the error was another one
        raise


OP.function = sparse_linear
