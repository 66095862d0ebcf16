"""Every kernel of the twins compiles for sm_80 and sm_90, spills nothing, and where it should multiplies on tensor cores."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

pytest.importorskip("triton", reason="triton is not installed: its twins are not compiled")

#: Samples that together launch every kernel.
SAMPLES = ("sparse_linear", "one", "sparse_linear", "feature_major", "sparse_linear", "block", "grouped_conv2d", "odd_batch",
           "sparse_conv2d", "shared", "grouped_mm", "odd_batch", "root_conv2d", "wide")  # fmt: skip
KERNELS = {
    "sparse_linear": {"_gather_row": 0, "_gather_rows": 0, "_scatter_rows": 0, "_pairs": 0, "_blocks": 1, "_blocks_grad_x": 1,
                      "_blocks_grad_weight": 1},
    "grouped_conv2d": {"_forward": 1, "_grad_x": 1, "_grad_weight": 1},
    "sparse_conv2d": {"_forward": 0, "_grad_x": 0, "_grad_weight": 0},
    "grouped_mm": {"_rows": 1, "_columns": 1},
    "root_conv2d": {"_root": 1},
}  # fmt: skip


def targets():
    for capability in (80, 90):
        for dtype in ("bfloat16", "float16", "float32"):
            slow = (capability, dtype) not in ((90, "bfloat16"),)
            yield pytest.param(capability, dtype, id=f"sm_{capability}-{dtype}", marks=[pytest.mark.slow] if slow else [])


@pytest.mark.parametrize("capability, dtype", list(targets()))
def test_kernels_compile(capability, dtype):
    environment = {name: value for name, value in os.environ.items() if name != "TRITON_INTERPRET"}
    command = [sys.executable, Path(__file__).with_name("aot.py"), str(capability), dtype, *SAMPLES]
    done = subprocess.run(command, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-3000:]
    rows = {row["kernel"]: row for row in map(json.loads, done.stdout.splitlines())}
    assert set(rows) == {f"{op}.{name}" for op, names in KERNELS.items() for name in names}
    for op, names in KERNELS.items():
        for name, on_tensor_cores in names.items():
            row = rows[f"{op}.{name}"]
            assert row["spilled"] == 0, row
            assert (row["matrix"] > 0) == (on_tensor_cores and dtype != "float32"), row  # strict float32 has no tensor cores
