"""The counting conventions of the papers, one small function each: what ran in, totals out.

A rule sees one image's :class:`Record`: the layers that hold weights, and the other steps between them. It gives back
:class:`Totals`. Multiply-adds (``macs``) count 1 in every convention; what ``params`` and ``flops`` mean is the convention's
own. :data:`CONVENTIONS` names them all.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field


@dataclass(frozen=True)
class LayerCount:
    """One layer with weights, for one image. ``macs`` and ``outputs`` add up over its runs, weights and biases do not."""

    name: str
    kind: str
    weight_shape: tuple[int, ...]
    in_shape: tuple[int, ...]  # of one image, at the last run: [C, H, W] or [features]
    out_shape: tuple[int, ...]
    weights: int  # that exist: kept ones of a sparse layer; 0 where another layer holds the same tensor
    biases: int
    macs: int  # each existing weight once per output position
    outputs: int  # elements of the output
    groups: int  # 1 where the layer has none
    is_conv: bool  # else a connected (linear) layer

    @property
    def params(self) -> int:
        return self.weights + self.biases


@dataclass(frozen=True)
class Step:
    """One function without weights of its own, or batch-norm."""

    kind: str  # relu, max_pool, avg_pool, add, softmax, batch_norm, lrn, dropout, cat
    outputs: int  # elements of its output, one image
    size: int = 1  # inputs behind one output of a pooling, channels of lrn; batch_norm: 2 with scale and shift, else 1
    params: int = 0  # batch_norm: two per channel; 0 at a second run


@dataclass(frozen=True)
class Record:
    """Everything that one image made a model do."""

    layers: list[LayerCount]
    steps: list[Step]
    inputs: int  # elements of the model's input
    outputs: int  # elements of the model's (first) output
    parameters: int  # all of the model's
    flops: int  # by torch's FlopCounterMode


@dataclass(frozen=True)
class Totals:
    params: int
    macs: int
    flops: int
    operations: dict[str, int] = field(default_factory=dict)


def flops(record: Record) -> Totals:
    """Ours. ``flops``: a multiply and an add are 2; every operation that torch's FlopCounterMode knows, this package's included.
    ``params``: all of the model's, batch-norm too. ``macs``: half the FLOPs."""
    return Totals(record.parameters, record.flops // 2, record.flops)


def deep_roots(record: Record) -> Totals:
    """``params``: weights and biases of convolutions and linear layers. ``flops``: their multiply-adds, and each bias once per layer
    (not per position). Batch-norm, ReLU, pooling and additions count nothing.

    Source: Deep Roots (arXiv 1605.06489), Tables 2, 4, 6 and 8, reproduced to the last unit.
    """
    macs = sum(layer.macs for layer in record.layers)
    return Totals(sum(layer.params for layer in record.layers), macs, macs + sum(layer.biases for layer in record.layers))


def deep_roots_resnet200(record: Record) -> Totals:
    """As :func:`deep_roots`, with the two counting errors behind the printed ResNet-200 table.

    1. The multiply-adds of a convolution are multiplied by its output channels a second time: that makes the table's "x10^12".
    2. A linear layer counts its input plus its output features instead of their product, in both columns: 2048 + 1000 = 3,048.

    ``macs`` stays the true number of multiply-adds.

    Source: Deep Roots (arXiv 1605.06489), Table 5: 5,653,622,950,888 FLOPS and 62,451,880 parameters for the dense net.
    """
    convs = [layer for layer in record.layers if layer.is_conv]
    features = sum(layer.in_shape[-1] + layer.out_shape[-1] for layer in record.layers if not layer.is_conv)
    return Totals(
        params=sum(layer.params for layer in convs) + features,
        macs=sum(layer.macs for layer in record.layers),
        flops=sum(layer.macs * layer.out_shape[0] + layer.biases for layer in convs) + features,
    )


def sis(record: Record) -> Totals:
    """``params`` and synapses: weights that exist, no biases. ``flops``: multiply-adds.

    Source: StochasticNet in StochasticNet, Tables 1 and 2.
    """
    macs = sum(layer.macs for layer in record.layers)
    return Totals(sum(layer.weights for layer in record.layers), macs, macs)


def patterns(record: Record) -> Totals:
    """``params``: weights and biases of convolutions, weights alone of connected layers, no batch-norm. ``flops``: the paper's
    "operations": multiply-adds, and one addition per output of a convolution with a bias.

    Source: Characterizing Sparse Connectivity Patterns in Neural Networks, Table 2.
    """
    convs = [layer for layer in record.layers if layer.is_conv]
    macs = sum(layer.macs for layer in record.layers)
    return Totals(
        params=sum(layer.weights for layer in record.layers) + sum(layer.biases for layer in convs),
        macs=macs,
        flops=macs + sum(layer.outputs for layer in convs if layer.biases),
    )


def netscope(record: Record) -> Totals:
    """What the net analyser netscope printed in 2016 for a Caffe deploy file. With n outputs of a step:

        convolution, linear   macc: a weight per output position, *filter groups ignored*, in params too; biases never in params
        batch-norm            add n, div n, two params per channel; with scale and shift also macc n: two layers, 2n activations
        ReLU, dropout         comp n
        max-pooling           comp n * window
        average pooling       add n * window
        local response norm   macc n * size, add n, exp n, div 2n, two params (alpha and beta)
        addition of two maps  add n
        softmax               add n, div n, exp n

    Deploy files end in a softmax: where the model computes none, one over its (first) output is counted. ``activations`` is the
    input and every layer's output, in place or not, concatenations too. ``size_bytes`` is four bytes for each of these parameters,
    ``size_with_biases_bytes`` adds the biases (SimpleNet's own row prints that one). ``macs`` and ``flops`` are both macc.

    Source: SimpleNet (arXiv 1608.06037), appendix table of operations; the rules are those of netscope's analyser, which the rows
    of AlexNet, GoogLeNet, ResNet-50 and ResNet-152 confirm.
    """
    steps = record.steps
    if not any(step.kind == "softmax" for step in steps):
        steps = [*steps, Step("softmax", record.outputs)]

    def outputs(*kinds: str) -> int:
        return sum(step.outputs for step in steps if step.kind in kinds)

    def windows(kind: str) -> int:
        return sum(step.outputs * step.size for step in steps if step.kind == kind)

    scaled = windows("batch_norm") - outputs("batch_norm")
    of_steps = sum(step.params for step in steps) + 2 * sum(step.kind == "lrn" for step in steps)
    macc = sum(layer.macs * layer.groups for layer in record.layers) + scaled + windows("lrn")
    params = sum(layer.weights * layer.groups for layer in record.layers) + of_steps
    operations = {
        "comp": outputs("relu", "dropout") + windows("max_pool"),
        "add": outputs("softmax", "batch_norm", "lrn", "add") + windows("avg_pool"),
        "div": outputs("softmax", "batch_norm") + 2 * outputs("lrn"),
        "exp": outputs("softmax", "lrn"),
        "activations": record.inputs + sum(layer.outputs for layer in record.layers) + sum(step.outputs for step in steps) + scaled,
        "size_bytes": 4 * params,
        "size_with_biases_bytes": 4 * (params + sum(layer.biases for layer in record.layers)),
    }
    return Totals(params, macc, macc, operations)


CONVENTIONS: dict[str, Callable[[Record], Totals]] = {
    "flops": flops,
    "deep_roots": deep_roots,
    "deep_roots_resnet200": deep_roots_resnet200,
    "sis": sis,
    "netscope": netscope,
    "patterns": patterns,
}
