"""An MLP on handwritten digits, trained dense, trained with a tenth of the connections, and pruned to a tenth: accuracy and time.

python examples/mlp.py        about 10 seconds; needs scikit-learn for the digits
"""

import time

import torch
import torch.nn.functional as F
from torch import nn

from sparsekern import FanIn, convert, to_dense
from sparsekern.data import digits

PLAN = {"[02]": FanIn(density=0.1, source="random")}  # the first two layers; the last has ten outputs and stays dense


def mlp() -> nn.Sequential:
    return nn.Sequential(nn.Linear(64, 1024), nn.ReLU(), nn.Linear(1024, 1024), nn.ReLU(), nn.Linear(1024, 10))


def train(model: nn.Module, epochs: int) -> float:
    """Seconds."""
    data = digits("train")
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3)
    started = time.perf_counter()
    for _ in range(epochs):
        for rows in torch.randperm(len(data)).split(64):
            x, y = data[rows]
            optimizer.zero_grad()
            F.cross_entropy(model(x.flatten(1)), y).backward()
            optimizer.step()
    return time.perf_counter() - started


@torch.no_grad()
def accuracy(model: nn.Module) -> float:
    test = digits("test")
    return float((model(test.x.flatten(1)).argmax(1) == test.y).float().mean())


def main() -> None:
    torch.manual_seed(0)
    batch = digits("train").x[:64].flatten(1)

    dense = mlp()
    seconds = train(dense, epochs=6)
    print(f"dense:   accuracy {accuracy(dense):.3f}, trained in {seconds:.1f} s")

    sparse = convert(mlp(), PLAN, example_input=batch)  # fresh weights; in training mode a training step is timed
    seconds = train(sparse, epochs=6)
    print(f"sparse:  accuracy {accuracy(sparse):.3f}, trained in {seconds:.1f} s")
    print(sparse.report)

    pruned = convert(dense, {"[02]": FanIn(density=0.1)}, policy="always", example_input=batch)  # the largest weights stay
    before = accuracy(pruned)
    train(pruned, epochs=2)
    print(f"pruned:  accuracy {before:.3f}, after two more epochs {accuracy(pruned):.3f}")

    again = to_dense(pruned)
    with torch.no_grad():
        print(f"and back: the dense model again differs by {float((again(batch) - pruned(batch)).abs().max()):.1e}")


if __name__ == "__main__":
    main()
