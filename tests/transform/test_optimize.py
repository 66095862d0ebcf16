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
from sparsekern.transform.fold import fold_batch_norm
from sparsekern.transform.fuse import fuse_add_relu, swap_convolutions
from sparsekern.transform.graph import tidy, traced


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
    takes_shape = "input_shape" in inspect.signature(card.build).parameters
    model = settle(create_model(name, **({"input_shape": card.reduced_shape} if takes_shape else {})))
    x = torch.randn(2, *card.reduced_shape, generator=torch.Generator().manual_seed(1))
    before = {k: v.clone() for k, v in model.state_dict().items()}
    fast = optimize(model, x, rounds=1)
    for batch in (1, 2, 3):
        x = torch.randn(batch, *card.reduced_shape)
        torch.testing.assert_close(fast(x), model(x), rtol=1e-3, atol=1e-4)
    assert all(torch.equal(v, before[k]) for k, v in model.state_dict().items())
    assert not fast.training and not any(p.requires_grad for p in fast.parameters())
    assert set(fast.report.times_us) == {"model", "optimized", "channels_last", "channels_last, packed"}
    if name.startswith("resnet50"):
        assert len(fast.report.summed) == 16  # one per block
    norms = sum(isinstance(m, nn.BatchNorm2d) for m in model.modules())
    behind_pooling = name == "simplenet_310k"
    assert len(fast.report.folded) == norms - behind_pooling


def folded(model: nn.Module, x: torch.Tensor) -> list[str]:
    """What was folded, after checking in double precision that the graph still computes the same."""
    model = settle(model.double())
    graph = traced(model)
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
