"""Windows: a layer's neurons cut into equal pieces of neighbours, in 1, 2 or 3 dimensions.

Neurons are numbered as ``torch.flatten`` numbers them: ``(H, W)`` row by row, ``(C, H, W)`` map by map.
"""

from __future__ import annotations

import itertools
import math
import operator

import torch
from torch import Tensor

from sparsekern.arguments import is_whole, said

Shape = int | tuple[int, ...]  # neurons of a layer: their number, or how they lie


def neurons(shape: Shape) -> int:
    """How many neurons a layer of this shape has.

    Example:
        >>> neurons(784), neurons((28, 28)), neurons((256, 4, 4))
        (784, 784, 4096)
    """
    return math.prod(_dimensions(shape))


def window_counts(shape: Shape, fan: int) -> tuple[int, ...]:
    """How many windows each dimension is cut into, so that a neuron with ``fan`` connections can reach each window equally often.

    The windows are the smallest for which the ideal number of connections, ``fan / windows``, is whole; of several cuts with that many
    windows, the one with the most equal numbers, then the one with the most nearly square windows.

    Args:
        shape: neurons of the layer: ``N``, ``(H, W)`` or ``(C, H, W)``.
        fan: connections from the layer to one neuron of the other side, or paths.

    Returns:
        One number per dimension, each dividing it; their product divides ``fan``. In 1-D that is ``gcd(N, fan)``.

    Raises:
        ValueError: ``window_counts: shape must be a number of neurons or 1 to 3 of them; got (2, 2, 2, 2)``

    Source:
        Dey et al., "Characterizing Sparse Connectivity Patterns in Neural Networks", section 3 and figure 5. The paper takes ``fan``
        windows, or one per neuron; where neither cuts the layer evenly, the rule above is an extension of ours.

    Example:
        >>> window_counts((28, 28), 16), window_counts((256, 4, 4), 64), window_counts(64, 1024)
        ((4, 4), (4, 4, 4), (64,))
    """
    sides = _dimensions(shape)
    if not is_whole(fan):
        raise ValueError(f"window_counts: fan must be a whole number; got {said(fan)}")
    if not fan >= 1:
        raise ValueError(f"window_counts: fan must be at least 1; got {fan}")
    fan = operator.index(fan)
    cuts = itertools.product(*([n for n in range(1, math.gcd(side, fan) + 1) if side % n == 0 and fan % n == 0] for side in sides))

    def badness(cut: tuple[int, ...]) -> tuple:
        widths = [side // n for side, n in zip(sides, cut)]
        return -math.prod(cut), max(cut) / min(cut), max(widths) / min(widths)

    return min((cut for cut in cuts if fan % math.prod(cut) == 0), key=badness)


def window_ids(shape: Shape, counts: int | tuple[int, ...]) -> Tensor:
    """``[N]`` int64: the window of each neuron, windows numbered as neurons are.

    Raises:
        ValueError: ``window_ids: counts must be one per dimension, each dividing it, (4, 4); got (2, 3)``

    Example:
        >>> window_ids((4, 4), (2, 2)).reshape(4, 4)
        tensor([[0, 0, 1, 1],
                [0, 0, 1, 1],
                [2, 2, 3, 3],
                [2, 2, 3, 3]])
    """
    sides = _dimensions(shape)
    cut = tuple(counts) if isinstance(counts, tuple | list) else (counts,)
    whole = all(map(is_whole, cut))
    cut = tuple(map(operator.index, cut)) if whole else cut
    if not whole or len(cut) != len(sides) or any(n < 1 or side % n for side, n in zip(sides, cut)):
        got = cut if whole else said(counts)
        raise ValueError(f"window_ids: counts must be one per dimension, each dividing it, {sides}; got {got}")
    ids = torch.zeros((), dtype=torch.int64, device="cpu")
    for side, n in zip(sides, cut):
        here = torch.arange(side, device="cpu") // (side // n)
        ids = ids[..., None] * n + here
    return ids.flatten()


def _dimensions(shape: Shape) -> tuple[int, ...]:
    sides = tuple(shape) if isinstance(shape, tuple | list) else (shape,)
    if not 1 <= len(sides) <= 3 or not all(is_whole(side) and 1 <= side < 2**31 for side in sides):
        got = shape if isinstance(shape, str) else said(shape)
        raise ValueError(f"window_counts: shape must be a number of neurons or 1 to 3 of them; got {got}")
    return tuple(map(operator.index, sides))
