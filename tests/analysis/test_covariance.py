"""Covariances of layers, against numpy and against truths that hold by construction."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import nn

from sparsekern.analysis import block_diagonality, inter_layer, intra_layer, layer_pairs, record, zca
from sparsekern.analysis.covariance import same_samples


def correlated(n: int, channels: int, size: int, seed: int = 0) -> torch.Tensor:
    """Images whose channels go together, with means far from 0."""
    draw = torch.Generator().manual_seed(seed)
    mix = torch.randn(channels, channels, generator=draw)
    x = torch.randn(n, channels, size, size, generator=draw)
    return torch.einsum("oc,nchw->nohw", mix, x) + 10 * torch.randn(1, channels, 1, 1, generator=draw)


def net(groups: int = 1, channels: int = 8, out: int = 12) -> nn.Sequential:
    torch.manual_seed(1)
    return nn.Sequential(
        nn.Conv2d(channels, channels, 1), nn.ReLU(inplace=True), nn.MaxPool2d(2), nn.Conv2d(channels, out, 1, groups=groups)
    )


def test_against_numpy_over_batches():
    model, x = net().double(), correlated(10, 8, 6).double()  # a convolution's rounding may depend on the batch
    first, second = model[0](x), model[3](nn.functional.max_pool2d(model[0](x).relu(), 2))
    one = first.detach().double().permute(1, 0, 2, 3).flatten(1).numpy()
    two = second.detach().double().repeat_interleave(2, 2).repeat_interleave(2, 3).permute(1, 0, 2, 3).flatten(1).numpy()
    want = np.cov(one, two)
    for batches in ([x], x.split(3), [(b, "label") for b in x.split([1, 0, 9])]):
        pair = inter_layer(model, "0", "3", batches)
        assert pair.samples == 360 and pair.names == ("0", "3") and pair.between.dtype == torch.float64
        got = torch.cat([torch.cat([pair.first, pair.between], 1), torch.cat([pair.between.T, pair.second], 1)])
        # sums of 360 float64 products; what recording adds is none
        np.testing.assert_allclose(got.numpy(), want, rtol=1e-10, atol=1e-10 * np.abs(want).max())
        np.testing.assert_allclose(pair.correlation().numpy(), np.corrcoef(one, two)[:8, 8:], atol=1e-10)
    within = intra_layer(model, "0", x.split(5))
    np.testing.assert_allclose(within.correlation().numpy(), np.corrcoef(one), atol=1e-10)


def test_whitened_covariance_is_the_identity():
    pair = inter_layer(net(out=6), "0", "3", [correlated(40, 8, 6)])
    for covariance in (pair.first, pair.second):
        w = zca(covariance)
        # the error of the inverse root grows with the condition of the matrix
        condition = float(torch.linalg.cond(covariance))
        torch.testing.assert_close(w @ covariance @ w.T, torch.eye(len(covariance)).double(), atol=1e-14 * condition, rtol=0)
        torch.testing.assert_close(w, w.T)
    itself = intra_layer(net(), "0", [correlated(40, 8, 6)])
    torch.testing.assert_close(itself.whitened(), torch.eye(8).double(), atol=1e-14 * float(torch.linalg.cond(itself.first)), rtol=0)


def test_canonical_correlations_are_at_most_one():
    for seed in range(5):
        values = torch.linalg.svdvals(inter_layer(net(4), "0", "3", [correlated(30, 8, 6, seed)]).whitened())
        assert values.max() <= 1 + 1e-9 and values.min() >= 0
    # a linear map loses nothing: all of them are 1
    linear = nn.Sequential(nn.Identity(), nn.Conv2d(8, 8, 1))
    values = torch.linalg.svdvals(inter_layer(linear, "0", "1", [correlated(30, 8, 6)]).whitened())
    torch.testing.assert_close(values, torch.ones(8).double(), atol=1e-6, rtol=0)


def test_groups_are_blocks():
    """White inputs through a grouped 1x1 layer: everything is inside the blocks, up to chance."""
    grouped, dense = (nn.Sequential(nn.Identity(), nn.Conv2d(16, 32, 1, groups=g)) for g in (4, 1))
    white = torch.randn(256, 16, 4, 4)
    score = block_diagonality(inter_layer(grouped, "0", "1", [white]).whitened(), 4)
    assert score.score > 0.9 and score.contrast > 20
    assert abs(block_diagonality(inter_layer(dense, "0", "1", [white]).whitened(), 4).score) < 0.1


def test_whitening_shows_the_blocks_of_correlated_inputs():
    grouped = nn.Sequential(nn.Identity(), nn.Conv2d(16, 32, 1, groups=4))
    pair = inter_layer(grouped, "0", "1", [correlated(256, 16, 4)])
    plain, whitened = (block_diagonality(m, 4) for m in (pair.between, pair.whitened()))
    assert whitened.contrast > 1.5 * plain.contrast and whitened.score > plain.score + 0.1


def test_filters_that_never_change_and_few_samples():
    model = nn.Sequential(nn.Identity(), nn.Conv2d(6, 6, 1))
    with torch.no_grad():
        model[1].weight[2] = 0  # constant
        model[1].weight[3] = model[1].weight[4]  # twice the same
    pair = inter_layer(model, "0", "1", [torch.randn(50, 6, 3, 3)])
    assert (pair.correlation()[:, 2] == 0).all() and pair.correlation().isfinite().all()
    whitened = pair.whitened()
    assert whitened.isfinite().all() and torch.linalg.svdvals(whitened).max() <= 1 + 1e-6
    few = inter_layer(model, "0", "1", [torch.randn(1, 6, 2, 2)])
    assert few.samples == 4 and torch.linalg.svdvals(few.whitened()).max() <= 1 + 1e-6
    assert (zca(torch.zeros(3, 3)) == 0).all()
    wide = nn.Sequential(nn.Identity(), nn.Conv2d(6, 12, 1))  # 12 filters of 6 inputs: in float32 the other 6 directions are rounding
    pair = inter_layer(wide, "0", "1", [torch.randn(200, 6, 3, 3)])
    assert torch.linalg.matrix_rank(zca(pair.second)) == 6
    torch.testing.assert_close(torch.linalg.svdvals(pair.whitened()), torch.ones(6).double(), atol=1e-6, rtol=0)


def test_a_filter_that_never_changes_correlates_with_none_whatever_its_value():
    model = nn.Sequential(nn.Conv2d(2, 3, 1)).double()
    with torch.no_grad():
        model[0].weight[0] = 0
    for value in (0.1, 5.3, 1e3 / 7):  # sums of so many are no multiples of them
        nn.init.constant_(model[0].bias, value)
        pair = layer_pairs(model, [("0", "0")], [torch.randn(n, 2, 7, 7, dtype=torch.float64) for n in (1, 3, 2)])[0]
        assert pair.first[0].count_nonzero() == 0 and pair.correlation()[0].count_nonzero() == 0
        assert pair.correlation()[1, 1] == pytest.approx(1, abs=1e-12)


def test_linear_layers_and_sizes():
    model = nn.Sequential(nn.Linear(5, 7), nn.ReLU(), nn.Linear(7, 3))
    x = torch.randn(20, 5)
    pair = inter_layer(model, "1", "2", [x])
    want = np.cov(model[:2](x).detach().double().T.numpy(), model(x).detach().double().T.numpy())[:7, 7:]
    np.testing.assert_allclose(pair.between.numpy(), want, atol=1e-12)
    one, two = same_samples(torch.arange(4.0).reshape(1, 1, 2, 2), torch.arange(16.0).reshape(1, 1, 4, 4))
    assert one.tolist() == [[0, 0, 1, 1, 0, 0, 1, 1, 2, 2, 3, 3, 2, 2, 3, 3]] and two.tolist() == [list(range(16))]
    assert same_samples(torch.ones(2, 3), torch.ones(2, 4, 5, 6))[0].shape == (3, 60)


def test_the_model_is_left_as_it_was():
    model = nn.Sequential(nn.BatchNorm2d(3), nn.Dropout(), nn.Conv2d(3, 4, 1))
    model.train()
    model[1].eval()
    before = {k: v.clone() for k, v in model.state_dict().items()}
    x = torch.randn(4, 3, 2, 2)
    for found in record(model, ["2", "2:in"], [x, x]):
        torch.testing.assert_close(found["2"], model[2](found["2:in"]).detach())
        assert not found["2"].requires_grad
        break  # left early
    assert [m.training for m in model] == [True, False, True] and model.training
    assert all(torch.equal(before[k], v) for k, v in model.state_dict().items())
    assert not any(m._forward_hooks or m._forward_pre_hooks for m in model.modules())
    with pytest.raises(RuntimeError):
        list(record(model, ["2"], [torch.randn(4, 5, 2, 2)]))
    assert model.training and not any(m._forward_hooks for m in model.modules())


def test_pairs_in_one_pass_are_the_same():
    model, x = net(2), correlated(12, 8, 6)
    pairs = [("0", "3"), ("3:in", "3"), ("0", "0")]
    for pair, got in zip(pairs, layer_pairs(model, pairs, x.split(5))):
        want = inter_layer(model, *pair, x.split(5))
        assert got.names == pair and torch.equal(got.between, want.between) and torch.equal(got.second, want.second)


def test_bad_arguments():
    relu = nn.ReLU()
    model = nn.Sequential(nn.Linear(2, 2), relu, nn.Linear(2, 2), relu)
    model.add_module("idle", nn.ModuleList([nn.Linear(2, 2)]))
    model.forward = lambda x: model[3](model[2](model[1](model[0](x))))
    for names, sentence in (
        (("9", "0"), "record: names must be of layers of the model; got '9'"),
        (("1", "0"), "record: names must be of layers that run once per batch; got '1', which ran 2 times"),
        (("idle.0", "0"), "record: names must be of layers that run once per batch; got 'idle.0', which did not run"),
    ):
        with pytest.raises(ValueError) as raised:
            inter_layer(model, *names, [torch.randn(3, 2)])
        assert str(raised.value) == sentence
    for batches, got in (([], 0), ([torch.randn(1, 2)], 1)):
        with pytest.raises(ValueError, match=rf"^inter_layer: batches must hold at least two samples; got {got}$"):
            inter_layer(model, "0", "2", batches)
    with pytest.raises(
        ValueError, match=r"^inter_layer: responses must be \[N, c, H, W\] or \[N, c\], of one N; got \[2, 3, 4\] and \[2, 3\]$"
    ):
        same_samples(torch.ones(2, 3, 4), torch.ones(2, 3))
    with pytest.raises(ValueError, match=r"^zca: covariance must be square; got \[2, 3\]$"):
        zca(torch.ones(2, 3))
    with pytest.raises(ValueError, match=r"^zca: covariance must be of at least one variable; got none$"):
        zca(torch.ones(0, 0))
    with pytest.raises(ValueError, match=r"^zca: covariance must be real; got torch.complex64$"):
        zca(torch.ones(2, 2) * 1j)
    with pytest.raises(TypeError, match=r"^zca: covariance must be a tensor; got ndarray$"):
        zca(np.ones((2, 2)))
    lstm = nn.Sequential(nn.LSTM(2, 2))
    with pytest.raises(TypeError, match=r"^record: names must be of layers with a tensor; got '0', whose is a tuple$"):
        list(record(lstm, ["0"], [torch.randn(3, 1, 2)]))
