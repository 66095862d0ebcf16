"""Probes of module behaviour: state, copies, optimisers, and weights that are written behind the layer's back."""

from __future__ import annotations

import copy
import io
import pickle
from collections.abc import Callable

import torch
import torch.nn.functional as F
import torch.nn.utils.parametrize
from torch import Tensor, nn

from sparsekern.measure.probe.core import Subject, agree, compare, probe, same


@probe
def state_dict_into_a_fresh_module(s: Subject) -> None:
    layer, other, x = s.make(seed=0), s.make(seed=1), s.x(3)
    other(x)  # whatever it derives from its own topology must be dropped
    other.load_state_dict(layer.state_dict())
    same("out of the loaded module", other(x), layer(x))


@probe
def deepcopy(s: Subject) -> None:
    layer, x = s.make(), s.x(3)
    expected = layer(x)
    twin = copy.deepcopy(layer)
    same("out of the copy", twin(x), expected)
    with torch.no_grad():
        twin.weight.mul_(2)
    same("out of the original", layer(x), expected)


@probe
def pickle_and_save(s: Subject) -> None:
    layer, x = s.make(), s.x(3)
    expected = layer(x)
    same("out after pickle", pickle.loads(pickle.dumps(layer))(x), expected)
    file = io.BytesIO()
    torch.save(layer, file)
    file.seek(0)
    same("out after torch.save", torch.load(file, weights_only=False)(x), expected)


@probe
def dense_and_back(s: Subject) -> None:
    layer, other, x = s.make(), s.make(), s.x(3)  # of one seed, so of one topology
    dense = layer.to_dense()
    agree("out of to_dense()", dense(x).detach(), s.reference(layer, x).detach(), s.reference(layer, x, x.dtype).detach())
    with torch.no_grad():
        other.weight.zero_()
    other.load_state_dict(dense.state_dict())
    same("out after loading the dense state_dict", other(x), layer(x))


@probe
def adam_step(s: Subject) -> None:
    layer, x = s.make(), s.x(4)
    target = torch.randn_like(s.reference(layer, x, torch.float32))
    optimizer, losses = torch.optim.Adam(layer.parameters(), lr=1e-2), []
    for _ in range(5):
        optimizer.zero_grad()
        loss = F.mse_loss(layer(x), target)
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert losses[-1] < losses[0], f"five Adam steps must lower the loss; got {losses[0]:.4f} to {losses[-1]:.4f}"


@probe
def weights_written_behind_its_back(s: Subject) -> None:
    """Whatever writes the weight, the next forward must see it: nothing derived from values may be cached."""
    layer, x = s.make(), s.x(3)

    def step(optimizer: torch.optim.Optimizer) -> None:
        layer(x).sum().backward()
        optimizer.step()

    writers: dict[str, Callable[[], object]] = {
        ".data": lambda: layer.weight.data.mul_(1.5),
        ".data of bias": lambda: layer.bias.data.add_(1.0),
        "a numpy view": lambda: layer.weight.detach().numpy().__imul__(0.5),
        "copy_ under no_grad": lambda: _no_grad(lambda: layer.weight.copy_(torch.randn_like(layer.weight))),
        "copy_ under inference_mode": lambda: _inference(lambda: layer.weight.data.add_(0.25)),
        "load_state_dict": lambda: layer.load_state_dict({k: v.clone() for k, v in s.make(seed=3).state_dict().items()}),
        "load_state_dict(assign=True)": lambda: layer.load_state_dict(s.make(seed=4).state_dict(), assign=True),
        "a new Parameter": lambda: setattr(layer, "weight", nn.Parameter(layer.weight.detach() * 2)),
        "swap_tensors": lambda: torch.utils.swap_tensors(layer.weight, nn.Parameter(torch.randn_like(layer.weight))),
        "SGD foreach": lambda: step(torch.optim.SGD(layer.parameters(), lr=0.1, foreach=True)),
        "SGD fused": lambda: step(torch.optim.SGD(layer.parameters(), lr=0.1, fused=True)),
        "Adam foreach": lambda: step(torch.optim.Adam(layer.parameters(), lr=0.1, foreach=True)),
        "AdamW fused": lambda: step(torch.optim.AdamW(layer.parameters(), lr=0.1, fused=True)),
    }
    for mode in (torch.enable_grad, torch.no_grad):
        for writer, write in writers.items():
            with mode():
                layer(x)
            with torch.enable_grad():
                write()
            with mode():
                out = layer(x).detach()
            agree(f"out after {writer}", out, s.reference(layer, x).detach(), s.reference(layer, x, x.dtype).detach())


@probe
def parametrized_weight(s: Subject) -> None:
    class Half(nn.Module):
        def forward(self, weight: Tensor) -> Tensor:
            return 0.5 * weight

    layer, x = s.make(), s.x(3)
    halved = copy.deepcopy(layer)
    with torch.no_grad():
        halved.weight.mul_(0.5)
    nn.utils.parametrize.register_parametrization(layer, "weight", Half())
    same("out of the parametrized layer", layer(x), halved(x))
    layer(x).sum().backward()
    assert layer.parametrizations.weight.original.grad is not None, "the original weight must get a gradient"


@probe
def functional_call(s: Subject) -> None:
    layer, x = s.make(), s.x(3)
    other = {name: torch.randn_like(p) for name, p in layer.named_parameters()}
    out = torch.func.functional_call(layer, other, (x,))
    layer.load_state_dict(other, strict=False)
    same("out of functional_call", out, layer(x))


@probe
def inference_mode(s: Subject) -> None:
    layer, x = s.make(), s.x(3)
    with torch.inference_mode():
        inside = layer(x)
    agree("out", inside.clone(), s.reference(layer, x).detach(), s.reference(layer, x, x.dtype).detach())
    compare(s, layer, x)  # whatever was built in inference mode must still train


@probe
def meta_device(s: Subject) -> None:
    filled, x = s.make(), s.x(3)
    layer = s.make(device="meta")
    out = layer(x.to("meta"))
    assert out.device.type == "meta" and out.shape == filled(x).shape, f"meta out must have the shape; got {out}"
    layer = layer.to_empty(device="cpu")
    layer.load_state_dict(filled.state_dict())
    same("out after to_empty and load_state_dict", layer(x), filled(x))


def _no_grad(write: Callable[[], object]) -> None:
    with torch.no_grad():
        write()


def _inference(write: Callable[[], object]) -> None:
    with torch.inference_mode():
        write()
