"""Any layer on any input that it takes, drawn: values and gradients of all parameters against the same layer in float64 on the references.

The ops have drawn calls of their own (test_properties.py); here it is what a layer adds: its plans, its packs, its shorter ways to the
kernels, changed between calls as training changes it.
"""

from __future__ import annotations

import copy
from collections.abc import Callable
from dataclasses import dataclass

import pytest
import torch
from hypothesis import assume
from hypothesis import strategies as st
from torch import Tensor, nn
from trust.cases import lies, servers, sizes
from trust.drawn import drawn

from sparsekern import nn as sknn
from sparsekern.ops import backends

QUICK, PARTS, FULL = 12, 5, 220


@dataclass
class Drawn:
    """A layer, inputs for calls one after the other, and who serves."""

    module: nn.Module
    inputs: list[Tensor]
    serving: dict
    packed: bool

    def __repr__(self) -> str:
        inputs = [(list(x.shape), x.stride(), x.dtype) for x in self.inputs]
        return f"{self.module} {inputs} {self.serving} {'packed' * self.packed}"

    def _repr_pretty_(self, printer, cycle) -> None:  # what hypothesis asks
        printer.text(repr(self))


def finished(draw, make: Callable[[], nn.Module], shapes: list[list[int]], dtype: torch.dtype) -> Drawn:
    seed = draw(st.integers(0, 2**20))
    torch.manual_seed(seed)
    try:
        module = make().to(dtype)
    except ValueError as refused:  # two numbers that do not go together: said, and another case
        assume(" must be " not in str(refused))
        raise
    inputs = [draw(lies(torch.randn(shape).to(dtype))) for shape in shapes]
    return Drawn(module, inputs, draw(servers()), draw(st.booleans()))


DTYPES = st.sampled_from([torch.float32, torch.float32, torch.float32, torch.float64, torch.bfloat16, torch.float16])


@st.composite
def linear(draw) -> Drawn:
    inside, outside = draw(sizes(257, 1)), draw(sizes(131, 1))
    block = draw(st.sampled_from([1, 1, 1, 1, (16, 1), (4, 4), 16, (5, 3)]))
    tall, wide = block if isinstance(block, tuple) else (block, block)
    kind = draw(st.sampled_from(["random", "random", "balanced", "regular", "fan_out", "spread"] if block == 1 else ["random"]))
    options = {"density": draw(st.sampled_from([0.02, 0.1, 0.3, 0.6, 1.0]))}
    if kind == "fan_out":
        options = {"fan_out": draw(st.integers(1, 9))}
    elif kind != "random":
        options["topology"] = kind
    bias = draw(st.booleans())
    lead = st.sampled_from([[1], [1], [], [0], [3], [17], [64], [2, 5]])
    shapes = [[*draw(lead), inside * wide] for _ in range(2)]
    make = lambda: sknn.SparseLinear(inside * wide, outside * tall, bias, block_size=block, seed=1, **options)  # noqa: E731
    return finished(draw, make, shapes, draw(DTYPES))


def window(draw, kernel: int) -> dict:
    return {
        "stride": draw(st.sampled_from([1, 1, 2, (2, 1)])),
        "padding": draw(st.sampled_from([kernel // 2, kernel // 2, 0, kernel, (0, 1)])),
        "dilation": draw(st.sampled_from([1, 1, 2])),
        "bias": draw(st.booleans()),
    }


def images(draw, channels: int) -> list[list[int]]:
    """Two inputs; 7x7 with dilation 2 reaches over 13 pixels."""
    side = st.sampled_from([13, 14, 17, 28])
    return [[*draw(st.sampled_from([[1], [1], [2], [3], [0], []])), channels, draw(side), draw(side)] for _ in range(2)]


@st.composite
def stochastic(draw) -> Drawn:
    groups, kernel = draw(st.sampled_from([1, 1, 2, 3])), draw(st.sampled_from([1, 3, 3, 5, 7]))
    inside, outside = groups * draw(st.sampled_from([1, 3, 8, 16])), groups * draw(st.sampled_from([1, 2, 6, 16]))
    how = {"granularity": draw(st.sampled_from(["spatial", "synapse", "kernel"])), "density": draw(st.sampled_from([0.05, 0.25, 0.5, 1.0]))}
    how["share"] = draw(st.sampled_from([1, 1, 2]))
    options = {**window(draw, kernel), **how}
    make = lambda: sknn.StochasticConv2d(inside, outside, kernel, groups=groups, seed=1, **options)  # noqa: E731
    return finished(draw, make, images(draw, inside), draw(DTYPES))


@st.composite
def grouped(draw) -> Drawn:
    groups, kernel = draw(st.sampled_from([1, 2, 4, 8])), draw(st.sampled_from([1, 3, 3, 5]))
    inside, outside, options = (
        groups * draw(st.sampled_from([1, 2, 4, 7])),
        groups * draw(st.sampled_from([1, 2, 4, 9])),
        window(draw, kernel),
    )
    if draw(st.sampled_from([False, False, True])):
        pairs = [(draw(st.integers(1, 6)), draw(st.integers(1, 6))) for _ in range(3)]
        inside, outside = (sum(side) for side in zip(*pairs))
        options["group_sizes"] = pairs
    else:
        options["groups"] = groups
    return finished(draw, lambda: sknn.GroupedConv2d(inside, outside, kernel, **options), images(draw, inside), draw(DTYPES))


@st.composite
def basis(draw) -> Drawn:
    groups, kernel = draw(st.sampled_from([1, 2, 4])), draw(st.sampled_from([1, 3, 5]))
    inside, outside, options = groups * draw(st.integers(1, 6)), 2 * groups * draw(st.integers(1, 6)), window(draw, kernel)
    options["padding"] = "same"  # each of its filters is as far from its border
    options["stride"] = 1
    make = lambda: sknn.SpatialBasisConv2d(inside, outside, kernel, groups=groups, **options)  # noqa: E731
    return finished(draw, make, images(draw, inside), draw(DTYPES))


LAYERS = {"SparseLinear": linear, "StochasticConv2d": stochastic, "GroupedConv2d": grouped, "SpatialBasisConv2d": basis}


def doubled(module: nn.Module, f: Callable[[Tensor], Tensor]) -> nn.Module:
    twin = copy.deepcopy(module).double()
    with torch.no_grad():
        for parameter in twin.parameters():
            parameter.copy_(f(parameter))
    return twin


def value_and_gradients(module: nn.Module, x: Tensor, cotangent: Tensor) -> dict[str, Tensor]:
    x = x.detach().requires_grad_()
    parameters = dict(module.named_parameters())
    out = module(x)
    grads = torch.autograd.grad(out, [x, *parameters.values()], cotangent)
    return {"out": out.detach(), **dict(zip(["x", *parameters], grads))}


def bounds(module: nn.Module, x: Tensor, cotangent: Tensor) -> dict[str, Tensor]:
    """As in the contract: terms of a sum times a rounding, of the sum of absolute values; a rounding more where it is stored in 16 bits."""
    u = 2.0**-53 if x.dtype == torch.float64 else 2.0**-24
    store, tiny = {torch.bfloat16: (2.0**-8, 0.0), torch.float16: (2.0**-11, 2.0**-24)}.get(x.dtype, (0.0, 0.0))
    size = value_and_gradients(doubled(module, torch.abs), x.double().abs(), cotangent.double().abs())
    terms = value_and_gradients(
        doubled(module, torch.ones_like), torch.ones_like(x, dtype=torch.float64), torch.ones_like(cotangent).double()
    )
    stored = dict.fromkeys(size, store) | {"x": store * len(getattr(module, "parts", "x"))}  # of parts side by side gradients are added
    return {k: (terms[k] + 2) * u * size[k] + stored[k] * size[k] * (1 + (terms[k] + 2) * u) + tiny for k in size}


def hold(case: Drawn) -> None:
    module = case.module
    truths = []
    with backends.use("reference"):
        for x in case.inputs:
            out = module(x)
            cotangent = torch.randn(out.shape).to(out)
            twin = doubled(module, lambda p: p)
            truth = value_and_gradients(twin, x.double(), cotangent.double())
            dense = twin.to_dense()(x.double())  # written in torch's own layers
            assert torch.allclose(truth["out"], dense, rtol=1e-9, atol=1e-9)
            truths.append((x, cotangent, truth, bounds(module, x, cotangent)))

    def within(what: str, got: Tensor, truth: Tensor, limit: Tensor) -> None:
        assert got.shape == truth.shape and got.dtype == case.inputs[0].dtype, what
        error = (got.double() - truth).abs()
        assert bool((error <= limit).all()), f"{what}: off by {error.max()}, {(error - limit).max()} over the bound"

    torch.set_num_threads(case.serving["threads"])
    with backends.use(case.serving["provider"], dense=case.serving["dense"]):
        for x, cotangent, truth, limit in truths:
            with torch.no_grad():
                within("out", module(x), truth["out"], limit["out"])
            for key, got in value_and_gradients(module, x, cotangent).items():
                within(key, got, truth[key], limit[key])
        if case.packed and hasattr(module, "pack") and case.inputs[0].dtype != torch.float64 and backends.has_kernels("cpu"):
            packed = copy.deepcopy(module).requires_grad_(False).pack()
            for x, _, truth, limit in truths:
                within("packed", packed(x), truth["out"], limit["out"])


@pytest.mark.parametrize("name", LAYERS)
def test_drawn_layers(name):
    drawn(name, LAYERS[name](), hold, QUICK, seed=0)


@pytest.mark.slow
@pytest.mark.parametrize("part", range(1, PARTS + 1))
@pytest.mark.parametrize("name", LAYERS)
def test_many_drawn_layers(name, part):
    drawn(name, LAYERS[name](), hold, FULL, seed=part)
