"""How long each layer takes inside the running model: hooks read both clocks around every layer, models take turns."""

from __future__ import annotations

import statistics
import time
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field

from torch import Tensor, nn

WALL, CPU = "wall", "CPU"
CLOCKS = {WALL: time.perf_counter_ns, CPU: time.thread_time_ns}


@dataclass(frozen=True)
class LayerTimes:
    """Medians of one model's passes, in milliseconds per call, by clock ("wall" or "CPU" of the calling thread)."""

    layers: dict[str, dict[str, float]]  # clock -> module path -> ms
    model: dict[str, float]  # clock -> ms of the whole pass, hooks included

    def share(self, paths: Iterable[str], clock: str) -> float:
        """The part of the whole pass that the layers at ``paths`` take.

        Example:
            >>> times = LayerTimes({"wall": {"a": 1.0, "b": 2.0}}, {"wall": 4.0})
            >>> times.share(["b"], "wall")
            0.5
        """
        return sum(self.layers[clock][path] for path in paths) / self.model[clock]


@dataclass
class _Pass:
    """What the hooks read during one pass: nanoseconds by clock and path; "" is the whole model."""

    spent: dict[str, dict[str, int]] = field(default_factory=lambda: {clock: {} for clock in CLOCKS})
    began: dict[str, dict[str, int]] = field(default_factory=lambda: {clock: {} for clock in CLOCKS})

    def begin(self, path: str) -> None:
        for clock, read in CLOCKS.items():
            self.began[clock][path] = read()

    def end(self, path: str) -> None:
        for clock, read in CLOCKS.items():
            self.spent[clock][path] = self.spent[clock].get(path, 0) + read() - self.began[clock][path]


def layer_times(models: Mapping[str, tuple[nn.Module, Tensor]], paths: Mapping[str, Iterable[str]], passes: int) -> dict[str, LayerTimes]:
    """Time the layers of several models, one pass of each in turn.

    Args:
        models: name -> (model, its input in its layout).
        paths: name -> module paths of the layers.
        passes: of which the medians are taken, after one that warms up.

    Example:
        >>> import torch
        >>> net = nn.Sequential(nn.Linear(4, 4), nn.ReLU())
        >>> list(layer_times({"net": (net, torch.randn(1, 4))}, {"net": ["0"]}, passes=1)["net"].layers["wall"])
        ['0']
    """
    taken: dict[str, list[_Pass]] = {name: [] for name in models}
    for turn in range(passes + 1):
        for name, (model, x) in models.items():
            one = _hooked_pass(model, x, list(paths[name]))
            if turn:
                taken[name].append(one)
    return {name: _medians(found) for name, found in taken.items()}


def _hooked_pass(model: nn.Module, x: Tensor, paths: list[str]) -> _Pass:
    one, handles = _Pass(), []
    for path in paths:
        layer = model.get_submodule(path)
        handles.append(layer.register_forward_pre_hook(lambda module, args, path=path: one.begin(path)))
        handles.append(layer.register_forward_hook(lambda module, args, out, path=path: one.end(path)))
    try:
        one.begin("")
        model(x)
        one.end("")
    finally:
        for handle in handles:
            handle.remove()
    return one


def _medians(passes: list[_Pass]) -> LayerTimes:
    layers: dict[str, dict[str, float]] = {}
    whole: dict[str, float] = {}
    for clock in CLOCKS:
        ms = {path: statistics.median(p.spent[clock].get(path, 0) for p in passes) / 1e6 for path in passes[0].spent[clock]}
        whole[clock] = ms.pop("")
        layers[clock] = ms
    return LayerTimes(layers, whole)
