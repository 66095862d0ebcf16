"""The block score, heat maps, and the blocks that a root network learns on real images."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import nn

from sparsekern.analysis import block_diagonality, inter_layer, plot_heat_maps


def test_score():
    blocks = torch.block_diag(*[torch.ones(2, 3)] * 4)
    assert block_diagonality(blocks, 4).score == 1 and block_diagonality(-5 * blocks, 4).score == 1
    assert block_diagonality(torch.ones(8, 12), 4).score == 0
    assert block_diagonality(1 - blocks, 4).score == pytest.approx(-1 / 3)  # nothing in a quarter of the area
    mixed = block_diagonality(blocks + 1, 4)
    assert (mixed.inside, mixed.outside, mixed.contrast) == (2, 1, 2) and mixed.score == pytest.approx((2 / 5 - 1 / 4) / (3 / 4))
    assert block_diagonality(torch.zeros(4, 4), 2).score == 0
    unequal = torch.block_diag(torch.ones(1, 4), torch.ones(3, 2))
    assert block_diagonality(unequal, [(1, 4), (3, 2)]).score == 1 and block_diagonality(unequal, 2).score < 1


def test_numbers_of_numpy_are_numbers():
    blocks, n = torch.block_diag(*[torch.ones(2, 3)] * 4), np.int64
    assert block_diagonality(blocks, n(4)).score == block_diagonality(blocks, [(n(2), n(3))] * 4).score == 1


def test_bad_matrices():
    for matrix, error, sentence in (
        (np.ones((4, 4)), TypeError, "a tensor; got ndarray"),
        (torch.ones(0, 0), ValueError, "real and of at least one entry; got [0, 0] torch.float32"),
        (torch.ones(4, 4) * 1j, ValueError, "real and of at least one entry; got [4, 4] torch.complex64"),
    ):
        with pytest.raises(error) as raised:
            block_diagonality(matrix, 2)
        assert str(raised.value) == f"block_diagonality: matrix must be {sentence}"


def test_bad_groups():
    for groups, sentence in (
        (4, "groups must divide the sizes of the matrix, [6, 8]; got 4"),
        (1, "groups must be at least 2; got 1"),
        (0, "groups must be at least 2; got 0"),
        ([(3, 4), (3, 3)], "groups must add up to the sizes of the matrix, [6, 8]; got [(3, 4), (3, 3)]"),
        *(
            (groups, f"groups must be a whole number, or a positive (in, out) of each group; got {groups!r}")
            for groups in (2.0, None, "ab", [3, 3], [(6, 8), (0, 0)], [(7, 8), (-1, 0)])
        ),
    ):
        with pytest.raises(ValueError) as raised:
            block_diagonality(torch.ones(6, 8), groups)
        assert str(raised.value) == f"block_diagonality: {sentence}"


def test_heat_maps_are_written(tmp_path):
    pytest.importorskip("matplotlib")
    from matplotlib.image import imread

    maps = {f"map {i}": torch.randn(8 + i, 12) for i in range(5)}
    plot_heat_maps(maps, tmp_path / "own.png", axes=("conv2c", "conv3a"))
    plot_heat_maps({"zero": torch.zeros(3, 3)}, tmp_path / "zero.png", shared_scale=True)
    assert imread(tmp_path / "own.png")[..., :3].std() > 0.1 and (tmp_path / "zero.png").stat().st_size > 1000
    with pytest.raises(ValueError, match=r"^plot_heat_maps: maps must be at least one; got none$"):
        plot_heat_maps({}, tmp_path / "none.png")


def trained(groups: int) -> tuple[nn.Sequential, torch.Tensor]:
    """A small root network on the digits: 3x3 filters, a 1x1 mix, 3x3 filters in groups, a 1x1 mix. A few epochs."""
    from sparsekern.data import digits

    data = digits("train")
    torch.manual_seed(0)
    model = nn.Sequential(
        nn.Conv2d(1, 32, 3, padding=1), nn.BatchNorm2d(32), nn.ReLU(inplace=True),
        nn.Conv2d(32, 32, 1), nn.BatchNorm2d(32), nn.ReLU(inplace=True),
        nn.Conv2d(32, 32, 3, padding=1, groups=groups), nn.BatchNorm2d(32), nn.ReLU(inplace=True), nn.Conv2d(32, 10, 1),
        nn.AdaptiveAvgPool2d(1), nn.Flatten(),
    )  # fmt: skip
    optimizer = torch.optim.Adam(model.parameters(), lr=0.01)
    schedule = torch.optim.lr_scheduler.LinearLR(optimizer, 1.0, 0.02, total_iters=6)
    for _ in range(6):
        for rows in torch.randperm(len(data)).split(64):
            optimizer.zero_grad()
            nn.functional.cross_entropy(model(data.x[rows]), data.y[rows]).backward()
            optimizer.step()
        schedule.step()
    model.eval()
    test = digits("test")
    with torch.no_grad():
        accuracy = float((model(test.x).argmax(1) == test.y).float().mean())
    assert accuracy > 0.85, accuracy
    return model, test.x


def beaten_by(matrix: torch.Tensor, groups: int, times: int = 500) -> float:
    """The share of random orders of the columns whose blocks score at least as high."""
    score, draw = block_diagonality(matrix, groups).score, torch.Generator().manual_seed(0)
    orders = (torch.randperm(matrix.shape[1], generator=draw) for _ in range(times))
    return sum(block_diagonality(matrix[:, order], groups).score >= score for order in orders) / times


def test_a_trained_root_network_shows_its_groups():
    """No order of the filters puts as much into blocks as the groups do; in the dense network the same blocks are nothing special."""
    pytest.importorskip("sklearn")
    whitened = {}
    for groups in (1, 4):
        model, x = trained(groups)
        pair = inter_layer(model, "5", "6", x.split(90))
        whitened[groups] = pair.whitened()
        assert torch.linalg.svdvals(whitened[groups]).max() <= 1 + 1e-6
    assert beaten_by(whitened[4], 4) == 0 and block_diagonality(whitened[4], 4).contrast > block_diagonality(pair.between, 4).contrast
    assert beaten_by(whitened[1], 4) > 0.01
