"""The training loop: the same recipe, data and seed end in the same weights, whether or not it was stopped on the way.

All that is random in a step (which samples, how they are cropped, dropout, new connections) is drawn from a seed made of the run's seed
and the step's number. So a checkpoint needs no generator's state: model, optimiser and the number of the step are all there is.
"""

from __future__ import annotations

import json
import math
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from sparsekern.train.checkpoint import load_checkpoint, need_safetensors, save_checkpoint, under_prefix, with_prefix
from sparsekern.train.checks import check_resumable, check_training, check_unused
from sparsekern.train.data import TrainingData, load_data
from sparsekern.train.dynamic import Fixed
from sparsekern.train.folders import ImageFolders
from sparsekern.train.log import plot_curves, write_log
from sparsekern.train.model import build_model
from sparsekern.train.optimiser import expected_shapes, make_optimiser, optimiser_tensors, restore_optimiser
from sparsekern.train.parallel import Processes, processes, usable_device
from sparsekern.train.recipe import Recipe, fold_seed
from sparsekern.train.show import Quiet

AUXILIARY = 0.3  # of the loss of an auxiliary classifier: Szegedy et al., "Going deeper with convolutions", 2014
LAST, BEST = "last.safetensors", "best.safetensors"


@dataclass
class Trained:
    """What came out: the network, and a row per epoch."""

    model: nn.Module
    rows: list[dict[str, Any]]

    @property
    def best(self) -> float:
        """The best validation accuracy of all epochs."""
        return max(row["val_accuracy"] for row in self.rows)

    @property
    def last(self) -> float:
        return self.rows[-1]["val_accuracy"]


def train(
    recipe: Recipe,
    data: TrainingData | ImageFolders | None = None,
    *,
    path: str | Path | None = None,
    check: bool = True,
    out: str | Path | None = None,
    resume: bool = False,
    seed: int = 0,
    device: str | torch.device = "cpu",
    amp: bool = False,
    dynamic: Fixed | None = None,
    prepare: Callable[[nn.Module], None] | None = None,
    checkpoint_every: int | None = None,
    record: bool = True,
    show: Quiet | None = None,
) -> Trained:
    """Train the network of a recipe.

    Args:
        recipe: as of :func:`~sparsekern.train.get_recipe`, with any changes (``recipe.with_(epochs=3)``).
        data: its data; None reads or draws them, from the folder ``path``, comparing checksums with ``check``.
        out: folder for ``last.safetensors`` (to resume), ``best.safetensors``, ``log.csv``, ``log.json`` and ``curves.png``; None writes
            nothing.
        resume: go on where ``out`` stands; from the beginning if it holds nothing yet.
        seed: of weights, connections, order, augmentation and dropout. Torch's own generator is left as it was.
        device: ``"cpu"``, ``"cuda"`` or another that torch can use here; under ``torchrun`` the latter is a GPU for each process.
        amp: forward and loss in bfloat16 where torch's autocast deems it safe; weights stay float32.
        dynamic: a changing topology, see :mod:`sparsekern.train.dynamic`.
        prepare: called with the fresh network, for example to set connections of one's own.
        checkpoint_every: steps between two checkpoints, beside the one after every epoch.
        record: False writes ``last.safetensors`` alone, to resume from.
        show: where progress goes, for example :class:`~sparsekern.train.show.Live`.

    Under ``torchrun`` every process takes its part of each batch, and the loss is that of one process with the whole batch; batch-norm
    sees the samples of its own process.

    Raises:
        ValueError: ``train: epochs must be at least 1; got 0``, and so for ``batch``, ``checkpoint_every`` and the like;
            ``train: device must be one that torch can use here; got 'cuda' (Torch not compiled with CUDA enabled)``;
            ``train: data must have at least 1 sample to judge by; got 0``; as :func:`~sparsekern.train.load_data`;
            ``train: out must not hold a checkpoint yet, or be resumed; got 'runs/a'``;
            ``train: out must not hold a run yet; got 'runs/a', with log.csv and without last.safetensors``;
            ``train: checkpoint must be the last one, with what the optimiser gathered; got the best one (runs/a/last.safetensors)``;
            ``train: checkpoint must be of the same run; got recipe.batch 64 where 32 is asked for``; as
            :func:`~sparsekern.train.checkpoint.load_checkpoint` for a damaged one. Nothing is overwritten then.
        ArithmeticError: ``train: loss must be finite; got nan in step 17``
        ModuleNotFoundError: ``train: safetensors must be installed, for checkpoints: pip install "sparsekern[train]"``, if ``out`` is given

    Example:
        >>> from sparsekern.train import get_recipe
        >>> recipe = get_recipe("digits/density").with_(epochs=2, options={"fan_out": (16, 10)})
        >>> trained = train(recipe)
        >>> len(trained.rows), trained.last > 0.3
        (2, True)
    """
    check_training(recipe, path=path, out=out, seed=seed, checkpoint_every=checkpoint_every)
    if not isinstance(data, TrainingData | ImageFolders | None):
        raise ValueError(f"train: data must be TrainingData or ImageFolders, or None; got {type(data).__name__}")
    device = usable_device(device)
    with processes(device) as group, torch.random.fork_rng():
        data = load_data(recipe, path, check=check) if data is None else data
        model = build_model(recipe, seed)
        if prepare is not None:
            prepare(model)
        trainer = Trainer(recipe, data, model, seed=seed, device=device, amp=amp, dynamic=dynamic or Fixed(), group=group)
        trainer.out, trainer.checkpoint_every, trainer.record = (None if out is None else Path(out)), checkpoint_every, record
        trainer.show = show if show is not None and group.first else Quiet()
        if trainer.out is not None:
            trainer.open_out(resume)
        return trainer.run()


class Trainer:
    """One training: its parts, where it stands, and how it is saved."""

    def __init__(
        self,
        recipe: Recipe,
        data: TrainingData | ImageFolders,
        model: nn.Module,
        *,
        seed: int,
        device: torch.device,
        amp: bool,
        dynamic: Fixed,
        group: Processes,
    ) -> None:
        self.recipe, self.data, self.seed, self.device, self.amp = recipe, data, seed, device, amp
        self.dynamic, self.group = dynamic, group
        self.model = model.to(device)
        self.optimiser = make_optimiser(recipe.optimiser, self.model)
        self.batches = self._batches(len(data.train))
        self.dynamic.begin(self.model, self.optimiser, group, seed, self.batches)
        self.net = group.wrap(self.model)
        self.epoch = self.batch_number = 0  # where training stands: the next batch
        self.sums = torch.zeros(3, dtype=torch.float64)  # loss, correct, samples of this epoch so far, of this process
        self.seconds = 0.0
        self.rows: list[dict[str, Any]] = []
        self.out: Path | None = None
        self.checkpoint_every: int | None = None
        self.record = True
        self.show = Quiet()
        self._facts: dict[str, Any] | None = None

    def _batches(self, n: int) -> int:
        """Batches of an epoch; a last one too small to give every process two samples is left out."""
        whole, rest = divmod(n, self.recipe.batch)
        batches = whole + (rest >= 2 * self.group.world)
        if batches == 0:
            raise ValueError(f"train: data must be of at least {2 * self.group.world} samples; got {n}")
        if len(self.data.val) == 0:
            raise ValueError("train: data must have at least 1 sample to judge by; got 0")
        return batches

    # ---- training

    def run(self) -> Trained:
        title = f"{self.recipe.name}: {type(self.model).__name__}, {sum(p.numel() for p in self.model.parameters()):,} parameters"
        nothing_left = self.epoch >= self.recipe.epochs
        try:
            while self.epoch < self.recipe.epochs:
                self.show.begin(title, self.epoch, self.recipe.epochs, self.batch_number, self.batches)
                self._run_epoch()
            if nothing_left:  # it may have been stopped between its last checkpoint and its record
                self.write_record()
        finally:
            self.show.end()
        self.group.wait()
        return Trained(self.model, self.rows)

    def _run_epoch(self) -> None:
        order = epoch_order(len(self.data.train), self.seed, self.epoch)
        began = time.perf_counter()
        self.net.train()
        while self.batch_number < self.batches:
            first = self.batch_number * self.recipe.batch
            self._step(order[first : first + self.recipe.batch])
            self.batch_number += 1
            due = self.checkpoint_every and self.batch_number % self.checkpoint_every == 0 and self.batch_number < self.batches
            if due and self.out is not None:
                self.seconds, began = self.seconds + time.perf_counter() - began, time.perf_counter()
                self.save()
        loss, correct, samples = self.group.sum_(self.sums).tolist()
        seconds = self.seconds + time.perf_counter() - began
        val_loss, val_accuracy = self.evaluate()
        row = {"epoch": self.epoch + 1, "steps": (self.epoch + 1) * self.batches, "rate": self._rate(self._step_number - 1)}
        row |= {"train_loss": loss / samples, "train_accuracy": correct / samples, "val_loss": val_loss, "val_accuracy": val_accuracy}
        row |= {"seconds": round(seconds, 3), "samples_per_s": round(samples / seconds, 1)}
        self.rows.append(row)
        self.epoch, self.batch_number, self.seconds = self.epoch + 1, 0, 0.0
        self.sums.zero_()
        self.show.epoch(row)
        if self.out is not None:
            self.save(best=all(row["val_accuracy"] > other["val_accuracy"] for other in self.rows[:-1]))
            self.write_record()

    @property
    def _step_number(self) -> int:
        return self.epoch * self.batches + self.batch_number

    @property
    def _steps(self) -> int:
        return self.recipe.epochs * self.batches

    def _rate(self, step: int) -> float:
        return self.recipe.schedule.rate(self.recipe.optimiser.lr, step, self._steps)

    def _step(self, indices: Tensor) -> None:
        step = self._step_number
        self._seed_generators(fold_seed(self.seed, "step", step, self.group.rank))
        x, y = self.data.batch(indices, fold_seed(self.seed, "augment", step), self.group.part(len(indices)))
        x, y = x.to(self.device), y.to(self.device)
        rate = self._rate(step)
        for group in self.optimiser.param_groups:
            group["lr"] = rate
        self.dynamic.before_forward(step, self._steps)
        with torch.autocast(self.device.type, torch.bfloat16, enabled=self.amp):
            scores = self.net(x)
        scores, *auxiliary = scores if isinstance(scores, tuple) else (scores,)
        own = F.cross_entropy(scores.float(), y, reduction="sum")
        total = own + sum(AUXILIARY * F.cross_entropy(one.float(), y, reduction="sum") for one in auxiliary)
        self.optimiser.zero_grad()
        (total * (self.group.world / len(indices))).backward()  # processes are averaged: together the mean over the whole batch
        if not self.dynamic.instead_of_step(step, self._steps):
            self.optimiser.step()
        loss = own.item()
        if not math.isfinite(loss):
            raise ArithmeticError(f"train: loss must be finite; got {loss} in step {step}")
        self.sums += torch.tensor([loss, (scores.argmax(1) == y).sum().item(), len(y)], dtype=torch.float64)
        self.show.step(loss / max(1, len(y)), float(self.sums[1] / self.sums[2].clamp_min(1)), rate)

    def _seed_generators(self, seed: int) -> None:
        """For dropout and the like; ``torch.manual_seed`` would note the whole call stack at every step while CUDA sleeps."""
        torch.default_generator.manual_seed(seed)
        if self.device.type == "cuda":
            torch.cuda.manual_seed(seed)

    @torch.no_grad()
    def evaluate(self) -> tuple[float, float]:
        """Loss and accuracy on the validation split, of the model that :meth:`save` writes."""
        self.group.share_statistics(self.model)
        self.model.eval()
        sums = torch.zeros(2, dtype=torch.float64)
        part = self.group.part(len(self.data.val))
        for first in range(part.start, part.stop, self.data.val_step):
            x, y = self.data.val_batch(first, min(first + self.data.val_step, part.stop))
            with torch.autocast(self.device.type, torch.bfloat16, enabled=self.amp):
                scores = self.model(x.to(self.device)).float()
            y = y.to(self.device)
            sums += torch.tensor([F.cross_entropy(scores, y, reduction="sum").item(), (scores.argmax(1) == y).sum().item()])
        loss, correct = (self.group.sum_(sums) / len(self.data.val)).tolist()
        return loss, correct

    # ---- checkpoints

    def open_out(self, resume: bool) -> None:
        """Make the folder, or go on where it stands; every process reads the same file."""
        need_safetensors()
        assert self.out is not None
        last = self.out / LAST
        if last.exists():
            if not resume:
                raise ValueError(f"train: out must not hold a checkpoint yet, or be resumed; got {str(self.out)!r}")
            self.restore(*load_checkpoint(last), last)
        elif not resume:
            check_unused(self.out)
        self.group.wait()
        if self.group.first:
            self.out.mkdir(parents=True, exist_ok=True)

    def facts(self) -> dict[str, Any]:
        """What decides the weights that this training ends in."""
        if self._facts is None:
            facts = {"recipe": self.recipe.facts(), "seed": self.seed, "amp": self.amp, "dynamic": self.dynamic.facts()}
            facts |= {"processes": self.group.world, "device": self.device.type}  # rounding, and what dropout draws
            self._facts = json.loads(json.dumps({**facts, "data": self.data.facts()}))
        return self._facts

    def save(self, best: bool = False) -> None:
        sums = self.group.sum_(self.sums.clone())
        if not self.group.first:
            return
        assert self.out is not None
        model = with_prefix("model", self.model.state_dict())
        at = {"epoch": self.epoch, "batch_number": self.batch_number, "sums": sums.tolist(), "seconds": self.seconds}
        facts = {"run": self.facts(), "at": at, "rows": self.rows}
        whole = model | with_prefix("optimiser", optimiser_tensors(self.optimiser, self.model))
        if best and self.record:  # first: stopped in between, the epoch is repeated, and the best with it
            save_checkpoint(self.out / BEST, model, facts | {"kind": "best"})
        save_checkpoint(self.out / LAST, whole | with_prefix("topology", self.dynamic.tensors()), facts | {"kind": "last"})

    def write_record(self) -> None:
        """The log, and the curves once all epochs are there; both come from the rows of the last checkpoint alone."""
        if self.out is None or not self.record or not self.group.first:
            return
        write_log(self.out, self.facts(), self.rows)
        if self.epoch < self.recipe.epochs:
            return
        try:
            plot_curves(self.out / "curves.png", self.rows, title=self.recipe.name)
        except ModuleNotFoundError as absent:
            self.show.note(f"no curves: {absent}")

    def restore(self, tensors: Mapping[str, Tensor], facts: Mapping[str, Any], path: Path) -> None:
        """Stand where the checkpoint stands; nothing is touched before all of it is known to fit."""
        check_resumable(facts, path)
        difference = first_difference(facts["run"], self.facts())
        if difference:
            raise ValueError(f"train: checkpoint must be of the same run; got {difference} ({path})")
        model, optimiser = under_prefix("model", tensors), under_prefix("optimiser", tensors)
        own = self.model.state_dict()
        wrong = [f"{name} {shape_of(model, name)}, the model's is {shape_of(own, name)}" for name in sorted(own | model)]
        wrong = [text for name, text in zip(sorted(own | model), wrong) if shape_of(model, name) != shape_of(own, name)]
        misfit = wrong[0] if wrong else expected_shapes(self.model, optimiser)
        if misfit:
            raise ValueError(f"train: checkpoint must fit the model; got {misfit} ({path})")
        self.model.load_state_dict(model)
        restore_optimiser(self.optimiser, self.model, optimiser)
        self.dynamic.restore(under_prefix("topology", tensors))
        at = facts["at"]
        self.epoch, self.batch_number, self.seconds = at["epoch"], at["batch_number"], at["seconds"]
        self.sums = torch.tensor(at["sums"], dtype=torch.float64) * self.group.first
        self.rows = list(facts["rows"])


def epoch_order(n: int, seed: int, epoch: int) -> Tensor:
    """``[n]``: in which order an epoch takes the samples; the same on every machine.

    Example:
        >>> epoch_order(5, seed=0, epoch=1).sort().values
        tensor([0, 1, 2, 3, 4])
    """
    draw = torch.Generator().manual_seed(fold_seed(seed, "order", epoch))
    return torch.rand(n, generator=draw, dtype=torch.float64).argsort(stable=True)


def shape_of(tensors: Mapping[str, Tensor], name: str) -> str:
    return f"{list(tensors[name].shape)} of {str(tensors[name].dtype).removeprefix('torch.')}" if name in tensors else "missing"


def first_difference(theirs: Any, ours: Any, name: str = "") -> str | None:
    """Where two plain documents differ first, in words; None where they are the same."""
    if isinstance(theirs, dict) and isinstance(ours, dict):
        for key in [*theirs, *(key for key in ours if key not in theirs)]:
            found = first_difference(theirs.get(key), ours.get(key), f"{name}.{key}" if name else key)
            if found:
                return found
        return None
    return None if theirs == ours else f"{name} {theirs} where {ours} is asked for"
