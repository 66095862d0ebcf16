"""Images to run and time models on, without a download where possible."""

from sparsekern.data.cifar import cifar10_images
from sparsekern.data.sample_images import sample_patches

__all__ = ["cifar10_images", "sample_patches"]
