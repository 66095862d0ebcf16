"""The libraries as they were built: nothing that is written can be run, and a damaged stack ends the process."""

from __future__ import annotations

import struct
from pathlib import Path

import pytest

import sparsekern

LIBRARIES = sorted(Path(sparsekern.__file__).parent.glob("*.so"))
LOAD, DYNAMIC, STACK, RELRO = 1, 2, 0x6474E551, 0x6474E552  # kinds of segments
FLAGS, FLAGS_1, TEXTREL = 30, 0x6FFFFFFB, 22  # entries of the dynamic section
RUN, WRITE = 1, 2


def read(data: bytes) -> tuple[list[tuple[int, int]], dict[int, int]]:
    """The segments (kind, rights) and the dynamic section of a 64-bit ELF file."""
    assert data[:6] == b"\x7fELF\x02\x01", "not a 64-bit little-endian ELF file"
    start, size, count = *struct.unpack_from("<Q", data, 32), *struct.unpack_from("<HH", data, 54)
    segments, dynamic = [], {}
    for at in range(start, start + size * count, size):
        kind, rights, offset, _, _, length = struct.unpack_from("<IIQQQQ", data, at)
        segments.append((kind, rights))
        if kind == DYNAMIC:
            dynamic = dict(struct.iter_unpack("<QQ", data[offset : offset + length]))
    return segments, dynamic


@pytest.mark.parametrize("library", LIBRARIES, ids=lambda p: p.name.partition(".")[0])
def test_a_library_is_hardened(library):
    data = library.read_bytes()
    segments, dynamic = read(data)
    assert not any(kind in (LOAD, STACK) and rights & RUN and rights & WRITE for kind, rights in segments), "memory to write and run"
    kinds = [kind for kind, _ in segments]
    assert STACK in kinds and RELRO in kinds
    assert dynamic.get(FLAGS, 0) & 8 or dynamic.get(FLAGS_1, 0) & 1, "addresses of functions stay writable: -z now"
    assert TEXTREL not in dynamic
    if not library.name.startswith("_native"):  # which has no array on its stack
        assert b"__stack_chk_fail" in data, "-fstack-protector-strong"
