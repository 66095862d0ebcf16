"""What `bench/gpu.py` does with Triton's twins, under the interpreter: its checks, and the calls that it times."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

pytest.importorskip("triton", reason="triton is not installed: its twins are not tested")

from sparsekern.ops import backends

BENCH = Path(__file__).resolve().parents[2] / "bench"
pytestmark = pytest.mark.filterwarnings("ignore:Warning only once for all operators:UserWarning")  # kernels replaced, as meant


@pytest.mark.skipif(backends.native is None, reason="the policy is set through _native")
@pytest.mark.parametrize("op, sample", [("root_conv2d", "wide"), ("grouped_mm", "odd_batch")])
def test_twins_are_held_to_float64(op, sample, monkeypatch):
    monkeypatch.syspath_prepend(str(BENCH))
    import gpu_checks

    kernels = gpu_checks.kernels_of("triton", True)
    gpu_checks.check("triton", op, sample, "bfloat16", kernels, "cpu")
    assert kernels.called == {"root_conv2d": {"root_conv2d"}, "grouped_mm": {"grouped_mm", "grouped_mm_grad_a", "grouped_mm_grad_b"}}[op]


@pytest.mark.parametrize("name", ["convolution", "linear", "masked", "root", "multiplication"])
def test_timed_calls_of_twins_are_right(name, monkeypatch):
    monkeypatch.syspath_prepend(str(BENCH))
    import gpu
    import gpu_cases

    shapes = {make.__name__: shapes for make, shapes in gpu_cases.kinds(True)}[name]
    setup = getattr(gpu_cases, name)(shapes[-1], torch.bfloat16, False)
    assert gpu.error_of((setup.providers["triton"](0)(),), setup.truth()) < 3e-2
