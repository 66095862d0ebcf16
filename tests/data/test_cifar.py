"""The restricted CIFAR-10 reader: good files of both Pythons, and every kind of bad file."""

import io
import pickle
import struct
import tarfile

import numpy as np
import pytest
import torch

from sparsekern.data import cifar10_images
from sparsekern.data.cifar import CIFAR10, DEVIATION, MEAN

FOLDER = CIFAR10.folder
BATCHES = [name for split in ("test", "train") for name in CIFAR10.splits[split]]


def python2_pickle(data: np.ndarray, labels: list[int]) -> bytes:
    """A batch as Python 2 wrote it: protocol 2, byte strings as SHORT_BINSTRING / BINSTRING."""

    def text(value: bytes) -> bytes:
        return b"U" + bytes([len(value)]) + value if len(value) < 256 else b"T" + struct.pack("<i", len(value)) + value

    rows, columns = data.shape
    array = (
        b"cnumpy.core.multiarray\n_reconstruct\ncnumpy\nndarray\nK\x00\x85" + text(b"b") + b"\x87R"
        b"(K\x01" + b"M" + struct.pack("<H", rows) + b"M" + struct.pack("<H", columns) + b"\x86"
        b"cnumpy\ndtype\n" + text(b"u1") + b"K\x00K\x01\x87R(K\x03" + text(b"|") + b"NNNJ\xff\xff\xff\xffJ\xff\xff\xff\xffK\x00tb"
        b"\x89" + text(data.tobytes()) + b"tb"
    )
    numbers = b"](" + b"".join(b"K" + bytes([label]) for label in labels) + b"e"
    return b"\x80\x02}(" + text(b"data") + array + text(b"labels") + numbers + text(b"batch_label") + text(b"b1") + b"u."


@pytest.fixture
def pixels() -> np.ndarray:
    return np.random.default_rng(0).integers(0, 256, (4, 3072), dtype=np.uint8)


@pytest.fixture
def folder(tmp_path, pixels):
    (tmp_path / FOLDER).mkdir()
    for name in BATCHES:
        (tmp_path / FOLDER / name).write_bytes(python2_pickle(pixels, [1, 2, 3, 4]))
    return tmp_path


def test_python2_and_python3_batches_give_the_same_images(tmp_path, pixels):
    (tmp_path / "two").write_bytes(python2_pickle(pixels, [1, 2, 3, 4]))
    (tmp_path / "three").write_bytes(pickle.dumps({b"data": pixels, b"labels": [1, 2, 3, 4]}, protocol=2))
    two, three = (cifar10_images(tmp_path / name, 4) for name in ("two", "three"))
    assert torch.equal(two, three)
    expected = (torch.from_numpy(pixels[1].reshape(3, 32, 32)).double() / 255 - torch.tensor(MEAN).double().view(3, 1, 1)) / torch.tensor(
        DEVIATION
    ).double().view(3, 1, 1)
    torch.testing.assert_close(two[1].double(), expected, atol=1e-6, rtol=1e-6)


def test_folder_its_parent_and_the_archive_are_all_accepted(folder):
    archive = folder / "cifar-10-python.tar.gz"
    with tarfile.open(archive, "w:gz") as tar:
        tar.add(folder / FOLDER, FOLDER)
    whole = cifar10_images(folder, 24)
    assert whole.shape == (24, 3, 32, 32)
    assert torch.equal(cifar10_images(folder / FOLDER, 24), whole)
    assert torch.equal(cifar10_images(archive, 24), whole)
    assert cifar10_images(folder, 0).shape == (0, 3, 32, 32)


def test_missing_path_and_missing_batch_name_the_file_and_the_source(folder):
    with pytest.raises(FileNotFoundError, match=r"path must be .*; got '.*nowhere', which does not exist \(get cifar-10-python"):
        cifar10_images(folder / "nowhere", 1)
    (folder / FOLDER / "data_batch_3").unlink()
    assert len(cifar10_images(folder, 12)) == 12
    with pytest.raises(FileNotFoundError, match=r"must hold the file data_batch_3.*cs.toronto.edu"):
        cifar10_images(folder, 16)


def test_too_many_images(folder):
    with pytest.raises(ValueError, match=r"n must be at most 24, the images in .*; got 25"):
        cifar10_images(folder, 25)
    with pytest.raises(ValueError, match="n must be at least 0; got -1"):
        cifar10_images(folder, -1)


@pytest.mark.parametrize("kept", [0, 1, 10, 200, 5000, -1])
def test_a_batch_cut_short_is_named(tmp_path, pixels, kept):
    (tmp_path / "test_batch").write_bytes(python2_pickle(pixels, [1])[:kept])
    with pytest.raises(ValueError, match=r"test_batch must be a complete CIFAR-10 batch; got a file that is (cut short|no batch)"):
        cifar10_images(tmp_path / "test_batch", 1)


@pytest.mark.parametrize("content", [b"hello\n", b"\x00" * 100, pickle.dumps([1, 2]), pickle.dumps({b"data": "no"})])
def test_a_file_of_another_kind_is_named(tmp_path, content):
    (tmp_path / "test_batch").write_bytes(content)
    with pytest.raises(ValueError, match="test_batch must be a complete CIFAR-10 batch; got"):
        cifar10_images(tmp_path / "test_batch", 1)


def test_an_archive_cut_short_is_named(folder):
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w:gz") as tar:
        tar.add(folder / FOLDER, FOLDER)
    (folder / "cut.tar.gz").write_bytes(buffer.getvalue()[:-500])
    with pytest.raises(ValueError, match="cut"):
        cifar10_images(folder / "cut.tar.gz", 24)
    (folder / "other.tar.gz").write_bytes(b"not an archive")
    with pytest.raises(ValueError, match=r"other\.tar\.gz must be the complete archive"):
        cifar10_images(folder / "other.tar.gz", 1)


class Evil:
    def __init__(self, marker):
        self.marker = marker

    def __reduce__(self):
        return open, (str(self.marker), "w")


def test_a_pickle_that_runs_code_is_refused_and_does_not_run(tmp_path):
    marker = tmp_path / "marker"
    (tmp_path / "test_batch").write_bytes(pickle.dumps({b"data": Evil(marker)}))
    with pytest.raises(ValueError, match=r"got a pickle that asks for (_?io\.open|builtins\.open)"):
        cifar10_images(tmp_path / "test_batch", 1)
    assert not marker.exists()


def test_arrays_of_objects_and_other_types_are_refused(tmp_path):
    for data in (np.zeros((4, 3072), np.float32), np.array([[{}] * 3072], object)):
        (tmp_path / "test_batch").write_bytes(pickle.dumps({b"data": data}, protocol=2))
        with pytest.raises(ValueError, match=r"asks for numpy\.dtype"):
            cifar10_images(tmp_path / "test_batch", 1)
    (tmp_path / "test_batch").write_bytes(pickle.dumps({b"data": np.zeros((4, 100), np.uint8)}, protocol=2))
    with pytest.raises(ValueError, match="no b'data' of uint8"):
        cifar10_images(tmp_path / "test_batch", 1)
