"""The networks with pre-defined sparse connected layers (CLs), each junction with its fan-out.

Source: Dey et al., "Characterizing Sparse Connectivity Patterns in Neural Networks" (arXiv 1711.02131), section 2.2 and Tables 1
and 2. In junction i every left neuron has ``fan_out`` edges and every right neuron the same fan-in, N_i * fan_out_i / N_(i+1).

    name                 input      convolutions                           neurons of the CLs
    cifar10_conv_2cl     3x32x32    3x3: 64, 64, P, 128, 128, P, 256, 256, P   4096, 512, 16
    cifar100_conv_2cl    3x32x32    the same                               4096, 512, 128
    cifar10_conv_3cl     3x32x32    the same                               4096, 512, 256, 16
    cifar100_conv_3cl    3x32x32    the same                               4096, 512, 256, 128
    mnist_conv_2cl       1x28x28    5x5: 32, P, 64, P                      3136, 784, 10
    mnist_cl             784        none                                   784, 224, 10
    morse_cl             64         none                                   64, 1024, 64

Convolutions are "same", P is a 2x2/2 max-pool; batch-norm and ReLU behind each convolution (MNIST without batch-norm: Table 2 counts
six layers, which leaves none for it), ReLU behind each CL but the last. 10 and 100 classes are padded to 16 and 128 outputs, as in the
paper: the others never are a label. Expected counts (weights of the CLs, full and with the row of Table 2; convolutions with their
biases, and their multiply-adds):

    name                 full CLs   fan_out of Table 2   sparse CLs  conv params  conv MACs
    cifar10_conv_2cl     2,105,344  (1, 1)                    4,608    1,145,408  152,764,416
    cifar100_conv_2cl    2,162,688  (1, 32)                  20,480    1,145,408  152,764,416
    cifar10_conv_3cl     2,232,320  (1, 1, 16)                8,704    1,145,408  152,764,416
    cifar100_conv_3cl    2,260,992  (1, 2, 32)               13,312    1,145,408  152,764,416
    mnist_conv_2cl       2,466,464  (16, 10)                 58,016       52,096   10,662,400
    mnist_cl               177,856  (112, 5)                 88,928            0            0
    morse_cl               131,072  (512, 32)                65,536            0            0
"""

from __future__ import annotations

import math
import operator
from collections.abc import Sequence
from functools import partial
from itertools import pairwise
from typing import Any

import torch
from torch import Tensor, nn

from sparsekern.arguments import check_seed, check_whole, is_whole
from sparsekern.models.options import check, check_numbers, check_options
from sparsekern.models.parts import ConvFactory, conv_unit, default_conv, he_init_
from sparsekern.models.registry import register_model
from sparsekern.nn import SparseLinear

POOL = "P"
CIFAR_CONVS = (64, 64, POOL, 128, 128, POOL, 256, 256, POOL)
MNIST_CONVS = (32, POOL, 64, POOL)


class PatternNet(nn.Sequential):
    """Convolutions, if any, and connected layers of given fan-outs: ``[N, *input_shape]`` to ``[N, neurons[-1]]`` scores.

    Layers ``conv1, bn1, relu1, ..., flatten, junction1, relu_junction1, junction2, ...``. A junction whose fan-out is all of the
    right layer is an ``nn.Linear``, any other a :class:`sparsekern.nn.SparseLinear` with the same fan-in and fan-out everywhere.

    Args:
        name: of the model, for its error sentences.
        neurons: of the layers behind the junctions, ``(N_2, ..., N_(J+1))``; ``N_1`` is what the convolutions leave.
        convs: filters of each convolution, and ``"P"`` for a pooling.
        kernel_size: of each convolution.
        input_shape: of one image, ``(C, H, W)``, or ``(features,)``. Without convolutions an image is flattened, and fewer features
            than ``features`` are padded with zeros, as the paper's 784 to 1024.
        fan_out: edges of each left neuron, one number per junction; None is fully connected.
        bias: whether the junctions have biases; the paper counts none.
        batch_norm: one between each convolution and its ReLU. False is the net as it runs with batch-norm folded.
        conv: the convolution, called as ``torch.nn.Conv2d`` is; default :class:`sparsekern.nn.GroupedConv2d`.
        topology: of the sparse junctions, one with a fixed fan-out, as in ``SparseLinear``.
        seed: of the random connections; None draws from torch's generator.
        generator: draws the initial weights, N(0, 2 / fan_in) by the true fan-in; default torch's own.

    Raises:
        ValueError: ``morse_cl: fan_out must be one number per junction, (64 -> 1024, 1024 -> 64); got (512,)``;
            ``morse_cl: fan_out must be in [1, 64] in junction 2; got 65``;
            ``mnist_cl: fan_out must give every right neuron of junction 2 (224 -> 10) the same fan-in, a whole number of at least 1; got
            3, a fan-in of 67.2``

    Cost:
        ``2 * N * sum(N_i * fan_out_i)`` FLOPs in the junctions.

    Example:
        >>> net = PatternNet("morse_cl", (1024, 64), input_shape=(64,), fan_out=(128, 8))
        >>> net.junction1.fan_in, net.junction2.fan_in, net(torch.randn(2, 64)).shape
        (8, 128, torch.Size([2, 64]))
    """

    def __init__(
        self,
        name: str,
        neurons: Sequence[int],
        *,
        convs: Sequence[int | str] = (),
        kernel_size: int = 3,
        input_shape: Sequence[int],
        fan_out: Sequence[int] | None = None,
        bias: bool = True,
        batch_norm: bool = False,
        conv: ConvFactory | None = None,
        topology: str = "regular",
        seed: int | None = 0,
        generator: torch.Generator | None = None,
    ):
        super().__init__()
        check("PatternNet", isinstance(name, str), "name", "a string", name)
        check_options(name, classes=1, conv=conv, bias=bias, batch_norm=batch_norm)
        check_whole(name, kernel_size=kernel_size)
        check_seed(name, seed)
        check_numbers(name, "neurons", neurons, "positive numbers")
        check(name, isinstance(convs, tuple | list), "convs", "numbers of filters and 'P'", convs)
        filters_of = [step for step in convs if not (isinstance(step, str) and step == POOL)]
        check_numbers(name, "convs", filters_of or [1], "positive numbers of filters and 'P'")
        check_numbers(name, "input_shape", input_shape, "positive (C, H, W) or (features,)", number=3 if convs else None)
        conv = default_conv() if conv is None else conv
        shape, number = [operator.index(side) for side in input_shape], 0
        for step in convs:
            if step == POOL:
                self.add_module(f"pool{number}", nn.MaxPool2d(2))
                shape = [shape[0], shape[1] // 2, shape[2] // 2]
                continue
            number, filters = number + 1, int(step)
            for unit_name, module in conv_unit(conv, str(number), shape[0], filters, kernel_size, batch_norm=batch_norm).items():
                self.add_module(unit_name, module)
            shape = [filters, *shape[1:]]
        if min(shape) < 1:
            raise ValueError(f"{name}: input_shape must leave a map behind the poolings; got {tuple(input_shape)}")
        check(name, math.prod(shape) < 2**31, "input_shape", "of fewer than 2^31 neurons behind the poolings", input_shape)
        neurons = (math.prod(shape), *map(operator.index, neurons))
        self.flatten = nn.Flatten() if convs else FlattenTo(neurons[0])
        fan_out = neurons[1:] if fan_out is None else _check_fan_out(name, neurons, fan_out)
        junctions = len(fan_out)
        for i, (left, right, edges) in enumerate(zip(neurons, neurons[1:], fan_out), start=1):
            if edges == right:
                junction: nn.Linear | SparseLinear = nn.Linear(left, right, bias)
            else:
                own_seed = None if seed is None else _within_64_bits(operator.index(seed) * junctions + i)  # no two junctions draw alike
                junction = SparseLinear(left, right, bias, fan_out=edges, topology=topology, seed=own_seed)
            _he_init_junction_(junction, left * edges // right, generator)
            self.add_module(f"junction{i}", junction)
            if i < junctions:
                self.add_module(f"relu_junction{i}", nn.ReLU(inplace=True))
        he_init_(self, generator)


class FlattenTo(nn.Module):
    """``[N, ...] -> [N, features]``, padded with zeros behind where there are fewer."""

    def __init__(self, features: int):
        super().__init__()
        self.features = features

    def forward(self, x: Tensor) -> Tensor:
        x = x.flatten(1)
        return nn.functional.pad(x, (0, self.features - x.shape[1])) if x.shape[1] < self.features else x

    def extra_repr(self) -> str:
        return f"features={self.features}"


def _check_fan_out(name: str, neurons: Sequence[int], fan_out: Sequence[int]) -> tuple[int, ...]:
    junctions = list(pairwise(neurons))
    fan_out = (fan_out,) if is_whole(fan_out) else fan_out
    sizes = ", ".join(f"{left} -> {right}" for left, right in junctions)
    listed = isinstance(fan_out, tuple | list) and len(fan_out) == len(junctions)
    check(name, listed, "fan_out", f"one number per junction, ({sizes})", fan_out)
    for i, ((left, right), edges) in enumerate(zip(junctions, fan_out), start=1):
        check(name, is_whole(edges) and 1 <= edges <= right, "fan_out", f"in [1, {right}] in junction {i}", edges)
        if left * operator.index(edges) % right:
            raise ValueError(
                f"{name}: fan_out must give every right neuron of junction {i} ({left} -> {right}) the same fan-in, a whole number "
                f"of at least 1; got {edges}, a fan-in of {left * operator.index(edges) / right:g}"
            )
    return tuple(map(operator.index, fan_out))


def _within_64_bits(seed: int) -> int:
    return seed if -(2**63) <= seed < 2**64 else seed % 2**64


@torch.no_grad()
def _he_init_junction_(junction: nn.Linear | SparseLinear, fan_in: int, generator: torch.Generator | None) -> None:
    """N(0, 2 / fan_in): the same rule for a full and a sparse junction."""
    junction.weight.normal_(0.0, math.sqrt(2 / fan_in), generator=generator)
    if junction.bias is not None:
        junction.bias.zero_()


def _conv_net(
    name: str,
    convs: Sequence[int | str],
    kernel_size: int,
    hidden: Sequence[int],
    *,
    classes: int,
    input_shape: Sequence[int],
    batch_norm: bool,
    fan_out: Sequence[int] | None = None,
    bias: bool = True,
    conv: ConvFactory | None = None,
    topology: str = "regular",
    seed: int | None = 0,
    generator: torch.Generator | None = None,
) -> PatternNet:
    return PatternNet(
        name, (*hidden, classes), convs=convs, kernel_size=kernel_size, input_shape=input_shape, fan_out=fan_out, bias=bias,
        batch_norm=batch_norm, conv=conv, topology=topology, seed=seed, generator=generator,
    )  # fmt: skip


def _connected_net(
    name: str,
    *,
    input_shape: Sequence[int],
    hidden: int | None,
    classes: int,
    fan_out: Sequence[int] | None = None,
    bias: bool = True,
    topology: str = "regular",
    seed: int | None = 0,
    generator: torch.Generator | None = None,
) -> PatternNet:
    neurons = (classes,) if hidden is None else (hidden, classes)
    return PatternNet(name, neurons, input_shape=input_shape, fan_out=fan_out, bias=bias, topology=topology, seed=seed, generator=generator)


_register = partial(register_model, paper="Sparse connectivity patterns")

for _name, _hidden, _outputs in (
    ("cifar10_conv_2cl", (512,), 16),
    ("cifar100_conv_2cl", (512,), 128),
    ("cifar10_conv_3cl", (512, 256), 16),
    ("cifar100_conv_3cl", (512, 256), 128),
):
    _options: dict[str, Any] = {"classes": _outputs, "input_shape": (3, 32, 32), "batch_norm": True}
    _builder = partial(_conv_net, _name, CIFAR_CONVS, 3, _hidden, **_options)
    _register(_builder, name=_name, input_shape=(3, 32, 32), reduced_shape=(3, 16, 16))
_builder = partial(_conv_net, "mnist_conv_2cl", MNIST_CONVS, 5, (784,), classes=10, input_shape=(1, 28, 28), batch_norm=False)
_register(_builder, name="mnist_conv_2cl", input_shape=(1, 28, 28), reduced_shape=(1, 12, 12))
_builder = partial(_connected_net, "mnist_cl", input_shape=(784,), hidden=224, classes=10)
_register(_builder, name="mnist_cl", input_shape=(784,))
_register(partial(_connected_net, "morse_cl", input_shape=(64,), hidden=1024, classes=64), name="morse_cl", input_shape=(64,))
