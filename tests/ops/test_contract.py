"""The contract: every op x provider x sample, values and gradients against float64, and the same sentence for every bad input.

Tolerances are derived, not tuned. A sum of n terms computed in precision u, in any order, is off by at most
(n + 2) * u * (the sum of the terms' absolute values); n is what the reference gives for inputs of ones, the absolute sum what it
gives for absolute inputs. Storing the result in a half type adds one rounding of it; where a shortcut is added to a result that
is differentiated, two: before and after the sum, as in torch.
"""

from __future__ import annotations

import copy
from functools import cache

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from sparsekern.ops import OPS, backends

DTYPES = [torch.float32, torch.float64, torch.bfloat16, torch.float16]
PROVIDERS = ["reference"] + [
    f"{p} {dense}" for p in backends.providers()[1:] for dense in (("never", "always") if backends.native else ("auto",))
]
SAMPLES = [(op, s.name) for op in OPS.values() for s in op.samples(torch.device("cpu"), torch.float32)]
DOORS = ("forward", "grad_x", "grad_weight")


def use(provider):
    name, _, dense = provider.partition(" ")
    return backends.use(name, dense=dense or "auto")


@cache
def _samples(op_name, dtype, device):
    return {s.name: s.inputs for s in OPS[op_name].samples(torch.device(device), dtype)}


def sample(op, name, dtype, device="cpu"):
    return copy.deepcopy(_samples(op.name, dtype, device)[name])


def as_double(inputs, f=lambda t: t):
    return {k: f(v.double()) if isinstance(v, torch.Tensor) and v.is_floating_point() else v for k, v in inputs.items()}


def factors(op, inputs):
    return [k for k in (*op.factors, "bias") if inputs.get(k) is not None]


def value_and_gradients(op, inputs, cotangent=None, graph=False):
    """The public function's output and the gradients of x, weight and bias for a fixed cotangent."""
    leaves = {k: inputs[k].detach().requires_grad_() for k in factors(op, inputs)}
    out = op.function(**{**inputs, **leaves})
    if cotangent is None:
        cotangent = torch.randn(out.shape, generator=torch.Generator().manual_seed(1), dtype=torch.float64).to(out)
    gradients = torch.autograd.grad(out, list(leaves.values()), cotangent, create_graph=graph)
    return {"out": out.detach(), **dict(zip(leaves, gradients))}, cotangent


def error_of_sum(terms, dtype, tensor_cores=False, tf32=False):
    """Of a sum of so many products, over the sum of their absolute values.

    On tensor cores a float32 is the sum of two tf32, whose remainders are left out of a product (4 * 2^-22 of it), or one tf32, products
    of 16-bit numbers are exact, and a sum truncates whatever it is the order of: three halves of an ulp per term.
    """
    if not tensor_cores:
        return (terms + 2) * {torch.float64: 2.0**-53}.get(dtype, 2.0**-24)
    product = (2.0**-10 if tf32 else 4 * 2.0**-22) if dtype == torch.float32 else 0.0
    return 1.01 * (product + (3 * terms + 8) * 2.0**-23)


#: Half of an ulp of what a half type stores, and half of its smallest number.
STORE, TINY = {torch.bfloat16: 2.0**-8, torch.float16: 2.0**-11}, {torch.float16: 2.0**-24}


def bounds(op, inputs, cotangent, dtype, tensor_cores=False, tf32=False, cut=False):
    """For the output and each gradient: the largest error that correct arithmetic in this dtype can make. ``cut``: half types are cut
    where they should be rounded."""
    store = STORE.get(dtype, 0.0) * (2 if "shortcut" in inputs else 1) * (1 + cut)
    tiny = TINY.get(dtype, 0.0) * (1 + cut)
    plain = {k: v for k, v in inputs.items() if k != "activation"}
    with backends.use("reference"):
        size, _ = value_and_gradients(op, as_double(plain, torch.abs), cotangent.double().abs())
        terms, _ = value_and_gradients(op, as_double(plain, torch.ones_like), torch.ones_like(cotangent, dtype=torch.float64))
    sums = {k: error_of_sum(terms[k], dtype, tensor_cores, tf32) for k in size}
    return {k: sums[k] * size[k] + store * size[k] * (1 + sums[k]) + tiny for k in size}


@cache
def truth_and_bounds(op_name, name, dtype, device="cpu", **arithmetic):
    """In float64, for the cotangent that :func:`value_and_gradients` draws: the same for every provider."""
    op = OPS[op_name]
    inputs = sample(op, name, dtype, device)
    with backends.use("reference"):
        _, cotangent = value_and_gradients(op, inputs)
        truth, _ = value_and_gradients(op, as_double(inputs), cotangent.double())
    return truth, cotangent, bounds(op, inputs, cotangent, dtype, **arithmetic)


def hold_to_contract(op, name, dtype, serving, device="cpu", **arithmetic):
    """Values and gradients of one sample under ``serving()``, the context in which a provider serves; ``arithmetic`` as in bounds."""
    inputs = sample(op, name, dtype, device)
    before = copy.deepcopy(inputs)
    with serving():
        ours, cotangent = value_and_gradients(op, inputs)
        again, _ = value_and_gradients(op, inputs)
        with torch.no_grad():
            out = op.function(**inputs)
    truth, drawn, limit = truth_and_bounds(op.name, name, dtype, device, **arithmetic)
    assert torch.equal(drawn, cotangent)
    for key, value in ours.items():
        assert value.dtype == dtype and value.shape == truth[key].shape
        error = (value.double() - truth[key]).abs()
        worst = (error - limit[key]).max().item() if error.numel() else -1.0
        assert worst <= 0 and not error.isnan().any(), f"{key}: off by {error.max()}, {worst} over the bound"
        assert torch.equal(value, again[key]), f"{key} differs between two runs"
    torch.testing.assert_close(out, ours["out"], rtol=0, atol=float(2 * limit["out"].max()) if out.numel() else 0)
    assert out.stride() == ours["out"].stride()
    for key, value in inputs.items():
        if isinstance(value, torch.Tensor):
            assert torch.equal(value, before[key]) and value.stride() == before[key].stride(), f"{key} was written to"


@pytest.mark.parametrize("dtype", DTYPES, ids=lambda t: str(t).removeprefix("torch."))
@pytest.mark.parametrize("provider", PROVIDERS)
@pytest.mark.parametrize("op,name", SAMPLES, ids=[f"{op.name}-{name}" for op, name in SAMPLES])
def test_values_and_gradients(op, name, provider, dtype):
    hold_to_contract(op, name, dtype, lambda: use(provider))


@pytest.mark.parametrize("op,name", SAMPLES, ids=[f"{op.name}-{name}" for op, name in SAMPLES])
def test_fake_says_shape_dtype_and_strides(op, name):
    from torch._subclasses.fake_tensor import FakeTensorMode

    inputs = sample(op, name, torch.float32)
    real = op.function(**inputs)
    with FakeTensorMode() as mode:
        fake = op.function(**{k: mode.from_tensor(v) if isinstance(v, torch.Tensor) else v for k, v in inputs.items()})
    assert fake.shape == real.shape and fake.dtype == real.dtype
    assert real.numel() == 0 or fake.stride() == real.stride()
    meta = op.function(**{k: v.to("meta") if isinstance(v, torch.Tensor) else v for k, v in inputs.items()})
    assert meta.shape == real.shape and meta.device.type == "meta"


@pytest.mark.parametrize("provider", PROVIDERS)
@pytest.mark.parametrize("op", OPS.values(), ids=list(OPS))
def test_threads_do_not_change_a_bit(op, provider):
    before = torch.get_num_threads()
    try:
        for s in op.samples(torch.device("cpu"), torch.float32):
            results = []
            for threads in (1, 2, 3):
                torch.set_num_threads(threads)
                with use(provider):
                    results.append(value_and_gradients(op, s.inputs)[0])
            if provider.endswith("never"):  # torch's own products may cut their sums differently
                for other in results[1:]:
                    assert all(torch.equal(results[0][k], other[k]) for k in other), s.name
    finally:
        torch.set_num_threads(before)


BAD = [(op, b) for op in OPS.values() for b in op.bad_samples()]


@pytest.mark.parametrize("provider", ["reference", "kernels", "fake"])
@pytest.mark.parametrize("op,bad", BAD, ids=[f"{op.name}-{b.name}" for op, b in BAD])
def test_bad_input_gets_the_one_sentence(op, bad, provider):
    import contextlib

    from torch._subclasses.fake_tensor import FakeTensorMode

    inputs, scope = dict(bad.inputs), contextlib.nullcontext()
    if provider == "reference":
        scope = backends.use("reference")
    elif provider == "fake":
        values = ("index_above", "index_negative", "index_twice", "index_unsorted", "plan_of_another")
        if bad.name in values or bad.name.startswith(("values_", "indptr_values")):
            return  # a fake tensor has no values to be wrong
        mode = FakeTensorMode(allow_non_fake_inputs=True)
        inputs = {k: mode.from_tensor(v) if isinstance(v, torch.Tensor) else v for k, v in inputs.items()}
        scope = mode
    with scope, pytest.raises(bad.error) as raised:
        op.function(**inputs)
    assert str(raised.value) == bad.sentence
    if provider == "kernels" and all(k in inputs and isinstance(inputs[k], torch.Tensor) for k in factors(op, inputs)):
        grads = {k: inputs[k].detach().requires_grad_() for k in factors(op, inputs) if inputs[k].is_floating_point()}
        with pytest.raises(bad.error) as raised:
            op.function(**{**inputs, **grads})
        assert str(raised.value) == bad.sentence


@pytest.mark.parametrize("op, name", [(op, name) for op, name in SAMPLES if op.gradients], ids=lambda v: getattr(v, "name", v))
def test_gradients_in_one_call_are_those_of_the_products(op, name):
    inputs = next(s for s in op.samples(torch.device("cpu"), torch.float32) if s.name == name).inputs
    together, cotangent = value_and_gradients(op, inputs)
    apart, _ = value_and_gradients(op, inputs, cotangent, graph=True)
    size, _ = value_and_gradients(op, {k: v.abs() if k in factors(op, inputs) else v for k, v in inputs.items()}, cotangent.abs())
    for k in together:
        if k == "bias":  # another order of summation
            assert (together[k] - apart[k]).abs().le(cotangent.numel() * 2.0**-24 * size[k]).all()
        else:
            assert torch.equal(together[k], apart[k].detach()), k


PRODUCTS = [(op, door) for op in OPS.values() for door in DOORS]


@pytest.mark.parametrize("op", OPS.values(), ids=list(OPS))
def test_opcheck(op):
    """torch's own checks of schema, autograd registration, fakes and AOT dispatch, for the public op of every product."""
    s = op.samples(torch.device("cpu"), torch.float32)[4]
    kernels, calls = {getattr(op, door).kernel: door for door in DOORS}, {}

    class Recorder(TorchDispatchMode):
        def __torch_dispatch__(self, func, types, args=(), kwargs=None):
            if func in kernels:
                calls[kernels[func]] = args
            return func(*args, **(kwargs or {}))

    with Recorder():
        value_and_gradients(op, s.inputs, graph=True)  # product by product, whatever the op does in one call
    assert set(calls) == set(DOORS)
    for door, args in calls.items():
        args = tuple(a.detach().clone().requires_grad_() if isinstance(a, torch.Tensor) and a.is_floating_point() else a for a in args)
        torch.library.opcheck(getattr(op, door).public, args)
