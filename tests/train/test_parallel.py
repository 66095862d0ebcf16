"""Two processes under torchrun train as one does."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from tiny import tiny_data, tiny_recipe
from torch import distributed

from sparsekern.nn import SparseLinear
from sparsekern.train import build_model, get_recipe, load_checkpoint, train
from sparsekern.train.checkpoint import under_prefix
from sparsekern.train.parallel import Processes, own_device, processes

pytest.importorskip("safetensors")


def run_two(*arguments: str) -> None:
    """Run a program in two processes."""
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2", *arguments]
    here = Path(__file__).resolve().parent
    paths = [str(here.parents[1]), str(here), os.environ.get("PYTHONPATH", "")]
    environment = os.environ | {"OMP_NUM_THREADS": "1", "PYTHONPATH": os.pathsep.join(paths)}
    done = subprocess.run(command, capture_output=True, text=True, env=environment)
    assert done.returncode == 0, done.stderr[-2000:]


@pytest.mark.skipif(not distributed.is_gloo_available(), reason="torch was built without gloo")
def test_two_processes_are_as_one(tmp_path):
    """The same loss, step by step within rounding, from connections that each process draws by itself."""
    options = ["--fan-out", "16,10", "--epochs", "2", "--dynamic", "moving:20", "--out", str(tmp_path / "two")]
    run_two("-m", "sparsekern", "train", "digits/density", *options)
    recipe = get_recipe("digits/density").with_(epochs=2, options={"fan_out": (16, 10)})
    from sparsekern.train import MovingConnections

    one = train(recipe, dynamic=MovingConnections(every=20), out=tmp_path / "one")
    rows = json.loads((tmp_path / "two" / "log.json").read_text(encoding="utf-8"))["epochs"]
    for alone, together in zip(one.rows, rows, strict=True):
        assert together["train_loss"] == pytest.approx(alone["train_loss"], rel=1e-4)
        assert together["val_loss"] == pytest.approx(alone["val_loss"], rel=1e-4)
        assert together["steps"] == alone["steps"]
    two = load_checkpoint(tmp_path / "two" / "last.safetensors")[0]
    assert torch.equal(two["model/junction1.index"], one.model.junction1.index)
    assert torch.allclose(two["model/junction1.weight"], one.model.junction1.weight, atol=1e-4)


@pytest.mark.slow
@pytest.mark.skipif(not distributed.is_gloo_available(), reason="torch was built without gloo")
def test_what_is_judged_is_what_is_saved(tmp_path):
    """Batch-norm sees other samples in every process: the validation loss is that of the statistics in the checkpoint."""
    script = tmp_path / "script.py"
    told = "from tiny import tiny_data, tiny_recipe\nfrom sparsekern.train import train\n"
    script.write_text(told + f"train(tiny_recipe(epochs=1, bn_momentum=0.5), tiny_data(), out={str(tmp_path / 'run')!r})\n")
    run_two(str(script))
    tensors, facts = load_checkpoint(tmp_path / "run" / "last.safetensors")
    assert facts["run"]["processes"] == 2
    model = build_model(tiny_recipe(), 0).eval()
    model.load_state_dict(under_prefix("model", tensors))
    x, y = tiny_data().val_batch(0, 40)
    assert facts["rows"][0]["val_loss"] == pytest.approx(float(torch.nn.functional.cross_entropy(model(x).detach(), y)), rel=1e-5)


def test_every_process_has_a_gpu_of_its_own(monkeypatch):
    called = []
    assert own_device("cuda:3") == torch.device("cuda:3")  # alone: as asked
    for name, value in (("WORLD_SIZE", "4"), ("RANK", "3"), ("LOCAL_RANK", "1")):
        monkeypatch.setenv(name, value)
    assert own_device("cuda") == torch.device("cuda:1") and own_device("cpu") == torch.device("cpu")
    monkeypatch.setattr(torch.cuda, "set_device", lambda device: called.append(str(device)))
    monkeypatch.setattr(distributed, "init_process_group", called.append)
    monkeypatch.setattr(distributed, "get_rank", lambda: 3)
    monkeypatch.setattr(distributed, "destroy_process_group", lambda: called.append("left"))
    for device in ("cuda", "cpu"):
        with processes(own_device(device)) as group:
            assert (group.rank, group.world) == (3, 4)
    assert called == ["cuda:1", "cpu:gloo,cuda:nccl", "left", "gloo", "left"]


def test_parts_cover_the_batch():
    for n in (0, 1, 7, 32):
        for world in (1, 2, 3, 5):
            parts = [Processes(rank, world).part(n) for rank in range(world)]
            assert [i for part in parts for i in range(n)[part]] == list(range(n))


def test_another_topology_is_refused(monkeypatch):
    """As if process 1 had drawn its connections from another seed."""
    mine, other = SparseLinear(8, 4, fan_in=2, seed=0), SparseLinear(8, 4, fan_in=2, seed=1)
    from sparsekern.train import parallel

    def gathered(of):
        def gather(everyones, own):
            everyones[:] = [own, {name: parallel._digest(table) for name, table in of.named_buffers()}]

        return gather

    monkeypatch.setattr(distributed, "all_gather_object", gathered(mine))
    Processes(0, 2).check_same_tables(mine)
    monkeypatch.setattr(distributed, "all_gather_object", gathered(other))
    with pytest.raises(RuntimeError, match=r"train: topology must be the same in all processes; got another one in process 1 \(index\)"):
        Processes(0, 2).check_same_tables(mine)
