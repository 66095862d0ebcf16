"""CIFAR-10 from the official "python version" files, read without running what a pickle may ask for.

A batch file is a Python-2 pickle of ``{b"data": uint8 [10000, 3072], b"labels": list, ...}``; a row is the red, green
and blue plane of one 32x32 image. The reader rebuilds byte arrays and plain values itself, and refuses by name every
object that a pickle asks for beyond those.
"""

from __future__ import annotations

import pickle
import tarfile
from collections.abc import Iterator
from pathlib import Path
from typing import BinaryIO

import numpy as np
import torch
from torch import Tensor

SOURCE = "get cifar-10-python.tar.gz from https://www.cs.toronto.edu/~kriz/cifar.html"
FOLDER = "cifar-10-batches-py"
BATCHES = ("test_batch", "data_batch_1", "data_batch_2", "data_batch_3", "data_batch_4", "data_batch_5")
PIXELS = 3 * 32 * 32

# Mean and deviation of the 50,000 training images, per channel, in 0..1.
MEAN = (0.4914, 0.4822, 0.4465)
DEVIATION = (0.2470, 0.2435, 0.2616)


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
    if n < 0:
        raise ValueError(f"cifar10_images: n must be at least 0; got {n}")
    rows, missing = [], n
    for batch in _batches(Path(path)):
        rows.append(batch[:missing])
        missing -= len(rows[-1])
        if missing <= 0:
            break
    if missing > 0:
        raise ValueError(f"cifar10_images: n must be at most {n - missing}, the images in {str(path)!r}; got {n}")
    images = torch.from_numpy(np.concatenate(rows).reshape(n, 3, 32, 32)).float().div_(255)
    return images.sub_(torch.tensor(MEAN).view(3, 1, 1)).div_(torch.tensor(DEVIATION).view(3, 1, 1))


def _batches(path: Path) -> Iterator[np.ndarray]:
    """Yield ``[10000, 3072]`` uint8, one batch in memory at a time."""
    if not path.exists():
        raise FileNotFoundError(
            f"cifar10_images: path must be a CIFAR-10 folder, archive or batch file; got {str(path)!r}, which does not exist ({SOURCE})"
        )
    if path.is_dir():
        folder = path / FOLDER if (path / FOLDER).is_dir() else path
        for name in BATCHES:
            if not (folder / name).is_file():
                raise FileNotFoundError(f"cifar10_images: {str(folder)!r} must hold the file {name}; it does not ({SOURCE})")
            with open(folder / name, "rb") as file:
                yield _read_batch(name, file)
    elif path.name.endswith((".tar.gz", ".tgz", ".tar")):
        yield from _archive_batches(path)
    else:
        with open(path, "rb") as file:
            yield _read_batch(path.name, file)


def _archive_batches(path: Path) -> Iterator[np.ndarray]:
    try:
        with tarfile.open(path) as archive:
            for name in BATCHES:
                try:
                    file = archive.extractfile(f"{FOLDER}/{name}")
                except KeyError:
                    file = None
                if file is None:
                    raise ValueError(f"cifar10_images: {path.name} must hold {FOLDER}/{name}; it does not ({SOURCE})")
                yield _read_batch(name, file)
    except (tarfile.TarError, EOFError, OSError) as error:
        raise ValueError(
            f"cifar10_images: {path.name} must be the complete archive; got one that cannot be read: {error} ({SOURCE})"
        ) from error


def _read_batch(name: str, file: BinaryIO) -> np.ndarray:
    def refuse(got: str) -> ValueError:
        return ValueError(f"cifar10_images: {name} must be a complete CIFAR-10 batch; got {got} ({SOURCE})")

    try:
        batch = _BatchUnpickler(file, encoding="bytes").load()
    except _ForbiddenObject as error:
        raise refuse(f"a pickle that asks for {error}, which a batch does not hold") from None
    except EOFError:
        raise refuse("a file that is cut short") from None
    except pickle.UnpicklingError as error:
        raise refuse("a file that is cut short" if "truncated" in str(error) else f"a file that is no batch: {error}") from None
    except Exception as error:  # a damaged pickle fails in many ways, all of them meaning the same to the reader
        raise refuse(f"a file that is no batch: {type(error).__name__}: {error}") from None
    pickled = batch.get(b"data") if isinstance(batch, dict) else None
    data = pickled.array if isinstance(pickled, _PickledBytes) else None
    if data is None or data.ndim != 2 or data.shape[1] != PIXELS:
        raise refuse(f"no b'data' of uint8 [images, {PIXELS}]")
    return data


class _ForbiddenObject(pickle.UnpicklingError):
    """A name outside the short list was asked for."""


class _BatchUnpickler(pickle.Unpickler):
    """Knows stand-ins for the three numpy names of a byte array, and nothing else; plain values need no name."""

    def find_class(self, module: str, name: str):
        stand_ins = {
            ("numpy.core.multiarray", "_reconstruct"): lambda *_: _PickledBytes(),
            ("numpy._core.multiarray", "_reconstruct"): lambda *_: _PickledBytes(),
            ("numpy", "ndarray"): _PickledBytes,
            ("numpy", "dtype"): _PickledDtype,
            ("_codecs", "encode"): _encode_latin1,  # how Python 3 writes bytes in old pickle protocols
        }
        if (module, name) not in stand_ins:
            raise _ForbiddenObject(f"{module}.{name}")
        return stand_ins[module, name]


class _PickledDtype:
    """The only dtype of a batch, uint8. Its pickled details (byte order, alignment) say nothing more."""

    def __init__(self, code: bytes | str = b"", *_):
        if code not in (b"u1", "u1"):
            raise _ForbiddenObject(f"numpy.dtype({code!r})")

    def __setstate__(self, state: tuple) -> None:
        pass


class _PickledBytes:
    """What numpy pickles for a byte array: (version, shape, dtype, fortran order, raw bytes)."""

    array: np.ndarray | None = None

    def __setstate__(self, state: tuple) -> None:
        _, shape, dtype, is_fortran, raw = state
        if not isinstance(dtype, _PickledDtype) or not isinstance(raw, bytes):
            raise _ForbiddenObject("an array that is not of bytes")
        self.array = np.frombuffer(raw, np.uint8).reshape(shape, order="F" if is_fortran else "C")


def _encode_latin1(text: str, encoding: bytes | str = "latin1") -> bytes:
    if encoding not in (b"latin1", "latin1") or not isinstance(text, str):
        raise _ForbiddenObject(f"_codecs.encode to {encoding!r}")
    return text.encode("latin1")
