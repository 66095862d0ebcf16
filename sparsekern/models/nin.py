"""Network in Network for CIFAR-10, dense and with its spatial convolutions in filter groups.

Source: Deep Roots (Ioannou et al., arXiv 1605.06489), section 4.1, Tables 1, 2 and 8, root-32 from Figure 10; layers after
Lin et al., arXiv 1312.4400. StochasticNet in StochasticNet uses the same network with other widths and no biases.

    x [N, 3, 32, 32]
    conv1a 5x5   3->192 | conv1b 1x1 192->160 | conv1c 1x1 160-> 96 | max-pool 3x3/2, ceil: 32 -> 16
    conv2a 5x5  96->192 | conv2b 1x1 192->192 | conv2c 1x1 192->192 | avg-pool 3x3/2, ceil: 16 -> 8     2a in g2 groups
    conv3a 3x3 192->192 | conv3b 1x1 192->192 | conv3c 1x1 192-> 10 | mean over 8x8  ->  [N, 10]        3a in g3 groups

Every convolution has a bias and a ReLU. The paper trains with batch-norm; its counts leave batch-norm out, ours too.
Expected counts (multiply-add = 1, each bias once per layer; the printed cells are in `reproduce/data/deep_roots_nin.json`):

    name          g2,g3   FLOPS        params  | name          g2,g3   FLOPS        params
    nin           1,1     222,487,946  966,986 | nin_tree_4    4,8     115,434,890  331,082
    nin_root_2    2,1     163,505,546  736,586 | nin_tree_8    8,16     99,362,186  252,746
    nin_root_4    4,2     123,397,514  455,498 | nin_tree_16   16,32    91,325,834  213,578
    nin_root_8    8,4     103,343,498  314,954 | nin_col_2     2,2     152,888,714  570,698
    nin_root_16   16,8     93,316,490  244,682 | nin_col_4     4,4     118,089,098  372,554
    nin_root_32   32,16    88,302,986  209,546 | nin_col_8     8,8     100,689,290  273,482
    nin_tree_2    2,4     147,580,298  487,754 | nin_col_16    16,16    91,989,386  223,946
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial

import torch
from torch import nn

from sparsekern.models.group_plan import group_plan
from sparsekern.models.options import check, check_groups, check_numbers, check_options
from sparsekern.models.parts import ConvFactory, Groups, conv_unit, default_conv, he_init_
from sparsekern.models.registry import register_model

WIDTHS = ((192, 160, 96), (192, 192, 192), (192, 192))  # filters of each convolution, block by block; the last has one per class


class NiN(nn.Sequential):
    """Network in Network, ``[N, 3, 32, 32]`` to ``[N, classes]`` class scores (no softmax).

    Args:
        groups: groups of ``conv2a`` and ``conv3a``: a number, or the (in, out) channels of each group.
        widths: filters of ``(1a, 1b, 1c), (2a, 2b, 2c), (3a, 3b)``.
        classes: filters of ``conv3c``.
        bias: whether the convolutions have biases.
        conv: the convolution, called as ``torch.nn.Conv2d`` is; default :class:`sparsekern.nn.GroupedConv2d`.
        batch_norm: put a batch-norm between each convolution and its ReLU, as the paper does to train.
        generator: draws the initial weights; default torch's own.

    Raises:
        ValueError: ``NiN: widths must be 3, 3 and 2 positive numbers of filters; got ((192, 160), (192,), (192,))``

    Example:
        >>> import torch
        >>> model = NiN(groups=(16, 8), conv=torch.nn.Conv2d)
        >>> model(torch.randn(2, 3, 32, 32)).shape
        torch.Size([2, 10])
        >>> NiN(widths=((192, 80, 48), (192, 96, 96), (192, 80)), conv=torch.nn.Conv2d).conv3a.in_channels
        96
    """

    def __init__(
        self,
        groups: Sequence[Groups] = (1, 1),
        *,
        widths: Sequence[Sequence[int]] = WIDTHS,
        classes: int = 10,
        bias: bool = True,
        conv: ConvFactory | None = None,
        batch_norm: bool = False,
        generator: torch.Generator | None = None,
    ):
        super().__init__()
        check_options("NiN", classes=classes, conv=conv, bias=bias, batch_norm=batch_norm)
        check_groups("NiN", groups, 2, "one for each of conv2a and conv3a, a number or the (in, out) channels of each group")
        rule = "3, 3 and 2 positive numbers of filters"
        check("NiN", isinstance(widths, tuple | list) and len(widths) == 3, "widths", rule, widths)
        for block, number in zip(widths, (3, 3, 2), strict=True):
            check_numbers("NiN", "widths", block, rule, number=number)
        unit = partial(conv_unit, default_conv() if conv is None else conv, bias=bias, batch_norm=batch_norm)
        (w1a, w1b, w1c), (w2a, w2b, w2c), (w3a, w3b) = widths
        group2, group3 = groups
        layers = {
            **unit("1a", 3, w1a, 5),
            **unit("1b", w1a, w1b, 1),
            **unit("1c", w1b, w1c, 1),
            "pool1": nn.MaxPool2d(3, stride=2, ceil_mode=True),
            **unit("2a", w1c, w2a, 5, groups=group2),
            **unit("2b", w2a, w2b, 1),
            **unit("2c", w2b, w2c, 1),
            # without padding count_include_pad changes no value, but inductor's gradients of overhanging windows are wrong with it
            "pool2": nn.AvgPool2d(3, stride=2, ceil_mode=True, count_include_pad=False),
            **unit("3a", w2c, w3a, 3, groups=group3),
            **unit("3b", w3a, w3b, 1),
            **unit("3c", w3b, classes, 1),
            "pool3": nn.AdaptiveAvgPool2d(1),
            "flatten": nn.Flatten(),
        }
        for name, layer in layers.items():
            self.add_module(name, layer)
        he_init_(self, generator)

    def blocks(self) -> list[nn.Sequential]:
        """The three runs of convolutions between the poolings, as views on the same modules."""
        runs: list[nn.Sequential] = []
        run: list[nn.Module] = []
        for name, layer in self.named_children():
            if name.startswith("pool"):
                runs.append(nn.Sequential(*run))
                run = []
            else:
                run.append(layer)
        return runs


_register = partial(register_model, paper="Deep Roots", input_shape=(3, 32, 32), reduced_shape=(3, 16, 16))

_register(NiN, name="nin")
for _short, _topology in (("root", "root"), ("tree", "tree"), ("col", "column")):
    for _degree in (2, 4, 8, 16, 32) if _topology == "root" else (2, 4, 8, 16):
        _register(partial(NiN, group_plan(_topology, _degree, levels=2)), name=f"nin_{_short}_{_degree}", dense="nin")
