"""A few images at a time gives what all at once give."""

from __future__ import annotations

import torch
from torch import nn

from sparsekern.transform.depth_first import DepthFirst


class Product(nn.Module):
    def forward(self, x: torch.Tensor, y: torch.Tensor) -> tuple[torch.Tensor]:
        return (x * y,)


def test_one_image_beside_many_goes_through_whole():
    x, y = torch.randn(5, 3, 4, 4), torch.randn(1, 3, 4, 4)
    for given in ((x, y), (y, x), (x, x)):
        assert torch.equal(DepthFirst(Product(), 2)(*given)[0], given[0] * given[1])
