"""StochasticNet in StochasticNet: no recipe is told, so this is Deep Roots' for the same network.

Source: Shafiee, Fieguth and Wong, "StochasticNet in StochasticNet", section 3: data sets and networks alone. CIFAR-10 is augmented as in
Deep Roots; SVHN, 604,388 images of the training and extra sets, is not. The networks have no biases; batch-norm is ours.
"""

from __future__ import annotations

from typing import Any

from sparsekern.models import list_models
from sparsekern.train.recipe import Recipe, Schedule, register_recipe
from sparsekern.train.recipes.deep_roots import SGD

COMMON: dict[str, Any] = dict(
    source="the paper tells no recipe: Deep Roots' for Network in Network; SVHN without augmentation",
    optimiser=SGD,
    schedule=Schedule(milestones=(1 / 3, 2 / 3)),
    batch=128,
    options={"batch_norm": True},
    centre=True,
)

for _name in list_models("sis_*"):
    for _data, _split, _epochs in (("cifar10", "train", 300), ("svhn", "train+extra", 40)):
        if _name == "sis_nin" or _data in _name:
            _recipe = f"sis/{_name.removeprefix('sis_')}" + (f"_{_data}" if _name == "sis_nin" else "")
            _extra: dict[str, Any] = {"augment": "pad_crop_mirror"} if _data == "cifar10" else {"data_options": {"split": _split}}
            register_recipe(Recipe(_recipe, _name, _data, epochs=_epochs, reduced={"epochs": max(1, _epochs // 50)}, **COMMON, **_extra))
