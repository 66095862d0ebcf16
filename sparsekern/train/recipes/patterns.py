"""Sparse connectivity patterns: Adam, SGD on Morse code, no augmentation, 30 epochs (100 for MNIST without convolutions).

Source: Dey et al., "Characterizing Sparse Connectivity Patterns in Neural Networks" (arXiv 1711.02131), section 2.2. The paper tells
the optimisers and the epochs. From the authors' later code: He's normal start, biases at 0.1, Adam with its rate divided by 1 + 1e-5
per step, batches of 256. SGD's rate of 0.3 and its batch of 32 are ours: with 0.1 and 128 training takes many times longer.
L2 regularisation "wherever applicable" has no number in the paper; there is none here.
"""

from __future__ import annotations

from typing import Any

from sparsekern.train.recipe import Optimiser, Recipe, Schedule, register_recipe

PAPER = "Sparse connectivity patterns, section 2.2; batch, start and rate: the authors' later code"
ADAM: dict[str, Any] = dict(
    optimiser=Optimiser("adam", 1e-3, {"eps": 1e-7}), schedule=Schedule(decay=1e-5), batch=256, bias=0.1, source=PAPER
)

register_recipe(
    Recipe(
        "patterns/morse", "morse_cl", "morse",
        source="Sparse connectivity patterns, section 2.2.3: SGD, 30 epochs; rate and batch are ours",
        optimiser=Optimiser("sgd", 0.3), batch=32, epochs=30, bias=0.1,
        data_options={"per_class": 5000},
        reduced={"epochs": 12, "data_options": {"per_class": 1000, "val_per_class": 200}},
    )
)  # fmt: skip

register_recipe(Recipe("patterns/mnist_cl", "mnist_cl", "mnist", epochs=100, **ADAM, reduced={"epochs": 5}))
for _name, _data in (
    ("mnist_conv_2cl", "mnist"),
    ("cifar10_conv_2cl", "cifar10"),
    ("cifar10_conv_3cl", "cifar10"),
    ("cifar100_conv_2cl", "cifar100"),
    ("cifar100_conv_3cl", "cifar100"),
):
    register_recipe(Recipe(f"patterns/{_name}", _name, _data, epochs=30, **ADAM, reduced={"epochs": 3}))
