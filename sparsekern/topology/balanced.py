"""Window-balanced fixed fan-in: every output reads equally many inputs in each window of 32 neighbours."""

from __future__ import annotations

from itertools import pairwise

import torch
from torch import Tensor

from sparsekern.arguments import as_whole
from sparsekern.topology.draw import generator
from sparsekern.topology.huge import POSSIBLE, huge_window_table

WINDOW = 32  # inputs: two registers of an AVX-512 processor
_CHUNK = 1 << 22  # random numbers drawn at a time


def balanced_counts(inputs: int, fan_in: int) -> list[int]:
    """How many of ``fan_in`` connections fall into each window of 32 of ``inputs`` inputs: the same for every output.

    The rule: the first ``n`` inputs get ``n * fan_in / inputs`` connections at every window's border, rounded half up. So the counts
    add up to ``fan_in`` exactly, a whole window's is one of the two whole numbers around ``32 * fan_in / inputs`` (exactly that where
    it is whole), the two alternate as evenly as they can, and a last, narrower window gets its share.

    Args:
        inputs: number of inputs.
        fan_in: kept inputs per output, in ``[1, inputs]``.

    Returns:
        One count per window, ``ceil(inputs / 32)`` of them.

    Raises:
        ValueError: ``balanced_counts: fan_in must be in [1, 64]; got 65``

    Example:
        >>> balanced_counts(128, 16), balanced_counts(100, 10)
        ([4, 4, 4, 4], [3, 3, 4, 0])
    """
    inputs, fan_in = as_whole("balanced_counts", inputs=inputs, fan_in=fan_in)
    if not 1 <= fan_in <= inputs:
        raise ValueError(f"balanced_counts: fan_in must be in [1, {inputs}]; got {fan_in}")
    borders = [*range(0, inputs, WINDOW), inputs]
    kept = [(2 * border * fan_in + inputs) // (2 * inputs) for border in borders]
    return [end - begin for begin, end in pairwise(kept)]


def balanced_table(inputs: int, outputs: int, fan_in: int, *, seed: int | None = None) -> Tensor:
    """Draw, for each output, ``fan_in`` different inputs, of which a fixed number lies in each window of 32 inputs.

    How many in which window says :func:`balanced_counts`; which of them is drawn uniformly at random. In place of gathering its
    inputs one by one, a processor then permutes a window of x that it holds in registers.

    Args:
        inputs: number of inputs.
        outputs: number of outputs.
        fan_in: kept inputs per output, in ``[1, inputs]``; kept exactly.
        seed: with a seed the table is the same on every machine and torch's generator is not touched; without, it is drawn from it.

    Returns:
        ``[outputs, fan_in]`` int32, strictly increasing in each row.

    Raises:
        ValueError: ``balanced_table: fan_in must be in [1, 64]; got 65``

    Cost:
        O(inputs * outputs); O(connections) where more than 2^28 are possible.

    Source:
        Balance over windows follows bank-balanced sparsity, Cao et al., "Efficient and Effective Sparse LSTM on FPGA with
        Bank-Balanced Sparsity", 2019; here the pattern is drawn before training.

    Example:
        >>> table = balanced_table(64, 2, 4, seed=0)
        >>> (table < 32).sum(dim=1)      # two inputs in each of the two windows
        tensor([2, 2])
    """
    inputs, outputs, fan_in = as_whole("balanced_table", inputs=inputs, outputs=outputs, fan_in=fan_in)
    if outputs < 0:
        raise ValueError(f"balanced_table: outputs must be at least 0; got {outputs}")
    if not 1 <= fan_in <= inputs:
        raise ValueError(f"balanced_table: fan_in must be in [1, {inputs}]; got {fan_in}")
    draw = generator(seed)
    if inputs * outputs > POSSIBLE:
        return torch.from_numpy(huge_window_table(outputs, balanced_counts(inputs, fan_in), WINDOW, inputs, draw))
    counts = torch.tensor(balanced_counts(inputs, fan_in), device="cpu")
    window = torch.arange(inputs, device="cpu") // WINDOW  # [inputs] of each input
    first = torch.arange(len(counts), device="cpu") * WINDOW
    kept = torch.arange(inputs, device="cpu") - first[window] < counts[window]  # the lowest keys of each window
    table = torch.empty(outputs, fan_in, dtype=torch.int32, device="cpu")
    step = max(1, _CHUNK // inputs)
    for begin in range(0, outputs, step):
        rows = table[begin : begin + step]
        keys = torch.rand(len(rows), inputs, generator=draw, dtype=torch.float64, device="cpu")
        by_key = (keys + window).argsort(dim=1, stable=True)  # window by window, as keys are below 1
        rows.copy_(by_key[:, kept].sort(dim=1).values)
    return table
