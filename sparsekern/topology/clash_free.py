"""Clash-free junctions: connections that hardware with so many memories can read all at once."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from sparsekern.arguments import as_whole, said
from sparsekern.topology.draw import generator, uniform
from sparsekern.topology.regular import check_regular

ORDERS = ("free", "shifted", "fixed")


def clash_free_table(
    in_blocks: int, out_blocks: int, fan_in: int, *, parallel: int, order: str = "free", dither: bool = False, seed: int | None = None
) -> Tensor:
    """Draw a junction of fixed fan-in and fan-out whose connections, read ``parallel`` at a time, never ask one memory twice.

    Input ``n`` lies in memory ``n % parallel`` at address ``n // parallel``. Connections are numbered output by output; a cycle reads
    the next ``parallel`` of them, one from each memory; after ``in_blocks / parallel`` cycles, a sweep, every input was read once;
    there are ``fan_out`` sweeps.

    Args:
        in_blocks, out_blocks: inputs and outputs.
        fan_in: kept inputs per output, in ``[1, in_blocks]``; ``fan_out = out_blocks * fan_in / in_blocks`` must be whole.
        parallel: memories, and connections per cycle; divides ``in_blocks``.
        order: addresses of a memory in a sweep: ``"free"`` any permutation; ``"shifted"`` one after the other from a random start,
            drawn anew for each sweep; ``"fixed"`` the same start in every sweep. (Types 1, 2 and 3 of the authors' later code.)
        dither: memories are visited in a random order, drawn for each sweep, the same in all of its cycles.
        seed: the same table on every machine, torch's generator untouched; None draws from torch's generator.

    Returns:
        ``[OB, fan_in]`` int32, strictly increasing in each row; each of ``0 .. IB-1`` is in exactly ``fan_out`` rows.

    Raises:
        ValueError: ``clash_free_table: parallel must divide in_blocks, 64; got 7``;
            ``clash_free_table: fan_in must divide in_blocks, 64, or an output could read an input in two sweeps; got 48``

    Cost:
        O(connections).

    Source:
        Dey et al., "Interleaver design for deep neural networks", 2017; the paper's clash-free patterns.

    Example:
        >>> table = clash_free_table(64, 1024, 8, parallel=16, seed=0)
        >>> table.shape, torch.bincount(table.flatten()).unique().tolist()
        (torch.Size([1024, 8]), [128])
    """
    in_blocks, out_blocks, fan_in, fan_out = check_regular("clash_free_table", in_blocks, out_blocks, fan_in)
    (parallel,) = as_whole("clash_free_table", parallel=parallel)
    _check(isinstance(order, str) and order in ORDERS, "order", f"one of {ORDERS}", repr(order))
    _check(parallel >= 1 and in_blocks % parallel == 0, "parallel", f"divide in_blocks, {in_blocks}", parallel, verb="must")
    _check(isinstance(dither, bool), "dither", "True or False", said(dither))
    one_sweep = "or an output could read an input in two sweeps"
    repeats = order == "fixed" and not dither  # every run of in_blocks connections is then a permutation
    _check(repeats or in_blocks % fan_in == 0, "fan_in", f"divide in_blocks, {in_blocks}, {one_sweep}", fan_in, verb="must")
    draw, depth = generator(seed), in_blocks // parallel
    sweeps = 1 if order == "fixed" else fan_out
    if order == "free":
        address = uniform((sweeps, depth, parallel), draw).argsort(axis=1, kind="stable")
    else:
        start = np.floor(uniform((sweeps, 1, parallel), draw) * depth).astype(np.int64)
        address = (start + np.arange(depth)[None, :, None]) % depth
    memory = np.broadcast_to(np.arange(parallel), (fan_out, 1, parallel))
    if dither:
        memory = uniform((fan_out, 1, parallel), draw).argsort(axis=2, kind="stable")
        every = fan_out, depth, parallel
        address = np.take_along_axis(np.broadcast_to(address, every), np.broadcast_to(memory, every), 2)
    inputs = np.broadcast_to(address * parallel + memory, (fan_out, depth, parallel))  # in the order in which they are read
    table = np.sort(inputs.reshape(out_blocks, fan_in).astype(np.int32), axis=1)
    return torch.from_numpy(table)


def _check(condition: bool, arg: str, rule: str, got: object, verb: str = "must be") -> None:
    if not condition:
        raise ValueError(f"clash_free_table: {arg} {verb} {rule}; got {got}")
