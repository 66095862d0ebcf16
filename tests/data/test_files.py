"""CIFAR, MNIST, SVHN and ImageNet from small files in the official formats, good and bad."""

from __future__ import annotations

import builtins
import gzip
import hashlib
import io
import pickle
import struct
import tarfile

import numpy as np
import pytest
import torch

from sparsekern.data import ImageNet, cifar10, cifar100, digits, mnist, svhn, unpack_imagenet
from sparsekern.data import imagenet as imagenet_files
from sparsekern.data.cifar import CIFAR10, CIFAR100

RNG = np.random.default_rng(0)


def refuses(sentence: str, call, *args, kind=ValueError, **options) -> None:
    with pytest.raises(kind) as raised:
        call(*args, **options)
    assert sentence in str(raised.value), str(raised.value)


# ---- CIFAR


@pytest.fixture
def cifar(tmp_path):
    """Both data sets, 4 images a batch, and their archives."""
    pixels = {}
    for release in (CIFAR10, CIFAR100):
        folder = tmp_path / release.folder
        folder.mkdir()
        for split in release.splits.values():
            for name in split:
                data = RNG.integers(0, 256, (4, 3072), dtype=np.uint8)
                labels = RNG.integers(0, release.classes, 4).tolist()
                other = {b"coarse_labels": [0] * 4, b"filenames": [b"x"] * 4} if release is CIFAR100 else {b"batch_label": b"b"}
                (folder / name).write_bytes(pickle.dumps({b"data": data, release.labels: labels, **other}, protocol=2))
                pixels[name] = data, labels
        with tarfile.open(tmp_path / release.archive, "w:gz") as tar:
            tar.add(folder, release.folder)
    return tmp_path, pixels


@pytest.mark.parametrize("load, release", [(cifar10, CIFAR10), (cifar100, CIFAR100)])
def test_cifar(cifar, load, release):
    path, pixels = cifar
    for split, names in release.splits.items():
        want = np.concatenate([pixels[name][0] for name in names]).reshape(-1, 3, 32, 32)
        for place in (path, path / release.folder, path / release.archive):
            got = load(place, split, check=False)
            assert torch.equal(got.x, torch.from_numpy(want)) and got.x.dtype == torch.uint8 and got.classes == release.classes
            assert got.y.tolist() == [label for name in names for label in pixels[name][1]]


def test_cifar_checksums_name_the_file_and_the_source(cifar):
    path, _ = cifar
    first, archive = path / CIFAR10.folder / "data_batch_1", path / CIFAR10.archive
    for place, file, md5 in ((path, first, "c99cafc152244af753f735de768cd75f"), (archive, archive, CIFAR10.archive_md5)):
        got = hashlib.md5(file.read_bytes()).hexdigest()
        sentence = f"cifar10: {file.name} must be the official file, md5 {md5}; got md5 {got} of {file.stat().st_size} bytes: cut short or "
        refuses(sentence, cifar10, place)
        refuses("get cifar-10-python.tar.gz from https://www.cs.toronto.edu/~kriz/cifar.html; check=False reads", cifar10, place)


def test_cifar_bad_files(cifar):
    path, _ = cifar
    refuses("cifar10: split must be one of ['test', 'train']; got 'val'", cifar10, path, "val")
    file = path / CIFAR10.folder / "test_batch"
    refuses("cifar10: path must be a CIFAR-10 folder or archive; got the file", cifar10, file, "test", check=False)
    good = file.read_bytes()
    data = np.zeros((2, 3072), np.uint8)
    for labels in ([1], [1, 10], [1, -1], [1, "2"], None):
        file.write_bytes(pickle.dumps({b"data": data, b"labels": labels}, protocol=2))
        sentence = "cifar10: test_batch must be a complete CIFAR-10 batch; got no b'labels' of one number in [0, 10) per image"
        refuses(sentence, cifar10, path, "test", check=False)
    for kept in (0, 10, len(good) // 2, len(good) - 1):
        file.write_bytes(good[:kept])
        refuses("cifar10: test_batch must be a complete CIFAR-10 batch; got a file that is", cifar10, path, "test", check=False)
    file.unlink()
    refuses("must hold the file test_batch; it does not (get cifar-10", cifar10, path, "test", check=False, kind=FileNotFoundError)
    refuses("cifar100: path must be a CIFAR-100 folder", cifar100, path / "nowhere", kind=FileNotFoundError)


# ---- MNIST


def idx(array: np.ndarray) -> bytes:
    return struct.pack(f">{1 + array.ndim}i", 2048 + array.ndim, *array.shape) + array.tobytes()


@pytest.fixture
def mnist_folder(tmp_path):
    sizes = {"train": 5, "t10k": 3}
    for prefix, n in sizes.items():
        images, labels = RNG.integers(0, 256, (n, 28, 28), dtype=np.uint8), RNG.integers(0, 10, n, dtype=np.uint8)
        (tmp_path / f"{prefix}-images-idx3-ubyte.gz").write_bytes(gzip.compress(idx(images)))
        (tmp_path / f"{prefix}-labels-idx1-ubyte.gz").write_bytes(gzip.compress(idx(labels)))
        np.savez(tmp_path / f"{prefix}.npz", images=images, labels=labels)
    return tmp_path


def test_mnist(mnist_folder, tmp_path_factory):
    for split, prefix in (("train", "train"), ("test", "t10k")):
        want = np.load(mnist_folder / f"{prefix}.npz")
        got = mnist(mnist_folder, split, check=False)
        assert torch.equal(got.x[:, 0], torch.from_numpy(want["images"])) and got.y.tolist() == want["labels"].tolist()
        assert got.x.shape[1:] == (1, 28, 28) and got.classes == 10
    raw = tmp_path_factory.mktemp("torchvision") / "MNIST" / "raw"
    raw.mkdir(parents=True)
    for file in mnist_folder.glob("*.gz"):
        (raw / file.name.removesuffix(".gz")).write_bytes(gzip.decompress(file.read_bytes()))
    unpacked = mnist(raw.parent.parent, "test")  # no checksum is published for these
    assert torch.equal(unpacked.x, got.x) and torch.equal(unpacked.y, got.y)


def test_mnist_bad_files(mnist_folder):
    images, labels = mnist_folder / "train-images-idx3-ubyte.gz", mnist_folder / "train-labels-idx1-ubyte.gz"
    refuses("mnist: split must be one of ['test', 'train']; got 'val'", mnist, mnist_folder, "val")
    refuses(
        "mnist: train-images-idx3-ubyte.gz must be the official file, md5 f68b3c2dcbeaaa9fbdd348bbdeb94873; got md5", mnist, mnist_folder
    )
    good = images.read_bytes()
    load = lambda: mnist(mnist_folder, check=False)  # noqa: E731
    for kept in (0, 5, 200, len(good) - 4):
        images.write_bytes(good[:kept])
        refuses("mnist: train-images-idx3-ubyte.gz must be", load)
    images.write_bytes(good)
    for content, sentence in (
        (struct.pack(">2i", 2051, 5) + bytes(5), "an idx file of labels, beginning with 2049; got one beginning with 2051"),
        (struct.pack(">2i", 2049, 5) + bytes(4), "of 13 bytes, as its first ones say; got 12"),
        (struct.pack(">2i", 2049, 5) + bytes(6), "of 13 bytes, as its first ones say; got 14"),
        (struct.pack(">2i", 2049, -5) + bytes(4), "of 3 bytes, as its first ones say; got 12"),
        (struct.pack(">2i", 2049, 4) + bytes(4), "labels must be one per image, 5; got 4"),
        (struct.pack(">2i", 2049, 5) + bytes([1, 2, 3, 4, 10]), "labels must be in [0, 10); got 10"),
        (b"", "of at least 8 bytes; got 0"),
    ):
        labels.write_bytes(gzip.compress(content))
        refuses(sentence, load)
    labels.unlink()
    sentence = "must hold the file train-labels-idx1-ubyte.gz; got"
    refuses(sentence, load, kind=FileNotFoundError)
    refuses("which does not exist (get train-images-idx3-ubyte.gz from https://", mnist, mnist_folder / "x", kind=FileNotFoundError)


# ---- SVHN


def test_svhn(tmp_path):
    savemat = pytest.importorskip("scipy.io").savemat
    for i, split in enumerate(("train", "extra")):
        x = RNG.integers(0, 256, (32, 32, 3, 12), dtype=np.uint8)
        y = (np.arange(12) % 10 + 1).reshape(12, 1).astype(np.uint8)
        savemat(tmp_path / f"{split}_32x32.mat", {"X": x, "y": y}, do_compression=bool(i))
        got = svhn(tmp_path, split, check=False)
        assert got.x.shape == (12, 3, 32, 32) and got.y.tolist() == [1, 2, 3, 4, 5, 6, 7, 8, 9, 0, 1, 2]
        assert torch.equal(got.x[5, 2], torch.from_numpy(x[:, :, 2, 5].copy()))
    both = svhn(tmp_path, "train+extra", check=False)
    assert len(both) == 24 and torch.equal(both.x[12:], got.x)

    file = tmp_path / "train_32x32.mat"
    refuses("svhn: train_32x32.mat must be the official file, md5 e26dedcc434d2e4c54c9b2d4a06d8373; got md5", svhn, tmp_path)
    refuses("get train_32x32.mat from http://ufldl.stanford.edu/housenumbers/", svhn, tmp_path)
    refuses("svhn: split must be one of ['extra', 'test', 'train'], or several joined by +; got 'val'", svhn, tmp_path, "val")
    refuses("svhn: path must hold the file test_32x32.mat", svhn, tmp_path, "test", kind=FileNotFoundError)
    good = file.read_bytes()
    for kept in (200, 5000, len(good) - 10):
        file.write_bytes(good[:kept])
        refuses("svhn: train_32x32.mat must be", svhn, tmp_path, check=False)
    for content in (b"", b"hello", b"MATLAB 7.3 MAT-file" + bytes(200)):
        file.write_bytes(content)
        refuses("svhn: train_32x32.mat must be a MATLAB 5 file; got one beginning with", svhn, tmp_path, check=False)
    for bad, sentence in (
        ({"y": y}, "of images X [32, 32, 3, N] of uint8; got none"),
        ({"X": x.astype(np.float32), "y": y}, "of images X [32, 32, 3, N] of uint8; got [32, 32, 3, 12] of float32"),
        ({"X": x, "y": y[:5]}, "of labels y [12, 1] in [1, 10]; got [5, 1] of uint8"),
        ({"X": x, "y": y - 1}, "of labels y [12, 1] in [1, 10]"),
        ({"X": x, "y": np.minimum(y + 0.5, 10)}, "of labels y that are whole numbers; got some between two"),
        ({"X": x, "y": np.array([["a"]] * 12)}, "of labels y [12, 1] in [1, 10]"),
    ):
        savemat(file, bad)
        refuses(sentence, svhn, tmp_path, check=False)


@pytest.mark.parametrize("package, call", [("scipy", lambda: svhn(".")), ("sklearn", digits)])
def test_a_missing_package_is_named_with_its_cure(monkeypatch, package, call):
    real_import = builtins.__import__

    def without(name, *args, **kwargs):
        if name.split(".")[0] == package:
            raise ModuleNotFoundError(f"No module named {package!r}", name=package)
        return real_import(name, *args, **kwargs)

    monkeypatch.setattr(builtins, "__import__", without)
    refuses("must be installed: pip install sparsekern[data]", call, kind=ModuleNotFoundError)


# ---- ImageNet


def jpeg(color, size=(40, 30), mode="RGB") -> bytes:
    image = pytest.importorskip("PIL.Image").new(mode, size, color)
    buffer = io.BytesIO()
    image.save(buffer, "JPEG", quality=95)
    return buffer.getvalue()


def add(tar: tarfile.TarFile, name: str, content: bytes) -> None:
    entry = tarfile.TarInfo(name)
    entry.size = len(content)
    tar.addfile(entry, io.BytesIO(content))


@pytest.fixture
def archives(tmp_path):
    """Two classes: a training archive of archives, validation images of classes 2, 1, 1, and the kit that says so."""
    savemat = pytest.importorskip("scipy.io").savemat
    colors = {"n01": (250, 0, 0), "n02": (0, 0, 250)}
    with tarfile.open(tmp_path / "ILSVRC2012_img_train.tar", "w") as outer:
        for wnid, color in colors.items():
            buffer = io.BytesIO()
            with tarfile.open(fileobj=buffer, mode="w") as inner:
                add(inner, f"{wnid}_1.JPEG", jpeg(color))
                add(inner, f"../../{wnid}_2.JPEG", jpeg(128, mode="L"))  # grey; and a name that leads out of the folder
                add(inner, "readme.txt", b"no image")
            add(outer, f"{wnid}.tar", buffer.getvalue())
    with tarfile.open(tmp_path / "ILSVRC2012_img_val.tar", "w") as tar:
        for i, wnid in reversed(list(enumerate(["n02", "n01", "n01"], 1))):
            add(tar, f"ILSVRC2012_val_{i:08d}.JPEG", jpeg(colors[wnid]))
    synsets = np.array([(1, "n01"), (2, "n02")], dtype=[("ILSVRC2012_ID", "i4"), ("WNID", "O")])
    meta = io.BytesIO()
    savemat(meta, {"synsets": synsets})
    with tarfile.open(tmp_path / "ILSVRC2012_devkit_t12.tar.gz", "w:gz") as tar:
        add(tar, "ILSVRC2012_devkit_t12/data/meta.mat", meta.getvalue())
        add(tar, "ILSVRC2012_devkit_t12/data/ILSVRC2012_validation_ground_truth.txt", b"2\n1\n1\n")
    return tmp_path


def test_imagenet_unpacked_and_read(archives, tmp_path_factory):
    out = tmp_path_factory.mktemp("imagenet")
    for split in ("train", "val"):
        assert unpack_imagenet(archives, out, split, check=False) == out / split
    train, val = ImageNet(out, "train", check=False), ImageNet(out, "val", lambda image: image.float().mean((1, 2)), check=False)
    assert len(train) == 4 and train.names == val.names == ["n01", "n02"] and [train[i][1] for i in range(4)] == [0, 0, 1, 1]
    assert train[0][0].shape == (3, 30, 40) and train[0][0].dtype == torch.uint8 and (train[1][0].float() - 128).abs().max() < 3
    for i in range(3):
        color, label = val[i]
        assert label == (1 if i == 2 else 0) and color.argmax() == 2 * label  # sorted by class: two red, then one blue
    assert sorted(p.name for p in out.iterdir()) == ["train", "val"] and not list(out.glob("*.JPEG"))
    with pytest.raises(FileExistsError, match=r"^unpack_imagenet: path must not hold the folder val yet; it does"):
        unpack_imagenet(archives, out, "val", check=False)
    refuses("ImageNet: val must be 1000 folders, one per class; got 2 folders (get the archives", ImageNet, out, "val")


def test_imagenet_bad_files(archives, tmp_path_factory, monkeypatch):
    out = tmp_path_factory.mktemp("imagenet")
    refuses(
        "unpack_imagenet: ILSVRC2012_img_val.tar must be the official file, md5 29b22e2961454d5413ddabcf34fc5622",
        unpack_imagenet,
        archives,
        out,
    )
    refuses("ImageNet: path must hold the folder val; got", ImageNet, out, "val", kind=FileNotFoundError)
    refuses("ImageNet: split must be one of ['train', 'val']; got 'test'", ImageNet, out, "test")
    (out / "val").mkdir()
    (out / "val" / "ILSVRC2012_val_00000001.JPEG").write_bytes(jpeg((1, 2, 3)))
    refuses("got 0 folders and 1 images beside them", ImageNet, out, "val")
    refuses("then unpack_imagenet(...)", ImageNet, out, "val", check=False)
    (out / "val" / "n01").mkdir()
    refuses("ImageNet: val/n01 must be a folder of images; got none", ImageNet, out, "val", check=False)
    (out / "val" / "n01" / "a.JPEG").write_bytes(jpeg((1, 2, 3))[:-200])
    refuses("a.JPEG must be a complete image; got one that cannot be read", lambda: ImageNet(out, "val", check=False)[0])
    monkeypatch.setattr(imagenet_files, "CLASSES", 1)
    refuses("ImageNet: val must be 50000 images; got 1; check=False takes a part", ImageNet, out, "val")

    monkeypatch.setattr("PIL.Image.MAX_IMAGE_PIXELS", 100)
    (out / "val" / "n01" / "a.JPEG").write_bytes(jpeg((1, 2, 3)))
    refuses("a.JPEG must be a complete image; got one that cannot be read", lambda: ImageNet(out, "val", check=False)[0])

    train = archives / "ILSVRC2012_img_train.tar"
    train.write_bytes(train.read_bytes()[:6000])
    refuses(
        "unpack_imagenet: ILSVRC2012_img_train.tar must be the complete archive; got one",
        unpack_imagenet,
        archives,
        out,
        "train",
        check=False,
    )
    assert not (out / "train").exists()
    kit = archives / "ILSVRC2012_devkit_t12.tar.gz"
    kit.write_bytes(kit.read_bytes()[:300])
    other = tmp_path_factory.mktemp("other")
    refuses("ILSVRC2012_devkit_t12.tar.gz must be the complete archive", unpack_imagenet, archives, other, check=False)
    kit.unlink()
    refuses("must hold the file ILSVRC2012_devkit_t12.tar.gz", unpack_imagenet, archives, other, check=False, kind=FileNotFoundError)


def test_imagenet_takes_files_that_show(tmp_path):
    for name in ("n01/a.jpg", "n01/._a.jpg", "n01/b.jpg/inside.txt", ".trash/c.jpg", "._d.jpg"):
        (tmp_path / "val" / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "val" / name).write_bytes(jpeg((1, 2, 3)))
    found = ImageNet(tmp_path, "val", check=False)
    assert found.names == ["n01"] and [file.name for file, _ in found.files] == ["a.jpg"]
    refuses("got 1 folders (get the archives", ImageNet, tmp_path, "val")  # and no images beside it


def test_grey_of_16_bits(tmp_path):
    """The upper byte of each pixel in all three channels, however Pillow calls the mode; of other numbers none is known to be white."""
    Image = pytest.importorskip("PIL.Image")
    (tmp_path / "val" / "n01").mkdir(parents=True)
    grey = np.array([[0, 255, 256, 300], [5000, 32768, 40000, 65535]], np.uint16)
    Image.fromarray(grey).save(tmp_path / "val" / "n01" / "a.png")
    Image.fromarray(grey.astype(np.float32)).save(tmp_path / "val" / "n01" / "b.png", "TIFF")
    Image.fromarray(grey.astype(np.int32)).save(tmp_path / "val" / "n01" / "c.png", "TIFF")
    images = ImageNet(tmp_path, "val", check=False)
    assert images[0][0].tolist() == [(grey // 256).tolist()] * 3
    for i, mode in ((1, "F"), (2, "I")):
        refuses(f"{'abc'[i]}.png must be an image of 8 bits a channel, or a grey PNG of 16; got one of mode {mode}", images.__getitem__, i)
    for kind in (np.int32, ">u2", "<u2"):
        image = Image.fromarray(grey.astype(kind))
        image.format = "PNG"
        assert (imagenet_files._pixels(image)[:, :, 1] == grey // 256).all(), image.mode
