"""Topologies that change while training: connections that move to where the gradient is, and masks drawn anew.

Both keep the number of connections of every layer, so the sparse kernels do the same small work as before the change.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from sparsekern.nn import SparseLinear, StochasticConv2d
from sparsekern.train.connections import Connections
from sparsekern.train.parallel import Processes
from sparsekern.train.recipe import fold_seed


class Fixed:
    """The topology stays as it was drawn; what a changing one overrides."""

    def facts(self) -> dict[str, Any]:
        return {}

    def begin(self, model: nn.Module, optimiser: torch.optim.Optimizer, processes: Processes, seed: int, epoch_steps: int = 1) -> None: ...

    def before_forward(self, step: int, steps: int) -> None: ...

    def instead_of_step(self, step: int, steps: int) -> bool:
        """After the gradients are there: whether connections moved, in place of the optimiser's step."""
        return False

    def tensors(self) -> dict[str, Tensor]:
        return {}

    def restore(self, tensors: Mapping[str, Tensor]) -> None: ...


class MovingConnections(Fixed):
    """Constant fan-in that follows the gradient: every so often weak connections go and promising ones come.

    Of all connections of a layer the fraction ``alpha`` of smallest magnitude is cut; every output then gets as many new ones as it lost,
    those of largest gradient among all it does not have. New weights start at zero, with nothing gathered in the optimiser; the
    optimiser rests in that step. ``alpha`` falls like a cosine to 0 at the fraction ``until`` of training.

    Args:
        every: steps between two changes.
        alpha: fraction cut at first.
        until: fraction of training after which the topology stays.

    Source:
        Lasby et al., "Dynamic Sparse Training with Structured Sparsity" (SRigL), 2023, without ablation of neurons; schedule and growth
        after Evci et al., "Rigging the Lottery" (RigL), 2020.
    """

    def __init__(self, every: int = 100, alpha: float = 0.3, until: float = 0.75) -> None:
        numbers = all(isinstance(n, int | float) for n in (every, alpha, until)) and every == every // 1
        if not numbers or every < 1 or not 0 < alpha <= 1 or not 0 < until <= 1:
            raise ValueError(f"MovingConnections: every must be at least 1, alpha and until in (0, 1]; got {every}, {alpha}, {until}")
        self.every, self.alpha, self.until = every, alpha, until
        self._gradients: dict[str, Tensor] = {}

    def facts(self) -> dict[str, Any]:
        return {"kind": "moving", "every": self.every, "alpha": self.alpha, "until": self.until}

    def begin(self, model: nn.Module, optimiser: torch.optim.Optimizer, processes: Processes, seed: int, epoch_steps: int = 1) -> None:
        self.layers = {n: m for n, m in model.named_modules() if isinstance(m, SparseLinear) and m.block_size == (1, 1)}
        if not self.layers:
            raise ValueError("MovingConnections: model must have a SparseLinear of block_size 1; got none")
        self.optimiser, self.processes = optimiser, processes

    def _due(self, step: int, steps: int) -> bool:
        return step > 0 and step % self.every == 0 and step < self.until * steps

    def before_forward(self, step: int, steps: int) -> None:
        self._gradients, self._hooks = {}, []
        if self._due(step, steps):
            self._hooks = [layer.register_forward_hook(self._recorder(name)) for name, layer in self.layers.items()]

    def _recorder(self, name: str) -> Callable[..., None]:
        """The gradient of every weight that the layer could have: ``grad_out [N, out]`` against ``x [N, in]``."""

        def record(layer: nn.Module, arguments: tuple[Tensor, ...], out: Tensor) -> None:
            x = arguments[0].detach().flatten(0, -2).float()
            out.register_hook(lambda grad: self._gradients.__setitem__(name, grad.flatten(0, -2).float().T @ x))

        return record

    @torch.no_grad()
    def instead_of_step(self, step: int, steps: int) -> bool:
        if not self._due(step, steps):
            return False
        for hook in self._hooks:
            hook.remove()
        alpha = self.alpha / 2 * (1 + math.cos(math.pi * step / (self.until * steps)))
        for name, layer in self.layers.items():
            if name in self._gradients:
                gradient = self.processes.sum_(self._gradients[name])
                table = moved_table(layer.weight, layer.index, gradient, round(alpha * layer.index.numel()))
                Connections(layer, self.optimiser).move((table,))
        self._gradients = {}
        return True


def moved_table(weight: Tensor, index: Tensor, gradient: Tensor, cut: int) -> Tensor:
    """The table after ``cut`` connections of smallest ``weight [out, F]`` went and those of largest ``gradient [out, in]`` came.

    Example:
        >>> weight, index = torch.tensor([[3.0, 0.1], [2.0, 1.0]]), torch.tensor([[0, 1], [0, 2]], dtype=torch.int32)
        >>> moved_table(weight, index, torch.tensor([[0.0, 0.0, 0.0, 5.0], [0.0, 9.0, 0.0, 0.0]]), cut=1).tolist()
        [[0, 3], [0, 2]]
    """
    order = weight.abs().flatten().argsort(stable=True)
    keep = torch.ones_like(order, dtype=torch.bool)
    keep[order[:cut]] = False
    keep = keep.view_as(weight)
    score = gradient.abs().nan_to_num(0.0, 0.0, 0.0)
    held = torch.zeros_like(score, dtype=torch.bool).scatter_(1, index.long(), keep)
    chosen = score.masked_fill(held, math.inf).argsort(dim=1, descending=True, stable=True)[:, : index.shape[1]]
    return chosen.sort(dim=1).values.int()


class DrawnAnew(Fixed):
    """Masks drawn anew every so often, of the same size: each stretch of training computes its own connections and no others.

    What a connection has learnt, and what the optimiser has gathered for it, waits in a dense store until it is drawn again. The network
    that is judged and saved is the one of the moment.

    Args:
        every: steps between two draws, 1 draws for every step; or ``"epoch"``.

    Cost:
        A plan and two passes over the dense weights per draw; memory of the dense weights.
    """

    def __init__(self, every: int | str = 1) -> None:
        if every != "epoch" and (not isinstance(every, int) or every < 1):
            raise ValueError(f"DrawnAnew: every must be at least 1, or 'epoch'; got {every!r}")
        self.every = every

    def facts(self) -> dict[str, Any]:
        return {"kind": "drawn", "every": self.every}

    def begin(self, model: nn.Module, optimiser: torch.optim.Optimizer, processes: Processes, seed: int, epoch_steps: int = 1) -> None:
        self.layers = {n: m for n, m in model.named_modules() if isinstance(m, SparseLinear | StochasticConv2d)}
        if not self.layers:
            raise ValueError("DrawnAnew: model must have a SparseLinear or a StochasticConv2d; got none")
        for name, layer in self.layers.items():
            if getattr(layer, "count", "exact") != "exact":
                raise ValueError(f"DrawnAnew: count of {name} must be 'exact', for every mask to be of one size; got {layer.count!r}")
        self.optimiser, self.seed = optimiser, seed
        self.steps_between = epoch_steps if isinstance(self.every, str) else self.every
        self.store: dict[str, dict[str, Tensor]] = {}
        for name, layer in self.layers.items():
            empty = Connections(layer, optimiser).dense(torch.zeros_like(layer.weight.detach()))
            draw = torch.Generator().manual_seed(fold_seed(seed, "store", name))
            deviation = float(layer.weight.detach().float().std(correction=0))  # as the layer's own start
            self.store[name] = {"weight": (deviation * torch.randn(empty.shape, generator=draw)).to(empty)}

    @torch.no_grad()
    def before_forward(self, step: int, steps: int) -> None:
        if step and step % self.steps_between == 0:
            for name, layer in self.layers.items():
                tables = layer.draw_topology(fold_seed(self.seed, "mask", name, step))
                Connections(layer, self.optimiser).move(tables, self.store[name])

    def tensors(self) -> dict[str, Tensor]:
        return {f"{name}/{key}": value for name, kept in self.store.items() for key, value in kept.items()}

    def restore(self, tensors: Mapping[str, Tensor]) -> None:
        for key, value in tensors.items():
            name, _, entry = key.rpartition("/")
            self.store[name][entry] = value.to(self.layers[name].weight.device)


KINDS = {"moving": MovingConnections, "drawn": DrawnAnew}


def parse_dynamic(text: str) -> Fixed:
    """``"moving"``, ``"moving:200"``, ``"drawn:1"``, ``"drawn:epoch"``: the kind and, behind a colon, the steps between two changes.

    Raises:
        ValueError: ``train: dynamic must be moving[:STEPS], drawn[:STEPS] or drawn:epoch; got 'growing'``

    Example:
        >>> parse_dynamic("drawn:50").facts()
        {'kind': 'drawn', 'every': 50}
    """
    kind, colon, every = text.partition(":")
    if text == "drawn:epoch":
        return DrawnAnew("epoch")
    if kind not in KINDS or bool(colon) != every.isdecimal():
        raise ValueError(f"train: dynamic must be moving[:STEPS], drawn[:STEPS] or drawn:epoch; got {text!r}")
    return KINDS[kind](int(every)) if every else KINDS[kind]()
