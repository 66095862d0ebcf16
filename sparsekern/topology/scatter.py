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
import operator
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from sparsekern.arguments import is_whole, said
from sparsekern.topology.junctions import Junction, as_junctions, check
from sparsekern.topology.windows import Shape, window_counts, window_ids

MEASURES = ("present", "fair_share")


@dataclass(frozen=True)
class Scatter:
    """The scatter vector and its minimum, the scatter of the network."""

    vector: tuple[float, ...]  # S_1f, S_1b, S_2f, S_2b, ..., and of the equivalent junction 1:J S_f, S_b where J > 1

    @property
    def value(self) -> float:
        """S, in [0, 1]: the smallest entry of the vector."""
        return min(self.vector)

    @property
    def names(self) -> tuple[str, ...]:
        """What each entry is: ``("S_1f", "S_1b", ..., "S_f", "S_b")``."""
        single = len(self.vector) == 2
        junctions = 1 if single else len(self.vector) // 2 - 1
        return tuple(f"S_{i + 1}{d}" for i in range(junctions) for d in "fb") + (() if single else ("S_f", "S_b"))


@dataclass(frozen=True)
class Windows:
    """The two window matrices of one (equivalent) junction, and what their entries ideally are."""

    left: Tensor  # [N_right, k_left] connections (paths) from each left window to each right neuron
    right: Tensor  # [k_right, N_left] connections (paths) from each left neuron to each right window
    ideal_left: int
    ideal_right: int

    def scatter(self, measure: str = "present") -> tuple[float, float]:
        """``(S_f, S_b)``."""
        scores = []
        for counts, ideal in ((self.left, self.ideal_left), (self.right, self.ideal_right)):
            reached = counts >= 1 if measure == "present" else (counts / ideal).clamp_max(1)
            scores.append(float(reached.double().mean()))
        return scores[0], scores[1]


def scatter(junctions: Sequence[Tensor], sizes: Sequence[Shape] | None = None, *, measure: str = "present") -> Scatter:
    """Measure how evenly the junctions of a network spread their connections.

    Args:
        junctions: one per junction, from the input on: an index table ``[N_right, fan_in]`` of integers, as of ``SparseLinear``, or an
            adjacency matrix ``[N_right, N_left]`` of bools, as ``layer.weight_dense() != 0``.
        sizes: neurons of each junction's left layer, and of the output or not; needed for tables. A shape, ``(28, 28)`` or
            ``(256, 4, 4)`` (channels first), says how a layer's neurons lie: its windows are then rectangles or cuboids.
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
        O(connections) per junction; for the equivalent one the product of its windows with each junction's matrix.

    Example:
        The network (8, 4, 4) of the paper's figures 4 and 6, fan-in 2 in both junctions:

        >>> first = torch.tensor([[0, 1], [4, 5], [2, 6], [3, 7]])
        >>> second = torch.tensor([[0, 2], [1, 3], [0, 3], [1, 2]])
        >>> spread = scatter([first, second], sizes=[8, 4])
        >>> spread.vector, spread.value
        ((0.75, 1.0, 1.0, 1.0, 0.75, 1.0), 0.75)
    """
    check(measure in MEASURES, "scatter", "measure", f"one of {MEASURES}", repr(measure))
    return Scatter(tuple(score for one in _all_windows(junctions, sizes, "scatter") for score in one.scatter(measure)))


def window_matrices(junctions: Sequence[Tensor], sizes: Sequence[Shape] | None = None) -> list[Windows]:
    """The window matrices behind :func:`scatter`: of each junction and, for more than one, of the equivalent junction at the end.

    Example:
        >>> first = torch.tensor([[0, 1], [4, 5], [2, 6], [3, 7]])
        >>> window_matrices([first], [8])[0].left.tolist()
        [[2.0, 0.0], [0.0, 2.0], [1.0, 1.0], [1.0, 1.0]]
    """
    return _all_windows(junctions, sizes, "window_matrices")


def window_adjacency(adjacent: Tensor, windows: int | Tensor, *, side: str) -> Tensor:
    """Connections between windows of one side and the neurons of the other.

    Args:
        adjacent: ``[N_right, N_left]``, connections or paths.
        windows: number of windows of neighbours, which divides the neurons of that side; or ``[N]`` the window of each neuron, as of
            :func:`~sparsekern.topology.window_ids`.
        side: ``"left"`` gives ``[N_right, windows]``, ``"right"`` gives ``[windows, N_left]``.

    Example:
        >>> window_adjacency(torch.tensor([[1.0, 1.0, 0.0, 0.0], [0.0, 1.0, 1.0, 0.0]]), 2, side="left").tolist()
        [[2.0, 0.0], [1.0, 1.0]]
    """
    check(side in ("left", "right"), "window_adjacency", "side", "'left' or 'right'", repr(side))
    dim = {"left": 1, "right": 0}[side]
    matrix = isinstance(adjacent, Tensor) and adjacent.dim() == 2 and adjacent.layout == torch.strided
    op = "window_adjacency"
    check(matrix, op, "adjacent", "a matrix [N_right, N_left]", said(adjacent))
    neurons = adjacent.shape[dim]
    if isinstance(windows, Tensor):
        whole = windows.dtype in (torch.int32, torch.int64) and windows.shape == (neurons,) and windows.device.type != "meta"
        check(whole, op, "windows", f"[{neurons}] int32 or int64", f"{list(windows.shape)} {windows.dtype}")
        low, high = (int(windows.min()), int(windows.max())) if neurons else (0, -1)
        check(low >= 0, op, "windows", "at least 0", low)
    else:
        number = operator.index(windows) if is_whole(windows) else 0
        check(number > 0 and neurons % max(1, number) == 0, op, "windows", f"a divisor of {neurons}", said(windows))
        return adjacent.unflatten(dim, (number, neurons // number)).sum(dim + 1)
    shape = list(adjacent.shape)
    shape[dim] = high + 1
    counted = adjacent if adjacent.is_floating_point() or adjacent.is_complex() else adjacent.long()  # as sum() counts the others
    return counted.new_zeros(shape).index_add_(dim, windows.to(adjacent.device), counted)


def junction_scatter(adjacent: Tensor, fan_in: int, fan_out: int, *, measure: str = "present") -> tuple[float, float]:
    """``(S_f, S_b)`` of one (equivalent) junction ``adjacent [N_right, N_left]`` whose neurons lie in a line."""
    left, right = math.gcd(adjacent.shape[1], fan_in), math.gcd(adjacent.shape[0], fan_out)
    counts = window_adjacency(adjacent, left, side="left"), window_adjacency(adjacent, right, side="right")
    return Windows(*counts, fan_in // left, fan_out // right).scatter(measure)


def _all_windows(junctions: Sequence[Tensor], sizes: Sequence[Shape] | None, op: str) -> list[Windows]:
    checked = as_junctions(junctions, sizes, op)
    layers: list[Shape] = list(sizes) if sizes is not None else [j.left for j in checked]
    layers += [checked[-1].right] if len(layers) == len(checked) else []
    fans = [_mean_fans(junction, op, f"junctions[{i}]") for i, junction in enumerate(checked)]
    found = [_windows([j], layers[i], layers[i + 1], *fans[i]) for i, j in enumerate(checked)]
    if len(checked) > 1:
        fan_in, fan_out = (math.prod(side) for side in zip(*fans))
        found.append(_windows(checked, layers[0], layers[-1], fan_in, fan_out))
    return found


def _windows(junctions: list[Junction], left: Shape, right: Shape, fan_in: int, fan_out: int) -> Windows:
    """Of the equivalent junction; only the windows, never its full matrix, go through the product."""
    cut_left, cut_right = window_counts(left, fan_in), window_counts(right, fan_out)
    k_left, k_right = math.prod(cut_left), math.prod(cut_right)
    from_left = junctions[0].left_windows(window_ids(left, cut_left), k_left)
    for junction in junctions[1:]:
        from_left = junction.times(from_left)
    to_right = junctions[-1].right_windows(window_ids(right, cut_right), k_right)
    for junction in reversed(junctions[:-1]):
        to_right = junction.transposed_times(to_right.T.contiguous()).T
    return Windows(from_left, to_right, fan_in // k_left, fan_out // k_right)


def _mean_fans(junction: Junction, op: str, name: str) -> tuple[int, int]:
    """Fan-in and fan-out, whole numbers: those of every neuron, or of the mean neuron of a random pattern."""
    connections, fans = junction.connections, []
    for word, size in (("fan-in", junction.right), ("fan-out", junction.left)):
        whole = size > 0 and connections > 0 and connections % size == 0
        check(whole, op, name, f"of a whole mean {word} of at least 1", connections / max(1, size))
        fans.append(connections // size)
    return fans[0], fans[1]
