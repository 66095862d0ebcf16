"""Topologies that change: the right connections move, nothing else does, and the work stays small."""

import math
from itertools import pairwise

import pytest
import torch
from torch import nn

from sparsekern.nn import SparseLinear, StochasticConv2d
from sparsekern.train import DrawnAnew, MovingConnections, build_model, get_recipe, train
from sparsekern.train.connections import Connections
from sparsekern.train.dynamic import moved_table, parse_dynamic
from sparsekern.train.parallel import Processes


def step(layer, optimiser, x):
    optimiser.zero_grad()
    layer(x).square().sum().backward()
    optimiser.step()


@pytest.mark.parametrize("block_size", [1, (4, 2)])
@pytest.mark.parametrize("optimiser", [torch.optim.SGD, torch.optim.Adam])
def test_moved_connections_take_their_state_along(optimiser, block_size):
    layer = SparseLinear(16, 8, density=0.5, block_size=block_size, seed=0)
    optimiser = optimiser(layer.parameters(), lr=0.1, **({"momentum": 0.9} if optimiser is torch.optim.SGD else {}))
    step(layer, optimiser, torch.randn(5, 16))
    held = Connections(layer, optimiser)
    before = {key: held.dense(value.detach()).clone() for key, value in held.entries().items()}
    assert len(before) == (2 if isinstance(optimiser, torch.optim.SGD) else 3)
    was = held.dense(torch.ones_like(layer.weight)).bool()
    parameter = layer.weight
    held.move(layer.draw_topology(7))
    assert layer.weight is parameter
    now = held.dense(torch.ones_like(layer.weight)).bool()
    assert (was & now).any() and (was & ~now).any()
    for key, value in held.entries().items():
        after = held.dense(value.detach())
        assert torch.equal(after[was & now], before[key][was & now]), key
        assert (after[~was] == 0).all(), key
    step(layer, optimiser, torch.randn(5, 16))


def test_a_store_keeps_what_is_not_connected():
    conv = StochasticConv2d(4, 6, 3, density=0.3, seed=0)
    optimiser = torch.optim.SGD(conv.parameters(), lr=0.1)
    held, store = Connections(conv, optimiser), {"weight": torch.full((6, 4, 3, 3), 9.0)}
    first = conv.weight_dense().detach().clone()
    tables = conv.indptr.clone(), conv.index.clone()
    held.move(conv.draw_topology(5), store)
    new = conv.weight_dense().detach()
    assert ((new == 9) | (new == first) | (new == 0)).all() and (new == 9).any()
    held.move(tables, store)
    assert torch.equal(conv.weight_dense(), first)  # what went came back


def test_cut_are_the_weakest_and_new_the_steepest():
    torch.manual_seed(0)
    weight, index = torch.randn(6, 4), torch.stack([torch.randperm(10)[:4].sort().values for _ in range(6)]).int()
    gradient = torch.randn(6, 10)
    table = moved_table(weight, index, gradient, cut=7)
    assert table.shape == index.shape and (table.diff(dim=1) > 0).all()
    weakest = set(weight.abs().flatten().argsort()[:7].tolist())
    for row in range(6):
        kept = {int(i) for place, i in enumerate(index[row]) if row * 4 + place not in weakest}
        others = sorted(set(range(10)) - kept, key=lambda i: -float(gradient[row, i].abs()))
        assert set(table[row].tolist()) == kept | set(others[: 4 - len(kept)])
    assert torch.equal(moved_table(weight, index, gradient, cut=0), index)


def test_moving_connections_read_the_dense_gradient():
    """What decides is the gradient of the dense weight, by autograd through an ``nn.Linear``."""
    layer = SparseLinear(12, 6, fan_in=3, seed=1)
    net, x = nn.Sequential(layer, nn.Tanh(), nn.Linear(6, 2)), torch.randn(9, 12)
    moving = MovingConnections(every=1, alpha=0.5, until=1.0)
    moving.begin(net, torch.optim.SGD(net.parameters(), lr=0.1), Processes(), seed=0)
    moving.before_forward(1, 10)
    net(x).square().sum().backward()
    dense = nn.Sequential(layer.to_dense(), *net[1:])
    dense(x).square().sum().backward()
    assert torch.allclose(moving._gradients["0"], dense[0].weight.grad, atol=1e-5)
    before, cut = layer.index.clone(), round(0.25 * (1 + math.cos(math.pi * 0.1)) * 18)
    want = moved_table(layer.weight, before, dense[0].weight.grad, cut)
    assert moving.instead_of_step(1, 10) and torch.equal(layer.index, want) and not torch.equal(want, before)
    assert not moving._due(0, 10) and not MovingConnections(every=2, until=0.5)._due(6, 10)


@pytest.mark.parametrize(("dynamic", "least"), [(MovingConnections(every=20), 0.85), (DrawnAnew(every=45), 0.6)], ids=["moving", "drawn"])
def test_nets_learn_while_connections_change(dynamic, least):
    recipe = get_recipe("digits/density").with_(epochs=4, lr=3e-3, batch=32, options={"fan_out": (32, 5)})
    start, end = build_model(recipe, 0), train(recipe, dynamic=dynamic)
    for layer, was in ((end.model.junction1, start.junction1), (end.model.junction2, start.junction2)):
        assert layer.weight.shape == was.weight.shape and not torch.equal(layer.index, was.index)
    assert end.best > least


@pytest.mark.parametrize("every", ["epoch", 2])
def test_masks_are_drawn_when_told_and_only_they_are_computed(every):
    """Each batch of an epoch, or each two of all, meet one mask; every product is that of the kept connections."""
    recipe, seen = get_recipe("digits/density").with_(epochs=2, batch=500, options={"fan_out": (16, 5)}), []

    class Watched(DrawnAnew):
        def before_forward(self, step, steps):
            super().before_forward(step, steps)
            layer = self.layers["junction1"]
            seen.append(layer.index.clone())
            assert layer.weight.numel() == layer.index.numel() == 64 * 16

    train(recipe, dynamic=Watched(every))  # 3 steps an epoch
    changes = [not torch.equal(a, b) for a, b in pairwise(seen)]
    assert changes == ([False, False, True, False, False] if every == "epoch" else [False, True, False, True, False])


def test_bad_arguments():
    for text in ("growing", "drawn:x", "moving:-1", "moving:epoch", "drawn:"):
        with pytest.raises(ValueError, match=r"train: dynamic must be moving\[:STEPS\], drawn\[:STEPS\] or drawn:epoch; got"):
            parse_dynamic(text)
    assert parse_dynamic("moving").every == 100 and parse_dynamic("drawn:epoch").every == "epoch"
    with pytest.raises(ValueError, match="every must be at least 1"):
        parse_dynamic("drawn:0")
    net = nn.Sequential(nn.Linear(2, 2))
    for dynamic in (MovingConnections(), DrawnAnew()):
        with pytest.raises(ValueError, match="model must have a SparseLinear"):
            dynamic.begin(net, torch.optim.SGD(net.parameters()), Processes(), 0)
    ragged = StochasticConv2d(4, 4, 3, density=0.5, count="bernoulli", seed=0)
    with pytest.raises(ValueError, match=r"DrawnAnew: count of 0 must be 'exact', for every mask to be of one size; got 'bernoulli'"):
        DrawnAnew().begin(nn.Sequential(ragged), torch.optim.SGD(ragged.parameters()), Processes(), 0)
