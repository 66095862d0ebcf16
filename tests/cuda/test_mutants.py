"""Alters the kernels' source, one line at a time, and demands that a short run in the emulator notices.

A test that passes on right kernels proves little; each mutant here is a bug that was made, or could be. `expected` is a part of
what the run must print: the rule that was broken, or `wrong value` where only the numbers can tell.
"""

from __future__ import annotations

import os
import shutil
import subprocess
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent.parent
CXX = os.environ.get("CXX", "g++")
pytestmark = pytest.mark.skipif(not shutil.which(CXX), reason="no C++ compiler")

#: name: (file, what stands there, what is put in its place, what the run must print)
MUTANTS = {
    "as it stands": ("grouped_conv2d.cuh", "", "", "24 cases, 0 failures"),
    "no barrier before the product": ("grouped_conv2d.cuh", "__syncthreads();\n    if (item.round == 0)", "if (item.round == 0)", "race"),
    "no barrier before the refill": (
        "grouped_conv2d.cuh",
        "__syncthreads();  // nobody refills a stage that is still read",
        "",
        "race|is being copied to",
    ),
    "waits for one copy too few": ("grouped_conv2d.cuh", "copy_async_wait<1>()", "copy_async_wait<2>()", "is being copied to"),
    "copies left at the end": (
        "grouped_conv2d.cuh",
        "  copy_async_wait<0>();\n}\n",
        "  fetched = {0, 0};\n  fetch();\n}\n",
        "not waited for",
    ),
    "barrier for some warps": (
        "grouped_conv2d.cuh",
        "__syncthreads();  // nobody refills a stage that is still read",
        "if (warp < 3) __syncthreads();",
        "divergent|deadlock|race",
    ),
    "matrix step for some lanes": (
        "grouped_conv2d.cuh",
        "ldmatrix_x4<false>(raw, row[m] + offset);",
        "if (lane < 31) ldmatrix_x4<false>(raw, row[m] + offset);",
        "divergent|deadlock",
    ),
    "halo: right edge": ("conv_job.h", "p.x < job.source_w", "p.x <= job.source_w", "wrong value|are outside"),
    "halo: left edge": ("conv_job.h", "p.x >= 0", "p.x >= -1", "wrong value|are outside"),
    "halo: last image": ("conv_job.h", "p.inside = p.n < job.N && p.y >= 0", "p.inside = p.n <= job.N && p.y >= 0", "are outside"),
    "halo: a column too few": (
        "conv_plan.h",
        "job.x.source_step() + span_x + 1",
        "job.x.source_step() + span_x",
        "wrong value|is being copied to|race|are outside",
    ),
    "writes a column too many": ("conv_job.h", "p.x < job.target_w", "p.x <= job.target_w", "twice|are outside|wrong value"),
    "writes a channel too many": ("grouped_conv2d.cuh", "if (channel + q < channels) store(", "store(", "twice|are outside|wrong value"),
    "reads a channel too many": ("conv_stage.cuh", "p.inside && channel < channels ?", "p.inside ?", "are outside|wrong value"),
    "weight of the next group": (
        "grouped_conv2d.cuh",
        "source >= job.source_group",
        "source > job.source_group",
        "are outside|wrong value",
    ),
    "odd half step not zero": ("grouped_conv2d.cuh", "if (entry >= entries ||", "if (entry > entries ||", "are outside|wrong value"),
    "taps forwards in grad_x": ("conv_job.h", "-(dilation / a)}", "dilation / a}", "wrong value"),
    "too little shared memory": (
        "conv_plan.h",
        "const uint32_t table = up_to_16(int64_t(stages) * stage)",
        "const uint32_t table = up_to_16(int64_t(stages) * stage) - 64",
        "race|is being copied to|wrong value|are outside",
    ),
    "pixels without their gap": ("conv_plan.h", "(pieces | 1) * 16", "(pieces | 1) * 16 - 8", "multiple of 16"),
}


@pytest.mark.parametrize("name", MUTANTS)
def test_mutant_is_caught(name, tmp_path):
    file, old, new, expected = MUTANTS[name]
    shutil.copytree(ROOT / "csrc" / "cuda", tmp_path / "cuda")
    source = (tmp_path / "cuda" / file).read_text()
    assert not old or source.count(old) == 1, f"{file} has {source.count(old)} of {old!r}; the mutant must follow the source"
    (tmp_path / "cuda" / file).write_text(source.replace(old, new) if old else source)
    include = [f"-I{tmp_path}", f"-I{ROOT / 'csrc'}", f"-I{ROOT / 'tests' / 'cuda'}"]
    build = [
        CXX,
        "-std=c++17",
        "-O1",
        "-w",
        "-DSK_EMU",
        *include,
        "-o",
        str(tmp_path / "mutant"),
        str(ROOT / "tests" / "cuda" / "mutant.cpp"),
    ]
    subprocess.run(build, check=True, timeout=300)
    run = subprocess.run([tmp_path / "mutant"], capture_output=True, text=True, timeout=300)
    assert run.returncode == (1 if old else 0), run.stdout + run.stderr
    assert any(e in run.stdout for e in expected.split("|")), run.stdout
