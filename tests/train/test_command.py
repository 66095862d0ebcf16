"""``sparsekern train``: what a user types and reads."""

import pytest

pytest.importorskip("rich")
pytest.importorskip("safetensors")

from sparsekern.cli import main


def test_train_resume_and_list(tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    run = ["train", "digits/density", "--fan-out", "16,10", "--epochs", "1"]
    assert main(run) == 0
    said = capsys.readouterr().out
    assert "epoch    1  loss" in said and "checkpoints, log and curves: trained/digits_density" in said
    assert {path.name for path in (tmp_path / "trained" / "digits_density").iterdir()} == {
        "last.safetensors", "best.safetensors", "log.csv", "log.json", "curves.png",
    }  # fmt: skip
    assert main(run) == 2
    assert "train: out must not hold a checkpoint yet, or be resumed; got 'trained/digits_density'" in capsys.readouterr().err
    assert main([*run, "--resume", "--lr", "0.5"]) == 2
    assert "got recipe.optimiser.lr 0.001 where 0.5 is asked for" in capsys.readouterr().err
    assert main(["train", "--list"]) == 0
    said = capsys.readouterr().out
    assert all(name in said for name in ("deep-roots/nin_root_16", "sis/svhn_3", "simplenet/5m_cifar100", "patterns/morse", "30 (12)"))


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        ("train", "train: RECIPE must be given"),
        ("train digits/density --out /dev/null", "[Errno 17] File exists: '/dev/null'"),
        ("train nin", "train: RECIPE must be one of sparsekern train --list; got 'nin'"),
        ("train digits/density --epochs 0", "train: --epochs must be above 0; got 0"),
        ("train digits/density --dynamic melting", "train: dynamic must be moving[:STEPS], drawn[:STEPS] or drawn:epoch; got 'melting'"),
        ("train deep-roots/nin", "train: data must be given for cifar10: the folder of its official files, --data FOLDER; got none"),
        ("train digits/density --data nowhere", "train: data must be left out for digits, which is read from no folder; got 'nowhere'"),
        ("train digits/density --device foo", "train: device must be one that torch can use here; got 'foo' ("),
        ("train deep-roots/nin --data nowhere", "cifar10: path must be a CIFAR-10 folder"),
    ],
)
def test_mistakes_are_answered_in_one_line(arguments, sentence, capsys, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert main(arguments.split()) == 2
    said = capsys.readouterr().err
    assert said.startswith(f"sparsekern: {sentence}") and said.count("\n") == 1
    assert not list(tmp_path.iterdir())
