"""Pickles of plain values and byte arrays, read without running what a pickle may ask for.

The reader rebuilds byte arrays itself, and refuses by name every object that a pickle asks for beyond those.
"""

from __future__ import annotations

import pickle
from typing import Any, BinaryIO

import numpy as np


class BadPickle(Exception):
    """Its text ends the sentence *got ...*"""


def load_plain_pickle(file: BinaryIO, kind: str) -> Any:
    """Read one pickle, of Python 2 or 3; in a dict, byte arrays come as numpy arrays, text of Python 2 as bytes.

    Raises:
        BadPickle: ``a file that is cut short``, ``a file that is no batch: ...`` (with ``kind="batch"``),
            ``a pickle that asks for io.open, which a batch does not hold``.
    """
    try:
        value = _PlainUnpickler(file, encoding="bytes").load()
    except _ForbiddenObject as error:
        raise BadPickle(f"a pickle that asks for {error}, which a {kind} does not hold") from None
    except EOFError:
        raise BadPickle("a file that is cut short") from None
    except pickle.UnpicklingError as error:
        raise BadPickle("a file that is cut short" if "truncated" in str(error) else f"a file that is no {kind}: {error}") from None
    except Exception as error:  # a damaged pickle fails in many ways, all of them meaning the same to the reader
        raise BadPickle(f"a file that is no {kind}: {type(error).__name__}: {error}") from None
    if isinstance(value, dict):
        return {key: entry.array if isinstance(entry, _PickledBytes) else entry for key, entry in value.items()}
    return value


class _ForbiddenObject(pickle.UnpicklingError):
    """A name outside the short list was asked for."""


class _PlainUnpickler(pickle.Unpickler):
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
