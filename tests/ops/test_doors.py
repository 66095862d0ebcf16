"""Every way torch can ask an op for a derivative or a graph: eager, torch.func, forward mode, compile, export, autocast."""

from __future__ import annotations

import pytest
import torch
import torch._dynamo.backends.common
import torch.autograd.forward_ad as forward_ad
from torch.utils.flop_counter import FlopCounterMode

from sparsekern.ops import OPS, backends

OPS_BY_NAME = pytest.mark.parametrize("op", OPS.values(), ids=list(OPS))


@pytest.fixture
def case(op):
    """(f(*factors), its reference, factors) in float64; the factors are a, b and, where the op has one, the bias."""
    inputs = {s.name: s.inputs for s in op.samples(torch.device("cpu"), torch.float64)}["odd_batch"]
    names = [*op.factors, "bias"] if op.forward.bias else list(op.factors)
    rest = {k: v for k, v in inputs.items() if k not in names}

    def f(*factors):
        return op.function(**dict(zip(names, factors)), **rest)

    def ref(*factors):
        with backends.use("reference"):
            return f(*factors)

    return f, ref, tuple(inputs[name] for name in names)


def leaves(args):
    return tuple(a.clone().requires_grad_() for a in args)


def same(a, b):
    torch.testing.assert_close(a, b, rtol=1e-9, atol=1e-9)


def curved(f):
    return lambda *args: f(*args).sin().sum()


@OPS_BY_NAME
def test_gradcheck_and_gradgradcheck(op, case):
    f, _, args = case
    assert torch.autograd.gradcheck(f, leaves(args), fast_mode=True)
    assert torch.autograd.gradgradcheck(f, leaves(args), fast_mode=True)


@OPS_BY_NAME
def test_third_derivative(op, case):
    f, ref, args = case

    def thrice(fn):
        a = leaves(args)
        value = curved(fn)(*a)
        for _ in range(2):
            value = sum(g.pow(2).sum() for g in torch.autograd.grad(value, a, create_graph=True))
        return torch.autograd.grad(value, a)

    same(thrice(f), thrice(ref))


@OPS_BY_NAME
def test_retained_graph_and_expanded_gradient(op, case):
    f, ref, args = case
    a, b = leaves(args), leaves(args)
    loss = curved(f)(*a)
    first = torch.autograd.grad(loss, a, retain_graph=True)
    second = torch.autograd.grad(loss, a)
    assert all(torch.equal(p, q) for p, q in zip(first, second))
    f(*a).sum().backward()  # the gradient of a sum is one expanded element
    ref(*b).sum().backward()
    same([t.grad for t in a], [t.grad for t in b])


@OPS_BY_NAME
def test_only_needed_gradients(op, case):
    f, ref, args = case
    for needed in range(len(args)):
        a, b = [t.clone() for t in args], [t.clone() for t in args]
        a[needed].requires_grad_(), b[needed].requires_grad_()
        same(torch.autograd.grad(curved(f)(*a), a[needed]), torch.autograd.grad(curved(ref)(*b), b[needed]))


@OPS_BY_NAME
def test_weight_changed_before_backward_is_an_error(op, case):
    f, _, args = case
    a = leaves(args)
    out = f(*a)
    with torch.no_grad():
        a[1].add_(1)
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        out.sum().backward()


@OPS_BY_NAME
def test_func_grad_vmap_jacobians(op, case):
    f, ref, args = case
    every = tuple(range(len(args)))
    same(torch.func.grad(curved(f), every)(*args), torch.func.grad(curved(ref), every)(*args))
    for i in every:
        stack = torch.randn(3, *args[i].shape, dtype=torch.float64)
        one = lambda t, fn=f, i=i: fn(*args[:i], t, *args[i + 1 :])  # noqa: E731
        same(torch.func.vmap(one)(stack), torch.stack([one(t, fn=ref) for t in stack]))
    xs = torch.randn(3, *args[0].shape, dtype=torch.float64)
    per_sample = torch.func.vmap(torch.func.grad(lambda w, x: curved(f)(x, w, *args[2:])), (None, 0))(args[1], xs)
    same(per_sample, torch.stack([torch.func.grad(curved(ref), 1)(x, *args[1:]) for x in xs]))
    last = len(args) - 1
    same(torch.func.jacrev(f, last)(*args), torch.func.jacrev(ref, last)(*args))


@OPS_BY_NAME
def test_hessian_vector_product(op, case):
    f, ref, args = case
    direction = torch.randn_like(args[1])

    def hvp(fn):
        return torch.func.jvp(torch.func.grad(lambda w: curved(fn)(args[0], w, *args[2:])), (args[1],), (direction,))[1]

    same(hvp(f), hvp(ref))


@OPS_BY_NAME
def test_forward_mode(op, case):
    f, ref, args = case
    n = len(args)
    for mask in ([1] * n, *([int(i == j) for j in range(n)] for i in range(n))):

        def tangent(fn, mask=mask):
            torch.manual_seed(0)
            with forward_ad.dual_level():
                dual = [forward_ad.make_dual(a, torch.randn_like(a)) if m else a for a, m in zip(args, mask)]
                return forward_ad.unpack_dual(fn(*dual)).tangent

        got = tangent(f)
        assert got is not None
        same(got, tangent(ref))


@OPS_BY_NAME
@pytest.mark.parametrize("dynamic", [False, True])
def test_compile_fullgraph(op, case, dynamic):
    torch._dynamo.reset()
    f, ref, args = case
    seen = []

    def forward_compiler(graph, _):
        seen.extend(str(node.target) for node in graph.graph.nodes)
        return graph

    backend = torch._dynamo.backends.common.aot_autograd(fw_compiler=forward_compiler, bw_compiler=forward_compiler)
    compiled = torch.compile(lambda *a: f(*a).sin(), backend=backend, fullgraph=True, dynamic=dynamic)
    batches = (args[0].shape[0], 3, 7) if dynamic and op.name != "grouped_mm" else (args[0].shape[0],)  # its offsets fix the rows
    for rows in batches:
        x = torch.randn(rows, *args[0].shape[1:], dtype=torch.float64)
        a, b = leaves((x, *args[1:])), leaves((x, *args[1:]))
        same(torch.autograd.grad(compiled(*a).sum(), a), torch.autograd.grad(curved(ref)(*b), b))
        with torch.no_grad():
            same(compiled(*a), ref(*b).sin())
    for product in op.products.values():
        assert any(f"sparsekern.{product.name}." in name for name in seen), f"{product.name} is not in the graph: {seen}"


@OPS_BY_NAME
def test_compile_around_and_inside_transforms(op, case):
    torch._dynamo.reset()
    f, ref, args = case
    want = torch.func.grad(curved(ref), 1)(*args)
    inside = torch.compile(lambda w: torch.func.grad(curved(f), 1)(args[0], w, *args[2:]), backend="aot_eager", fullgraph=True)
    same(inside(args[1]), want)


@OPS_BY_NAME
def test_export_and_fine_tune(op, case):
    f, ref, args = case

    class Model(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.rest = torch.nn.ParameterList([torch.nn.Parameter(a.clone()) for a in args[1:]])

        def forward(self, x):
            return f(x, *self.rest)

    program = torch.export.export(Model(), (args[0],))
    assert any(op.name in str(node.target) for node in program.graph.nodes)
    module = program.module()
    same(module(args[0]), ref(*args))
    module(args[0]).sin().sum().backward()
    b = leaves(args)
    curved(ref)(*b).backward()
    same([p.grad for p in module.parameters()], [t.grad for t in b[1:]])


@OPS_BY_NAME
def test_autocast(op, case):
    f, _, args = case
    floats = leaves([a.float() for a in args])
    with torch.autocast("cpu", torch.bfloat16):
        out = f(*floats)
    assert out.dtype == torch.bfloat16
    out.float().sum().backward()
    assert all(a.grad.dtype == torch.float32 for a in floats)
    with torch.autocast("cpu", torch.bfloat16):
        assert f(*args).dtype == torch.float64  # as torch: autocast leaves float64 alone
        assert torch.compile(f, backend="aot_eager", fullgraph=True)(*floats).dtype == torch.bfloat16


@OPS_BY_NAME
def test_flop_counter(op, case):
    f, _, args = case
    a = leaves(args)
    terms = f(torch.ones_like(args[0]), torch.ones_like(args[1]), *(torch.zeros_like(b) for b in args[2:])).sum().item()
    with FlopCounterMode(display=False) as counter:
        f(*a)
    forward = counter.get_total_flops()
    assert forward >= 2 * terms > 0  # padding taps count too, as torch's convolution does
    with FlopCounterMode(display=False) as counter:
        f(*a).sum().backward()
    assert counter.get_total_flops() == 3 * forward


@OPS_BY_NAME
def test_checkpoint_inference_mode_and_saved_tensor_hooks(op, case):
    f, ref, args = case
    a, b = leaves(args), leaves(args)
    out = torch.utils.checkpoint.checkpoint(f, *a, use_reentrant=False)
    same(torch.autograd.grad(out.sin().sum(), a), torch.autograd.grad(curved(ref)(*b), b))
    with torch.inference_mode():
        same(f(*args), ref(*args))
    packed = []
    with torch.autograd.graph.saved_tensors_hooks(lambda t: (packed.append(t), t)[1], lambda t: t):
        f(*a)
    assert packed


def test_private_names_this_stands_on():
    """The doors ask torch two private questions; say so here when they move."""
    from torch._C import _functorch

    assert _functorch.peek_interpreter_stack() is None
    assert torch.func.vmap(lambda x: x + (_functorch.peek_interpreter_stack() is None))(torch.zeros(2)).sum() == 0
    assert forward_ad._current_level == -1
    with forward_ad.dual_level():
        assert forward_ad._current_level == 0
    assert not torch._C._is_any_autocast_enabled()
