"""A total number of connections, shared among junctions."""

from __future__ import annotations

from itertools import pairwise

import pytest

from sparsekern.topology import equal_budget_splits, plan_densities, regular_table

NETWORKS = [(64, 1024, 64), (4096, 512, 16), (4096, 512, 256, 128), (784, 112, 10), (3136, 784, 10), (1024, 16), (100, 60, 40, 20, 10)]


@pytest.mark.parametrize("layers", NETWORKS, ids=str)
@pytest.mark.parametrize("growth", [1.0, 3.0, 10.0])
def test_plans_keep_the_budget_and_can_be_drawn(layers, growth):
    total = sum(a * b for a, b in pairwise(layers))
    for density in (0.02, 0.1, 0.25, 0.5, 0.9, 1.0):
        try:
            plan = plan_densities(layers, density, growth=growth)
        except ValueError as too_thin:
            assert "density must be at least" in str(too_thin)
            continue
        assert plan.density <= density + 1e-12 and sum(plan.connections) == round(plan.density * total)
        for (left, right), fan_in, fan_out, kept in zip(pairwise(layers), plan.fan_in, plan.fan_out, plan.connections, strict=True):
            assert left * fan_out == right * fan_in == kept and 1 <= fan_in <= left and 1 <= fan_out <= right
            if left * right < 1e5:
                regular_table(left, right, fan_in, seed=0)
        if density == 1:
            assert plan.density == 1
        # no junction has room for another step within the budget
        for (left, right), fan_in in zip(pairwise(layers), plan.fan_in):
            step = next(f for f in range(1, left + 1) if right * f % left == 0)
            assert fan_in == left or sum(plan.connections) + step * right > density * total - 1e-6


@pytest.mark.parametrize("density", [0.2, 0.33, 0.5, 0.77])
def test_no_junction_is_far_from_its_share(density):
    layers = (100, 60, 40, 20, 10)
    plan = plan_densities(layers, density, growth=1.0)
    for (left, right), got in zip(pairwise(layers), plan.densities, strict=True):
        step = next(f for f in range(1, left + 1) if right * f % left == 0)
        assert got > density - step / left  # rounded down; rests too small for another's step make later ones denser


def test_the_paper_s_splits():
    assert plan_densities((64, 1024, 64), 0.5).fan_out == (256, 48)  # 25 % and 75 %
    assert plan_densities((64, 1024, 64), 0.25).fan_out == (128, 24)  # 12.5 % and 37.5 %
    assert plan_densities((64, 1024, 64), 0.5, growth=1).fan_out == (512, 32)
    assert plan_densities((100, 60, 40, 20, 10), 0.77, growth=1).densities == (0.75, 0.8, 0.8, 0.8)
    densities = plan_densities((100, 60, 40, 20), 0.3).densities
    assert densities == tuple(sorted(densities))


def test_splits_of_an_exact_total():
    splits = equal_budget_splits((64, 1024, 64), 0.25)
    assert {plan.fan_out for plan in splits} >= {(256, 16), (128, 24), (16, 31), (496, 1)}  # the paper's, and its extremes
    assert {sum(plan.connections) for plan in splits} == {32768} and splits[0].fan_out == (16, 31) and splits[-1].fan_out == (496, 1)
    assert (1008, 1) in {plan.fan_out for plan in equal_budget_splits((64, 1024, 64), 0.5)}


def test_bad_arguments():
    with pytest.raises(ValueError, match=r"^plan_densities: density must be at least 0.00219, one connection per neuron; got 0.001$"):
        plan_densities((4096, 512, 16), 0.001)
    with pytest.raises(ValueError, match=r"^plan_densities: density must be in \(0, 1\]; got 0$"):
        plan_densities((8, 4), 0)
    with pytest.raises(ValueError, match=r"^plan_densities: growth must be above 0; got 0$"):
        plan_densities((8, 4), 0.5, growth=0)
    with pytest.raises(ValueError, match=r"^plan_densities: growth must be in \[1e-150, 1e\+150\] for 3 junctions; got 1e\+200$"):
        plan_densities((8, 8, 8, 8), 0.5, growth=1e200)
    with pytest.raises(ValueError, match=r"^plan_densities: layers must be at least two positive numbers of neurons; got \(8,\)$"):
        plan_densities((8,), 0.5)
    with pytest.raises(ValueError, match=r"^equal_budget_splits: layers must be 3, of two junctions; got 2$"):
        equal_budget_splits((8, 4), 0.5)
