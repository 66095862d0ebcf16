"""What is special to SparseLinear: construction, checkpoints, conversion, topology."""

from __future__ import annotations

import copy
import math
import sys

import pytest
import torch
from torch import nn

from sparsekern.nn import SparseLinear
from sparsekern.ops import backends
from sparsekern.topology import scatter


def bad(sentence, *args, **kwargs):
    with pytest.raises(ValueError) as raised:
        SparseLinear(*args, **kwargs)
    assert str(raised.value) == f"SparseLinear: {sentence}"


def test_bad_arguments():
    bad("fan_in, density and fan_out must be given one without the others; got fan_in and density", 8, 4, fan_in=2, density=0.5)
    bad("fan_in, density and fan_out must be given one without the others; got density and fan_out", 8, 4, density=0.5, fan_out=2)
    bad("fan_in, density and fan_out must be given one without the others; got none", 8, 4)
    bad("fan_in must be a multiple of 1 in [1, 8]; got 9", 8, 4, fan_in=9)
    bad("fan_in must be a multiple of 1 in [1, 8]; got 0", 8, 4, fan_in=0)
    bad("fan_in must be a multiple of 4 in [4, 8]; got 6", 8, 4, fan_in=6, block_size=4)
    bad("density must be in (0, 1]; got 0.0", 8, 4, density=0.0)
    bad("density must be in (0, 1]; got 1.5", 8, 4, density=1.5)
    bad("in_features must be a positive multiple of 3; got 8", 8, 3, density=0.5, block_size=3)
    bad("out_features must be a positive multiple of 4; got 6", 8, 6, density=0.5, block_size=4)
    bad("block_size must be at least 1; got 0", 8, 4, density=0.5, block_size=0)
    bad(
        "topology must be one of ['balanced', 'clash_free', 'random', 'regular', 'spread']; got 'spiral'",
        8,
        4,
        density=0.5,
        topology="spiral",
    )
    bad("topology must be 'regular', 'spread' or 'clash_free' with fan_out; got 'random'", 8, 4, fan_out=2, topology="random")
    bad("topology must be 'regular', 'spread' or 'clash_free' with fan_out; got 'balanced'", 8, 4, fan_out=2, topology="balanced")
    bad("block_size must be 1 with topology 'balanced'; got 4", 8, 4, density=0.5, topology="balanced", block_size=4)
    bad("fan_in must be a multiple of 1 in [1, 8]; got 9", 8, 4, fan_in=9, topology="balanced")
    bad("fan_out must be a whole number in [1, 4]; got 0", 8, 4, fan_out=0)
    bad("fan_out must be a whole number in [1, 4]; got 5", 8, 4, fan_out=5)
    bad("fan_out must be a whole number in [1, 4]; got 1.25", 8, 4, fan_out=1.25)
    bad("fan_out must be at least 16, or some of the 1024 outputs are unconnected; got 15", 64, 1024, fan_out=15)
    bad("fan_out must be a multiple of 5, or fan_in = 64 * fan_out / 10 is not whole; got 3", 64, 10, fan_out=3)
    bad("fan_out must be a multiple of 4, or fan_in = 8 * fan_out / 8 is not whole in blocks; got 2", 8, 8, fan_out=2, block_size=4)
    bad("fan_in must be a multiple of 4 in [4, 8] for a whole fan_out to 6 outputs; got 3", 8, 6, fan_in=3, topology="regular")


@pytest.mark.parametrize("block_size,shape", [(1, (12, 6)), ((4, 1), (3, 6, 4, 1)), (4, (3, 2, 4, 4)), ((2, 4), (6, 2, 2, 4))])
def test_shapes_density_and_init(block_size, shape):
    layer = SparseLinear(24, 12, density=0.25 if block_size in (1, (4, 1)) else 1 / 3, block_size=block_size)
    assert layer.weight.shape == shape and layer.index.shape == shape[:2]
    bound = 1 / math.sqrt(layer.fan_in)
    assert layer.weight.abs().max() <= bound and layer.weight.abs().max() > 0.7 * bound
    x = torch.randn(2, 5, 24)
    torch.testing.assert_close(layer(x), layer.to_dense()(x))
    assert (layer.weight_dense() != 0).sum() == layer.weight.numel()


def test_seed_is_reproducible_and_leaves_torch_alone():
    state = torch.get_rng_state()
    one = SparseLinear(64, 32, density=0.25, seed=3).index
    assert not torch.equal(torch.get_rng_state(), state)  # the weights are drawn from torch's generator
    torch.set_rng_state(state)
    nn.init.uniform_(torch.empty(32 * 16)), nn.init.uniform_(torch.empty(32))
    assert torch.equal(SparseLinear(64, 32, density=0.25, seed=3).index, one)
    assert not torch.equal(SparseLinear(64, 32, density=0.25, seed=4).index, one)
    torch.manual_seed(5)
    first = SparseLinear(64, 32, density=0.25).index
    torch.manual_seed(5)
    assert torch.equal(SparseLinear(64, 32, density=0.25).index, first)
    # pinned: the same table on every machine and version
    assert SparseLinear(16, 2, fan_in=4, seed=0).index.tolist() == [[0, 1, 3, 5], [3, 11, 12, 14]]


@pytest.mark.parametrize("block_size", [1, 2, (4, 1), (1, 2)])
@pytest.mark.parametrize("sizes,fan_out", [((24, 16), 4), ((16, 24), 12), ((16, 16), 16)])
def test_regular(sizes, fan_out, block_size):
    layer = SparseLinear(*sizes, fan_out=fan_out, block_size=block_size, seed=1)
    kept = layer.weight_dense() != 0
    assert layer.topology == "regular" and layer.fan_out == fan_out and layer.fan_in == sizes[0] * fan_out // sizes[1]
    assert kept.sum(0).unique().tolist() == [fan_out] and kept.sum(1).unique().tolist() == [layer.fan_in]
    same = SparseLinear(*sizes, fan_in=layer.fan_in, block_size=block_size, topology="regular", seed=1)
    assert torch.equal(same.index, layer.index) and f"fan_in={layer.fan_in}, fan_out={fan_out}, density=" in repr(same)
    x = torch.randn(3, sizes[0])
    torch.testing.assert_close(layer(x), layer.to_dense()(x))
    meta = SparseLinear(*sizes, fan_out=fan_out, block_size=block_size, device="meta")
    assert meta.fan_out == fan_out and repr(meta) == repr(layer) and meta.weight.shape == layer.weight.shape


def test_regular_density_is_the_nearest_that_can_be():
    assert SparseLinear(64, 10, density=0.3, topology="regular").fan_in == 32  # the multiples of 32 give a whole fan-out
    assert SparseLinear(64, 10, density=0.9, topology="regular").fan_in == 64
    assert SparseLinear(64, 1024, density=0.3, topology="regular").fan_in == 19


@torch.no_grad()
@pytest.mark.parametrize("topology", ["spread", "clash_free"])
@pytest.mark.parametrize(("sizes", "block_size"), [((64, 1024), 1), ((32, 16), 1), ((64, 32), (4, 2))])
def test_spread_and_clash_free(topology, sizes, block_size):
    layer = SparseLinear(*sizes, density=0.25, topology=topology, block_size=block_size, seed=1)
    kept = layer.weight_dense() != 0
    assert layer.fan_in == sizes[0] // 4 and kept.sum(1).unique().tolist() == [layer.fan_in]
    assert kept.sum(0).unique().tolist() == [layer.fan_out] and f"fan_out={sizes[1] // 4}" in repr(layer)
    again = SparseLinear(*sizes, fan_out=layer.fan_out, topology=topology, block_size=block_size, seed=1)
    assert torch.equal(again.index, layer.index) and not torch.equal(*layer.draw_topology(2), layer.index)
    inputs, fan = layer.in_features // layer.block_size[1], layer.index.shape[1]
    if topology == "spread":
        assert scatter([layer.index], [inputs]).value == 1
    else:  # an output's inputs lie in as many memories
        assert (layer.index.long() % fan).sort(dim=1).values.equal(torch.arange(fan).expand_as(layer.index))
    x = torch.randn(3, sizes[0])
    torch.testing.assert_close(layer(x), layer.to_dense()(x))
    fresh = SparseLinear(*sizes, density=0.25, topology=topology, block_size=block_size, seed=9)
    fresh.load_state_dict(layer.state_dict())
    assert torch.equal(fresh.index, layer.index)
    dense = nn.Linear(*sizes)
    assert torch.equal(SparseLinear.from_dense(dense, density=0.25, topology=topology, block_size=block_size, seed=1).index, layer.index)


def test_clash_free_fan_in_divides_the_inputs():
    assert SparseLinear(48, 96, density=0.32, topology="clash_free").fan_in == 16  # 15 does not divide 48
    bad("fan_in must be a divisor of 64 with topology 'clash_free'; got 12", 64, 64, fan_in=12, topology="clash_free")


def test_fan_out_is_what_the_table_says():
    layer = SparseLinear(8, 4, fan_out=1)
    assert layer.fan_out == 1
    layer.set_topology(torch.tensor([[0, 1]] * 4, dtype=torch.int32))
    assert layer.fan_out is None and "fan_out=None" in repr(layer)
    layer.reset_parameters()
    assert layer.fan_out == 1
    random = SparseLinear(24, 12, fan_in=5, seed=0)
    assert random.fan_out is None and "fan_out" not in repr(random) and SparseLinear(24, 12, fan_in=24).fan_out == 12
    assert SparseLinear(8, 4, fan_out=1, device="meta").to_empty(device="cpu").fan_out == 1  # nothing read from memory without values


def windows(layer):
    """[out, windows] kept weights in each window of 32 inputs."""
    kept = (layer.weight_dense() != 0).int()
    return torch.stack([window.sum(1) for window in kept.split(32, dim=1)], dim=1)


def kernel(layer, rows):
    """Which kernel explain() names for the forward product, or for a packed layer."""
    return layer.explain(rows).splitlines()[1][15:29].strip()


@torch.no_grad()
def test_balanced():
    layer = SparseLinear(100, 40, fan_in=13, topology="balanced", seed=1)
    assert layer.fan_in == 13 and windows(layer).unique(dim=0).tolist() == [[4, 4, 4, 1]] and "fan_out" not in repr(layer)
    assert SparseLinear(3072, 8, density=0.1, topology="balanced").fan_in == 307  # rounded once, and then exact
    assert torch.equal(SparseLinear(100, 40, fan_in=13, topology="balanced", seed=1).index, layer.index)
    for rows in (1, 3, 8, 100):
        x = torch.randn(rows, 100)
        want = layer.to_dense()(x)
        torch.testing.assert_close(layer(x), want)
        torch.testing.assert_close(layer.pack()(x), want)
        layer.unpack()
    meta = SparseLinear(100, 40, fan_in=13, topology="balanced", device="meta")
    assert meta.weight.shape == layer.weight.shape and repr(meta) == repr(layer)


def test_from_dense_balanced_keeps_the_largest_of_each_window():
    dense = nn.Linear(70, 12)
    layer = SparseLinear.from_dense(dense, fan_in=20, topology="balanced")
    assert windows(layer).unique(dim=0).tolist() == [[9, 9, 2]]
    size, kept = dense.weight.detach().abs(), layer.weight_dense() != 0
    for window, keep in zip(size.split(32, dim=1), kept.split(32, dim=1)):
        assert (window.masked_fill(~keep, 9.0).min(1).values > window.masked_fill(keep, 0.0).max(1).values).all()


@torch.no_grad()
@pytest.mark.skipif("cpu/avx512" not in backends.providers(), reason="the kernel needs AVX-512")
def test_balance_is_found_in_any_table():
    """What serves follows the table, not the name of the topology it was drawn from."""
    balanced, random = (SparseLinear(640, 256, density=0.1, topology=name, seed=1) for name in ("balanced", "random"))
    assert kernel(balanced, 1) == "balanced" and kernel(random, 1) == "gather"
    assert kernel(balanced.pack(), 1) == "balanced" and kernel(random.pack(), 1) == "windows"
    state = copy.deepcopy(balanced.unpack().state_dict())
    balanced.load_state_dict(random.unpack().state_dict())
    random.load_state_dict(state)
    assert kernel(balanced, 1) == "gather" and kernel(random, 1) == "balanced"
    assert kernel(random.pack(), 1) == "balanced"
    x = torch.randn(1, 640)
    torch.testing.assert_close(random(x), random.to_dense()(x))


def test_from_dense_regular_keeps_the_drawn_connections():
    dense = nn.Linear(24, 16)
    layer = SparseLinear.from_dense(dense, fan_out=4, seed=3)
    assert layer.fan_out == 4 and torch.equal(layer.index, SparseLinear(24, 16, fan_out=4, seed=3).index)
    assert torch.equal(layer.weight_dense(), dense.weight * (layer.weight_dense() != 0))


def test_under_a_default_device():
    with torch.device("meta"):
        meta = [SparseLinear(24, 12, fan_in=5), SparseLinear(24, 12, fan_out=2, seed=0), SparseLinear(24, 12, density=0.5, block_size=4)]
        real = [SparseLinear(24, 12, **options, device="cpu") for options in (dict(fan_in=5, seed=0), dict(fan_out=2, seed=0))]
        x = torch.empty(3, 24)
    for layer in meta:
        assert layer.index.is_meta and layer(x).shape == (3, 12) and layer(x).is_meta
    for layer in real:
        options = dict(fan_out=2) if layer.topology == "regular" else dict(fan_in=5)
        assert torch.equal(layer.index, SparseLinear(24, 12, seed=0, **options).index)


def test_state_dict_into_a_fresh_module():
    one, two = SparseLinear(24, 12, density=0.25), SparseLinear(24, 12, density=0.25)
    two.load_state_dict(one.state_dict())
    x = torch.randn(3, 24)
    assert set(one.state_dict()) == {"weight", "bias", "index"}
    assert torch.equal(one(x), two(x)) and torch.equal(one.index, two.index)


def test_state_dict_of_another_fan_in_says_so():
    one, two = SparseLinear(24, 12, density=0.5), SparseLinear(24, 12, density=0.25)
    with pytest.warns(UserWarning, match=r"loading an index \[12, 12\] in place of \[12, 6\]"):
        two.load_state_dict(one.state_dict())
    x = torch.randn(3, 24)
    assert torch.equal(one(x), two(x)) and two.fan_in == 12


def test_dense_checkpoint_loads():
    dense, layer = nn.Linear(24, 12), SparseLinear(24, 12, density=0.25)
    layer.load_state_dict(dense.state_dict())
    mask = layer.weight_dense() != 0
    assert torch.equal(layer.weight_dense(), dense.weight * mask) and torch.equal(layer.bias, dense.bias)
    block = SparseLinear(24, 12, density=0.5, block_size=4)
    block.load_state_dict(dense.state_dict())
    assert torch.equal(block.weight_dense(), dense.weight * (block.weight_dense() != 0))


def test_from_dense_keeps_the_largest():
    dense = nn.Linear(24, 12).double()
    layer = SparseLinear.from_dense(dense, density=0.25)
    for row in range(12):
        kept = set(layer.index[row].tolist())
        assert kept == set(dense.weight[row].abs().topk(6).indices.tolist())
    full = SparseLinear.from_dense(dense, density=1.0, block_size=4)
    x = torch.randn(5, 24, dtype=torch.float64)
    torch.testing.assert_close(full(x), dense(x))
    index = torch.tensor([[0, 3]] * 12, dtype=torch.int32)
    chosen = SparseLinear.from_dense(nn.Linear(24, 12, bias=False), index=index)
    assert torch.equal(chosen.index, index) and chosen.bias is None


def test_set_topology():
    layer = SparseLinear(24, 12, density=0.25)
    x = torch.randn(3, 24)
    layer(x)
    old = layer.weight_dense().detach()
    index = torch.arange(12, dtype=torch.int32).repeat(12, 1)
    layer.set_topology(index)
    assert torch.equal(layer.weight_dense()[:, :12], old[:, :12])
    torch.testing.assert_close(layer(x), layer.to_dense()(x))
    with pytest.raises(ValueError, match=r"sparse_linear: index must be in \[0, 24\); got 24 at \[0, 1\]"):
        layer.set_topology(torch.tensor([[0, 24]] * 12, dtype=torch.int32))
    assert torch.equal(layer.index, index)  # an invalid table does not replace a valid one


def test_index_swapped_or_changed_in_place_is_seen():
    layer, x = SparseLinear(24, 12, fan_in=3), torch.randn(3, 24)
    layer(x)
    other = torch.tensor([[1, 5, 20]] * 12, dtype=torch.int32)
    want = copy.deepcopy(layer)
    want.set_topology(other, layer.weight.detach().clone())
    assert torch.equal(torch.func.functional_call(layer, {"index": other}, (x,)), want(x))
    layer.index.copy_(other)
    assert torch.equal(layer(x), want(x))
    layer.index[0, 2] = 99
    with pytest.raises(ValueError, match=r"sparse_linear: index must be in \[0, 24\); got 99 at \[0, 2\]"):
        layer(x)


def test_a_table_written_with_its_own_values_is_not_planned_again(monkeypatch):
    layer, x = SparseLinear(24, 12, fan_in=3), torch.randn(3, 24)
    want, made = layer(x), []
    monkeypatch.setattr(layer, "_make_plan", lambda: (made.append(1), type(layer)._make_plan(layer))[1])
    for _ in range(5):
        layer.index.copy_(layer.index.clone())  # what DDP's broadcast of buffers does at every step
        assert torch.equal(layer(x), want)
    assert len(made) == 1
    layer.index.copy_(torch.tensor([[1, 5, 20]] * 12, dtype=torch.int32))
    assert not torch.equal(layer(x), want) and len(made) == 2


def test_meta_device_and_to_empty():
    layer = SparseLinear(24, 12, density=0.25, device="meta")
    assert layer(torch.empty(3, 24, device="meta")).shape == (3, 12)
    layer = layer.to_empty(device="cpu")
    with pytest.raises(ValueError, match="index must be set after to_empty"):
        layer(torch.randn(3, 24))
    layer.reset_parameters()
    assert layer(torch.randn(3, 24)).isfinite().all()
    loaded = SparseLinear(24, 12, density=0.25, device="meta").to_empty(device="cpu")
    loaded.load_state_dict(layer.state_dict())
    x = torch.randn(3, 24)
    assert torch.equal(loaded(x), layer(x))
    assigned = SparseLinear(24, 12, density=0.25, device="meta")
    assigned.load_state_dict(layer.state_dict(), assign=True)
    assert torch.equal(assigned(x), layer(x))


def test_plan_is_no_state_and_does_not_travel():
    layer = SparseLinear(24, 12, density=0.25)
    layer(torch.randn(3, 24))
    assert layer._plan is not None and "_plan" not in layer.state_dict()
    assert copy.deepcopy(layer)._plan is None
    assert all(b is not layer._plan for b in layer.buffers())


def test_says_what_it_is():
    layer = SparseLinear(512, 256, density=0.25, block_size=16, bias=False)
    assert repr(layer) == (
        "SparseLinear(in_features=512, out_features=256, bias=False, fan_in=128, density=0.25, block_size=(16, 16), kept=32768)"
    )
    text = layer.explain(rows=64)
    assert "64 rows" in text and "served by" in text


@pytest.mark.parametrize("block_size", [1, 4, (4, 1)])
def test_packed_layer_is_frozen_and_says_so(block_size):
    layer = SparseLinear(24, 12, density=0.5, block_size=block_size).eval()
    x = torch.randn(5, 24)
    want = layer(x)
    assert layer.pack() is layer and repr(layer).endswith(", packed)")
    with torch.no_grad():
        torch.testing.assert_close(layer(x), want)
        layer.weight.mul_(2)
        torch.testing.assert_close(layer(x), want)  # frozen: the weight at the time of packing
    assert "bytes beside the weight" in layer.explain()
    with pytest.raises(ValueError, match=r"SparseLinear: layer must be unpacked to be trained \(call unpack\(\)\)"):
        layer(x.clone().requires_grad_())
    with pytest.raises(ValueError, match="must be unpacked to be trained"):
        layer.train()(x)
    layer.unpack()
    torch.testing.assert_close(layer(x), layer.to_dense()(x))
    assert layer._packed is None and "packed" not in repr(layer)


def test_packed_layer_compiles_exports_moves_and_loads():
    layer = SparseLinear(24, 12, density=0.5).eval().requires_grad_(False)
    other = SparseLinear(24, 12, density=0.5).eval()
    x = torch.randn(5, 24)
    layer.pack()
    compiled = torch.compile(layer, backend="aot_eager", fullgraph=True)
    assert torch.equal(compiled(x), layer(x))
    program = torch.export.export(layer, (x,))
    assert any("sparse_linear_packed" in str(node.target) for node in program.graph.nodes)
    assert torch.equal(program.module()(x), layer(x))
    half = layer.to(torch.bfloat16)
    assert half(x.bfloat16()).dtype == torch.bfloat16
    layer.float().load_state_dict(other.state_dict())  # a new topology is packed anew
    with torch.no_grad():
        torch.testing.assert_close(layer(x), other(x))


def test_a_layer_made_in_inference_mode_plans_once_and_sees_writes(monkeypatch):
    with torch.inference_mode():
        layer = SparseLinear(64, 32, fan_in=8, seed=0)
        x = torch.randn(3, 64)
        layer(x)
        plans = []
        monkeypatch.setattr(layer, "_make_plan", lambda make=layer._make_plan: plans.append(1) or make())
        for _ in range(3):
            torch.testing.assert_close(layer(x), layer.to_dense()(x))
        assert not plans
        layer.index.copy_(SparseLinear(64, 32, fan_in=8, seed=1).index)  # no counter says so
        torch.testing.assert_close(layer(x), layer.to_dense()(x))
        assert len(plans) == 1


@pytest.mark.skipif(backends.quick_call is None, reason="_quick_call was not built against this torch")
def test_what_a_kernel_says_is_not_swallowed_and_nothing_is_computed_twice(monkeypatch):
    module = sys.modules["sparsekern.nn.sparse_linear"]
    layer, x = SparseLinear(64, 32, fan_in=8, seed=0), torch.randn(3, 64)

    def fail(*args):
        raise RuntimeError("no memory left")

    monkeypatch.setattr(module, "_quick", fail)
    monkeypatch.setattr(module, "sparse_linear", lambda *args: pytest.fail("computed again"))
    with pytest.raises(RuntimeError, match="no memory left"):
        layer(x)
    with pytest.raises(ValueError, match=r"SparseLinear: x must be \[\.\.\., 64\]; got \[3, 63\]"):  # where it is the caller's fault
        layer(x[:, 1:])
    with pytest.raises(ValueError, match=r"sparse_linear: weight must be torch\.float64 like x; got torch\.float32"):
        layer(x.double())
