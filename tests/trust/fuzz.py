"""Damage files and read them: ``python -m trust.fuzz <reader> <count> <seed>``, in a process of little memory and time.

A damaged file may be read (a flipped pixel is no error) or refused with a sentence of ours. Anything else (another exception, more than
``MEMORY`` bytes, more than ``SECONDS``, a crash) ends the process with the damage that did it.
"""

from __future__ import annotations

import gzip
import io
import json
import pickle
import resource
import signal
import struct
import sys
import tarfile
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np

MEMORY, SECONDS = 1 << 30, 10
LENGTHS = [0, 1, 127, 128, 255, 256, 2**15, 2**16 - 1, 2**24, 2**31 - 1, 2**31, 2**32 - 1, 2**40, 2**62, 2**63 - 1, 2**64 - 1]


def mutations(good: bytes, count: int, seed: int) -> Iterator[tuple[str, bytes]]:
    """What damage does: bits, bytes, lengths, parts cut out, doubled and moved; in the first bytes more often than later."""
    draw = np.random.default_rng(seed)

    def place() -> int:
        return int(draw.integers(min(len(good), 64)) if draw.random() < 0.4 else draw.integers(len(good)))

    for number in range(count):
        data, kind = bytearray(good), ("bit", "byte", "length", "cut", "without", "double", "several")[number % 7]
        if kind == "bit":
            data[place()] ^= 1 << int(draw.integers(8))
        elif kind == "byte":
            data[place()] = int(draw.integers(256))
        elif kind == "length":
            size, at = int(draw.choice([1, 2, 4, 8])), place()
            value = LENGTHS[int(draw.integers(len(LENGTHS)))] % 256**size
            data[at : at + size] = value.to_bytes(size, str(draw.choice(["little", "big"])))
        elif kind == "cut":
            data = data[: place()]
        elif kind == "without":
            at = place()
            del data[at : at + int(draw.integers(1, 40))]
        elif kind == "double":
            at, size = place(), int(draw.integers(1, 40))
            data[at:at] = data[at : at + size]
        else:
            for _ in range(int(draw.integers(2, 12))):
                data[place()] = int(draw.integers(256))
        yield f"{kind} {number}", bytes(data)


# ---- readers: (a good file, its name, what reads the folder it is in)


def cifar(folder: Path):
    from sparsekern.data import cifar10

    data = np.arange(2 * 3072, dtype=np.uint8).reshape(2, 3072)
    batch = {b"data": data, b"labels": [1, 2], b"batch_label": b"testing batch 1 of 1", b"filenames": [b"a.png", b"b.png"]}
    return pickle.dumps(batch, protocol=2), "cifar-10-batches-py/test_batch", lambda: cifar10(folder, "test", check=False)


def cifar_archive(folder: Path):
    from sparsekern.data import cifar10

    content, name, _ = cifar(folder)
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w:gz") as tar:
        entry = tarfile.TarInfo(name)
        entry.size = len(content)
        tar.addfile(entry, io.BytesIO(content))
    archive = "cifar-10-python.tar.gz"
    return buffer.getvalue(), archive, lambda: cifar10(folder / archive, "test", check=False)


def cifar_plain_archive(folder: Path):
    from sparsekern.data import cifar10

    return gzip.decompress(cifar_archive(folder)[0]), "c.tar", lambda: cifar10(folder / "c.tar", "test", check=False)


def _mnist(folder: Path, name: str, content: bytes):
    from sparsekern.data import mnist

    images = struct.pack(">4i", 2051, 3, 28, 28) + bytes(range(256)) * 9 + bytes(48)
    labels = struct.pack(">2i", 2049, 3) + bytes([1, 2, 9])
    for prefix, other in (("images-idx3", images), ("labels-idx1", labels)):
        (folder / f"t10k-{prefix}-ubyte").write_bytes(other)
    return {"images": images, "labels": labels}[content], name, lambda: mnist(folder, "test", check=False)


def mnist_images(folder: Path):
    return _mnist(folder, "t10k-images-idx3-ubyte", "images")


def mnist_labels(folder: Path):
    return _mnist(folder, "t10k-labels-idx1-ubyte", "labels")


def mnist_gzip(folder: Path):
    content, name, read = mnist_images(folder)
    return gzip.compress(content), name + ".gz", read


def _svhn(folder: Path, compressed: bool):
    from scipy.io import savemat

    from sparsekern.data import svhn

    buffer = io.BytesIO()
    x = np.arange(32 * 32 * 3 * 2, dtype=np.uint8).reshape(32, 32, 3, 2)
    savemat(buffer, {"X": x, "y": np.array([[1], [10]], np.uint8)}, do_compression=compressed)
    return buffer.getvalue(), "test_32x32.mat", lambda: svhn(folder, "test", check=False)


def svhn_plain(folder: Path):
    return _svhn(folder, False)


def svhn_compressed(folder: Path):
    return _svhn(folder, True)


def imagenet_image(folder: Path):
    from PIL import Image

    from sparsekern.data import ImageNet

    buffer = io.BytesIO()
    Image.fromarray(np.arange(20 * 30 * 3, dtype=np.uint8).reshape(20, 30, 3)).save(buffer, "JPEG")
    return buffer.getvalue(), "val/n01/a.JPEG", lambda: ImageNet(folder, "val", check=False)[0]


def imagenet_archive(folder: Path):
    import shutil

    from sparsekern.data import unpack_imagenet

    inner, outer = io.BytesIO(), io.BytesIO()
    for buffer, name, content in ((inner, "n01_1.JPEG", b"image" * 99), (outer, "n01.tar", None)):
        with tarfile.open(fileobj=buffer, mode="w") as tar:
            content = inner.getvalue() if content is None else content
            entry = tarfile.TarInfo(name)
            entry.size = len(content)
            tar.addfile(entry, io.BytesIO(content))

    def read():
        shutil.rmtree(folder / "out", ignore_errors=True)
        unpack_imagenet(folder, folder / "out", "train", check=False)

    return outer.getvalue(), "ILSVRC2012_img_train.tar", read


def checkpoint(folder: Path):
    import torch

    from sparsekern.train import load_checkpoint, save_checkpoint

    tensors = {"model/0.weight": torch.randn(4, 3), "model/0.index": torch.arange(12).int().reshape(4, 3), "x": torch.zeros(0)}
    save_checkpoint(folder / "a.safetensors", tensors, {"at": {"epoch": 1}, "rows": [], "run": {"seed": 0}})
    return (folder / "a.safetensors").read_bytes(), "a.safetensors", lambda: load_checkpoint(folder / "a.safetensors")


def rows(folder: Path):
    from sparsekern.measure.rows import read_rows

    numbers = dict(batch=1, sizes={"in": 4}, density=0.5, flops=8, dense_flops=16, bytes=99, threads=1)
    numbers |= dict.fromkeys(("p20_us", "p50_us", "p80_us", "wall_us", "cpu_us"), 1.5)
    words = {word: "x" for word in ("op", "case", "provider", "mode", "cache", "dtype", "layout", "served_by")}
    line = json.dumps({**words, **numbers, "ratios": {"mkl": [1.0, 2.0, 3.0]}}) + "\n"
    return b'{"machine": {"cpu": "x"}}\n' + line.encode() * 3, "rows.jsonl", lambda: read_rows(folder / "rows.jsonl")


def profile_file(folder: Path):
    from rich.console import Console
    from torch import nn, ones

    from sparsekern.profile import profile
    from sparsekern.profile.report import realised, table
    from sparsekern.profile.save import read_json, write_json

    found = profile(nn.Sequential(nn.Linear(8, 4), nn.ReLU()), ones(2, 8), rounds=1, twins=False, memory=False)
    write_json(found, folder / "a.json")

    def read():
        other = read_json(folder / "a.json")
        for shown in (table(other), realised(found, other), realised(other, found)):
            Console(file=io.StringIO(), width=200).print(shown)

    return (folder / "a.json").read_bytes(), "a.json", read


def _tables(layer, x, names: tuple[str, ...]):
    """Index tables that come in a state_dict, and then are written in place: refused, or run within bounds."""
    import torch

    good = {name: getattr(layer, name).clone() for name in names}

    def read_with(content: bytes):
        values = torch.frombuffer(bytearray(content), dtype=torch.int32)
        tables, at = {}, 0
        for name, table in good.items():
            tables[name], at = values[at : at + table.numel()].reshape(table.shape), at + table.numel()
        before, said = {key: value.clone() for key, value in layer.state_dict().items()}, []
        try:
            layer.load_state_dict({**before, **tables})
        except RuntimeError as refused:
            assert " must be " in str(refused), refused
            assert all(torch.equal(layer.state_dict()[key], value) for key, value in before.items())
            said.append(str(refused))
        layer(x).sum().backward()
        try:
            with torch.no_grad():
                for name, table in tables.items():
                    getattr(layer, name).copy_(table)
            layer(x).sum().backward()
        except ValueError as refused:
            said.append(str(refused))
        finally:
            layer.load_state_dict({**before, **good})
        if said:
            raise ValueError(min(said, key=lambda sentence: " must be " in sentence))

    return b"".join(t.numpy().tobytes() for t in good.values()), read_with


def linear_table(folder: Path):
    import torch

    from sparsekern.nn import SparseLinear

    return _tables(SparseLinear(40, 12, fan_in=5, seed=0), torch.randn(3, 40), ("index",))


def mask_tables(folder: Path):
    import torch

    from sparsekern.nn import StochasticConv2d

    layer = StochasticConv2d(4, 6, 3, padding=1, density=0.4, granularity="synapse", seed=0)
    return _tables(layer, torch.randn(1, 4, 6, 6), ("indptr", "index"))


READERS: dict[str, Callable] = {
    f.__name__: f
    for f in (
        cifar, cifar_archive, cifar_plain_archive, mnist_images, mnist_labels, mnist_gzip, svhn_plain, svhn_compressed, imagenet_image,
        imagenet_archive, checkpoint, rows, profile_file, linear_table, mask_tables,
    )
}  # fmt: skip


def memory_bytes() -> int:
    """Of addresses in use by this process."""
    return int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()


def run(reader: str, count: int, seed: int, *, alone: bool = True) -> int:
    """How many damaged files were refused; raises for the first that is neither read nor refused as it should be.

    ``alone``: in a process of its own, whose memory can be limited.
    """
    refused = 0
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        good, *rest = READERS[reader](folder)
        if len(rest) == 2:
            file = folder / rest[0]
            file.parent.mkdir(exist_ok=True, parents=True)

            def read(data: bytes):
                file.write_bytes(data)
                rest[1]()

            read(good)
        else:
            read = rest[0]

        def too_long(*_):
            raise TimeoutError(f"of {SECONDS} seconds")

        signal.signal(signal.SIGALRM, too_long)
        if alone:
            resource.setrlimit(resource.RLIMIT_AS, (memory_bytes() + MEMORY,) * 2)
        for what, data in mutations(good, count, seed):
            if len(rest) == 1:
                data = data[: len(good)].ljust(len(good), b"\0")
            signal.alarm(SECONDS)
            try:
                read(data)
            except (ValueError, FileNotFoundError) as error:
                if " must " not in str(error):
                    raise AssertionError(f"{reader}: {what} of seed {seed}: {type(error).__name__}: {error}") from error
                refused += 1
            except BaseException as error:
                raise AssertionError(f"{reader}: {what} of seed {seed}: {type(error).__name__}: {error}") from error
            finally:
                signal.alarm(0)
    return refused


if __name__ == "__main__":
    import warnings

    warnings.simplefilter("ignore")
    print("refused", run(sys.argv[1], int(sys.argv[2]), int(sys.argv[3])))
