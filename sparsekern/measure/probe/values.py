"""Probes of values: outputs, gradients and dtypes against float64, for the inputs that trip sparse layers."""

from __future__ import annotations

import copy

import torch

from sparsekern.measure.probe.core import DoesNotApply, Subject, agree, compare, probe, same


@probe
def forward_backward(s: Subject) -> None:
    compare(s, s.make(), s.x(4))


@probe
def batch_0_and_1(s: Subject) -> None:
    layer = s.make()
    compare(s, layer, s.x(1))
    empty = s.x(2)[:0].requires_grad_()
    out = layer(empty)
    assert out.shape[0] == 0 and out.shape[1:] == s.reference(layer, empty).shape[1:], f"empty batch gave {out.shape}"
    grads = torch.autograd.grad(out.sum(), [empty, layer.weight, layer.bias])
    assert not grads[1].any() and not grads[2].any(), "an empty batch must give zero gradients"


@probe
def batch_not_a_multiple_of_the_vector(s: Subject) -> None:
    layer = s.make()
    for batch in (2, 3, 7, 15, 17, 31, 33):
        compare(s, layer, s.x(batch))


@probe
def no_bias(s: Subject) -> None:
    layer = s.make(bias=False)
    assert layer.bias is None, "bias=False must give layer.bias None"
    compare(s, layer, s.x(3))


@probe
def non_contiguous_input(s: Subject) -> None:
    layer, x = s.make(), s.x(6)
    compare(s, layer, x[::2])  # a step over the batch
    compare(s, layer, x[:1].expand(x.shape))  # stride 0
    compare(s, layer, x.transpose(0, -1).contiguous().transpose(0, -1))  # batch innermost
    compare(s, layer, torch.stack([x, x], -1)[..., 0])  # innermost stride 2
    if x.dim() == 4:
        compare(s, layer, x.contiguous(memory_format=torch.channels_last))


@probe
def expanded_gradient(s: Subject) -> None:
    layer, x = s.make(), s.x(3)
    shape = s.reference(layer, x).shape
    compare(s, layer, x, grad_out=torch.ones(()).expand(shape))
    compare(s, layer, x, grad_out=torch.randn(shape[:1] + (1,) * (len(shape) - 1)).expand(shape))


@probe
def zero_gradient(s: Subject) -> None:
    layer, x = s.make(), s.x(3).requires_grad_()
    out = layer(x)
    for grad in torch.autograd.grad(out, [x, layer.weight, layer.bias], torch.zeros_like(out)):
        assert not grad.any(), "an all-zero grad_out must give zero gradients"


@probe
def zero_weights_in_the_support(s: Subject) -> None:
    layer = s.make()
    with torch.no_grad():
        layer.weight[0] = 0.0  # a row that is all zero, and one whose weights cancel
        layer.weight[1] = 1.0
        layer.weight[1].view(-1)[::2] = -1.0
    compare(s, layer, s.x(3))


@probe
def empty_rows(s: Subject) -> None:
    if s.ragged is None:
        raise DoesNotApply
    compare(s, s.ragged(), s.x(3))


@probe
def index_beyond_int16(s: Subject) -> None:
    if s.wide is None:
        raise DoesNotApply
    layer, x = s.wide()
    compare(s, layer, x)


@probe
def double_backward(s: Subject) -> None:
    layer, x = s.make().double(), s.x(2).double().requires_grad_()
    directions = torch.randn_like(s.reference(layer, x)), torch.randn_like(x)
    results = []
    for run in (layer, lambda t: s.reference(layer, t)):
        grad = directions[0].clone().requires_grad_()
        (grad_x,) = torch.autograd.grad(run(x), [x], grad, create_graph=True)
        results.append(torch.autograd.grad((grad_x * directions[1]).sum(), [grad, layer.weight]))
    for what, ours, truth in zip(("of grad_out", "of weight"), *results, strict=True):
        agree(f"second gradient {what}", ours, truth, truth)


@probe
def second_backward_on_a_retained_graph(s: Subject) -> None:
    layer, x = s.make(), s.x(3).requires_grad_()
    out = layer(x)
    first = torch.autograd.grad(out.sum(), [x, layer.weight], retain_graph=True)
    for before, again in zip(first, torch.autograd.grad(out.sum(), [x, layer.weight]), strict=True):
        same("the second backward", again, before)


@probe
def inputs_unmodified(s: Subject) -> None:
    layer, x = s.make(), s.x(3).requires_grad_()
    grad_out = torch.randn_like(s.reference(layer, x, torch.float32))
    given = [x, grad_out, *layer.parameters(), *layer.buffers()]
    before = [(t.detach().clone(), t._version) for t in given]
    layer(x).backward(grad_out)
    for t, (value, version) in zip(given, before, strict=True):
        assert t._version == version and torch.equal(t.detach(), value), "inputs and saved tensors must stay as they were"


@probe
def same_bits_again_and_for_any_thread_count(s: Subject) -> None:
    layer, x = s.make(), s.x(33).requires_grad_()
    threads, results = torch.get_num_threads(), []
    try:
        for count in (1, 1, 2, 3):
            torch.set_num_threads(count)
            out = layer(x)
            results.append([out, *torch.autograd.grad(out.sum(), [x, layer.weight, layer.bias])])
    finally:
        torch.set_num_threads(threads)
    for later in results[1:]:
        for value, expected in zip(later, results[0], strict=True):
            same("every run", value, expected)


# ---- dtypes


@probe
def float64_is_kept(s: Subject) -> None:
    compare(s, s.make().double(), s.x(3).double())


@probe
def bfloat16_module(s: Subject) -> None:
    compare(s, s.make().bfloat16(), s.x(3).bfloat16())


@probe
def autocast_bfloat16(s: Subject) -> None:
    layer, x = s.make(), s.x(3)
    with torch.autocast("cpu", torch.bfloat16):
        out = layer(x)
    assert out.dtype == torch.bfloat16, f"out under autocast must be bfloat16; got {out.dtype}"
    rounded = copy.deepcopy(layer).bfloat16()
    agree("out", out, s.reference(rounded, x.bfloat16()), s.reference(rounded, x.bfloat16(), torch.bfloat16))
    out.float().sum().backward()
    assert layer.weight.grad.dtype == torch.float32, f"grad must be float32 as weight is; got {layer.weight.grad.dtype}"
