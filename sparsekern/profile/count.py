"""Count parameters, multiply-adds and FLOPs of any model for one image, in the convention of one's choice.

The model runs once: :mod:`sparsekern.profile.record` notes what happens, and the convention, a rule of
:mod:`sparsekern.profile.conventions`, makes totals of that.
"""

from __future__ import annotations

from dataclasses import dataclass, field

from torch import nn

from sparsekern.profile.conventions import CONVENTIONS, LayerCount
from sparsekern.profile.record import record

__all__ = ["CONVENTIONS", "Count", "LayerCount", "count"]


@dataclass(frozen=True)
class Count:
    """Totals for one image; what ``params`` and ``flops`` mean follows the ``convention``."""

    convention: str
    params: int
    macs: int  # a multiply and its add are 1
    flops: int
    synapses: int  # weights that exist, in every convention
    layers: list[LayerCount] = field(repr=False)
    operations: dict[str, int] = field(default_factory=dict, repr=False)  # "netscope": comp, add, div, exp, activations, sizes


def count(model: nn.Module, input_shape: tuple[int, ...], convention: str = "flops") -> Count:
    """Count one image's work by running the model once, without gradients, in eval mode.

    Args:
        model: any module that maps one floating-point tensor; left as it was found. A model built under
            ``torch.device("meta")`` counts without computing anything.
        input_shape: shape of one image without the batch dimension, for example ``(3, 32, 32)``.
        convention: one of :data:`~sparsekern.profile.conventions.CONVENTIONS`.

            =========================  ============================  ==============================================  ========
            convention                 ``params``                    ``flops``                                       source
            =========================  ============================  ==============================================  ========
            ``"flops"``                all of the model's            2 per multiply-add, all operations torch knows  torch
            ``"deep_roots"``           weights and biases            multiply-adds + biases, once per layer          Deep Roots
            ``"deep_roots_resnet200"`` as printed in Table 5, with its two errors                                    Deep Roots
            ``"sis"``                  weights                       multiply-adds                                   SiS
            ``"netscope"``             weights, 2 per norm channel   multiply-adds; groups ignored                   SimpleNet
            ``"patterns"``             no biases of linear layers    multiply-adds + conv bias additions             Patterns
            =========================  ============================  ==============================================  ========

    The papers' conventions count layers that hold a ``weight``: of attention and recurrent layers, which hold other names, only
    ``"flops"`` tells. It lacks what torch computes in one fused call: LSTMs on GPUs.

    Returns:
        :class:`Count`; ``layers`` in the order of their first run, ``operations`` for ``"netscope"`` only.

    Raises:
        ValueError: ``count: convention must be one of flops, deep_roots, ...; got 'mac'``

    Cost:
        One forward pass of one image.

    Example:
        >>> from torch import nn
        >>> c = count(nn.Conv2d(4, 8, 3, groups=2), (4, 5, 5), convention="deep_roots")
        >>> c.params, c.macs, c.flops     # 8*2*9 + 8, 144 weights at 3x3 positions, + 8 biases
        (152, 1296, 1304)
    """
    if convention not in CONVENTIONS:
        raise ValueError(f"count: convention must be one of {', '.join(CONVENTIONS)}; got {convention!r}")
    input_shape = tuple(input_shape)
    if not input_shape or min(input_shape) < 1:
        raise ValueError(f"count: input_shape must be positive sizes of one image, like (3, 32, 32); got {input_shape}")
    ran = record(model, input_shape)
    totals = CONVENTIONS[convention](ran)
    synapses = sum(layer.weights for layer in ran.layers)
    return Count(convention, totals.params, totals.macs, totals.flops, synapses, ran.layers, totals.operations)
