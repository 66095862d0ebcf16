"""A dense ResNet-50 of torchvision's shape becomes Deep Roots' root-16: filter groups in every 3x3 convolution, fewer stage by stage.

    python examples/resnet50_root.py        about 10 seconds

With torchvision, ``model = torchvision.models.resnet50(weights="DEFAULT")`` takes the place of ``create_model`` below: the layers have
the same names. Dropping weights between groups costs accuracy that training brings back; the paper trains such networks from scratch.
"""

import torch
from torch import nn

from sparsekern import Groups, convert, to_dense
from sparsekern.models import create_model
from sparsekern.models.group_plan import group_plan


def main() -> None:
    torch.manual_seed(0)
    model = create_model("resnet50", conv=nn.Conv2d, stride_in="3x3", stem_bias=False).eval()
    model = model.to(memory_format=torch.channels_last)
    x = torch.randn(1, 3, 224, 224).to(memory_format=torch.channels_last)

    groups = group_plan("root", 16, levels=4)  # 16, 8, 4, 2
    plan = {f"layer{stage}.*.conv2": Groups(each) for stage, each in enumerate(groups, start=1)}
    root = convert(model, plan, example_input=x)
    print(root.report)

    with torch.no_grad():
        dense = to_dense(root)
        print(f"{type(dense.layer1[0].conv2).__name__} again: differs by {float((dense(x) - root(x)).abs().max()):.1e}")
    weights = [sum(p.numel() for p in m.parameters()) for m in (model, root)]
    print(f"parameters {weights[0]:,} -> {weights[1]:,}")
    # sparsekern.optimize(root, x) makes the frozen copy for inference: batch-norms folded, ReLUs and shortcuts fused, weights packed


if __name__ == "__main__":
    main()
