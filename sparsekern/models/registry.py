"""The model registry: names to builders, one file per paper family."""

from __future__ import annotations

import difflib
import fnmatch
from collections.abc import Callable

from torch import nn

Builder = Callable[..., nn.Module]

_BUILDERS: dict[str, Builder] = {}


def register_model(builder: Builder, *, name: str | None = None) -> Builder:
    """Make ``builder`` known to :func:`create_model` as ``name`` (default: the function's own name).

    A decorator where a family has one builder per name; called directly where names are generated from a plan.

    Raises:
        ValueError: ``register_model: name must be new; got 'nin'``
    """
    name = builder.__name__ if name is None else name
    if name in _BUILDERS:
        raise ValueError(f"register_model: name must be new; got {name!r}")
    _BUILDERS[name] = builder
    return builder


def list_models(pattern: str = "*") -> list[str]:
    """Return the registered names that match a shell pattern, in natural order.

    Example:
        >>> list_models("nin_root_*")
        ['nin_root_2', 'nin_root_4', 'nin_root_8', 'nin_root_16']
    """
    return sorted(fnmatch.filter(_BUILDERS, pattern), key=_natural)


def create_model(name: str, **options) -> nn.Module:
    """Build a registered model with fresh weights.

    Args:
        name: one of :func:`list_models`.
        **options: passed to the builder, for example ``conv=torch.nn.Conv2d`` or ``batch_norm=True``.

    Raises:
        ValueError: ``create_model: name must be a registered model; got 'nin_root_3' (nearest: nin_root_2, ...)``

    Example:
        >>> from torch import nn
        >>> create_model("nin_root_4", conv=nn.Conv2d).conv2a.groups
        4
    """
    if name not in _BUILDERS:
        near = difflib.get_close_matches(str(name), _BUILDERS, n=4, cutoff=0.5)
        hint = f"nearest: {', '.join(near)}" if near else f"registered: {', '.join(list_models())}"
        raise ValueError(f"create_model: name must be a registered model; got {name!r} ({hint})")
    return _BUILDERS[name](**options)


def _natural(name: str) -> tuple:
    """Sort key in which ``nin_root_16`` follows ``nin_root_8``."""
    return tuple((1, int(part), "") if part.isdigit() else (0, 0, part) for part in name.split("_"))
