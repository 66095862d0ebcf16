"""Two processes under torchrun train as one does."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from torch import distributed

from sparsekern.nn import SparseLinear
from sparsekern.train import get_recipe, load_checkpoint, train
from sparsekern.train.parallel import Processes

pytest.importorskip("safetensors")


@pytest.mark.skipif(not distributed.is_gloo_available(), reason="torch was built without gloo")
def test_two_processes_are_as_one(tmp_path):
    """The same loss, step by step within rounding, from connections that each process draws by itself."""
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2", "-m", "sparsekern"]
    command += ["train", "digits/density", "--fan-out", "16,10", "--epochs", "2", "--dynamic", "moving:20", "--out", str(tmp_path / "two")]
    root = str(Path(__file__).resolve().parents[2])
    environment = os.environ | {"OMP_NUM_THREADS": "1", "PYTHONPATH": os.pathsep.join([root, os.environ.get("PYTHONPATH", "")])}
    done = subprocess.run(command, capture_output=True, text=True, env=environment)
    assert done.returncode == 0, done.stderr[-2000:]
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
