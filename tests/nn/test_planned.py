"""A plan follows its tables whoever writes them, and what is kept of it serves every mode."""

from __future__ import annotations

import copy

import pytest
import torch

from sparsekern import SparseLinear, StochasticConv2d
from sparsekern.ops import backends, plan_sparse_linear, sparse_linear
from sparsekern.ops.define import seal_of
from sparsekern.ops.sparse_linear import _SEAL

LAYERS = {
    "linear": (lambda seed: SparseLinear(64, 32, fan_in=8, seed=seed), (3, 64)),
    "conv": (lambda seed: StochasticConv2d(4, 6, 3, density=0.5, seed=seed), (2, 4, 7, 7)),
}
KERNELS = pytest.mark.skipif(not backends.has_kernels("cpu"), reason="plans are of the kernels")


@pytest.mark.parametrize("name", LAYERS)
def test_a_plan_made_in_inference_mode_serves_training(name):
    make, shape = LAYERS[name]
    layer = copy.deepcopy(make(0))  # a copy plans at its first call
    with torch.inference_mode():
        layer(torch.randn(shape))
    layer(torch.randn(shape)).sum().backward()
    assert layer.weight.grad is not None


@pytest.mark.parametrize("write", ["data", "swap"])
def test_a_table_that_moves_is_planned_anew(write):
    layer, other, x = SparseLinear(64, 32, fan_in=8, seed=0), SparseLinear(64, 32, fan_in=8, seed=1), torch.randn(3, 64)
    layer(x)
    if write == "data":
        layer.index.data = other.index.clone()
    else:
        torch.utils.swap_tensors(layer.index, other.index)
    torch.testing.assert_close(layer(x), layer.to_dense()(x))


@KERNELS
@pytest.mark.parametrize("word, fan_in", [(22, 8), (18, 100)])  # rows of 16 side by side, the mask (core/sparse_linear_plan.h)
@pytest.mark.parametrize("rows", [1, 40])
def test_a_plan_of_a_lesser_processor_is_completed(word, fan_in, rows):
    layer, x = SparseLinear(200, 64, fan_in=fan_in, seed=0), torch.randn(rows, 200)
    plan = plan_sparse_linear(layer.index, 200)
    expected = sparse_linear(x, layer.weight, layer.index, layer.bias, plan)
    if not plan[word]:
        assert backends.serves("sparse_linear") in ("cpu/base", "cpu/avx2"), "the word of another section"
    plan[word] = 0
    plan[_SEAL] = torch.tensor(seal_of(plan, _SEAL)).int()
    torch.testing.assert_close(sparse_linear(x, layer.weight, layer.index, layer.bias, plan), expected)


@pytest.mark.parametrize("rows", [0, 1, 16])
def test_nothing_in_and_nothing_out(rows):
    out = sparse_linear(torch.empty(rows, 0), torch.empty(0, 3), torch.empty(0, 3, dtype=torch.int32))
    assert out.shape == (rows, 0)


@pytest.mark.skipif(backends.quick_call is None, reason="the door in Python keeps the bias")
def test_a_bias_may_be_written_before_the_gradients():
    layer = SparseLinear(64, 32, fan_in=8)
    y = layer(torch.randn(3, 64)).sum()
    with torch.no_grad():
        layer.bias.add_(1)
    y.backward()
    assert torch.equal(layer.bias.grad, torch.full((32,), 3.0))


def test_gradients_of_fake_tensors_and_of_many_cotangents():
    from torch._subclasses.fake_tensor import FakeTensorMode

    layer, x = SparseLinear(64, 32, fan_in=8), torch.randn(4, 64, requires_grad=True)
    y = layer(x)
    cotangents = torch.randn(5, 4, 32)
    leaves = [x, layer.weight, layer.bias]
    together = torch.autograd.grad(y, leaves, cotangents, is_grads_batched=True, retain_graph=True)
    for i, cotangent in enumerate(cotangents):
        for all_of_them, one in zip(together, torch.autograd.grad(y, leaves, cotangent, retain_graph=True)):
            torch.testing.assert_close(all_of_them[i], one)
    with FakeTensorMode():
        fake = SparseLinear(64, 32, fan_in=8)
        fake(torch.randn(4, 64)).sum().backward()
        assert fake.weight.grad.shape == (32, 8)


def test_a_quick_call_of_another_build_is_left_alone(tmp_path, monkeypatch):
    for suffix in backends.importlib.machinery.EXTENSION_SUFFIXES:
        (tmp_path / f"_quick_call-torch{torch.__version__}{suffix}").write_bytes(b"not a library")
    monkeypatch.setattr(backends, "_LIBRARY", tmp_path / "_C.so")
    assert backends._load_quick_call() is None
