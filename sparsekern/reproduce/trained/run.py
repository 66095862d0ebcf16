"""Train the points of an experiment, print the paper beside ours, write numbers and the figure.

Every finished training is kept in ``<out>/<experiment>_runs.json``, and one under way in a checkpoint of its last epoch beside it: what
was stopped goes on where it was.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Sequence
from dataclasses import replace
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import nn

from sparsekern.console import open_console
from sparsekern.measure.machine import machine_card
from sparsekern.reproduce.trained.experiment import Claim, Experiment, Point, Result, Results
from sparsekern.train import ImageFolders, TrainingData, load_data, train
from sparsekern.train.checkpoint import write_whole
from sparsekern.train.recipe import Recipe, fold_seed
from sparsekern.train.show import Quiet

if TYPE_CHECKING:
    from rich.console import Console

SEEDS = (0, 1, 2)
MACHINE = ("cpu", "features", "threads", "torch")  # of the machine card: enough to place a time


def run_experiment(experiment: Experiment, args: Any) -> int:
    """Train, print, judge, draw.

    Args:
        experiment: what to train.
        args: :class:`~sparsekern.reproduce.tables.Arguments`: ``seeds``, ``preset``, ``epochs``, ``data``, ``check``, ``only``,
            ``threads``, ``out``, ``json``.

    Returns:
        0 if every claim holds, else 1. With other ``epochs`` or only some of the points nothing is judged.
    """
    out, seeds = Path(args.out), tuple(args.seeds or SEEDS)
    points = [_as_asked(point, args) for point in experiment.points(args.preset) if _chosen(point, args.only)]
    if not points:
        raise ValueError(f"reproduce: only must match a row of {experiment.name}; got {args.only!r}")
    torch.set_num_threads(args.threads)
    out.mkdir(parents=True, exist_ok=True)
    stem = experiment.name.replace("-", "_").replace("/", "_")
    console = _console()
    results, missing = _train_all(points, seeds, experiment.measure, args, out / f"{stem}_runs.json", console)
    if not results:
        raise FileNotFoundError(missing[0])
    judged = args.epochs is None and not args.only and not missing
    claims = experiment.claims(results, args.preset) if judged else []
    _print(console, experiment, results, claims, missing)
    numbers = Path(args.json or out / f"{stem}.json")
    numbers.parent.mkdir(parents=True, exist_ok=True)
    about = {"only": list(args.only) if args.only else None, "epochs": args.epochs, "judged": judged}
    about["left_out"] = [point.label for point in experiment.points(args.preset) if point.label not in results]
    document = _document(experiment, results, claims, args, seeds, about)
    write_whole(numbers, lambda file: Path(file).write_text(json.dumps(document, indent=1, ensure_ascii=False) + "\n", encoding="utf-8"))
    from sparsekern.reproduce.trained.plot import plot_results

    try:
        plot_results(experiment, results, out / f"{stem}.png", caption=_caption(experiment, results, args, seeds))
        console.print(f"plot: {out / f'{stem}.png'}", soft_wrap=True)
    except ModuleNotFoundError as absent:
        console.print(f"no plot: {absent}", soft_wrap=True)
    console.print(f"numbers: {numbers}", soft_wrap=True)
    return int(not all(claim.holds for claim in claims))


def _as_asked(point: Point, args: Any) -> Point:
    recipe = point.recipe.preset(args.preset)
    return replace(point, recipe=recipe.with_(epochs=args.epochs) if args.epochs is not None else recipe)


def _chosen(point: Point, only: Sequence[str] | None) -> bool:
    return not only or any(word in (point.label, point.recipe.name, point.recipe.model) for word in only)


# ---- training


def _train_all(
    points: Sequence[Point], seeds: Sequence[int], measure: str, args: Any, kept: Path, console: Console
) -> tuple[Results, list[str]]:
    """Results by label, and one line per point whose data are not there."""
    done = _finished(kept)
    data: dict[str, TrainingData | ImageFolders | str] = {}
    results, missing = {}, []
    for point in points:
        found = _data_of(point.recipe, args, data)
        if isinstance(found, str):
            missing.append(found)
            continue
        accuracies = {}
        for seed in seeds:
            key = f"{point.label}, seed {seed}, {_key(point, seed, found):08x}"
            if key not in done:
                under_way = kept.with_suffix("") / f"{_key(point, seed, found):08x}_{seed}" if find_spec("safetensors") else None
                show = _Line(console, f"{point.label}, seed {seed}")
                trained = train(
                    point.recipe, found, seed=seed, show=show, prepare=_prepare(point, seed), out=under_way, resume=True, record=False
                )
                seconds = sum(row["seconds"] for row in trained.rows)
                done[key] = {"best": trained.best, "last": trained.last, "seconds": seconds}
                write_whole(kept, lambda file: Path(file).write_text(json.dumps(done, indent=1) + "\n", encoding="utf-8"))
                if under_way is not None:
                    shutil.rmtree(under_way)
                told = f"{point.label}, seed {seed}: {trained.best:.4f} in {len(trained.rows)} epochs, {seconds:.0f} s"
                console.print(told, soft_wrap=True)
            accuracies[seed] = done[key][measure]
        results[point.label] = Result(point, accuracies)
    return results, list(dict.fromkeys(missing))


def _finished(kept: Path) -> dict[str, Any]:
    """The trainings that an earlier run ended."""
    if not kept.exists():
        return {}
    try:
        done = json.loads(kept.read_text(encoding="utf-8"))
        if all({"best", "last", "seconds"} <= set(run) for run in done.values()):
            return done
    except (ValueError, AttributeError, TypeError):
        pass
    raise ValueError(f"reproduce: {kept} must hold trainings that ended (or be removed); got something else")


def _data_of(recipe: Recipe, args: Any, cache: dict[str, TrainingData | ImageFolders | str]) -> TrainingData | ImageFolders | str:
    """The data of a recipe, read once; or why they are not there."""
    key = json.dumps([recipe.data, recipe.data_options, recipe.augment, recipe.centre])
    if key not in cache:
        try:
            cache[key] = load_data(recipe, args.data, check=args.check)
        except FileNotFoundError as error:
            cache[key] = str(error)
    return cache[key]


def _prepare(point: Point, seed: int) -> Callable[[nn.Module], None] | None:
    """Connections of the point's own, with weights as they were drawn."""
    tables = point.tables
    if tables is None:
        return None

    def prepare(model: nn.Module) -> None:
        for number, table in enumerate(tables(seed), start=1):
            junction: Any = model.get_submodule(f"junction{number}")
            junction.set_topology(table, junction.weight.detach().clone())

    return prepare


def _key(point: Point, seed: int, data: TrainingData | ImageFolders) -> int:
    """Everything that decides the accuracy."""
    tables = [table.tolist() for table in point.tables(seed)] if point.tables else None
    return fold_seed(json.dumps(point.recipe.facts(), sort_keys=True), json.dumps(data.facts()), tables)


class _Line(Quiet):
    """On a terminal, the epoch of the moment."""

    def __init__(self, console: Console, label: str) -> None:
        self.label = label
        self.status = console.status(label) if console.is_terminal else None

    def begin(self, title: str, epoch: int, epochs: int, step: int, steps: int) -> None:
        if self.status:
            self.status.start()
            self.status.update(f"{self.label}: epoch {epoch + 1} of {epochs}")

    def end(self) -> None:
        if self.status:
            self.status.stop()


# ---- what is said


def _console() -> Console:
    console = open_console()
    console.width = max(100, console.width) if console.is_terminal else 160
    return console


def _print(console: Console, experiment: Experiment, results: Results, claims: Sequence[Claim], missing: Sequence[str]) -> None:
    from rich.table import Table

    heads = list(dict.fromkeys(head for result in results.values() for head in result.point.facts))
    table = Table(title=experiment.title, title_justify="left", title_style="bold", box=None, pad_edge=False)
    table.add_column("network", no_wrap=True)
    for head in (*heads, experiment.told, "ours", "±", "seeds"):
        table.add_column(head, justify="right", no_wrap=True)
    for label, result in results.items():
        paper = "" if result.point.paper is None else f"{result.point.paper:.4f}".rstrip("0")
        facts = [str(result.point.facts.get(head, "")) for head in heads]
        table.add_row(label, *facts, paper, f"{result.mean:.4f}", f"{result.spread:.4f}", str(len(result.accuracies)))
    console.print(table)
    console.print(f"ours: mean of the seeds, {experiment.measured}; ±: half the distance from the worst seed to the best", soft_wrap=True)
    console.print(f"source: {experiment.source}", soft_wrap=True)
    for line in missing:
        console.print(f"left out: {line}", soft_wrap=True)
    for claim in claims:
        console.print(f"{'holds ' if claim.holds else 'BROKEN'} {claim.text}: {claim.figures}", soft_wrap=True)


def _caption(experiment: Experiment, results: Results, args: Any, seeds: Sequence[int]) -> str:
    recipe = next(iter(results.values())).point.recipe
    size = ", ".join(f"{value} {key.replace('_', ' ')}" for key, value in recipe.data_options.items())
    return f"{len(seeds)} seeds, {recipe.epochs} epochs" + (f", {size}" if size else "") + f"; {experiment.measured}"


def _document(
    experiment: Experiment, results: Results, claims: Sequence[Claim], args: Any, seeds: Sequence[int], asked: dict[str, Any]
) -> dict[str, Any]:
    card = machine_card()
    rows = []
    for label, result in results.items():
        ours = {
            "mean": round(result.mean, 5),
            "spread": round(result.spread, 5),
            "by_seed": {str(s): a for s, a in result.accuracies.items()},
        }
        point = result.point
        row = {"row": label, "model": point.recipe.model, "recipe": point.recipe.facts(), "x": point.x, "panel": point.panel}
        rows.append({**row, **point.facts, "paper": point.paper, "ours": ours})
    about = {"experiment": experiment.name, "source": experiment.source, "measure": experiment.measured, "preset": args.preset}
    about |= asked | {"seeds": list(seeds), "machine": {key: card.get(key) for key in MACHINE}}
    return {**about, "rows": rows, "claims": [{"claim": c.text, "holds": c.holds, "figures": c.figures} for c in claims]}
