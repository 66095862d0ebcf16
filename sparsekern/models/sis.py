"""StochasticNet in StochasticNet: Network in Network with narrower micro networks and randomly formed convolutions.

Source: Shafiee, Fieguth and Wong, "StochasticNet in StochasticNet", section 3 and Tables 1 and 2. "C1: 192@5x5, MP1: 160@1x1 and
96@1x1, C2: 192@5x5, MP2: 192@1x1 and 192@1x1, C3: 192@3x3 and MP3: 160@1x1 and 10@1x1"; no biases. The convolutional layers (CL) are
conv1a, conv2a and conv3a of :class:`~sparsekern.models.nin.NiN`, the micro networks (MP) its six 1x1 convolutions.

What the rows are is not in the text; the printed integers say it. Every MP width but the ten outputs is multiplied by t_p, which gives
the MP column to the unit, and each (filter, ky, kx) of a convolution is kept with probability t_c for all input channels together:
all five random CL counts are multiples of three, as such masks make them, and lie within 0.9 deviations of t_c * dense CL.

    name             t_p   t_c   MP       dense CL  CL expected  CL printed  total expected
    sis_nin          1     1     152,128  806,976   806,976      806,976     959,104
    sis_cifar10_1    1     1/4   152,128  806,976   201,744      201,522     353,872
    sis_cifar10_2    1/2   1/2    63,008  410,688   205,344      203,475     268,352
    sis_cifar10_3    1/4   1      28,240  212,544   212,544      212,544     240,784
    sis_svhn_1       1     1/4   152,128  806,976   201,744      203,697     353,872
    sis_svhn_2       1/2   1/2    63,008  410,688   205,344      207,618     268,352
    sis_svhn_3       1/4   1/4    28,240  212,544    53,136       54,048      81,376

``count="exact"`` keeps exactly the expected number (every product is whole); ``count="bernoulli"`` draws as the paper did, and lands
near it. No recipe of training is given; biases and batch-norm are options.
"""

from __future__ import annotations

from functools import partial

import torch
from torch import nn

from sparsekern.arguments import check_real
from sparsekern.models.form import form_stochastic
from sparsekern.models.nin import NiN
from sparsekern.models.parts import ConvFactory
from sparsekern.models.registry import register_model


def sis_widths(t_p: float = 1.0) -> tuple[tuple[int, ...], ...]:
    """``NiN(widths=...)`` with the micro networks' widths (160, 96; 192, 192; 160) times ``t_p``.

    Example:
        >>> sis_widths(0.5)
        ((192, 80, 48), (192, 96, 96), (192, 80))
    """
    micro = [round(width * t_p) for width in (160, 96, 192, 192, 160)]
    return (192, *micro[:2]), (192, *micro[2:4]), (192, micro[4])


def sis_nin(
    t_p: float = 1.0,
    t_c: float = 1.0,
    *,
    granularity: str = "spatial",
    count: str = "exact",
    seed: int | None = 0,
    classes: int = 10,
    bias: bool = False,
    batch_norm: bool = False,
    conv: ConvFactory | None = None,
    generator: torch.Generator | None = None,
) -> nn.Module:
    """Network in Network of one row, ``[N, 3, 32, 32]`` to ``[N, classes]`` class scores.

    Args:
        t_p: width of the micro networks, as a fraction of the dense network's.
        t_c: probability by which a connection of a convolutional layer exists.
        granularity, count, seed: of the masks, as in :func:`~sparsekern.models.form.form_stochastic`.
        classes: filters of the last 1x1 convolution.
        bias: the paper counts none.
        batch_norm: put one between each convolution and its ReLU.
        conv: the convolution before forming, called as ``torch.nn.Conv2d`` is; default :class:`sparsekern.nn.GroupedConv2d`.
        generator: draws the initial weights, by the true fan-in of what is kept.

    Raises:
        ValueError: ``form_stochastic: conv must be in (0, 1]; got 0``

    Example:
        >>> net = sis_nin(t_p=0.25, t_c=0.25)
        >>> sum(layer.weight.numel() for layer in (net.conv1a, net.conv2a, net.conv3a))
        53136
    """
    check_real("sis_nin", "in (0, 1]", lambda t: 0 < t <= 1, t_p=t_p)
    net = NiN(widths=sis_widths(t_p), classes=classes, bias=bias, batch_norm=batch_norm, conv=conv, generator=generator)
    return form_stochastic(net, conv=t_c, granularity=granularity, count=count, seed=seed)


_register = partial(register_model, paper="StochasticNet in StochasticNet", input_shape=(3, 32, 32), reduced_shape=(3, 16, 16))
_register(sis_nin, name="sis_nin")
ROWS = {
    "sis_cifar10_1": (1.0, 0.25),
    "sis_cifar10_2": (0.5, 0.5),
    "sis_cifar10_3": (0.25, 1.0),
    "sis_svhn_1": (1.0, 0.25),
    "sis_svhn_2": (0.5, 0.5),
    "sis_svhn_3": (0.25, 0.25),
}
for _name, _probabilities in ROWS.items():
    _register(partial(sis_nin, *_probabilities), name=_name, dense="sis_nin")
