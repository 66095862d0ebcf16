"""Every argument of every public function, given everything that it is not: a sentence of ours or a result, whoever serves.

``CALLS`` holds one good call of each function; each argument in turn is replaced by each of ``WRONG``. What comes back is a result (1.5 is
a good slope and no good size) or ``<op>: <arg> must be <rule>; got <value>``, the same from every provider; never an exception of torch's
or Python's, a hang, or the end of the process. The exact sentences of single calls are in bad_calls.txt and in the cards of the ops.
"""

from __future__ import annotations

import copy
import math
import re
import resource
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from trust.tally import tally

from sparsekern import nn as layers
from sparsekern import ops
from sparsekern.ops import backends

WRONG: dict[str, Any] = {
    "None": None, "'x'": "x", "-1": -1, "0": 0, "1.5": 1.5, "nan": math.nan, "inf": math.inf, "2**31": 2**31, "2**63 - 1": 2**63 - 1,
    "2**70": 2**70, "-2**70": -(2**70), "[]": [], "(1, 2, 3)": (1, 2, 3), "(0, 0)": (0, 0), "('a', 'b')": ("a", "b"),
    "(1, 2**40)": (1, 2**40), "{}": {}, "object()": object(), "[None]": [None], "a type": int, "ones(3)": torch.ones(3),
    "integers": torch.ones(2, 2, dtype=torch.int64), "no memory": torch.ones(2, 8, device="meta"), "sparse": torch.eye(4).to_sparse(),
    "nothing": torch.empty(0), "6 dimensions": torch.ones(2, 1, 1, 1, 1, 1), "int32": torch.tensor([[-5, 2**31 - 1, 0]], dtype=torch.int32),
}  # fmt: skip
#: Handed to torch as they are, which answers for them.
TORCHS = ("device",)
SECONDS, MEMORY = 20, 8 << 30
SENTENCE = re.compile(r"[A-Za-z_0-9]+: [\w\[\], .]+ must [^;]+(; got |$)", re.DOTALL)


def _operators() -> dict[str, tuple[Callable, dict]]:
    ones = torch.ones
    layer = layers.SparseLinear(8, 4, fan_in=2, seed=0)
    masked = layers.StochasticConv2d(4, 6, 3, density=0.5, seed=0, granularity="synapse")
    x, image, index, weight, filters = ones(2, 8), ones(1, 4, 5, 5), layer.index, ones(4, 2), ones(8, 2, 3, 3)
    window = dict(stride=1, padding=0, dilation=1)
    grouped = dict(x=image, weight=filters, bias=ones(8), **window, groups=2, activation="none", shortcut=None)
    root = dict(x=image, weight1=filters, bias1=ones(8), weight2=ones(3, 8, 1, 1), bias2=ones(3), weight3=ones(2, 3, 1, 1), bias3=ones(2))
    root |= dict(**window, groups=2, activation="relu", last_activation=None, shortcut=None)
    found = {
        "sparse_linear": (ops.sparse_linear, dict(x=x, weight=weight, index=index, bias=ones(4), plan=None)),
        "grouped_conv2d": (ops.grouped_conv2d, grouped),
        "grouped_conv2d with an end": (ops.grouped_conv2d, grouped | dict(shortcut=ones(1, 8, 3, 3), activation="relu")),
        "grouped_conv2d, differentiated": (ops.grouped_conv2d, grouped | dict(x=image.clone().requires_grad_())),
        "grouped_mm": (ops.grouped_mm, dict(a=ones(3, 2, 4), b=ones(3, 4, 5), offsets=None)),
        "grouped_mm, ragged": (ops.grouped_mm, dict(a=ones(5, 4), b=ones(3, 4, 5), offsets=torch.tensor([1, 3, 5], dtype=torch.int32))),
        "explain_grouped_mm": (ops.explain_grouped_mm, dict(a=ones(3, 2, 4), b=ones(3, 4, 5))),
        "pool2d": (ops.pool2d, dict(x=image, kernel_size=3, stride=1, padding=1, ceil_mode=False, pooling="max", count_include_pad=True)),
        "root_conv2d": (ops.root_conv2d, root),
        "sparse_conv2d": (ops.sparse_conv2d, dict(x=image, weight=masked.weight.detach(), indptr=masked.indptr, index=masked.index,
                                                  kernel_size=3, bias=ones(6), **window, plan=None)),
        "plan_sparse_conv2d": (ops.plan_sparse_conv2d, dict(indptr=masked.indptr, index=masked.index, channels=4, kernel_size=(3, 3),
                                                            block=(1, 1, 1))),
        "plan_sparse_linear": (ops.plan_sparse_linear, dict(index=index, in_features=8, block_size=(1, 1))),
        "serves": (backends.serves, dict(op="sparse_linear", device="cpu")),
    }  # fmt: skip
    if not backends.has_kernels("cpu"):
        return found
    pack, packed, last = ops.pack_sparse_linear(weight, index, 8), ops.pack_grouped_conv2d(filters, groups=2), ones(3, 8, 1, 1)
    rooted = {k.replace("weight", "packed"): v for k, v in root.items()} | dict(out_channels=3, kernel_size=3, packed3=None, bias3=None)
    return found | {
        "pack_sparse_linear": (ops.pack_sparse_linear, dict(weight=weight, index=index, in_features=8)),
        "sparse_linear_packed": (ops.sparse_linear_packed, dict(x=x, packed=pack, bias=ones(4), out_features=4, kept=8)),
        "pack_grouped_conv2d": (ops.pack_grouped_conv2d, dict(weight=filters, **window, groups=2, images=(1, 28, 28))),
        "grouped_conv2d_packed": (ops.grouped_conv2d_packed, dict(x=image, packed=packed, bias=ones(8), out_channels=8, kernel_size=3,
                                                                  **window, groups=2, activation="none", shortcut=None)),
        "root_conv2d_packed": (ops.root_conv2d_packed, rooted | dict(packed1=packed, packed2=ops.pack_grouped_conv2d(last))),
        "joined_conv2d_packed": (ops.joined_conv2d_packed, dict(xs=[image], packed=[packed], biases=[ones(8)], activation="none",
                                                                windows=[3, 3, 1, 1, 0, 0, 1, 1, 2])),
    }  # fmt: skip


CALLS = {"operators": _operators}


def answer(call: Callable, arguments: dict) -> str | None:
    """None for a result, else what was said; memory that cannot be had is an answer for sizes that are only large."""
    try:
        call(**arguments)
    except (ValueError, TypeError, FileNotFoundError) as error:
        return f"{type(error).__name__}: {error}"
    except (RuntimeError, MemoryError) as error:
        if isinstance(error, MemoryError) or re.search(
            "can't allocate memory|aoti_torch_empty_strided|could not create a memory", str(error)
        ):
            return None
        raise
    return None


def too_long(*_: Any) -> None:
    raise TimeoutError(f"of {SECONDS} seconds")


@pytest.fixture
def little_memory_and_time():
    used = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
    before, handler = resource.getrlimit(resource.RLIMIT_AS), signal.signal(signal.SIGALRM, too_long)
    resource.setrlimit(resource.RLIMIT_AS, (used + MEMORY, before[1]))
    yield
    resource.setrlimit(resource.RLIMIT_AS, before)
    signal.signal(signal.SIGALRM, handler)


@pytest.mark.usefixtures("little_memory_and_time")
@pytest.mark.parametrize("kind", CALLS)
def test_everything_that_an_argument_is_not(kind):
    given, tried, wrong = CALLS[kind](), 0, []
    providers = ["reference", backends.providers()[-1]] if kind in ("operators", "layers") else [backends.providers()[-1]]
    for name, (call, good) in given.items():
        call(**good)
        for arg in (arg for arg in good if arg not in TORCHS):
            for what, value in WRONG.items():
                said = set()
                for provider in providers:
                    tried += 1
                    signal.alarm(SECONDS)
                    try:
                        with backends.use(provider):
                            found = answer(call, copy.copy(good) | {arg: value})
                        if found and not SENTENCE.match(found.partition(": ")[2]):
                            wrong.append(f"{name}({arg}={what}), {provider}: {found}")
                        said.add(found)
                    except Exception as error:
                        wrong.append(f"{name}({arg}={what}), {provider}: {type(error).__name__}: {error}"[:300])
                    finally:
                        signal.alarm(0)
                if len(said) > 1:
                    wrong.append(f"{name}({arg}={what}): one provider says {said.pop()!r}, another {said.pop()!r}")
    tally(f"wrong arguments, {kind}", tried)
    assert not wrong, f"{len(wrong)} of {tried}:\n" + "\n".join(wrong[:60])


# ---- what was found so, by name

FILTERS, IMAGE = torch.ones(8, 2, 3, 3), torch.arange(100.0).reshape(1, 4, 5, 5)


def convolutions() -> dict[str, Callable[..., torch.Tensor]]:
    masked = layers.StochasticConv2d(4, 6, 3, density=0.5, seed=0, granularity="synapse")
    tables = masked.weight.detach(), masked.indptr, masked.index
    found: dict[str, Callable[..., torch.Tensor]] = {
        "grouped_conv2d": lambda **window: ops.grouped_conv2d(IMAGE, FILTERS, groups=2, **window),
        "sparse_conv2d": lambda **window: ops.sparse_conv2d(IMAGE, *tables, 3, **window),
        "root_conv2d": lambda **window: ops.root_conv2d(IMAGE, FILTERS, None, torch.ones(3, 8, 1, 1), groups=2, **window),
    }
    if backends.has_kernels("cpu"):
        packed = ops.pack_grouped_conv2d(FILTERS, groups=2)
        found["grouped_conv2d_packed"] = lambda **window: ops.grouped_conv2d_packed(IMAGE, packed, None, 8, 3, groups=2, **window)
    return found


PROVIDERS = pytest.mark.parametrize("provider", ["reference", backends.providers()[-1]])


@PROVIDERS
@pytest.mark.parametrize("arg", ["stride", "padding", "dilation"])
def test_numbers_of_a_window_whose_sums_leave_64_bits(arg, provider):
    """They sent kernels far outside of the image: 2 * padding and dilation * (kernel - 1) came out small, or below 0."""
    for name, call in convolutions().items():
        for value in (2**31, 2**40, 2**62, 2**63 - 3, 2**63 - 1):
            with backends.use(provider), pytest.raises(ValueError) as raised:
                call(**{arg: value})
            assert str(raised.value) == f"{name}: {arg} must be below 2^31; got {(value, value)}"
    for value in (2**62, 2**63 - 1):
        with backends.use(provider), pytest.raises(ValueError, match=r"pool2d: padding must be 0 to half of the window \(3, 3\)"):
            ops.pool2d(IMAGE, 3, padding=value)


@PROVIDERS
def test_a_stride_beyond_the_image_is_one_window(provider):
    """Kernels made room for as many phases as the stride has; layers go ways of their own."""
    dense = "never" if backends.native and provider != "reference" else "auto"
    for name, call in convolutions().items():
        with backends.use(provider, dense=dense):
            for stride in (7, 2**20, 2**31 - 1, (2, 2**31 - 1)):
                rows = 2 if isinstance(stride, tuple) else 1
                torch.testing.assert_close(call(stride=stride), call()[:, :, : 2 * rows : 2, :1], msg=f"{name} {stride}")
    for layer in (layers.GroupedConv2d(4, 8, 3, 2**30, groups=2), layers.StochasticConv2d(4, 6, 3, 2**30, density=0.5, seed=0)):
        near = copy.deepcopy(layer)
        near.stride = (5, 5)
        for last in (torch.contiguous_format, torch.channels_last):
            with backends.use(provider, dense=dense):
                gradients = [torch.autograd.grad(each(IMAGE.to(memory_format=last)).sum(), each.weight)[0] for each in (layer, near)]
                with torch.no_grad():
                    torch.testing.assert_close(layer(IMAGE.to(memory_format=last)), near(IMAGE.to(memory_format=last)))
            torch.testing.assert_close(*gradients)


@pytest.mark.skipif(not backends.has_kernels("cpu"), reason="built without kernels")
def test_a_window_wider_than_the_images_it_is_packed_for():
    layer = layers.GroupedConv2d(4, 8, 3, dilation=20, groups=2).requires_grad_(False)
    x = torch.randn(1, 4, 45, 45)
    torch.testing.assert_close(copy.deepcopy(layer).pack()(x), layer(x))
