"""Stopped at any moment, training goes on as if it had not been; a bad checkpoint changes nothing."""

import json
import os
import shutil
import signal
import subprocess
import sys
import time

import pytest
import torch
from tiny import same_weights, tiny_data, tiny_recipe

pytest.importorskip("safetensors")

from sparsekern.train import DrawnAnew, MovingConnections, get_recipe, load_checkpoint, save_checkpoint, train
from sparsekern.train.checkpoint import write_whole
from sparsekern.train.show import Quiet


class Stop(Exception):
    pass


class StopAfter(Quiet):
    """Raises in the middle of the run, as a kill would strike: after so many steps, nothing tidied up."""

    def __init__(self, steps: int) -> None:
        self.left = steps

    def step(self, loss, accuracy, rate):
        self.left -= 1
        if self.left < 0:
            raise Stop


DYNAMIC = {"fixed": lambda: None, "moving": lambda: MovingConnections(every=3), "drawn": lambda: DrawnAnew(every=2)}
ALSO = {("sgd", "moving"), ("adam", "drawn"), ("sgd", "fixed")}  # each optimiser and each kind of connections are in the others


@pytest.mark.parametrize(
    ("optimiser", "dynamic"),
    [pytest.param(o, d, marks=pytest.mark.slow if (o, d) in ALSO else []) for o in ("sgd", "adam") for d in DYNAMIC],
)
def test_stopped_anywhere(tmp_path, optimiser, dynamic):
    options = dict(seed=4, checkpoint_every=2)
    make = DYNAMIC[dynamic]
    whole = train(tiny_recipe(optimiser), tiny_data(51), dynamic=make(), **options)
    for stop in (1, 3, 7):  # before the first checkpoint, in an epoch, in the second
        out = tmp_path / str(stop)
        with pytest.raises(Stop):
            train(tiny_recipe(optimiser), tiny_data(51), dynamic=make(), out=out, show=StopAfter(stop), **options)
        resumed = train(tiny_recipe(optimiser), tiny_data(51), dynamic=make(), out=out, resume=True, **options)
        assert same_weights(whole.model, resumed.model), stop
        kept = ("epoch", "steps", "train_loss", "val_loss", "train_accuracy", "val_accuracy")
        assert [[row[key] for key in kept] for row in whole.rows] == [[row[key] for key in kept] for row in resumed.rows]
    again = train(tiny_recipe(optimiser), tiny_data(51), dynamic=make(), out=out, resume=True, **options)  # nothing left to do
    assert same_weights(whole.model, again.model) and len(again.rows) == 3


def test_killed_in_mid_epoch(tmp_path):
    out = tmp_path / "run"
    arguments = ["digits/density", "--fan-out", "16,10", "--epochs", "12", "--checkpoint-every", "3", "--out", str(out), "--threads", "1"]
    last = out / "last.safetensors"
    for _ in range(5):  # on a busy machine it may be through before it is looked at
        shutil.rmtree(out, ignore_errors=True)
        running = subprocess.Popen([sys.executable, "-m", "sparsekern", "train", *arguments], stdout=subprocess.DEVNULL)
        deadline = time.monotonic() + 300
        while time.monotonic() < deadline and running.poll() is None:
            if last.exists() and load_checkpoint(last)[1]["at"]["batch_number"] > 0:
                break
            time.sleep(0.002)
        running.send_signal(signal.SIGKILL)
        if running.wait() == -signal.SIGKILL and last.exists() and load_checkpoint(last)[1]["at"]["epoch"] < 12:
            break
    else:
        raise AssertionError("it ended before it was killed")
    torch.set_num_threads(1)
    recipe = get_recipe("digits/density").with_(epochs=12, options={"fan_out": (16, 10)})
    resumed = train(recipe, out=out, resume=True)
    assert same_weights(resumed.model, train(recipe).model) and len(resumed.rows) == 12


@pytest.mark.parametrize("file", ["best.safetensors", "last.safetensors", "log.csv", "log.json", "curves.png"])
def test_killed_between_two_files(tmp_path, monkeypatch, file):
    """At the end of the last epoch, which is the best one, right before a file takes its place."""
    pytest.importorskip("matplotlib")
    recipe, data = tiny_recipe(epochs=2, augment="none", bn_momentum=0.5), tiny_data()
    whole = train(recipe, data, out=tmp_path / "whole")
    assert whole.rows[1]["val_accuracy"] > whole.rows[0]["val_accuracy"]
    out = tmp_path / "run"
    killed_writing(monkeypatch, file, before=0 if file == "curves.png" else 1)
    with pytest.raises(Stop):
        train(recipe, data, out=out)
    monkeypatch.undo()
    resumed = train(recipe, data, out=out, resume=True)
    assert same_weights(whole.model, resumed.model)
    for name in ("best.safetensors", "last.safetensors"):
        good, found = load_checkpoint(tmp_path / "whole" / name)[0], load_checkpoint(out / name)[0]
        assert good.keys() == found.keys() and all(torch.equal(good[key], found[key]) for key in good), name
    assert json.loads((out / "log.json").read_text(encoding="utf-8"))["epochs"] == resumed.rows and len(resumed.rows) == 2
    heads = [(folder / "log.csv").read_text(encoding="utf-8").partition("\n")[0] for folder in (tmp_path / "whole", out)]
    assert heads[0] == heads[1] and heads[0].startswith("epoch,steps,rate,train_loss")
    assert (out / "log.csv").read_text(encoding="utf-8").count("\n") == 3 and (out / "curves.png").stat().st_size > 5000


def killed_writing(monkeypatch, file, before):
    """Raise :class:`Stop` in place of the write of ``file`` that ``before`` others of it precede."""
    from sparsekern.train import checkpoint, log, loop

    seen = []

    def struck(write):
        def strike(*args, **options):
            seen.append(args[0].name)
            if seen[-1] == file and seen.count(file) == before + 1:
                raise Stop
            write(*args, **options)

        return strike

    for module, name in ((checkpoint, "write_whole"), (log, "write_whole"), (loop, "plot_curves")):
        monkeypatch.setattr(module, name, struck(getattr(module, name)))


# ---- bad checkpoints


@pytest.fixture
def run(tmp_path):
    out = tmp_path / "run"
    train(tiny_recipe(epochs=1), tiny_data(), out=out)
    return out


def refuses(run, sentence, *, kind=ValueError, recipe=None, **options):
    """The sentence, and every file as it was."""
    before = {file.name: file.read_bytes() for file in run.iterdir()}
    with pytest.raises(kind) as raised:
        train(recipe or tiny_recipe(epochs=1), tiny_data(), out=run, **{"resume": True, **options})
    assert sentence in str(raised.value), str(raised.value)
    assert {file.name: file.read_bytes() for file in run.iterdir()} == before


def test_damaged(run):
    file = run / "last.safetensors"
    good = file.read_bytes()
    for where in (len(good) - 1, len(good) // 2, len(good) - 200):
        file.write_bytes(good[:where] + bytes([good[where] ^ 1]) + good[where + 1 :])
        refuses(run, f"train: checkpoint must be whole; got {str(file)!r}, damaged")
    for kept in (0, 4, 100, len(good) - 1):
        file.write_bytes(good[:kept])
        refuses(run, f"train: checkpoint must be whole; got {str(file)!r}, damaged or cut short")
    file.write_bytes(b"\x80\x04" + b"pickle" * 20)
    refuses(run, "train: checkpoint must be whole")
    from safetensors.torch import save_file

    save_file({"x": torch.zeros(2)}, file)
    refuses(run, "train: checkpoint must be of 'sparsekern training 1'")


def test_of_another_run(run):
    refuses(run, "train: out must not hold a checkpoint yet, or be resumed", resume=False)
    refuses(run, "got recipe.batch 16 where 8 is asked for", recipe=tiny_recipe(epochs=1, batch=8))
    refuses(run, "got seed 0 where 3 is asked for", seed=3)
    refuses(run, "got dynamic.kind None where drawn is asked for", dynamic=DrawnAnew())
    tensors, facts = load_checkpoint(run / "last.safetensors")
    for other, sentence in (
        ({"processes": 2}, "train: checkpoint must be of the same run; got processes 2 where 1 is asked for"),
        ({"device": "cuda"}, "train: checkpoint must be of the same run; got device cuda where cpu is asked for"),
    ):
        save_checkpoint(run / "last.safetensors", tensors, facts | {"run": facts["run"] | other})
        refuses(run, sentence)


def test_that_does_not_fit_the_model(run):
    file = run / "last.safetensors"
    tensors, facts = load_checkpoint(file)
    for name, value, sentence in (
        ("model/6.weight", torch.zeros(24, 5), "checkpoint must fit the model; got 6.weight [24, 5] of float32, the model's is [24, 32]"),
        ("model/6.index", tensors["model/6.index"].long(), "got 6.index [24, 32] of int64, the model's is [24, 32] of int32"),
        ("model/9.weight", torch.zeros(1), "got 9.weight [1] of float32, the model's is missing"),
        ("optimiser/6.weight/momentum_buffer", torch.zeros(3, 3), "got 6.weight/momentum_buffer [3, 3] where"),
    ):  # fmt: skip
        save_checkpoint(file, tensors | {name: value}, facts)
        refuses(run, sentence)
    save_checkpoint(file, {name: value for name, value in tensors.items() if name != "model/6.index"}, facts)
    refuses(run, "got 6.index missing, the model's is [24, 32] of int32")


def test_the_best_one_is_not_resumed(run):
    """It lacks what the optimiser gathered."""
    shutil.copy(run / "best.safetensors", run / "last.safetensors")
    refuses(run, "train: checkpoint must be the last one, with what the optimiser gathered; got the best one")


def test_older_checkpoints_are_resumed(run):
    """They do not tell their kind."""
    tensors, facts = load_checkpoint(run / "last.safetensors")
    assert facts.pop("kind") == "last"
    save_checkpoint(run / "last.safetensors", tensors, facts)
    assert len(train(tiny_recipe(epochs=1), tiny_data(), out=run, resume=True).rows) == 1


def test_without_its_facts(run):
    tensors, facts = load_checkpoint(run / "last.safetensors")
    for missing, kept in (
        ("run", {}),
        ("at", {"run": facts["run"]}),
        ("rows", {"run": facts["run"], "at": facts["at"]}),
        ("at.epoch", facts | {"at": None}),
        ("at.seconds", facts | {"at": {"epoch": 1, "batch_number": 0, "sums": [0, 0, 0]}}),
    ):
        save_checkpoint(run / "last.safetensors", tensors, kept)
        refuses(run, f"train: checkpoint must tell its run and where it stood; got no {missing} in its facts")


@pytest.mark.parametrize("left", ["best.safetensors", "log.csv"])
def test_what_a_run_left_is_not_written_over(run, left):
    for file in run.iterdir():
        if file.name != left:
            file.unlink()
    refuses(run, f"train: out must not hold a run yet; got {str(run)!r}, with {left} and without last.safetensors", resume=False)


def test_the_topology_is_inside(run):
    tensors, _ = load_checkpoint(run / "last.safetensors")
    assert {"model/0.index", "model/0.indptr", "model/6.index", "model/8.index"} <= tensors.keys()
    assert "optimiser/6.weight/momentum_buffer" in tensors


def test_a_file_is_the_old_one_or_the_new_one(tmp_path):
    file = tmp_path / "a.txt"
    file.write_text("old")

    def fails(name):
        with open(name, "w") as opened:
            opened.write("ne")
        raise OSError("disk full")

    with pytest.raises(OSError, match="disk full"):
        write_whole(file, fails)
    assert file.read_text() == "old" and os.listdir(tmp_path) == ["a.txt"]
