"""CIFAR-10 and CIFAR-100 from the official "python version" files, read without running what a pickle may ask for.

A batch file is a Python-2 pickle of ``{b"data": uint8 [images, 3072], b"labels": list, ...}`` (``b"fine_labels"`` in CIFAR-100); a row
is the red, green and blue plane of one 32x32 image.
"""

from __future__ import annotations

import tarfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

import numpy as np
import torch
from torch import Tensor

from sparsekern.data.files import check_md5, check_path, require
from sparsekern.data.plain_pickle import BadPickle, load_plain_pickle
from sparsekern.data.samples import Samples

PIXELS = 3 * 32 * 32
_ARCHIVES = (".tar.gz", ".tgz", ".tar")


@dataclass(frozen=True)
class Release:
    """One official archive and what is in it."""

    name: str
    archive: str
    archive_md5: str
    folder: str
    splits: dict[str, dict[str, str]]  # split -> batch file -> md5
    labels: bytes
    classes: int

    @property
    def source(self) -> str:
        return f"get {self.archive} from https://www.cs.toronto.edu/~kriz/cifar.html"


CIFAR10 = Release(
    "CIFAR-10", "cifar-10-python.tar.gz", "c58f30108f718f92721af3b95e74349a", "cifar-10-batches-py",
    {
        "test": {"test_batch": "40351d587109b95175f43aff81a1287e"},
        "train": {
            "data_batch_1": "c99cafc152244af753f735de768cd75f",
            "data_batch_2": "d4bba439e000b95fd0a9bffe97cbabec",
            "data_batch_3": "54ebc095f3ab1f0389bbae665268c751",
            "data_batch_4": "634d18415352ddfa80567beed471001a",
            "data_batch_5": "482c414d41f54cd18b22e5b47cb7c3cb",
        },
    },
    b"labels", 10,
)  # fmt: skip
CIFAR100 = Release(
    "CIFAR-100", "cifar-100-python.tar.gz", "eb9058c3a382ffc7106e4002c42a8d85", "cifar-100-python",
    {"test": {"test": "f0ef6b0ae62326f3e7ffdfab6717acfc"}, "train": {"train": "16019d7e3df5f24257cddd939b257f8d"}},
    b"fine_labels", 100,
)  # fmt: skip

# Mean and deviation of CIFAR-10's 50,000 training images, per channel, in 0..1.
MEAN = (0.4914, 0.4822, 0.4465)
DEVIATION = (0.2470, 0.2435, 0.2616)


def cifar10(path: str | Path, split: str = "train", *, check: bool = True) -> Samples:
    """CIFAR-10: 50,000 training or 10,000 test images of 10 classes.

    Args:
        path: the folder ``cifar-10-batches-py``, the folder that holds it, or the archive ``cifar-10-python.tar.gz``.
        split: ``"train"`` or ``"test"``.
        check: compare the archive, or the batch files of a folder, with the official checksums.

    Returns:
        :class:`~sparsekern.data.Samples`, images ``[N, 3, 32, 32]`` uint8.

    Raises:
        FileNotFoundError: the file that is missing, and where to get it.
        ValueError: ``cifar10: data_batch_3 must be the official file, md5 54eb...; got md5 ... of 10 bytes: cut short or another file
            (get cifar-10-python.tar.gz from ...)``; what else is wrong with a file, likewise.
    """
    return _samples("cifar10", CIFAR10, path, split, check)


def cifar100(path: str | Path, split: str = "train", *, check: bool = True) -> Samples:
    """CIFAR-100: 50,000 training or 10,000 test images with their 100 fine labels; else as :func:`cifar10`.

    Args:
        path: the folder ``cifar-100-python``, the folder that holds it, or the archive ``cifar-100-python.tar.gz``.
    """
    return _samples("cifar100", CIFAR100, path, split, check)


def cifar10_images(path: str | Path, n: int) -> Tensor:
    """Read the first ``n`` images of CIFAR-10, test images first.

    Args:
        path: the folder ``cifar-10-batches-py``, the folder that holds it, the archive ``cifar-10-python.tar.gz``, or
            one batch file.
        n: how many images.

    Returns:
        ``[n, 3, 32, 32]`` float32, each channel normalised by the training set's mean and deviation.

    Raises:
        FileNotFoundError: ``cifar10_images: path must be a CIFAR-10 folder, archive or batch file; got 'x', which does
            not exist (get cifar-10-python.tar.gz from ...)``
        ValueError: ``cifar10_images: test_batch must be a complete CIFAR-10 batch; got a file that is cut short (get
            cifar-10-python.tar.gz from ...)``
    """
    check_path("cifar10_images", path=path)
    if not isinstance(n, int):
        raise ValueError(f"cifar10_images: n must be a whole number; got {type(n).__name__}")
    if n < 0:
        raise ValueError(f"cifar10_images: n must be at least 0; got {n}")
    rows, missing = [], n
    names = [name for split in ("test", "train") for name in CIFAR10.splits[split]]
    for batch in _batches("cifar10_images", CIFAR10, Path(path), names):
        rows.append(batch[b"data"][:missing])
        missing -= len(rows[-1])
        if missing <= 0:
            break
    if missing > 0:
        raise ValueError(f"cifar10_images: n must be at most {n - missing}, the images in {str(path)!r}; got {n}")
    images = torch.from_numpy(np.concatenate(rows).reshape(n, 3, 32, 32)).float().div_(255)
    return images.sub_(torch.tensor(MEAN).view(3, 1, 1)).div_(torch.tensor(DEVIATION).view(3, 1, 1))


def _samples(op: str, release: Release, path: str | Path, split: str, check: bool) -> Samples:
    check_path(op, path=path)
    if not isinstance(split, str) or split not in release.splits:
        raise ValueError(f"{op}: split must be one of {sorted(release.splits)}; got {split!r}")
    path, md5s = Path(path), release.splits[split]
    whole = path.is_file() and path.name.endswith(_ARCHIVES)
    require(whole or not path.is_file(), op, "path", f"a {release.name} folder or archive", f"the file {str(path)!r}", release.source)
    if check and whole:
        check_md5(op, path, release.archive_md5, release.source)
    if check and path.is_dir():
        for name in md5s:
            file = _folder(release, path) / name
            if file.is_file():  # who is missing is told below
                check_md5(op, file, md5s[name], release.source)
    images: list[np.ndarray] = []
    labels: list[int] = []
    for name, batch in zip(md5s, _batches(op, release, path, list(md5s))):
        found: Any = batch.get(release.labels)
        whole = isinstance(found, list) and len(found) == len(batch[b"data"]) and all(isinstance(i, int) for i in found)
        whole = whole and all(0 <= i < release.classes for i in found)
        rule = f"a complete {release.name} batch"
        got = f"no {release.labels!r} of one number in [0, {release.classes}) per image"
        require(whole, op, name, rule, got, release.source)
        images.append(batch[b"data"])
        labels += found
    return Samples(torch.from_numpy(np.concatenate(images).reshape(-1, 3, 32, 32)), torch.tensor(labels), release.classes)


def _folder(release: Release, path: Path) -> Path:
    return path / release.folder if (path / release.folder).is_dir() else path


def _batches(op: str, release: Release, path: Path, names: list[str]) -> Iterator[dict]:
    """Yield the batches ``{b"data": uint8 [images, 3072], ...}`` of these names, one in memory at a time."""
    if not path.exists():
        raise FileNotFoundError(
            f"{op}: path must be a {release.name} folder, archive or batch file; got {str(path)!r}, which does not exist ({release.source})"
        )
    if path.is_dir():
        folder = _folder(release, path)
        for name in names:
            if not (folder / name).is_file():
                raise FileNotFoundError(f"{op}: {str(folder)!r} must hold the file {name}; it does not ({release.source})")
            with open(folder / name, "rb") as file:
                yield _read_batch(op, release, name, file)
    elif path.name.endswith(_ARCHIVES):
        yield from _archive_batches(op, release, path, names)
    else:
        with open(path, "rb") as file:
            yield _read_batch(op, release, path.name, file)


def _archive_batches(op: str, release: Release, path: Path, names: list[str]) -> Iterator[dict]:
    try:
        with tarfile.open(path) as archive:
            for name in names:
                try:
                    file = archive.extractfile(f"{release.folder}/{name}")
                except KeyError:
                    file = None
                if file is None:
                    raise ValueError(f"{op}: {path.name} must hold {release.folder}/{name}; it does not ({release.source})")
                yield _read_batch(op, release, name, file)
    except ValueError:  # ours, of a batch inside
        raise
    except Exception as error:  # a damaged archive fails in many ways
        raise ValueError(
            f"{op}: {path.name} must be the complete archive; got one that cannot be read: {error} ({release.source})"
        ) from error


def _read_batch(op: str, release: Release, name: str, file: IO[bytes]) -> dict:
    rule = f"a complete {release.name} batch"
    try:
        batch = load_plain_pickle(file, "batch")
    except BadPickle as bad:
        raise ValueError(f"{op}: {name} must be {rule}; got {bad} ({release.source})") from None
    data = batch.get(b"data") if isinstance(batch, dict) else None
    whole = isinstance(data, np.ndarray) and data.ndim == 2 and data.shape[1] == PIXELS
    require(whole, op, name, rule, f"no b'data' of uint8 [images, {PIXELS}]", release.source)
    return batch
