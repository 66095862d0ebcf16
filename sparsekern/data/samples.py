"""What every data set here is: inputs, labels, and how many classes there are."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from sparsekern.arguments import check_whole, is_whole


@dataclass(frozen=True)
class Samples:
    """A data set in memory; a map-style data set for ``torch.utils.data.DataLoader``, and two tensors for those who cut their own batches.

    Raises:
        ValueError: ``Samples: y must be in [0, 3); got 0 to 3``

    Example:
        >>> data = Samples(torch.zeros(6, 64), torch.arange(6) % 3, classes=3)
        >>> len(data), len(data.first_per_class(1)), data[5][1]
        (6, 3, tensor(2))
    """

    x: Tensor  # [N, ...]: uint8 images [N, C, H, W] of a file, float32 of a generator
    y: Tensor  # [N] int64, in [0, classes)
    classes: int

    def __post_init__(self) -> None:
        for arg, value in (("x", self.x), ("y", self.y)):
            if not isinstance(value, Tensor) or value.dim() == 0:
                raise ValueError(f"Samples: {arg} must be a tensor [N, ...]; got {type(value).__name__}")
        if len(self.x) != len(self.y):
            raise ValueError(f"Samples: y must be one label per sample, {len(self.x)}; got {len(self.y)}")
        self._check_labels()

    def _check_labels(self) -> None:
        y = self.y
        if y.dim() != 1 or y.is_floating_point() or y.is_complex() or y.dtype == torch.bool:
            raise ValueError(f"Samples: y must be whole numbers [N]; got {str(y.dtype).removeprefix('torch.')} {list(y.shape)}")
        check_whole("Samples", classes=self.classes)
        if self.classes < 1:
            raise ValueError(f"Samples: classes must be at least 1; got {self.classes}")
        low, high = (int(found) for found in y.long().aminmax()) if len(y) else (0, 0)
        if low < 0 or high >= self.classes:
            raise ValueError(f"Samples: y must be in [0, {self.classes}); got {low} to {high}")

    def __len__(self) -> int:
        return len(self.y)

    def __getitem__(self, i: int | slice | Tensor) -> tuple[Tensor, Tensor]:
        return self.x[i], self.y[i]

    def first_per_class(self, n: int) -> Samples:
        """The first ``n`` samples of each class, in their order."""
        if not is_whole(n, 2**63 - 1) or n < 0:
            raise ValueError(
                f"Samples: n must be a whole number of at least 0; got {type(n).__name__ if isinstance(n, Tensor) else repr(n)}"
            )
        order = self.y.argsort(stable=True)
        counts = torch.bincount(self.y, minlength=self.classes)
        rank = torch.empty_like(order)
        rank[order] = torch.arange(len(order)) - (counts.cumsum(0) - counts)[self.y[order]]
        keep = rank < n
        return Samples(self.x[keep], self.y[keep], self.classes)
