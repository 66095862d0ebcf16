"""Junctions as matrices: who is connected to whom, over how many paths, and which units are cut off.

The adjacency matrix of a junction is ``A [N_right, N_left]``, 1 where a connection exists. Products of the matrices of junctions that
follow each other count paths: the *equivalent junction*.

Source: Dey et al., "Characterizing Sparse Connectivity Patterns in Neural Networks", section 3.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from sparsekern.arguments import said
from sparsekern.topology.windows import Shape, neurons

_DENSE = 1 << 26  # elements up to which a table is multiplied as a matrix
_COLUMNS = 64  # of the other factor at a time, for larger ones


def check(condition: bool, op: str, arg: str, rule: str, got: object) -> None:
    if not condition:
        raise ValueError(f"{op}: {arg} must be {rule}; got {got}")


@dataclass(frozen=True)
class Junction:
    """One checked junction: a table ``[N_right, fan_in]`` int64, or a matrix ``[N_right, N_left]`` bool."""

    left: int
    right: int
    table: Tensor | None
    matrix: Tensor | None

    @property
    def _bools(self) -> Tensor:
        """The matrix, where there is no table."""
        assert self.matrix is not None
        return self.matrix

    @property
    def connections(self) -> int:
        return self.table.numel() if self.table is not None else int(self._bools.sum())

    def dense(self) -> Tensor:
        """``[N_right, N_left]`` float64 of zeros and ones."""
        if self.table is None:
            return self._bools.double()
        return torch.zeros(self.right, self.left, dtype=torch.float64, device=self.table.device).scatter_(1, self.table, 1.0)

    def times(self, m: Tensor) -> Tensor:
        """``A m``, ``[N_left, k]`` -> ``[N_right, k]`` float64."""
        if self.table is None or self.left * self.right <= _DENSE:
            return self.dense() @ m
        bags = [torch.nn.functional.embedding_bag(self.table, c.contiguous(), mode="sum") for c in m.split(_COLUMNS, dim=1)]
        return torch.cat(bags, dim=1)

    def transposed_times(self, m: Tensor) -> Tensor:
        """``A' m``, ``[N_right, k]`` -> ``[N_left, k]`` float64."""
        if self.table is None or self.left * self.right <= _DENSE:
            return self.dense().T @ m
        out = torch.zeros(self.left, m.shape[1], dtype=torch.float64, device=m.device)
        for column in self.table.T:  # one connection of every right neuron at a time: no copy of m per connection
            out.index_add_(0, column, m)
        return out

    def left_windows(self, ids: Tensor, windows: int) -> Tensor:
        """``[N_right, windows]`` float64: connections of each right neuron from each window of left ones."""
        ids = ids.to((self.table if self.table is not None else self._bools).device)
        if self.table is None:
            return torch.zeros(self.right, windows, dtype=torch.float64, device=ids.device).index_add_(1, ids, self._bools.double())
        cells = torch.arange(self.right, device=ids.device)[:, None] * windows + ids[self.table]
        return torch.bincount(cells.flatten(), minlength=self.right * windows).reshape(self.right, windows).double()

    def right_windows(self, ids: Tensor, windows: int) -> Tensor:
        """``[windows, N_left]`` float64: connections of each left neuron to each window of right ones."""
        ids = ids.to((self.table if self.table is not None else self._bools).device)
        if self.table is None:
            return torch.zeros(windows, self.left, dtype=torch.float64, device=ids.device).index_add_(0, ids, self._bools.double())
        cells = ids[:, None] * self.left + self.table
        return torch.bincount(cells.flatten(), minlength=windows * self.left).reshape(windows, self.left).double()


def as_junction(junction: Tensor, size: int | None, op: str, name: str) -> Junction:
    """Check a table of integers, with the left ``size``, or a matrix of bools."""
    if not isinstance(junction, Tensor):
        raise TypeError(f"{op}: {name} must be a tensor; got {type(junction).__name__}")
    whole = not (junction.is_floating_point() or junction.is_complex())
    check(junction.dim() == 2 and whole, op, name, "[N_right, fan_in] integers or [N_right, N_left] bools",
          f"{list(junction.shape)} {junction.dtype}")  # fmt: skip
    right = junction.shape[0]
    if junction.dtype == torch.bool:
        check(size in (None, junction.shape[1]), op, name, f"of {size} left neurons", junction.shape[1])
        return Junction(junction.shape[1], right, None, junction)
    check(size is not None, op, "sizes", "given for index tables", None)
    assert size is not None
    low, high = (int(junction.min()), int(junction.max())) if junction.numel() else (0, -1)
    check(low >= 0 and high < size, op, name, f"in [0, {size})", low if low < 0 else high)
    rows = junction.sort(dim=1).values
    check(not bool((rows[:, 1:] == rows[:, :-1]).any()), op, name, "without a connection twice", "duplicates")
    return Junction(size, right, junction.long(), None)


def as_junctions(junctions: Sequence[Tensor], sizes: Sequence[Shape] | None, op: str) -> list[Junction]:
    """Check the junctions of a network, from the input on; ``sizes`` of the left layers, and of the output or not."""
    check(isinstance(junctions, Sequence), op, "junctions", "a sequence of tensors", type(junctions).__name__)
    check(len(junctions) > 0, op, "junctions", "at least one", "none")
    check(sizes is None or isinstance(sizes, tuple | list), op, "sizes", "a sequence of sizes", said(sizes))
    fits = sizes is None or len(sizes) in (len(junctions), len(junctions) + 1)
    check(fits, op, "sizes", f"one per junction, {len(junctions)}, or one per layer", sizes and len(sizes))
    out: list[Junction] = []
    for i, junction in enumerate(junctions):
        out.append(as_junction(junction, None if sizes is None else neurons(sizes[i]), op, f"junctions[{i}]"))
        if i:
            rule = f"of {out[i - 1].right} left neurons, the right ones of the junction before it"
            check(out[i].left == out[i - 1].right, op, f"junctions[{i}]", rule, out[i].left)
    if sizes is not None and len(sizes) > len(junctions):
        check(neurons(sizes[-1]) == out[-1].right, op, "sizes", f"of {out[-1].right} output neurons at its end", sizes[-1])
    return out


def adjacency(junction: Tensor, size: Shape | None = None) -> Tensor:
    """``[N_right, N_left]`` float64 of zeros and ones, from a table of integers and the left ``size``, or from a bool matrix.

    Example:
        >>> adjacency(torch.tensor([[0, 2], [1, 2]]), size=3).tolist()
        [[1.0, 0.0, 1.0], [0.0, 1.0, 1.0]]
    """
    return as_junction(junction, None if size is None else neurons(size), "adjacency", "junction").dense()


def path_counts(junctions: Sequence[Tensor], sizes: Sequence[Shape] | None = None) -> Tensor:
    """The equivalent junction ``A_J ... A_2 A_1``: paths from each neuron of the first layer to each of the last.

    Args:
        junctions: as for :func:`~sparsekern.topology.scatter`; part of a network gives the equivalent junction of that part.
        sizes: neurons of each junction's left layer, and of the output or not; needed for tables.

    Returns:
        ``[N_last, N_first]`` float64, whole numbers (exact below 2^53).

    Example:
        >>> first, second = torch.tensor([[0, 1], [2, 3]]), torch.tensor([[0, 1]])
        >>> path_counts([first, second], [4, 2]).tolist()
        [[1.0, 1.0, 1.0, 1.0]]
    """
    checked = as_junctions(junctions, sizes, "path_counts")
    paths = checked[0].dense()
    for junction in checked[1:]:
        paths = junction.times(paths)
    return paths


@dataclass(frozen=True)
class Connected:
    """Which units of each layer lie on a path from the input to the output."""

    from_input: tuple[Tensor, ...]  # per layer [N] bool: some input reaches the unit
    to_output: tuple[Tensor, ...]  # per layer [N] bool: the unit reaches some output

    def disconnected(self) -> dict[int, list[int]]:
        """The units on no path from input to output, by layer; layers without such units are left out."""
        lost = {layer: (~(a & b)).nonzero().flatten().tolist() for layer, (a, b) in enumerate(zip(self.from_input, self.to_output))}
        return {layer: units for layer, units in lost.items() if units}


def connected_units(junctions: Sequence[Tensor], sizes: Sequence[Shape] | None = None) -> Connected:
    """Find units that carry nothing: no input reaches them, or they reach no output.

    A fixed fan-in and fan-out never leaves one; a fixed fan-in alone, a random mask or too low a density may.

    Args:
        junctions, sizes: as for :func:`path_counts`.

    Cost:
        O(connections).

    Example:
        >>> first, second = torch.tensor([[0, 1], [0, 2]]), torch.tensor([[1], [1]])
        >>> connected_units([first, second], [4, 2]).disconnected()        # inputs 1 and 3, hidden unit 0
        {0: [1, 3], 1: [0]}
    """
    checked = as_junctions(junctions, sizes, "connected_units")
    device = junctions[0].device
    forward = [torch.ones(checked[0].left, 1, dtype=torch.float64, device=device)]
    for junction in checked:
        forward.append((junction.times(forward[-1]) > 0).double())
    backward = [torch.ones(checked[-1].right, 1, dtype=torch.float64, device=device)]
    for junction in reversed(checked):
        backward.append((junction.transposed_times(backward[-1]) > 0).double())
    flat = lambda marks: tuple(mark[:, 0] > 0 for mark in marks)  # noqa: E731
    return Connected(flat(forward), flat(backward[::-1]))
