"""Scikit-learn's handwritten digits: the small real data set, installed with the package, no download."""

from __future__ import annotations

import numpy as np
import torch

from sparsekern.arguments import is_whole
from sparsekern.data.samples import Samples

TEST = 360  # of 1797


def digits(split: str = "train", *, seed: int = 0) -> Samples:
    """1797 images of 8x8 pixels: 1437 to train on, 360 to test on, or all.

    Args:
        split: ``"train"``, ``"test"`` or ``"all"`` (in the file's order).
        seed: which images are the test images; the two splits of one seed share none.

    Returns:
        :class:`~sparsekern.data.Samples`, ``[N, 1, 8, 8]`` float32 in [0, 1].

    Raises:
        ModuleNotFoundError: ``digits: scikit-learn must be installed: pip install sparsekern[data]``

    Example:
        >>> digits("train").x.shape, len(digits("test"))
        (torch.Size([1437, 1, 8, 8]), 360)
    """
    if not isinstance(split, str) or split not in ("train", "test", "all"):
        raise ValueError(f"digits: split must be one of ['all', 'test', 'train']; got {split!r}")
    if not is_whole(seed, 2**63 - 1) or seed < 0:
        raise ValueError(f"digits: seed must be a whole number of at least 0; got {seed!r}")
    try:
        from sklearn.datasets import load_digits
    except ModuleNotFoundError as missing:
        raise ModuleNotFoundError("digits: scikit-learn must be installed: pip install sparsekern[data]", name=missing.name) from missing
    bunch = load_digits()
    order = np.arange(len(bunch.target)) if split == "all" else np.random.default_rng(seed).permutation(len(bunch.target))
    order = order if split == "all" else order[:TEST] if split == "test" else order[TEST:]
    x = torch.from_numpy(bunch.images[order]).float().div_(16)[:, None]
    return Samples(x, torch.from_numpy(bunch.target[order].astype(np.int64)), 10)
