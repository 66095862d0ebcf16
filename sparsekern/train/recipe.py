"""A recipe: everything that decides how a network is trained, as data."""

from __future__ import annotations

import difflib
import math
import zlib
from dataclasses import asdict, dataclass, field, replace
from typing import Any

PRESETS = ("full", "reduced")


@dataclass(frozen=True)
class Optimiser:
    """Which optimiser, by its name in ``sparsekern.train.optimiser``, its rate at the start and its options."""

    name: str
    lr: float
    options: dict[str, float | bool] = field(default_factory=dict)


@dataclass(frozen=True)
class Schedule:
    """The rate as a function of the step alone: nothing to save, nothing to lose.

    ``milestones`` are fractions of the whole training: at each the rate is multiplied by ``gamma``. ``decay`` divides it by
    ``1 + decay * step`` (Keras' way).
    """

    milestones: tuple[float, ...] = ()
    gamma: float = 0.1
    decay: float = 0.0

    def __post_init__(self) -> None:
        number = lambda n: isinstance(n, int | float) and math.isfinite(n)  # noqa: E731
        good = isinstance(self.milestones, tuple | list) and all(map(number, self.milestones))
        if not good:
            raise ValueError(f"Schedule: milestones must be fractions of the training; got {self.milestones!r}")
        for arg, value in (("gamma", self.gamma), ("decay", self.decay)):
            if not number(value) or value < 0:
                raise ValueError(f"Schedule: {arg} must be a finite number of at least 0; got {value!r}")

    def rate(self, lr: float, step: int, steps: int) -> float:
        """Rate of step ``step`` of ``steps``, counted from 0.

        Example:
            >>> schedule = Schedule(milestones=(0.5,))
            >>> schedule.rate(1.0, 49, 100), schedule.rate(1.0, 50, 100)
            (1.0, 0.1)
        """
        passed = sum(step >= milestone * steps for milestone in self.milestones)
        return lr * self.gamma**passed / (1 + self.decay * step)


@dataclass(frozen=True)
class Recipe:
    """How one network is trained on one data set.

    Attributes:
        name: ``"patterns/morse"``: family and network.
        model: registered name, as of ``sparsekern models``.
        data: one of ``sparsekern.train.DATA``.
        source: where the settings are from, and which of them are ours.
        optimiser, schedule, epochs, batch: as usual; ``batch`` is that of all processes together.
        options: of ``create_model``.
        data_options: of the data set.
        augment: ``"none"`` or ``"pad_crop_mirror"``; of ImageNet, ``"crop_mirror"`` or ``"full_imagenet"``.
        centre: subtract the mean image of the training set.
        bias: what the biases of linear layers start at; None: what the model gives them.
        bn_momentum: of every batch-norm, in torch's sense (weight of the new batch); None: the model's own.
        reduced: fields that the preset ``"reduced"`` replaces: minutes on one core in place of hours.
    """

    name: str
    model: str
    data: str
    source: str
    optimiser: Optimiser
    epochs: int
    batch: int
    schedule: Schedule = Schedule()
    options: dict[str, Any] = field(default_factory=dict)
    data_options: dict[str, Any] = field(default_factory=dict)
    augment: str = "none"
    centre: bool = False
    bias: float | None = None
    bn_momentum: float | None = None
    reduced: dict[str, Any] = field(default_factory=dict)

    def preset(self, name: str) -> Recipe:
        """The recipe as a preset has it.

        Raises:
            ValueError: ``recipe: preset must be one of ('full', 'reduced'); got 'tiny'``
        """
        if name not in PRESETS:
            raise ValueError(f"recipe: preset must be one of {PRESETS}; got {name!r}")
        return replace(self, reduced={}, **(self.reduced if name == "reduced" else {}))

    def with_(self, **fields: Any) -> Recipe:
        """A recipe with other fields; ``lr=`` reaches into the optimiser, ``options=`` are added to those there are."""
        if "lr" in fields:
            fields["optimiser"] = replace(self.optimiser, lr=fields.pop("lr"))
        for name in ("options", "data_options"):
            if name in fields:
                fields[name] = {**getattr(self, name), **fields[name]}
        return replace(self, **fields)

    def facts(self) -> dict[str, Any]:
        """What decides the result, as plain data: two runs with equal facts, seeds and data end in equal weights."""
        return {key: value for key, value in asdict(self).items() if key not in ("source", "reduced")}


_RECIPES: dict[str, Recipe] = {}


def register_recipe(recipe: Recipe) -> Recipe:
    """Make a recipe known to :func:`get_recipe`.

    Raises:
        ValueError: ``register_recipe: name must be new; got 'patterns/morse'``
    """
    if recipe.name in _RECIPES:
        raise ValueError(f"register_recipe: name must be new; got {recipe.name!r}")
    _RECIPES[recipe.name] = recipe
    return recipe


def list_recipes() -> list[Recipe]:
    """All recipes, in the order of their families."""
    return list(_RECIPES.values())


def get_recipe(name: str) -> Recipe:
    """The recipe of a name.

    Raises:
        ValueError: ``train: RECIPE must be one of sparsekern train --list; got 'patterns/mors' (nearest: patterns/morse)``

    Example:
        >>> from sparsekern.train import get_recipe
        >>> get_recipe("simplenet/5m_cifar10").bn_momentum
        0.05
    """
    if not isinstance(name, str) or name not in _RECIPES:
        near = difflib.get_close_matches(str(name), _RECIPES, n=3, cutoff=0.4)
        hint = f" (nearest: {', '.join(near)})" if near else ""
        raise ValueError(f"train: RECIPE must be one of sparsekern train --list; got {name!r}{hint}")
    return _RECIPES[name]


def fold_seed(*words: object) -> int:
    """One 32-bit seed from several words, the same everywhere; torch's generator reads no more bits.

    Example:
        >>> fold_seed(0, "order", 3) != fold_seed(0, "order", 4)
        True
    """
    return zlib.crc32(" ".join(map(str, words)).encode())
