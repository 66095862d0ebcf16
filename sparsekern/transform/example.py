"""Running a model on an example and leaving it as it was: what each layer is given, and how long things take."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_leaves

from sparsekern.measure.protocol import Timing, interleave, verdict
from sparsekern.transform.agree import flat
from sparsekern.transform.graph import copied


class Example:
    """Inputs to call a model with: a tensor, a tuple of positional arguments, or a mapping of keyword arguments."""

    def __init__(self, given: Any) -> None:
        self.args: tuple[Any, ...] = ()
        self.kwargs: dict[str, Any] = {}
        if isinstance(given, Mapping):
            self.kwargs = dict(given)
        else:
            self.args = given if isinstance(given, tuple) else (given,)

    def copied(self) -> Example:
        """The same for a model that may write into its inputs."""
        twin = Example(copied(self.args))
        twin.kwargs = copied(self.kwargs)
        return twin

    def run(self, model: nn.Module) -> Any:
        return model(*self.args, **self.kwargs)

    def storages(self) -> set[int]:
        return {t.untyped_storage().data_ptr() for t in tree_leaves((self.args, self.kwargs)) if isinstance(t, Tensor)}


@dataclass(frozen=True)
class Call:
    """What a layer was given at its first call, how often it was called, and whether that was the model's own input."""

    x: Tensor
    calls: int
    is_input: bool


@contextmanager
def undisturbed(model: nn.Module, training: bool) -> Iterator[None]:
    """A mode for the model, and back again: modes, buffers, random state."""
    modes = [(module, module.training) for module in model.modules()]
    places = [(module._buffers, dict(module._buffers)) for module in model.modules()]
    buffers = [(b, b.clone()) for b in model.buffers() if not (b.is_meta or b.is_inference())]
    model.train(training)
    devices = [torch.cuda.current_device()] if any(p.is_cuda for p in model.parameters()) else []
    try:
        with torch.random.fork_rng(devices=devices):
            yield
    finally:
        for module, mode in modes:
            module.training = mode
        for there, before in places:
            if any(there.get(name) is not buffer for name, buffer in before.items()):
                there.update(before)
        with torch.no_grad():
            for buffer, value in buffers:
                if not torch.equal(buffer, value):  # writing an index table with its own values would drop its plan
                    buffer.copy_(value)


@contextmanager
def layer_by_layer() -> Iterator[None]:
    """Without torch's fused encoder layers, which call none of the layers that they hold."""
    enabled = torch.backends.mha.get_fastpath_enabled()
    torch.backends.mha.set_fastpath_enabled(False)
    try:
        yield
    finally:
        torch.backends.mha.set_fastpath_enabled(enabled)


def calls_of(model: nn.Module, layers: Iterable[nn.Module], example: Example) -> dict[nn.Module, Call]:
    """Run the model once in eval mode: what each layer that ran was given."""
    seen: dict[nn.Module, Call] = {}
    example = example.copied()
    own = example.storages()

    def note(layer: nn.Module, args: tuple, kwargs: dict) -> None:
        x = next((leaf for leaf in tree_leaves((args, kwargs)) if isinstance(leaf, Tensor)), None)
        if x is None:
            return
        before = seen.get(layer)
        if before is None:
            seen[layer] = Call(x.detach().clone(), 1, x.untyped_storage().data_ptr() in own)
        else:
            seen[layer] = Call(before.x, before.calls + 1, before.is_input)

    handles = [layer.register_forward_pre_hook(note, with_kwargs=True) for layer in layers]
    try:
        with undisturbed(model, training=False), layer_by_layer(), torch.no_grad():
            example.run(model)
    finally:
        for handle in handles:
            handle.remove()
    return seen


# ---- time


def race(ways: Mapping[str, Callable[[], object]], device: torch.device, rounds: int) -> tuple[dict[str, Timing], str]:
    """Time ``before`` against ``after`` in turns, once more and longer where noise hides the answer; with the verdict on ``after``."""
    ways = {name: _waited_for(way, device) for name, way in ways.items()}
    clock = "cpu" if torch.get_num_threads() == 1 and device.type == "cpu" else "wall"  # of one thread it tells more on a shared core
    for count in (rounds, 3 * rounds):
        found = {name: timing.by(clock) for name, timing in interleave(ways, rounds=count).items()}
        said = verdict(found["after"], found["before"])
        if said != "ambiguous":
            break
    return found, said


def _waited_for(way: Callable[[], object], device: torch.device) -> Callable[[], object]:
    if device.type != "cuda":
        return way

    def wait() -> None:
        way()
        torch.cuda.synchronize(device)

    return wait


def layer_pass(layer: nn.Module, call: Call, training: bool) -> Callable[[], object]:
    """A call of the layer as the model makes it: forward, or forward and every gradient that training asks for."""
    x = call.x.detach().clone()
    wanted: list[Tensor] = [p for p in layer.parameters() if p.requires_grad]
    if training and x.is_floating_point() and not call.is_input:
        wanted = [x.requires_grad_(), *wanted]
    if not (training and wanted):
        return torch.no_grad()(lambda: layer(x))
    with torch.no_grad():
        out = layer(x)
        draw = torch.Generator(out.device).manual_seed(0)  # torch's own stays as it is
        grad_out = torch.empty_like(out).uniform_(-1, 1, generator=draw)
    return torch.enable_grad()(lambda: torch.autograd.grad(layer(x), wanted, grad_out))


def model_pass(model: nn.Module, example: Example, training: bool) -> Callable[[], object]:
    """A call of the model: forward, or forward and the gradients of all parameters."""
    example = example.copied()
    if not training:
        return torch.no_grad()(lambda: example.run(model))

    def step() -> None:
        sums = [out.float().sum() for out in flat(example.run(model)) if out.requires_grad]
        parameters = [p for p in model.parameters() if p.requires_grad]
        if sums and parameters:
            torch.autograd.grad(sum(sums[1:], sums[0]), parameters, allow_unused=True)

    return torch.enable_grad()(step)
