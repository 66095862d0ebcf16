"""A net and data that train in milliseconds, with everything that could forget its state: batch-norm, dropout, momentum, crops."""

from __future__ import annotations

import torch
from torch import nn

from sparsekern.data import Samples
from sparsekern.nn import SparseLinear, StochasticConv2d
from sparsekern.train import Optimiser, Recipe, Schedule, TrainingData
from sparsekern.train import model as models


def tiny_net(*, seed: int = 0, hidden: int = 24) -> nn.Sequential:
    return nn.Sequential(
        StochasticConv2d(3, 8, 3, padding=1, density=0.5, seed=seed), nn.BatchNorm2d(8), nn.ReLU(), nn.Dropout(0.2), nn.MaxPool2d(2),
        nn.Flatten(), SparseLinear(128, hidden, density=0.25, seed=seed), nn.ReLU(), SparseLinear(hidden, 4, density=0.5, seed=seed),
    )  # fmt: skip


models.OWN["tiny_net"] = tiny_net

OPTIMISERS = {
    "sgd": Optimiser("sgd", 0.05, {"momentum": 0.9, "nesterov": True, "weight_decay": 1e-4}),
    "adam": Optimiser("adam", 3e-3),
    "adadelta": Optimiser("adadelta", 0.5, {"rho": 0.9, "eps": 1e-3}),
}


def tiny_recipe(optimiser: str = "sgd", **fields) -> Recipe:
    told = dict(epochs=3, batch=16, schedule=Schedule((0.5,)), augment="pad_crop_mirror", centre=True, bn_momentum=0.05) | fields
    return Recipe("tiny", "tiny_net", "digits", "no paper's", OPTIMISERS[optimiser], **told)


def tiny_data(n: int = 83, seed: int = 0) -> TrainingData:
    """Four classes of noisy images ``[n, 3, 8, 8]`` uint8."""
    draw = torch.Generator().manual_seed(seed)
    y = torch.randint(0, 4, (n + 40,), generator=draw)
    pattern = torch.rand(4, 3, 8, 8, generator=draw)
    x = (200 * pattern[y] + 55 * torch.rand(n + 40, 3, 8, 8, generator=draw)).to(torch.uint8)
    mean = (x[:n].double().mean(0) / 255).float()
    return TrainingData(Samples(x[:n], y[:n], 4), Samples(x[n:], y[n:], 4), "pad_crop_mirror", mean)


def same_weights(a: nn.Module, b: nn.Module) -> bool:
    """Bit for bit, index tables and running means too."""
    left, right = a.state_dict(), b.state_dict()
    return left.keys() == right.keys() and all(torch.equal(left[name], right[name]) for name in left)
