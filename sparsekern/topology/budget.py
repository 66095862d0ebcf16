"""How many connections each junction gets of a total: later junctions denser."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from fractions import Fraction
from itertools import pairwise

from sparsekern.arguments import check_real
from sparsekern.topology.regular import fan_in_step


@dataclass(frozen=True)
class DensityPlan:
    """Fans of each junction of a network, all whole, every unit connected."""

    layers: tuple[int, ...]
    fan_in: tuple[int, ...]

    @property
    def fan_out(self) -> tuple[int, ...]:
        return tuple(right * fan // left for (left, right), fan in zip(pairwise(self.layers), self.fan_in))

    @property
    def connections(self) -> tuple[int, ...]:
        return tuple(right * fan for right, fan in zip(self.layers[1:], self.fan_in))

    @property
    def densities(self) -> tuple[float, ...]:
        return tuple(fan / left for left, fan in zip(self.layers, self.fan_in))

    @property
    def density(self) -> float:
        """Kept connections of all possible ones, over all junctions."""
        return sum(self.connections) / sum(left * right for left, right in pairwise(self.layers))


def plan_densities(layers: Sequence[int], density: float, *, growth: float = 3.0) -> DensityPlan:
    """Share a total number of connections among junctions, each ``growth`` times as dense as the one before it, none above 1.

    Args:
        layers: neurons of each layer, input first.
        density: of all possible connections, in (0, 1]; the plan keeps at most that many.
        growth: density of a junction over that of the one before it. 3 gives two equal junctions 25 % and 75 % for a total of 50 %,
            where the paper's Morse networks are best (12.5 % and 37.5 % for 25 %); 1 makes all equally dense. Its powers, up to the last
            junction's, must be floats.

    Returns:
        :class:`DensityPlan`, with fixed fan-in and fan-out in each junction; rounded down to whole fans, and what is left over goes, one
        step at a time, to the junction that lacks most.

    Raises:
        ValueError: ``plan_densities: density must be at least 0.00219, one connection per neuron; got 0.001``;
            ``plan_densities: growth must be in [1e-150, 1e+150] for 3 junctions; got 1e+200``

    Source:
        Dey et al., "Characterizing Sparse Connectivity Patterns in Neural Networks", section 2.4: later junctions need more connections.

    Example:
        >>> plan = plan_densities((64, 1024, 64), 0.5)
        >>> plan.fan_out, plan.densities, plan.density
        ((256, 48), (0.25, 0.75), 0.5)
        >>> plan_densities((4096, 512, 16), 0.004).fan_out
        (1, 8)
    """
    shapes = _shapes("plan_densities", layers)
    check_real("plan_densities", "in (0, 1]", lambda d: 0 < d <= 1, density=density)
    check_real("plan_densities", "above 0", lambda g: 0 < g < float("inf"), growth=growth)
    growth, most = float(growth), 10.0 ** (300 / max(1, len(shapes) - 1))
    within = 1 / most <= growth <= most
    check_real("plan_densities", f"in [{1 / most:g}, {most:g}] for {len(shapes)} junctions", lambda _: within, growth=growth)
    total = sum(left * right for left, right in shapes)
    budget = int(Fraction(str(density)) * total)  # as written: 0.35 of 100 is 35
    steps = [fan_in_step(left, right) for left, right in shapes]
    least = sum(right * step for (_, right), step in zip(shapes, steps))
    if budget < least:
        raise ValueError(f"plan_densities: density must be at least {least / total:.3g}, one connection per neuron; got {density}")
    wanted = _wanted(shapes, budget, growth)
    fans = [max(step, int(share * left / step + 1e-9) * step) for (left, _), step, share in zip(shapes, steps, wanted)]
    kept = lambda: sum(right * fan for (_, right), fan in zip(shapes, fans))  # noqa: E731
    while kept() > budget:  # a junction that cannot be thinner took more than its share: the densest give it back
        i = max((i for i in range(len(fans)) if fans[i] > steps[i]), key=lambda i: fans[i] / shapes[i][0] - wanted[i])
        fans[i] -= steps[i]
    while True:
        room = [i for i, (left, right) in enumerate(shapes) if fans[i] < left and kept() + steps[i] * right <= budget]
        if not room:
            return DensityPlan(tuple(layers), tuple(fans))
        i = max(room, key=lambda i: (wanted[i] - fans[i] / shapes[i][0], i))
        fans[i] += steps[i]


def equal_budget_splits(layers: Sequence[int], density: float) -> list[DensityPlan]:
    """All ways to share a total exactly between two junctions, from the thinnest first junction to the densest.

    Source:
        The sweeps of figure 3 (b) and (c) of the same paper.

    Example:
        >>> splits = equal_budget_splits((64, 1024, 64), 0.5)
        >>> len(splits), splits[0].fan_out, splits[-1].fan_out
        (63, (16, 63), (1008, 1))
    """
    shapes = _shapes("equal_budget_splits", layers)
    if len(shapes) != 2:
        raise ValueError(f"equal_budget_splits: layers must be 3, of two junctions; got {len(layers)}")
    check_real("equal_budget_splits", "in (0, 1]", lambda d: 0 < d <= 1, density=density)
    (left, middle), (_, right) = shapes
    budget = Fraction(str(density)) * (left * middle + middle * right)
    first, second = fan_in_step(left, middle), fan_in_step(middle, right)
    splits = []
    for fan in range(first, left + 1, first):
        rest = (budget - fan * middle) / right
        if rest.denominator == 1 and second <= rest <= middle and rest % second == 0:
            splits.append(DensityPlan(tuple(layers), (fan, int(rest))))
    return splits


def _wanted(shapes: list[tuple[int, int]], budget: int, growth: float) -> list[float]:
    """Densities in the ratio ``growth``, cut at 1, that sum up to the budget (by halving the interval of the first one)."""
    low, high = 0.0, max(1.0, growth ** -(len(shapes) - 1))
    for _ in range(200):
        middle = (low + high) / 2
        shares = [min(1.0, middle * growth**i) for i in range(len(shapes))]
        used = sum(share * left * right for share, (left, right) in zip(shares, shapes))
        low, high = (middle, high) if used < budget else (low, middle)
    return [min(1.0, high * growth**i) for i in range(len(shapes))]


def _shapes(op: str, layers: Sequence[int]) -> list[tuple[int, int]]:
    if not isinstance(layers, Sequence):
        raise ValueError(f"{op}: layers must be a sequence of whole numbers; got {type(layers).__name__}")
    if len(layers) < 2 or not all(isinstance(n, int) and 1 <= n < 2**31 for n in layers):
        raise ValueError(f"{op}: layers must be at least two positive numbers of neurons; got {tuple(layers)}")
    return list(pairwise(layers))
