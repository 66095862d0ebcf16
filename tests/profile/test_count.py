"""The two counting conventions on layers small enough to count by hand."""

import pytest
import torch
from torch import nn

from sparsekern.profile.count import count


def test_deep_roots_counts_each_bias_once_and_no_batch_norm():
    model = nn.Sequential(nn.Conv2d(4, 6, 3, padding=1, groups=2), nn.BatchNorm2d(6), nn.ReLU(), nn.Flatten(), nn.Linear(6 * 25, 7))
    counted = count(model, (4, 5, 5), convention="deep_roots")
    conv_weights, fc_weights = 6 * 2 * 9, 7 * 150
    assert counted.params == conv_weights + 6 + fc_weights + 7
    assert counted.macs == conv_weights * 25 + fc_weights
    assert counted.flops == counted.macs + 6 + 7
    assert [(layer.name, layer.kind) for layer in counted.layers] == [("0", "Conv2d"), ("4", "Linear")]
    assert counted.layers[0].in_shape == (4, 5, 5) and counted.layers[0].out_shape == (6, 5, 5)


def test_flops_count_multiply_and_add_and_all_parameters():
    model = nn.Sequential(nn.Conv2d(4, 6, 3, groups=2), nn.BatchNorm2d(6))
    counted = count(model, (4, 5, 5))
    assert counted.flops == 2 * counted.macs == 2 * 6 * 2 * 9 * 9
    assert counted.params == 6 * 2 * 9 + 6 + 12


def test_a_layer_that_runs_twice_is_stored_once_and_computed_twice():
    layer = nn.Linear(8, 8, bias=False)
    counted = count(nn.Sequential(layer, layer), (8,), convention="deep_roots")
    assert (counted.params, counted.macs) == (64, 128)
    assert count(nn.Sequential(layer, layer), (8,)).macs == 128


def test_rows_of_a_linear_layer_are_positions():
    assert count(nn.Linear(8, 4), (5, 8), convention="deep_roots").macs == 5 * 32


def test_the_model_is_left_as_it_was():
    model = nn.Sequential(nn.Conv2d(3, 4, 1), nn.BatchNorm2d(4)).double()
    model[1].eval()
    before = {name: value.clone() for name, value in model.state_dict().items()}
    count(model, (3, 4, 4))
    assert model.training and model[0].training and not model[1].training
    assert all(torch.equal(before[name], value) for name, value in model.state_dict().items())
    assert not any(module._forward_hooks for module in model.modules())


def test_bad_arguments():
    with pytest.raises(ValueError, match="count: convention must be one of flops, deep_roots; got 'mac'"):
        count(nn.Identity(), (3,), convention="mac")
    with pytest.raises(ValueError, match=r"count: input_shape must be positive sizes of one image.*; got \(3, 0\)"):
        count(nn.Identity(), (3, 0))
