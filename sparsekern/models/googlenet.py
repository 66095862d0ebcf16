"""GoogLeNet for ImageNet, dense and with its 3x3 and 5x5 convolutions in filter groups.

Source: Szegedy et al., arXiv 1409.4842, Table 1; Deep Roots (Ioannou et al., arXiv 1605.06489), section 4.4, Tables 6 and 7.

    x [N, 3, 224, 224]
    conv1 7x7/2 3->64: 112 | max-pool 3x3/2: 56 | conv2 1x1 64->64 | conv3 3x3 64->192 | max-pool: 28
    inception3a 192->256, 3b ->480 | max-pool 3x3/2, padding 1: 15
    inception4a ->512, 4b ->512, 4c ->512, 4d ->528, 4e ->832 | max-pool 3x3/2, padding 1: 8
    inception5a ->832, 5b ->1024 | mean over 7x7, stride 1: 2x2 | fc 4096->1000  ->  [N, 1000]
    aux1 after 4a, aux2 after 4d: mean over 5x5/3: 5x5 | conv 1x1 ->128 | fc1 3200->1024 | fc2 1024->1000

Every pooling rounds up; every layer has a bias. Maps of 15 and 8 (where other GoogLeNets have 14 and 7) and the 4096 inputs of
``fc`` are what the paper's counts say, both auxiliary classifiers included. Submodules are named as in torchvision: its
``conv3`` is the 3x3 of the papers' "conv2", ``branch2`` has the 3x3 and ``branch3`` the 5x5. The paper's nets have no local
response normalisation; they train with batch-norm without scale and bias (``batch_norm=True``), which its counts leave out.

Expected counts at 224x224 with auxiliary classifiers (multiply-add = 1, each bias once per layer):

    name               groups of conv3, inception 3, 4, 5   FLOPS          params
    googlenet          1, 1, 1, 1                           1,716,324,392  18,809,576
    googlenet_root_2   2, 1, 1, 1                           1,542,916,136  18,754,280
    googlenet_root_4   4, 2, 1, 1                           1,291,032,616  18,515,944
    googlenet_root_8   8, 4, 2, 1                             964,383,656  17,504,744
    googlenet_root_16  16, 8, 4, 2                            756,887,912  16,308,968
"""

from __future__ import annotations

from collections import namedtuple
from collections.abc import Sequence
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from sparsekern.arguments import is_whole
from sparsekern.models.group_plan import group_plan
from sparsekern.models.options import check, check_image, check_options
from sparsekern.models.parts import ConvFactory, default_conv, he_init_, linear_init_, make_conv
from sparsekern.models.registry import register_model

GoogLeNetOutputs = namedtuple("GoogLeNetOutputs", ["logits", "aux2", "aux1"])  # torchvision's names and order

AUX = ("training", "always", None)
INPUT_SHAPE = (3, 224, 224)
INCEPTIONS = {  # 1x1, 3x3 after its 1x1, 5x5 after its 1x1, 1x1 after the pooling
    "3a": (64, 96, 128, 16, 32, 32),
    "3b": (128, 128, 192, 32, 96, 64),
    "4a": (192, 96, 208, 16, 48, 64),
    "4b": (160, 112, 224, 24, 64, 64),
    "4c": (128, 128, 256, 24, 64, 64),
    "4d": (112, 144, 288, 32, 64, 64),
    "4e": (256, 160, 320, 32, 128, 128),
    "5a": (256, 160, 320, 32, 128, 128),
    "5b": (384, 192, 384, 48, 128, 128),
}


class ConvUnit(nn.Sequential):
    """``conv``, then ``bn`` (no scale, no bias) if asked for, then ReLU, fused where the convolution offers it."""

    def __init__(self, conv: ConvFactory, in_channels: int, out_channels: int, kernel_size: int, *, batch_norm: bool, **options: Any):
        super().__init__()
        self.conv, fused = make_conv(conv, in_channels, out_channels, kernel_size, relu=not batch_norm, **options)
        if batch_norm:
            self.bn = nn.BatchNorm2d(out_channels, eps=GoogLeNet.bn_eps, affine=False)
        if not fused:
            self.relu = nn.ReLU(inplace=True)


class Inception(nn.Module):
    """Four branches over one input, joined by channel: ``[N, C, H, W] -> [N, w[0] + w[2] + w[4] + w[5], H, W]``."""

    def __init__(self, unit: partial, in_channels: int, widths: tuple[int, ...], groups: tuple[int, int]):
        super().__init__()
        w1, w3_in, w3, w5_in, w5, w_pool = widths
        self.branch1 = unit(in_channels, w1, 1)
        self.branch2 = nn.Sequential(unit(in_channels, w3_in, 1), unit(w3_in, w3, 3, groups=groups[0]))
        self.branch3 = nn.Sequential(unit(in_channels, w5_in, 1), unit(w5_in, w5, 5, groups=groups[1]))
        self.branch4 = nn.Sequential(nn.MaxPool2d(3, stride=1, padding=1), unit(in_channels, w_pool, 1))
        self.out_channels = w1 + w3 + w5 + w_pool

    def forward(self, x: Tensor) -> Tensor:
        return torch.cat([self.branch1(x), self.branch2(x), self.branch3(x), self.branch4(x)], dim=1)


class AuxiliaryHead(nn.Module):
    """A classifier on an inner map, ``[N, C, H, W] -> [N, classes]``, that brings gradient to the early layers."""

    def __init__(self, unit: partial, in_channels: int, map_size: tuple[int, int], classes: int, dropout: float):
        super().__init__()
        height, width = map_size
        window = (min(5, height), min(5, width))
        # without padding count_include_pad changes no value, but inductor's gradients of overhanging windows are wrong with it
        self.pool = nn.AvgPool2d(window, stride=3, ceil_mode=True, count_include_pad=False)
        self.conv = unit(in_channels, 128, 1)
        height, width = _size_after(self.pool, map_size)
        self.fc1 = nn.Linear(128 * height * width, 1024)
        self.dropout = nn.Dropout(dropout)
        self.fc2 = nn.Linear(1024, classes)

    def forward(self, x: Tensor) -> Tensor:
        x = self.conv(self.pool(x)).flatten(1)
        return self.fc2(self.dropout(torch.relu(self.fc1(x))))


class GoogLeNet(nn.Module):
    """GoogLeNet, ``[N, 3, H, W]`` to ``[N, classes]`` class scores, in training with those of the auxiliary classifiers.

    Args:
        groups: of ``conv3`` and of the inceptions 3, 4 and 5; for these a number, or a pair for the 3x3 and the 5x5, which the
            paper leaves to future work.
        aux: when the auxiliary classifiers run and the result is ``GoogLeNetOutputs(logits, aux2, aux1)``. ``"training"``, the
            default as in torchvision: inference pays nothing for them. ``"always"``: in eval mode too, which is how to count
            them as the paper does. Both have the same parameters, and the attribute ``aux`` may be set later. None builds no
            such classifiers.
        classes: outputs of each classifier.
        input_shape: of one image; decides the inputs of ``fc`` and of the auxiliary ``fc1``. At least 32x32.
        dropout, aux_dropout: probability before ``fc`` and before the auxiliary ``fc2``.
        conv: the convolution, called as ``torch.nn.Conv2d`` is; default :class:`sparsekern.nn.GroupedConv2d`.
        batch_norm: put a batch-norm without scale and bias between each convolution and its ReLU, as the paper does to train.
        generator: draws the initial weights; default torch's own.

    Raises:
        ValueError: ``GoogLeNet: aux must be one of 'training', 'always', None; got True``;
            ``GoogLeNet: groups must be those of conv3 and, each a number or a pair for 3x3 and 5x5, of inception 3, 4 and 5; ...``

    Example:
        >>> model = GoogLeNet((8, (4, 2), 2, 1), input_shape=(3, 64, 64), conv=nn.Conv2d).eval()
        >>> model.inception3a.branch2[1].conv.groups, model.inception3a.branch3[1].conv.groups
        (4, 2)
        >>> model(torch.randn(1, 3, 64, 64)).shape
        torch.Size([1, 1000])
        >>> model.aux = "always"
        >>> model(torch.randn(1, 3, 64, 64)).aux1.shape
        torch.Size([1, 1000])
    """

    inception3a: Inception
    inception3b: Inception
    inception4a: Inception
    inception4b: Inception
    inception4c: Inception
    inception4d: Inception
    inception4e: Inception
    inception5a: Inception
    inception5b: Inception
    bn_eps = 1e-3  # of the batch-norms here and of torchvision's trained weights

    def __init__(
        self,
        groups: Sequence[int | tuple[int, int]] = (1, 1, 1, 1),
        *,
        aux: str | None = "training",
        classes: int = 1000,
        input_shape: tuple[int, int, int] = INPUT_SHAPE,
        dropout: float = 0.4,
        aux_dropout: float = 0.7,
        conv: ConvFactory | None = None,
        batch_norm: bool = False,
        generator: torch.Generator | None = None,
    ):
        super().__init__()
        dropouts = {"dropout": dropout, "aux_dropout": aux_dropout}
        check_options("GoogLeNet", classes=classes, conv=conv, dropouts=dropouts, batch_norm=batch_norm)
        known = aux is None or (isinstance(aux, str) and aux in AUX)
        check("GoogLeNet", known, "aux", f"one of {', '.join(map(repr, AUX))}", aux)
        check_image("GoogLeNet", input_shape, 32)
        stem_groups, *pairs = _group_pairs(groups)
        self.aux = aux
        unit = partial(ConvUnit, default_conv() if conv is None else conv, batch_norm=batch_norm)
        self.conv1 = unit(3, 64, 7, stride=2)
        self.maxpool1 = nn.MaxPool2d(3, stride=2, ceil_mode=True)
        self.conv2 = unit(64, 64, 1)
        self.conv3 = unit(64, 192, 3, groups=stem_groups)
        self.maxpool2 = nn.MaxPool2d(3, stride=2, ceil_mode=True)
        self.maxpool3 = nn.MaxPool2d(3, stride=2, padding=1, ceil_mode=True)
        self.maxpool4 = nn.MaxPool2d(3, stride=2, padding=1, ceil_mode=True)
        size = _size_after(self.maxpool1, ((input_shape[1] + 1) // 2, (input_shape[2] + 1) // 2))
        inner_size = _size_after(self.maxpool3, _size_after(self.maxpool2, size))
        last_size = _size_after(self.maxpool4, inner_size)

        channels = 192
        seen: dict[str, int] = {}
        for name, widths in INCEPTIONS.items():
            inception = Inception(unit, channels, widths, pairs[int(name[0]) - 3])
            self.add_module(f"inception{name}", inception)
            channels = seen[name] = inception.out_channels
        self.aux1: AuxiliaryHead | None = None
        self.aux2: AuxiliaryHead | None = None
        if aux is not None:
            self.aux1 = AuxiliaryHead(unit, seen["4a"], inner_size, classes, aux_dropout)
            self.aux2 = AuxiliaryHead(unit, seen["4d"], inner_size, classes, aux_dropout)
        self.avgpool = nn.AvgPool2d((min(7, last_size[0]), min(7, last_size[1])), stride=1)
        height, width = _size_after(self.avgpool, last_size)
        self.dropout = nn.Dropout(dropout)
        self.fc = nn.Linear(channels * height * width, classes)
        he_init_(self, generator)
        for name, layer in self.named_modules():
            if isinstance(layer, nn.Linear):
                linear_init_(layer, generator, relu=name.endswith("fc1"))

    def forward(self, x: Tensor) -> Tensor | GoogLeNetOutputs:
        with_aux = self.training or self.aux == "always"
        x = self.maxpool1(self.conv1(x))
        x = self.maxpool2(self.conv3(self.conv2(x)))
        x = self.maxpool3(self.inception3b(self.inception3a(x)))
        x = self.inception4a(x)
        aux1 = self.aux1(x) if with_aux and self.aux1 is not None else None
        x = self.inception4d(self.inception4c(self.inception4b(x)))
        aux2 = self.aux2(x) if with_aux and self.aux2 is not None else None
        x = self.maxpool4(self.inception4e(x))
        x = self.inception5b(self.inception5a(x))
        x = self.fc(self.dropout(self.avgpool(x).flatten(1)))
        return x if aux1 is None or aux2 is None else GoogLeNetOutputs(x, aux2, aux1)


def _group_pairs(groups: Sequence[int | tuple[int, int]]) -> list:
    """``(g, g3, (g4_3x3, g4_5x5), g5)`` as ``[g, (g3, g3), (g4_3x3, g4_5x5), (g5, g5)]``."""
    listed = isinstance(groups, tuple | list) and len(groups) == 4
    pairs = [(entry, entry) if is_whole(entry) else entry for entry in groups[1:]] if listed else []
    good = listed and is_whole(groups[0]) and all(isinstance(p, tuple | list) and len(p) == 2 and all(map(is_whole, p)) for p in pairs)
    rule = "those of conv3 and, each a number or a pair for 3x3 and 5x5, of inception 3, 4 and 5"
    check("GoogLeNet", good, "groups", rule, groups)
    return [groups[0], *pairs]


def _size_after(pool: nn.Module, size: tuple[int, int]) -> tuple[int, int]:
    """Height and width of a map after ``pool``, by torch's own rule for windows that reach over the edge."""
    height, width = pool(torch.empty(1, 1, *size, device="meta")).shape[2:]
    return height, width


_register = partial(register_model, paper="Deep Roots", input_shape=INPUT_SHAPE, reduced_shape=(3, 64, 64))

_register(GoogLeNet, name="googlenet")
for _degree in (2, 4, 8, 16):
    _register(partial(GoogLeNet, group_plan("root", _degree, levels=4)), name=f"googlenet_root_{_degree}", dense="googlenet")
