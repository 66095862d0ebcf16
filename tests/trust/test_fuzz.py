"""Readers of files and tables against damage (trust/fuzz.py says what), and what was found so, or is known to hurt readers, by name."""

from __future__ import annotations

import contextlib
import io
import os
import pickle
import struct
import subprocess
import sys
import tarfile
from pathlib import Path

import pytest
import torch
from trust.fuzz import READERS, run
from trust.tally import tally

from sparsekern.data import cifar10, mnist, unpack_imagenet
from sparsekern.data.files import read_at_most
from sparsekern.data.plain_pickle import BadPickle, load_plain_pickle
from sparsekern.measure.rows import read_rows
from sparsekern.train import load_checkpoint

QUICK = ("cifar", "checkpoint", "linear_table", "mask_tables")  # of the others only the named samples below
SLOW, SEEDS = 1000, 3
TESTS = Path(__file__).parent.parent


def damage(reader: str, count: int, seed: int) -> None:
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join([str(TESTS), str(TESTS.parent), os.environ.get("PYTHONPATH", "")])}
    command = [sys.executable, "-m", "trust.fuzz", reader, str(count), str(seed)]
    done = subprocess.run(command, capture_output=True, text=True, env={**environment, "OMP_NUM_THREADS": "1"}, timeout=540)
    assert done.returncode == 0, f"{done.returncode}: {done.stderr[-2000:]}"
    refused = int(done.stdout.split()[-1])
    assert refused > count // 20, f"of {count} damaged files only {refused} were refused"
    tally(f"damaged files, {reader}", count)


@pytest.mark.parametrize("reader", QUICK)
def test_damaged_files(reader):
    """A few: none is read as something else, hangs or crashes."""
    assert run(reader, 60, 0, alone=False) > 10
    tally("damaged files", 60)


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(1, SEEDS + 1))
@pytest.mark.parametrize("reader", READERS)
def test_many_damaged_files(reader, seed):
    damage(reader, SLOW, seed)


# ---- by name


def refuses(content: bytes, what: str) -> None:
    with pytest.raises(BadPickle, match=what):
        load_plain_pickle(io.BytesIO(content), "batch")


def test_a_pickle_asks_for_no_memory():
    """The unpickler in C makes room for as many remembered values as a number in the file says: here 4 billion."""
    import resource

    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    load_plain_pickle(io.BytesIO(b"\x80\x02}r" + struct.pack("<I", 1 << 27) + b"."), "batch")
    refuses(b"\x80\x04\x8e" + struct.pack("<Q", 1 << 40) + b"abc.", "cut short|no batch")  # bytes of a terabyte
    refuses(b"\x80\x04\x95" + struct.pack("<Q", 1 << 40) + b"}.", "cut short")  # a frame of a terabyte
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 64 << 10  # KiB


def test_a_file_is_given_no_more_room_than_it_has():
    """``read(n)`` of a file makes room for n bytes first."""

    class Watched(io.BytesIO):
        asked = 0

        def read(self, size: int | None = -1) -> bytes:
            self.asked = max(self.asked, size if size is not None and size >= 0 else 2**63)
            return super().read(size)

    content = bytes(range(256)) * 5000
    for most in (0, 1, 255, 2**20 - 1, 2**20, len(content) - 1, len(content), 2**40):
        file = Watched(content)
        assert read_at_most(file, most) == content[: most + 1] and file.asked <= 2**20
    watched = Watched(pickle.dumps({b"data": b"x"}))
    load_plain_pickle(watched, "batch")
    assert watched.asked <= 2**20


def test_a_pickle_runs_nothing(tmp_path):
    class Evil:
        def __reduce__(self):
            return os.system, (f"touch {tmp_path / 'ran'}",)

    for protocol in range(6):
        refuses(pickle.dumps({b"data": Evil()}, protocol), r"asks for (nt|posix)\.system, which a batch does not hold")
    refuses(b"cbuiltins\neval\n(S'1'\ntR.", "asks for builtins.eval")
    refuses(b"(S'touch x'\nios\nsystem\n.", "asks for an object of another kind|asks for os.system")
    refuses(b"(cos\nsystem\nS'touch x'\no.", "asks for os.system")
    refuses(b"Pname\n.", "another kind")
    assert not (tmp_path / "ran").exists()
    with pytest.raises(ValueError, match="train: checkpoint must be whole"):
        (tmp_path / "a.safetensors").write_bytes(pickle.dumps(Evil()))
        load_checkpoint(tmp_path / "a.safetensors")
    assert not (tmp_path / "ran").exists()


def test_a_pickle_ends():
    """Tuples of themselves, 60 deep: their hash takes 2^60 steps. Of two, which would take none, so that the rule is tested."""
    for deep in (2, 60):
        nested = b")q\x00" + b"".join(b"0h%ch%c\x86q%c" % (i, i, i + 1) for i in range(deep))
        refuses(b"\x80\x02}" + nested + b"K\x01s.", "other keys than text and numbers")
        refuses(b"\x80\x02}(" + nested + b"K\x01u.", "other keys than text and numbers")
        refuses(b"\x80\x02(" + nested + b"K\x01d.", "other keys than text and numbers")
        refuses(b"\x80\x04\x8f(" + nested + b"\x90.", "another kind")


def test_a_pickle_leaves_nothing_behind():
    """What a pickle writes into the names it may ask for is gone with it."""
    content = b"\x80\x02c_codecs\nencode\n}U\x0c__defaults__(U\x05ascii\x86\x86b."
    with contextlib.suppress(BadPickle):
        load_plain_pickle(io.BytesIO(content), "batch")
    from sparsekern.data import plain_pickle

    assert plain_pickle._encode_latin1.__defaults__ == ("latin1",)


def test_a_gzip_file_of_zeros(tmp_path):
    import zlib

    packer = zlib.compressobj(1, zlib.DEFLATED, 31)
    bomb = packer.compress(struct.pack(">4i", 2051, 60000, 28, 28)) + b"".join(packer.compress(bytes(1 << 20)) for _ in range(140))
    (tmp_path / "t10k-images-idx3-ubyte.gz").write_bytes(bomb + packer.flush())
    with pytest.raises(ValueError, match=r"mnist: t10k-images-idx3-ubyte.gz must be of at most 134217728 bytes; got more"):
        mnist(tmp_path, "test", check=False)


def test_sizes_that_overflow(tmp_path):
    for shape in ((2**31 - 1,) * 3, (2**16, 2**24, 2**24), (-1, 28, 28)):
        (tmp_path / "t10k-images-idx3-ubyte").write_bytes(struct.pack(">4i", 2051, *shape))
        with pytest.raises(ValueError, match=r"mnist: t10k-images-idx3-ubyte must be of -?[0-9]+ bytes, as its first ones say; got 16"):
            mnist(tmp_path, "test", check=False)


def test_an_archive_of_holes(tmp_path):
    """A sparse member of a terabyte takes a kilobyte of archive."""
    inner = io.BytesIO()
    with tarfile.open(fileobj=inner, mode="w") as tar:
        entry = tarfile.TarInfo("n01_1.JPEG")
        entry.size = 512
        tar.addfile(entry, io.BytesIO(bytes(512)))
    member = bytearray(inner.getvalue())
    member[156:157] = b"S"  # GNU sparse
    member[386:398], member[398:410] = b"%011o\0" % 0, b"%011o\0" % 512
    member[483:495] = b"\x80" + (1 << 40).to_bytes(11, "big")  # the size that it unfolds to
    member[148:156] = b"        "
    member[148:156] = b"%06o\0 " % sum(member[:512])
    with tarfile.open(tmp_path / "ILSVRC2012_img_train.tar", "w") as outer:
        entry = tarfile.TarInfo("n01.tar")
        entry.size = len(member)
        outer.addfile(entry, io.BytesIO(bytes(member)))
    with pytest.raises(ValueError, match=r"must be the complete archive; got one that cannot be read: n01_1.JPEG of 1099511627776 bytes"):
        unpack_imagenet(tmp_path, tmp_path / "out", "train", check=False)


def test_an_archive_of_links(tmp_path):
    for kind in (tarfile.SYMTYPE, tarfile.LNKTYPE, tarfile.FIFOTYPE, tarfile.DIRTYPE):
        with tarfile.open(tmp_path / "cifar-10-python.tar.gz", "w:gz") as tar:
            entry = tarfile.TarInfo("cifar-10-batches-py/test_batch")
            entry.type, entry.linkname = kind, "cifar-10-batches-py/test_batch"
            tar.addfile(entry)
        with pytest.raises(ValueError, match=r"cifar10: cifar-10-python.tar.gz must "):
            cifar10(tmp_path / "cifar-10-python.tar.gz", "test", check=False)


def test_a_checkpoint_that_only_looks_whole(tmp_path):
    from safetensors.torch import save_file

    from sparsekern.train.checkpoint import FORMAT, _digest

    tensors = {"x": torch.zeros(2)}
    for facts in (None, "", "[1]", "{", "[" * 100_000):
        header = {"format": FORMAT, "digest": _digest(tensors, facts or ""), **({} if facts is None else {"facts": facts})}
        save_file(tensors, tmp_path / "a.safetensors", metadata=header)
        with pytest.raises(ValueError, match=r"train: checkpoint must be whole; got .*, without the facts of a training"):
            load_checkpoint(tmp_path / "a.safetensors")
    head = b'{"x":{"dtype":"F32","shape":[1099511627776],"data_offsets":[0,4398046511104]}}'
    for size in (len(head), 2**63, 2**40):
        (tmp_path / "a.safetensors").write_bytes(struct.pack("<Q", size) + head + bytes(8))
        with pytest.raises(ValueError, match="train: checkpoint must be whole"):
            load_checkpoint(tmp_path / "a.safetensors")


def test_rows_of_anything(tmp_path):
    for line in (b"5", b"[]", b'["machine"]', b"\xff\xfe{}", b"[" * 100_000, b'{"op": 1}', b"null", b'"machine"'):
        (tmp_path / "a.jsonl").write_bytes(line + b"\n")
        with pytest.raises(ValueError, match=r"rows: a.jsonl line 1 must be a row; got "):
            read_rows(tmp_path / "a.jsonl")
