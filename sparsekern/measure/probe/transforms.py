"""Probes of what transforms and inspects modules: compile, export, vmap, FLOP counting."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.utils.flop_counter import FlopCounterMode

from sparsekern.measure.probe.core import Subject, agree, probe


@probe
def compile_fullgraph(s: Subject) -> None:
    _check_compiled(s, dynamic=False, batches=(4,))


@probe
def compile_dynamic(s: Subject) -> None:
    _check_compiled(s, dynamic=True, batches=(4, 5, 9))


@probe
def compiled_layer_sees_written_weights(s: Subject) -> None:
    torch._dynamo.reset()
    layer, x = s.make(), s.x(4)
    compiled = torch.compile(layer, backend="aot_eager", fullgraph=True)
    try:
        for write in (lambda: None, lambda: layer.weight.data.mul_(2), lambda: layer.weight.detach().numpy().__imul__(3)):
            write()
            with torch.no_grad():
                agree("compiled out", compiled(x), s.reference(layer, x), s.reference(layer, x, x.dtype))
    finally:
        torch._dynamo.reset()


@probe
def export_and_fine_tune(s: Subject) -> None:
    layer, x = s.make(), s.x(4)
    batch = torch.export.Dim("batch", min=2, max=64)
    exported = torch.export.export(layer, (x,), dynamic_shapes=({0: batch},)).module()
    agree("exported out", exported(x).detach(), s.reference(layer, x).detach(), s.reference(layer, x, x.dtype).detach())
    weight = dict(exported.named_parameters())["weight"]
    before = weight.detach().clone()
    optimizer = torch.optim.SGD(exported.parameters(), lr=0.1)
    exported(s.x(6)).square().sum().backward()
    optimizer.step()
    assert not torch.equal(weight, before), "fine-tuning the exported module must change its weight"


@probe
def vmap(s: Subject) -> None:
    layer, xs = s.make(), torch.stack([s.x(2), s.x(2), s.x(2)])
    out = torch.func.vmap(layer)(xs)
    truth = torch.stack([s.reference(layer, x) for x in xs]).detach()
    agree("out of vmap over x", out.detach(), truth, torch.stack([s.reference(layer, x, x.dtype) for x in xs]).detach())
    parameters = dict(layer.named_parameters())

    def loss(parameters: dict, x: Tensor) -> Tensor:
        return torch.func.functional_call(layer, parameters, (x[None],)).square().sum()

    grads = torch.func.vmap(torch.func.grad(loss), (None, 0))(parameters, xs[0])["weight"]
    for sample, grad in zip(xs[0], grads, strict=True):
        (expected,) = torch.autograd.grad(s.reference(layer, sample[None]).square().sum(), [layer.weight])
        (dense,) = torch.autograd.grad(s.reference(layer, sample[None], sample.dtype).square().sum(), [layer.weight])
        agree("per-sample gradient", grad, expected.double(), dense)


@probe
def flop_counter(s: Subject) -> None:
    layer, x = s.make(), s.x(4).requires_grad_()
    expected = 4 * s.flops(layer)
    for times, run in ((1, lambda: layer(x.detach())), (3, lambda: layer(x).sum().backward())):
        with FlopCounterMode(display=False) as counter:
            run()
        got = counter.get_total_flops()
        assert got == times * expected, f"FlopCounterMode must count {times * expected:,}; got {got:,}"


def _check_compiled(s: Subject, dynamic: bool, batches: tuple[int, ...]) -> None:
    torch._dynamo.reset()
    layer = s.make()
    compiled = torch.compile(layer, backend="aot_eager", fullgraph=True, dynamic=dynamic)
    try:
        for batch in batches:
            x = s.x(batch).requires_grad_()
            results = []
            for run in (compiled, lambda t: s.reference(layer, t), lambda t: s.reference(layer, t, t.dtype)):
                out = run(x)
                results.append([out.detach(), *torch.autograd.grad(out.sum(), [x, layer.weight, layer.bias])])
            for what, ours, truth, dense in zip(("out", "grad_x", "grad_weight", "grad_bias"), *results, strict=True):
                agree(f"compiled {what}", ours, truth.double(), dense)
    finally:
        torch._dynamo.reset()
