"""The Triton twin of root_conv2d against float64, where a GPU's calls would reach it."""

from __future__ import annotations

import importlib

import pytest
import torch

pytest.importorskip("triton", reason="triton is not installed: its twins are not tested")

import test_root_conv2d as root

from sparsekern.ops import backends, cuda_root_conv2d, root_conv2d
from sparsekern.ops.triton import kernels, twin

#: Of the op's own samples those with two convolutions: groups of odd widths, more outputs than a program makes.
SAMPLES = ("root", "strided", "empty", "odd", "wide", "nchw", "sliced")
QUICK = [("odd", torch.float32), ("odd", torch.bfloat16), ("wide", torch.float32), ("empty", torch.float32)]
ALL = [(name, dtype) for name in SAMPLES for dtype in (torch.float32, torch.bfloat16, torch.float16)]
CASES = [
    pytest.param(*case, id=f"{case[0]}-{str(case[1])[6:]}", marks=[] if case in QUICK else pytest.mark.slow)  # interpreted, one by one
    for case in ALL
]
pytestmark = pytest.mark.skipif(backends.native is None, reason="the policy is set through _native")


@pytest.fixture
def served(monkeypatch):
    """Calls of the reference are sent where a GPU's would go; the list of what the twin was asked for."""
    asked, forward = [], twin("root_conv2d").forward
    monkeypatch.setattr(twin("root_conv2d"), "forward", lambda *args: asked.append(args[0].shape) or forward(*args))
    monkeypatch.setattr(
        importlib.import_module("sparsekern.ops.root_conv2d"), "reference", cuda_root_conv2d.routes(kernels())["root_conv2d"]
    )
    with backends.use("reference", dense="never"):
        yield asked


@pytest.mark.parametrize("name, dtype", CASES)
def test_values(name, dtype, served):
    root.hold_to_truth(name, dtype, cut=dtype == torch.bfloat16)  # the interpreter cuts
    assert len(served) == 2


def test_more_than_two_convolutions_go_call_by_call(served):
    inputs = root.at("plain_end", torch.float32)
    wide = {k: v.double() if isinstance(v, torch.Tensor) else v for k, v in inputs.items()}
    torch.testing.assert_close(root_conv2d(**inputs).double(), root.one_by_one(**wide), rtol=1e-5, atol=1e-4)
    assert not served


def test_only_the_first_axis_of_a_grid_is_long(monkeypatch):
    grids = []
    monkeypatch.setattr(twin("root_conv2d"), "run", lambda kernel, grid, *_, **options: grids.append(grid))
    x, first, second = torch.zeros(70000, 1, 1, 32), torch.zeros(1, 1, 1, 1), torch.zeros(300, 1, 1, 1)
    twin("root_conv2d").forward(x.expand(70000, 1, 1, 32), first, None, second, None, 1, 1, 0, 0, 1, 1, 1, True, True)
    assert grids == [(210000,)]
