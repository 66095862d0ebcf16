"""Layers whose parameters are sharded over processes (torch's ``fully_shard``) train as whole ones in one process."""

import copy
import sys

import pytest
import torch
from test_parallel import run_two
from torch import distributed, nn

from sparsekern.nn import GroupedConv2d, SparseLinear, StochasticConv2d


def small_net() -> nn.Sequential:
    """[N, 8, 7, 7] -> [N, 10]; first sizes that two processes do not share evenly among them."""
    return nn.Sequential(
        StochasticConv2d(8, 16, 3, padding=1, density=0.3, seed=0), nn.ReLU(),
        GroupedConv2d(16, 16, 3, padding=1, groups=4), nn.Flatten(),
        SparseLinear(16 * 49, 33, density=0.2, seed=1), nn.ReLU(),
        SparseLinear(33, 10, fan_in=5, seed=2),
    )  # fmt: skip


def compare() -> None:
    """What each of two processes runs: its half of the batch through the sharded net, all of it through its own whole one."""
    from torch.distributed.checkpoint.state_dict import StateDictOptions, get_model_state_dict
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.fsdp import fully_shard

    distributed.init_process_group("gloo")
    rank, mesh = distributed.get_rank(), init_device_mesh("cpu", (2,))
    torch.manual_seed(0)
    whole = small_net()
    sharded = copy.deepcopy(whole)
    for module in [layer for layer in sharded if list(layer.parameters())] + [sharded]:
        fully_shard(module, mesh=mesh)
    optimisers = [torch.optim.AdamW(net.parameters(), lr=1e-2) for net in (whole, sharded)]
    x, y = torch.randn(12, 8, 7, 7), torch.randint(10, (12,))
    mine = slice(6 * rank, 6 * rank + 6)
    for _ in range(4):
        losses = [nn.functional.cross_entropy(net(x[part]), y[part]) for net, part in ((whole, slice(None)), (sharded, mine))]
        for loss, optimiser in zip(losses, optimisers):
            optimiser.zero_grad()
            loss.backward()
            optimiser.step()
        mean = losses[1].detach().clone()
        distributed.all_reduce(mean)
        assert torch.allclose(mean / 2, losses[0], rtol=1e-5), (mean / 2, losses[0])
    held = sum(p.to_local().numel() for p in sharded.parameters())
    assert held < 0.55 * sum(p.numel() for p in whole.parameters())  # each process keeps its share, also of the kept weights
    gathered = get_model_state_dict(sharded, options=StateDictOptions(full_state_dict=True))
    if rank == 0:
        for name, value in whole.state_dict().items():
            assert torch.allclose(gathered[name], value, atol=1e-5), name
    distributed.destroy_process_group()


@pytest.mark.slow
@pytest.mark.skipif(not distributed.is_gloo_available(), reason="torch was built without gloo")
def test_sharded_parameters_train_as_whole_ones():
    run_two(__file__, "compare")


if __name__ == "__main__" and sys.argv[1:] == ["compare"]:
    compare()
