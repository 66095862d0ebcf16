"""What networks may hold beside the usual: left alone where it is not understood, never a wrong result, never an error."""

from __future__ import annotations

import copy
import math
import pickle
import sys
import time

import pytest
import torch
from torch import fx, nn
from torch.nn.utils import prune

from sparsekern import GroupedConv2d, SparseLinear
from sparsekern.ops import backends
from sparsekern.transform import OptimizeReport, optimize
from sparsekern.transform.agree import agree, difference
from sparsekern.transform.chain import RootChain, find_chains
from sparsekern.transform.fold import fold_batch_norm
from sparsekern.transform.fuse import drop_identities, fuse_add_relu, fuse_relu, swap_convolutions
from sparsekern.transform.graph import record, tidy, traced
from sparsekern.transform.join import Joined, join_convolutions
from sparsekern.transform.normalise import swap_local_response_norms
from sparsekern.transform.race import race
from sparsekern.transform.trial import other_batch
from sparsekern.transform.ways import Contiguous, _pack, _packed

needs_kernels = pytest.mark.skipif(not backends.has_kernels("cpu"), reason="built without kernels")


class Said(nn.Module):
    """A model of these layers, as ``forward(self, x)`` says."""

    def __init__(self, forward, **layers: nn.Module | nn.Parameter):
        super().__init__()
        self.say = forward
        for name, layer in layers.items():
            setattr(self, name, layer)
        for norm in (m for m in self.modules() if isinstance(m, nn.modules.batchnorm._BatchNorm)):
            norm.running_mean.uniform_(-1, 1)
            norm.running_var.uniform_(0.5, 2)
        self.eval()

    def forward(self, x):
        return self.say(self, x)


def graph_of(model: nn.Module, x: torch.Tensor):
    graph = traced(model)
    record(graph, (x,))
    return graph


def same(graph, model: nn.Module, x: torch.Tensor) -> bool:
    tidy(graph)
    with torch.no_grad():
        torch.testing.assert_close(graph(x), model(x), rtol=1e-4, atol=1e-5)
    return True


# ---- optimize raises for no model that runs


def beside(self, x):
    return self.conv(x).flatten(1) @ self.mixing[0, 0, 0]


UNUSUAL = {
    "view": (Said(lambda self, x: self.conv(x).view(x.size(0), -1), conv=nn.Conv2d(3, 4, 3)), (2, 3, 6, 7)),
    "five_dimensions": (Said(beside, conv=nn.Conv2d(3, 1, 3), mixing=nn.Parameter(torch.randn(1, 1, 1, 20, 5))), (2, 3, 6, 7)),
    "rows_normalised": (
        Said(lambda self, x: self.norm(self.conv(x).flatten(2)), conv=nn.Conv2d(3, 4, 3), norm=nn.LocalResponseNorm(3)),
        (2, 3, 6, 7),
    ),
    "one_image": (Said(lambda self, x: torch.relu(self.conv(x)), conv=nn.Conv2d(3, 4, 3)), (3, 6, 7)),
}


@pytest.mark.parametrize("name", UNUSUAL)
@torch.no_grad()
def test_every_way_is_there(name):
    model, shape = UNUSUAL[name]
    x = torch.randn(shape)
    fast = optimize(model, x, rounds=1)
    torch.testing.assert_close(fast(x), model(x), rtol=1e-4, atol=1e-5)
    assert set(fast.report.times_us) == {"model", "optimized", "channels_last", "channels_last, packed"}
    assert set(fast.report.left) == ({"a second batch"} if name == "one_image" else set())


@torch.no_grad()
def test_the_report_says_that_no_second_batch_was_tried():
    fixed = Said(lambda self, x: self.conv(x).view(4, -1), conv=nn.Conv2d(3, 4, 3))  # 2 of 4 images would fit: into rows half as long
    assert not optimize(fixed, torch.randn(4, 3, 6, 7), rounds=1).report.left
    fixed = Said(lambda self, x: self.conv(x).view(4, 80), conv=nn.Conv2d(3, 4, 3))
    report = optimize(fixed, torch.randn(4, 3, 6, 7), rounds=1).report
    told = "the model takes none, so only the example is compared: RuntimeError: shape '[4, 80]' is invalid"
    assert report.left["a second batch"].startswith(told) and f"a second batch: {told}" in str(report)
    alone = optimize(Said(lambda self, x: self.fc(x), fc=nn.Linear(8, 4)), torch.randn(8), rounds=1).report
    assert alone.left == {"a second batch": "no input has one: only the example is compared"}


PASSES = ["traced", "fold_batch_norm", "swap_pools", "swap_local_response_norms", "join_convolutions", "depth_first"]


@pytest.mark.parametrize("broken", PASSES)
def test_what_fails_is_left(broken, monkeypatch):
    def fails(*args):
        raise RuntimeError  # without a word

    monkeypatch.setattr(sys.modules["sparsekern.transform.ways"], broken, fails)
    model, x = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.ReLU()).eval(), torch.randn(4, 3, 5, 5)
    fast = optimize(model, x, rounds=1)
    assert any("(RuntimeError: )" in why for why in fast.report.left.values())
    assert bool(fast.report.folded) == bool(fast.report.swapped) == ("optimized" in fast.report.times_us)
    torch.testing.assert_close(fast(x), model(x), rtol=1e-4, atol=1e-5)


def mean_shortcut(self, x):
    return torch.relu(self.conv(x) + self.short(x).mean(0, keepdim=True))


@pytest.mark.parametrize("images", [1, 2, 4])
@torch.no_grad()
def test_a_mean_over_the_batch_is_no_image(images, monkeypatch):
    model, x = Said(mean_shortcut, conv=nn.Conv2d(4, 4, 3, padding=1), short=nn.Conv2d(4, 4, 1)), torch.randn(4, 4, 6, 6)
    fast = optimize(model, x[:images], rounds=1)
    assert not fast.report.summed and not fast.report.left and len(fast.report.times_us) >= 4
    for way in (fast, _optimized_blindly(monkeypatch, model, x[:images])):
        for some in (x, x[:1], x[1:3]):
            torch.testing.assert_close(way(some), model(some), rtol=1e-4, atol=1e-5)


def _optimized_blindly(monkeypatch, model, x):
    """Shapes seen on the example alone: with one image the wrong sum is made, and found."""
    monkeypatch.setattr(sys.modules["sparsekern.transform.ways"], "record", lambda graph, recorded: record(graph, (x,)))
    fast = optimize(model, x, rounds=1)
    if len(x) == 1:
        assert fast.report.chosen == "model" and "for another batch" in fast.report.left["optimized"]
    return fast


def test_another_batch():
    image, scale = torch.arange(12.0).reshape(1, 3, 2, 2), torch.ones(5)
    other, rest = other_batch((image, {"scale": scale, "by": 2}))
    assert torch.equal(other[0], image[0]) and torch.equal(other[1], image[0].flip(-1)) and rest == {"scale": scale, "by": 2}
    assert [len(other_batch((torch.zeros(n, 7), torch.zeros(n)))[1]) for n in (1, 2, 3, 64)] == [2, 3, 2, 2]
    assert other_batch((torch.zeros(3), 2)) is None and other_batch((torch.zeros(0, 3),)) is None


def test_only_long_calls_that_may_win_are_timed_again(monkeypatch):
    monkeypatch.setattr(sys.modules[race.__module__], "clock", lambda: "cpu")  # other tests run beside this one
    calls, said, now_ns = dict.fromkeys(("slow", "fast", "as fast"), 0), [], [0]
    monkeypatch.setattr(time, "thread_time_ns", lambda: now_ns[0])

    def lasting(name, ms):
        def call():
            calls[name] += 1
            now_ns[0] += int(ms * 1e6)

        return call

    times_us = race({"slow": lasting("slow", 60), "fast": lasting("fast", 25), "as fast": lasting("as fast", 26)}, 3, said.append)
    assert calls == {"slow": 1, "fast": 4, "as fast": 4} and times_us == {"slow": 60e3, "fast": 25e3, "as fast": 26e3}
    assert said[0] == "timing slow" and said[-1] == "timing the 2 fastest, 6 of 6"


class ContiguousOnly(nn.Module):
    """A layer that takes plain images only."""

    def forward(self, x):
        if not x.is_contiguous():
            raise ValueError("images must be contiguous")
        return x + 1


def test_a_way_that_does_not_run_is_left():
    layer = ContiguousOnly()
    layer.__class__.__module__ = "torch.nn.own"  # a leaf
    fast = optimize(nn.Sequential(nn.Conv2d(3, 4, 3), layer), torch.randn(2, 3, 6, 6), rounds=1)
    assert "images must be contiguous" in fast.report.left["channels_last"] and "optimized" in fast.report.times_us


class Seen(nn.Module):
    """Layers inside a layer, and the model around them."""

    def __init__(self):
        super().__init__()
        self.block = nn.Sequential(nn.Conv2d(3, 4, 1), nn.BatchNorm2d(4), nn.ReLU())
        self.conv, self.norm = nn.Conv2d(4, 4, 1), nn.BatchNorm2d(4)

    def forward(self, x):
        return self.norm(self.conv(self.block(x))) + self.block[0](x)


@pytest.mark.parametrize("where", ["block", "root"])
@pytest.mark.parametrize("when", ["before", "after"])
@torch.no_grad()
def test_hooks_of_what_holds_layers_are_kept(where, when, monkeypatch):
    monkeypatch.setattr(sys.modules[optimize.__module__], "race", lambda calls, *_: {name: -float(i) for i, name in enumerate(calls)})
    model, seen = Seen().eval(), []
    module = model if where == "root" else model.block

    def hook(module, args, *out):
        seen.append(type(args[0]))
        return 2 * out[0] if out else (2 * args[0],)

    module.register_forward_pre_hook(hook) if when == "before" else module.register_forward_hook(hook)
    fast = optimize(model, torch.randn(2, 3, 5, 5), rounds=1)
    assert set(seen) == {torch.Tensor} and fast.report.folded == (["norm"] if where == "block" else [])
    assert ("hooks would not see" in fast.report.left.get("graph", "")) == (where == "root")
    seen.clear()
    x = torch.randn(3, 3, 6, 6)
    torch.testing.assert_close(fast(x), model(x), rtol=1e-4, atol=1e-5)
    assert len(seen) == 2


def count_up(self, x):
    x += 1
    return self.embedding(x)


def add_a_channel(self, x):
    return self.conv(x.unsqueeze_(1))


WRITING = {
    "values": (Said(count_up, embedding=nn.Embedding(12, 3)), torch.arange(5).repeat(2, 1)),
    "shape": (Said(add_a_channel, conv=nn.Conv2d(1, 3, 3)), torch.randn(2, 5, 5)),
}


@pytest.mark.parametrize("what", WRITING)
def test_models_that_write_into_their_inputs_are_timed_on_fresh_ones(what):
    model, x = WRITING[what]
    before = x.clone()
    fast = optimize(model, x, rounds=1)
    assert torch.equal(x, before) and "optimized" in fast.report.times_us
    torch.testing.assert_close(fast(x.clone()), model(x.clone()))


def test_what_runs_before_a_timed_call_is_not_timed(monkeypatch):
    monkeypatch.setattr(sys.modules[race.__module__], "clock", lambda: "cpu")
    ready = []

    def spin():
        end = time.thread_time() + 0.05
        while time.thread_time() < end:
            pass
        ready.append(1)

    times_us = race({"a": ready.pop, "b": ready.pop}, 3, lambda doing: None, before_each=spin)
    assert not ready and max(times_us.values()) < 25e3


@torch.no_grad()
def test_a_view_of_what_comes_in_another_layout(monkeypatch):
    """An image of one channel is in both layouts: torch's convolution gives NCHW, ours channels_last."""
    monkeypatch.setattr(sys.modules[optimize.__module__], "race", lambda calls, *_: {name: float(name != "optimized") for name in calls})
    forward = lambda self, x: self.b(torch.relu(self.a(x))).view(x.size(0), -1)  # noqa: E731
    model = Said(forward, a=nn.Conv2d(8, 1, 3, padding_mode="reflect"), b=nn.Conv2d(1, 8, (3, 1), padding=(1, 0), bias=False))
    x = torch.randn(2, 8, 5, 6)
    fast = optimize(model, x, rounds=1)
    for images in (x, x.contiguous(memory_format=torch.channels_last)):
        torch.testing.assert_close(fast(images), model(images), rtol=1e-4, atol=1e-5)


def test_the_example_stays_as_it_is():
    x = torch.randn(2, 3, 6, 6)
    before = x.clone()
    optimize(nn.Sequential(nn.ReLU(inplace=True), nn.Conv2d(3, 4, 3)), x, rounds=1)
    assert torch.equal(x, before)


# ---- shortcuts


@pytest.mark.parametrize("channels, parameter", [(1, False), (4, True), (4, False)])
def test_a_shortcut_is_fused_where_it_is_one(channels, parameter):
    layers = {"conv": GroupedConv2d(3, 4, 1), "short": nn.Conv2d(3, channels, 1), "offset": nn.Parameter(torch.randn(1, 4, 5, 5))}
    model = Said(lambda self, x: torch.relu(self.conv(x) + (self.offset if parameter else self.short(x))), **layers)
    x = torch.randn(1, 3, 5, 5)
    graph = graph_of(model, x)
    assert fuse_add_relu(graph) == ([] if parameter or channels == 1 else ["conv"])
    assert same(graph, model, torch.randn(3, 3, 5, 5))


def test_a_shortcut_of_another_dtype_is_left():
    model = Said(lambda self, x: torch.relu(self.conv(x) + x.double()), conv=GroupedConv2d(3, 3, 1))
    graph = graph_of(model, torch.randn(1, 3, 5, 5))
    assert fuse_add_relu(graph) == [] and same(graph, model, torch.randn(2, 3, 5, 5))


def test_a_map_that_is_its_own_shortcut_is_no_chain():
    model = Said(lambda self, x: self.b(self.a(x)), a=GroupedConv2d(4, 4, 3, padding=1), b=GroupedConv2d(4, 4, 1))
    graph = traced(model)
    second = next(node for node in graph.graph.nodes if node.target == "b")
    assert len(find_chains(graph)) == 1
    second.args = (second.args[0], second.args[0], "relu")
    assert find_chains(graph) == []


# ---- frozen


def test_nothing_that_is_returned_asks_for_gradients(monkeypatch):
    model, x = nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU()), torch.randn(1, 3, 6, 6)
    graph = graph_of(model.eval().requires_grad_(False), x)
    assert swap_convolutions(graph) == ["0"] and not any(p.requires_grad for p in graph.parameters())
    fast = optimize(model, x, rounds=1)
    assert not any(p.requires_grad for p in fast.parameters()) and not fast(x).requires_grad


# ---- names


class Reports(nn.Module):
    """Something of the model's own is called report."""

    def __init__(self, layer: bool):
        super().__init__()
        if layer:
            self.report = nn.Linear(4, 4)
        self.fc = nn.Linear(4, 4)

    def forward(self, x):
        return self.fc(x if isinstance(self.report, str) else self.report(x))


class Told(Reports):
    def report(self, x):
        return x + 1


@pytest.mark.parametrize("way", ["model", "optimized"])
@torch.no_grad()
def test_a_report_of_the_models_own_stays(way, monkeypatch):
    monkeypatch.setattr(sys.modules[optimize.__module__], "race", lambda calls, *_: {name: float(name != way) for name in calls})
    x = torch.randn(2, 4)
    for model in (Told(False).eval(), Reports(True).eval()):
        fast = optimize(model, x)
        for made in (fast, copy.deepcopy(fast), pickle.loads(pickle.dumps(fast))):
            assert made.optimize_report.chosen == way
            torch.testing.assert_close(made(x), model(x))
            assert way != "model" or not isinstance(made.report, OptimizeReport)
    again = optimize(optimize(nn.Linear(4, 4), x), x)
    assert again.report.chosen == way and not hasattr(again, "optimize_report")
    assert copy.deepcopy(again).report == again.report


def test_random_numbers_are_drawn_as_if_nothing_was_timed():
    model = nn.Sequential(nn.Conv2d(8, 16, 3), nn.ReLU(), nn.Conv2d(16, 8, 1))
    torch.manual_seed(3)
    expected = torch.rand(4)
    torch.manual_seed(3)
    optimize(model, torch.ones(1, 8, 12, 12), rounds=1)
    assert torch.equal(torch.rand(4), expected)


@needs_kernels
def test_two_concatenations_of_one_parent():
    conv = lambda: GroupedConv2d(4, 8, 1, activation="relu").pack()  # noqa: E731
    forward = lambda self, x: torch.cat([self.a(x), self.b(x)], 1) - torch.cat([self.c(x), self.d(x)], 1)  # noqa: E731
    model = Said(forward, a=conv(), b=conv(), c=conv(), d=conv())
    x = torch.randn(2, 4, 5, 5).to(memory_format=torch.channels_last)
    graph = graph_of(model, x)
    assert join_convolutions(graph) == [("a", "b"), ("c", "d")] and same(graph, model, x)


@needs_kernels
def test_a_map_joined_with_itself_is_left():
    model = Said(lambda self, x: torch.cat([y := self.a(x), y], 1), a=GroupedConv2d(4, 8, 1).pack())
    graph = graph_of(model, torch.randn(2, 4, 5, 5))
    assert join_convolutions(graph) == [] and same(graph, model, torch.randn(2, 4, 5, 5))


# ---- batch-norms


@pytest.mark.parametrize("layer", [nn.Linear(6, 5), SparseLinear(6, 5, density=0.5)])
@pytest.mark.parametrize("norm, shape", [(nn.BatchNorm1d(5), (2, 5, 6)), (nn.BatchNorm2d(5), (2, 5, 5, 6))])
def test_a_norm_of_another_axis_is_left(layer, norm, shape):
    model, x = Said(lambda self, x: self.norm(self.layer(x)), layer=layer, norm=norm), torch.randn(shape)
    graph = graph_of(model, x)
    assert fold_batch_norm(graph) == [] and same(graph, model, x)


def test_a_norm_that_went_refuses_what_it_would_take_by_another_axis():
    model = nn.Sequential(nn.Linear(6, 5), nn.BatchNorm1d(5), nn.ReLU()).eval()
    nn.init.uniform_(model[1].running_mean)
    x = torch.randn(2, 5, 6)
    assert model(x).shape == (2, 5, 5)
    graph = graph_of(model, torch.randn(3, 6))
    assert fold_batch_norm(graph) == ["1"] and same(graph, model, x[0])
    for net in (graph, fx.symbolic_trace(graph), torch.compile(graph, backend="eager")):
        torch.testing.assert_close(net(x[0]), model(x[0]))
        with pytest.raises((ValueError, torch._dynamo.exc.TorchDynamoException), match=r"optimize: what 1 reads must have 2 dimensions"):
            net(x)


@needs_kernels
@pytest.mark.parametrize("kind", ["conv", "linear"])
def test_a_packed_layer_that_takes_a_norm_forgets_its_pack(kind):
    layer, norm = (GroupedConv2d(3, 4, 3), nn.BatchNorm2d(4)) if kind == "conv" else (SparseLinear(5, 4, density=0.5), nn.BatchNorm1d(4))
    model = Said(lambda self, x: self.norm(self.layer(x)), layer=layer.pack(), norm=norm)
    x = torch.randn((2, 3, 5, 5) if kind == "conv" else (2, 5))
    graph = graph_of(model, x)
    assert fold_batch_norm(graph) == ["norm"] and same(graph, model, x)


@pytest.mark.parametrize("where", ["conv", "norm", "relu", "same"])
@pytest.mark.parametrize("when", ["before", "after"])
def test_hooks_are_heard(where, when):
    forward = lambda self, x: self.same(self.relu(self.norm(self.conv(x))))  # noqa: E731
    model = Said(forward, conv=nn.Conv2d(3, 4, 1), norm=nn.BatchNorm2d(4), relu=nn.ReLU(), same=nn.Identity())
    module = getattr(model, where)
    if when == "before":
        module.register_forward_pre_hook(lambda m, args: (args[0] * 2,))
    else:
        module.register_forward_hook(lambda m, args, out: out * 2)
    x = torch.randn(2, 3, 5, 5)
    graph = graph_of(model, x)
    drop_identities(graph), fold_batch_norm(graph), swap_convolutions(graph), fuse_relu(graph)
    assert same(graph, model, x)


# ---- what is the same


def test_what_differs():
    one = torch.tensor([1.0, math.nan, math.inf, -math.inf])
    assert difference([one], [one.clone()]) == 0.0 and agree([one], [one.clone()])
    for i, value in enumerate((math.nan, 1.0, -math.inf, 1.0)):
        other = one.clone()
        other[i] = value
        assert difference([one], [other]) == math.inf and difference([other], [one]) == math.inf
    for a, b in (
        (torch.arange(3), torch.arange(3) + 1),
        (torch.ones(2, dtype=torch.bool), torch.zeros(2, dtype=torch.bool)),
        (torch.ones(2), torch.ones(3)),
        (torch.ones(2), torch.ones(1, 2)),
        (torch.ones(2), torch.ones(2).double()),
        (torch.full((2,), math.nan), torch.ones(2)),
    ):
        assert difference([a], [b]) == math.inf and not agree([a], [b])
    assert not agree([one], [one, one])
    assert difference([torch.tensor([2.0 + 2.0j])], [torch.tensor([2.0 - 2.0j])]) > 1
    assert agree([torch.zeros(0)], [torch.zeros(0)])


def test_each_output_by_its_own_dtype():
    half, double = torch.ones(2, dtype=torch.bfloat16), torch.ones(2, dtype=torch.float64)
    assert agree([half, double], [half * 1.01, double])
    assert not agree([half, double], [half, double * 1.0001])


# ---- shapes of the packs


class Scaled(nn.Module):
    """Images and a value for each."""

    def __init__(self):
        super().__init__()
        self.conv = nn.Conv2d(8, 8, 3, padding=1)

    def forward(self, x, scale):
        return self.conv(x).mean((2, 3)) * scale


@needs_kernels
@torch.no_grad()
def test_a_few_images_at_a_time_beside_other_inputs():
    model, x, scale = Scaled().eval(), torch.randn(4, 8, 9, 9), torch.randn(4, 1)
    graph = traced(model)
    swap_convolutions(graph)
    tidy(graph)
    assert _packed(graph, (x, scale), OptimizeReport(), images=2).conv._packed_for == (2, 8, 9, 9)
    fast = optimize(model, x, scale, rounds=1)
    assert "channels_last, packed, 2 images at a time" in fast.report.times_us
    torch.testing.assert_close(fast(x, scale), model(x, scale), rtol=1e-4, atol=1e-5)


# ---- keywords


def by_keyword(self, x):
    y = torch.relu(input=self.norm(input=self.conv(input=x)))
    y = nn.functional.relu(input=self.ours(input=self.same(input=y)), inplace=True)
    return torch.flatten(self.pool(input=torch.cat(tensors=[y, y], dim=1)), start_dim=1)


@torch.no_grad()
def test_calls_with_keywords():
    model = Said(
        by_keyword, conv=nn.Conv2d(3, 4, 3), norm=nn.BatchNorm2d(4), ours=GroupedConv2d(4, 4, 3), same=nn.Identity(), pool=nn.MaxPool2d(2)
    )
    x = torch.randn(4, 3, 9, 9)
    fast = optimize(model, x, rounds=1)
    assert fast.report.folded == ["norm"] and fast.report.fused == ["conv", "ours"] and not fast.report.left
    torch.testing.assert_close(fast(x), model(x), rtol=1e-4, atol=1e-5)


def test_the_result_takes_keywords():
    graph = traced(Said(lambda self, x: self.conv(x), conv=nn.Conv2d(3, 4, 3)))
    assert Contiguous(graph)(x=torch.randn(1, 3, 5, 5)).shape == (1, 4, 3, 3)


# ---- what packed calls refuse


@needs_kernels
@pytest.mark.parametrize("kind", [Joined, RootChain])
def test_packed_calls_refuse_inputs_that_need_a_gradient(kind):
    layers = [GroupedConv2d(4, 4, 1, activation="relu").pack() for _ in range(2)]
    made, x = kind(("a", "b"), layers), torch.randn(1, 4, 5, 5)
    call = (lambda x: made(x, x)) if kind is Joined else made
    made.eval()
    assert not call(x).requires_grad  # neither of weights nor of biases
    sentence = r"^GroupedConv2d: layer must be unpacked to be trained \(call unpack\(\)\); got a packed one where a gradient is needed$"
    with pytest.raises(ValueError, match=sentence):
        call(x.clone().requires_grad_())
    with torch.no_grad():
        call(x.clone().requires_grad_())
    made.train()
    with pytest.raises(ValueError, match=sentence):
        call(x)


def test_nothing_is_packed_without_kernels(monkeypatch):
    monkeypatch.setattr(backends, "has_kernels", lambda device: False)
    assert _pack(nn.Sequential(SparseLinear(8, 4, density=0.5))) == []


def test_rows_are_normalised_by_torch():
    model = nn.Sequential(nn.LocalResponseNorm(3))
    assert swap_local_response_norms(graph_of(model, torch.randn(2, 3, 7))) == []
    assert swap_local_response_norms(graph_of(model, torch.randn(2, 3, 7, 5))) == ["0"]


@pytest.mark.filterwarnings("ignore:.*weight_norm.*:FutureWarning")
@pytest.mark.parametrize(
    "computed", [lambda layer: prune.l1_unstructured(layer, "weight", 0.5), nn.utils.weight_norm, nn.utils.spectral_norm]
)
def test_weights_that_a_hook_computes(computed):
    model = nn.Sequential(computed(nn.Conv2d(8, 16, 3)), nn.ReLU(), nn.Flatten(), computed(nn.Linear(64, 8))).eval()
    x = torch.randn(2, 8, 4, 4)
    fast = optimize(model, x, rounds=1)
    torch.testing.assert_close(fast(2 * x), model(2 * x), rtol=1e-4, atol=1e-4)
