"""The per-layer profile: right FLOPs and parameters, work in its own layer, and a model that stays as it was."""

import json

import pytest
import torch
from torch import nn

from sparsekern.profile import profile, report, save


class Residual(nn.Module):
    """A container with work of its own: an addition and a matrix product that belong to no child."""

    def __init__(self):
        super().__init__()
        self.conv = nn.Conv2d(4, 4, 3, padding=1)
        self.norm = nn.BatchNorm2d(4)
        self.relu = nn.ReLU(inplace=True)

    def forward(self, x):
        return (x + self.relu(self.norm(self.conv(x)))).flatten(2).matmul(torch.ones(64, 2))


def model():
    torch.manual_seed(0)
    return nn.Sequential(nn.Conv2d(3, 4, 3, padding=1), Residual(), nn.Flatten(), nn.Dropout(0.5), nn.Linear(8, 5))


def test_flops_and_parameters_by_hand():
    found = profile(model(), torch.randn(2, 3, 8, 8), rounds=1)
    flops = {layer.name: layer.flops for layer in found.layers}
    assert flops["0"] == 2 * 2 * 4 * 3 * 9 * 64
    assert flops["1.conv"] == 2 * 2 * 4 * 4 * 9 * 64
    assert flops["1"] == 2 * 2 * 4 * 64 * 2  # the matrix product, without the convolution inside
    assert flops["4"] == 2 * 2 * 8 * 5
    assert found.flops == sum(flops.values())
    assert sum(layer.params for layer in found.layers) == found.params == sum(p.numel() for p in model().parameters())
    shapes = {layer.name: (layer.in_shape, layer.out_shape) for layer in found.layers}
    assert shapes["0"] == ((2, 3, 8, 8), (2, 4, 8, 8))
    assert all(layer.backward_ms is None for layer in found.layers)


def test_backward_belongs_to_the_layer_that_made_it():
    found = profile(model(), torch.randn(2, 3, 8, 8), backward=True, rounds=1)
    layers = {layer.name: layer for layer in found.layers}
    forward = 2 * 2 * 4 * 3 * 9 * 64
    assert layers["0"].flops == 2 * forward  # the input wants no gradient
    assert layers["1.conv"].flops == 3 * 2 * 2 * 4 * 4 * 9 * 64
    assert layers["4"].flops == 3 * 2 * 2 * 8 * 5
    assert all(layer.backward_ms >= 0 for layer in found.layers)
    assert sum(layer.backward_ms for layer in found.layers) <= found.backward_ms * 1.5


def test_a_layer_called_twice_counts_twice():
    class Twice(nn.Module):
        def __init__(self):
            super().__init__()
            self.linear = nn.Linear(4, 4)

        def forward(self, x):
            return self.linear(self.linear(x))

    found = profile(Twice(), torch.randn(3, 4), rounds=1)
    layer = next(layer for layer in found.layers if layer.name == "linear")
    assert (layer.calls, layer.flops, layer.params) == (2, 2 * 2 * 3 * 16, 20)


def test_parameters_that_two_modules_hold_count_once():
    class Chain(nn.Sequential):
        def forward(self, x):
            return x @ self[0].weight.t()  # computes with a child that it does not call

    class Net(nn.Module):
        def __init__(self):
            super().__init__()
            self.first, self.tied = nn.Linear(4, 4), nn.Linear(4, 4)
            self.chain = Chain(self.first)
            self.last = nn.Linear(4, 4)
            self.last.weight = self.tied.weight

        def forward(self, x):
            return self.last(self.tied(self.chain(x)))

    found = profile(Net(), torch.randn(3, 4), rounds=1, twins=False, memory=False)
    by_name = {layer.name: layer for layer in found.layers}
    assert by_name["chain"].params == 4 * 4 + 4 and by_name["tied"].params + by_name["last"].params == 4 * 4 + 2 * 4
    assert sum(layer.params for layer in found.layers) == found.params
    assert by_name["tied"].bytes == by_name["last"].bytes  # each reads the weight


@pytest.mark.parametrize("backward", [False, True])
def test_the_model_is_left_as_it_was(backward):
    net = model().eval()
    net[1].norm.train()
    net[0].weight.grad = torch.ones_like(net[0].weight)
    state = {name: value.clone() for name, value in net.state_dict().items()}
    modes = [module.training for module in net.modules()]
    random_state = torch.get_rng_state()
    profile(net, torch.randn(2, 3, 8, 8, generator=torch.Generator()), backward=backward, rounds=2)
    assert all(torch.equal(value, state[name]) for name, value in net.state_dict().items())
    assert [module.training for module in net.modules()] == modes
    assert torch.equal(torch.get_rng_state(), random_state)
    assert torch.equal(net[0].weight.grad, torch.ones_like(net[0].weight))
    assert net[4].weight.grad is None
    assert not any(m._forward_hooks or m._forward_pre_hooks for m in net.modules())


def test_the_model_is_left_as_it_was_after_an_error():
    net = model()
    with pytest.raises(RuntimeError):
        profile(net, torch.randn(2, 4, 8, 8))
    assert net.training
    assert not any(m._forward_hooks or m._forward_pre_hooks for m in net.modules())


def test_several_arguments_and_outputs():
    class Pair(nn.Module):
        def __init__(self):
            super().__init__()
            self.a, self.b = nn.Linear(3, 3), nn.Linear(3, 3)

        def forward(self, x, y):
            return {"sum": self.a(x) + self.b(y), "count": 2}

    found = profile(Pair(), (torch.randn(2, 3), torch.randn(2, 3)), backward=True, rounds=1)
    assert {"a", "b"} <= {layer.name for layer in found.layers}


def test_reports(tmp_path):
    rich_console = pytest.importorskip("rich.console")
    found = profile(model(), torch.randn(2, 3, 8, 8), backward=True, rounds=1, name="small")
    with open(tmp_path / "out.txt", "w") as file:
        rich_console.Console(width=200, file=file).print(report.table(found))
        rich_console.Console(width=200, file=file).print(report.table(found, top=2, sort="flops"))
    tree, top = (tmp_path / "out.txt").read_text().split("small on 2x3x8x8: forward and backward")[1:]
    assert "1.conv" not in tree and "conv" in tree and "Dropout" in tree
    assert "1.conv" in top and "Dropout" not in top  # the two with most FLOPs, by their paths: no tree around them
    save.write_json(found, tmp_path / "profile.json")
    values = json.loads((tmp_path / "profile.json").read_text())
    assert values["flops"] == found.flops
    assert {"name", "kind", "ms", "gflops", "roof_percent"} <= set(values["layers"][0])
