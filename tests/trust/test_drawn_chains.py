"""Poolings, and convolutions one after the other or side by side in one call, drawn: values against float64.

The bound of a chain follows its stages: what rounding added before a stage goes through the absolute weights, and each stage adds its own
terms; a ReLU adds nothing. Where results are stored in 16 bits, they may be after any stage.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import pytest
import torch
import torch.nn.functional as F
from hypothesis import strategies as st
from torch import Tensor
from trust.cases import DTYPES, PLAIN, lies, servers, sizes, windows
from trust.drawn import drawn

from sparsekern.ops import backends, joined_conv2d_packed, pack_grouped_conv2d, pool2d, root_conv2d, root_conv2d_packed, sequence2d

from ops import test_sequence2d as sequences
from ops.test_contract import STORE, TINY

QUICK, PARTS, FULL = {"pool2d": 30, "root_conv2d": 25, "joined_conv2d": 20, "sequence2d": 10}, 5, 150


@dataclass
class Drawn:
    """A call, its truth in float64 and how far it may be off; what was drawn, in words."""

    run: Callable[[], Tensor]
    truth: Tensor
    error: Tensor
    dtype: torch.dtype
    serving: dict
    about: str

    def __repr__(self) -> str:
        return f"{self.about} {self.dtype} {self.serving}"

    def _repr_pretty_(self, printer, cycle) -> None:  # what hypothesis asks
        printer.text(repr(self))


def rounding(dtype: torch.dtype) -> float:
    return 2.0**-53 if dtype == torch.float64 else 2.0**-24


def stage(y: Tensor, error: Tensor, weight: Tensor, bias: Tensor | None, window: tuple, dtype: torch.dtype, relu: bool,
          shortcut: Tensor | None = None) -> tuple[Tensor, Tensor]:  # fmt: skip
    """One convolution of ``y +- error``, perhaps with a sum and a ReLU behind it."""
    w, b = weight.double(), None if bias is None else bias.double()
    terms = (weight[0].numel() + 3) * rounding(dtype)
    size = F.conv2d(y.abs() + error, w.abs(), None if b is None else b.abs(), *window)
    error = F.conv2d(error, w.abs(), None, *window) + size * terms
    y = F.conv2d(y, w, b, *window)
    store = STORE.get(dtype, 0.0)
    if shortcut is not None:
        error = error + (size + shortcut.double().abs()) * (rounding(dtype) + store)
        y, size = y + shortcut.double(), size + shortcut.double().abs()
    return y.relu() if relu else y, error + (size + error) * store * 1.01 + TINY.get(dtype, 0.0)


def generator_of(draw, dtype: torch.dtype) -> Callable[..., Tensor]:
    generator = torch.Generator().manual_seed(draw(st.integers(0, 2**20)))
    return lambda *shape: torch.randn(*shape, generator=generator, dtype=torch.float64).to(dtype)


@st.composite
def pools(draw) -> Drawn:
    dtype = draw(st.sampled_from(DTYPES))
    random = generator_of(draw, dtype)
    size = draw(sizes(33, 1)), draw(sizes(33, 1))
    kernel = tuple(draw(st.integers(1, min(n, 5))) for n in size)
    stride = tuple(draw(st.integers(1, 4)) for _ in size)
    padding = tuple(draw(st.integers(0, k // 2)) for k in kernel)
    ceil, counted, way = draw(st.booleans()), draw(st.booleans()), draw(st.sampled_from(["max", "average"]))
    x = draw(lies(random(draw(st.sampled_from([0, 1, 1, 2, 5])), draw(st.sampled_from([1, 3, 7, 8, 16, 17, 64])), *size)))
    window = (kernel, stride, padding)
    if way == "max":
        truth, error = F.max_pool2d(x.double(), *window, 1, ceil), torch.zeros(())
    else:
        truth = F.avg_pool2d(x.double(), *window, ceil, counted)
        total = F.avg_pool2d(x.double().abs(), *window, ceil, counted)
        error = total * ((math.prod(kernel) + 2) * rounding(dtype) + STORE.get(dtype, 0.0) * 1.01) + TINY.get(dtype, 0.0)
    run = lambda: pool2d(x, kernel, stride, padding, ceil, way, counted)  # noqa: E731
    return Drawn(run, truth, error, dtype, draw(servers()), f"{list(x.shape)} {x.stride()} {window} ceil={ceil} {way} counted={counted}")


@st.composite
def roots(draw) -> Drawn:
    dtype = draw(st.sampled_from(DTYPES))
    random = generator_of(draw, dtype)
    groups = draw(st.sampled_from([1, 2, 3, 4, 8]))
    channels, filters = groups * draw(st.sampled_from([1, 2, 3, 6])), groups * draw(st.sampled_from([1, 2, 5, 12]))
    kernel = draw(st.sampled_from([(1, 1), (3, 3), (3, 3), (5, 5), (2, 3)]))
    size = draw(sizes(33, 1)), draw(sizes(33, 1))
    window = draw(windows(size, kernel, same=False))
    images = draw(st.sampled_from([0, 1, 1, 2, 3]))
    bias = lambda n: draw(lies(random(n), PLAIN)) if draw(st.booleans()) else None  # noqa: E731
    x = draw(lies(random(images, channels, *size)))
    weights, biases = [draw(lies(random(filters, channels // groups, *kernel)))], [bias(filters)]
    for _ in range(draw(st.sampled_from([1, 1, 2]))):
        outputs = draw(st.sampled_from([1, 3, 16, 20, 33]))
        weights.append(draw(lies(random(outputs, weights[-1].shape[0], 1, 1))))
        biases.append(bias(outputs))
    between, last = draw(st.sampled_from(["relu", "none"])), draw(st.sampled_from([None, "relu", "none"]))
    y, error = x.double(), torch.zeros_like(x, dtype=torch.float64)
    shortcut = None
    for i, (w, b) in enumerate(zip(weights, biases)):
        end = i == len(weights) - 1
        numbers = (window["stride"], window["padding"], window["dilation"], groups) if i == 0 else (1, 0, 1, 1)
        if end and draw(st.sampled_from([False, False, True])):
            shortcut = draw(lies(random(*F.conv2d(y, w.double(), None, *numbers).shape), PLAIN))
        relu = ((last or between) if end else between) == "relu"
        y, error = stage(y, error, w, b, numbers, dtype, relu, shortcut)
    rest = dict(**window, groups=groups, activation=between, last_activation=last, shortcut=shortcut)
    about = f"{list(x.shape)} {x.stride()} {[list(w.shape) for w in weights]} {rest | dict(shortcut=shortcut is not None)}"
    third = (weights[2], biases[2]) if len(weights) > 2 else (None, None)
    if dtype == torch.float64 or not backends.has_kernels("cpu") or draw(st.booleans()):
        run = lambda: root_conv2d(x, weights[0], biases[0], weights[1], biases[1], *third, **rest)  # noqa: E731
        return Drawn(run, y, error, dtype, draw(servers()), about)

    def packed() -> Tensor:  # for the processor that reads it
        first = pack_grouped_conv2d(weights[0], **window, groups=groups, images=(max(1, images), *size))
        packs = [first, *map(pack_grouped_conv2d, weights[1:]), *[None] * (3 - len(weights))]
        given = [t for pair in zip(packs, [*biases, None]) for t in pair]
        return root_conv2d_packed(x, *given, len(weights[-1]), kernel, **rest)

    return Drawn(packed, y, error, dtype, draw(servers()), about + " packed")


@st.composite
def joins(draw) -> Drawn:
    dtype = draw(st.sampled_from([torch.float32, torch.float32, torch.bfloat16, torch.float16]))
    random = generator_of(draw, dtype)
    size, images = (draw(sizes(23, 1)), draw(sizes(23, 1))), draw(st.sampled_from([0, 1, 1, 2, 3]))
    step = draw(st.sampled_from([1, 1, 1, 2]))
    xs, biases, weights, numbers, parts = [], [], [], [], []
    relu = draw(st.booleans())
    for _ in range(draw(st.integers(1, 4))):
        groups, taps, dilation = draw(st.sampled_from([1, 1, 2, 4])), draw(st.sampled_from([1, 1, 3, 5])), draw(st.sampled_from([1, 1, 2]))
        channels, filters = groups * draw(st.sampled_from([1, 3, 8])), groups * draw(st.sampled_from([1, 5, 16, 18]))
        padding = dilation * (taps // 2)
        xs.append(draw(lies(random(images, channels, *size))))
        weights.append(random(filters, channels // groups, taps, taps))
        biases.append(draw(lies(random(filters), PLAIN)))
        numbers.append((taps, taps, step, step, padding, padding, dilation, dilation, groups))
        x = xs[-1].double()
        window = (step, padding, dilation, groups)
        parts.append(stage(x, torch.zeros_like(x), weights[-1], biases[-1], window, dtype, relu))
    truth, error = (torch.cat(side, 1) for side in zip(*parts))

    def run() -> Tensor:
        packs = [pack_grouped_conv2d(w, n[2:4], n[4:6], n[6:8], n[8], images=(max(1, images), *size)) for w, n in zip(weights, numbers)]
        return joined_conv2d_packed(xs, packs, biases, [v for n in numbers for v in n], "relu" if relu else "none")

    about = f"{[(list(x.shape), x.stride()) for x in xs]} {numbers} relu={relu}"
    return Drawn(run, truth, error, dtype, draw(servers()), about)


@st.composite
def runs(draw) -> Drawn:
    stages, channels = [], 3
    for _ in range(draw(st.integers(1, 5))):
        kind = draw(st.sampled_from(["conv", "conv", "sparse", "pool"]))
        taps, step = draw(st.sampled_from([1, 3, 5])), draw(st.sampled_from([1, 1, 1, 2]))
        relu, has_bias = draw(st.booleans()), draw(st.booleans())
        if kind == "pool":
            way = draw(st.sampled_from([sequences.MAX, sequences.AVERAGE, sequences.AVERAGE_COUNTING_PADDING]))
            stages.append(("pool", way, draw(st.booleans()), 3, step, draw(st.sampled_from([0, 1]))))
        elif kind == "conv":
            groups = draw(st.sampled_from([g for g in (1, 2, 3, 4) if channels % g == 0]))
            filters = groups * draw(st.sampled_from([1, 4, 8, 11]))
            stages.append(("conv", channels, filters, taps, step, taps // 2, 1, groups, has_bias, relu, False))
        else:
            block = draw(st.sampled_from([(1, channels, 1), (1, 1, 1), (4, 1, 1)]))
            filters = block[0] * draw(st.sampled_from([1, 4, 9]))
            stages.append(("sparse", channels, filters, taps, step, taps // 2, 1, block, has_bias, relu))
        channels = channels if kind == "pool" else filters
    size = draw(st.sampled_from([(24, 20), (17, 40), (33, 33)]))  # of which five steps of two leave a pixel, and poolings a window
    random = generator_of(draw, torch.float32)
    x, together = draw(lies(random(draw(st.sampled_from([0, 1, 2, 5])), 3, *size))), draw(st.sampled_from([0, 1, 2]))
    kept = [s for i, s in enumerate(stages) if s[0] != "pool" or i < 2]  # at most two of them make the maps small
    if kept and kept != stages:
        stages = kept
    serving = draw(servers())
    built: list = []

    def build() -> list:
        if not built:
            sequences.SEQUENCES["drawn"] = stages
            best = backends.providers()[-1] if serving["provider"] == "reference" else serving["provider"]
            with backends.use(best):  # packs are for the processor that made them
                built.extend(sequences.build("drawn"))
        return built

    tensors, numbers, layers = build()
    truth, error = sequences.truth_of(x, layers)
    run = lambda: sequence2d(x, tensors, numbers, together)  # noqa: E731
    return Drawn(run, truth, error * 1.01 + 1e-30, torch.float32, serving, f"{list(x.shape)} {x.stride()} {stages} together={together}")


CHAINS = {"pool2d": pools, "root_conv2d": roots, "joined_conv2d": joins, "sequence2d": runs}


def hold(case: Drawn) -> None:
    torch.set_num_threads(case.serving["threads"])
    with backends.use(case.serving["provider"], dense=case.serving["dense"]):
        out = case.run()
    assert out.dtype == case.dtype and out.shape == case.truth.shape
    off = (out.double() - case.truth).abs()
    assert bool((off <= case.error).all()), f"off by {off.max()}, {(off - case.error).max()} over the bound"


NAMES = [name for name in CHAINS if backends.has_kernels("cpu") or name in ("pool2d", "root_conv2d")]  # the others run on packs alone


@pytest.mark.parametrize("name", NAMES)
def test_drawn_chains(name):
    drawn(name, CHAINS[name](), hold, QUICK[name], seed=0)


@pytest.mark.slow
@pytest.mark.parametrize("part", range(1, PARTS + 1))
@pytest.mark.parametrize("name", NAMES)
def test_many_drawn_chains(name, part):
    drawn(name, CHAINS[name](), hold, FULL, seed=part)
