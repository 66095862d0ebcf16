"""Patches of the two photographs that scikit-learn installs (a temple in China, a flower): real images, no download."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from sparsekern.arguments import is_whole

PHOTOGRAPHS = "two photographs installed with scikit-learn (china.jpg, flower.jpg)"


def sample_patches(n: int, size: int = 32, seed: int = 0) -> Tensor:
    """Cut ``n`` square patches at random places out of real photographs.

    Args:
        n: how many patches; the photographs take turns.
        size: height and width in pixels, at most 427 (the height of the photographs).
        seed: chooses the places; torch's and numpy's own generators are left alone.

    Returns:
        ``[n, 3, size, size]`` float32, contiguous; each channel has mean 0 and deviation 1 over both whole photographs.

    Raises:
        ValueError: ``sample_patches: size must be in 1..427; got 500``
        ModuleNotFoundError: ``sample_patches: scikit-learn and pillow must be installed: pip install sparsekern[data]``

    Example:
        >>> sample_patches(4).shape
        torch.Size([4, 3, 32, 32])
    """
    for name, number in {"n": n, "size": size, "seed": seed}.items():
        if not is_whole(number, 2**31 - 1 if name == "n" else 2**63 - 1):
            raise ValueError(f"sample_patches: {name} must be a whole number; got {number!r}")
    if n < 0:
        raise ValueError(f"sample_patches: n must be at least 0; got {n}")
    if seed < 0:
        raise ValueError(f"sample_patches: seed must be at least 0; got {seed}")
    photographs = _photographs()
    limit = min(min(image.shape[:2]) for image in photographs)
    if not 1 <= size <= limit:
        raise ValueError(f"sample_patches: size must be in 1..{limit}; got {size}")
    pixels = np.concatenate([image.reshape(-1, 3) for image in photographs]).astype(np.float64)
    mean, deviation = pixels.mean(0), pixels.std(0)
    places = np.random.default_rng(seed)
    patches = np.empty((n, size, size, 3), np.float32)
    for i in range(n):
        image = photographs[i % len(photographs)]  # [H, W, 3] uint8
        top, left = (int(places.integers(0, edge - size + 1)) for edge in image.shape[:2])
        patches[i] = (image[top : top + size, left : left + size] - mean) / deviation
    return torch.from_numpy(patches).permute(0, 3, 1, 2).contiguous()


def _photographs() -> list[np.ndarray]:
    try:
        import PIL  # noqa: F401  scikit-learn needs it to read the photographs, and says so less clearly
        from sklearn.datasets import load_sample_images
    except ModuleNotFoundError as missing:
        raise ModuleNotFoundError(
            f"sample_patches: scikit-learn and pillow must be installed: pip install sparsekern[data] ({missing})",
            name=missing.name,
        ) from missing
    return load_sample_images().images
