"""AlexNet for ImageNet with 1, 2 or 4 filter groups.

Source: Krizhevsky et al., "ImageNet classification with deep convolutional neural networks" (2012), in the single-file form
published with Caffe (bvlc_alexnet: normalisation before pooling); Deep Roots (Ioannou et al., arXiv 1605.06489), section 2 and
Figure 2, compares its groups.

    x [N, 3, 227, 227]
    conv1 11x11/4   3-> 96: 55 | LRN | max-pool 3x3/2: 27
    conv2  5x5     96->256: 27 | LRN | max-pool 3x3/2: 13      in g groups
    conv3  3x3    256->384: 13
    conv4  3x3    384->384: 13                                 in g groups
    conv5  3x3    384->256: 13 | max-pool 3x3/2: 6             in g groups
    fc6 9216->4096 | fc7 4096->4096 | fc8 4096->1000  ->  [N, 1000]; dropout 0.5 after fc6 and fc7

Every layer has a bias, every one but fc8 a ReLU. The original has two groups; 1 and 4 are variants of Figure 2.
Expected counts (multiply-add = 1, each bias once per layer in FLOPS):

    name              MACs           FLOPS          params      convolution weights
    alexnet           1,135,256,096  1,135,266,664  62,378,344  3,745,824
    alexnet_groups_2    724,406,816    724,417,384  60,965,224  2,332,704
    alexnet_groups_4    518,982,176    518,992,744  60,258,664  1,626,144

The paper's "57% fewer connection weights" is the *growth* of the multiply-adds without groups, 1135.3 / 724.4 = 1.567; two
groups save 36 % of the multiply-adds and 38 % of the convolution weights.
"""

from __future__ import annotations

from functools import partial
from typing import Any, ClassVar

import torch
from torch import nn

from sparsekern.arguments import is_whole
from sparsekern.models.options import check_groups, check_image, check_options
from sparsekern.models.parts import ConvFactory, Groups, conv_unit, default_conv, he_init_, linear_init_
from sparsekern.models.registry import register_model

INPUT_SHAPE = (3, 227, 227)


class AlexNet(nn.Sequential):
    """AlexNet, ``[N, 3, H, W]`` to ``[N, classes]`` class scores (no softmax).

    Args:
        groups: groups of ``conv2``, ``conv4`` and ``conv5``: one number for all, or one entry for each, a number or the
            (in, out) channels of each group.
        classes: outputs of ``fc8``.
        input_shape: of one image; decides the inputs of ``fc6``. At least 67x67.
        dropout: probability after ``fc6`` and ``fc7``.
        conv: the convolution, called as ``torch.nn.Conv2d`` is; default :class:`sparsekern.nn.GroupedConv2d`.
        generator: draws the initial weights; default torch's own.

    Raises:
        ValueError: ``AlexNet: input_shape must be (3, H, W) with H and W at least 67; got (3, 32, 32)``

    Example:
        >>> model = AlexNet(2, input_shape=(3, 67, 67), conv=nn.Conv2d)
        >>> model.fc6.in_features, model(torch.randn(2, 3, 67, 67)).shape
        (256, torch.Size([2, 1000]))
    """

    # torchvision's names; its convolutions have other widths (64, 192, 384, 256, 256), its classifier is the same
    checkpoint_names: ClassVar = {
        "features.0": "conv1", "features.3": "conv2", "features.6": "conv3", "features.8": "conv4", "features.10": "conv5",
        "classifier.1": "fc6", "classifier.4": "fc7", "classifier.6": "fc8",
    }  # fmt: skip

    def __init__(
        self,
        groups: int | tuple[Groups, Groups, Groups] = 1,
        *,
        classes: int = 1000,
        input_shape: tuple[int, int, int] = INPUT_SHAPE,
        dropout: float = 0.5,
        conv: ConvFactory | None = None,
        generator: torch.Generator | None = None,
    ):
        super().__init__()
        check_options("AlexNet", classes=classes, conv=conv, dropouts={"dropout": dropout})
        check_image("AlexNet", input_shape, 67)
        unit = partial(conv_unit, default_conv() if conv is None else conv)
        each: Any = (groups,) * 3 if is_whole(groups) else groups
        check_groups("AlexNet", each, 3, "a number, or one for each of conv2, conv4 and conv5")
        g2, g4, g5 = each
        normalise = partial(nn.LocalResponseNorm, 5, alpha=1e-4, beta=0.75)
        pool = partial(nn.MaxPool2d, 3, stride=2, ceil_mode=True)
        layers = {
            **unit("1", 3, 96, 11, stride=4, padding=0), "norm1": normalise(), "pool1": pool(),
            **unit("2", 96, 256, 5, groups=g2), "norm2": normalise(), "pool2": pool(),
            **unit("3", 256, 384, 3),
            **unit("4", 384, 384, 3, groups=g4),
            **unit("5", 384, 256, 3, groups=g5), "pool5": pool(),
            "flatten": nn.Flatten(),
            "fc6": nn.Linear(256 * _pooled(input_shape[1]) * _pooled(input_shape[2]), 4096), "relu6": nn.ReLU(inplace=True),
            "drop6": nn.Dropout(dropout),
            "fc7": nn.Linear(4096, 4096), "relu7": nn.ReLU(inplace=True), "drop7": nn.Dropout(dropout),
            "fc8": nn.Linear(4096, classes),
        }  # fmt: skip
        for name, layer in layers.items():
            self.add_module(name, layer)
        he_init_(self, generator)
        for name, layer in layers.items():
            if isinstance(layer, nn.Linear):
                linear_init_(layer, generator, relu=name != "fc8")


def _pooled(size: int) -> int:
    """Height or width of ``pool5``'s output."""
    size = (size - 11) // 4 + 1
    for _ in range(3):
        size = -(-(size - 3) // 2) + 1  # 3x3/2, rounded up as Caffe's pooling
    return size


_register = partial(register_model, paper="Deep Roots", input_shape=INPUT_SHAPE, reduced_shape=(3, 67, 67))

_register(AlexNet, name="alexnet")
for _groups in (2, 4):
    _register(partial(AlexNet, _groups), name=f"alexnet_groups_{_groups}", dense="alexnet")
