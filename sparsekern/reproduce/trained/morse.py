"""Morse code, 64-1024-64: accuracy against density, against how it is shared between the junctions, and against scatter.

Source: Dey et al., "Characterizing Sparse Connectivity Patterns in Neural Networks", section 2.2.3 and figure 3; section 2.4 and
appendix 5.1; section 3.1. The paper trains with SGD for 30 epochs and prints four accuracies, the others are points of figures.
"""

from __future__ import annotations

from collections.abc import Callable
from itertools import pairwise
from typing import Any

import torch
from torch import Tensor

from sparsekern.reproduce.trained.experiment import Claim, Experiment, Point, Results
from sparsekern.topology import grouped_table, regular_table, rewire, scatter, spread_table
from sparsekern.train import get_recipe
from sparsekern.train.recipe import fold_seed

PAPER = 'Dey et al., "Characterizing Sparse Connectivity Patterns in Neural Networks", '
NEURONS = (64, 1024, 64)
EQUAL = ((1024, 64), (512, 32), (256, 16), (128, 8), (64, 4), (16, 1))
SHARED = {
    "overall density 50 %": ((16, 63), (128, 56), (256, 48), (512, 32), (768, 16), (1008, 1)),
    "overall density 25 %": ((16, 31), (128, 24), (256, 16), (384, 8), (496, 1)),
}
ONLY_FULL = {(128, 56), (768, 16), (384, 8)}  # between points of which something is claimed
PRINTED = {(16, 31): 0.36, (16, 63): 0.36, (496, 1): 0.67, (1008, 1): 0.75}


def _label(fan_out: tuple[int, int]) -> str:
    return f"fan-out {fan_out[0]}, {fan_out[1]}"


def _point(fan_out: tuple[int, int], x: float, **more: Any) -> Point:
    densities = fan_out[0] / NEURONS[1], fan_out[1] / NEURONS[2]
    told = {"junction 1": f"{densities[0]:.1%}", "junction 2": f"{densities[1]:.1%}", "overall": f"{sum(densities) / 2:.1%}"}
    recipe = get_recipe("patterns/morse").with_(options={"fan_out": fan_out})
    return Point(_label(fan_out), recipe, x, PRINTED.get(fan_out), facts=told | more.pop("facts", {}), **more)


# ---- accuracy against density


def _density_points(preset: str) -> list[Point]:
    return [_point(fan_out, sum(fan_out) / (NEURONS[1] + NEURONS[2])) for fan_out in EQUAL]


def _density_claims(results: Results, preset: str) -> list[Claim]:
    means = [results[_label(fan_out)].mean for fan_out in EQUAL]
    figures = ", ".join(f"{mean:.3f}" for mean in means)
    claims = [Claim("more connections, more accuracy", all(a > b for a, b in pairwise(means)), figures)]
    if preset == "full":
        full, half = results[_label((1024, 64))], results[_label((512, 32))]
        claims.append(Claim("fully connected: at least 0.96", full.mean >= 0.96, f"{full.mean:.4f}"))
        claims.append(Claim("half of the connections: within 3 points of it", half.mean >= full.mean - 0.03, f"{half.mean:.4f}"))
    return claims


DENSITY = Experiment(
    "patterns/morse", "Morse code: accuracy against density", PAPER + "figure 3 (a)", _density_points, "density of both junctions",
    _density_claims, log_x=True,
)  # fmt: skip


# ---- accuracy against the junctions' shares


def _junction_points(preset: str) -> list[Point]:
    return [
        _point(fan_out, fan_out[0] / NEURONS[1], panel=panel)
        for panel, fan_outs in SHARED.items()
        for fan_out in fan_outs
        if preset == "full" or fan_out not in ONLY_FULL
    ]


def _junction_claims(results: Results, preset: str) -> list[Claim]:
    later, equal = results[_label((256, 48))], results[_label((512, 32))]
    pairs = [(later.accuracies[seed], equal.accuracies[seed]) for seed in later.accuracies]
    told = "; ".join(f"{a:.4f} and {b:.4f}" for a, b in pairs)
    claims = [
        Claim("25 and 75 % not below 50 and 50 % by more than 0.01, in any seed", all(a >= b - 0.01 for a, b in pairs), told),
        Claim("25 and 75 % better in the mean", later.mean > equal.mean, f"{later.mean:.4f} and {equal.mean:.4f}"),
    ]
    for thin, thick in (((16, 63), (1008, 1)), ((16, 31), (496, 1))):
        least, flipped = results[_label(thin)], results[_label(thick)]
        claims.append(Claim(f"{_label(thin)}: junction 1 at its minimum stays below 0.45", max(least.values) < 0.45, f"{least.mean:.3f}"))
        claims.append(Claim(f"{_label(thick)}: flipped, above 0.5", min(flipped.values) > 0.5, f"{flipped.mean:.3f}"))
    return claims


JUNCTIONS = Experiment(
    "patterns/junction_densities", "Morse code: how two junctions share a number of connections",
    PAPER + "figure 3 (b) and (c), appendix 5.1", _junction_points, "density of junction 1", _junction_claims,
)  # fmt: skip


# ---- accuracy against scatter


def _grouped() -> list[Tensor]:
    """Eight nets side by side: the worst that fan-out (128, 8) can be."""
    return [grouped_table(NEURONS[0], NEURONS[1], 8), grouped_table(NEURONS[1], NEURONS[2], 8)]


def _rewired(fraction: float) -> Callable[[int], list[Tensor]]:
    def tables(seed: int) -> list[Tensor]:
        pairs = zip(_grouped(), NEURONS)
        return [rewire(table, inputs, fraction, seed=fold_seed("rewire", fraction, i, seed)) for i, (table, inputs) in enumerate(pairs)]

    return tables


def _random(seed: int) -> list[Tensor]:
    fans = ((64, 1024, 8), (1024, 64, 128))
    return [regular_table(*sizes, seed=fold_seed("random", i, seed)) for i, sizes in enumerate(fans)]


def _spread(seed: int) -> list[Tensor]:
    fans = ((64, 1024, 8), (1024, 64, 128))
    return [spread_table(*sizes, seed=fold_seed("spread", i, seed)) for i, sizes in enumerate(fans)]


PATTERNS: dict[str, Callable[[int], list[Tensor]]] = {
    "8 nets side by side": lambda seed: _grouped(),
    "2 % of it rewired": _rewired(0.02),
    "10 % of it rewired": _rewired(0.1),
    "30 % of it rewired": _rewired(0.3),
    "random": _random,
    "spread": _spread,
}


def _scatter_points(preset: str) -> list[Point]:
    points = []
    for label, tables in PATTERNS.items():
        found = scatter(tables(0), NEURONS[:2])
        facts = {"scatter": f"{found.value:.3f}", "vector": " ".join(f"{one:.2f}" for one in found.vector)}
        recipe = get_recipe("patterns/morse").with_(options={"fan_out": (128, 8)})
        points.append(Point(label, recipe, found.value, tables=tables, facts=facts))
    return points


def _scatter_claims(results: Results, preset: str) -> list[Claim]:
    ordered = list(results.values())
    worst, best = ordered[0], ordered[-1]
    pairs = [(worst.accuracies[seed], best.accuracies[seed]) for seed in worst.accuracies]
    told = "; ".join(f"{a:.3f} and {b:.3f}" for a, b in pairs)
    rank = spearman([r.point.x for r in ordered], [r.mean for r in ordered])
    return [
        Claim("the worst scatter below the best, in every seed", all(a < b for a, b in pairs), told),
        Claim("rank correlation of scatter and accuracy above 0", rank > 0, f"{rank:.2f}"),
    ]


def spearman(a: list[float], b: list[float]) -> float:
    """Rank correlation; equal values share their rank.

    Example:
        >>> spearman([1.0, 2.0, 3.0], [5.0, 6.0, 9.0])
        1.0
    """
    ranks = [torch.tensor([(sum(y < x for y in v) + sum(y <= x for y in v)) / 2 for x in v], dtype=torch.float64) for v in (a, b)]
    left, right = (rank - rank.mean() for rank in ranks)
    return round(float((left @ right) / (left.norm() * right.norm())), 12)


SCATTER = Experiment(
    "patterns/scatter", "Morse code, fan-out (128, 8): accuracy against scatter", PAPER + "section 3.1 and figure 7", _scatter_points,
    "scatter S", _scatter_claims,
)  # fmt: skip
