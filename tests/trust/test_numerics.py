"""What floating point does to the sums: how errors grow, and what NaN, Inf, subnormals and overflow come to.

A sum of n terms is off by at most (n + 2) * 2^-24 of the sum of the terms' absolute values, whatever kernel adds them, so no kernel needs
more than this bound to be judged by; lanes and blocks keep the errors met far below it (printed with ``-s``).
"""

from __future__ import annotations

import math

import pytest
import torch

from sparsekern.ops import OPS, backends, pack_sparse_linear, sparse_linear_packed

sparse_linear, grouped_conv2d, sparse_conv2d = (OPS[name].function for name in ("sparse_linear", "grouped_conv2d", "sparse_conv2d"))
PROVIDERS = [(p, "never" if backends.native else "auto") for p in backends.providers()[1:]] + [("reference", "auto")]
SERVED = pytest.mark.parametrize("provider,dense", PROVIDERS)


def tables(outputs: int, fan_in: int, inputs: int) -> torch.Tensor:
    """Every output its own stretch of the inputs, spread evenly."""
    first = torch.arange(outputs)[:, None] % max(1, inputs - fan_in + 1)
    return (first + torch.arange(fan_in)).int()


def worst_error(fan_in: int, rows: int, draw) -> float:
    """In units of 2^-24 of the sum of absolute values."""
    generator = torch.Generator().manual_seed(fan_in)
    inputs = fan_in + 7
    x, weight, index = draw(rows, inputs, generator), draw(4, fan_in, generator), tables(4, fan_in, inputs)
    with backends.use("reference"):
        truth = sparse_linear(x.double(), weight.double(), index)
        size = sparse_linear(x.double().abs(), weight.double().abs(), index)
    packed = pack_sparse_linear(weight, index, inputs) if backends.has_kernels("cpu") else None
    outputs = [sparse_linear(x, weight, index)]
    if packed is not None:
        outputs.append(sparse_linear_packed(x, packed, None, 4, weight.numel()))
    return max(float(((out.double() - truth).abs() / size).max()) for out in outputs) * 2**24


DRAWS = {
    "signs": lambda rows, n, g: torch.randn(rows, n, generator=g),
    "one sign": lambda rows, n, g: torch.rand(rows, n, generator=g) + 0.5,
    "from large to small": lambda rows, n, g: torch.randn(rows, n, generator=g) * torch.logspace(6, -6, n),
}


@SERVED
@pytest.mark.parametrize("draw", DRAWS)
@pytest.mark.parametrize("rows", [1, 33])
def test_errors_stay_within_the_bound_as_sums_grow(provider, dense, draw, rows):
    with backends.use(provider, dense=dense):
        found = {n: worst_error(n, rows, DRAWS[draw]) for n in (1, 3, 17, 256, 4096)}
    print(f"\n{provider}, {rows} rows, {draw}:", ", ".join(f"{n} terms {e:.1f}" for n, e in found.items()), "of 2^-24")
    assert all(error <= n + 2 for n, error in found.items())


@pytest.mark.slow
@SERVED
@pytest.mark.parametrize("rows", [1, 33])
def test_errors_of_long_sums(provider, dense, rows):
    """A million terms of one sign, where a single running sum would be off by thousands of roundings."""
    with backends.use(provider, dense=dense):
        found = {n: worst_error(n, rows, DRAWS["one sign"]) for n in (1 << 14, 1 << 17, 1 << 20)}
    print(f"\n{provider}, {rows} rows:", ", ".join(f"{n} terms {e:.1f}" for n, e in found.items()), "of 2^-24")
    assert all(error <= n + 2 for n, error in found.items())


def _cases(dtype=torch.float32):
    """(function of x and weight, x, weight, which outputs [.., out] read input feature 3 or channel 3)"""
    generator = torch.Generator().manual_seed(0)
    draw = lambda *size: torch.randn(*size, generator=generator).to(dtype)  # noqa: E731
    index = torch.stack([torch.randperm(40, generator=generator)[:9].sort().values for _ in range(23)]).int()
    for rows in (1, 3, 40):
        reads = (index == 3).any(1)
        yield f"linear, {rows} rows", lambda x, w: sparse_linear(x, w, index), draw(rows, 40), draw(23, 9), reads
    channel = torch.arange(12) // 3 == 1  # of 4 groups of 2 channels, the second reads channels 2 and 3
    for layout in (torch.contiguous_format, torch.channels_last):
        x = draw(2, 8, 6, 6).to(memory_format=layout)
        yield "grouped", lambda x, w: grouped_conv2d(x, w, padding=1, groups=4), x, draw(12, 2, 3, 3), channel
        yield "grouped 1x1", lambda x, w: grouped_conv2d(x, w, groups=4), x, draw(12, 2, 1, 1), channel
    indptr, taps = torch.tensor([0, 2, 3, 5], dtype=torch.int32), torch.tensor([0, 31, 4, 27, 40], dtype=torch.int32)
    reads = torch.tensor([True, False, True])  # codes 27 to 35 are taps of channel 3
    yield "masked", lambda x, w: sparse_conv2d(x, w, indptr, taps, 3, padding=1), draw(2, 5, 6, 6), draw(5, 1, 1, 1), reads


def _put(x: torch.Tensor, value: float) -> torch.Tensor:
    x = x.clone(memory_format=torch.preserve_format)
    (x[:, 3] if x.dim() == 2 else x[:, 3, 2:4, 2:4])[...] = value
    return x


@SERVED
@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
def test_what_is_not_finite_reaches_who_reads_it_and_changes_nobody_else(provider, dense, value):
    """A zero that is not multiplied hides an Inf or NaN from outputs that are not connected to it; a kernel that expands rows multiplies
    it, as a dense product does, and gives NaN there. Never another number."""
    for name, run, x, weight, reads in _cases():
        with backends.use(provider, dense=dense):
            clean, out = run(x, weight), run(_put(x, value), weight)
        with backends.use("reference"):
            there = _put(torch.zeros_like(x), 1.0)
            terms, signs = run(there, torch.ones_like(weight)), run(there, weight.sign())
        reached = terms > 0
        assert bool(reached.any()) and not reached[:, ~reads].any(), name
        assert not out[reached].isfinite().any(), f"{name}: {value} got lost"
        if math.isinf(value):
            agreed = reached & (signs.abs() == terms)
            want = torch.full_like(out, value) * signs.sign()
            assert (out[agreed].isnan() | (out[agreed] == want[agreed])).all(), f"{name}: an infinity of the other sign"
        spared = out.isnan() | torch.isclose(out, clean, rtol=1e-4, atol=1e-4) | reached
        assert spared.all(), f"{name}: outputs that do not read it are others now"


@SERVED
def test_gradients_carry_what_is_not_finite(provider, dense):
    for name, run, x, weight, _ in _cases():
        x, weight = x.clone(memory_format=torch.preserve_format).requires_grad_(), weight.clone().requires_grad_()
        with backends.use(provider, dense=dense):
            out = run(x, weight)
            cotangent = torch.ones_like(out)
            cotangent[0, 0] = math.nan
            grads = torch.autograd.grad(out, (x, weight), cotangent)
        assert all(grad.isnan().any() for grad in grads), name
        rest = grads[0].select(0, -1)
        if len(x) > 1:
            assert rest.isfinite().all(), f"{name}: a NaN of one sample is in the gradient of another"


@SERVED
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_subnormals(provider, dense, dtype):
    """Kept in float32. Matrix tiles take them for zeros, of both factors, and so may the sums: below 2^-126 each."""
    for name, run, x, weight, _ in _cases(dtype):
        small = (x.double() * 2.0**-130).to(dtype)
        with backends.use(provider, dense=dense):
            out = run(small, weight)
        with backends.use("reference"):
            truth, size = run(small.double(), weight.double()), run(x.double().abs(), weight.double().abs())
        lost = 2.0**-149 * 200 if dtype == torch.float32 else 2.0**-126 * size.max() * 2
        error = (out.double() - truth).abs()
        rounded = truth.abs() * 2.0**-7 if dtype == torch.bfloat16 else 2.0**-130 * 1e-4 * size
        assert bool((error <= lost + rounded).all()), name
        assert dtype == torch.bfloat16 or bool((out != 0).any()), f"{name}: flushed to zero"


@SERVED
@pytest.mark.parametrize("dtype,large", [(torch.float16, 6e4), (torch.bfloat16, 3e38), (torch.float32, 3e38)], ids=str)
def test_overflow_is_infinite_and_of_the_right_sign(provider, dense, dtype, large):
    """Sums are made in float32: what fits there is rounded once, at the end; what does not, is Inf (NaN where Infs of both signs meet)."""
    for name, run, x, weight, _ in _cases(dtype):
        huge = torch.full_like(x, large)
        for sign in (1, -1):
            with backends.use(provider, dense=dense):
                out = run(huge, torch.full_like(weight, sign * 1.0))
            with backends.use("reference"):
                truth = run(huge.double(), torch.full_like(weight, sign * 1.0).double())
            limit = torch.finfo(dtype).max
            over, under = truth.abs() > 1.01 * limit, truth.abs() < 0.99 * limit
            assert (out[over] == math.copysign(math.inf, sign)).all(), name
            assert out[under].isfinite().all() and torch.allclose(out[under].double(), truth[under], rtol=2**-7), name


@SERVED
def test_half_sums_do_not_overflow_on_the_way(provider, dense):
    """60000 + 60000 - 60000: float16 holds the result, not the way there."""
    index = torch.arange(40).int().reshape(1, 40)
    x = torch.full((3, 40), 60000.0, dtype=torch.float16)
    weight = torch.tensor([[1.0, -1.0] * 10 + [1.0] * 10 + [-1.0] * 9 + [0.0]], dtype=torch.float16)
    with backends.use(provider, dense=dense):
        assert torch.equal(sparse_linear(x, weight, index), torch.full((3, 1), 60000.0, dtype=torch.float16))


@pytest.mark.parametrize("dense", ["never", "auto", "always"] if backends.native else ["auto"])
@pytest.mark.parametrize("provider", backends.providers()[1:])
def test_a_row_does_not_see_what_lies_behind_it(provider, dense):
    """torch's bf16 product of rows of an odd length does: it multiplies the number behind each by zero."""
    for inputs in (1, 7, 33):
        index = torch.arange(inputs, dtype=torch.int32).expand(5, inputs)
        weight = torch.ones(5, inputs, 16, 1, dtype=torch.bfloat16)
        surrounded = torch.full((64, inputs + 5), math.nan, dtype=torch.bfloat16)
        surrounded[:, :inputs] = 1
        rows = torch.ones(64, inputs, dtype=torch.bfloat16)
        rows[3] = math.nan
        with backends.use(provider, dense=dense):
            assert sparse_linear(surrounded[:, :inputs], weight, index).isfinite().all(), inputs
            hit = sparse_linear(rows, weight, index).isnan().any(1)
            assert hit.nonzero().flatten().tolist() == [3], inputs
            x = torch.ones(64, 1, dtype=torch.bfloat16, requires_grad=True)
            narrow = torch.zeros(inputs, 1, dtype=torch.int32)
            out = sparse_linear(x, torch.ones(inputs, 1, dtype=torch.bfloat16), narrow)
            grad = torch.autograd.grad(out, x, rows)[0]
            assert grad.isnan().flatten().nonzero().flatten().tolist() == [3], inputs


@pytest.mark.parametrize("dense", ["never", "auto", "always"] if backends.native else ["auto"])
def test_a_bias_with_gaps_is_added_before_the_one_rounding(dense):
    """1 + 2^-8 + 2^-8 in bf16: 1.0078125, but 1 where the product is rounded before the bias comes."""
    x, index = torch.ones(2, 31, 2, dtype=torch.bfloat16), torch.tensor([[0, 1]] * 80, dtype=torch.int32)
    weight = torch.tensor([[1.0, 2.0**-8]] * 80, dtype=torch.bfloat16)
    bias = torch.full((80, 2), 2.0**-8, dtype=torch.bfloat16)[:, 0]
    with backends.use(backends.providers()[-1], dense=dense):
        assert (sparse_linear(x, weight, index, bias) == 1.0078125).all()
