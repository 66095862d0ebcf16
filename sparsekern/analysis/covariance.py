"""Which filters of two layers go together: covariance and correlation of their responses, plain and whitened.

Each pixel of each image is one sample, a vector of one response per filter. Where two maps differ in size, the smaller is scaled up by
nearest neighbour, so that there are as many samples of both.

Source: Ioannou et al., "Deep Roots: Improving CNN Efficiency with Hierarchical Filter Groups", A.2. To see what a layer's groups
learned, take its input map against its output: ``("conv3a:in", "conv3a")``, or the filters before a pooling: ``("conv2c", "conv3a")``.
A layer that computes its own ReLU (``activation="relu"``) shows what comes after it; built with ``batch_norm=True`` or
``conv=torch.nn.Conv2d``, a model shows the responses before it.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from sparsekern.analysis.record import record
from sparsekern.analysis.whiten import SMALLEST, zca


@dataclass(frozen=True)
class LayerPair:
    """Second moments of two layers' responses over the same samples, all float64."""

    names: tuple[str, str]
    samples: int
    first: Tensor  # [c1, c1] covariance within the first layer
    second: Tensor  # [c2, c2] within the second
    between: Tensor  # [c1, c2] of a filter of the first with one of the second

    def correlation(self) -> Tensor:
        """``[c1, c2]`` correlation coefficients; 0 where a filter never changes."""
        return _scale(self.first) * self.between * _scale(self.second).T

    def whitened(self, *, smallest: float = SMALLEST) -> Tensor:
        """``[c1, c2]``: the covariance of the responses after each layer is whitened on its own, so that only what joins them is left.

        Its singular values, the canonical correlations, are at most 1. ``smallest`` as of :func:`~sparsekern.analysis.zca`.
        """
        return zca(self.first, smallest=smallest) @ self.between @ zca(self.second, smallest=smallest)


def inter_layer(model: nn.Module, first: str, second: str, batches: Iterable[Tensor | Sequence]) -> LayerPair:
    """Covariances of two layers' responses on the same inputs.

    Args:
        model: any module; it runs as for inference, in its own device and dtype.
        first, second: names as for :func:`~sparsekern.analysis.record`.
        batches: inputs, or tuples whose first entry is the input.

    Returns:
        :class:`LayerPair`; nothing is kept per sample, so as many batches as there is time for.

    Raises:
        ValueError: ``inter_layer: batches must hold at least two samples; got 1``

    Example:
        >>> net = nn.Sequential(nn.Conv2d(4, 4, 1), nn.ReLU(), nn.MaxPool2d(2), nn.Conv2d(4, 8, 3, padding=1, groups=2))
        >>> pair = inter_layer(net, "0", "3", torch.randn(3, 16, 4, 8, 8))
        >>> pair.between.shape, pair.samples
        (torch.Size([4, 8]), 3072)
        >>> bool(torch.linalg.svdvals(pair.whitened()).max() <= 1)
        True
    """
    return layer_pairs(model, [(first, second)], batches)[0]


def intra_layer(model: nn.Module, name: str, batches: Iterable[Tensor | Sequence]) -> LayerPair:
    """The same of one layer with itself; ``.correlation()`` is the paper's figure 11."""
    return layer_pairs(model, [(name, name)], batches)[0]


def layer_pairs(model: nn.Module, pairs: Sequence[tuple[str, str]], batches: Iterable[Tensor | Sequence]) -> list[LayerPair]:
    """As :func:`inter_layer` for many pairs in one pass over the batches."""
    sums = [_Moments() for _ in pairs]
    for found in record(model, sorted({name for pair in pairs for name in pair}), batches):
        for (first, second), one in zip(pairs, sums):
            one.add(*same_samples(found[first], found[second]))
    return [one.finish(pair) for pair, one in zip(pairs, sums)]


def same_samples(first: Tensor, second: Tensor) -> tuple[Tensor, Tensor]:
    """Responses as samples: two maps ``[N, c, H, W]`` (or ``[N, c]``, maps of one pixel) -> ``[c1, S]`` and ``[c2, S]`` float64.

    Example:
        >>> one, two = same_samples(torch.randn(2, 3, 8, 8), torch.randn(2, 5, 4, 4))
        >>> one.shape, two.shape
        (torch.Size([3, 128]), torch.Size([5, 128]))
    """
    maps = [x[:, :, None, None] if x.dim() == 2 else x for x in (first, second)]
    if any(x.dim() != 4 for x in maps) or len(first) != len(second):
        raise ValueError(
            f"inter_layer: responses must be [N, c, H, W] or [N, c], of one N; got {list(first.shape)} and {list(second.shape)}"
        )
    size = [max(x.shape[dim] for x in maps) for dim in (2, 3)]
    maps = [x.double() if list(x.shape[2:]) == size else F.interpolate(x.double(), size, mode="nearest") for x in maps]
    one, two = (x.transpose(0, 1).flatten(1) for x in maps)
    return one, two


class _Moments:
    """Means and sums of products over batches, merged as they come: no sum of large squares is ever taken (Chan et al., 1979).

    All of it is of the responses less the first sample's: a filter that never changes is 0 then, and so are, exactly, its sums.
    """

    origin: Tensor
    mean: Tensor
    products: Tensor
    split: int

    def __init__(self) -> None:
        self.samples = 0

    def add(self, one: Tensor, two: Tensor) -> None:
        """Samples ``[c1, S]`` and ``[c2, S]``."""
        both = torch.cat([one, two])
        count = both.shape[1]
        if count == 0:
            return
        if not self.samples:
            self.origin = both[:, :1].clone()
        both -= self.origin
        mean = both.mean(1, keepdim=True)
        centred = both - mean
        products = centred @ centred.T
        if self.samples:
            apart = mean - self.mean
            total = self.samples + count
            products += self.products + apart @ apart.T * (self.samples * count / total)
            mean = self.mean + apart * (count / total)
        self.samples, self.mean, self.products, self.split = self.samples + count, mean, products, len(one)

    def finish(self, names: tuple[str, str]) -> LayerPair:
        if self.samples < 2:
            raise ValueError(f"inter_layer: batches must hold at least two samples; got {self.samples}")
        covariance, c = (self.products / (self.samples - 1)).cpu(), self.split
        return LayerPair(names, self.samples, covariance[:c, :c], covariance[c:, c:], covariance[:c, c:])


def _scale(covariance: Tensor) -> Tensor:
    """``[c, 1]``: one over each filter's deviation, 0 where it never changes."""
    variance = covariance.diagonal()[:, None]
    return torch.where(variance > 0, variance, 1.0).rsqrt() * (variance > 0)
