"""The rows of a table that can be timed: a registered model with its options, and its dense twin."""

from __future__ import annotations

import inspect
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import nn

from sparsekern.models.registry import create_model, list_models, model_card

FAMILIES = {"root": "root", "tree": "tree", "col": "column"}


@dataclass(frozen=True)
class Variant:
    """A model to build: a registered name with options."""

    model: str
    options: tuple[tuple[str, object], ...] = ()

    @property
    def name(self) -> str:
        """What messages and files call it: ``morse_cl(fan_out=(512, 32))``."""
        if not self.options:
            return self.model
        return f"{self.model}({', '.join(f'{k}={v}' for k, v in self.options)})"

    @property
    def input_shape(self) -> tuple[int, ...]:
        """Of one image; the paper's unless an option says another."""
        options: dict[str, Any] = dict(self.options)
        return tuple(options.get("input_shape", model_card(self.model).input_shape))

    @property
    def dense(self) -> Variant:
        """The twin with every connection: the registered one, or the same model fully connected, or this very model."""
        twin = model_card(self.model).dense
        if twin is not None:
            return Variant(twin, self.options)
        return Variant(self.model, tuple((k, v) for k, v in self.options if k != "fan_out"))

    def build(self, training: bool = False) -> nn.Module:
        """The model as it runs for inference, of our layers: batch-norm folded, weights always the same, no zero bias; for ``training``
        with the batch-norms it has."""
        generator = torch.Generator().manual_seed(0)
        known = inspect.signature(model_card(self.model).build).parameters
        fixed = {"batch_norm": training, "generator": generator, "aux": None}  # auxiliary classifiers do not run for inference
        options = {name: value for name, value in fixed.items() if name in known} | dict(self.options)
        with torch.random.fork_rng(devices=[]), torch.no_grad():
            torch.manual_seed(0)  # for layers that draw without a generator
            model = create_model(self.model, **options).eval()
            for name, parameter in model.named_parameters():
                if name.endswith("bias"):
                    parameter.normal_(0.0, 0.1, generator=generator)  # a zero bias would hide a forgotten one
        return model.requires_grad_(False)


@dataclass(frozen=True)
class PaperRow:
    """A row of the paper's table and the model that it describes."""

    label: str
    variant: Variant
    paper: dict = field(compare=False)  # as in the table's data

    @property
    def family(self) -> str:
        """``root``, ``tree`` or ``column`` by the model's name, else ``other``."""
        return next((FAMILIES[word] for word in self.variant.model.split("_") if word in FAMILIES), "other")

    @property
    def is_dense(self) -> bool:
        return self.variant == self.variant.dense


def timed_rows(rows: Iterable[dict]) -> list[PaperRow]:
    """The rows whose model exists here, each once; rows of other people's networks are data only."""
    registered = set(list_models())
    found: dict[Variant, PaperRow] = {}
    for row in rows:
        if row.get("model") in registered:
            options = {key: tuple(v) if isinstance(v, list) else v for key, v in row.get("options", {}).items()}
            variant = Variant(row["model"], tuple(sorted(options.items())))
            found.setdefault(variant, PaperRow(row["row"], variant, row))
    return list(found.values())
