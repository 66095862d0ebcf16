"""The types that the signatures of ops and layers share."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TypeAlias

import torch
from torch import Tensor

#: The sizes of a tensor, or of a window.
Shape: TypeAlias = Sequence[int]

#: Rows and columns; one number for both.
Pair: TypeAlias = int | tuple[int, int]

#: Where a layer's tensors are; None: torch's default.
Device: TypeAlias = torch.device | str | None

#: What a derivative gives: of the two factors of a product, None where it is not needed.
Gradients: TypeAlias = tuple[Tensor | None, Tensor | None]
