"""What every generator of fixed fans promises, and what each of them adds."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from sparsekern.topology import (
    clash_free_table,
    expand_blocks,
    fan_in_table,
    grouped_table,
    local_table,
    regular_table,
    rewire,
    scatter,
    spread_table,
)
from sparsekern.topology.huge import huge_fan_in_table, huge_regular_table, is_huge

GENERATORS = {
    "regular": regular_table,
    "spread": spread_table,
    "clash-free": lambda i, o, f, seed: clash_free_table(i, o, f, parallel=i // 2 if i % 2 == 0 else 1, seed=seed),
    "clash-free shifted": lambda i, o, f, seed: clash_free_table(i, o, f, parallel=1, order="shifted", seed=seed),
    "clash-free dithered": lambda i, o, f, seed: clash_free_table(i, o, f, parallel=i, dither=True, seed=seed),
    "huge": lambda i, o, f, seed: torch.from_numpy(huge_regular_table(i, o, f, torch.Generator().manual_seed(seed))),
    "rewired": lambda i, o, f, seed: rewire(regular_table(i, o, f, seed=seed), i, 0.7, seed=seed),
}
SHAPES = [(1, 1, 1), (8, 4, 2), (4, 8, 1), (12, 18, 2), (64, 1024, 8), (1024, 64, 128), (784, 224, 392), (6, 6, 6), (30, 20, 15)]
PINNED = {  # (8, 4, 2) of seed 0: the same on every machine and version
    "regular": [[6, 7], [1, 3], [0, 4], [2, 5]],
    "spread": [[2, 6], [1, 7], [3, 4], [0, 5]],
    "clash-free": [[1, 4], [6, 7], [0, 5], [2, 3]],
    "huge": [[6, 7], [2, 4], [1, 5], [0, 3]],
}


def is_regular(table, inputs, outputs, fan_in):
    assert table.dtype == torch.int32 and table.shape == (outputs, fan_in)
    assert (table[:, 1:] > table[:, :-1]).all() and (table.numel() == 0 or (table.min() >= 0 and table.max() < inputs))
    return torch.bincount(table.flatten(), minlength=inputs).tolist() == [outputs * fan_in // inputs] * inputs


# A shuffled deck is dealt for sparse tables alone (is_huge): the last places of a dense one are found by luck.
DRAWN = [(name, shape) for shape in SHAPES for name in GENERATORS if name != "huge" or shape[2] * 4 <= shape[0] or shape[0] == 1]


@pytest.mark.parametrize("name, shape", DRAWN, ids=str)
def test_fans_are_fixed(name, shape):
    for seed in range(3):
        assert is_regular(GENERATORS[name](*shape, seed=seed), *shape)


@pytest.mark.parametrize("name", GENERATORS)
def test_a_seed_is_a_table(name):
    one, again, other = (GENERATORS[name](64, 32, 16, seed=s) for s in (1, 1, 2))
    assert torch.equal(one, again) and not torch.equal(one, other)
    if name in PINNED:
        assert GENERATORS[name](8, 4, 2, seed=0).tolist() == PINNED[name]


def test_other_draws_are_pinned():
    assert rewire(local_table(8, 4, 2), 8, 1.0, seed=0).tolist() == [[3, 5], [0, 4], [1, 2], [6, 7]]
    assert huge_fan_in_table(8, 4, 3, torch.Generator().manual_seed(0)).tolist() == [[3, 5, 7], [5, 6, 7], [1, 2, 4], [1, 2, 3]]
    shifted = clash_free_table(8, 4, 2, parallel=2, order="shifted", dither=True, seed=0)
    assert shifted.tolist() == [[5, 6], [0, 7], [1, 2], [3, 4]]
    several = spread_table(6, 6, 4, seed=0).tolist()  # more than one connection per window
    assert several == [[1, 2, 4, 5], [0, 2, 3, 5], [0, 1, 3, 4], [0, 1, 3, 5], [0, 2, 4, 5], [1, 2, 3, 4]]


@pytest.mark.parametrize(
    "draw",
    [
        lambda seed: spread_table(64, 32, 16, seed=seed),
        lambda seed: clash_free_table(64, 32, 16, parallel=4, seed=seed),
        lambda seed: rewire(local_table(64, 32, 16), 64, 1.0, seed=seed),
        lambda seed: regular_table(20000, 20000, 4, seed=seed),
        lambda seed: fan_in_table(20000, 20000, 4, seed=seed),
    ],
)
def test_seed_leaves_torch_alone(draw):
    before = torch.get_rng_state()
    draw(1)
    assert torch.equal(torch.get_rng_state(), before)
    draw(None)
    assert not torch.equal(torch.get_rng_state(), before)


# ---- window-spread


@pytest.mark.parametrize(
    "shapes",
    [
        (64, 1024, 8), (1024, 64, 128), (6, 6, 4), (6, 9, 4), (8, 12, 6), (10, 15, 6), (5, 5, 5), (7, 5, 7), (12, 6, 10),
        ((28, 28), 224, 392), ((8, 8), (4, 16, 16), 8), ((16, 4, 4), (6, 6), 64), ((4, 4), 6, 8), ((9,), (3,), 3),
    ],
    ids=str,
)  # fmt: skip
def test_spread_scatters_perfectly(shapes):
    left, right, fan_in = shapes
    for seed in range(4):
        table = spread_table(left, right, fan_in, seed=seed)
        for measure in ("present", "fair_share"):
            assert scatter([table], [left, right], measure=measure).vector == (1, 1)


def test_spread_of_large_junctions_is_dealt():
    """2^32 possible connections, more than one per window: fan-in 6 of 65536 inputs."""
    table = spread_table(65536, 65536, 6, seed=0)
    assert is_regular(table, 65536, 65536, 6) and scatter([table], [65536], measure="fair_share").vector == (1, 1)


def test_every_spread_table_occurs():
    """(4, 2, 2): two windows of two inputs, each a permutation onto the two outputs: 4 tables, equally likely."""
    seen = {}
    for seed in range(1000):
        key = str(spread_table(4, 2, 2, seed=seed).tolist())
        seen[key] = seen.get(key, 0) + 1
    assert len(seen) == 4 and all(abs(n - 250) < 5 * (1000 * 3 / 16) ** 0.5 for n in seen.values())


# ---- clash-free


@pytest.mark.parametrize("order", ["free", "shifted", "fixed"])
@pytest.mark.parametrize("dither", [False, True])
def test_no_memory_is_asked_twice(order, dither):
    """Where a cycle reads whole outputs, and where an output takes whole cycles, the memories show in the table."""
    table = clash_free_table(64, 128, 4, parallel=16, order=order, dither=dither, seed=3)
    assert is_regular(table, 64, 128, 4)
    cycles = (table % 16).reshape(-1, 16).sort(dim=1).values
    assert torch.equal(cycles, torch.arange(16, dtype=torch.int32).expand_as(cycles))
    wide = clash_free_table(64, 16, 16, parallel=4, order=order, dither=dither, seed=3)
    assert is_regular(wide, 64, 16, 16)
    assert all(torch.bincount(row % 4).tolist() == [4, 4, 4, 4] for row in wide)


def test_orders_of_addresses():
    """Sweeps of 64 inputs are 16 outputs of 4: the same in every sweep, or not; starts shifted by one address per cycle, or not."""
    fixed, shifted, free = (
        clash_free_table(64, 64, 4, parallel=4, order=o, seed=5).reshape(4, 16, 4) for o in ("fixed", "shifted", "free")
    )
    assert torch.equal(fixed[0], fixed[3]) and not torch.equal(shifted[0], shifted[3])
    for table, moves_by_one in ((fixed, True), (shifted, True), (free, False)):
        memory = (table % 4).argsort(dim=2)  # a cycle is an output: its inputs by memory
        address = table.gather(2, memory) // 4
        assert bool(((address[:, 1:] - address[:, :-1]) % 16 == 1).all()) == moves_by_one


def test_fixed_order_runs_across_sweeps():
    """A fan-in that does not divide the inputs: only the fixed order never reads an input twice."""
    assert is_regular(clash_free_table(6, 3, 4, parallel=3, order="fixed", seed=0), 6, 3, 4)
    for options in (dict(), dict(order="shifted"), dict(order="fixed", dither=True)):
        with pytest.raises(ValueError, match=r"^clash_free_table: fan_in must divide in_blocks, 6, or .* two sweeps; got 4$"):
            clash_free_table(6, 3, 4, parallel=3, **options)


# ---- very large tables


@pytest.mark.parametrize("shape", [(20000, 20000, 4), (1 << 20, 1 << 18, 4), (1 << 15, 1 << 14, 128), (1 << 12, 1 << 17, 32)], ids=str)
def test_huge_tables(shape):
    assert is_huge(*shape) and is_regular(regular_table(*shape, seed=0), *shape)
    table = fan_in_table(*shape, seed=0)
    assert table.shape == (shape[1], shape[2]) and table.dtype == torch.int32
    assert (table[:, 1:] > table[:, :-1]).all() and table.min() >= 0 and table.max() < shape[0]


def test_huge_draws_are_uniform():
    draws, generator = 4000, torch.Generator().manual_seed(0)
    every_set = {}
    for row in huge_fan_in_table(5, draws, 3, generator).tolist():
        every_set[str(row)] = every_set.get(str(row), 0) + 1
    assert len(every_set) == 10 and all(abs(n - draws / 10) < 5 * (draws * 0.09) ** 0.5 for n in every_set.values())
    kept = torch.zeros(4, 6)
    for _ in range(draws):
        kept += torch.zeros(4, 6).scatter(1, torch.from_numpy(huge_regular_table(6, 4, 3, generator)).long(), 1.0)
    assert ((kept - draws / 2).abs() < 5 * (draws * 0.25) ** 0.5).all()


# ---- made of other tables


def test_numbers_of_numpy_draw_as_pythons():
    n = np.uint8
    assert torch.equal(fan_in_table(n(200), n(100), n(9), seed=0), fan_in_table(200, 100, 9, seed=0))
    assert torch.equal(regular_table(n(200), n(100), n(8), seed=0), regular_table(200, 100, 8, seed=0))
    assert torch.equal(spread_table((n(20), n(20)), n(200), n(100), seed=0), spread_table((20, 20), 200, 100, seed=0))
    shape = {"parallel": 100, "seed": 0}
    assert torch.equal(clash_free_table(n(200), n(100), n(8), **shape), clash_free_table(200, 100, 8, **shape))
    assert torch.equal(local_table(n(200), n(100), n(9)), local_table(200, 100, 9))
    assert is_huge(np.int32(65536), np.int32(65536), np.int32(8))


def test_rewiring_is_a_ladder():
    base = [local_table(64, 1024, 8), local_table(1024, 64, 128)]
    assert torch.equal(rewire(base[0], 64, 0.0, seed=0), base[0])
    values = []
    for fraction in (0, 0.25, 0.5, 1.0):
        tables = [rewire(t, n, fraction, seed=i) for i, (t, n) in enumerate(zip(base, (64, 1024)))]
        assert is_regular(tables[0], 64, 1024, 8) and is_regular(tables[1], 1024, 64, 128)
        values.append(scatter(tables, [64, 1024]).value)
    assert values == sorted(values) and values[0] == 0.125 and values[-1] > 0.58
    full = torch.arange(6).expand(5, 6).int()
    assert torch.equal(rewire(full, 6, 1.0, seed=0), full)  # every swap would connect twice: all are undone
    with pytest.raises(ValueError, match=r"^rewire: fraction must be in \[0, 1\]; got 2$"):
        rewire(full, 6, 2)


def test_blocks_groups_and_panels():
    table = torch.tensor([[0, 3], [1, 2]], dtype=torch.int32)
    assert expand_blocks(table, (3, 1)).tolist() == [[0, 3]] * 3 + [[1, 2]] * 3
    assert expand_blocks(table, (1, 2)).tolist() == [[0, 1, 6, 7], [2, 3, 4, 5]]
    assert is_regular(expand_blocks(regular_table(8, 4, 2, seed=0), 16), 128, 64, 32)
    assert is_regular(grouped_table(12, 8, 4), 12, 8, 3)
    groups = grouped_table(16, 16, 4)
    assert scatter([groups, groups], [16, 16]).value == 0.25
    with pytest.raises(ValueError, match=r"^grouped_table: groups must divide in_blocks and out_blocks, 64 and 10; got 4$"):
        grouped_table(64, 10, 4)
    with pytest.raises(ValueError, match=r"^local_table: fan_in must be in \[1, 4\]; got 5$"):
        local_table(4, 2, 5)
    with pytest.raises(ValueError, match=r"^expand_blocks: block_size must be at least 1; got \(0, 1\)$"):
        expand_blocks(table, (0, 1))
    assert expand_blocks(torch.tensor([[2**29 - 1]]), (1, 4)).max() == 2**31 - 1
    for wrong in (2**29, -1):
        with pytest.raises(ValueError, match=rf"^expand_blocks: table must be in \[0, 536870912\), for .* below 2\^31; got {wrong}$"):
            expand_blocks(torch.tensor([[0, wrong]]), (1, 4))


@pytest.mark.parametrize("draw", [spread_table, lambda *a: clash_free_table(*a, parallel=1)])
def test_bad_fans(draw):
    op = "spread_table" if draw is spread_table else "clash_free_table"
    with pytest.raises(ValueError, match=rf"^{op}: fan_in must be in \[1, 8\]; got 9$"):
        draw(8, 2, 9)
    with pytest.raises(ValueError, match=rf"^{op}: fan_in must be a multiple of 4, or fan_out = 6 \* fan_in / 8 is not whole; got 3$"):
        draw(8, 6, 3)


def test_bad_clash_free():
    with pytest.raises(ValueError, match=r"^clash_free_table: parallel must divide in_blocks, 64; got 7$"):
        clash_free_table(64, 64, 4, parallel=7)
    with pytest.raises(ValueError, match=r"^clash_free_table: order must be one of \('free', 'shifted', 'fixed'\); got 'any'$"):
        clash_free_table(64, 64, 4, parallel=8, order="any")
