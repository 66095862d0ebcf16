"""Runs of layers become one call where nobody else needs what is between them; sparse convolutions dense where that is faster."""

from __future__ import annotations

import copy
import pickle
import sys

import pytest
import torch
from torch import nn

from sparsekern import GroupedConv2d, SparseLinear, StochasticConv2d
from sparsekern.models import create_model
from sparsekern.ops import backends
from sparsekern.transform import chain, densify, optimize
from sparsekern.transform.densify import dense_where_faster
from sparsekern.transform.graph import record, tidy, traced
from sparsekern.transform.pool import swap_pools
from sparsekern.transform.sequence import Sequence2d, join_sequences

pytestmark = pytest.mark.skipif(not backends.has_kernels("cpu"), reason="built without kernels")


class Net(nn.Module):
    """A run with a ReLU that no layer computes; one that is read twice; one whose input is written before it ends."""

    def __init__(self, how: str = "plain"):
        super().__init__()
        self.how = how
        conv = lambda i, o, k, g=1: GroupedConv2d(i, o, k, padding=k // 2, groups=g, activation="relu")  # noqa: E731
        self.a, self.b, self.c = conv(8, 32, 3, 4), StochasticConv2d(32, 16, 3, padding=1, density=0.3, seed=0), conv(16, 24, 1)
        self.pool, self.d, self.relu = nn.MaxPool2d(3, 2, ceil_mode=True), GroupedConv2d(24, 8, 3, padding=1), nn.ReLU()

    def forward(self, x):
        x = x * 2
        y = torch.relu(self.b(self.a(x)))
        if self.how == "written":
            x.neg_()
        y = self.c(y)
        z = self.pool(y)
        out = self.relu(self.d(z))
        return out + z.mean() if self.how == "read" else out


class Doubled(StochasticConv2d):
    def forward(self, x):
        return 2 * super().forward(x)


def packed_graph(model: nn.Module, x: torch.Tensor):
    graph = traced(model)
    record(graph, (x,))
    swap_pools(graph)
    for module in graph.modules():
        if isinstance(module, GroupedConv2d):
            module.pack((2, module.in_channels, 12, 10))
    return graph


CASES = {"plain": [("a", "b", "c", "pool", "d")], "read": [("a", "b", "c", "pool")], "written": [("b", "c", "pool", "d")]}


@pytest.mark.parametrize("how", CASES)
@pytest.mark.parametrize("images", [0, 2])
@torch.no_grad()
def test_runs_of_layers(how, images):
    model, x = Net(how).eval(), torch.randn(3, 8, 12, 10).to(memory_format=torch.channels_last)
    graph = packed_graph(model, x)
    assert join_sequences(graph, images) == CASES[how]
    tidy(graph)
    for batch in (x, x[:1], x.contiguous()):
        torch.testing.assert_close(graph(batch), model(batch), rtol=1e-4, atol=1e-5)


@torch.no_grad()
def test_what_is_left_out():
    model, x = Net().eval(), torch.randn(2, 8, 12, 10)
    cut = {"b": Doubled(32, 16, 3, padding=1, density=0.3), "c": GroupedConv2d(16, 24, 1, padding_mode="reflect")}
    for (name, layer), rest in zip(cut.items(), ([("c", "pool", "d")], [])):
        setattr(model, name, layer)
        graph = packed_graph(model.eval(), x)
        assert join_sequences(graph, 0) == rest
    graph = traced(Net().eval())  # natural weights
    record(graph, (x,))
    assert join_sequences(graph, 0) == []


def test_a_sequence_follows_its_layers_and_refuses_gradients():
    model, x = Net().eval().requires_grad_(False), torch.randn(2, 8, 12, 10)
    graph = packed_graph(model, x)
    join_sequences(graph, 0)
    tidy(graph)
    copy = pickle.loads(pickle.dumps(next(m for m in graph.modules() if isinstance(m, Sequence2d))))
    torch.testing.assert_close(copy(2 * x), model(x), rtol=1e-4, atol=1e-5)
    with torch.no_grad():
        copy[1].weight.mul_(2)
        assert not torch.allclose(copy(2 * x), model(x))
    with pytest.raises(ValueError, match="GroupedConv2d: layer must be unpacked to be trained"):
        copy(x.requires_grad_())


class Everything(nn.Module):
    """Packed layers alone, in a chain, in a sequence and in a concatenation."""

    def __init__(self):
        super().__init__()
        self.a, self.b, self.c = nn.Conv2d(4, 8, 3, padding=1), nn.Conv2d(8, 8, 1), nn.Conv2d(8, 8, 3)
        self.sparse, self.pool = StochasticConv2d(8, 8, 3, padding=1, density=0.5), nn.MaxPool2d(2)
        self.one, self.two, self.head = nn.Conv2d(8, 8, 1), nn.Conv2d(8, 4, 3, padding=1), SparseLinear(12, 4, density=0.5)

    def forward(self, x):
        x = torch.relu(self.b(torch.relu(self.a(x))) + 1)
        x = torch.relu(self.c(self.pool(torch.relu(self.sparse(x)))))
        return self.head(torch.cat([self.one(x), self.two(x)], 1).mean((2, 3)))


@torch.no_grad()
def test_an_optimized_model_changes_its_dtype(monkeypatch):
    monkeypatch.setattr(chain, "ratio", lambda slow, fast: 2.0)
    way = "channels_last, packed, 2 images at a time"
    monkeypatch.setattr(sys.modules[optimize.__module__], "race", lambda calls, *_: {name: float(name != way) for name in calls})
    model, x = Everything().eval(), torch.randn(4, 4, 12, 12)
    fast = optimize(model, x, rounds=1)
    assert fast.report.sequences and fast.report.joined and fast.report.chains
    for dtype, close in ((torch.bfloat16, 2e-2), (torch.float64, 1e-6), (torch.float32, 1e-5)):
        one, other = copy.deepcopy(fast).to(dtype), copy.deepcopy(model).to(dtype)
        assert {p.dtype for p in one.parameters()} == {dtype}
        for again in (dtype, torch.float32):
            one, other = one.to(again), other.to(again)
            torch.testing.assert_close(one(x.to(again)), other(x.to(again)), rtol=close, atol=close)


@pytest.mark.parametrize("times", [2.0, 1.0])
@torch.no_grad()
def test_sparse_convolutions_that_are_faster_dense(times, monkeypatch):
    monkeypatch.setattr(densify, "ratio", lambda slow, fast: (slow(), fast()) and times)
    model, x = create_model("sis_svhn_3").eval(), torch.randn(2, 3, 16, 16)
    graph = traced(model)
    record(graph, (x,))
    swapped = dense_where_faster(graph, {"conv1a": (2, 3, 16, 16), "conv3a": (2, 48, 4, 4)})
    assert swapped == (["conv1a", "conv3a"] if times > 1 else [])
    tidy(graph)
    torch.testing.assert_close(graph(x), model(x), rtol=1e-4, atol=1e-5)


@torch.no_grad()
def test_a_network_is_one_sequence(monkeypatch):
    way = "channels_last, packed, 2 images at a time"
    monkeypatch.setattr(sys.modules[optimize.__module__], "race", lambda calls, *_: {name: float(name != way) for name in calls})
    for module in (chain, densify):
        monkeypatch.setattr(module, "ratio", lambda slow, fast: (slow(), fast()) and 1.0)  # none is faster fused or dense
    model, x = create_model("sis_svhn_3").eval(), torch.randn(5, 3, 16, 16)
    fast = optimize(model, x, rounds=1)
    assert fast.report.chosen == way and not fast.report.left.keys() & fast.report.times_us
    wide = backends.serves("grouped_conv2d") in ("cpu/avx512", "cpu/amx")  # elsewhere torch serves channels_last images
    if wide:
        (names,) = fast.report.sequences
        assert {"conv2a", "pool1", "pool3"} <= set(names) and "1 sequence in one call" in str(fast.report)
        assert set(fast.report.packed) >= {"conv1b", "conv1c", "conv3c"}
    torch.testing.assert_close(fast(x), model(x), rtol=1e-4, atol=1e-5)
