"""SimpleNet: thirteen plain convolutions, mostly 3x3, in four sizes.

Source: HasanPour et al., "Let's keep it simple" (SimpleNet), section 3 and Tables 1, 2 and 6; layers, names, orders and initial
values from the authors' published prototxt files and logs. 3x3 convolutions unless marked, "same" padding, stride 1, each with a
bias; P is a 2x2/2 max-pool with Caffe's ceil (a 28 px input goes 28, 14, 7, 4, 2, 1):

    x [N, C, H, W]            5m     310k    310k_logs  460k
    conv1                     64      64      32         32
    conv1_0                  128      32      32         32
    conv2                    128      32      32         32
    conv2_1, P               128      32      32         64
    conv2_2                  128      32      50         64
    conv3                    128      32      64         64
    conv4, P                 256      64      64         64
    conv4_1                  256      64      64         64
    conv4_2, P               256      64      64         64
    conv4_0                  512     128      64         96
    cccp4                   2048 1x1 256 1x1  64         96
    cccp5, P                 256 1x1  64 1x1  64         96
    cccp6, P                 256      64     100 1x1    100 1x1
    ip1                      linear to the class scores [N, classes]

`310k` is the published file (the SVHN log's net), `310k_logs` what the CIFAR-10 91.98 and MNIST 99.72 logs ran: the paper's "310K"
names both. Batch-norm with scale stands behind the first ten convolutions only (the paper's text says all), and behind pool4, not
before it: with that order the ReLUs and poolings make the 0.838 M comparisons that the paper prints. Dropout follows every block
but the last: 12 of them. Expected counts (weights; with biases; with batch-norm's scale and shift too; multiply-adds by input):

    name                  weights   + biases    + scale  at 32x32x3    28x28x1     224x224x3
    simplenet_5m        5,484,736  5,489,290  5,493,258  652,151,296  509,275,648  31,955,290,624
    simplenet_310k        309,568    310,506    311,594   55,788,160   42,305,152   2,733,589,120
    simplenet_310k_logs   300,296    301,032    302,028   56,207,336   43,003,112   2,754,111,464
    simplenet_460k        453,832    454,710    455,862   75,241,960   57,994,216   3,686,808,040

Weights and biases are those of (3, 32, 32) and 10 classes; a (1, 28, 28) input has 2*9 weights fewer per filter of conv1.
"""

from __future__ import annotations

import math
from functools import partial
from typing import NamedTuple

import torch
from torch import nn

from sparsekern.arguments import check_real
from sparsekern.models.options import check, check_numbers, check_options
from sparsekern.models.parts import ConvFactory, default_conv, make_conv
from sparsekern.models.registry import register_model

NAMES = (
    "conv1", "conv1_0", "conv2", "conv2_1", "conv2_2", "conv3", "conv4", "conv4_1", "conv4_2", "conv4_0", "cccp4", "cccp5", "cccp6",
)  # fmt: skip
POOLED = ("conv2_1", "conv4", "conv4_2", "cccp5", "cccp6")
GAUSSIAN = ("conv2", "conv2_1", "conv2_2")  # drawn from N(0, 0.01^2); all others by Caffe's "xavier"
NORMED = 10  # convolutions with batch-norm, from the first


class Sizes(NamedTuple):
    """What tells the four nets apart."""

    widths: tuple[int, ...]  # output channels of each convolution
    last_kernels: tuple[int, int, int]  # of cccp4, cccp5, cccp6; 3 before


SIZES = {
    "simplenet_5m": Sizes((64, 128, 128, 128, 128, 128, 256, 256, 256, 512, 2048, 256, 256), (1, 1, 3)),
    "simplenet_310k": Sizes((64, 32, 32, 32, 32, 32, 64, 64, 64, 128, 256, 64, 64), (1, 1, 3)),
    "simplenet_310k_logs": Sizes((32, 32, 32, 32, 50, 64, 64, 64, 64, 64, 64, 64, 100), (3, 3, 1)),
    "simplenet_460k": Sizes((32, 32, 32, 64, 64, 64, 64, 64, 64, 96, 96, 96, 100), (3, 3, 1)),
}


class SimpleNet(nn.Sequential):
    """SimpleNet, ``[N, C, H, W]`` of ``input_shape`` to ``[N, classes]`` class scores (no softmax).

    The last pooling takes the maximum over its whole map: 2x2 for 32 and 28 px, 14x14 for 224 px, so that the classifier always sees
    one value per channel. The paper trains "the same architecture" on ImageNet; the published ImageNet files have a global max-pool
    here too, but also a strided 7x7 stem for 227 px, which the paper does not mention and these nets do not have.

    Args:
        sizes: widths and last kernels, one of ``SIZES``.
        classes: class scores.
        input_shape: ``(C, H, W)`` of one image: ``(3, 32, 32)``, ``(1, 28, 28)``, ``(3, 224, 224)`` or any other.
        dropout: probability behind each of the first 12 convolution blocks; the paper's second version has 0.2.
        batch_norm: the paper's, with momentum 0.05. False is the net as it runs with batch-norm folded into the convolutions. conv4's
            stands behind its pooling and folds exactly only where its scale is positive.
        conv: the convolution, called as ``torch.nn.Conv2d`` is; default :class:`sparsekern.nn.GroupedConv2d`.
        generator: draws the initial weights; default torch's own.

    Raises:
        ValueError: ``SimpleNet: dropout must be in [0, 1); got 1.5``

    Example:
        >>> import torch
        >>> model = SimpleNet(SIZES["simplenet_310k"], input_shape=(1, 28, 28), dropout=0.2)
        >>> model(torch.randn(2, 1, 28, 28)).shape
        torch.Size([2, 10])
    """

    def __init__(
        self,
        sizes: Sizes,
        *,
        classes: int = 10,
        input_shape: tuple[int, int, int] = (3, 32, 32),
        dropout: float = 0.0,
        batch_norm: bool = True,
        conv: ConvFactory | None = None,
        generator: torch.Generator | None = None,
    ):
        super().__init__()
        check_options("SimpleNet", classes=classes, conv=conv, batch_norm=batch_norm)
        check_real("SimpleNet", "in [0, 1)", lambda p: 0 <= p < 1, dropout=dropout)
        check_numbers("SimpleNet", "input_shape", input_shape, "positive (C, H, W)", number=3)
        check("SimpleNet", isinstance(sizes, Sizes), "sizes", "one of SIZES, or another Sizes", sizes)
        check_numbers("SimpleNet", "sizes.widths", sizes.widths, f"{len(NAMES)} positive numbers", number=len(NAMES))
        check_numbers("SimpleNet", "sizes.last_kernels", sizes.last_kernels, "3 positive numbers", number=3)
        conv = default_conv() if conv is None else conv
        channels, *last_map = input_shape
        kernels = (3,) * NORMED + sizes.last_kernels
        for position, (name, width, kernel) in enumerate(zip(NAMES, sizes.widths, kernels, strict=True)):
            normed = batch_norm and position < NORMED
            short = name.removeprefix("conv") if name.startswith("conv") else f"_{name}"  # bn1_0, relu_cccp4
            layer, fused = make_conv(conv, channels, width, kernel, relu=not normed)
            unit: dict[str, nn.Module] = {f"bn{short}": nn.BatchNorm2d(width, momentum=0.05)} if normed else {}
            unit |= {} if fused else {f"relu{short}": nn.ReLU(inplace=True)}
            drop = {f"drop{short}": nn.Dropout(dropout)} if dropout and name != NAMES[-1] else {}
            if name in POOLED:
                window = tuple(last_map) if name == NAMES[-1] else 2
                pool = {f"pool{name.removeprefix('conv').removeprefix('cc')}": nn.MaxPool2d(window, ceil_mode=True)}
                last_map = [math.ceil(size / 2) for size in last_map]
                if name == "conv4":  # as published: pooled before batch-norm and ReLU
                    unit = {**pool, **unit, **drop}
                elif name == "conv4_2":
                    unit = {**unit, **drop, **pool}
                else:
                    unit = {**unit, **pool, **drop}
            else:
                unit |= drop
            for unit_name, module in {name: layer, **unit}.items():
                self.add_module(unit_name, module)
            channels = width
        self.flatten = nn.Flatten()
        self.ip1 = nn.Linear(channels, classes)
        caffe_init_(self, generator)


def caffe_init_(model: SimpleNet, generator: torch.Generator | None = None) -> None:
    """Fill weights as the published files do, biases with zero: U(-a, a) with ``a = sqrt(3 / fan_in)``, or N(0, 0.01^2)."""
    with torch.no_grad():
        for name, module in model.named_children():
            weight = getattr(module, "weight", None)
            if weight is None or weight.dim() < 2:
                continue  # a batch-norm
            if name in GAUSSIAN:
                weight.normal_(0.0, 0.01, generator=generator)
            else:
                bound = math.sqrt(3 / weight[0].numel())
                weight.uniform_(-bound, bound, generator=generator)
            if isinstance(module.bias, torch.Tensor):
                module.bias.zero_()


for _name, _sizes in SIZES.items():
    register_model(
        partial(SimpleNet, _sizes), name=_name, paper="SimpleNet", input_shape=(3, 32, 32), reduced_shape=(3, 20, 20)
    )  # 20 px: 20, 10, 5, 3, 2, 1 meets the ceil
