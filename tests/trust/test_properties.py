"""Any call that the contract allows, drawn: values and gradients against float64, within the bounds of the contract.

The quick run draws a few hundred cases, the full run more than 20,000, from fixed seeds: what fails once fails again.
"""

from __future__ import annotations

import copy
from functools import partial

import pytest
import torch
from trust.cases import CASES, Case
from trust.drawn import drawn
from trust.lay import LAYS

from sparsekern.ops import OPS, backends, grouped_conv2d_packed, pack_grouped_conv2d, pack_sparse_linear, sparse_linear_packed
from sparsekern.ops.define import Op
from sparsekern.ops.sparse_conv2d import plan_sparse_conv2d
from sparsekern.ops.sparse_linear import plan_sparse_linear

from ops.test_contract import as_double, bounds

#: Cases per op in the quick run; in the full run, in this many parts (each a seed of its own).
QUICK = {"sparse_linear": 80, "grouped_conv2d": 60, "sparse_conv2d": 50, "grouped_mm": 15}
PARTS, FULL = 10, {"sparse_linear": 800, "grouped_conv2d": 600, "sparse_conv2d": 600, "grouped_mm": 100}


def with_plan(op: str, inputs: dict) -> dict:
    if not backends.has_kernels("cpu"):
        return inputs
    if op == "sparse_linear":
        block = tuple(inputs["weight"].shape[2:]) or (1, 1)
        return {**inputs, "plan": plan_sparse_linear(inputs["index"], inputs["x"].shape[-1], block)}
    kernel, block = inputs["kernel_size"], tuple(inputs["weight"].shape[1:])
    return {**inputs, "plan": plan_sparse_conv2d(inputs["indptr"], inputs["index"], inputs["x"].shape[-3], kernel, block)}


def packed(op: str, inputs: dict, dtype: torch.dtype):
    """The same on a pack: a function of nothing, or None where none can be made."""
    if dtype == torch.float64 or not backends.has_kernels("cpu") or inputs["weight"].numel() == 0:
        return None
    rest = {k: v for k, v in inputs.items() if k not in ("x", "weight", "bias", "index", "plan")}
    weight = inputs["weight"]
    if op == "sparse_linear":
        pack = pack_sparse_linear(weight, inputs["index"], inputs["x"].shape[-1])
        outputs = weight.shape[0] * (weight.shape[2] if weight.dim() == 4 else 1)
        return lambda: sparse_linear_packed(inputs["x"], pack, inputs["bias"], outputs, weight.numel())
    window = {k: v for k, v in rest.items() if k in ("stride", "padding", "dilation", "groups")}
    images = (1, *inputs["x"].shape[-2:]) if inputs["x"].dim() == 3 else (max(1, inputs["x"].shape[0]), *inputs["x"].shape[-2:])
    pack = pack_grouped_conv2d(weight, **window, images=images)
    return lambda: grouped_conv2d_packed(inputs["x"], pack, inputs["bias"], weight.shape[0], tuple(weight.shape[2:]), **rest)


def within(name: str, got: torch.Tensor, truth: torch.Tensor, limit: torch.Tensor, dtype: torch.dtype) -> None:
    assert got.dtype == dtype and got.shape == truth.shape, name
    error = (got.double() - truth).abs()
    assert not error.isnan().any(), f"{name}: NaN"
    assert error.numel() == 0 or bool((error <= limit).all()), f"{name}: off by {error.max()}, {(error - limit).max()} over the bound"


def steps(t: torch.Tensor) -> list[int]:
    """The strides that mean anything: with one channel, an image is in both layouts."""
    return [stride for size, stride in zip(t.shape, t.stride()) if size > 1]


def gradients(op: Op, inputs: dict, wanted: list[str], cotangent: torch.Tensor) -> dict[str, torch.Tensor]:
    """Of the result for the inputs ``wanted``, the others being constants."""
    leaves = {k: inputs[k].detach().requires_grad_() for k in wanted}
    return dict(zip(leaves, torch.autograd.grad(op.function(**{**inputs, **leaves}), list(leaves.values()), cotangent)))


def hold(name: str, case: Case) -> None:
    op, inputs = OPS[name], case.inputs
    before = copy.deepcopy({k: v for k, v in inputs.items() if isinstance(v, torch.Tensor)})
    relu = inputs.get("activation", "none") == "relu"
    asked = [k for k in (*op.factors, "bias", "shortcut") if inputs.get(k) is not None]
    wanted = asked if case.wanted == "all" else [case.wanted]
    threads = torch.get_num_threads()
    with backends.use("reference"):
        out = op.function(**inputs)
        cotangent = torch.randn(out.shape, generator=torch.Generator().manual_seed(1), dtype=torch.float64).to(out)
        plain = {k: v for k, v in inputs.items() if k != "activation"}
        limit = bounds(op, inputs, cotangent, case.dtype)["out"]
        value = op.function(**as_double(plain))
        if relu:  # whose gradient jumps at 0: nothing is asked of results that rounding may have moved over it
            cotangent = torch.where(value.abs() <= limit, 0, cotangent)
        cotangent = LAYS[case.gradient](cotangent)
        through = torch.where(value > 0, cotangent, 0) if relu else cotangent
        truth = gradients(op, as_double(plain), wanted, through.double())
        limits = bounds(op, inputs, through, case.dtype)
        value = value.relu() if relu else value
    try:
        torch.set_num_threads(case.threads)
        with case.serving():
            given = with_plan(name, inputs) if case.planned else inputs
            with torch.no_grad():
                ours = op.function(**given)
                assert steps(ours) == steps(out) or ours.numel() == 0
            within("out", ours, value, limit, case.dtype)
            for key, got in gradients(op, given, wanted, cotangent).items():
                exact = key == "shortcut"  # it is the one that came in
                within(f"gradient of {key}", got, truth[key], torch.zeros_like(truth[key]) if exact else limits[key], case.dtype)
            run = packed(name, inputs, case.dtype) if case.packed else None
            if run is not None:
                within("packed", run(), value, limit, case.dtype)
    finally:
        torch.set_num_threads(threads)
    for key, tensor in before.items():
        assert torch.equal(inputs[key], tensor), f"{key} was written to"


@pytest.mark.parametrize("name", CASES)
def test_drawn_calls(name):
    drawn(name, CASES[name](), partial(hold, name), QUICK[name], seed=0)


@pytest.mark.slow
@pytest.mark.parametrize("part", range(1, PARTS + 1))
@pytest.mark.parametrize("name", CASES)
def test_many_drawn_calls(name, part):
    drawn(name, CASES[name](), partial(hold, name), FULL[name], seed=part)
