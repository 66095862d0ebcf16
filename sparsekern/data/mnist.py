"""MNIST from the official idx files, as they come (gzip) or unpacked."""

from __future__ import annotations

import gzip
import math
import struct
import zlib
from pathlib import Path

import numpy as np
import torch

from sparsekern.data.files import check_md5, check_path, find_file, read_at_most, require
from sparsekern.data.samples import Samples

IMAGES, LABELS = 2051, 2049  # the first four bytes of a file of images [N, 28, 28], of labels [N]
MD5 = {
    "train-images-idx3-ubyte.gz": "f68b3c2dcbeaaa9fbdd348bbdeb94873",
    "train-labels-idx1-ubyte.gz": "d53e105ee54ea40749a09fcbcd1e9432",
    "t10k-images-idx3-ubyte.gz": "9fb629c4189551a2d022fa330f9573f3",
    "t10k-labels-idx1-ubyte.gz": "ec29112dd5afa0611ce80d1b7f02629c",
}
MOST_BYTES = 1 << 27  # of a file; the largest official one has a third of it
PREFIX = {"train": "train", "test": "t10k"}


def mnist(path: str | Path, split: str = "train", *, check: bool = True) -> Samples:
    """MNIST: 60,000 training or 10,000 test images of handwritten digits.

    Args:
        path: the folder of the four official files, with or without ``.gz`` (or the one above ``MNIST/raw``).
        split: ``"train"`` or ``"test"``.
        check: compare gzip files with the official checksums; of unpacked ones none is published, their sizes are checked always.

    Returns:
        :class:`~sparsekern.data.Samples`, images ``[N, 1, 28, 28]`` uint8.

    Raises:
        FileNotFoundError: ``mnist: path must hold the file train-images-idx3-ubyte.gz; got 'x', which does not exist (get ...)``
        ValueError: ``mnist: t10k-labels-idx1-ubyte must be of 10016 bytes, as its first ones say; got 5000 (get ...)``
    """
    check_path("mnist", path=path)
    if not isinstance(split, str) or split not in PREFIX:
        raise ValueError(f"mnist: split must be one of {sorted(PREFIX)}; got {split!r}")
    images = _read(Path(path), f"{PREFIX[split]}-images-idx3-ubyte.gz", IMAGES, check)
    labels = _read(Path(path), f"{PREFIX[split]}-labels-idx1-ubyte.gz", LABELS, check)
    source = _source(f"{PREFIX[split]}-labels-idx1-ubyte.gz")
    require(images.shape[1:] == (28, 28), "mnist", "images", "of 28 x 28 pixels", list(images.shape[1:]), source)
    require(len(images) == len(labels), "mnist", "labels", f"one per image, {len(images)}", len(labels), source)
    require(len(labels) == 0 or labels.max() < 10, "mnist", "labels", "in [0, 10)", labels.max(initial=0), source)
    return Samples(torch.from_numpy(images)[:, None], torch.from_numpy(labels).long(), 10)


def _read(path: Path, name: str, magic: int, check: bool) -> np.ndarray:
    plain = name.removesuffix(".gz")
    file = find_file("mnist", path, [name, plain, plain.replace("-idx", ".idx")], _source(name), ["MNIST/raw", "raw"])
    if check and file.suffix == ".gz":
        check_md5("mnist", file, MD5[name], _source(name))
    try:
        with gzip.open(file) if file.suffix == ".gz" else open(file, "rb") as opened:
            content = read_at_most(opened, MOST_BYTES)  # a small gzip file can hold any number of zeros
    except (EOFError, OSError, zlib.error) as error:
        raise ValueError(
            f"mnist: {file.name} must be a complete gzip file; got one that cannot be read: {error} ({_source(name)})"
        ) from None
    require(len(content) <= MOST_BYTES, "mnist", file.name, f"of at most {MOST_BYTES} bytes", "more", _source(name))
    dimensions = 3 if magic == IMAGES else 1
    head = 4 * (1 + dimensions)
    require(len(content) >= head, "mnist", file.name, f"of at least {head} bytes", len(content), _source(name))
    found, *shape = struct.unpack(f">{1 + dimensions}i", content[:head])
    kind = "images" if magic == IMAGES else "labels"
    require(
        found == magic, "mnist", file.name, f"an idx file of {kind}, beginning with {magic}", f"one beginning with {found}", _source(name)
    )
    size = head + math.prod(shape)
    whole = min(shape) >= 0 and len(content) == size
    require(whole, "mnist", file.name, f"of {size} bytes, as its first ones say", len(content), _source(name))
    return np.frombuffer(content, np.uint8, offset=head).reshape(shape).copy()


def _source(name: str) -> str:
    return f"get {name} from https://ossci-datasets.s3.amazonaws.com/mnist/{name}"
