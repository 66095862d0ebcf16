"""``sparsekern bench models``: which cases, what is timed for each, and what is written. No test here asserts a speed."""

import json
import subprocess
from pathlib import Path

import pytest
import torch

from sparsekern.cli import main
from sparsekern.measure import allocator
from sparsekern.models import list_models
from sparsekern.reproduce.timed import models, rounds
from sparsekern.reproduce.timed.competitors import Competitor, our_competitors, torch_competitors
from sparsekern.reproduce.timed.gate import WrongResult
from sparsekern.reproduce.timed.steps import StepBench
from sparsekern.reproduce.timed.variants import Variant

pytest.importorskip("rich")


def test_cases(capsys):
    every = models.select()
    assert {row.variant.name for case in every for row in case.rows} == {name for names, _ in models.MODELS.values() for name in names}
    assert all(row.variant.model in list_models() and not row.is_dense for case in every for row in case.rows)
    assert {case.batch for case in every if case.mode == "fwd"} == {1, 32, 64, 256}
    assert {case.batch for case in every if case.mode != "fwd"} == {32, 64, 256}
    assert main(["bench", "models", "--list", "--case", "root_16 n1"]) == 0
    listed = ["models/nin_root_16/n1 fwd", "models/resnet50_root_16/n1 fwd", "models/googlenet_root_16/n1 fwd"]
    assert capsys.readouterr().out.split("\n")[:-1] == listed


@pytest.mark.parametrize(
    "arguments, said",
    [
        (["--case", "vgg"], "bench models: --case must match a case; got 'vgg' (see --list)"),
        (["--mode", "bwd"], "bench: mode must be fwd or fwd_bwd; got bwd"),
        (["--batch", "0"], "--batch must be above 0; got 0"),
        (["--threads", "1,2"], "bench models: --threads must be one number, at least 1; got '1,2'"),
        (["--allocator", "jemalloc"], "bench models: --allocator must be among default, kept; got 'jemalloc'"),
        (["--density", "0.5"], "bench models: --density must be left out: models run in float32, in every layout, as they come"),
    ],
)
def test_bad_arguments_are_refused(arguments, said, capsys):
    assert main(["bench", "models", *arguments]) == 2
    assert said in capsys.readouterr().err


def test_a_model_forward_and_in_training(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(models, "QUICK", (0.0, 1))
    monkeypatch.setattr(rounds, "SHORT_PASS_S", float("inf"))  # none is left out on a busy machine
    monkeypatch.setenv(allocator.TUNABLES, "")
    files = [str(tmp_path / name) for name in ("rows.jsonl", "plot.png")]
    assert main(["bench", "models", "--case", "sis_svhn_3", "--batch", "2", "--quick", "--json", files[0], "--plot", files[1]]) == 0
    card, forward, step = (json.loads(line) for line in Path(files[0]).read_text().splitlines())
    printed = capsys.readouterr().out
    assert "inference, batch 2" in printed and "training step, batch 2" in printed and card["machine"]["allocator"] == "default"
    assert [row["case"] for row in (forward, step)] == ["models/sis_svhn_3/n2 fwd", "models/sis_svhn_3/n2 fwd_bwd"]
    for row in (forward, step):
        assert row["dense"] == "sis_nin" and row["flop_reduction"] == pytest.approx(8.99, abs=0.01) and row["threads"] == 1
        assert {"ours over dense", "ours over ours_dense"} <= set(row["speedup"]["model"])
    alike = {f"ours over dense, {whose} pooling" for whose in ("torch's", "our")}
    assert alike <= set(forward["speedup"]["model"]) and "ours over dense" in forward["speedup"]["stack"]
    roles = {"dense", "masked", "ours", "ours_dense", "dense_our_pooling", "ours_torchs_pooling"}
    assert set(forward["ms_per_image"]["model"]) == roles and set(step["ms_per_image"]["model"]) == {"dense", "ours", "ours_dense"}
    assert set(step["ms_per_image"]["model"]["ours"]) == {"sparsekern NCHW", "sparsekern channels_last"}  # packed weights do not train
    if (tmp_path / "plot_inference_batches.png").exists():
        assert (tmp_path / "plot_training_batches.png").stat().st_size > 10_000


def test_a_wrong_step_is_not_timed():
    images = torch.rand(2, 3, 16, 16, generator=torch.Generator().manual_seed(0))
    bench = StepBench(Variant("nin_root_16"), images)
    assert len(bench.callables("ours", our_competitors())) == 2
    wrong = type("Wrong", (torch.nn.Conv2d,), {"forward": lambda self, x: super(type(self), self).forward(x.detach())})
    with pytest.raises(WrongResult, match=r"reproduce: gradients of nin_root_16 by wrong must be within 0.1 of torch's; got nan"):
        bench._step(Competitor("wrong", "NCHW", lambda *args, **options: wrong(*args, **options)))


@pytest.mark.parametrize("fan_out", [(128, 8), (512, 32)])
def test_connected_layers_train_alike(fan_out):
    images = torch.randn(3, 64, generator=torch.Generator().manual_seed(0))
    bench = StepBench(Variant("morse_cl", (("fan_out", fan_out),)), images)
    assert len(bench.callables("ours", our_competitors())) == 2  # each after its gradients agreed with the dense net's
    assert {m.fan_in for m in bench.model.modules() if hasattr(m, "fan_in")} == {fan_out[0] // 16, fan_out[1] * 16}


def test_large_batches_go_a_few_at_a_time_through_torch_too():
    assert {c.images for c in torch_competitors(batch=15)} == {0}
    if not torch.backends.mkldnn.is_available():
        return
    (few,) = [c for c in torch_competitors(batch=16) if c.images]
    model, x = Variant("nin_root_16").build(), torch.rand(7, 3, 16, 16, generator=torch.Generator().manual_seed(0))
    seen, built = [], few.build(model, {})
    built.model.register_forward_hook(lambda module, args, out: seen.append(len(out)))
    with torch.no_grad():
        torch.testing.assert_close(built(few.prepare(x)), model(x), rtol=1e-4, atol=1e-5)
    assert seen == [4, 3] and not few.by_layers and few.served(built, {"conv1a": x}) == {}


def test_every_setting_of_malloc_is_a_process_of_its_own(tmp_path, monkeypatch, capsys):
    for setting in allocator.SETTINGS:
        monkeypatch.setattr("os.environ", allocator.environment(setting))
        assert allocator.current() == setting
    monkeypatch.setenv(allocator.TUNABLES, "glibc.malloc.arena_max=1")
    assert allocator.current() is None
    seen = []

    def run(command, env):
        seen.append((command, env))
        Path(command[command.index("--json") + 1]).write_text(f"{len(seen)}\n")
        return subprocess.CompletedProcess(command, 0)

    monkeypatch.setattr(subprocess, "run", run)
    rows = tmp_path / "rows.jsonl"
    assert main(["bench", "models", "--case", "nin", "--allocator", "default,kept", "--json", str(rows), "--plot", "p.png"]) == 0
    assert rows.read_text() == "1\n2\n"
    for (command, env), setting in zip(seen, ("default", "kept"), strict=True):
        assert env.get(allocator.TUNABLES, "") == allocator.SETTINGS[setting] and f"p_{setting}.png" in command
        assert command[command.index("--allocator") + 1] == setting and command[command.index("--case") + 1] == "nin"
