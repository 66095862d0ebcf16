from __future__ import annotations

from fractions import Fraction

import numpy as np
import pytest
import torch

from sparsekern.topology.conv_masks import conv_mask, mask_tables


def rows_of(indptr, index):
    return [index[a:b] for a, b in zip(indptr[:-1].tolist(), indptr[1:].tolist())]


@pytest.mark.parametrize("options", [dict(density=0.3), dict(density=0.3, count="bernoulli"), dict(fan_in=5), dict(density=1.0)])
def test_rows_are_sorted_and_distinct(options):
    indptr, index = conv_mask(40, 25, seed=1, **options)
    assert indptr.dtype == index.dtype == torch.int32 and indptr.shape == (41,) and indptr[-1] == len(index)
    for row in rows_of(indptr, index):
        assert (row[1:] > row[:-1]).all() and (len(row) == 0 or (row[0] >= 0 and row[-1] < 25))


def test_counts():
    assert len(conv_mask(40, 25, density=0.25, seed=1)[1]) == 250
    assert len(conv_mask(3, 3, density=0.01, seed=1)[1]) == 1  # at least one
    assert conv_mask(40, 25, fan_in=7, seed=1)[0].diff().unique().tolist() == [7]
    kept = torch.tensor([len(conv_mask(40, 25, density=0.25, count="bernoulli", seed=s)[1]) for s in range(200)]).double()
    assert abs(kept.mean() - 250) < 5 * (1000 * 0.25 * 0.75 / 200) ** 0.5 and kept.std() > 8


def test_uniform_over_positions():
    counts = sum(torch.bincount(conv_mask(8, 9, density=0.5, seed=s)[1].long(), minlength=9) for s in range(500)).double()
    assert ((counts - 2000).abs() < 5 * 2000**0.5).all()


def test_seed_leaves_torch_alone():
    before = torch.get_rng_state()
    one = conv_mask(8, 9, density=0.5, seed=3)
    assert torch.equal(torch.get_rng_state(), before)
    assert all(torch.equal(a, b) for a, b in zip(one, conv_mask(8, 9, density=0.5, seed=3)))
    conv_mask(8, 9, density=0.5)
    assert not torch.equal(torch.get_rng_state(), before)
    # pinned: the same mask on every machine and version
    assert [table.tolist() for table in conv_mask(3, 4, density=0.5, seed=0)] == [[0, 1, 3, 6], [2, 2, 3, 1, 2, 3]]
    assert [table.tolist() for table in conv_mask(3, 4, density=0.5, count="bernoulli", seed=0)] == [[0, 1, 3, 6], [2, 2, 3, 1, 2, 3]]


def test_mask_tables():
    keep = torch.tensor([[0, 0, 0], [1, 0, 1], [1, 1, 1]], dtype=torch.bool)
    indptr, index = mask_tables(keep)
    assert indptr.tolist() == [0, 0, 2, 5] and index.tolist() == [0, 2, 0, 1, 2]


def test_fractions_and_numbers_of_numpy_are_numbers():
    expected = conv_mask(20, 25, density=0.25, seed=3)
    for rows, density in ((20, Fraction(1, 4)), (np.uint8(20), 0.25)):
        assert all(torch.equal(a, b) for a, b in zip(conv_mask(rows, np.uint8(25), density=density, seed=3), expected))
    assert conv_mask(20, 25, fan_in=np.uint8(20), seed=0)[0][-1] == 400


def test_bad_arguments():
    with pytest.raises(ValueError, match=r"conv_mask: density must be in \(0, 1\]; got 0"):
        conv_mask(8, 9, density=0)
    with pytest.raises(ValueError, match=r"conv_mask: count must be one of \('exact', 'bernoulli'\); got 'some'"):
        conv_mask(8, 9, density=0.5, count="some")
