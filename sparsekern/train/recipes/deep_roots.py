"""Deep Roots: Network in Network on CIFAR-10, and the networks of ImageNet, dense and in filter groups.

Source: Ioannou et al., arXiv 1605.06489, section 4.1: He's start, batch-norm behind every convolution, 32 x 32 crops of images that
are padded by 4 pixels and mirrored, mean subtracted; no dropout, no whitening. Rate, momentum and decay are not told. The snapshots of
the author's thesis lie 390 steps apart and at 39,062, 78,124 and 117,186: that is 100, 200 and 300 epochs of batches of 128, where
the rate falls to a tenth here. Rate 0.1, Nesterov's momentum 0.9 and decay 1e-4 are ours.

On ImageNet, sections 4.2 to 4.4: random crops and mirroring alone for ResNet-50 and GoogLeNet (whose batch-norms have no scale and no
bias), full augmentation for ResNet-200, as by fb.resnet.torch; the centre is judged. Its 90 epochs, a tenth of the rate after
30 and 60, batches of 256, rate 0.1, Nesterov's momentum 0.9 and decay 1e-4 stand for ResNet-50 and GoogLeNet too, of which no schedule is
told. AlexNet in groups is figure 2: 90 epochs, the rate from 0.01 a tenth after every 20, batches of 256, decay 5e-4, as in Caffe's solver
for it; He's start is ours.
"""

from __future__ import annotations

from typing import Any

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

FOLDERS: dict[str, Any] = dict(
    optimiser=SGD, schedule=Schedule(milestones=(1 / 3, 2 / 3)), epochs=90, batch=256, augment="crop_mirror", reduced={"epochs": 1}
)
ALEXNET: dict[str, Any] = dict(
    optimiser=Optimiser("sgd", 0.01, {"momentum": 0.9, "weight_decay": 5e-4}),
    schedule=Schedule(milestones=tuple(step / 450 for step in (100, 200, 300, 400))),
    data_options={"size": 227},
)
RESNET50, RESNET200 = "Deep Roots, section 4.2; schedule of fb.resnet.torch", "Deep Roots, section 4.3: fb.resnet.torch"
GOOGLENET = "Deep Roots, section 4.4; schedule of fb.resnet.torch"

for _pattern, _source, _options in (
    ("resnet50*", RESNET50, {}),
    ("resnet200*", RESNET200, {"augment": "full_imagenet"}),
    ("googlenet*", GOOGLENET, {"options": {"batch_norm": True}}),
    ("alexnet*", "Deep Roots, figure 2; schedule of Caffe's bvlc_alexnet", ALEXNET),
):
    for _name in list_models(_pattern):
        register_recipe(Recipe(f"deep-roots/{_name}", _name, "imagenet", source=_source, **{**FOLDERS, **_options}))
