"""Pickles of plain values and byte arrays, read without running what a pickle may ask for.

The reader rebuilds byte arrays itself, and refuses by name every object that a pickle asks for beyond those. It is Python's own, written
in Python: the one in C makes room for as many remembered values as a damaged number says.
"""

from __future__ import annotations

import io
import pickle
from collections.abc import Callable
from typing import IO, Any, ClassVar

import numpy as np

from sparsekern.data.files import read_at_most

MOST_BYTES = 1 << 29  # of a pickle; the largest official one has a third of it


class BadPickle(Exception):
    """Its text ends the sentence *got ...*"""


def load_plain_pickle(file: IO[bytes], kind: str) -> Any:
    """Read one pickle, of Python 2 or 3; in a dict, byte arrays come as numpy arrays, text of Python 2 as bytes.

    Raises:
        BadPickle: ``a file that is cut short``, ``a file that is no batch: ...`` (with ``kind="batch"``),
            ``a pickle that asks for io.open, which a batch does not hold``.
    """
    try:
        content = read_at_most(file, MOST_BYTES)
        if len(content) > MOST_BYTES:
            raise pickle.UnpicklingError(f"of more than {MOST_BYTES} bytes")
        value = _PlainUnpickler(_Content(content), encoding="bytes").load()
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


class _Content(io.BytesIO):
    """What is read of it is there: a length that lies, or a line without an end, is the end of the file."""

    def read(self, size: int | None = -1) -> bytes:
        found = super().read(size)
        if len(found) < (-1 if size is None else size):
            raise EOFError
        return found

    def readline(self, size: int | None = -1) -> bytes:
        found = super().readline(size)
        if not found.endswith(b"\n"):
            raise EOFError
        return found


class _ForbiddenObject(pickle.UnpicklingError):
    """A name outside the short list was asked for."""


class _PlainUnpickler(pickle._Unpickler):
    """Knows stand-ins for the three numpy names of a byte array, and nothing else; plain values need no name."""

    stack: list[Any]  # as in the class above, whose annotations leave these out
    pop_mark: Callable[[], list[Any]]
    append: Callable[[Any], None]
    dispatch: ClassVar[dict] = dict(pickle._Unpickler.dispatch)

    def load_refused(self) -> None:
        raise _ForbiddenObject("an object of another kind")

    for code in (pickle.PERSID, pickle.BINPERSID, pickle.INST, pickle.OBJ, pickle.NEWOBJ, pickle.NEWOBJ_EX, pickle.EXT1, pickle.EXT2,
                 pickle.EXT4, pickle.EMPTY_SET, pickle.ADDITEMS, pickle.FROZENSET):  # fmt: skip
        dispatch[code[0]] = load_refused
    del code

    def load_setitem(self) -> None:
        value = self.stack.pop()
        self._set([self.stack.pop(), value])

    def load_setitems(self) -> None:
        self._set(self.pop_mark())

    def load_dict(self) -> None:
        items = self.pop_mark()
        self.append({})
        self._set(items)

    dispatch[pickle.SETITEM[0]], dispatch[pickle.SETITEMS[0]], dispatch[pickle.DICT[0]] = load_setitem, load_setitems, load_dict

    def _set(self, items: list) -> None:
        keys = items[::2]
        if not isinstance(self.stack[-1], dict) or not all(isinstance(key, str | bytes | int) for key in keys):
            raise _ForbiddenObject("a dict of other keys than text and numbers")  # the hash of a nested tuple may take for ever
        self.stack[-1].update(zip(keys, items[1::2]))

    def find_class(self, module: str, name: str) -> Any:
        stand_ins = {
            ("numpy.core.multiarray", "_reconstruct"): lambda *_: _PickledBytes(),
            ("numpy._core.multiarray", "_reconstruct"): lambda *_: _PickledBytes(),
            ("numpy", "ndarray"): _PickledBytes,
            ("numpy", "dtype"): _PickledDtype,
            # how Python 3 writes bytes in old pickle protocols; a function of its own for each pickle, which may write into it
            ("_codecs", "encode"): lambda *args: _encode_latin1(*args),
        }
        if (module, name) not in stand_ins:
            raise _ForbiddenObject(f"{module}.{name}")
        return stand_ins[module, name]


class _PickledDtype:
    """The only dtype of a batch, uint8. Its pickled details (byte order, alignment) say nothing more."""

    def __init__(self, code: bytes | str = b"", *_: Any):
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
