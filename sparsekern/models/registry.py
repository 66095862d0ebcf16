"""The model registry: names to cards, one file per model family."""

from __future__ import annotations

import difflib
import fnmatch
import inspect
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from torch import nn

from sparsekern.arguments import said
from sparsekern.models.options import check, check_numbers

Builder = Callable[..., nn.Module]


@dataclass(frozen=True)
class ModelCard:
    """What is known of a registered model before it is built."""

    name: str
    build: Builder
    paper: str  # short title, as in the README's list of papers
    input_shape: tuple[int, ...]  # of one image: [C, H, W], or [features]
    reduced_shape: tuple[int, ...]  # the smallest handy input on which every layer still has work: tests use it
    dense: str | None  # the registered dense twin of the same shape; None for a dense model


_CARDS: dict[str, ModelCard] = {}


def register_model(
    builder: Builder,
    *,
    name: str | None = None,
    paper: str,
    input_shape: tuple[int, ...],
    reduced_shape: tuple[int, ...] | None = None,
    dense: str | None = None,
) -> Builder:
    """Make ``builder`` known to :func:`create_model` as ``name`` (default: the function's own name).

    Args:
        builder: takes options by keyword, each with a default; ``input_shape=`` among them where layers depend on it.
        name: lower case, words joined by ``_``.
        paper: short title of the source.
        input_shape: the paper's input, one image without the batch.
        reduced_shape: a smaller input for tests, default ``input_shape``.
        dense: name of the dense twin.

    Raises:
        ValueError: ``register_model: name must be new; got 'nin'``
    """
    reduced_shape = input_shape if reduced_shape is None else reduced_shape
    check("register_model", callable(builder), "builder", "callable", builder)
    name = getattr(builder, "__name__", None) if name is None else name
    for arg, value in {"name": name, "paper": paper, "dense": "" if dense is None else dense}.items():
        check("register_model", isinstance(value, str), arg, "a string", value)
    for arg, shape in {"input_shape": input_shape, "reduced_shape": reduced_shape}.items():
        check_numbers("register_model", arg, shape, "positive (C, H, W) or (features,)")
    if name in _CARDS:
        raise ValueError(f"register_model: name must be new; got {name!r}")
    _CARDS[str(name)] = ModelCard(str(name), builder, paper, input_shape, reduced_shape, dense)
    return builder


def list_models(pattern: str = "*") -> list[str]:
    """Return the registered names that match a shell pattern, in natural order.

    Raises:
        ValueError: ``list_models: pattern must be a string; got 3``

    Example:
        >>> list_models("nin_root_?")
        ['nin_root_2', 'nin_root_4', 'nin_root_8']
    """
    check("list_models", isinstance(pattern, str), "pattern", "a string", pattern)
    return sorted(fnmatch.filter(_CARDS, pattern), key=_natural)


def model_card(name: str) -> ModelCard:
    """Return the card of a registered model.

    Raises:
        ValueError: ``create_model: name must be a registered model; got 'nin_root_3' (nearest: nin_root_2, ...)``

    Example:
        >>> model_card("nin_root_8").dense
        'nin'
    """
    if not isinstance(name, str) or name not in _CARDS:
        near = difflib.get_close_matches(str(name), _CARDS, n=4, cutoff=0.5)
        hint = f"nearest: {', '.join(near)}" if near else f"registered: {', '.join(list_models())}"
        raise ValueError(f"create_model: name must be a registered model; got {said(name)} ({hint})")
    return _CARDS[name]


def create_model(name: str, **options: Any) -> nn.Module:
    """Build a registered model with fresh weights.

    Args:
        name: one of :func:`list_models`.
        **options: passed to the builder, for example ``conv=torch.nn.Conv2d`` or ``batch_norm=True``.

    Raises:
        ValueError: ``create_model: name must be a registered model; got 'nin_root_3' (nearest: nin_root_2, ...)``;
            ``create_model: options of nin must be among batch_norm, conv, ...; got depth``

    Example:
        >>> from torch import nn
        >>> create_model("nin_root_4", conv=nn.Conv2d).conv2a.groups
        4
    """
    build = model_card(name).build
    parameters = inspect.signature(build).parameters.values()
    known = sorted(p.name for p in parameters if p.kind in (p.KEYWORD_ONLY, p.POSITIONAL_OR_KEYWORD))
    unknown = [option for option in options if option not in known]
    if unknown and not any(p.kind is p.VAR_KEYWORD for p in parameters):
        raise ValueError(f"create_model: options of {name} must be among {', '.join(known)}; got {', '.join(unknown)}")
    return build(**options)


def _natural(name: str) -> tuple:
    """Sort key in which ``nin_root_16`` follows ``nin_root_8``."""
    return tuple((1, int(part), "") if part.isdigit() else (0, 0, part) for part in name.split("_"))
