"""`bench/gpu.py` without a GPU: every step runs, every row is there, and an interrupted run goes on where it was cut off."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

BENCH = Path(__file__).resolve().parents[2] / "bench"


@pytest.fixture
def gpu(monkeypatch):
    """The script as a module."""
    monkeypatch.syspath_prepend(str(BENCH))
    benchmark = torch.backends.cudnn.benchmark
    import gpu

    yield gpu
    torch.backends.cudnn.benchmark = benchmark


@pytest.mark.filterwarnings("ignore:Warning only once for all operators:UserWarning", "ignore:Sparse CSR tensor support:UserWarning")
def test_dry_run_then_resume(gpu, tmp_path, capsys):
    out = tmp_path / "gpu.jsonl"
    assert gpu.main(["--dry-run", "--out", str(out)]) == 0
    assert " 0 failed" in capsys.readouterr().out
    lines = out.read_text().splitlines()
    rows = [json.loads(line) for line in lines]
    steps = [row["step"] for row in rows]
    assert list(dict.fromkeys(steps)) == ["build", "facts", "ceilings", "correctness", "sanitizer", "timing"]
    assert all(row["ok"] for row in rows if row["step"] == "correctness") and steps.count("correctness") >= 12
    for row in (r for r in rows if r["step"] == "timing"):
        assert row["dry"] and "ratio" not in row  # a dry run claims nothing
        assert row["served_by"] and set(row["errors"]) == set(row["times"]) and any(name.startswith("ours") for name in row["times"])
        assert len(row["times"]) >= 2, row["refused"]
        assert not any(name.startswith(("ours", "cudnn", "dense")) for name in row["refused"]), row["refused"]
    assert str(Path.home()) not in out.read_text() and str(BENCH) not in out.read_text()

    out.write_text("\n".join(lines[:-2]) + "\n" + lines[-2][:40])  # cut off while it wrote
    assert gpu.main(["--dry-run", "--resume", "--out", str(out)]) == 0
    again = out.read_text().splitlines()
    assert again[: len(lines) - 2] == lines[:-2]
    assert [json.loads(line)["key"] for line in again] == [row["key"] for row in rows]


def test_a_wrong_result_is_not_timed(gpu, tmp_path, monkeypatch):
    import gpu_cases

    def wrong(shape, dtype, training):
        setup = gpu_cases.multiplication(shape, dtype, training)
        right = setup.providers["ours"]
        setup.providers["ours"] = lambda i: lambda: right(i)() + 1
        return setup

    monkeypatch.setattr(gpu_cases, "cases", lambda dry: [("wrong", lambda: wrong((2, 3, 4, 5), torch.float32, False))])
    out = tmp_path / "gpu.jsonl"
    gpu.main(["--dry-run", "--steps", "timing", "--out", str(out)])
    (row,) = map(json.loads, out.read_text().splitlines())
    assert "off by" in row["refused"]["ours"] and "ours" not in row["times"] and "bmm" in row["times"]


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_without_a_gpu_it_says_so(gpu, tmp_path):
    with pytest.raises(SystemExit, match="no GPU here"):
        gpu.main(["--steps", "timing", "--out", str(tmp_path / "gpu.jsonl")])
