"""Deep Roots: Network in Network on CIFAR-10, dense and in filter groups.

Source: Ioannou et al., arXiv 1605.06489, section 4.1: He's start, batch-norm behind every convolution, 32 x 32 crops of images that
are padded by 4 pixels and mirrored, mean subtracted; no dropout, no whitening. Rate, momentum and decay are not told. The snapshots of
the author's thesis lie 390 steps apart and at 39,062, 78,124 and 117,186: that is 100, 200 and 300 epochs of batches of 128, where
the rate falls to a tenth here. Rate 0.1, Nesterov's momentum 0.9 and decay 1e-4 are ours.
"""

from __future__ import annotations

from sparsekern.models import list_models
from sparsekern.train.recipe import Optimiser, Recipe, Schedule, register_recipe

SGD = Optimiser("sgd", 0.1, {"momentum": 0.9, "nesterov": True, "weight_decay": 1e-4})

for _name in list_models("nin*"):
    register_recipe(
        Recipe(
            f"deep-roots/{_name}", _name, "cifar10",
            source="Deep Roots, section 4.1; epochs and batch inferred from the thesis; rate, momentum and decay are ours",
            optimiser=SGD, schedule=Schedule(milestones=(1 / 3, 2 / 3)), epochs=300, batch=128,
            options={"batch_norm": True}, augment="pad_crop_mirror", centre=True, reduced={"epochs": 6},
        )
    )  # fmt: skip
