"""What a training is asked for, checked before anything is read, built or written."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from sparsekern.arguments import check_whole, is_whole, said
from sparsekern.data.files import check_path
from sparsekern.train.recipe import Recipe

AT = ("epoch", "batch_number", "sums", "seconds")  # where a training stands, in the facts of its checkpoint
WRITTEN = ("best.safetensors", "log.csv", "log.json", "curves.png")  # by a run, beside its last checkpoint


def check_training(recipe: object, *, path: object, out: object, seed: object, checkpoint_every: object) -> None:
    """Raise unless these are what :func:`~sparsekern.train.train` takes.

    Raises:
        ValueError: ``train: epochs must be at least 1; got 0``
    """
    if not isinstance(recipe, Recipe):
        raise ValueError(f"train: recipe must be a Recipe, as of get_recipe(name); got {type(recipe).__name__}")
    check_count(epochs=recipe.epochs, batch=recipe.batch)
    if checkpoint_every is not None:
        check_count(checkpoint_every=checkpoint_every)
    check_path("train", **{arg: value for arg, value in (("path", path), ("out", out)) if value is not None})
    if not (is_whole(seed) and -(2**63) <= int(seed) < 2**64):
        raise ValueError(f"train: seed must be a whole number of 64 bits; got {said(seed)}")


def check_count(**values: object) -> None:
    """Raise unless each of them is a whole number of at least 1."""
    check_whole("train", **values)
    for arg, value in values.items():
        if is_whole(value, 0):
            raise ValueError(f"train: {arg} must be at least 1; got {value}")


def check_unused(out: Path) -> None:
    """Raise if a run has left anything there: it would be written over."""
    found = [name for name in WRITTEN if (out / name).exists()]
    if found:
        raise ValueError(f"train: out must not hold a run yet; got {str(out)!r}, with {found[0]} and without last.safetensors")


def check_resumable(facts: Mapping[str, Any], path: Path) -> None:
    """Raise unless a training can go on from a checkpoint of these facts; older ones do not tell their kind."""
    at = facts.get("at")
    missing = [name for name in ("run", "at", "rows") if name not in facts]
    missing = missing or [f"at.{name}" for name in AT if not isinstance(at, dict) or name not in at]
    if missing:
        raise ValueError(f"train: checkpoint must tell its run and where it stood; got no {missing[0]} in its facts ({path})")
    if facts.get("kind") == "best":
        raise ValueError(f"train: checkpoint must be the last one, with what the optimiser gathered; got the best one ({path})")
