"""What `count` records: every layer that runs, with its existing weights, and a model that stays as it was."""

import pytest
import torch
from torch import nn

from sparsekern.nn import GroupedConv2d, SparseLinear, StochasticConv2d
from sparsekern.profile.count import count


def test_deep_roots_counts_each_bias_once_and_no_batch_norm():
    model = nn.Sequential(nn.Conv2d(4, 6, 3, padding=1, groups=2), nn.BatchNorm2d(6), nn.ReLU(), nn.Flatten(), nn.Linear(6 * 25, 7))
    counted = count(model, (4, 5, 5), convention="deep_roots")
    conv_weights, fc_weights = 6 * 2 * 9, 7 * 150
    assert counted.params == conv_weights + 6 + fc_weights + 7
    assert counted.macs == conv_weights * 25 + fc_weights
    assert counted.flops == counted.macs + 6 + 7
    assert counted.synapses == conv_weights + fc_weights
    assert [(layer.name, layer.kind) for layer in counted.layers] == [("0", "Conv2d"), ("4", "Linear")]
    conv = counted.layers[0]
    assert conv.in_shape == (4, 5, 5) and conv.out_shape == (6, 5, 5) and conv.weight_shape == (6, 2, 3, 3)
    assert (conv.weights, conv.biases, conv.params, conv.macs) == (108, 6, 114, 108 * 25)
    assert (conv.outputs, conv.groups, conv.is_conv, counted.layers[1].is_conv) == (150, 2, True, False)
    assert counted.operations == {}


def test_flops_count_multiply_and_add_and_all_parameters():
    model = nn.Sequential(nn.Conv2d(4, 6, 3, groups=2), nn.BatchNorm2d(6))
    counted = count(model, (4, 5, 5))
    assert counted.flops == 2 * counted.macs == 2 * 6 * 2 * 9 * 9
    assert counted.params == 6 * 2 * 9 + 6 + 12
    assert counted.convention == "flops" and counted.synapses == 6 * 2 * 9


def test_a_layer_that_runs_twice_is_stored_once_and_computed_twice():
    layer = nn.Linear(8, 8, bias=False)
    counted = count(nn.Sequential(layer, layer), (8,), convention="deep_roots")
    assert (counted.params, counted.macs) == (64, 128)
    assert count(nn.Sequential(layer, layer), (8,)).macs == 128


def test_a_weight_that_two_layers_share_is_stored_once_and_computed_twice():
    model = nn.Sequential(nn.Linear(8, 8), nn.Linear(8, 8))
    model[1].weight = model[0].weight
    counted = count(model, (8,), convention="deep_roots")
    assert (counted.params, counted.macs, counted.synapses) == (64 + 16, 128, 64)
    assert [layer.weights for layer in counted.layers] == [64, 0]


def test_rows_of_a_linear_layer_are_positions():
    assert count(nn.Linear(8, 4), (5, 8), convention="deep_roots").macs == 5 * 32
    assert count(nn.Linear(8, 4), (2, 5, 8), convention="deep_roots").macs == 10 * 32
    merged = nn.Sequential(nn.Flatten(0, 1), nn.Linear(8, 4))  # the rows of one image in the place of the batch
    assert count(merged, (5, 8), convention="deep_roots").macs == 5 * 32


SPARSE = {  # layer, input of one image, weights that exist, output positions
    "condensed": (lambda: SparseLinear(32, 24, fan_in=4, seed=0), (32,), 96, 1),
    "condensed rows": (lambda: SparseLinear(32, 24, fan_in=4, seed=0), (3, 5, 32), 96, 15),
    "block": (lambda: SparseLinear(32, 32, fan_in=16, block_size=8, seed=0), (32,), 512, 1),
    "block rows": (lambda: SparseLinear(32, 32, fan_in=16, block_size=8, seed=0), (3, 5, 32), 512, 15),
    "spatial": (lambda: StochasticConv2d(6, 8, 3, density=0.25, seed=0), (6, 7, 9), 18 * 6, 35),
    "synapse": (lambda: StochasticConv2d(6, 8, 3, density=0.5, granularity="synapse", padding=1, stride=2, seed=0), (6, 7, 9), 216, 20),
    "kernel": (lambda: StochasticConv2d(6, 8, 3, density=0.5, granularity="kernel", share=2, padding=1, seed=0), (6, 4, 4), 216, 16),
    "block conv": (lambda: StochasticConv2d(32, 32, 3, density=0.5, granularity="block", seed=0), (32, 5, 5), 4608, 9),
    "grouped": (lambda: GroupedConv2d(8, 12, 3, groups=4, activation="relu"), (8, 5, 6), 216, 12),
    "transposed": (lambda: nn.ConvTranspose2d(4, 6, 2, stride=2), (4, 5, 5), 96, 25),
    "one dimension": (lambda: nn.Conv1d(4, 6, 3), (4, 9), 72, 7),
    "three dimensions": (lambda: nn.Conv3d(2, 3, 2), (2, 3, 4, 5), 48, 24),
}


@pytest.mark.parametrize("device", ["cpu", "meta"])
@pytest.mark.parametrize("name", SPARSE)
def test_existing_weights_are_used_once_per_output_position(name, device):
    make, shape, weights, positions = SPARSE[name]
    with torch.device(device):
        layer = make()
    counted = count(layer, shape, convention="sis")
    assert (counted.params, counted.synapses, counted.macs) == (weights, weights, weights * positions)
    assert count(layer, shape).flops == 2 * weights * positions  # what torch's counter says of the same run
    assert counted.layers[0].is_conv == ("features" not in str(layer))


def test_layers_made_of_others_count_through_them():
    conv = GroupedConv2d(12, 24, 3, padding=1, group_sizes=[(2, 4), (2, 4), (8, 16)])
    counted = count(conv, (12, 4, 4), convention="deep_roots")
    assert counted.synapses == (4 * 2 + 4 * 2 + 16 * 8) * 9
    assert counted.macs == counted.synapses * 16 and counted.params == counted.synapses + 24


def test_an_embedding_multiplies_nothing():
    class Tokens(nn.Module):
        def __init__(self):
            super().__init__()
            self.table, self.linear = nn.Embedding(10, 8), nn.Linear(8, 3)

        def forward(self, x):
            return self.linear(self.table(x.long()))

    counted = count(Tokens(), (5,), convention="deep_roots")
    assert [layer.name for layer in counted.layers] == ["linear"] and counted.macs == 5 * 24


def test_a_parametrized_weight_counts():
    layer = nn.utils.parametrizations.weight_norm(nn.Linear(8, 4))
    assert count(layer, (8,), convention="deep_roots").macs == 32
    assert count(nn.LayerNorm((4, 8)), (4, 8), convention="deep_roots").macs == 0  # scales, mixes nothing


class FusedConv2d(nn.Conv2d):
    """Offers the fused end of a residual block, past its own ``forward``."""

    def add_relu(self, x, shortcut):
        return torch.relu_(self._conv_forward(x, self.weight, self.bias).add_(shortcut))


class Residual(nn.Module):
    def __init__(self, fused):
        super().__init__()
        self.conv, self.fused = (FusedConv2d if fused else nn.Conv2d)(4, 4, 1), fused

    def forward(self, x):
        return self.conv.add_relu(x, x) if self.fused else torch.relu_(self.conv(x).add_(x))


def test_a_fused_residual_end_counts_as_its_parts():
    fused, plain = (count(Residual(fused), (4, 3, 3), convention="netscope") for fused in (True, False))
    assert (fused.macs, fused.params, fused.operations) == (plain.macs, plain.params, plain.operations)
    assert plain.operations["add"] == 36 + 36 and plain.operations["comp"] == 36  # the addition and the softmax; the ReLU


class Restless(nn.Module):
    """Disturbs what it can in eval mode: a batch-norm that stays in training, a counter, random numbers."""

    def __init__(self):
        super().__init__()
        self.norm = nn.BatchNorm2d(3)
        self.register_buffer("calls", torch.zeros(()))

    def train(self, mode=True):
        return super().train(True)

    def forward(self, x):
        self.calls.add_(1)
        return self.norm(x + torch.rand_like(x))


def test_the_model_is_left_as_it_was():
    model = nn.Sequential(nn.Conv2d(3, 3, 1), Restless(), nn.BatchNorm2d(3), FusedConv2d(3, 4, 1), SparseLinear(4, 4, fan_in=2)).double()
    model[2].eval()
    before = {name: value.clone() for name, value in model.state_dict().items()}
    random_state = torch.get_rng_state()
    count(model, (3, 4, 4))
    assert model.training and model[0].training and not model[2].training
    assert all(torch.equal(before[name], value) for name, value in model.state_dict().items())
    assert torch.equal(torch.get_rng_state(), random_state)
    assert not any(module._forward_hooks or module._forward_pre_hooks for module in model.modules())
    assert "add_relu" not in vars(model[3])
    with pytest.raises(RuntimeError):
        count(model, (4, 4, 4))
    assert model.training and not model[2].training
    assert not any(module._forward_hooks or module._forward_pre_hooks for module in model.modules())
    assert "add_relu" not in vars(model[3])


def test_bad_arguments():
    known = "flops, deep_roots, deep_roots_resnet200, sis, netscope, patterns"
    with pytest.raises(ValueError, match=f"count: convention must be one of {known}; got 'mac'"):
        count(nn.Identity(), (3,), convention="mac")
    with pytest.raises(ValueError, match=r"count: input_shape must be positive sizes of one image.*; got \(3, 0\)"):
        count(nn.Identity(), (3, 0))
