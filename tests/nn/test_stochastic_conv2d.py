"""What is special to StochasticConv2d: masks, padding, checkpoints, conversion, topology."""

from __future__ import annotations

import copy
import pickle

import pytest
import torch
from torch import nn

from sparsekern.nn.stochastic_conv2d import StochasticConv2d

BLOCKS = {
    "spatial": (1, 32, 1), "synapse": (1, 1, 1), "kernel": (1, 1, 9), "block": (16, 16, 9)
}  # fmt: skip


def bad(sentence, *args, **kwargs):
    with pytest.raises(ValueError) as raised:
        StochasticConv2d(*args, **kwargs)
    assert str(raised.value) == f"StochasticConv2d: {sentence}"


def close(a, b):
    torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-5)


def test_bad_arguments():
    bad("density and fan_in must be given one without the other; got both", 8, 4, 3, density=0.5, fan_in=8)
    bad("density and fan_in must be given one without the other; got neither", 8, 4, 3)
    bad("density must be in (0, 1]; got 0", 8, 4, 3, density=0)
    bad("density must be in (0, 1]; got 1.5", 8, 4, 3, density=1.5)
    bad("fan_in must be a multiple of 8 in [8, 72]; got 12", 8, 4, 3, fan_in=12)
    bad("fan_in must be a multiple of 1 in [1, 72]; got 73", 8, 4, 3, fan_in=73, granularity="synapse")
    bad("groups must be at least 1; got 0", 8, 4, 3, groups=0, density=0.5)
    bad("in_channels must be a positive multiple of 3 for blocks of 1 in 3 groups; got 8", 8, 6, 3, groups=3, density=0.5)
    bad("out_channels must be a positive multiple of 6 for blocks of 2 in 3 groups; got 9", 9, 9, 3, groups=3, density=0.5, share=2)
    bad(
        "in_channels must be a positive multiple of 64 for blocks of 16 in 4 groups; got 96",
        96, 64, 3, groups=4, density=0.5, granularity="block",
    )  # fmt: skip
    bad("fan_in must be a multiple of 4 in [4, 36]; got 40", 8, 4, 3, groups=2, fan_in=40)
    bad("share must be at least 1; got 0", 8, 4, 3, density=0.5, share=0)
    bad("out_channels must be a positive multiple of 3; got 4", 8, 4, 3, density=0.5, share=3)
    bad("in_channels must be a positive multiple of 16; got 8", 8, 16, 3, density=0.5, granularity="block")
    bad("count must be one of ('exact', 'bernoulli'); got 'most'", 8, 4, 3, density=0.5, count="most")
    bad("stride must be 1 with padding='same'; got (2, 2)", 8, 4, 3, 2, "same", density=0.5)
    bad("padding must be 'same', 'valid' or numbers; got 'full'", 8, 4, 3, 1, "full", density=0.5)
    bad("granularity must be one of ('spatial', 'synapse', 'kernel', 'block'); got 'row'", 8, 4, 3, density=0.5, granularity="row")


@pytest.mark.parametrize("share", [1, 2])
@pytest.mark.parametrize("granularity", BLOCKS)
def test_exact_count_and_values(granularity, share):
    layer = StochasticConv2d(32, 32, 3, padding=1, density=0.25, granularity=granularity, share=share)
    block_out, *rest = BLOCKS[granularity]
    block = (block_out * share, *rest)
    positions = 32 * 32 * 9 // (block[0] * block[1] * block[2])
    kept = max(1, round(0.25 * positions))
    assert layer.weight.shape == (kept, *block) and layer.index.shape == (kept,) and layer.density == kept / positions
    assert (layer.weight_dense() != 0).sum() == layer.weight.numel()
    x = torch.randn(2, 32, 7, 9)
    close(layer(x), layer.to_dense()(x))
    last = x.to(memory_format=torch.channels_last)
    out = layer(last)
    assert out.is_contiguous(memory_format=torch.channels_last)
    close(out, layer(x))
    close(layer(x[0]), layer(x)[0])


def test_fan_in_is_the_same_for_every_filter():
    layer = StochasticConv2d(8, 12, 3, fan_in=16)
    assert ((layer.weight_dense() != 0).sum((1, 2, 3)) == 16).all()
    assert layer.weight.abs().max() <= 0.25 and layer.weight.abs().max() > 0.2


def test_bounds_follow_each_filter():
    layer = StochasticConv2d(16, 64, 3, density=0.1, granularity="synapse", seed=1)
    dense = layer.weight_dense()
    fan_in = (dense != 0).sum((1, 2, 3))
    assert fan_in.unique().numel() > 3
    assert (dense.abs().amax((1, 2, 3)) <= fan_in.clamp_min(1).rsqrt() + 1e-6).all()


@pytest.mark.parametrize(
    "options",
    [
        dict(kernel_size=3, stride=2, padding=1),
        dict(kernel_size=(3, 5), padding="same"),
        dict(kernel_size=(2, 4), padding="same"),
        dict(kernel_size=(2, 3), padding="same", dilation=(3, 2)),
        dict(kernel_size=3, padding="valid"),
        dict(kernel_size=3, padding=(1, 2), padding_mode="circular"),
        dict(kernel_size=3, padding=2, padding_mode="reflect", stride=(1, 2)),
        dict(kernel_size=(4, 3), padding="same", padding_mode="replicate"),
        dict(kernel_size=5, dilation=(2, 1), padding=(4, 2), bias=False),
    ],
)
def test_same_as_the_dense_layer(options):
    layer = StochasticConv2d(6, 10, density=0.4, granularity="synapse", **options)
    dense = layer.to_dense()
    x, y = (torch.randn(2, 6, 11, 12).requires_grad_() for _ in range(2))
    y.data.copy_(x.data)
    out, want = layer(x), dense(y)
    close(out, want)
    cotangent = torch.randn_like(out)
    out.backward(cotangent), want.backward(cotangent)
    close(x.grad, y.grad)
    grad = StochasticConv2d.from_dense(dense, tables=(layer.indptr, layer.index), granularity="synapse")
    grad.load_state_dict({"weight": dense.weight.grad, **({"bias": dense.bias.grad} if dense.bias is not None else {})})
    close(layer.weight.grad, grad.weight)
    if layer.bias is not None:
        close(layer.bias.grad, dense.bias.grad)


def test_seed_is_reproducible():
    one = StochasticConv2d(8, 16, 3, density=0.25, seed=3)
    assert torch.equal(StochasticConv2d(8, 16, 3, density=0.25, seed=3).index, one.index)
    assert not torch.equal(StochasticConv2d(8, 16, 3, density=0.25, seed=4).index, one.index)
    torch.manual_seed(5)
    first = StochasticConv2d(8, 16, 3, density=0.25).index
    torch.manual_seed(5)
    assert torch.equal(StochasticConv2d(8, 16, 3, density=0.25).index, first)
    # pinned: the same mask on every machine and version
    assert StochasticConv2d(2, 3, 2, density=0.5, seed=0).indptr.tolist() == PINNED[0]
    assert StochasticConv2d(2, 3, 2, density=0.5, seed=0).index.tolist() == PINNED[1]


PINNED = ([0, 1, 3, 6], [2, 2, 3, 1, 2, 3])


def test_bernoulli():
    layers = [StochasticConv2d(4, 32, 3, density=0.25, count="bernoulli", seed=s) for s in range(4)]
    assert len({len(layer.index) for layer in layers}) > 1
    for layer in layers:
        assert layer.weight.shape == (len(layer.index), 1, 4, 1) and abs(layer.density - 0.25) < 0.1
        x = torch.randn(1, 4, 6, 6)
        close(layer(x), layer.to_dense()(x))


def test_state_dict_into_a_fresh_module():
    one, two = StochasticConv2d(4, 8, 3, density=0.25), StochasticConv2d(4, 8, 3, density=0.25)
    two.load_state_dict(one.state_dict())
    x = torch.randn(1, 4, 6, 6)
    assert set(one.state_dict()) == {"weight", "bias", "index", "indptr"}
    assert torch.equal(one(x), two(x)) and torch.equal(one.index, two.index)


def test_state_dict_of_another_count_says_so():
    one, two = StochasticConv2d(4, 8, 3, density=0.5), StochasticConv2d(4, 8, 3, density=0.25)
    with pytest.warns(UserWarning, match=r"loading an index \[36\] in place of \[18\]"):
        two.load_state_dict(one.state_dict())
    x = torch.randn(1, 4, 6, 6)
    assert torch.equal(one(x), two(x)) and two.density == 0.5


@pytest.mark.parametrize("granularity", BLOCKS)
def test_dense_checkpoint_loads(granularity):
    dense = nn.Conv2d(32, 16, 3)
    layer = StochasticConv2d(32, 16, 3, density=0.5, granularity=granularity)
    layer.load_state_dict(dense.state_dict())
    mask = layer.weight_dense() != 0
    assert torch.equal(layer.weight_dense(), dense.weight * mask) and torch.equal(layer.bias, dense.bias)


def test_from_dense_keeps_the_largest():
    dense = nn.Conv2d(4, 8, 3).double()
    layer = StochasticConv2d.from_dense(dense, density=0.25, granularity="synapse")
    kept = layer.weight_dense()[layer.weight_dense() != 0].abs()
    assert len(kept) == 72 and kept.min() >= dense.weight.abs().flatten().sort().values[-72]
    spatial = StochasticConv2d.from_dense(dense, fan_in=8)
    strength = dense.weight.pow(2).sum(1).flatten(1)
    want = torch.zeros_like(strength).scatter(1, strength.topk(2, dim=1).indices, 1.0)
    assert torch.equal((spatial.weight_dense() != 0).all(1).flatten(1).double(), want)
    x = torch.randn(1, 4, 6, 6, dtype=torch.float64)
    full = StochasticConv2d.from_dense(dense, density=1.0)
    torch.testing.assert_close(full(x), dense(x))


def test_set_topology():
    layer = StochasticConv2d(4, 3, 3, density=0.5, granularity="synapse")
    x = torch.randn(2, 4, 6, 6)
    layer(x)
    old = layer.weight_dense().detach()
    indptr, index = torch.tensor([0, 36, 36, 40], dtype=torch.int32), torch.tensor([*range(36), 0, 5, 7, 35], dtype=torch.int32)
    layer.set_topology(indptr, index)
    assert torch.equal(layer.weight_dense()[0], old[0]) and layer.weight.shape == (40, 1, 1, 1)
    close(layer(x), layer.to_dense()(x))
    assert torch.equal(layer(x)[:, 1], layer.bias[1].expand(2, 4, 4))  # a filter without weights
    with pytest.raises(ValueError, match=r"sparse_conv2d: index must be in \[0, 36\); got 36 at \[39\]"):
        layer.set_topology(indptr, index.clone().index_fill(0, torch.tensor([39]), 36))
    assert torch.equal(layer.index, index)  # an invalid table does not replace a valid one


def test_tables_changed_in_place_are_seen():
    layer, x = StochasticConv2d(4, 3, 3, fan_in=2, granularity="synapse"), torch.randn(1, 4, 6, 6)
    layer(x)
    want = copy.deepcopy(layer)
    other = torch.tensor([1, 5, 2, 20, 0, 3], dtype=torch.int32)
    want.set_topology(layer.indptr, other, layer.weight.detach().clone())
    assert torch.equal(torch.func.functional_call(layer, {"index": other}, (x,)), want(x))
    layer.index.copy_(other)
    assert torch.equal(layer(x), want(x))
    layer.index[3] = 99
    with pytest.raises(ValueError, match=r"sparse_conv2d: index must be in \[0, 36\); got 99 at \[3\]"):
        layer(x)


def test_meta_device_and_to_empty():
    layer = StochasticConv2d(4, 8, 3, density=0.25, device="meta")
    assert layer(torch.empty(2, 4, 6, 6, device="meta")).shape == (2, 8, 4, 4)
    layer = layer.to_empty(device="cpu")
    with pytest.raises(ValueError, match="index must be set after to_empty"):
        layer(torch.randn(1, 4, 6, 6))
    layer.reset_parameters()
    assert layer(torch.randn(1, 4, 6, 6)).isfinite().all()
    x = torch.randn(1, 4, 6, 6)
    for assign in (False, True):
        loaded = StochasticConv2d(4, 8, 3, density=0.25, device="meta")
        loaded = loaded if assign else loaded.to_empty(device="cpu")
        loaded.load_state_dict(layer.state_dict(), assign=assign)
        assert torch.equal(loaded(x), layer(x))


def test_plan_is_no_state_and_does_not_travel():
    layer = StochasticConv2d(4, 8, 3, density=0.25)
    x = torch.randn(1, 4, 6, 6)
    layer(x)
    assert "_plan" not in layer.state_dict() and copy.deepcopy(layer)._plan is None
    assert torch.equal(pickle.loads(pickle.dumps(layer))(x), layer(x))
    assert all(b is not layer._plan for b in layer.buffers())


def test_says_what_it_is():
    layer = StochasticConv2d(96, 64, 3, 2, 1, density=0.25, granularity="synapse", share=4, bias=False)
    assert repr(layer) == (
        "StochasticConv2d(96, 64, kernel_size=(3, 3), stride=(2, 2), padding=(1, 1), bias=False, density=0.25, "
        "granularity=synapse, share=4, kept=13824)"
    )
    assert "25.0 % kept" in layer.explain() and "served by" in layer.explain()
