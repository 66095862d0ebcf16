"""Networks as recipes ask for them."""

from __future__ import annotations

import inspect
from collections.abc import Sequence
from typing import Any

import torch
from torch import nn

from sparsekern.models import create_model, model_card
from sparsekern.models.patterns import PatternNet
from sparsekern.nn import SparseLinear
from sparsekern.train.recipe import Recipe, fold_seed


def digits_cl(*, fan_out: Sequence[int] | None = None, seed: int | None = 0, **options: Any) -> PatternNet:
    """64-128-10, for 8 x 8 digits; options as of :class:`~sparsekern.models.patterns.PatternNet`."""
    return PatternNet("digits_cl", (128, 10), input_shape=(64,), fan_out=fan_out, seed=seed, **options)


OWN = {"digits_cl": digits_cl}  # not of a paper, so not among the registered models


def build_model(recipe: Recipe, seed: int) -> nn.Module:
    """The network of a recipe: weights, and the connections of those that draw any, follow the seed alone.

    Example:
        >>> from sparsekern.train import get_recipe
        >>> build_model(get_recipe("patterns/morse").with_(options={"fan_out": (128, 8)}), seed=1).junction1.fan_in
        8
    """
    builder = OWN.get(recipe.model) or model_card(recipe.model).build
    options = dict(recipe.options)
    if "seed" in inspect.signature(builder).parameters:
        options.setdefault("seed", seed)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(fold_seed(seed, "weights"))
        model = OWN[recipe.model](**options) if recipe.model in OWN else create_model(recipe.model, **options)
    for module in model.modules():
        if recipe.bias is not None and isinstance(module, nn.Linear | SparseLinear) and module.bias is not None:
            nn.init.constant_(module.bias, recipe.bias)
        if recipe.bn_momentum is not None and isinstance(module, nn.BatchNorm2d):
            module.momentum = recipe.bn_momentum
    return model
