"""The papers' augmentations, on tensors, from a generator that the caller owns.

- Deep Roots, Network in Network on CIFAR-10: mean subtracted, then :func:`pad_crop` by 4 and :func:`mirror`.
- Deep Roots, GoogLeNet and ResNet-50 on ImageNet: :func:`resize_short` to 256, :func:`random_crop` to 224 and mirror.
- Deep Roots, ResNet-200 on ImageNet: :func:`random_sized_crop`, :func:`color_jitter`, :func:`lighting`, mirror (fb.resnet.torch's).
  All three are tested on the centre: :func:`resize_short` to 256, :func:`centre_crop` to 224.
- SimpleNet on CIFAR-10 and CIFAR-100: pad_crop by 4 and mirror; on SVHN and MNIST nothing.
- Sparse connectivity patterns: nothing. StochasticNet in StochasticNet: none told.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor
from torch.nn import functional as F

IMAGENET_MEAN, IMAGENET_DEVIATION = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
# Principal components of ImageNet's colours, as fb.resnet.torch has them: a row per channel, a column per component.
_EIGENVALUES = (0.2175, 0.0188, 0.0045)
_EIGENVECTORS = ((-0.5675, 0.7192, 0.4009), (-0.5808, -0.0045, -0.8140), (-0.5836, -0.6948, 0.4203))
_GREY = (0.299, 0.587, 0.114)


# ---- batches [N, C, H, W], each image its own draw


def mirror(x: Tensor, *, generator: torch.Generator | None = None) -> Tensor:
    """Mirror each image left to right with probability 1/2: ``[N, C, H, W]``, or one ``[C, H, W]``."""
    if x.dim() == 3:
        return mirror(x[None], generator=generator)[0]
    flip = torch.rand(len(x), generator=generator) < 0.5
    return torch.where(flip.to(x.device)[:, None, None, None], x.flip(-1), x)


def pad_crop(x: Tensor, padding: int = 4, *, generator: torch.Generator | None = None) -> Tensor:
    """Pad each image of ``x [N, C, H, W]`` with zeros and cut its old size out at a random place.

    Example:
        >>> pad_crop(torch.ones(8, 3, 32, 32)).shape
        torch.Size([8, 3, 32, 32])
    """
    n, _, height, width = x.shape
    top, left = (torch.randint(0, 2 * padding + 1, (n, 1, 1), generator=generator).to(x.device) for _ in range(2))
    rows = top + torch.arange(height, device=x.device)[:, None]  # [N, H, 1]
    columns = left + torch.arange(width, device=x.device)  # [N, 1, W]
    images = torch.arange(n, device=x.device)[:, None, None]
    return F.pad(x, (padding,) * 4).permute(0, 2, 3, 1)[images, rows, columns].permute(0, 3, 1, 2).contiguous()


def standardise(x: Tensor, mean: tuple[float, ...], deviation: tuple[float, ...] | None = None) -> Tensor:
    """Bytes to numbers: ``x [..., C, H, W]`` uint8 -> float32 in 0..1, minus each channel's mean, over its deviation.

    Example:
        >>> standardise(torch.full((1, 1, 2, 2), 255, dtype=torch.uint8), (0.5,), (0.25,)).unique()
        tensor([2.])
    """
    x = x.float() / 255 - torch.tensor(mean, device=x.device).view(-1, 1, 1)
    return x if deviation is None else x / torch.tensor(deviation, device=x.device).view(-1, 1, 1)


# ---- one image [C, H, W], uint8 or float


def resize_short(image: Tensor, size: int) -> Tensor:
    """Scale an image so that its shorter side is ``size`` (bilinear, antialiased); dtype kept."""
    height, width = image.shape[1:]
    scale = size / min(height, width)
    return _resize(image, round(height * scale), round(width * scale))


def centre_crop(image: Tensor, size: int) -> Tensor:
    """Cut the middle ``size x size`` out."""
    top, left = (_room("centre_crop", edge, size) // 2 for edge in image.shape[1:])
    return image[:, top : top + size, left : left + size]


def random_crop(image: Tensor, size: int, *, generator: torch.Generator | None = None) -> Tensor:
    """Cut ``size x size`` out at a random place."""
    rooms = [_room("random_crop", edge, size) for edge in image.shape[1:]]
    top, left = (int(torch.randint(0, room + 1, (), generator=generator)) for room in rooms)
    return image[:, top : top + size, left : left + size]


def random_sized_crop(image: Tensor, size: int, *, generator: torch.Generator | None = None) -> Tensor:
    """Cut out 8 to 100 % of the area at an aspect of 3/4 to 4/3 and scale it to ``size x size``; after ten misses, the centre."""
    height, width = image.shape[1:]
    for _ in range(10):
        share, aspect, turn, down, right = torch.rand(5, generator=generator, dtype=torch.float64).tolist()
        area, aspect = (0.08 + 0.92 * share) * height * width, 3 / 4 + (4 / 3 - 3 / 4) * aspect
        w, h = round(math.sqrt(area * aspect)), round(math.sqrt(area / aspect))
        if turn < 0.5:
            w, h = h, w
        if 1 <= h <= height and 1 <= w <= width:
            top, left = int(down * (height - h + 1)), int(right * (width - w + 1))
            return _resize(image[:, top : top + h, left : left + w], size, size)
    return centre_crop(resize_short(image, size), size)


def color_jitter(image: Tensor, strength: float = 0.4, *, generator: torch.Generator | None = None) -> Tensor:
    """Blend with black, the mean grey, and the grey image by random weights up to ``strength``, in random order: ``[3, H, W]`` float."""
    weights = 1 + strength * (2 * torch.rand(3, generator=generator).to(image.device) - 1)
    for step in torch.randperm(3, generator=generator).tolist():
        grey = torch.einsum("chw,c->hw", image, image.new_tensor(_GREY))
        other = (torch.zeros_like(image), grey.mean().expand_as(image), grey.expand_as(image))[step]  # brightness, contrast, saturation
        image = weights[step] * image + (1 - weights[step]) * other
    return image


def lighting(image: Tensor, deviation: float = 0.1, *, generator: torch.Generator | None = None) -> Tensor:
    """Shift the colour of ``image [3, H, W]`` (float, 0..1) along ImageNet's principal components, by N(0, deviation) of each."""
    alpha = deviation * torch.randn(3, generator=generator).to(image.device)
    shift = image.new_tensor(_EIGENVECTORS) @ (alpha * image.new_tensor(_EIGENVALUES))
    return image + shift.view(3, 1, 1)


def _resize(image: Tensor, height: int, width: int) -> Tensor:
    out = F.interpolate(image[None].float(), (height, width), mode="bilinear", align_corners=False, antialias=True)[0]
    return out.round_().clamp_(0, 255).to(image.dtype) if image.dtype == torch.uint8 else out.to(image.dtype)


def _room(op: str, edge: int, size: int) -> int:
    if not 1 <= size <= edge:
        raise ValueError(f"{op}: size must be in [1, {edge}]; got {size}")
    return edge - size
