"""From a pruned model to a fast one, and from there to a file that needs nothing of this package.

    python examples/export_dense.py        a few seconds

``to_dense`` gives torch's own layers under the names they had: for ONNX, for another vendor's compiler, or for a colleague.
"""

import io

import torch
from torch import nn
from torch.nn.utils import prune

from sparsekern import FanIn, Stochastic, convert, to_dense


def network() -> nn.Sequential:
    return nn.Sequential(
        nn.Conv2d(3, 64, 3, padding=1), nn.ReLU(), nn.Conv2d(64, 64, 3, stride=2, padding=1), nn.ReLU(),
        nn.AdaptiveAvgPool2d(4), nn.Flatten(), nn.Linear(1024, 512), nn.ReLU(), nn.Linear(512, 10),
    )  # fmt: skip


@torch.no_grad()
def difference(one: nn.Module, other: nn.Module, x: torch.Tensor) -> float:
    return float((one(x) - other(x)).abs().max())


def main() -> None:
    torch.manual_seed(0)
    model, x = network().eval(), torch.randn(4, 3, 32, 32)
    for name in ("2", "6"):
        prune.ln_structured(model.get_submodule(name), "weight", amount=0.1, n=2, dim=0)  # whole outputs, and
        prune.l1_unstructured(model.get_submodule(name), "weight", amount=0.9)  # nine tenths of what is left

    sparse = convert(model, {"2": Stochastic(source="mask"), "6": FanIn(source="mask")}, policy="always", example_input=x)
    print(sparse.report)
    print(f"the pruned model differs from the sparse one by {difference(sparse, model, x):.1e}")

    dense = to_dense(sparse)
    plain = network().eval()
    plain.load_state_dict(dense.state_dict())  # nothing but torch's layers, under torch's names
    file = io.BytesIO()
    torch.export.save(torch.export.export(dense, (x,)), file)  # torch.onnx.export takes the same model
    file.seek(0)
    loaded = torch.export.load(file).module()
    for name, other in (("a plain model with its weights", plain), ("the exported file", loaded)):
        print(f"{name} differs from the sparse one by {difference(sparse, other, x):.1e}")


if __name__ == "__main__":
    main()
