"""StochasticNet in StochasticNet: a quarter of Network in Network's connections, drawn before training.

    python examples/sis_nin.py        a few seconds

Shafiee, Fieguth and Wong keep each tap of a filter, for all its input channels, with a given probability. Here the three convolutions
with more than one tap keep a quarter, and the micro networks between them (1x1) stay dense: the paper's first CIFAR-10 network.
"""

import torch
import torch.nn.functional as F
from torch import nn

from sparsekern import Stochastic, convert
from sparsekern.models import create_model


def main() -> None:
    torch.manual_seed(0)
    x, labels = torch.randn(4, 3, 32, 32), torch.arange(4)
    net = create_model("nin", conv=nn.Conv2d)
    plan = {"conv?a": Stochastic(density=0.25, source="random")}

    sparse = convert(net, plan, policy="always", example_input=x)  # a fresh network is in training mode: training steps are timed
    print(sparse.report)

    optimizer = torch.optim.SGD(sparse.parameters(), lr=0.01, momentum=0.9)
    for step in range(5):
        optimizer.zero_grad()
        loss = F.cross_entropy(sparse(x), labels)
        loss.backward()
        optimizer.step()
        print(f"step {step}: loss {loss.item():.3f}")
    print(sparse.conv2a)
    # another structure of the same network: Root(8) for "conv[23]a" puts Deep Roots' root modules in their place


if __name__ == "__main__":
    main()
