"""Network in Network for CIFAR-10, dense and with its spatial convolutions in filter groups.

Source: Deep Roots (Ioannou et al., arXiv 1605.06489), section 4.1, Tables 1, 2 and 8; layers after Lin et al.,
arXiv 1312.4400.

    x [N, 3, 32, 32]
    conv1a 5x5   3->192 | conv1b 1x1 192->160 | conv1c 1x1 160-> 96 | max-pool 3x3/2, ceil: 32 -> 16
    conv2a 5x5  96->192 | conv2b 1x1 192->192 | conv2c 1x1 192->192 | avg-pool 3x3/2, ceil: 16 -> 8     2a in g2 groups
    conv3a 3x3 192->192 | conv3b 1x1 192->192 | conv3c 1x1 192-> 10 | mean over 8x8  ->  [N, 10]        3a in g3 groups

Every convolution has a bias and a ReLU. The paper trains with batch-norm; its counts leave batch-norm out, ours too.
Expected counts (multiply-add = 1, each bias once per layer; the printed cells are in `reproduce/deep_roots_nin.json`):

    name          g2,g3   FLOPS        params  | name          g2,g3   FLOPS        params
    nin           1,1     222,487,946  966,986 | nin_tree_8    8,16     99,362,186  252,746
    nin_root_2    2,1     163,505,546  736,586 | nin_tree_16   16,32    91,325,834  213,578
    nin_root_4    4,2     123,397,514  455,498 | nin_col_2     2,2     152,888,714  570,698
    nin_root_8    8,4     103,343,498  314,954 | nin_col_4     4,4     118,089,098  372,554
    nin_root_16   16,8     93,316,490  244,682 | nin_col_8     8,8     100,689,290  273,482
    nin_tree_2    2,4     147,580,298  487,754 | nin_col_16    16,16    91,989,386  223,946
    nin_tree_4    4,8     115,434,890  331,082 |
"""

from __future__ import annotations

from functools import partial

import torch
from torch import nn

from sparsekern.models.group_plan import group_plan
from sparsekern.models.parts import ConvFactory, conv_unit, default_conv, he_init_
from sparsekern.models.registry import register_model


class NiN(nn.Sequential):
    """Network in Network, ``[N, 3, 32, 32]`` to ``[N, 10]`` class scores (no softmax).

    Args:
        groups: groups of ``conv2a`` and ``conv3a``.
        conv: the convolution, called as ``torch.nn.Conv2d`` is; default :class:`sparsekern.nn.GroupedConv2d`.
        batch_norm: put a batch-norm between each convolution and its ReLU, as the paper does to train.
        generator: draws the initial weights; default torch's own.

    Example:
        >>> import torch
        >>> model = NiN(groups=(16, 8), conv=torch.nn.Conv2d)
        >>> model(torch.randn(2, 3, 32, 32)).shape
        torch.Size([2, 10])
    """

    def __init__(
        self,
        groups: tuple[int, int] = (1, 1),
        *,
        conv: ConvFactory | None = None,
        batch_norm: bool = False,
        generator: torch.Generator | None = None,
    ):
        super().__init__()
        unit = partial(conv_unit, default_conv() if conv is None else conv, batch_norm=batch_norm)
        group2, group3 = groups
        layers = {
            **unit("1a", 3, 192, 5),
            **unit("1b", 192, 160, 1),
            **unit("1c", 160, 96, 1),
            "pool1": nn.MaxPool2d(3, stride=2, ceil_mode=True),
            **unit("2a", 96, 192, 5, groups=group2),
            **unit("2b", 192, 192, 1),
            **unit("2c", 192, 192, 1),
            "pool2": nn.AvgPool2d(3, stride=2, ceil_mode=True),
            **unit("3a", 192, 192, 3, groups=group3),
            **unit("3b", 192, 192, 1),
            **unit("3c", 192, 10, 1),
            "pool3": nn.AdaptiveAvgPool2d(1),
            "flatten": nn.Flatten(),
        }
        for name, layer in layers.items():
            self.add_module(name, layer)
        he_init_(self, generator)

    def blocks(self) -> list[nn.Sequential]:
        """The three runs of convolutions between the poolings, as views on the same modules."""
        runs, run = [], []
        for name, layer in self.named_children():
            if name.startswith("pool"):
                runs.append(nn.Sequential(*run))
                run = []
            else:
                run.append(layer)
        return runs


def _build(topology: str | None, degree: int, **options) -> NiN:
    groups = group_plan(topology, degree, levels=2) if topology else (1, 1)
    return NiN(groups, **options)


register_model(partial(_build, None, 1), name="nin")
for _short, _topology in (("root", "root"), ("tree", "tree"), ("col", "column")):
    for _degree in (2, 4, 8, 16):
        register_model(partial(_build, _topology, _degree), name=f"nin_{_short}_{_degree}")
