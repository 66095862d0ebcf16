from __future__ import annotations

import numpy as np
import pytest
import torch

from sparsekern.topology import balanced_counts, balanced_table

SHAPES = [(1, 1, 1), (32, 5, 4), (64, 8, 6), (3072, 20, 307), (100, 7, 33), (70, 30, 1), (33, 9, 33), (31, 4, 30), (95, 3, 64), (8, 0, 2)]


def in_windows(table, inputs):
    return torch.stack([torch.bincount(row.long() // 32, minlength=-(-inputs // 32)) for row in table])


@pytest.mark.parametrize("shape", SHAPES, ids=str)
@pytest.mark.parametrize("seed", [0, 1, None])
def test_every_row_has_its_number_in_every_window(shape, seed):
    inputs, outputs, fan_in = shape
    table = balanced_table(inputs, outputs, fan_in, seed=seed)
    assert table.dtype == torch.int32 and table.shape == (outputs, fan_in)
    if outputs:
        assert (table[:, 1:] > table[:, :-1]).all() and table.min() >= 0 and table.max() < inputs
        assert in_windows(table, inputs).unique(dim=0).tolist() == [balanced_counts(inputs, fan_in)]


@pytest.mark.parametrize("inputs", [1, 31, 32, 33, 64, 95, 100, 320])
def test_counts_are_the_two_whole_numbers_around_the_share(inputs):
    for fan_in in range(1, inputs + 1):
        counts = balanced_counts(inputs, fan_in)
        assert sum(counts) == fan_in and len(counts) == -(-inputs // 32)
        for count, begin in zip(counts, range(0, inputs, 32)):
            size = min(32, inputs - begin)
            assert abs(count - size * fan_in / inputs) < 1 and count <= size
        if fan_in % max(1, inputs // 32) == 0 and inputs % 32 == 0:
            assert len(set(counts)) == 1  # exactly N:32
    assert balanced_counts(128, 10) == [3, 2, 3, 2]  # alternating


def test_uniform_in_every_window():
    rows = 20000
    counts = torch.bincount(balanced_table(50, rows, 10, seed=2).flatten().long(), minlength=50).double()
    for part, kept in ((counts[:32], 6), (counts[32:], 4)):
        chance = kept / len(part)
        assert ((part - rows * chance).abs() < 5 * (rows * chance * (1 - chance)) ** 0.5).all()


def test_chunks_do_not_change_the_draw(monkeypatch):
    whole = balanced_table(50, 100, 6, seed=3)
    monkeypatch.setattr("sparsekern.topology.balanced._CHUNK", 50 * 7)
    assert torch.equal(balanced_table(50, 100, 6, seed=3), whole)


def test_seed_leaves_torch_alone():
    before = torch.get_rng_state()
    one = balanced_table(64, 10, 6, seed=3)
    assert torch.equal(torch.get_rng_state(), before)
    assert torch.equal(one, balanced_table(64, 10, 6, seed=3)) and not torch.equal(one, balanced_table(64, 10, 6, seed=4))
    balanced_table(64, 10, 6)
    assert not torch.equal(torch.get_rng_state(), before)
    # pinned: the same table on every machine and version
    assert balanced_table(40, 3, 5, seed=0).tolist() == PINNED


PINNED = [[6, 11, 17, 22, 33], [1, 7, 18, 21, 34], [13, 15, 16, 20, 35]]


def test_large_tables_are_drawn_window_by_window(monkeypatch):
    """The same promises where a random number for every possible connection would be too many: here for small tables too."""
    monkeypatch.setattr("sparsekern.topology.balanced.POSSIBLE", 0)
    for shape in [shape for shape in SHAPES if shape[1]]:
        test_every_row_has_its_number_in_every_window(shape, 1)
    test_uniform_in_every_window()
    assert balanced_table(40, 3, 5, seed=0).tolist() == PINNED_LARGE
    sets = torch.bincount((1 << balanced_table(5, 4000, 3, seed=1).long()).sum(1))
    assert (sets > 0).sum() == 10 and ((sets[sets > 0] - 400).abs() < 5 * (4000 * 0.09) ** 0.5).all()  # every set equally likely
    whole = balanced_table(50, 100, 6, seed=3)
    monkeypatch.setattr("sparsekern.topology.huge._CHUNK", 50 * 7)
    assert torch.equal(balanced_table(50, 100, 6, seed=3), whole)


PINNED_LARGE = [[14, 21, 28, 29, 37], [5, 10, 18, 22, 34], [5, 11, 13, 19, 35]]


def test_numbers_of_numpy_do_not_wrap_round():
    assert balanced_counts(np.int32(100000), np.int32(50000)) == balanced_counts(100000, 50000)
    assert torch.equal(balanced_table(np.uint8(200), np.uint8(9), np.uint8(70), seed=0), balanced_table(200, 9, 70, seed=0))


def test_bad_fan_in():
    with pytest.raises(ValueError, match=r"^balanced_table: fan_in must be in \[1, 8\]; got 9$"):
        balanced_table(8, 2, 9)
    with pytest.raises(ValueError, match=r"^balanced_counts: fan_in must be in \[1, 64\]; got 0$"):
        balanced_counts(64, 0)
