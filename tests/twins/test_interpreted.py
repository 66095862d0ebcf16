"""Every Triton twin against float64, within the contract's bounds, under Triton's interpreter."""

from __future__ import annotations

import importlib

import pytest
import torch

pytest.importorskip("triton", reason="triton is not installed: its twins are not tested")

import test_contract as contract

from sparsekern.ops import OPS, backends, cuda
from sparsekern.ops.triton import DOORS, kernels, twin
from sparsekern.ops.triton import OPS as TWINS

DTYPES = [torch.float32, torch.float16, torch.bfloat16]

#: Many programs, which the interpreter runs one after the other: only in the full run.
SLOW = {
    "sparse_linear": {"wide_vectors", "half_kept", "most_kept_one_row", "most_kept_few_rows", "windows", "balanced_one_row",
                      "balanced_few_rows", "balanced_many_rows", "balanced_feature_major", "block_of_tiles"},
    "grouped_conv2d": {"five", "depthwise", "last_five", "last_depthwise", "last_weight", "last_odd_batch", "image"},
    "sparse_conv2d": {"block", "spatial_no_bias", "full_mask", "channels_last_spatial", "spatial", "spatial_few_channels", "empty_rows",
                      "shared_by_many"},
}  # fmt: skip
#: In half precision only these: one for every kernel.
HALF = {
    "one", "two_no_bias", "odd_batch", "panel", "block_one_row", "odd_block", "feature_major", "stride_dilation", "last_stride",
    "last_shortcut_stride", "shared", "kernel", "spatial_strided", "equal", "empty_batch", "no_outputs",
}  # fmt: skip


def cases():
    for name in TWINS:
        for sample in OPS[name].samples(torch.device("cpu"), torch.float32):
            for dtype in DTYPES:
                slow = sample.name in SLOW.get(name, ()) or (dtype != torch.float32 and sample.name not in HALF)
                label = f"{name}-{sample.name}-{str(dtype).removeprefix('torch.')}"
                yield pytest.param(name, sample.name, dtype, id=label, marks=[pytest.mark.slow] if slow else [])


@pytest.fixture
def by_twins(monkeypatch):
    """Calls go where the reference would serve; a twin stands in its place."""

    def serve(op):
        for door, product in op.products.items():
            monkeypatch.setattr(product, "reference", getattr(twin(op.name), door))

    return serve


@pytest.mark.parametrize("name, sample, dtype", list(cases()))
def test_values_and_gradients(name, sample, dtype, by_twins):
    op = OPS[name]
    # the interpreter cuts a float to bf16 where a device rounds it
    truth, cotangent, limit = contract.truth_and_bounds(name, sample, dtype, cut=dtype == torch.bfloat16)
    inputs = contract.sample(op, sample, dtype)
    by_twins(op)
    with backends.use("reference"):
        ours, _ = contract.value_and_gradients(op, inputs, cotangent)
    for key, value in ours.items():
        assert value.dtype == dtype and value.shape == truth[key].shape
        error = (value.double() - truth[key]).abs()
        assert (error <= limit[key]).all(), f"{key}: off by {error.max()}"


@pytest.mark.filterwarnings("ignore:Warning only once for all operators:UserWarning")  # kernels replaced, as meant
@pytest.mark.skipif(backends.native is None, reason="the policy is set through _native")
@pytest.mark.parametrize("name, sample", [("sparse_linear", "odd_batch"), ("sparse_linear", "odd_block"), ("grouped_conv2d", "two_no_bias"),
                                          ("grouped_conv2d", "last_shortcut_stride")])  # fmt: skip
def test_twins_stand_in_for_the_cuda_library(name, sample, monkeypatch):
    """Behind the same choice: CPU tensors are sent where a GPU's would go."""
    op = OPS[name]
    truth, cotangent, limit = contract.truth_and_bounds(name, sample, torch.float32)
    inputs = contract.sample(op, sample, torch.float32)
    if name == "sparse_linear":
        blocks = inputs["weight"].shape[2:] or (1, 1)
        inputs["plan"] = cuda.make_plan(inputs["index"], inputs["x"].shape[-1] // blocks[1], tuple(blocks))
    monkeypatch.setattr(op, "gradients", None)
    served, asked = kernels(), []
    for attribute, kernel in vars(served).items():
        setattr(served, attribute, lambda *args, kernel=kernel, attribute=attribute: asked.append(attribute) or kernel(*args))
    registered = cuda.register(served, "CPU")
    try:
        with backends.use(backends.providers()[-1], dense="never"):
            if backends.quick_call:
                backends.quick_call.use_reference(True)  # the short way to the CPU's kernels does not ask the dispatcher
            ours, _ = contract.value_and_gradients(op, inputs, cotangent)
    finally:
        registered._destroy()
    assert set(asked) == {name, f"{name}_grad_x", f"{name}_grad_weight"}
    assert all(((ours[key].double() - truth[key]).abs() <= limit[key]).all() for key in ours)


def test_only_the_first_axis_of_a_grid_is_long(monkeypatch):
    """A card takes 65535 programs along the others; here 70000 blocks of two numbers."""
    grids, many = [], 70000
    linear, conv, mm = twin("sparse_linear"), twin("grouped_conv2d"), twin("grouped_mm")
    for module in (linear, conv, mm):
        monkeypatch.setattr(module, "run", lambda kernel, grid, *_: grids.append((kernel.fn.__name__, grid)))
    index = torch.zeros(many, 1, dtype=torch.int32)
    for block, x in [((2, 1), torch.zeros(3, many)), ((1, 1), torch.zeros(20, many)), ((1, 1), torch.zeros(1, many))]:
        weight = torch.zeros(many, 1, *(block if block != (1, 1) else ()))
        linear.forward(x, weight, None, index, None)
        linear.grad_x(x.new_zeros(len(x), many * block[0]), weight, index, None, many)
    linear.forward(torch.zeros(9, 2), torch.zeros(1 << 20, 1), None, torch.zeros(1 << 20, 1, dtype=torch.int32), None)
    image, window = torch.zeros(1, many, 1, 1), (1, 1, 0, 0, 1, 1, many)
    conv.forward(image, torch.zeros(many, 1, 1, 1), None, None, *window, False)
    conv.grad_x(image, torch.zeros(many, 1, 1, 1), 1, 1, *window)
    mm.forward(torch.zeros(many, 1, 1), torch.zeros(many, 1, 1), None)
    assert len({name for name, _ in grids}) >= 7
    for name, grid in grids:
        assert all(size <= 65535 for size in grid[1:]), (name, grid)


def test_the_index_is_not_read_where_a_plan_was_given(monkeypatch):
    """Reading it would wait for the device."""
    module = importlib.import_module("sparsekern.ops.sparse_linear")
    inputs = contract.sample(OPS["sparse_linear"], "odd_batch", torch.float32)
    x, weight, bias, index = (inputs[name] for name in ("x", "weight", "bias", "index"))
    expected = module.reference(x, weight, bias, index, None)
    monkeypatch.setattr(module, "check_index", lambda *_: pytest.fail("the index was read"))
    torch.testing.assert_close(kernels().sparse_linear(x, weight, bias, index, False), expected)


def test_float64_is_the_references(by_twins, monkeypatch):
    op = OPS["sparse_linear"]
    inputs = contract.sample(op, "odd_batch", torch.float64)
    with backends.use("reference"):
        expected, cotangent = contract.value_and_gradients(op, inputs)
    by_twins(op)
    with backends.use("reference"):
        ours, _ = contract.value_and_gradients(op, inputs, cotangent)
    assert all(torch.equal(ours[key], expected[key]) for key in expected)


BAD = [(op, bad) for op in (OPS[name] for name in TWINS) for bad in op.bad_samples()]


@pytest.mark.parametrize("op, bad", BAD, ids=[f"{op.name}-{bad.name}" for op, bad in BAD])
def test_bad_input_gets_the_one_sentence(op, bad, by_twins):
    by_twins(op)
    with backends.use("reference"), pytest.raises(bad.error) as raised:
        op.function(**bad.inputs)
    assert str(raised.value) == bad.sentence


def test_every_product_of_every_op_has_a_twin():
    assert set(TWINS) == {name for name, op in OPS.items() if op.function is not None}
    assert all(callable(getattr(twin(name), door)) for name in TWINS for door in DOORS)
