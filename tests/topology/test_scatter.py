"""Scatter, against what Dey et al. say of it: their example, dense networks, and the expectation of random ones."""

from __future__ import annotations

from itertools import pairwise
from math import comb

import pytest
import torch

from sparsekern.topology import (
    adjacency,
    fan_in_table,
    path_counts,
    regular_table,
    scatter,
    window_adjacency,
    window_counts,
    window_ids,
    window_matrices,
)
from sparsekern.topology.scatter import junction_scatter

# the (8, 4, 4) network of figures 4 and 6
FIRST = torch.tensor([[0, 1], [4, 5], [2, 6], [3, 7]])
SECOND = torch.tensor([[0, 2], [1, 3], [0, 3], [1, 2]])


def morse(seed, draw=regular_table):
    """Tables of the Morse network 64-1024-64 with fan-out (128, 8): fan-in 8 and 128."""
    return [draw(64, 1024, 8, seed=seed), draw(1024, 64, 128, seed=seed + 1000)]


def test_the_paper_s_example():
    got = scatter([FIRST, SECOND], sizes=[8, 4])
    assert got.vector == (0.75, 1, 1, 1, 0.75, 1) and got.value == 0.75
    windows = window_adjacency(adjacency(FIRST, 8), 2, side="left")
    assert windows.tolist() == [[2, 0], [0, 2], [1, 1], [1, 1]]  # 6 of 8 are reached
    assert window_adjacency(adjacency(FIRST, 8), 1, side="right").tolist() == [[1] * 8]
    as_matrices = [adjacency(FIRST, 8).bool(), adjacency(SECOND, 4).bool()]
    assert scatter(as_matrices) == got and scatter([FIRST.int(), as_matrices[1]], [(8,), 4]) == got
    assert scatter([FIRST], [8]).vector == (0.75, 1)
    # ideal numbers of 1 everywhere but in the equivalent junction's matrix, where none of the entries is in between
    assert scatter([FIRST, SECOND], sizes=[8, 4], measure="fair_share").vector[:4] == got.vector[:4]


def test_equivalent_junction_counts_paths():
    """fan-in 2*2 = 4, fan-out 1*2 = 2: 4 windows of 2 inputs, 2 windows of 2 outputs, on the product of the matrices."""
    paths = adjacency(SECOND, 4) @ adjacency(FIRST, 8)
    assert junction_scatter(paths, 4, 2) == (0.75, 1.0)
    left = [[sum(paths[j, 2 * w : 2 * w + 2]) for w in range(4)] for j in range(4)]
    assert torch.equal(window_adjacency(paths, 4, side="left"), torch.tensor(left, dtype=torch.float64))


@pytest.mark.parametrize("measure", ["present", "fair_share"])
@pytest.mark.parametrize("layers", [(8, 4, 4), (64, 1024, 64), (6, 10, 4), (5, 7)])
def test_fully_connected_is_all_ones(layers, measure):
    full = [torch.ones(right, left, dtype=torch.bool) for left, right in pairwise(layers)]
    got = scatter(full, measure=measure)
    assert set(got.vector) == {1.0} and got.value == 1 and len(got.vector) == (2 if len(layers) == 2 else 2 * len(layers))


def reached(size, fan):
    """The chance that ``fan`` of ``size`` neurons, drawn without replacement, meet a window of ``size/fan`` of them."""
    return 1 - comb(size - size // fan, fan) / comb(size, fan)


def test_random_morse_expectation():
    """Fan-out (128, 8): 0.6791 for 8 of 64 and 0.6577 for 128 of 1024."""
    assert round(reached(64, 8), 4) == 0.6791 and round(reached(1024, 128), 4) == 0.6577
    got = torch.tensor([scatter(morse(seed), [64, 1024]).vector for seed in range(20)]).mean(0)
    want = torch.tensor([reached(64, 8), reached(1024, 128), reached(1024, 128), reached(64, 8), 1, 1])
    # 8192 entries in each matrix of a junction, 20 draws: 5 standard errors of independent entries
    assert ((got - want).abs()[:4] < 5 * (0.25 / (8192 * 20)) ** 0.5).all()
    # the forward values of a fixed fan-in alone are the same; its fan-out is fixed only on average
    forward = torch.tensor([scatter(morse(seed, fan_in_table), [64, 1024]).vector for seed in range(20)]).mean(0)[[0, 2]]
    assert ((forward - want[[0, 2]]).abs() < 5 * (0.25 / (8192 * 20)) ** 0.5).all()


def test_equivalent_junction_of_morse():
    """Fan-in 8*128 = 1024 of 64 inputs: 64 windows of one neuron, ideally 16 paths from each (section 5.2 of the paper)."""
    tables = morse(0)
    paths = adjacency(tables[1], 1024) @ adjacency(tables[0], 64)
    assert paths.shape == (64, 64) and paths.mean() == 16
    present, share = (scatter(tables, [64, 1024], measure=m).vector[4] for m in ("present", "fair_share"))
    assert present == (paths >= 1).double().mean() and share == (paths / 16).clamp_max(1).double().mean()
    assert present == 1.0 and 0.89 < share < 0.93  # conventions: 1.0 against 0.914


def test_windows_where_the_fan_does_not_divide():
    table = regular_table(6, 6, 4, seed=0)  # gcd(6, 4) = 2 windows of 3, ideally 2 connections from each
    forward, backward = scatter([table], [6]).vector
    windows = window_adjacency(adjacency(table, 6), 2, side="left")
    assert windows.shape == (6, 2) and forward == 1.0 and backward == 1.0  # 4 of 6 always meet both halves
    assert scatter([table], [6], measure="fair_share").vector[0] == (windows / 2).clamp_max(1).mean()


def test_bad_patterns_score_low():
    identity = torch.arange(16).reshape(8, 2)  # each right neuron reads two neighbours: one window each
    assert scatter([identity], [16]).vector[0] == 0.5
    blocks = (torch.arange(4)[None] + 4 * (torch.arange(16) // 4)[:, None]).int()  # four groups, never mixed
    assert scatter([blocks, blocks], [16, 16]).value == 0.25


def test_two_and_three_dimensions():
    """The four windows of a 4 x 4 image are its quadrants; of 16 neurons in a line, its rows."""
    four = torch.tensor([[0, 2, 8, 10], [0, 1, 4, 5], [0, 4, 8, 12], [3, 6, 9, 12]])  # one per quadrant; one quadrant; half; diagonal
    assert window_matrices([four], [(4, 4)])[0].left.tolist() == [[1, 1, 1, 1], [4, 0, 0, 0], [2, 0, 2, 0], [0, 2, 2, 0]]
    assert window_matrices([four], [16])[0].left.tolist() == [[2, 0, 2, 0], [2, 2, 0, 0], [1, 1, 1, 1], [1, 1, 1, 1]]
    cube = torch.tensor([[0, 3, 4, 7], [0, 1, 2, 3]])  # [C, H, W] = [2, 2, 2]: 4 windows cut two of the three dimensions
    got = window_matrices([cube], [(2, 2, 2), 2])[0]
    assert got.left.shape == (2, 4) and got.left.sum(1).tolist() == [4, 4]
    # [C, H, W] = [2, 4, 4], fan-in 8: the eight boxes of 1 x 2 x 2; one neuron per box, one box and its twin in the other map, a row each
    volume = torch.tensor(
        [[0, 2, 8, 10, 16, 18, 24, 26], [0, 1, 4, 5, 16, 17, 20, 21], [0, 1, 2, 3, 16, 17, 18, 19], [0, 3, 12, 15, 21, 22, 25, 26]]
    )
    left = window_matrices([volume], [(2, 4, 4)])[0].left
    assert left.tolist() == [[1] * 8, [4, 0, 0, 0, 4, 0, 0, 0], [2, 2, 0, 0, 2, 2, 0, 0], [1] * 8]
    in_a_line = window_matrices([volume], [32])[0].left  # windows of four neighbours: each row of a map
    assert in_a_line[:2].tolist() == [[2, 0, 2, 0, 2, 0, 2, 0], [2, 2, 0, 0, 2, 2, 0, 0]]
    assert scatter([volume], [(2, 4, 4)]).vector[0] == (8 + 2 + 4 + 8) / 32
    assert scatter([volume], [(2, 4, 4)], measure="fair_share").vector[0] == scatter([volume], [(2, 4, 4)]).vector[0]  # ideal number 1


@pytest.mark.parametrize("sizes", [[64, 1024, 64], [(8, 8), (4, 16, 16), (8, 8)], [(8, 8), 1024]])
def test_tables_matrices_and_the_definition_agree(sizes, monkeypatch):
    """Window by window from the full product, from tables, from bool matrices, and as large tables are multiplied."""
    tables = morse(5)
    matrices = [adjacency(tables[0], 64).bool(), adjacency(tables[1], 1024).bool()]
    got = window_matrices(tables, sizes)
    layers = [*sizes, 64][:3]
    for one, part, (left, right), fans in zip(
        got, ([0], [1], [0, 1]), ((0, 1), (1, 2), (0, 2)), ((8, 128), (128, 8), (1024, 1024)), strict=True
    ):
        paths = path_counts([tables[i] for i in part], [sizes[i] for i in part])
        for dim, layer, fan, counts, ideal in (
            (1, layers[left], fans[0], one.left, one.ideal_left), (0, layers[right], fans[1], one.right, one.ideal_right)
        ):  # fmt: skip
            k = counts.shape[dim]
            assert fan == k * ideal and torch.equal(counts.sum(dim), paths.sum(dim))
            ids = window_ids(layer, window_counts(layer, fan))
            assert torch.equal(window_adjacency(paths, ids, side="left" if dim else "right"), counts)
    again = window_matrices(matrices, sizes)
    assert all(torch.equal(a.left, b.left) and torch.equal(a.right, b.right) for a, b in zip(got, again))
    monkeypatch.setattr("sparsekern.topology.junctions._DENSE", 0)
    again = window_matrices(tables, sizes)
    assert all(torch.equal(a.left, b.left) and torch.equal(a.right, b.right) for a, b in zip(got, again))
    assert torch.equal(path_counts(tables, sizes), adjacency(tables[1], 1024) @ adjacency(tables[0], 64))


def test_three_junctions():
    """The windows of the equivalent junction are those of the product, through whichever junction they went first."""
    sizes = [12, 18, 24, 12]
    tables = [regular_table(left, right, fan, seed=fan) for (left, right), fan in zip(pairwise(sizes), (2, 3, 4), strict=True)]
    got, paths = window_matrices(tables, sizes)[-1], path_counts(tables, sizes)
    assert torch.equal(got.left, window_adjacency(paths, 12, side="left")) and got.ideal_left == 2  # fan-in 24
    assert torch.equal(got.right, window_adjacency(paths, 12, side="right")) and got.ideal_right == 2  # fan-out 3 * 4 * 2
    assert scatter(tables, sizes).names[-4:] == ("S_3f", "S_3b", "S_f", "S_b")


def test_large_layers_need_no_matrix():
    """A matrix of 10^5 x 10^5 would be 80 GB."""
    size = 100_000
    first = torch.arange(size * 4).reshape(size, 4) % size
    got = scatter([first, first], [size, size])
    assert len(got.vector) == 6 and got.vector[0] == 0.25 and got.names == ("S_1f", "S_1b", "S_2f", "S_2b", "S_f", "S_b")


@pytest.mark.parametrize("dtype", [torch.bool, torch.uint8, torch.int32])
def test_windows_of_whole_numbers_count_far(dtype):
    ids, adjacent = torch.arange(600) // 300, torch.ones(2, 600, dtype=dtype)
    assert window_adjacency(adjacent, ids, side="left").tolist() == window_adjacency(adjacent, 2, side="left").tolist() == [[300] * 2] * 2
    assert window_adjacency(adjacent[:, :0], ids[:0], side="left").shape == (2, 0)
    with pytest.raises(ValueError, match=r"^window_adjacency: windows must be at least 0; got -1$"):
        window_adjacency(adjacent, ids - 1, side="left")


def test_bad_arguments():
    for sentence, junctions, sizes, options in [
        ("sizes must be given for index tables; got None", [FIRST], None, {}),
        ("sizes must be one per junction, 2, or one per layer; got 1", [FIRST, SECOND], [8], {}),
        ("sizes must be of 4 output neurons at its end; got (2, 4)", [FIRST], [8, (2, 4)], {}),
        ("junctions must be at least one; got none", [], None, {}),
        ("junctions[1] must be of 4 left neurons, the right ones of the junction before it; got 8", [FIRST, FIRST], [8, 8], {}),
        ("junctions[0] must be in [0, 7); got 7", [FIRST], [7], {}),
        ("junctions[0] must be without a connection twice; got duplicates", [torch.tensor([[1, 1]])], [2], {}),
        ("junctions[0] must be of a whole mean fan-out of at least 1; got 2.5", [fan_in_table(24, 12, 5, seed=0)], [24], {}),
        (
            "junctions[0] must be [N_right, fan_in] integers or [N_right, N_left] bools; got [2, 2] torch.float32",
            [torch.ones(2, 2)], None, {},
        ),
        ("measure must be one of ('present', 'fair_share'); got 'mean'", [FIRST], [8], dict(measure="mean")),
    ]:  # fmt: skip
        with pytest.raises(ValueError) as raised:
            scatter(junctions, sizes, **options)
        assert str(raised.value) == f"scatter: {sentence}"
