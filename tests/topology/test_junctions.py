"""Matrices of junctions, windows of layers, and units that are cut off."""

from __future__ import annotations

from itertools import pairwise

import numpy as np
import pytest
import torch

from sparsekern.topology import adjacency, connected_units, fan_in_table, neurons, path_counts, regular_table, window_counts, window_ids


@pytest.mark.parametrize(
    "shape, fan, want",
    [
        (64, 8, (8,)),
        (64, 1024, (64,)),
        (6, 4, (2,)),
        (7, 5, (1,)),
        ((28, 28), 16, (4, 4)),
        ((28, 28), 392, (14, 28)),
        ((32, 64), 8, (2, 4)),
        ((4, 4), 16, (4, 4)),
        ((256, 4, 4), 64, (4, 4, 4)),
        ((64, 7, 7), 98, (2, 7, 7)),
        ((64, 7, 7), 1, (1, 1, 1)),
        ((4, 1024), 64, (4, 16)),
    ],
)
def test_window_counts(shape, fan, want):
    assert window_counts(shape, fan) == want


def test_window_ids_are_boxes_of_equal_size():
    ids = window_ids((4, 6, 6), (2, 3, 2))
    assert torch.bincount(ids).tolist() == [144 // 12] * 12
    boxes = ids.reshape(4, 6, 6)
    for window in range(12):
        c, h, w = (boxes == window).nonzero().T
        assert [int(d.max() - d.min() + 1) for d in (c, h, w)] == [2, 2, 3]
    assert window_ids(6, 3).tolist() == [0, 0, 1, 1, 2, 2]


def test_paths_are_counted_by_walking():
    sizes = [5, 6, 4, 3]
    tables = [fan_in_table(left, right, 2, seed=i) for i, (left, right) in enumerate(pairwise(sizes))]
    want = torch.zeros(3, 5, dtype=torch.float64)
    for last in range(3):
        for c in tables[2][last].tolist():
            for b in tables[1][c].tolist():
                for a in tables[0][b].tolist():
                    want[last, a] += 1
    assert torch.equal(path_counts(tables, sizes[:3]), want)
    assert torch.equal(path_counts(tables[1:], sizes[1:]), adjacency(tables[2], 4) @ adjacency(tables[1], 6))


@pytest.mark.parametrize("dense", [0, 1 << 26])
def test_disconnected_units_by_search(dense, monkeypatch):
    monkeypatch.setattr("sparsekern.topology.junctions._DENSE", dense)
    sizes = [12, 9, 7, 5]
    for seed in range(20):
        tables = [fan_in_table(left, right, 1, seed=seed * 3 + i) for i, (left, right) in enumerate(pairwise(sizes))]
        fed = set(range(5))  # layer by layer from the output, what is still read
        want = {}
        for layer in (2, 1, 0):
            fed = {i for j in fed for i in tables[layer][j].tolist()}
            lost = sorted(set(range(sizes[layer])) - fed)
            want |= {layer: lost} if lost else {}
        assert connected_units(tables, sizes[:3]).disconnected() == dict(sorted(want.items()))


def test_disconnected_in_masks():
    mask = torch.tensor([[1, 0, 0], [0, 0, 0], [1, 1, 0]], dtype=torch.bool)
    found = connected_units([mask])
    assert found.disconnected() == {0: [2], 1: [1]} and found.from_input[1].tolist() == [True, False, True]
    assert connected_units([regular_table(64, 1024, 8, seed=0), regular_table(1024, 64, 128, seed=0)], [64, 1024]).disconnected() == {}


def test_bad_arguments():
    with pytest.raises(ValueError, match=r"^window_counts: shape must be a number of neurons or 1 to 3 of them; got \(2, 2, 2, 2\)$"):
        window_counts((2, 2, 2, 2), 4)
    with pytest.raises(ValueError, match=r"^window_counts: fan must be at least 1; got 0$"):
        window_counts(4, 0)
    with pytest.raises(ValueError, match=r"^window_ids: counts must be one per dimension, each dividing it, \(4, 4\); got \(2, 3\)$"):
        window_ids((4, 4), (2, 3))
    with pytest.raises(ValueError, match=r"^path_counts: sizes must be given for index tables; got None$"):
        path_counts([torch.tensor([[0]])])
    with pytest.raises(ValueError, match=r"^adjacency: junction must be in \[0, 2\); got 2$"):
        adjacency(torch.tensor([[2]]), 2)
    with pytest.raises(ValueError, match=r"^adjacency: junction must be .* or \[N_right, N_left\] bools; got \[2, 2\] torch.complex64$"):
        adjacency(torch.ones(2, 2) * 1j, 2)


def test_shapes_of_numpy_are_pythons():
    n = np.uint8
    assert neurons((n(100), n(100))) == 10_000 and window_counts((n(100), n(100)), n(200)) == window_counts((100, 100), 200)
    assert torch.equal(window_ids((n(100), 100), (n(20), n(10))), window_ids((100, 100), (20, 10)))
