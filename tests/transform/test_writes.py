"""What a model writes in place, everybody who reads that memory sees, in the graph as in the model."""

from __future__ import annotations

import pickle
import sys

import pytest
import torch
from torch import nn

from sparsekern import GroupedConv2d
from sparsekern.transform import optimize
from sparsekern.transform.chain import find_chains
from sparsekern.transform.depth_first import depth_first
from sparsekern.transform.fuse import fuse_add_relu, swap_convolutions
from sparsekern.transform.graph import record, tidy, traced


class Says(nn.Module):
    """A model of these layers, as ``say(self, x)`` says."""

    def __init__(self, say, **layers: nn.Module):
        super().__init__()
        self.say = say
        for name, layer in layers.items():
            setattr(self, name, layer)
        self.eval()

    def forward(self, x):
        return self.say(self, x)


@pytest.fixture
def take(monkeypatch):
    """``optimize`` returns the way of this name."""

    def choose(name):
        times = lambda calls, *_: {way: float(way != name) for way in calls}  # noqa: E731
        monkeypatch.setattr(sys.modules["sparsekern.transform.optimize"], "race", times)

    return choose


def alias(self, x):
    h = kept = self.a(x)
    h += torch.relu(self.b(x) - 3)
    return h + kept


def view(self, x):
    h = self.a(x)
    h.view(-1)[1:3] *= 2
    h.T[0] -= 1
    return h


def item(self, x):
    h = self.a(x)
    h[:, 0] = self.b(x)[:, 1]
    return h


def number(self, x):
    n = before = x.size(0)
    n += 1
    return self.a(x) * n + before


def every(self, x):
    h = kept = self.a(x)
    h -= 1
    h /= 2
    h **= 2
    h //= 0.5
    h %= 7
    whole = mask = x > 0
    mask &= h > 1
    mask |= h > 5
    mask ^= h > 6
    return h + kept + whole


@pytest.mark.parametrize("say", [alias, view, item, number, every])
@torch.no_grad()
def test_writes_are_seen_by_who_reads_the_memory(say, take):
    model, x = Says(say, a=nn.Linear(4, 4), b=nn.Linear(4, 4)), torch.randn(2, 4)
    take("optimized")
    fast = optimize(model, x)
    assert fast.report.chosen == "optimized" and "graph" not in fast.report.left
    x = 30 * torch.randn(8, 4)
    for way in (fast, pickle.loads(pickle.dumps(traced(model)))):
        torch.testing.assert_close(way(x.clone()), model(x.clone()))


def into_a_slice(self, x):
    both = self.short(x)
    half = both[:, :4]
    half += self.conv(x)
    return torch.relu(half).sum() + both


def into_the_input(self, x):
    x += self.conv(x)
    return torch.relu(x)


@pytest.mark.parametrize("say", [into_a_slice, into_the_input])
@torch.no_grad()
def test_a_sum_that_others_see_is_left(say):
    model, x = Says(say, conv=nn.Conv2d(4, 4, 1), short=nn.Conv2d(4, 8, 1)), torch.randn(2, 4, 5, 5)
    graph = traced(model)
    record(graph, (x,))
    swap_convolutions(graph)
    assert fuse_add_relu(graph) == []
    tidy(graph)
    one, other = x.clone(), x.clone()
    torch.testing.assert_close(graph(one), model(other))
    torch.testing.assert_close(one, other)


def between(self, x):
    x = self.short(x)
    y = self.a(x)
    x.view(-1)[0] = 1
    return self.b(y) + x


def test_a_write_to_a_view_keeps_convolutions_apart():
    layers = {name: GroupedConv2d(4, 4, 1) for name in ("short", "a", "b")}
    names = [[node.target for node in chain] for chain in find_chains(traced(Says(between, **layers)))]
    assert names == []


def shortcut(self, x):
    y = self.conv(x)
    y += self.short(x)
    return self.relu(y).mean((1, 2, 3))


def behind(self, x):
    y = self.conv(x)
    view = y.contiguous()
    mean = view.mean((1, 2, 3))
    return mean + self.relu(y).mean((1, 2, 3))


@pytest.mark.parametrize("say, splits", [(shortcut, True), (behind, False)])
@torch.no_grad()
def test_writes_in_the_part_that_goes_depth_first(say, splits):
    model = Says(say, conv=nn.Conv2d(4, 4, 1), short=nn.Conv2d(4, 4, 1), relu=nn.ReLU(inplace=True))
    x = torch.randn(4, 4, 5, 5)
    split = depth_first(traced(model), (x,), 2)
    assert (split is not None) == splits
    if split is not None:
        torch.testing.assert_close(split(x), model(x))


# ---- tensors that forward makes


def returned(self, x):
    return self.a(x), torch.arange(4.0), torch.zeros(3)[1:]


def filled(self, x):
    return torch.zeros(4).copy_(self.a(x).sum(0))


def filled_in_parts(self, x):
    out = torch.zeros(2, 4)
    out[:, :2] = self.a(x)[:, :2]
    return out


def filled_and_read(self, x):
    out = torch.zeros(4)
    out.copy_(self.a(x).sum(0))
    return torch.relu(out * 2 - 1e6)  # which the tracer computes by itself, of zeros


def written_again(self, x):
    out = torch.zeros(4)
    y = self.a(x) + out
    out += 1
    return y


@pytest.mark.parametrize("say", [returned, filled, filled_in_parts, filled_and_read, written_again])
@torch.no_grad()
def test_tensors_that_forward_makes_are_made_at_every_call(say, take):
    model = Says(say, a=nn.Linear(3, 4))
    take("optimized")
    fast = optimize(model, torch.randn(2, 3))
    assert ("forward writes into a tensor that it makes" in fast.report.left.get("graph", "")) == (say is not returned)
    for _ in range(2):
        x = torch.randn(2, 3)
        found, expected = fast(x), model(x)
        torch.testing.assert_close(found, expected)
        for tensor in found if isinstance(found, tuple) else (found,):
            tensor.fill_(9)
