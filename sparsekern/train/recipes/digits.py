"""Scikit-learn's digits: the small real data set, on which a net trains in seconds.

Not of a paper: 64-128-10, Adam, 40 epochs, on 1437 images of 8 x 8 pixels, tested on the other 360.
"""

from __future__ import annotations

from sparsekern.train.recipe import Optimiser, Recipe, register_recipe

register_recipe(
    Recipe(
        "digits/density", "digits_cl", "digits", source="this package's own",
        optimiser=Optimiser("adam", 1e-3), batch=64, epochs=40,
    )
)  # fmt: skip
