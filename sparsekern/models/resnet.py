"""ResNet-50 and ResNet-200 for ImageNet, dense and with their 3x3 convolutions in filter groups.

Source: Deep Roots (Ioannou et al., arXiv 1605.06489), section 4.3, Tables 3, 4 and 5.

    x [N, 3, 224, 224]
    conv1 7x7/2 3->64: 112 | max-pool 3x3/2: 56
    layer1..layer4: bottlenecks 1x1 C->w, 3x3 w->w, 1x1 w->4w with w = 64, 128, 256, 512 on maps of 56, 28, 14, 7
    mean over 7x7 | fc 2048->1000  ->  [N, 1000]

    resnet50   post-activation, 3,4,6,3 blocks (He et al., arXiv 1512.03385, as published for Caffe): conv1 has a bias, the
               others none; the first 1x1 of a stage has the stride. ``stride_in="3x3"`` is torchvision's variant.
    resnet200  pre-activation, 3,24,36,3 blocks (He et al., arXiv 1603.05027, as in fb.resnet.torch): no biases; the 3x3 has the
               stride; the first block of each later stage normalises its input once, for residual and projection alike.

Only the 3x3 convolutions are grouped, per stage by ``group_plan("root", g, levels=4)``: root-64 is 64, 32, 16, 8 (depthwise in
``layer1``). Submodules are named as in torchvision. The max-pooling has padding 1, as in fb.resnet.torch and torchvision; the
published Caffe file pools without it and rounds up, which gives the same sizes from windows moved by one pixel.

Expected counts at 224x224 (multiply-add = 1, each bias once per layer, no batch-norm). The paper's Table 5 (ResNet-200) prints
other numbers, because two slips are in its counting; those are true:

    name              FLOPS          params     | name               FLOPS           params
    resnet50          3,857,974,312  25,503,976 | resnet200          15,007,482,856  64,497,832
    resnet50_root_2   3,684,566,056  25,448,680 | resnet200_root_2   14,834,074,600  64,442,536
    resnet50_root_4   3,366,650,920  25,126,120 | resnet200_root_4   13,360,104,424  62,645,416
    resnet50_root_8   2,860,876,840  23,195,368 | resnet200_root_8   10,542,220,264  51,130,024
    resnet50_root_16  2,434,581,544  18,691,048 | resnet200_root_16   8,959,869,928  41,833,384
    resnet50_root_32  2,221,433,896  16,438,888 | resnet200_root_32   8,168,694,760  37,185,064
    resnet50_root_64  2,114,860,072  15,312,808 | resnet200_root_64   7,773,107,176  34,860,904
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from sparsekern.models.group_plan import group_plan
from sparsekern.models.options import check, check_groups, check_numbers, check_options
from sparsekern.models.parts import ConvFactory, Groups, add_relu, conv_unit, default_conv, he_init_, linear_init_, make_conv
from sparsekern.models.registry import register_model

STRIDE_IN = ("1x1", "3x3")
WIDTHS = (64, 128, 256, 512)  # of the 3x3 convolutions; a block's output is four times as wide


def _add_unit(module: nn.Module, name: str, units: dict[str, nn.Module]) -> None:
    """Give ``module`` the convolution, batch-norm and ReLU of ``conv_unit(name)``, ``nn.Identity`` for what it left out."""
    for kind in ("conv", "bn", "relu"):
        module.add_module(f"{kind}{name}", units.get(f"{kind}{name}", nn.Identity()))


class Bottleneck(nn.Module):
    """Post-activation block: ``relu(conv3(conv2(conv1(x))) + shortcut)``, ``[N, C, H, W] -> [N, 4*width, H/stride, W/stride]``.

    Without batch-norm all four convolutions have biases, and the sum and its ReLU are one pass where the convolution offers it.
    """

    conv1: nn.Module
    bn1: nn.Module
    relu1: nn.Module
    conv2: nn.Module
    bn2: nn.Module
    relu2: nn.Module

    def __init__(self, in_channels: int, width: int, *, groups: Groups, stride: int, stride_in: str, conv: ConvFactory, batch_norm: bool):
        super().__init__()
        unit = partial(conv_unit, conv, bias=not batch_norm, batch_norm=batch_norm)
        first, second = (stride, 1) if stride_in == "1x1" else (1, stride)
        _add_unit(self, "1", unit("1", in_channels, width, 1, stride=first))
        _add_unit(self, "2", unit("2", width, width, 3, stride=second, groups=groups))
        self.conv3, _ = make_conv(conv, width, 4 * width, 1, bias=not batch_norm)
        self.bn3 = nn.BatchNorm2d(4 * width) if batch_norm else None
        self.downsample = None
        if stride != 1 or in_channels != 4 * width:
            projection, _ = make_conv(conv, in_channels, 4 * width, 1, stride=stride, bias=not batch_norm)
            self.downsample = nn.Sequential(projection, *([nn.BatchNorm2d(4 * width)] if batch_norm else []))

    def forward(self, x: Tensor) -> Tensor:
        shortcut = x if self.downsample is None else self.downsample(x)
        x = self.relu1(self.bn1(self.conv1(x)))
        x = self.relu2(self.bn2(self.conv2(x)))
        if self.bn3 is None:
            return add_relu(self.conv3, x, shortcut)
        return torch.relu_(self.bn3(self.conv3(x)).add_(shortcut))


class PreactBottleneck(nn.Module):
    """Pre-activation block: ``conv3(conv2(conv1(relu(bn1(x))))) + shortcut``, shapes as :class:`Bottleneck`.

    ``normalise`` says who reads ``relu(bn1(x))``: ``"residual"``; ``"both"`` (the projection too); ``"none"``: x is normalised
    already, as after the stem. Without batch-norm, ``bn2`` and ``bn3`` are in the biases of ``conv1`` and ``conv2``; ``bn1``
    stays, because it follows a sum and not a convolution, and ``conv3`` and the projection have no bias, as in training.
    """

    folds: ClassVar = {"bn2": "conv1", "bn3": "conv2"}  # which batch-norm can go into the convolution before it

    def __init__(
        self,
        in_channels: int,
        width: int,
        *,
        groups: Groups,
        stride: int,
        stride_in: str,
        normalise: str,
        conv: ConvFactory,
        batch_norm: bool,
    ):
        super().__init__()
        self.normalise = normalise
        if normalise != "none":
            self.bn1 = nn.BatchNorm2d(in_channels)
        first, second = (stride, 1) if stride_in == "1x1" else (1, stride)
        inner = {"bias": not batch_norm, "relu": not batch_norm}
        self.conv1, fused1 = make_conv(conv, in_channels, width, 1, stride=first, **inner)
        self.bn2 = nn.BatchNorm2d(width) if batch_norm else nn.Identity()
        self.relu2 = nn.Identity() if fused1 else nn.ReLU(inplace=True)
        self.conv2, fused2 = make_conv(conv, width, width, 3, stride=second, groups=groups, **inner)
        self.bn3 = nn.BatchNorm2d(width) if batch_norm else nn.Identity()
        self.relu3 = nn.Identity() if fused2 else nn.ReLU(inplace=True)
        self.conv3, _ = make_conv(conv, width, 4 * width, 1, bias=False)
        self.downsample = None
        if stride != 1 or in_channels != 4 * width:
            self.downsample = nn.Sequential(make_conv(conv, in_channels, 4 * width, 1, stride=stride, bias=False)[0])

    def forward(self, x: Tensor) -> Tensor:
        active = x if self.normalise == "none" else torch.relu_(self.bn1(x))
        shortcut = active if self.normalise == "both" else x
        if self.downsample is not None:
            shortcut = self.downsample(shortcut)
        y = self.relu2(self.bn2(self.conv1(active)))
        y = self.relu3(self.bn3(self.conv2(y)))
        return self.conv3(y).add_(shortcut)


class ResNet(nn.Module):
    """A residual network of bottlenecks, ``[N, 3, H, W]`` to ``[N, classes]`` class scores; H, W multiples of 32 or near.

    Args:
        groups: of the 3x3 convolutions, one for each of the four stages: a number, or the (in, out) channels of each group.
        blocks: bottlenecks of each stage.
        preactivation: ResNet-200's form of block.
        stride_in: which convolution of a stage's first block has the stride, ``"1x1"`` or ``"3x3"``.
        stem_bias: whether ``conv1`` has a bias beside its batch-norm.
        classes: outputs of ``fc``.
        conv: the convolution, called as ``torch.nn.Conv2d`` is; default :class:`sparsekern.nn.GroupedConv2d`.
        batch_norm: False builds the network as it runs for inference, batch-norm folded into biased convolutions with fused
            ReLU (a pre-activation network keeps those that follow a sum); :func:`~sparsekern.models.checkpoint.load_dense`
            folds the weights.
        generator: draws the initial weights; default torch's own.

    Raises:
        ValueError: ``ResNet: stride_in must be one of 1x1, 3x3; got '5x5'``;
            ``ResNet: groups must be one for each of the 4 stages; got (2, 1)``

    Example:
        >>> model = ResNet((16, 8, 4, 2), blocks=(1, 1, 1, 1), conv=nn.Conv2d)
        >>> model(torch.randn(2, 3, 64, 64)).shape
        torch.Size([2, 1000])
    """

    conv1: nn.Module
    bn1: nn.Module
    relu1: nn.Module
    layer1: nn.Module
    layer2: nn.Module
    layer3: nn.Module
    layer4: nn.Module
    bn_eps = 1e-5  # of the batch-norms of trained weights

    def __init__(
        self,
        groups: Sequence[Groups] = (1, 1, 1, 1),
        *,
        blocks: Sequence[int] = (3, 4, 6, 3),
        preactivation: bool = False,
        stride_in: str = "1x1",
        stem_bias: bool = True,
        classes: int = 1000,
        conv: ConvFactory | None = None,
        batch_norm: bool = True,
        generator: torch.Generator | None = None,
    ):
        super().__init__()
        check_options("ResNet", classes=classes, conv=conv, preactivation=preactivation, stem_bias=stem_bias, batch_norm=batch_norm)
        known = isinstance(stride_in, str) and stride_in in STRIDE_IN
        check("ResNet", known, "stride_in", f"one of {', '.join(STRIDE_IN)}", stride_in)
        check_groups("ResNet", groups, 4, "one for each of the 4 stages")
        check_numbers("ResNet", "blocks", blocks, "4 numbers of at least 1", number=4, bits=10)
        conv = default_conv() if conv is None else conv
        _add_unit(self, "1", conv_unit(conv, "1", 3, 64, 7, stride=2, bias=stem_bias or not batch_norm, batch_norm=batch_norm))
        self.maxpool = nn.MaxPool2d(3, stride=2, padding=1)
        options: dict[str, Any] = {"stride_in": stride_in, "conv": conv, "batch_norm": batch_norm}
        in_channels = 64
        for stage, (width, depth, stage_groups) in enumerate(zip(WIDTHS, blocks, groups, strict=True)):
            layer = nn.Sequential()
            for index in range(depth):
                block: Callable[..., nn.Module] = Bottleneck
                if preactivation:
                    normalise = "residual" if index else "both" if stage else "none"
                    block = partial(PreactBottleneck, normalise=normalise)
                stride = 2 if stage and not index else 1
                layer.append(block(in_channels, width, groups=stage_groups, stride=stride, **options))
                in_channels = 4 * width
            self.add_module(f"layer{stage + 1}", layer)
        self.norm = nn.Sequential(nn.BatchNorm2d(in_channels), nn.ReLU(inplace=True)) if preactivation else nn.Identity()
        self.avgpool = nn.AdaptiveAvgPool2d(1)
        self.fc = nn.Linear(in_channels, classes)
        he_init_(self, generator)
        linear_init_(self.fc, generator)

    def forward(self, x: Tensor) -> Tensor:
        x = self.maxpool(self.relu1(self.bn1(self.conv1(x))))
        x = self.layer4(self.layer3(self.layer2(self.layer1(x))))
        return self.fc(self.avgpool(self.norm(x)).flatten(1))


_register = partial(register_model, paper="Deep Roots", input_shape=(3, 224, 224), reduced_shape=(3, 64, 64))
_resnet200 = partial(ResNet, blocks=(3, 24, 36, 3), preactivation=True, stride_in="3x3", stem_bias=False)

_register(ResNet, name="resnet50")
_register(_resnet200, name="resnet200")
for _degree in (2, 4, 8, 16, 32, 64):
    _plan = group_plan("root", _degree, levels=4)
    _register(partial(ResNet, _plan), name=f"resnet50_root_{_degree}", dense="resnet50")
    _register(partial(_resnet200, _plan), name=f"resnet200_root_{_degree}", dense="resnet200")
