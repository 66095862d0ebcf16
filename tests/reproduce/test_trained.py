"""The experiments: their points, what they judge, and the whole way from files to figure on tiny data."""

import json
import pickle
import struct
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

pytest.importorskip("rich")

from sparsekern.data import digits
from sparsekern.data.cifar import CIFAR10
from sparsekern.reproduce import TABLES, Arguments, paper_rows
from sparsekern.reproduce.tables import EXPERIMENTS as NAMES
from sparsekern.reproduce.trained import morse
from sparsekern.reproduce.trained.experiment import Claim, Result
from sparsekern.reproduce.trained.experiments import EXPERIMENTS
from sparsekern.reproduce.trained.run import run_experiment
from sparsekern.train import get_recipe, train


def test_every_experiment_has_points_of_its_own():
    assert list(EXPERIMENTS) == list(NAMES)
    for experiment in EXPERIMENTS.values():
        points = experiment.points("reduced")
        assert len({point.label for point in points}) == len(points) >= 5
        assert all(0 < (point.paper or 1) <= 1 and point.x > 0 for point in points)


def test_simplenet_is_held_against_the_papers_cells():
    told = {point.label: (point.paper, point.x) for point in EXPERIMENTS["simplenet/accuracy"].points("full")}
    assert len(told) == 10 and told["5m_cifar10"][0] == 0.9532
    for net, row in (("5m", "table2/Ours"), ("310k", "table6/310K"), ("460k", "table6/460K")):
        (cells,) = (cells["printed"] for cells in paper_rows("simplenet_archs") if cells["id"] == f"simplenet/{row}")
        for data in {"cifar10", "cifar100", "mnist", "svhn"} & cells.keys():
            assert 100 * told[f"{net}_{data}"][0] == pytest.approx(float(cells[data])), (net, data)
    assert told["5m_cifar100"][0] == 0.7342  # of the net of 5.48 million parameters


def test_kept_results_say_what_they_are_of():
    """Every file of bench/results that an experiment wrote names the points that are not in it, and judges all or nothing."""
    results = Path(__file__).parents[2] / "bench" / "results"
    for experiment in EXPERIMENTS.values():
        file = results / f"{experiment.name.replace('-', '_').replace('/', '_')}.json"
        if not file.exists():
            continue
        document = json.loads(file.read_text(encoding="utf-8"))
        labels = [point.label for point in experiment.points(document["preset"])]
        rows = [row["row"] for row in document["rows"]]
        assert document["left_out"] == [label for label in labels if label not in rows], file.name
        assert document["judged"] is (not document["left_out"] and document["epochs"] is None), file.name
        assert document["judged"] or not document["claims"], file.name


def test_digits_from_the_command_to_the_figure(tmp_path, capsys):
    arguments = Arguments(out=tmp_path, seeds=(0, 1), epochs=2, only=("fan-out 16, 10", "fan-out 8, 5"))
    assert TABLES["digits/density"](arguments) == 0
    said = capsys.readouterr().out
    assert "fan-out 16, 10, seed 1: 0." in said and "0.959" in said and "24.3%" in said
    document = json.loads((tmp_path / "digits_density.json").read_text(encoding="utf-8"))
    assert [len(row["ours"]["by_seed"]) for row in document["rows"]] == [2, 2] and document["claims"] == []
    assert document["rows"][0]["recipe"]["epochs"] == 2
    assert (document["only"], document["epochs"], document["judged"]) == (["fan-out 16, 10", "fan-out 8, 5"], 2, False)
    assert document["left_out"] == ["fan-out 128, 10", "fan-out 64, 5", "fan-out 4, 5"]
    assert (tmp_path / "digits_density.png").stat().st_size > 5000
    TABLES["digits/density"](arguments)
    assert "seed 1:" not in capsys.readouterr().out  # what is done is not done again
    with pytest.raises(ValueError, match="reproduce: only must match a row of digits/density; got"):
        TABLES["digits/density"](Arguments(out=tmp_path, only=("fan-out 1",)))


def test_a_training_that_was_stopped_goes_on_where_it_was(tmp_path, monkeypatch):
    pytest.importorskip("safetensors")
    from sparsekern.reproduce.trained import run

    began, left = [], [2]

    class Watched(run._Line):
        def begin(self, title, epoch, epochs, step, steps):
            began.append(epoch)
            left[0] -= 1
            if left[0] < 0:
                raise KeyboardInterrupt

    monkeypatch.setattr(run, "_Line", Watched)
    arguments = dict(seeds=(0,), epochs=3, only=("fan-out 8, 5",))
    with pytest.raises(KeyboardInterrupt):
        TABLES["digits/density"](Arguments(out=tmp_path / "stopped", **arguments))
    (under_way,) = (tmp_path / "stopped" / "digits_density_runs").iterdir()
    assert [file.name for file in under_way.iterdir()] == ["last.safetensors"]
    left[0] = 99
    for out in ("stopped", "whole"):
        TABLES["digits/density"](Arguments(out=tmp_path / out, **arguments))
    assert began == [0, 1, 2, 2, 0, 1, 2]
    one, two = (json.loads((tmp_path / out / "digits_density.json").read_text(encoding="utf-8"))["rows"] for out in ("stopped", "whole"))
    assert one == two and not under_way.exists()


@pytest.mark.parametrize("held", ["", "[1]", '{"a": 1}', '{"a": {"best": 1}}'])
def test_what_is_no_list_of_trainings_is_refused(tmp_path, held):
    file = tmp_path / "digits_density_runs.json"
    file.write_text(held)
    with pytest.raises(ValueError, match=r"reproduce: .*runs\.json must hold trainings that ended \(or be removed\); got something else"):
        TABLES["digits/density"](Arguments(out=tmp_path, seeds=(0,), epochs=1, only=("fan-out 8, 5",)))
    assert file.read_text() == held


@pytest.mark.parametrize(("holds", "code"), [(True, 0), (False, 1)])
def test_a_broken_claim_is_a_failure(tmp_path, capsys, holds, code):
    digits = EXPERIMENTS["digits/density"]
    points = [p for p in digits.points("reduced") if p.label == "fan-out 8, 5"]
    quick = [replace(p, recipe=p.recipe.with_(epochs=1)) for p in points]
    experiment = replace(digits, points=lambda preset: quick, claims=lambda results, preset: [Claim("it is so", holds, "figures")])
    assert run_experiment(experiment, Arguments(out=tmp_path, seeds=(0,))) == code
    assert f"{'holds ' if holds else 'BROKEN'} it is so: figures" in capsys.readouterr().out


def _results(points, accuracy):
    return {p.label: Result(p, {seed: accuracy(p) for seed in (0, 1, 2)}) for p in points}


def test_claims_follow_the_figures():
    points = morse.JUNCTIONS.points("reduced")
    good = {"fan-out 256, 48": 0.86, "fan-out 512, 32": 0.84, "fan-out 16, 63": 0.38, "fan-out 16, 31": 0.38}
    results = _results(points, lambda p: good.get(p.label, 0.6))
    assert all(claim.holds for claim in morse.JUNCTIONS.claims(results, "reduced"))
    for label, wrong in (("fan-out 256, 48", 0.82), ("fan-out 16, 63", 0.5), ("fan-out 496, 1", 0.45)):
        claims = morse.JUNCTIONS.claims(results | {label: Result(results[label].point, {0: wrong})}, "reduced")
        assert not all(claim.holds for claim in claims), label
    points = morse.SCATTER.points("reduced")
    assert [p.x for p in points] == sorted(p.x for p in points) and points[0].x == 0.125 and points[-1].x > 0.6
    assert all(claim.holds for claim in morse.SCATTER.claims(_results(points, lambda p: p.x), "reduced"))
    assert not any(claim.holds for claim in morse.SCATTER.claims(_results(points, lambda p: 1 - p.x), "reduced"))
    assert morse.spearman([1, 1, 2], [3, 3, 1]) == -1.0


def test_own_connections_are_trained_with():
    from sparsekern.reproduce.trained.run import _prepare
    from sparsekern.train import build_model

    point = morse.SCATTER.points("reduced")[0]
    net = build_model(point.recipe, 0)
    before = net.junction1.weight.detach().clone()
    _prepare(point, 0)(net)
    assert net.junction1.index[:128].unique().tolist() == list(range(8)) and (net.junction1.weight == before).all()


@pytest.fixture(scope="module")
def real_images(tmp_path_factory):
    """Real images in files of the official formats: patches of two photographs as CIFAR-10, handwritten digits as MNIST and SVHN."""
    pytest.importorskip("sklearn")
    pytest.importorskip("PIL")
    savemat = pytest.importorskip("scipy.io").savemat
    from sklearn.datasets import load_sample_images

    folder = tmp_path_factory.mktemp("real")
    rng, photographs = np.random.default_rng(0), load_sample_images().images
    (folder / CIFAR10.folder).mkdir()
    for name in ("test_batch", *CIFAR10.splits["train"]):
        labels = [i % 2 for i in range(8)]
        corners = [(photographs[label], rng.integers(0, 395), rng.integers(0, 608)) for label in labels]
        patches = [photo[top : top + 32, left : left + 32].transpose(2, 0, 1).reshape(-1) for photo, top, left in corners]
        (folder / CIFAR10.folder / name).write_bytes(pickle.dumps({b"data": np.stack(patches), b"labels": labels}, protocol=2))
    for split, prefix in (("train", "train"), ("test", "t10k")):
        found = digits(split)
        images, labels = (torch.nn.functional.interpolate(255 * found.x, 28).round().byte().numpy(), found.y.byte().numpy())
        (folder / f"{prefix}-images-idx3-ubyte").write_bytes(struct.pack(">4i", 2051, len(found), 28, 28) + images.tobytes())
        (folder / f"{prefix}-labels-idx1-ubyte").write_bytes(struct.pack(">2i", 2049, len(found)) + labels.tobytes())
        coloured = np.repeat(np.pad(images[:40, 0], ((0, 0), (2, 2), (2, 2))).transpose(1, 2, 0)[:, :, None], 3, axis=2)
        for one in (split, "extra") if split == "train" else (split,):
            savemat(
                folder / f"{one}_32x32.mat", {"X": coloured, "y": np.where(labels[:40] == 0, 10, labels[:40])[:, None].astype(np.uint8)}
            )
    return folder


@pytest.mark.parametrize(
    ("table", "only"),
    [
        ("deep-roots/accuracy", "root-16"),
        pytest.param("sis/accuracy", "SiS#3, CIFAR-10", marks=pytest.mark.slow),
        pytest.param("sis/accuracy", "SiS#3, SVHN", marks=pytest.mark.slow),
        ("simplenet/accuracy", "310k_cifar10"),
        pytest.param("simplenet/accuracy", "310k_svhn", marks=pytest.mark.slow),
    ],
)
def test_papers_accuracies_from_real_images(real_images, tmp_path, capsys, table, only):
    """A few of them: not what is learnt, but that a user's folder is all it takes."""
    assert TABLES[table](Arguments(out=tmp_path, data=real_images, check=False, seeds=(0,), epochs=1, only=(only,))) == 0
    said = capsys.readouterr().out
    (row,) = json.loads((tmp_path / f"{table.replace('-', '_').replace('/', '_')}.json").read_text(encoding="utf-8"))["rows"]
    assert f"{row['paper']:.4f}".rstrip("0") in said and row["row"] == only and 0 <= row["ours"]["mean"] <= 1
    assert (tmp_path / f"{table.replace('-', '_').replace('/', '_')}.png").stat().st_size > 5000


def test_a_recipe_of_files_learns(real_images):
    """MNIST's recipe, from idx files to an accuracy, on 1437 handwritten digits in place of 60,000."""
    recipe = get_recipe("patterns/mnist_cl").with_(epochs=6, batch=64, options={"fan_out": (112, 5)})
    assert train(recipe, path=real_images).best > 0.85


def test_files_that_are_not_there(real_images, tmp_path, capsys):
    (tmp_path / CIFAR10.folder).symlink_to(real_images / CIFAR10.folder)
    common = dict(out=tmp_path / "out", data=tmp_path, check=False, seeds=(0,), epochs=1)
    assert TABLES["sis/accuracy"](Arguments(only=("SiS#3, CIFAR-10", "SiS#3, SVHN"), **common)) == 0
    assert "left out: svhn: path must hold the file" in capsys.readouterr().out
    with pytest.raises(FileNotFoundError, match="svhn: path must hold the file"):
        TABLES["sis/accuracy"](Arguments(only=("SiS#3, SVHN",), **common))
    with pytest.raises(ValueError, match="train: data must be given for cifar10"):
        TABLES["deep-roots/accuracy"](Arguments(out=tmp_path))
