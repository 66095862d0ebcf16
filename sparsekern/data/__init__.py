"""Data sets of the papers from their official files, generated or installed ones, and the papers' augmentations."""

from sparsekern.data.cifar import cifar10, cifar10_images, cifar100
from sparsekern.data.digits import digits
from sparsekern.data.imagenet import ImageNet, unpack_imagenet
from sparsekern.data.mnist import mnist
from sparsekern.data.morse import morse
from sparsekern.data.sample_images import sample_patches
from sparsekern.data.samples import Samples
from sparsekern.data.svhn import svhn

__all__ = [
    "ImageNet",
    "Samples",
    "cifar10",
    "cifar10_images",
    "cifar100",
    "digits",
    "mnist",
    "morse",
    "sample_patches",
    "svhn",
    "unpack_imagenet",
]
