"""Strategies: any call that the contract of an op allows."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from hypothesis import strategies as st
from trust.lay import LAYS

from sparsekern.ops import backends

DTYPES = [torch.float32, torch.float32, torch.float64, torch.bfloat16, torch.float16]
SIZES = [0, 1, 2, 3, 5, 7, 11, 13, 15, 16, 17, 23, 31, 32, 33, 37, 48, 61, 64, 65, 97, 127, 128, 131, 257, 521, 1031]
BLOCKS = [(1, 1)] * 6 + [(4, 1), (16, 1), (20, 1), (1, 3), (5, 3), (2, 2), (8, 8), (16, 16), (32, 32), (48, 16), (7, 1)]
#: Of a case: elements of the dense matrix, and multiply-adds.
MOST_WEIGHTS, MOST_WORK = 150_000, 3_000_000


@dataclass
class Case:
    """A call of a public function; the values follow from ``seed``, so that a case is a few small numbers."""

    inputs: dict[str, Any]
    dtype: torch.dtype
    provider: str
    dense: str
    threads: int
    planned: bool = False
    packed: bool = False
    gradient: str = "contiguous"  # how the gradient of the result lies in memory
    wanted: str = "all"  # or the one input whose gradient is asked for

    def __repr__(self) -> str:
        tensors = {k: f"{list(v.shape)} {v.stride()}" if isinstance(v, torch.Tensor) else v for k, v in self.inputs.items()}
        plan = " planned" * self.planned + " packed" * self.packed
        asked = f"gradient of {self.wanted}, coming in {self.gradient}"
        return f"{tensors} {self.dtype} {self.provider} {self.dense} {self.threads} threads{plan} {asked}"

    def _repr_pretty_(self, printer, cycle) -> None:  # what hypothesis asks
        printer.text(repr(self))

    def serving(self):
        return backends.use(self.provider, dense=self.dense)


def sizes(most: int, least: int = 0):
    return st.sampled_from([n for n in SIZES if least <= n <= most] or [least])


@st.composite
def servers(draw) -> dict[str, Any]:
    """Who serves, with how many threads."""
    provider = draw(st.sampled_from(backends.providers()[1:] * 3 + ["reference"]))
    dense = draw(st.sampled_from(["never", "never", "auto", "always"])) if backends.native and provider != "reference" else "auto"
    return {"provider": provider, "dense": dense, "threads": draw(st.sampled_from([1, 1, 1, 1, 1, 1, 2, 3]))}


@st.composite
def backward(draw, inputs: dict[str, Any]) -> dict[str, str]:
    """Which gradients are asked for, and how the one they are made of lies in memory; a ReLU's kink must stay where it was put."""
    differentiable = [k for k, v in inputs.items() if isinstance(v, torch.Tensor) and v.is_floating_point()]
    ways = SAME if inputs.get("activation") == "relu" else tuple(LAYS)
    return {"gradient": draw(st.sampled_from(ways)), "wanted": draw(st.sampled_from(["all", "all", "all", *differentiable]))}


@st.composite
def lies(draw, t: torch.Tensor, ways=tuple(LAYS)) -> torch.Tensor:
    return LAYS[draw(st.sampled_from(ways))](t)


#: Where the same values must be kept.
SAME = tuple(name for name in LAYS if name not in ("flipped", "expanded"))
PLAIN = ("contiguous", "contiguous", "offset 1", "off by a byte", "wide rows", "every second")


def _random(draw, dtype):
    generator = torch.Generator().manual_seed(draw(st.integers(0, 2**20)))
    return lambda *size: torch.randn(*size, generator=generator, dtype=torch.float64).to(dtype), generator


def tables(rows: int, blocks: int, fan_in: int, generator, balanced: bool = False) -> torch.Tensor:
    """``[rows, fan_in]`` int32: each row rising; ``balanced``: as many of each window of 32 in every row."""
    if rows == 0:
        return torch.empty(0, fan_in, dtype=torch.int32)
    strength = torch.rand(rows, blocks, generator=generator)
    if balanced:
        first = strength[0].topk(fan_in).indices
        parts = []
        for begin in range(0, blocks, 32):
            count = int(((first >= begin) & (first < begin + 32)).sum())
            parts.append(strength[:, begin : begin + 32].topk(count, dim=1).indices.sort(dim=1).values + begin)
        return torch.cat(parts, dim=1).int()
    return strength.topk(fan_in, dim=1).indices.sort(dim=1).values.int()


@st.composite
def linear_cases(draw) -> Case:
    dtype = draw(st.sampled_from(DTYPES))
    random, generator = _random(draw, dtype)
    block_out, block_in = block = draw(st.sampled_from(BLOCKS))
    in_blocks = draw(sizes(1031 // block_in, 1))
    out_blocks = draw(sizes(min(521, MOST_WEIGHTS // (in_blocks * block_in * block_out) + 1)))
    fan_in = max(1, round(draw(st.sampled_from([0.01, 0.1, 0.3, 0.5, 0.7, 0.9, 1.0])) * in_blocks))
    balanced = block == (1, 1) and draw(st.sampled_from([False, False, True]))
    index = tables(out_blocks, in_blocks, fan_in, generator, balanced)
    work = max(1, out_blocks * block_out * in_blocks * block_in)
    rows = draw(sizes(min(257, MOST_WORK // work + 1)))
    lead = draw(st.sampled_from([(rows,), (rows,), (rows,), (), (rows, 1), (2, rows), (1, rows, 2)]))
    condensed = block == (1, 1) and draw(st.sampled_from([True, True, True, False]))
    weight = random(out_blocks, fan_in) if condensed else random(out_blocks, fan_in, *block)
    bias = random(out_blocks * block_out) if draw(st.booleans()) else None
    inputs = {
        "x": draw(lies(random(*lead, in_blocks * block_in))),
        "weight": draw(lies(weight)),
        "bias": None if bias is None else draw(lies(bias, PLAIN)),
        "index": draw(lies(index, ("contiguous", "contiguous", "wide rows", "last dimension first", "off by a byte"))),
    }
    planned, packed = draw(st.booleans()), draw(st.sampled_from([False, False, True]))
    return Case(inputs, dtype, planned=planned, packed=packed, **draw(servers()), **draw(backward(inputs)))


@st.composite
def windows(draw, size: tuple[int, int], kernel: tuple[int, int], same: bool = True) -> dict[str, Any] | None:
    """Stride, padding and dilation under which the kernel fits."""
    pair = lambda values: draw(st.one_of(st.sampled_from(values), st.tuples(st.sampled_from(values), st.sampled_from(values))))  # noqa: E731
    both = lambda v: v if isinstance(v, tuple) else (v, v)  # noqa: E731
    dilation = pair([1, 1, 1, 2, 3])
    if same and draw(st.sampled_from([False] * 9 + [True])):
        return {"padding": "same", "dilation": dilation}
    padding = pair([0, 1, 1, 2, 3])
    reach = [d * (k - 1) + 1 for d, k in zip(both(dilation), kernel)]
    padding = tuple(max(p, -(-(r - s) // 2)) for p, r, s in zip(both(padding), reach, size))
    return {"stride": pair([1, 1, 1, 2, 3]), "padding": padding, "dilation": dilation}


@st.composite
def conv_cases(draw) -> Case:
    dtype = draw(st.sampled_from(DTYPES))
    random, _ = _random(draw, dtype)
    groups = draw(st.sampled_from([1, 2, 3, 4, 7, 8, 16, 24]))
    own, filters = draw(st.sampled_from([1, 1, 2, 3, 4, 6, 8, 12, 16, 17])), draw(st.sampled_from([1, 1, 2, 3, 4, 6, 8, 12, 16, 19]))
    kernel = draw(st.sampled_from([(1, 1), (1, 1), (3, 3), (3, 3), (3, 3), (5, 5), (1, 3), (2, 2), (4, 1), (7, 7)]))
    size = draw(sizes(33, 1)), draw(sizes(33, 1))
    images = draw(st.sampled_from([0, 1, 1, 1, 2, 3, 5, 17]))
    per_image = size[0] * size[1] * groups * own * filters * kernel[0] * kernel[1]
    images = min(images, max(1, MOST_WORK // per_image))
    window = draw(windows(size, kernel))
    x, weight = random(images, groups * own, *size), random(groups * filters, own, *kernel)
    if images == 1 and draw(st.sampled_from([False, False, True])):
        x = x[0]
    inputs = {"x": draw(lies(x)), "weight": draw(lies(weight)), "bias": None, "groups": groups, **window}
    if draw(st.booleans()):
        inputs["bias"] = draw(lies(random(groups * filters), PLAIN))
    if draw(st.sampled_from([False, False, True])):
        with backends.use("reference"):
            from sparsekern.ops import grouped_conv2d

            shape = grouped_conv2d(**inputs).shape
        inputs["shortcut"] = draw(lies(random(*shape), SAME))
    if draw(st.sampled_from([False, False, True])):
        inputs["activation"] = "relu"
    packed = window["padding"] != "same" and draw(st.sampled_from([False, False, True]))
    return Case(inputs, dtype, packed=packed, **draw(servers()), **draw(backward(inputs)))


@st.composite
def masked_cases(draw) -> Case:
    dtype = draw(st.sampled_from(DTYPES))
    random, generator = _random(draw, dtype)
    kernel = draw(st.sampled_from([(1, 1), (3, 3), (3, 3), (3, 3), (5, 5), (2, 3), (1, 7)]))
    taps = kernel[0] * kernel[1]
    block_in = draw(st.sampled_from([1, 1, 3, 16, 17, 20]))
    channels = block_in * draw(st.sampled_from([1, 1, 2, 3, 5] if block_in > 1 else [1, 2, 3, 7, 16, 20]))
    block_out = draw(st.sampled_from([1, 1, 1, 2, 4, 5, 16]))
    out_blocks = draw(st.sampled_from([1, 2, 3, 5, 7, 13]))
    block_taps = draw(st.sampled_from([1, 1, taps]))
    size = draw(sizes(23, 1)), draw(sizes(37, 1))
    codes = channels // block_in * (taps // block_taps)
    density = draw(st.sampled_from([0.0, 0.02, 0.07, 0.25, 0.5, 0.9, 1.0]))
    keep = (torch.rand(out_blocks * codes, generator=generator) < density).nonzero().flatten()
    indptr = torch.searchsorted(keep, torch.arange(out_blocks + 1) * codes).int()
    images = min(
        draw(st.sampled_from([0, 1, 1, 2, 3])), max(1, MOST_WORK // (size[0] * size[1] * out_blocks * block_out * channels * taps))
    )
    x = random(images, channels, *size)
    if images == 1 and draw(st.sampled_from([False, False, True])):
        x = x[0]
    inputs = {
        "x": draw(lies(x)),
        "weight": draw(lies(random(len(keep), block_out, block_in, block_taps))),
        "indptr": draw(lies(indptr, ("contiguous", "every second", "off by a byte"))),
        "index": draw(lies((keep % codes).int(), ("contiguous", "every second", "off by a byte"))),
        "kernel_size": kernel,
        "bias": draw(lies(random(out_blocks * block_out), PLAIN)) if draw(st.booleans()) else None,
        **draw(windows(size, kernel, same=False)),
    }
    return Case(inputs, dtype, planned=draw(st.booleans()), **draw(servers()), **draw(backward(inputs)))


@st.composite
def product_cases(draw) -> Case:
    dtype = draw(st.sampled_from(DTYPES))
    random, _ = _random(draw, dtype)
    groups, k, n = draw(sizes(17)), draw(sizes(64, 1)), draw(sizes(64))
    if draw(st.booleans()):
        inputs = {"a": draw(lies(random(groups, draw(sizes(33)), k))), "b": draw(lies(random(groups, k, n)))}
    else:
        rows = [draw(sizes(17)) for _ in range(groups)]
        ends = torch.tensor(rows, dtype=torch.int32).cumsum(0, dtype=torch.int32)
        inputs = {"a": draw(lies(random(sum(rows), k))), "b": draw(lies(random(groups, k, n))), "offsets": ends}
    provider = draw(st.sampled_from(["reference", backends.providers()[-1]]))
    return Case(inputs, dtype, provider=provider, dense="auto", threads=1, **draw(backward(inputs)))


CASES = {"sparse_linear": linear_cases, "grouped_conv2d": conv_cases, "sparse_conv2d": masked_cases, "grouped_mm": product_cases}
