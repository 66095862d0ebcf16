"""Optimisers by name, and their state as plain tensors."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor, nn

from sparsekern.train.recipe import Optimiser

OPTIMISERS = {
    "sgd": torch.optim.SGD,
    "adam": torch.optim.Adam,
    "adamw": torch.optim.AdamW,
    "adadelta": torch.optim.Adadelta,  # Caffe's: rho is its momentum, eps its delta
    "rmsprop": torch.optim.RMSprop,
}


def make_optimiser(told: Optimiser, model: nn.Module) -> torch.optim.Optimizer:
    """Raises:
    ValueError: ``train: optimiser must be one of adadelta, adam, adamw, rmsprop, sgd; got 'lion'``
    """
    if told.name not in OPTIMISERS:
        raise ValueError(f"train: optimiser must be one of {', '.join(sorted(OPTIMISERS))}; got {told.name!r}")
    return OPTIMISERS[told.name](model.parameters(), lr=told.lr, **told.options)


def optimiser_tensors(optimiser: torch.optim.Optimizer, model: nn.Module) -> dict[str, Tensor]:
    """``{"junction1.weight/exp_avg": [...], ...}``: all that the optimiser has gathered so far."""
    found = {}
    for name, parameter in model.named_parameters():
        for key, value in optimiser.state.get(parameter, {}).items():
            if isinstance(value, Tensor):
                found[f"{name}/{key}"] = value
            elif value is not None:
                raise ValueError(f"train: state of the optimiser must be tensors; got {key} of {name}, {type(value).__name__}")
    return found


def restore_optimiser(optimiser: torch.optim.Optimizer, model: nn.Module, tensors: Mapping[str, Tensor]) -> None:
    """Give back what :func:`optimiser_tensors` took; torch moves and casts each entry as it needs it."""
    state: dict[int, dict[str, Tensor]] = {}
    for number, (name, _) in enumerate(model.named_parameters()):
        prefix = f"{name}/"
        entries = {key.removeprefix(prefix): value.clone() for key, value in tensors.items() if key.startswith(prefix)}
        if entries:
            state[number] = entries
    optimiser.load_state_dict({"state": state, "param_groups": optimiser.state_dict()["param_groups"]})


def expected_shapes(model: nn.Module, tensors: Mapping[str, Tensor]) -> str | None:
    """What does not fit the model's parameters, in words; None where all does."""
    parameters = dict(model.named_parameters())
    for key, value in tensors.items():
        name, _, entry = key.rpartition("/")
        if name not in parameters:
            return f"{key}, of which the model has no parameter"
        if value.dim() and value.shape != parameters[name].shape:
            return f"{key} {list(value.shape)} where {entry} of {list(parameters[name].shape)} belongs"
    return None
