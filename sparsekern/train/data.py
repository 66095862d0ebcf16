"""Data sets as training sees them: a split to train on, one to judge by, and how a batch is made."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from sparsekern import data as sets
from sparsekern.data.augment import mirror, pad_crop
from sparsekern.data.files import check_path
from sparsekern.data.samples import Samples
from sparsekern.train.checks import check_count
from sparsekern.train.folders import ImageFolders
from sparsekern.train.recipe import Recipe, fold_seed

AUGMENT = ("none", "pad_crop_mirror")


@dataclass(frozen=True)
class TrainingData:
    """Two splits and what is done to their images; images of files stay bytes until a batch is made."""

    train: Samples
    val: Samples
    augment: str = "none"
    mean: Tensor | None = None  # [C, H, W] of the training images, in 0..1
    val_step: int = 500  # images judged at a time

    def __post_init__(self) -> None:
        if self.augment not in AUGMENT:
            raise ValueError(f"train: augment must be one of {AUGMENT} for images in memory; got {self.augment!r}")
        check_count(val_step=self.val_step)

    def batch(self, indices: Tensor, seed: int, part: slice = slice(None)) -> tuple[Tensor, Tensor]:
        """``part`` of the training images ``[B, ...]`` float32 and labels ``[B]`` of a batch; the same for the same indices and seed."""
        x, y = self.train[indices]
        x = self._prepared(x)
        if self.augment == "pad_crop_mirror":
            draw = torch.Generator().manual_seed(seed)
            x = mirror(pad_crop(x, 4, generator=draw), generator=draw)
        return x[part], y[part]

    def val_batch(self, first: int, last: int) -> tuple[Tensor, Tensor]:
        x, y = self.val[slice(first, last)]
        return self._prepared(x), y

    def _prepared(self, x: Tensor) -> Tensor:
        x = x.float() / 255 if x.dtype == torch.uint8 else x
        return x if self.mean is None else x - self.mean

    def facts(self) -> dict[str, Any]:
        """What tells two data sets apart: sizes, and a sum over labels and some images."""
        return {name: [list(s.x.shape), fold_seed(s.y.tolist()[:10_000], s.x[:16].tolist())] for name, s in self._splits()}

    def _splits(self) -> list[tuple[str, Samples]]:
        return [("train", self.train), ("val", self.val)]


def _morse(path: Path | None, check: bool, per_class: int = 5000, val_per_class: int = 1000, **options: Any) -> tuple[Samples, Samples]:
    _no_folder("morse", path)
    return sets.morse("train", per_class=per_class, **options), sets.morse("val", per_class=val_per_class, **options)


def _digits(path: Path | None, check: bool, seed: int = 0) -> tuple[Samples, Samples]:
    _no_folder("digits", path)
    return sets.digits("train", seed=seed), sets.digits("test", seed=seed)


def _no_folder(name: str, path: Path | None) -> None:
    if path is not None:
        raise ValueError(f"train: data must be left out for {name}, which is read from no folder; got {str(path)!r}")


def _files(read: Callable[..., Samples], path: Path | None, check: bool, split: str = "train") -> tuple[Samples, Samples]:
    if path is None:
        raise ValueError(f"train: data must be given for {read.__name__}: the folder of its official files, --data FOLDER; got none")
    return read(path, split, check=check), read(path, "test", check=check)


def _imagenet(path: Path | None, check: bool, **options: Any) -> tuple[sets.ImageNet, sets.ImageNet]:
    if path is None:
        raise ValueError("train: data must be given for imagenet: the folder that holds train and val, --data FOLDER; got none")
    return sets.ImageNet(path, "train", check=check), sets.ImageNet(path, "val", check=check)


#: Name of a data set to ``(path, check, **data_options) -> (train, val)``.
DATA: dict[str, Callable[..., tuple[Any, Any]]] = {
    "morse": _morse,
    "digits": _digits,
    "mnist": partial(_files, sets.mnist),
    "cifar10": partial(_files, sets.cifar10),
    "cifar100": partial(_files, sets.cifar100),
    "svhn": partial(_files, sets.svhn),
    "imagenet": _imagenet,
}
#: What each takes as ``data_options``.
OPTIONS: dict[str, set[str]] = {
    "morse": {"val_per_class", *inspect.signature(sets.morse).parameters} - {"split"},
    "digits": {"seed"},
    **{name: {"split"} for name in ("mnist", "cifar10", "cifar100", "svhn")},
    "imagenet": {"size", "short", "val_step"},
}


def load_data(recipe: Recipe, path: str | Path | None = None, *, check: bool = True) -> TrainingData | ImageFolders:
    """Read or draw the data set of a recipe.

    Args:
        recipe: names the set, its options, the augmentation and whether the mean image is subtracted.
        path: folder of the official files; not needed for Morse code and digits.
        check: compare files with their official checksums.

    Raises:
        ValueError: ``train: data must be given for cifar10: the folder of its official files, --data FOLDER; got none``;
            ``train: data must be left out for digits, which is read from no folder; got 'x'``;
            ``train: data must be one of morse, digits, mnist, ...; got 'foo'``;
            ``train: data_options must be among seed for digits; got 'shape'``
        FileNotFoundError: as the data set says, with where to get the file.

    Example:
        >>> from sparsekern.train import get_recipe
        >>> data = load_data(get_recipe("digits/density"))
        >>> data.batch(torch.arange(4), seed=0)[0].shape
        torch.Size([4, 1, 8, 8])
    """
    if path is not None:
        check_path("train", path=path)
    _check_options(recipe)
    train, val = DATA[recipe.data](None if path is None else Path(path), check, **recipe.data_options)
    if isinstance(train, sets.ImageNet):
        return ImageFolders(train, val, recipe.augment, **recipe.data_options)
    mean = None
    if recipe.centre:
        total = sum(part.double().sum(0) for part in train.x.split(4096))
        mean = (total / (len(train) * (255 if train.x.dtype == torch.uint8 else 1))).float()
    return TrainingData(train, val, recipe.augment, mean)


def _check_options(recipe: Recipe) -> None:
    if not isinstance(recipe.data, str) or recipe.data not in DATA:
        raise ValueError(f"train: data must be one of {', '.join(DATA)}; got {recipe.data!r}")
    known = OPTIONS.get(recipe.data, set(recipe.data_options))  # a set that was added answers for itself
    for name in recipe.data_options:
        if name not in known:
            raise ValueError(f"train: data_options must be among {', '.join(sorted(known))} for {recipe.data}; got {name!r}")
