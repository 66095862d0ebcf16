"""`bench/gpu.py` without a GPU: every step runs, every row is there, and an interrupted run goes on where it was cut off."""

from __future__ import annotations

import contextlib
import json
import sys
import time
import warnings
from pathlib import Path
from types import SimpleNamespace

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


def every_kernel_was_checked(rows: list[dict], step: str) -> None:
    """Every op in every type, and, where there are kernels here, each of them."""
    import gpu_checks

    rows, who = [row for row in rows if row["step"] == step], gpu_checks.STEPS[step]
    assert all(row["ok"] and not row["failure"] for row in rows)
    checked = {tuple(row["key"].removeprefix(f"{who} ").split("/")) for row in rows}
    for op in ("grouped_conv2d", "sparse_linear", "sparse_conv2d", "grouped_mm", "root_conv2d"):
        for kind in gpu_checks.TYPES[who]:
            assert {(op, sample, kind) for sample in gpu_checks.FEW[op]} <= checked
    if gpu_checks.kernels_of(who, True):
        names = {f"{op}_{end}" for op in ("grouped_conv2d", "sparse_linear", "sparse_conv2d") for end in ("grad_x", "grad_weight")}
        names |= {"grouped_conv2d", "sparse_linear", "sparse_conv2d", "root_conv2d", "grouped_mm", "grouped_mm_grad_a", "grouped_mm_grad_b"}
        assert names == set(rows[-1]["kernels"]) == set().union(*(row["kernels"] for row in rows[:-1]))


@pytest.mark.slow
def test_dry_run_of_the_twins(gpu, tmp_path):
    pytest.importorskip("triton", reason="triton is not installed: its twins are not checked")
    out = tmp_path / "gpu.jsonl"
    assert gpu.main(["--dry-run", "--steps", "twins", "--out", str(out)]) == 0
    every_kernel_was_checked([json.loads(line) for line in out.read_text().splitlines()], "twins")


@pytest.mark.filterwarnings("ignore:Warning only once for all operators:UserWarning")
@pytest.mark.parametrize(
    "fault, said", [("", ""), ("wrong", "off by"), ("not written", "off by nan"), ("random", "differs between two runs")]
)
def test_a_planted_fault_is_seen(gpu, fault, said):
    import gpu_checks

    turns = []

    def root_conv2d(x, weight1, bias1, weight2, bias2, *rest):
        *window, relu, last_relu, _ = rest
        right = reference(x, weight1, bias1, weight2, bias2, None, None, None, *window, relu, last_relu)
        turns.append(0)
        out = torch.empty_like(right)  # what a kernel forgets stays as it is
        out.view(-1)[fault == "not written" :] = right.view(-1)[fault == "not written" :] * (1.01 if fault == "wrong" else 1)
        return torch.nextafter(out, out + 1) if fault == "random" and len(turns) == 2 else out

    from sparsekern.ops.root_conv2d import reference

    kernels = gpu_checks.Recorder(SimpleNamespace(root_conv2d=root_conv2d), {"root_conv2d"})
    with pytest.raises(AssertionError, match=said) if fault else contextlib.nullcontext():
        gpu_checks.check("cuda", "root_conv2d", "wide", "float32", kernels, "cpu")
    assert kernels.called == kernels.names and len(turns) == 2


def test_fresh_memory_is_poisoned(gpu):
    import gpu_checks

    with gpu_checks.poisoned("cpu"):
        assert torch.empty(3).isnan().all() and torch.empty(2, 2, dtype=torch.bfloat16).new_empty(5).isnan().all()
    assert not torch.are_deterministic_algorithms_enabled()


def test_the_block_sparse_rival_runs_with_the_parameters_that_suit_the_card(gpu, monkeypatch):
    """The quickest of those that can be launched, chosen once, on its own function of the same arguments."""
    import gpu_bsr

    tried, now = [], SimpleNamespace(us=0.0)

    def bsr_dense_addmm(added, weight, dense, meta):
        tried.append(meta)
        if meta["num_stages"] == 4:
            raise RuntimeError("out of shared memory")
        now.us = 5.0 if meta["num_warps"] == 8 and meta["SPLIT_N"] == 2 else 9.0
        return added + weight.to_dense() @ dense

    def time_us(call):
        call()
        return now.us

    monkeypatch.setitem(sys.modules, "torch.sparse._triton_ops", SimpleNamespace(bsr_dense_addmm=bsr_dense_addmm))
    monkeypatch.setattr(gpu_bsr.quickest, "__defaults__", (time_us,))
    weight, xs, bias = torch.randn(32, 48), [torch.randn(128, 48) for _ in range(2)], torch.randn(32)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        make = gpu_bsr.tuned([weight.to_sparse_bsr((16, 16))] * 2, xs, bias)
    calls = [make(i) for i in range(2)]
    distinct = {tuple(meta.values()) for meta in tried}
    assert len(distinct) == len(list(gpu_bsr.ways(128, 16))) == 9
    before = len(tried)
    for call, x in zip(calls, xs):
        torch.testing.assert_close(call(), torch.nn.functional.linear(x, weight, bias))
    assert tried[before:] == [{"SPLIT_N": 2, "num_stages": 3, "num_warps": 8, "GROUP_SIZE_ROW": 4}] * 2
    monkeypatch.setattr(gpu_bsr.quickest, "__defaults__", (lambda call: 1 / 0,))
    with pytest.raises(RuntimeError, match="none of the launch parameters serves"):
        gpu_bsr.tuned([weight.to_sparse_bsr((16, 16))] * 2, xs, bias)(0)


def test_a_row_says_why_nothing_was_timed_cold(gpu, monkeypatch):
    import gpu_timing

    assert gpu_timing.cold(lambda: 0) == {"cold_us": None, "not_cold": "dry run"}
    monkeypatch.setattr(gpu_timing, "DEVICE", "cuda")
    monkeypatch.setattr(torch.cuda, "synchronize", lambda: None)

    def capture(calls, launches):
        raise RuntimeError("operation not permitted when stream is capturing")

    monkeypatch.setattr(gpu_timing, "capture", capture)
    why = gpu_timing.cold(lambda: 0)
    assert why == {"cold_us": None, "not_cold": "no graph: RuntimeError: operation not permitted when stream is capturing"}


@pytest.mark.filterwarnings("ignore:Warning only once for all operators:UserWarning", "ignore:Sparse CSR tensor support:UserWarning")
def test_dry_run_then_resume(gpu, tmp_path, capsys):
    out, steps = tmp_path / "gpu.jsonl", [step for step in gpu.STEPS if step != "twins"]  # interpreted: slowly
    assert gpu.main(["--dry-run", "--steps", *steps, "--out", str(out)]) == 0
    assert " 0 failed" in capsys.readouterr().out
    lines = out.read_text().splitlines()
    rows = [json.loads(line) for line in lines]
    steps = [row["step"] for row in rows]
    assert list(dict.fromkeys(steps)) == ["build", "facts", "ceilings", "correctness", "timing", "sanitizer"]
    every_kernel_was_checked(rows, "correctness")
    for row in (r for r in rows if r["step"] == "timing"):
        assert row["dry"] and "ratio" not in row  # a dry run claims nothing
        assert row["tf32"] == ("float32" in row["case"]) and row["hot"] is False
        assert (
            row["served_by"]
            and set(row["errors"]) == set(row["times"]) - set(gpu.OTHERS)
            and any(name.startswith("ours") for name in row["times"])
        )
        assert len(row["times"]) >= 2, row["refused"]
        assert all(t["cold_us"] is None and t["not_cold"] == "dry run" for t in row["times"].values())
        assert not any(name.startswith(("ours", "cudnn", "dense")) for name in row["refused"]), row["refused"]
    (net,) = (r for r in rows if r["step"] == "timing" and r["case"] == "network/nin_root_8 n1 @32/bfloat16/fwd")
    assert set(net["times"]) == {"ours_nhwc", "ours_nchw", "cudnn_nhwc", "cudnn_nchw", "dense_twin"} and net["flops"] == 206684160
    assert str(Path.home()) not in out.read_text() and str(BENCH) not in out.read_text()

    out.write_text("\n".join(lines[:-2]) + "\n" + lines[-2][:40])  # cut off while it wrote
    assert gpu.main(["--dry-run", "--resume", "--steps", *gpu.STEPS[:5], "sanitizer", "--out", str(out)]) == 0
    again = out.read_text().splitlines()
    assert again[: len(lines) - 2] == lines[:-2]
    assert [json.loads(line)["key"] for line in again] == [row["key"] for row in rows]


def test_a_wrong_result_is_not_timed_and_fails_the_run(gpu, tmp_path, monkeypatch, capsys):
    import gpu_cases

    def wrong(shape, dtype, training):
        setup = gpu_cases.multiplication(shape, dtype, training)
        right = setup.providers["ours"]
        setup.providers["ours"] = lambda i: lambda: right(i)() + 1
        return setup

    monkeypatch.setattr(gpu_cases, "cases", lambda dry: [("wrong", lambda: wrong((2, 3, 4, 5, False), torch.float32, False))])
    out = tmp_path / "gpu.jsonl"
    assert gpu.main(["--dry-run", "--steps", "timing", "--out", str(out)]) == 1
    assert "FAILED grouped_mm" in capsys.readouterr().out
    (row,) = map(json.loads, out.read_text().splitlines())
    assert "off by" in row["refused"]["ours"] and "ours" not in row["times"] and "bmm" in row["times"]


def test_what_is_timed_beside_wgmma_runs_without_it(gpu):
    import gpu_cases

    from sparsekern.ops import cuda, cuda_cost

    x, index = torch.empty(4096, 4096, dtype=torch.bfloat16, device="meta"), (64, 6)
    ways = lambda: [cuda.estimate_linear(product, x, 4096, index, (64, 64)).way for product in gpu_cases.DOORS]  # noqa: E731
    assert ways() == ["wgmma"] * 3 and gpu_cases._without_wgmma(ways)() == [""] * 3 and ways() == ["wgmma"] * 3
    assert cuda_cost.card_of(x.device).wgmma


def test_a_call_of_ours_that_no_graph_takes_fails_the_run(gpu, tmp_path, monkeypatch, capsys):
    import gpu_cases
    import gpu_timing

    waits = {name: {"us": [3.0], "by": "events: RuntimeError"} for name in ("ours", "bmm", "loop")}
    monkeypatch.setattr(gpu_timing, "samples_us", lambda providers: {name: waits[name] for name in providers})
    one = lambda: gpu_cases.multiplication((2, 3, 4, 5, False), torch.float32, False)  # noqa: E731
    monkeypatch.setattr(gpu_cases, "cases", lambda dry: [("waits", one)])
    out = tmp_path / "gpu.jsonl"
    assert gpu.main(["--dry-run", "--steps", "timing", "--out", str(out)]) == 1
    (row,) = map(json.loads, out.read_text().splitlines())
    assert row["failed"] == ["ours"] and row["refused"] == {"ours": "no graph, events: RuntimeError"} and "ours" in row["times"]
    assert "FAILED grouped_mm" in capsys.readouterr().out


def test_after_a_failed_build_nothing_of_the_older_library_counts(gpu, tmp_path):
    out = tmp_path / "gpu.jsonl"
    rows = [
        ("facts", "machine", True),
        ("build", "package", False),
        *((step, "old", True) for step in ("correctness", "timing", "sanitizer")),
    ]
    out.write_text("".join(json.dumps({"step": step, "key": key, "ok": ok}) + "\n" for step, key, ok in rows))
    assert gpu.main(["--dry-run", "--resume", "--steps", "build", "--out", str(out)]) == 0
    assert [(r["step"], r["ok"]) for r in map(json.loads, out.read_text().splitlines())] == [("facts", True), ("build", True)]


def test_logs_of_the_sanitizer(gpu):
    hazards = "========= RACECHECK SUMMARY: {} hazards displayed (0 errors, 0 warnings)"
    assert gpu.clean("racecheck", hazards.format(0)) and not gpu.clean("racecheck", hazards.format(10))
    assert gpu.clean("memcheck", "========= ERROR SUMMARY: 0 errors") and not gpu.clean("memcheck", "========= ERROR SUMMARY: 10 errors")
    assert not gpu.clean("racecheck", "") and not gpu.clean("initcheck", "")
    lines = "Uninitialized __global__ memory read of size 4 bytes", "    at void {}(float *)+0x70", "ERROR SUMMARY: 1 error"
    read = "\n".join(f"========= {line}" for line in lines)
    assert gpu.clean("initcheck", read.format("cutlass::kernel<int>"))
    assert not gpu.clean("initcheck", read.format("sk::sparse_linear_kernel<float, (int)32, (bool)1>"))
    assert not gpu.clean("initcheck", read.format("cutlass::kernel<int>") + "\n" + read.format("sk::add_parts_kernel<float>"))
    twin = "========= Invalid __global__ read of size 4 bytes\n=========     at {}+0x70 in root.py:41\n========= ERROR SUMMARY: 1 error"
    assert not gpu.clean("memcheck", twin.format("_root")) and not gpu.clean("memcheck", twin.format("_forward"))
    assert gpu.clean("memcheck", twin.format("_root_of_another"))


def test_the_sanitizer_runs_every_kernel(gpu, tmp_path):
    runs = {key: command for key, command, _, _ in gpu.sanitizer_runs("tool", tmp_path / "rows.jsonl")}
    assert set(runs) == {f"{c} {s}" for c in ("memcheck", "racecheck", "initcheck", "synccheck") for s in ("correctness", "twins")}
    assert all(command[command.index("--steps") + 1] == key.split()[1] and "--small" in command for key, command in runs.items())


def test_nothing_outlives_its_limit(gpu, tmp_path):
    started = tmp_path / "pid"
    for limit_s in (0.5, 2, 8, 32):  # on a busy machine it may take a while to begin
        assert gpu.run_limited(["sh", "-c", f"sleep 600 & echo $! > {started}; wait"], limit_s) is None
        if started.is_file() and started.read_text().strip():
            break
    stat = Path(f"/proc/{started.read_text().strip()}/stat")
    for _ in range(1000):
        if not stat.is_file() or stat.read_text().split()[2] == "Z":
            break
        time.sleep(0.02)
    else:
        pytest.fail("what the command started still runs")
    assert gpu.run_limited(["sh", "-c", "exit 3"], 10) == 3


def test_what_no_process_survives_is_called_failed(gpu, tmp_path, monkeypatch, capsys):
    out = tmp_path / "gpu.jsonl"
    for expected in (True, True, False):
        assert gpu.Rows(out, resume=True).begin("timing", "case") is expected
    assert gpu.Rows(out, resume=True).begin("timing", "another") is True
    monkeypatch.setattr(gpu.Rows, "begin", lambda *_: False)
    assert gpu.main(["--dry-run", "--steps", "timing", "correctness", "--out", str(out)]) == 1
    rows = [json.loads(line) for line in out.read_text().splitlines()]
    assert len(rows) > 20 and all(row.get("failed") or row["failure"] for row in rows)
    assert "FAILED" in capsys.readouterr().out


CHILD = """
import pathlib, sys, time
file, seconds = pathlib.Path(sys.argv[1]), float(sys.argv[-1])
with file.open("a") as f: f.write(f"{seconds:.1f}\\n")
runs = len(file.read_text().splitlines())
if runs == 1: sys.exit(75)
if runs == 2: time.sleep(600)
sys.exit(0)
"""


def test_a_child_that_is_lost_or_silent_is_followed_by_another(gpu, tmp_path, capsys):
    import gpu_watch

    script, file = tmp_path / "child.py", tmp_path / "rows"
    script.write_text(CHILD)
    assert gpu_watch.watch([sys.executable, str(script), str(file)], [file], 200.0, silence=6.0, least=1.0) == 0
    assert len(file.read_text().splitlines()) == 3
    said = capsys.readouterr().out
    assert said.count("goes on in a new process") == 2 and "the child is ended" in said
    file.unlink()
    assert gpu_watch.watch([sys.executable, str(script), str(file)], [file], 50.0, silence=6.0, least=60.0) == 1  # no time for another


def test_rows_of_an_earlier_run_are_gone_on_from(gpu, tmp_path):
    earlier, out = tmp_path / "earlier.jsonl", tmp_path / "new" / "gpu.jsonl"
    assert gpu.main(["--dry-run", "--steps", "build", "facts", "--out", str(earlier)]) == 0
    assert gpu.main(["--dry-run", "--steps", "build", "facts", "ceilings", "--earlier", str(earlier), "--out", str(out)]) == 0
    lines = out.read_text().splitlines()
    assert lines[:2] == earlier.read_text().splitlines() and json.loads(lines[2])["step"] == "ceilings"


def test_pictures_of_rows(gpu, tmp_path):
    import gpu_plot

    times = {"ours": {"p50_us": 2.0}, "cudnn_nhwc": {"p50_us": 5.0}}
    row = {"step": "timing", "case": "sparse_conv2d/nin n1 96-192/bfloat16/fwd", "times": times, "ratio": 2.5, "floor_us": 1.0}
    rows = [row, {**row, "case": "sparse_conv2d/another/float32/fwd", "ratio": 0.5}, {**row, "case": "grouped_mm/3 of 4x5x6/float32/step"}]
    path = tmp_path / "rows.jsonl"
    path.write_text(
        "".join(json.dumps(r) + "\n" for r in [*rows, {"step": "facts"}, {"step": "timing", "case": "lost", "times": {}}]) + "{cut"
    )
    files = gpu_plot.draw(path)
    assert [f.name for f in files] == ["rows_sparse_conv2d_fwd.png", "rows_grouped_mm_step.png"]
    assert all(f.stat().st_size > 5000 for f in files)


def test_sets_share_no_operand(gpu, monkeypatch):
    import gpu_cases

    read = []
    tensors = {"sparse_linear": 3, "grouped_conv2d": 2, "grouped_mm": 3, "sparse_conv2d": 4}
    for name in tensors:
        take = lambda *args, name=name, **_: read.append([a.data_ptr() for a in args[: tensors[name]]])  # noqa: E731
        monkeypatch.setattr(gpu_cases.ops, name, take)
    for make, case in ((gpu_cases.linear, (3, 40, 24, 0.25, (1, 1))), (gpu_cases.convolution, gpu_cases.DRY_CONVOLUTIONS[0]),
                       (gpu_cases.multiplication, (2, 3, 4, 5, True)), (gpu_cases.masked, gpu_cases.DRY_MASKS[0])):  # fmt: skip
        providers = make(case, torch.float32, False).providers
        read.clear()
        for i in (0, 1):
            providers.get("ours", providers.get("ours_nhwc"))(i)()
        assert len(set(read[0] + read[1])) == 2 * len(read[0]), make.__name__


def test_a_step_is_modelled_by_its_three_products(gpu):
    import gpu_cases

    cases = (
        (gpu_cases.linear, gpu_cases.DRY_LINEARS[1]),
        (gpu_cases.convolution, gpu_cases.DRY_CONVOLUTIONS[0]),
        (gpu_cases.masked, gpu_cases.DRY_MASKS[0]),
    )
    for make, case in cases:
        forward, step = (make(case, torch.float32, training).estimates for training in (False, True))
        assert all(step[who] > 1.5 * forward[who] for who in forward)


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_without_a_gpu_it_says_so(gpu, tmp_path):
    with pytest.raises(SystemExit, match="no GPU here"):
        gpu.main(["--steps", "timing", "--out", str(tmp_path / "gpu.jsonl")])
