"""Operands at addresses that are no multiple of their elements' size, as torch.frombuffer gives them: no bit changes.

x86 reads there all the same, but C++ does not allow it: what this asks is seen by the sanitized run (sanitized.py), which such a read ends.
"""

from __future__ import annotations

import pytest
import torch
from torch import Tensor
from trust.lay import LAYS
from trust.test_damaged_arrays import ARRAYS
from trust.test_properties import packed, with_plan

from sparsekern.ops import backends, joined_conv2d_packed, pool2d, root_conv2d, sequence2d

from ops.test_contract import DTYPES, SAMPLES, sample, value_and_gradients
from ops.test_joined_conv2d import BRANCHES, call
from ops.test_pool2d import WINDOWS
from ops.test_root_conv2d import at
from ops.test_sequence2d import SEQUENCES, build

pytestmark = pytest.mark.skipif(not backends.has_kernels("cpu"), reason="built without kernels")
LAST = torch.channels_last


def moved(t: Tensor) -> Tensor:
    """The same, strides included."""
    span = sum((size - 1) * stride for size, stride in zip(t.shape, t.stride())) + 1
    return LAYS["off by a byte"](t.as_strided((span,), (1,))).as_strided(t.shape, t.stride()) if t.numel() else t


def same(a: Tensor, b: Tensor) -> bool:
    return torch.equal(a, b) and a.stride() == b.stride()


@pytest.mark.parametrize("dtype", DTYPES, ids=lambda t: str(t).removeprefix("torch."))
@pytest.mark.parametrize("op,name", SAMPLES, ids=[f"{op.name}-{name}" for op, name in SAMPLES])
def test_each_operand_of_an_op(op, name, dtype):
    inputs = sample(op, name, dtype)
    if op.name.startswith("sparse"):
        inputs = with_plan(op.name, inputs)
    # torch's own products, which grouped_mm is made of, may round by addresses
    tensors = {k: v for k, v in inputs.items() if isinstance(v, Tensor) and (op.name != "grouped_mm" or k == "offsets")}
    with backends.use(backends.providers()[-1], dense="never"):
        want, cotangent = value_and_gradients(op, inputs)
        for key in tensors:
            got, _ = value_and_gradients(op, {**inputs, key: moved(tensors[key])}, cotangent)
            assert all(same(got[k], want[k]) for k in want), key
        if op.name != "grouped_mm":
            got, _ = value_and_gradients(op, inputs, moved(cotangent))
            assert all(same(got[k], want[k]) for k in want), "gradient of the result"
        if op.name in ("sparse_linear", "grouped_conv2d") and inputs.get("padding") != "same" and (run := packed(op.name, inputs, dtype)):
            elsewhere = packed(op.name, {k: moved(v) if k in tensors else v for k, v in inputs.items()}, dtype)
            assert same(elsewhere(), run())


@pytest.mark.parametrize("name", ARRAYS)
def test_plans_and_packs(name):
    array, run = ARRAYS[name]()
    assert torch.equal(run(moved(array)), run(array))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_ops_of_several_layers(dtype):
    with backends.use(backends.providers()[-1], dense="never"):
        for name in SEQUENCES:
            tensors, numbers, _ = build(name, dtype)
            for layout in (LAST, torch.contiguous_format):
                x = torch.randn(2, 3, 13, 16).to(dtype).to(memory_format=layout)
                assert same(sequence2d(moved(x), [moved(t) for t in tensors], numbers), sequence2d(x, tensors, numbers)), name
        for name in BRANCHES:
            xs, packs, biases, window = call(name, dtype)[0]
            got = joined_conv2d_packed([moved(x) for x in xs], [moved(p) for p in packs], [moved(b) for b in biases], window)
            assert same(got, joined_conv2d_packed(xs, packs, biases, window)), name
        for name in ("root", "bottleneck", "nchw"):
            inputs = at(name, dtype)
            elsewhere = {k: moved(v) if isinstance(v, Tensor) else v for k, v in inputs.items()}
            assert same(root_conv2d(**elsewhere), root_conv2d(**inputs)), name
        for shape, *window in WINDOWS:
            x = torch.randn(shape).to(dtype)
            assert same(pool2d(moved(x), *window), pool2d(x, *window)), shape
