"""ImageNet as training sees it: a million files, decoded batch by batch."""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import cached_property
from threading import Barrier
from typing import Any

import torch
from torch import Tensor

from sparsekern.data.augment import (
    IMAGENET_DEVIATION,
    IMAGENET_MEAN,
    centre_crop,
    color_jitter,
    lighting,
    mirror,
    random_crop,
    random_sized_crop,
    resize_short,
    standardise,
)
from sparsekern.data.imagenet import ImageNet
from sparsekern.train.checks import check_count
from sparsekern.train.recipe import fold_seed

AUGMENT = ("crop_mirror", "full_imagenet")


@dataclass(frozen=True)
class ImageFolders:
    """Two splits of images of any size, as :class:`~sparsekern.train.TrainingData` is of images in memory.

    Images come out as ``[B, 3, size, size]``, each channel less ImageNet's mean and over its deviation. To train on: ``"crop_mirror"``, a
    random crop of the image scaled to a shorter side of ``short``, mirrored or not; ``"full_imagenet"``, fb.resnet.torch's: a crop of
    random size and aspect, colours jittered and shifted along their principal components, mirrored or not. To judge by: the centre.

    Raises:
        ValueError: ``train: train and val must hold folders of the same classes; got 'n01' and 2 more in train alone``: a label is the
            place of its class among the folders of its split

    Cost:
        Every image is decoded and scaled when its batch is made, on all cores at once; nothing ahead of time.
    """

    train: ImageNet
    val: ImageNet
    augment: str = "crop_mirror"
    size: int = 224
    short: int = 256
    val_step: int = 50  # images judged at a time

    def __post_init__(self) -> None:
        if self.augment not in AUGMENT:
            raise ValueError(f"train: augment must be one of {AUGMENT} for images of folders; got {self.augment!r}")
        check_count(size=self.size, short=self.short, val_step=self.val_step)
        if self.train.names != self.val.names:
            got = ", ".join(_alone("train", self.train, self.val) + _alone("val", self.val, self.train))
            raise ValueError(f"train: train and val must hold folders of the same classes; got {got}")
        if not 1 <= self.size <= self.short:
            raise ValueError(f"train: size must be in [1, {self.short}], the shorter side; got {self.size}")

    def batch(self, indices: Tensor, seed: int, part: slice = slice(None)) -> tuple[Tensor, Tensor]:
        """``part`` of the training images and labels of a batch; the same for the same indices and seed, whatever the part."""

        def one(i: int) -> tuple[Tensor, int]:
            image, label = self.train[i]
            return self._augmented(image, torch.Generator().manual_seed(fold_seed(seed, i))), label

        return self._together(one, indices[part].tolist())

    def val_batch(self, first: int, last: int) -> tuple[Tensor, Tensor]:
        def one(i: int) -> tuple[Tensor, int]:
            image, label = self.val[i]
            return self._standard(centre_crop(resize_short(image, self.short), self.size)), label

        return self._together(one, range(first, last))

    def facts(self) -> dict[str, Any]:
        """What tells two data sets apart: sizes, and a sum over the first names and labels."""
        told: dict[str, Any] = {"size": [self.size, self.short]}
        for name, images in (("train", self.train), ("val", self.val)):
            some = [(file.parent.name, file.name, label) for file, label in images.files[:10_000]]
            told[name] = [len(images), images.classes, fold_seed(some)]
        return told

    def _augmented(self, image: Tensor, draw: torch.Generator) -> Tensor:
        if self.augment == "crop_mirror":
            return self._standard(mirror(random_crop(resize_short(image, self.short), self.size, generator=draw), generator=draw))
        x = random_sized_crop(image, self.size, generator=draw).float() / 255
        x = mirror(lighting(color_jitter(x, generator=draw), generator=draw), generator=draw)
        return (x - torch.tensor(IMAGENET_MEAN).view(3, 1, 1)) / torch.tensor(IMAGENET_DEVIATION).view(3, 1, 1)

    @staticmethod
    def _standard(image: Tensor) -> Tensor:
        return standardise(image, IMAGENET_MEAN, IMAGENET_DEVIATION)

    def _together(self, one: Callable[[int], tuple[Tensor, int]], indices: Sequence[int]) -> tuple[Tensor, Tensor]:
        found = list(self._threads.map(one, indices))
        if not found:
            return torch.empty(0, 3, self.size, self.size), torch.empty(0, dtype=torch.int64)
        return torch.stack([image for image, _ in found]), torch.tensor([label for _, label in found])

    @cached_property
    def _threads(self) -> ThreadPoolExecutor:
        """One per core, each with a single thread of torch's: otherwise every one would start as many again as there are cores."""
        count = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
        process, ready = torch.get_num_threads(), Barrier(count + 1)

        def alone() -> None:
            torch.get_num_threads()  # a thread's first call takes the number of the process; the next sets its own, and the process's
            torch.set_num_threads(1)
            ready.wait()

        threads = ThreadPoolExecutor(count, initializer=alone)
        for _ in range(count):
            threads.submit(int)
        ready.wait()
        torch.set_num_threads(process)
        return threads


def _alone(split: str, images: ImageNet, others: ImageNet) -> list[str]:
    """The classes that the other split lacks, in a few words."""
    names = sorted(set(images.names) - set(others.names))
    more = f" and {len(names) - 1} more" if len(names) > 1 else ""
    return [f"{names[0]!r}{more} in {split} alone"] if names else []
