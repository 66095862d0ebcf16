"""Street View House Numbers, cropped digits, from the official MATLAB files."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch

from sparsekern.data.files import check_md5, check_path, find_file, require
from sparsekern.data.samples import Samples

MD5 = {
    "train": "e26dedcc434d2e4c54c9b2d4a06d8373",
    "test": "eb5a983be6a315427106f1b164d9cef3",
    "extra": "a93ce644f1a588dc4d68dda5feec44a7",
}


def svhn(path: str | Path, split: str = "train", *, check: bool = True) -> Samples:
    """SVHN, cropped digits: 73,257 training, 26,032 test and 531,131 extra images of 10 classes (the files' label 10 is digit 0).

    Args:
        path: the folder of ``train_32x32.mat``, ``test_32x32.mat``, ``extra_32x32.mat``.
        split: ``"train"``, ``"test"``, ``"extra"``, or several, ``"train+extra"`` (604,388 images, what StochasticNet in StochasticNet
            trains on; SimpleNet trains on ``"train"``).
        check: compare the files with the official checksums.

    Returns:
        :class:`~sparsekern.data.Samples`, images ``[N, 3, 32, 32]`` uint8.

    Raises:
        FileNotFoundError: ``svhn: path must hold the file test_32x32.mat; got 'x', which does not exist (get ...)``
        ValueError: ``svhn: test_32x32.mat must be the official file, md5 eb5a...; got md5 ... of 10 bytes: cut short or another
            file (get ...)``
        ModuleNotFoundError: ``svhn: scipy must be installed: pip install sparsekern[data]``
    """
    check_path("svhn", path=path)
    images, labels = [], []
    if not isinstance(split, str):
        raise ValueError(f"svhn: split must be one of {sorted(MD5)}, or several joined by +; got {type(split).__name__}")
    for one in split.split("+"):
        if one not in MD5:
            raise ValueError(f"svhn: split must be one of {sorted(MD5)}, or several joined by +; got {split!r}")
        x, y = _read(Path(path), one, check)
        images.append(x)
        labels.append(y)
    return Samples(torch.cat(images), torch.cat(labels), 10)


def _read(path: Path, split: str, check: bool) -> tuple[torch.Tensor, torch.Tensor]:
    try:
        from scipy.io import loadmat
    except ModuleNotFoundError as missing:
        raise ModuleNotFoundError("svhn: scipy must be installed: pip install sparsekern[data]", name=missing.name) from missing
    name = f"{split}_32x32.mat"
    source = f"get {name} from http://ufldl.stanford.edu/housenumbers/{name}"
    file = find_file("svhn", path, [name], source)
    if check:
        check_md5("svhn", file, MD5[split], source)
    with open(file, "rb") as opened:
        head = opened.read(19)
    require(head == b"MATLAB 5.0 MAT-file", "svhn", name, "a MATLAB 5 file", "one beginning with " + repr(head), source)
    try:
        content = loadmat(file, variable_names=["X", "y"])  # arrays alone; objects and functions would not be asked for
    except Exception as error:  # a damaged file fails in many ways
        raise ValueError(f"svhn: {name} must be a complete MATLAB file; got one that cannot be read: {error} ({source})") from None
    x, y = content.get("X"), content.get("y")
    fits = isinstance(x, np.ndarray) and x.dtype == np.uint8 and x.ndim == 4 and x.shape[:3] == (32, 32, 3)
    require(fits, "svhn", name, "of images X [32, 32, 3, N] of uint8", _what(x), source)
    fits = (
        isinstance(y, np.ndarray) and y.dtype.kind in "uif" and y.shape == (x.shape[3], 1) and y.size > 0 and y.min() >= 1 and y.max() <= 10
    )
    require(fits, "svhn", name, f"of labels y [{x.shape[3]}, 1] in [1, 10]", _what(y), source)
    require(bool((y == np.floor(y)).all()), "svhn", name, "of labels y that are whole numbers", "some between two", source)
    return torch.from_numpy(np.ascontiguousarray(x.transpose(3, 2, 0, 1))), torch.from_numpy(y[:, 0].astype(np.int64) % 10)


def _what(value: object) -> str:
    return f"{list(value.shape)} of {value.dtype}" if isinstance(value, np.ndarray) else "none"
