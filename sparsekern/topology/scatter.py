"""Scatter: how well a sparse connection pattern spreads, from the pattern alone.

A junction connects ``N_left`` neurons to ``N_right``; its adjacency matrix ``A [N_right, N_left]`` has a 1 per connection. The left
neurons are grouped into ``k`` windows of neighbours, so that a right neuron's ``fan_in`` connections could reach each of them equally
often; the left-window matrix ``[N_right, k]`` counts how many it really has from each. Right windows ``[k, N_left]`` likewise.

Source: Dey et al., "Characterizing Sparse Connectivity Patterns in Neural Networks", section 3 and equation 1. The paper takes
``k = fan`` windows, or one per neuron where the fan is larger than the layer; ``k = gcd(N, fan)`` is both where one divides the other.
Where neither does it is an extension of ours: the smallest windows for which the ideal number of connections stays whole.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

MEASURES = ("present", "fair_share")


@dataclass(frozen=True)
class Scatter:
    """The scatter vector and its minimum, the scatter of the network."""

    vector: tuple[float, ...]  # S_1f, S_1b, S_2f, S_2b, ..., and of the equivalent junction 1:J S_f, S_b where J > 1

    @property
    def value(self) -> float:
        """S, in [0, 1]: the smallest entry of the vector."""
        return min(self.vector)


def scatter(junctions: Sequence[Tensor], sizes: Sequence[int | tuple[int, ...]] | None = None, *, measure: str = "present") -> Scatter:
    """Measure how evenly the junctions of a network spread their connections.

    Args:
        junctions: one per junction, from the input on: an index table ``[N_right, fan_in]`` of integers, as of ``SparseLinear``, or an
            adjacency matrix ``[N_right, N_left]`` of bools, as ``layer.weight_dense() != 0``.
        sizes: neurons of each junction's left layer; needed for tables. A shape, ``(64,)`` for 64, says how a layer's neurons lie;
            only layers in a line are served yet.
        measure: ``"present"`` counts the windows with at least one connection (the paper's equation 1); ``"fair_share"`` takes
            ``min(connections / ideal, 1)``, as the authors' later code does. They differ where the ideal number is above 1.

    Returns:
        :class:`Scatter`: ``.vector`` ``(S_1f, S_1b, ..., S_f, S_b)``, forward (windows of left neurons seen by right ones) and
        backward of each junction and, for more than one, of the equivalent junction from input to output, whose matrix counts paths
        and whose fan-in and fan-out are the products of the junctions'; ``.value`` its minimum.

    Raises:
        ValueError: ``scatter: sizes must be given for index tables; got None``;
            ``scatter: junctions[1] must be of 4 left neurons, the right ones of the junction before it; got 8``;
            ``scatter: junctions[0] must be of a whole mean fan-out of at least 1; got 2.5``

    Cost:
        O(N_right * N_left) memory and time per junction, and the product of the matrices.

    Example:
        The network (8, 4, 4) of the paper's figures 4 and 6, fan-in 2 in both junctions:

        >>> first = torch.tensor([[0, 1], [4, 5], [2, 6], [3, 7]])
        >>> second = torch.tensor([[0, 2], [1, 3], [0, 3], [1, 2]])
        >>> spread = scatter([first, second], sizes=[8, 4])
        >>> spread.vector, spread.value
        ((0.75, 1.0, 1.0, 1.0, 0.75, 1.0), 0.75)
    """
    _check(measure in MEASURES, "measure", f"one of {MEASURES}", repr(measure))
    _check(len(junctions) > 0, "junctions", "at least one", "none")
    _check(sizes is None or len(sizes) == len(junctions), "sizes", f"one per junction, {len(junctions)}", sizes and len(sizes))
    vector: list[float] = []
    paths, fan_in, fan_out = None, 1, 1  # of the equivalent junction so far
    for i, junction in enumerate(junctions):
        adjacent = adjacency(junction, None if sizes is None else _in_a_line(sizes[i]), f"junctions[{i}]")
        if paths is not None:
            fits = adjacent.shape[1] == paths.shape[0]
            rule = f"of {paths.shape[0]} left neurons, the right ones of the junction before it"
            _check(fits, f"junctions[{i}]", rule, adjacent.shape[1])
        fan = _mean_fans(adjacent, f"junctions[{i}]")
        vector += junction_scatter(adjacent, *fan, measure=measure)
        paths = adjacent if paths is None else adjacent @ paths
        fan_in, fan_out = fan_in * fan[0], fan_out * fan[1]
    if len(junctions) > 1:
        vector += junction_scatter(paths, fan_in, fan_out, measure=measure)
    return Scatter(tuple(vector))


def adjacency(junction: Tensor, size: int | None = None, name: str = "junction") -> Tensor:
    """``[N_right, N_left]`` float64 of zeros and ones, from a table of integers and the left ``size``, or from a bool matrix.

    Example:
        >>> adjacency(torch.tensor([[0, 2], [1, 2]]), size=3).tolist()
        [[1.0, 0.0, 1.0], [0.0, 1.0, 1.0]]
    """
    _check(junction.dim() == 2 and not junction.is_floating_point(), name, "[N_right, fan_in] integers or [N_right, N_left] bools",
           f"{list(junction.shape)} {junction.dtype}")  # fmt: skip
    if junction.dtype == torch.bool:
        _check(size in (None, junction.shape[1]), name, f"of {size} left neurons", junction.shape[1])
        return junction.double()
    _check(size is not None, "sizes", "given for index tables", None)
    low, high = (int(junction.min()), int(junction.max())) if junction.numel() else (0, -1)
    _check(low >= 0 and high < size, name, f"in [0, {size})", low if low < 0 else high)
    empty = torch.zeros(junction.shape[0], size, dtype=torch.float64, device=junction.device)
    adjacent = empty.scatter(1, junction.long(), 1.0)
    _check(int(adjacent.sum()) == junction.numel(), name, "without a connection twice", "duplicates")
    return adjacent


def window_adjacency(adjacent: Tensor, windows: int, *, side: str) -> Tensor:
    """Connections between windows of one side and the neurons of the other.

    Args:
        adjacent: ``[N_right, N_left]``, connections or paths.
        windows: number of windows of neighbours; divides the neurons of that side.
        side: ``"left"`` gives ``[N_right, windows]``, ``"right"`` gives ``[windows, N_left]``.

    Example:
        >>> window_adjacency(torch.tensor([[1.0, 1.0, 0.0, 0.0], [0.0, 1.0, 1.0, 0.0]]), 2, side="left").tolist()
        [[2.0, 0.0], [1.0, 1.0]]
    """
    dim = {"left": 1, "right": 0}[side]
    return adjacent.unflatten(dim, (windows, -1)).sum(dim + 1)


def junction_scatter(adjacent: Tensor, fan_in: int, fan_out: int, *, measure: str = "present") -> tuple[float, float]:
    """``(S_f, S_b)`` of one (equivalent) junction ``adjacent [N_right, N_left]``."""
    scores = []
    for side, size, fan in (("left", adjacent.shape[1], fan_in), ("right", adjacent.shape[0], fan_out)):
        windows = math.gcd(size, fan)
        counts, ideal = window_adjacency(adjacent, windows, side=side), fan // windows
        reached = counts >= 1 if measure == "present" else (counts / ideal).clamp_max(1)
        scores.append(float(reached.double().mean()))
    return scores[0], scores[1]


def _mean_fans(adjacent: Tensor, name: str) -> tuple[int, int]:
    """Fan-in and fan-out, whole numbers: those of every neuron, or of the mean neuron of a random pattern."""
    connections = int(adjacent.sum())
    fans = []
    for word, neurons in zip(("fan-in", "fan-out"), adjacent.shape):
        whole = neurons > 0 and connections > 0 and connections % neurons == 0
        _check(whole, name, f"of a whole mean {word} of at least 1", connections / max(1, neurons))
        fans.append(connections // neurons)
    return fans[0], fans[1]


def _in_a_line(size: int | tuple[int, ...]) -> int:
    if isinstance(size, tuple):
        _check(len(size) == 1, "sizes", "numbers of neurons, or shapes of one dimension", size)
        return size[0]
    return size


def _check(condition: bool, arg: str, rule: str, got: object) -> None:
    if not condition:
        raise ValueError(f"scatter: {arg} must be {rule}; got {got}")
