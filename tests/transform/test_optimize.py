"""An optimized copy computes what the model computes, says what was done, and leaves the model alone."""

from __future__ import annotations

import copy
import inspect

import pytest
import torch
from torch import nn

from sparsekern import GroupedConv2d, SparseLinear, StochasticConv2d
from sparsekern.models import create_model, model_card
from sparsekern.transform import optimize
from sparsekern.transform.chain import RootChain, find_chains, fuse_chains
from sparsekern.transform.depth_first import DepthFirst, depth_first
from sparsekern.transform.fold import fold_batch_norm
from sparsekern.transform.fuse import fuse_add_relu, swap_convolutions
from sparsekern.transform.graph import record, tidy, traced
from sparsekern.transform.join import join_convolutions
from sparsekern.transform.normalise import swap_local_response_norms
from sparsekern.transform.pool import swap_pools
from sparsekern.transform.sequence import Sequence2d


def settle(model: nn.Module) -> nn.Module:
    """Statistics as after training: a batch-norm that does nothing would hide a wrong fold."""
    generator = torch.Generator().manual_seed(0)
    for module in model.modules():
        if isinstance(module, (nn.BatchNorm1d, nn.BatchNorm2d)) and module.track_running_stats:
            for tensor, (low, high) in ((module.running_mean, (-0.5, 0.5)), (module.running_var, (0.5, 2.0))):
                tensor.uniform_(low, high, generator=generator)
            if module.affine:
                nn.init.uniform_(module.weight, -1.5, 1.5, generator=generator)
                nn.init.uniform_(module.bias, -0.5, 0.5, generator=generator)
    return model.eval()


NETWORKS = ["nin_root_8", "resnet50_root_16", "googlenet_root_4", "sis_cifar10_2", "simplenet_310k"]


@pytest.mark.parametrize("name", NETWORKS)
@torch.no_grad()
def test_a_network_computes_the_same(name):
    card = model_card(name)
    small = {"input_shape": card.reduced_shape, "blocks": (1, 2, 1, 1)}  # every kind of block is there
    takes = inspect.signature(card.build).parameters
    model = settle(create_model(name, **{key: value for key, value in small.items() if key in takes}))
    x = torch.randn(2, *card.reduced_shape, generator=torch.Generator().manual_seed(1))
    before = {k: v.clone() for k, v in model.state_dict().items()}
    fast = optimize(model, x, rounds=1)
    for batch in (1, 2, 3):
        x = torch.randn(batch, *card.reduced_shape)
        torch.testing.assert_close(fast(x), model(x), rtol=1e-3, atol=1e-4)
    assert all(torch.equal(v, before[k]) for k, v in model.state_dict().items())
    assert not fast.training and not any(p.requires_grad for p in fast.parameters())
    assert set(fast.report.times_us) == {"model", "optimized", "channels_last", "channels_last, packed"}
    pools = [
        n for n, m in model.named_modules()
        if not n.startswith("aux") and (isinstance(m, (nn.MaxPool2d, nn.AvgPool2d)) or getattr(m, "output_size", 0) in (1, (1, 1)))
    ]  # fmt: skip
    assert len(fast.report.pooled) == len(pools)
    if name.startswith("resnet50"):
        assert len(fast.report.summed) == sum(small["blocks"])  # one per block
    if name.startswith("googlenet"):
        assert len(fast.report.joined) == 9  # one per module of branches
    norms = sum(isinstance(m, nn.BatchNorm2d) for m in model.modules())
    behind_pooling = name == "simplenet_310k"
    assert len(fast.report.folded) == norms - behind_pooling


def folded(model: nn.Module, x: torch.Tensor) -> list[str]:
    """What was folded, after checking in double precision that the graph still computes the same."""
    model = settle(model.double())
    graph = traced(model)
    record(graph, (x.double(),))
    names = fold_batch_norm(graph)
    graph.recompile()
    with torch.no_grad():
        torch.testing.assert_close(graph(x.double()), model(x.double()), rtol=1e-12, atol=1e-12)
    return names


LAYERS = {
    "conv": nn.Conv2d(8, 16, 3, bias=False),
    "grouped": GroupedConv2d(8, 16, 3, groups=4),
    "unequal": GroupedConv2d(8, 16, 3, group_sizes=[(2, 4), (6, 12)]),
    "spatial": StochasticConv2d(8, 16, 3, density=0.4, seed=1),
    "shared": StochasticConv2d(8, 16, 3, density=0.4, granularity="synapse", share=4, seed=1),
    "in_groups": StochasticConv2d(8, 16, 3, density=0.4, groups=2, seed=1, bias=False),
}


@pytest.mark.parametrize("name", LAYERS)
def test_batch_norm_goes_into_the_layer(name):
    model = nn.Sequential(copy.deepcopy(LAYERS[name]), nn.BatchNorm2d(16))
    assert folded(model, torch.randn(2, 8, 7, 7)) == ([] if name == "unequal" else ["1"])


@pytest.mark.parametrize(
    "layer", [nn.Linear(32, 16), SparseLinear(32, 16, density=0.3), SparseLinear(32, 16, density=0.5, block_size=4, bias=False)]
)
def test_batch_norm_of_rows(layer):
    assert folded(nn.Sequential(copy.deepcopy(layer), nn.BatchNorm1d(16)), torch.randn(3, 32)) == ["1"]
    assert folded(nn.Sequential(copy.deepcopy(layer), nn.BatchNorm1d(16, affine=False)), torch.randn(3, 32)) == ["1"]


class Shared(nn.Module):
    def __init__(self, how: str):
        super().__init__()
        self.how = how
        self.conv, self.norm = nn.Conv2d(4, 4, 1), nn.BatchNorm2d(4)

    def forward(self, x):
        if self.how == "two calls":
            return self.conv(self.norm(self.conv(x)))
        y = self.conv(x)
        return self.norm(y) + y


@pytest.mark.parametrize("how", ["two calls", "two readers"])
def test_a_layer_that_others_need_as_it_is_is_left(how):
    assert folded(Shared(how), torch.randn(1, 4, 3, 3)) == []


def test_a_batch_norm_without_statistics_is_left():
    model = nn.Sequential(nn.Conv2d(4, 4, 1), nn.BatchNorm2d(4, track_running_stats=False))
    assert folded(model, torch.randn(2, 4, 3, 3)) == []


class Doubled(nn.Linear):
    """More than its weight says, in words that no tracer follows."""

    def forward(self, x):
        return super().forward(x) * (2 if len(x) else 1)


def test_a_class_derived_from_torchs_is_a_leaf_and_left():
    assert folded(nn.Sequential(Doubled(8, 4), nn.BatchNorm1d(4)), torch.randn(3, 8)) == []


class Residual(nn.Module):
    """The ways in which networks write the end of a block."""

    def __init__(self, how: str):
        super().__init__()
        self.how = how
        self.conv, self.short, self.relu = nn.Conv2d(4, 4, 3, padding=1), nn.Conv2d(4, 4, 1), nn.ReLU(inplace=True)

    def forward(self, x):
        if self.how == "late shortcut":
            y = self.conv(x)
            return self.relu(y + self.short(x))
        if self.how == "in place":
            s = self.short(x)
            y = self.conv(x)
            y += s
            return torch.relu_(y)
        if self.how == "into the input":
            return torch.relu(x.clone().add_(self.conv(x)))
        if self.how == "shortcut read again":
            s = self.short(x).sigmoid()
            s += self.conv(x)
            return torch.relu(s) + s
        if self.how == "input written":
            x = x.clone()
            y = self.conv(x)
            s = self.relu(x)
            return torch.relu(y + s)
        return torch.relu(torch.add(self.conv(x), x, alpha=2))


@pytest.mark.parametrize("how, fuses", [("late shortcut", 1), ("in place", 1), ("into the input", 1), ("shortcut read again", 0),
                                        ("input written", 0), ("scaled", 0)])  # fmt: skip
@torch.no_grad()
def test_shortcuts(how, fuses):
    model, x = Residual(how).double().eval(), torch.randn(2, 4, 6, 6, dtype=torch.float64)
    graph = traced(model)
    record(graph, (x,))
    swap_convolutions(graph)
    assert len(fuse_add_relu(graph)) == fuses
    tidy(graph)
    torch.testing.assert_close(graph(x), model(x), rtol=1e-12, atol=1e-12)


class Untraceable(nn.Module):
    def __init__(self):
        super().__init__()
        self.layer = SparseLinear(64, 64, density=0.1)

    def forward(self, x):
        return self.layer(x) if x.sum() > 0 else self.layer(-x)


def test_a_model_without_a_graph_gets_packed_layers():
    fast = optimize(Untraceable(), torch.randn(1, 64), rounds=1)
    assert fast.report.packed == ["layer"] and "cannot be traced" in fast.report.left["graph"]
    assert set(fast.report.times_us) == {"model", "packed"}


class Noisy(nn.Module):
    def forward(self, x):
        return x + torch.rand_like(x)


def test_a_random_model_is_refused():
    with pytest.raises(ValueError, match="optimize: model must compute the same twice; got outputs that differ by"):
        optimize(Noisy(), torch.randn(1, 64))


def test_layout_of_inputs_and_outputs_stays():
    model = nn.Sequential(nn.Conv2d(8, 16, 3, padding=1), nn.BatchNorm2d(16), nn.ReLU())
    x = torch.randn(1, 8, 12, 12)
    assert optimize(settle(model), x, rounds=1)(x).is_contiguous()


def test_the_report_can_be_read():
    model = settle(nn.Sequential(nn.Conv2d(8, 16, 3, padding=1), nn.BatchNorm2d(16), nn.ReLU()))
    text = str(optimize(model, torch.randn(1, 8, 12, 12), rounds=1).report)
    assert text.startswith("optimize: 1 batch-norm folded, 1 convolution swapped, 1 ReLU fused") and "<- chosen" in text


class Pooled(nn.Sequential):
    def __init__(self):
        super().__init__(
            nn.MaxPool2d(3, 2, ceil_mode=True), nn.AvgPool2d(3, 1, padding=1, count_include_pad=False), nn.MaxPool2d(2, dilation=2),
            nn.AvgPool2d(2, divisor_override=3), nn.AdaptiveAvgPool2d(3), nn.AdaptiveAvgPool2d(1),
        )  # fmt: skip


def test_poolings_that_are_ours():
    model, x = Pooled().eval(), torch.randn(2, 16, 23, 20)
    graph = traced(model)
    assert swap_pools(graph) == ["0", "1", "5"]
    tidy(graph)
    torch.testing.assert_close(graph(x), model(x))


@pytest.mark.parametrize("size", [1, 4, 5])
def test_local_response_norms(size):
    model = nn.Sequential(nn.LocalResponseNorm(size, alpha=0.3, k=1.5), nn.LocalResponseNorm(size, beta=0.5)).double()
    x = torch.randn(2, 7, 5, 6, dtype=torch.float64).to(memory_format=torch.channels_last)
    graph = traced(model)
    record(graph, (x,))
    assert swap_local_response_norms(graph) == ["0"]
    tidy(graph)
    torch.testing.assert_close(graph(x), model(x), rtol=1e-13, atol=1e-13)
    assert graph.get_submodule("0")(x).is_contiguous(memory_format=torch.channels_last)


class Chains(nn.Module):
    """Two chains, one of which ends with a shortcut; a convolution that others read; one whose activation is another."""

    def __init__(self):
        super().__init__()
        conv = lambda i, o, k, act="relu", g=1: GroupedConv2d(i, o, k, padding=k // 2, groups=g, activation=act)  # noqa: E731
        self.a1, self.a2, self.a3, self.a4 = conv(8, 32, 3, g=4), conv(32, 24, 1), conv(24, 8, 1, "none"), conv(8, 16, 1)
        self.b1, self.b2 = conv(16, 32, 5, g=2), conv(32, 16, 1, "none")
        self.c1, self.c2, self.c3 = conv(16, 16, 3), conv(16, 16, 1), conv(16, 16, 3)

    def forward(self, x):
        x = self.a4(self.a3(self.a2(self.a1(x))))
        x = torch.relu(self.b2(self.b1(x)) + x)
        y = self.c1(x)
        return self.c3(self.c2(y)) + y


@pytest.mark.parametrize("packed", [False, True])
@torch.no_grad()
def test_chains(packed):
    model, x = Chains().eval(), torch.randn(2, 8, 20, 14).to(memory_format=torch.channels_last)
    graph = traced(model)
    record(graph, (x,))
    fuse_add_relu(graph)
    if packed:
        for conv in graph.children():
            conv.pack()
    assert [[node.target for node in chain] for chain in find_chains(graph)] == [["a1", "a2", "a3"], ["b1", "b2"]]
    left = {}
    fuse_chains(graph, {"a1": (2, 8, 20, 14), "b1": (2, 16, 20, 14)}, left)
    tidy(graph)
    kept = {m.names: m.gain for m in graph.modules() if isinstance(m, RootChain)}
    assert set(kept) | {tuple(names.split(" + ")) for names in left} == {("a1", "a2", "a3"), ("b1", "b2")}
    assert all("one by one is faster" in why for why in left.values()) and all(gain > 1 for gain in kept.values())
    torch.testing.assert_close(graph(x), model(x), rtol=1e-4, atol=1e-4)


class Branches(nn.Module):
    """A module of branches; one that somebody else reads too; one whose input is written in between."""

    def __init__(self):
        super().__init__()
        conv = lambda i, o, k, act="relu", g=1: GroupedConv2d(i, o, k, padding=k // 2, groups=g, activation=act)  # noqa: E731
        self.a1, self.a2, self.a3 = conv(8, 16, 1), conv(8, 24, 3, g=4), conv(8, 8, 5)
        self.b1, self.b2 = conv(48, 8, 1), conv(48, 8, 1)
        self.c1, self.c2 = conv(16, 8, 1, "none"), conv(16, 8, 1, "none")
        self.a1.bias = None

    def forward(self, x):
        x = torch.cat([self.a1(x), self.a2(x), self.a3(x)], dim=1)
        y = self.b1(x)
        x = torch.cat([y, self.b2(x)], 1) + y.mean()
        z = self.c1(x)
        x.neg_()
        return torch.cat((z, self.c2(x)), 1)


@torch.no_grad()
def test_concatenations_are_written_in_place():
    model, x = Branches().eval(), torch.randn(2, 8, 9, 14).to(memory_format=torch.channels_last)
    graph = traced(model)
    assert join_convolutions(graph) == []  # natural weights
    for conv in graph.children():
        conv.pack()
    assert join_convolutions(graph) == [("a1", "a2", "a3")]
    tidy(graph)
    torch.testing.assert_close(graph(x), model(x), rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(graph(x.contiguous()), model(x), rtol=1e-4, atol=1e-4)


class Mixed(nn.Module):
    """Images, then rows that see each other."""

    def __init__(self):
        super().__init__()
        self.conv, self.pool, self.short = nn.Conv2d(3, 8, 3, padding=1), nn.MaxPool2d(2), nn.Conv2d(3, 8, 1)
        self.head, self.scale = nn.Linear(16, 4), nn.Parameter(torch.ones(4))

    def forward(self, x):
        y = torch.relu(self.conv(x)) + self.short(x)
        y = torch.cat([self.pool(y), self.pool(y)], 1).mean((2, 3))
        return (self.head(y) * self.scale).softmax(0)


@torch.no_grad()
def test_depth_first_takes_the_part_that_sees_images_one_by_one():
    model, x = Mixed().eval(), torch.randn(7, 3, 8, 8)
    split = depth_first(traced(model), (x,), 2)
    part = split.depth_first.part
    assert {node.target for node in part.graph.nodes if node.op == "call_module"} == {"conv", "pool", "short"}
    for count in (1, 2, 5, 7):
        torch.testing.assert_close(split(x[:count]), model(x[:count]))
    assert depth_first(traced(nn.Sequential(nn.Flatten(), nn.Linear(192, 4))), (x,), 2) is None


class Writes(nn.Module):
    """A map that is changed in place, in the part or outside of it, and read on the other side."""

    def __init__(self, inside: bool):
        super().__init__()
        self.inside, self.conv, self.relu = inside, nn.Conv2d(3, 3, 1), nn.ReLU(inplace=True)

    def forward(self, x):
        y = self.conv(x)
        if self.inside:
            mean = y.mean()
            return self.relu(y) + mean
        y.neg_()
        return self.conv(y).sum((1, 2, 3))


@pytest.mark.parametrize("inside", [False, True])
def test_a_map_that_is_written_on_the_other_side_stays_in_one_piece(inside):
    assert depth_first(traced(Writes(inside)), (torch.randn(4, 3, 5, 5),), 2) is None


@torch.no_grad()
def test_a_batch_may_go_depth_first():
    model = create_model("nin_root_16").eval()
    x = torch.randn(5, 3, 16, 16)
    fast = optimize(model, x, rounds=1)
    assert "channels_last, packed, 2 images at a time" in fast.report.times_us
    few = [m for m in fast.modules() if isinstance(m, DepthFirst) or (isinstance(m, Sequence2d) and m.images == 2)]
    assert fast.report.chosen.endswith("images at a time") == bool(few)
    torch.testing.assert_close(fast(x), model(x), rtol=1e-4, atol=1e-4)


def test_optimize_is_part_of_the_face():
    import sparsekern

    assert sparsekern.optimize is optimize and "optimize" in sparsekern.__all__
    with pytest.raises(AttributeError, match="module 'sparsekern' has no attribute 'optimise'"):
        sparsekern.optimise()
