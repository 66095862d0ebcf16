"""Several processes as one: started by ``torchrun``, each takes its part of every batch."""

from __future__ import annotations

import contextlib
import hashlib
import os
from collections.abc import Iterator

import torch
from torch import Tensor, distributed, nn

from sparsekern.arguments import said


class Processes:
    """This process among its fellows; alone where ``torchrun`` did not start it."""

    def __init__(self, rank: int = 0, world: int = 1) -> None:
        self.rank, self.world = rank, world

    @property
    def first(self) -> bool:
        """Whether this one speaks and writes files."""
        return self.rank == 0

    def part(self, n: int) -> slice:
        """This process's part of ``n`` samples in a row: parts differ by one at most.

        Example:
            >>> [Processes(rank, 3).part(8) for rank in range(3)]
            [slice(0, 3, None), slice(3, 6, None), slice(6, 8, None)]
        """
        each, rest = divmod(n, self.world)
        begin = self.rank * each + min(self.rank, rest)
        return slice(begin, begin + each + (self.rank < rest))

    def sum_(self, values: Tensor) -> Tensor:
        """Add up ``values`` of all processes, in place."""
        if self.world > 1:
            distributed.all_reduce(values)
        return values

    def share_statistics(self, model: nn.Module) -> None:
        """The running means and variances of process 0, which are what a checkpoint holds, for all processes."""
        if self.world > 1:
            for module in _with_statistics(model):
                for statistic in module.buffers(recurse=False):
                    distributed.broadcast(statistic, 0)

    def wait(self) -> None:
        if self.world > 1:
            distributed.barrier()

    def wrap(self, model: nn.Module) -> nn.Module:
        """The model with gradients averaged over the processes.

        Raises:
            RuntimeError: ``train: topology must be the same in all processes; got another one in process 1 (index of junction1, ...)``
        """
        if self.world == 1:
            return model
        self.check_same_tables(model)
        return nn.parallel.DistributedDataParallel(model, broadcast_buffers=bool(_with_statistics(model)))

    def check_same_tables(self, model: nn.Module) -> None:
        """Every process must have drawn the same connections: gradients of others would be added to the wrong weights."""
        own = {name: _digest(table) for name, table in model.named_buffers() if table.dtype == torch.int32}
        everyones: list = [None] * self.world
        distributed.all_gather_object(everyones, own)
        for rank, others in enumerate(everyones):
            wrong = [name for name in everyones[0] if everyones[0][name] != others.get(name)]
            if wrong:
                got = f"another one in process {rank} ({', '.join(wrong[:3])})"
                raise RuntimeError(f"train: topology must be the same in all processes; got {got}")


def _with_statistics(model: nn.Module) -> list[nn.Module]:
    """Batch-norms and their like: buffers that follow the samples that a process sees."""
    return [module for module in model.modules() if isinstance(module, nn.modules.batchnorm._NormBase)]


def _digest(table: Tensor) -> str:
    return hashlib.blake2b(table.detach().cpu().contiguous().numpy().tobytes(), digest_size=16).hexdigest()


def own_device(device: str | torch.device) -> torch.device:
    """The device of this process: under ``torchrun`` every process of a machine has a GPU of its own.

    Example:
        >>> own_device("cpu")
        device(type='cpu')
    """
    device = torch.device(device)
    if device.type == "cuda" and _world() > 1:
        return torch.device("cuda", int(os.environ.get("LOCAL_RANK", "0")))
    return device


def usable_device(device: str | torch.device) -> torch.device:
    """The device of this process, once torch has placed a number on it.

    Raises:
        ValueError: ``train: device must be one that torch can use here; got 'cuda' (Torch not compiled with CUDA enabled)``
    """
    try:
        found = own_device(device)
        if found.type == "meta":
            raise RuntimeError("it holds no numbers")
        torch.empty(1, device=found)
    except (RuntimeError, AssertionError, TypeError, ValueError) as error:  # torch's answer differs from device to device
        reason = str(error).partition("\n")[0]
        raise ValueError(f"train: device must be one that torch can use here; got {said(device)} ({reason})") from error
    return found


def _world() -> int:
    return int(os.environ.get("WORLD_SIZE", "1"))


@contextlib.contextmanager
def processes(device: torch.device) -> Iterator[Processes]:
    """Join the processes that ``torchrun`` started (its environment tells), and leave them at the end.

    Args:
        device: of :func:`own_device`. With a GPU its tensors go over NCCL; sums and facts stay on the CPU and go over gloo.
    """
    world = _world()
    if world == 1:
        yield Processes()
        return
    joined = not distributed.is_initialized()
    if device.type == "cuda":
        torch.cuda.set_device(device)
    if joined:
        distributed.init_process_group("cpu:gloo,cuda:nccl" if device.type == "cuda" else "gloo")
    try:
        yield Processes(distributed.get_rank(), world)
    finally:
        if joined:
            distributed.destroy_process_group()
