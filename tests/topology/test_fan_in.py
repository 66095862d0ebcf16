from __future__ import annotations

import pytest
import torch

from sparsekern.topology import fan_in_table


def test_rows_are_sorted_and_distinct():
    table = fan_in_table(50, 200, 7, seed=1)
    assert table.dtype == torch.int32 and table.shape == (200, 7)
    assert (table[:, 1:] > table[:, :-1]).all() and table.min() >= 0 and table.max() < 50


def test_uniform_over_inputs():
    table = fan_in_table(20, 20000, 5, seed=2)
    counts = torch.bincount(table.flatten().long(), minlength=20).double()
    expected = 20000 * 5 / 20
    spread = (expected * (1 - 5 / 20)) ** 0.5
    assert ((counts - expected).abs() < 5 * spread).all()


def test_chunks_do_not_change_the_draw(monkeypatch):
    whole = fan_in_table(30, 100, 4, seed=3)
    monkeypatch.setattr("sparsekern.topology.fan_in._CHUNK", 30 * 7)
    assert torch.equal(fan_in_table(30, 100, 4, seed=3), whole)


def test_every_bit_of_a_seed_counts():
    """Torch's generator reads 32 of them."""
    seeds = (1, 1 + 2**32, 1 + 2**33, -1, 2**32 - 1, 2**63)
    tables = [fan_in_table(300, 20, 7, seed=seed) for seed in seeds]
    assert len({tuple(table.flatten().tolist()) for table in tables}) == len(seeds)
    assert torch.equal(tables[1], fan_in_table(300, 20, 7, seed=seeds[1]))


def test_seed_leaves_torch_alone():
    before = torch.get_rng_state()
    fan_in_table(30, 10, 4, seed=3)
    assert torch.equal(torch.get_rng_state(), before)
    fan_in_table(30, 10, 4)
    assert not torch.equal(torch.get_rng_state(), before)
    # pinned: the same table on every machine and version
    assert fan_in_table(6, 4, 3, seed=0).tolist() == [[0, 3, 5], [1, 2, 4], [1, 2, 3], [0, 1, 3]]


def test_bad_fan_in():
    with pytest.raises(ValueError, match=r"fan_in_table: fan_in must be in \[1, 8\]; got 9"):
        fan_in_table(8, 2, 9)
