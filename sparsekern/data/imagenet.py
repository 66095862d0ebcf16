"""ImageNet (ILSVRC 2012) as a folder of images, and how the official archives become one."""

from __future__ import annotations

import os
import tarfile
from collections.abc import Callable
from pathlib import Path, PurePosixPath
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import Dataset

from sparsekern.data.files import check_md5, check_path, find_file, require

if TYPE_CHECKING:
    from PIL import Image

ARCHIVES = {
    "train": ("ILSVRC2012_img_train.tar", "1d675b47d978889d74fa0da5fadfb00e"),
    "val": ("ILSVRC2012_img_val.tar", "29b22e2961454d5413ddabcf34fc5622"),
    "devkit": ("ILSVRC2012_devkit_t12.tar.gz", "fa75699e90414af021442c21a62c3abf"),
}
IMAGES = {"train": 1_281_167, "val": 50_000}
CLASSES = 1000
SOURCE = "get the archives of ILSVRC 2012, tasks 1 and 2, from https://image-net.org/download-images, then unpack_imagenet(...)"
_ENDINGS = (".jpeg", ".jpg", ".png")
MOST_BYTES = 1 << 28  # of an image
_DEVKIT = "ILSVRC2012_devkit_t12/data"


class ImageNet(Dataset):
    """Images of ``path/<split>/<class>/*.JPEG``, decoded when asked for.

    Args:
        path: the folder that holds ``train`` and ``val``.
        split: ``"train"`` or ``"val"``.
        transform: called with each image, ``[3, H, W]`` uint8; see :mod:`sparsekern.data.augment`.
        check: the split must have 1000 classes and all of its images; off, for a part of it, at least one class with one image.

    Raises:
        FileNotFoundError: ``ImageNet: path must hold the folder val; got 'x', which does not (get ...)``
        ValueError: ``ImageNet: val must be 1000 folders, one per class; got 0 folders and 50000 images beside them (get ...)``; of an
            image, when it is asked for: ``ImageNet: x.JPEG must be a complete image; got one that cannot be read: ... (get ...)``;
            ``ImageNet: x.png must be an image of 8 bits a channel, or a grey PNG of 16; got one of mode F``

    Example:
        ``ImageNet("/data/imagenet", "val", lambda image: centre_crop(resize_short(image, 256), 224))[0]``
    """

    def __init__(
        self, path: str | Path, split: str = "train", transform: Callable[[Tensor], Tensor] | None = None, *, check: bool = True
    ) -> None:
        check_path("ImageNet", path=path)
        if not isinstance(split, str) or split not in IMAGES:
            raise ValueError(f"ImageNet: split must be one of {sorted(IMAGES)}; got {split!r}")
        folder = Path(path) / split
        if not folder.is_dir():
            got = "which does not" if Path(path).is_dir() else "which is no folder"
            raise FileNotFoundError(f"ImageNet: path must hold the folder {split}; got {str(path)!r}, {got} ({SOURCE})")
        with os.scandir(folder) as entries:  # WordNet ids, in order: a class's label is its place
            self.names = sorted(entry.name for entry in entries if entry.is_dir() and not entry.name.startswith("."))
        beside = len(_images(folder))
        whole = len(self.names) == CLASSES if check else len(self.names) > 0
        got = f"{len(self.names)} folders" + (f" and {beside} images beside them" if beside else "")
        require(whole, "ImageNet", split, f"{CLASSES} folders, one per class", got, SOURCE)
        self.files: list[tuple[Path, int]] = []
        for label, name in enumerate(self.names):
            images = _images(folder / name)
            require(bool(images), "ImageNet", f"{split}/{name}", "a folder of images", "none", SOURCE)
            self.files += [(file, label) for file in images]
        whole = not check or len(self.files) == IMAGES[split]
        require(whole, "ImageNet", split, f"{IMAGES[split]} images", f"{len(self.files)}; check=False takes a part", SOURCE)
        self.classes, self.transform = len(self.names), transform

    def __len__(self) -> int:
        return len(self.files)

    def __getitem__(self, i: int) -> tuple[Tensor, int]:
        """Image ``[3, H, W]`` uint8, transformed, and label."""
        file, label = self.files[i]
        image = _decode(file)
        return (image if self.transform is None else self.transform(image)), label


def unpack_imagenet(archives: str | Path, path: str | Path, split: str = "val", *, check: bool = True) -> Path:
    """Unpack an official archive into ``path/<split>/<class>/*.JPEG``; returns that folder.

    Args:
        archives: the folder of ``ILSVRC2012_img_train.tar`` or ``ILSVRC2012_img_val.tar``; for ``"val"`` also of
            ``ILSVRC2012_devkit_t12.tar.gz``, which says which class an image is of (read with scipy).
        path: where the folder ``split`` is made; it must not exist yet.
        split: ``"train"`` or ``"val"``.
        check: compare the archives with the official checksums (minutes for the 138 GB of ``"train"``).

    Raises:
        FileExistsError: ``unpack_imagenet: path must not hold the folder val yet; it does: 'x/val'``
    """
    op = "unpack_imagenet"
    check_path(op, archives=archives, path=path)
    if not isinstance(split, str) or split not in IMAGES:
        raise ValueError(f"{op}: split must be one of {sorted(IMAGES)}; got {split!r}")
    files = {}
    for name in (split, "devkit") if split == "val" else (split,):
        files[name] = find_file(op, archives, [ARCHIVES[name][0]], SOURCE)
        if check:
            check_md5(op, files[name], ARCHIVES[name][1], SOURCE)
    out, work = Path(path) / split, Path(path) / f"{split}.unpacking"  # so that a folder of the final name is always whole
    if out.exists():
        raise FileExistsError(f"{op}: path must not hold the folder {split} yet; it does: {str(out)!r}")
    classes = _val_classes(op, files["devkit"]) if split == "val" else []
    try:
        with tarfile.open(files[split]) as outer:
            if split == "train":
                for member in (m for m in outer if m.isfile()):
                    with tarfile.open(fileobj=outer.extractfile(member)) as inner:
                        for image in inner:
                            _write(inner, image, work / PurePosixPath(member.name).stem)
            else:
                images = sorted((m for m in outer.getmembers() if m.isfile()), key=lambda m: m.name)
                require(len(images) == len(classes), op, files[split].name, f"{len(classes)} images", len(images), SOURCE)
                for image, wnid in zip(images, classes):
                    _write(outer, image, work / wnid)
    except ValueError:  # ours
        raise
    except Exception as error:  # a damaged archive fails in many ways
        name = files[split].name
        raise ValueError(f"{op}: {name} must be the complete archive; got one that cannot be read: {error} ({SOURCE})") from error
    work.rename(out)
    return out


def _write(archive: tarfile.TarFile, member: tarfile.TarInfo, folder: Path) -> None:
    """Only plain files, and only under their last name: nothing an archive says can lead out of the folder."""
    name = PurePosixPath(member.name).name
    if member.isfile() and name.lower().endswith(_ENDINGS):
        if member.size > MOST_BYTES:  # a small archive can promise any number of zeros
            raise tarfile.ReadError(f"{name} of {member.size} bytes")
        folder.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(_content(archive, member))


def _content(archive: tarfile.TarFile, member: tarfile.TarInfo | str) -> bytes:
    file = archive.extractfile(member)
    if file is None:
        raise tarfile.ReadError(f"{member} is no file")
    return file.read()


def _val_classes(op: str, devkit: Path) -> list[str]:
    """WordNet id of each validation image, from the table of classes and the list of ground truth."""
    try:
        from scipy.io import loadmat
    except ModuleNotFoundError as missing:
        raise ModuleNotFoundError(f"{op}: scipy must be installed: pip install sparsekern[data]", name=missing.name) from missing
    try:
        with tarfile.open(devkit) as archive:
            synsets = loadmat(archive.extractfile(f"{_DEVKIT}/meta.mat"), variable_names=["synsets"], squeeze_me=True)["synsets"]
            truth = _content(archive, f"{_DEVKIT}/ILSVRC2012_validation_ground_truth.txt").split()
        wnid = {int(s["ILSVRC2012_ID"]): str(s["WNID"]) for s in np.atleast_1d(synsets)}
        found = [wnid[int(i)] for i in truth]
    except Exception as error:  # a damaged archive or table fails in many ways
        raise ValueError(f"{op}: {devkit.name} must be the complete archive; got one that cannot be read: {error} ({SOURCE})") from error
    plain = all(name.isalnum() for name in found)
    require(plain, op, devkit.name, "of WordNet ids of letters and digits", "others", SOURCE)
    return found


def _images(folder: Path) -> list[Path]:
    """Files of images in order, without those that a system hides: of ``._n01.JPEG`` no decoder knows what to make."""
    with os.scandir(folder) as entries:  # tells files from folders without a look at each
        names = [e.name for e in entries if not e.name.startswith(".") and e.name.lower().endswith(_ENDINGS) and e.is_file()]
    return [folder / name for name in sorted(names)]


def _decode(file: Path) -> Tensor:
    try:
        from PIL import Image
    except ModuleNotFoundError as missing:
        raise ModuleNotFoundError("ImageNet: pillow must be installed: pip install sparsekern[data]", name=missing.name) from missing
    try:
        with Image.open(file) as image:
            mode, pixels = image.mode, _pixels(image)
    except (OSError, SyntaxError, ValueError, Image.DecompressionBombError) as error:
        raise ValueError(f"ImageNet: {file} must be a complete image; got one that cannot be read: {error} ({SOURCE})") from error
    if pixels is None:
        raise ValueError(f"ImageNet: {file} must be an image of 8 bits a channel, or a grey PNG of 16; got one of mode {mode}")
    return torch.from_numpy(pixels).permute(2, 0, 1).contiguous()


def _pixels(image: Image.Image) -> np.ndarray | None:
    """``[H, W, 3]`` uint8; None where nothing says which number is white."""
    grey16 = image.mode.startswith("I;16") or (image.mode == "I" and image.format == "PNG")  # the latter: an older Pillow's
    if grey16:  # convert() would make all above 255 white
        return np.repeat((np.array(image) >> 8).astype(np.uint8)[:, :, None], 3, axis=2)
    return None if image.mode in ("I", "F") else np.array(image.convert("RGB"))  # some are grey, some CMYK
