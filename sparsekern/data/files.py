"""Official files: found, checked against their checksum, and named, with where to get them, when something is wrong."""

from __future__ import annotations

import hashlib
import io
from collections.abc import Sequence
from os import PathLike
from pathlib import Path
from typing import IO


def require(condition: bool, op: str, arg: str, rule: str, got: object, source: str) -> None:
    """Raise ``<op>: <arg> must be <rule>; got <value> (<source>)`` unless ``condition``."""
    if not condition:
        raise ValueError(f"{op}: {arg} must be {rule}; got {got} ({source})")


def check_path(op: str, **paths: object) -> None:
    """Raise unless each of them is text or a path."""
    for arg, path in paths.items():
        if not isinstance(path, str | PathLike):
            raise ValueError(f"{op}: {arg} must be a path; got {type(path).__name__}")


def find_file(op: str, path: str | Path, names: Sequence[str], source: str, folders: Sequence[str] = ()) -> Path:
    """The first of ``names`` in the folder ``path``, or in one of its ``folders``; ``path`` itself if it is a file of such a name.

    Raises:
        FileNotFoundError: ``mnist: path must hold the file train-images-idx3-ubyte.gz; got 'x', which does not exist (get ...)``
    """
    path = Path(path)
    if path.is_file() and path.name in names:
        return path
    for folder in (path, *(path / f for f in folders)):
        for name in names:
            if (folder / name).is_file():
                return folder / name
    got = f"{str(path)!r}, which " + ("does not" if path.is_dir() else "is another file" if path.exists() else "does not exist")
    raise FileNotFoundError(f"{op}: path must hold the file {names[0]}; got {got} ({source})")


def read_at_most(file: IO[bytes] | io.BufferedIOBase, most: int) -> bytes:
    """What is there, but no more than ``most`` bytes and one. In pieces: ``read(most + 1)`` makes room for so many before it reads."""
    content, left = io.BytesIO(), most + 1
    while left and (piece := file.read(min(left, 1 << 20))):
        left -= content.write(piece)
    return content.getvalue()


def check_md5(op: str, path: Path, md5: str, source: str) -> None:
    """Raise unless the file has this checksum.

    Raises:
        ValueError: ``svhn: test_32x32.mat must be the official file, md5 eb5a983b...; got md5 d41d8cd9... of 0 bytes: cut short or another
            file (get ...; check=False reads it all the same)``
    """
    digest = hashlib.md5(usedforsecurity=False)
    with open(path, "rb") as file:
        while block := file.read(1 << 20):
            digest.update(block)
    got = f"md5 {digest.hexdigest()} of {path.stat().st_size} bytes: cut short or another file"
    rule = f"the official file, md5 {md5}"
    require(digest.hexdigest() == md5, op, path.name, rule, got, f"{source}; check=False reads it all the same")
