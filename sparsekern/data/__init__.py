"""Images to run and time models on, without a download where possible."""

from .cifar import cifar10_images
from .sample_images import sample_patches

__all__ = ["cifar10_images", "sample_patches"]
