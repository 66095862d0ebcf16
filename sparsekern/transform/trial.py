"""The example in another batch: what a way must not get wrong either, and what tells a batch from a size that happens to be as large."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor


def other_batch(example: tuple) -> tuple | None:
    """The same inputs with 2 images, or 3 where the example has 2; None where no input has a batch.

    The first input with rows says how many there are; whatever else has as many is cut, or repeated and turned around, with it.

    Example:
        >>> [x.shape for x in other_batch((torch.zeros(1, 3, 8, 8), torch.zeros(5)))]
        [torch.Size([2, 3, 8, 8]), torch.Size([5])]
    """
    tensors = [leaf for leaf in torch.utils._pytree.tree_leaves(example) if isinstance(leaf, Tensor)]
    count = next((t.shape[0] for t in tensors if t.dim() > 1), 0)
    if count == 0:
        return None
    wanted = 3 if count == 2 else 2

    def resized(value: Any) -> Any:
        if not isinstance(value, Tensor) or value.dim() == 0 or value.shape[0] != count:
            return value
        if count >= wanted:
            return value[:wanted].clone()
        return torch.cat([value, value.flip(-1)[: wanted - count]])  # other images: a mean over equal ones would be each of them

    return torch.utils._pytree.tree_map(resized, example)
