"""StochasticConv2d in filter groups: the mask stays inside them, on every kernel, and everything else follows."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import nn

from sparsekern.nn import StochasticConv2d
from sparsekern.ops import backends

PROVIDERS = [("reference", "auto")] + [(p, dense) for p in backends.providers()[1:] for dense in ("never", "always") if backends.native]
GROUPED = {
    "spatial_wide": dict(in_channels=60, out_channels=24, groups=3),  # 20 channels in a block: the tile kernel
    "spatial_narrow": dict(in_channels=12, out_channels=24, groups=4),
    "spatial_shared": dict(in_channels=32, out_channels=24, groups=2, share=4),
    "spatial_depthwise": dict(in_channels=6, out_channels=12, groups=6),
    "synapse": dict(in_channels=12, out_channels=24, groups=4, granularity="synapse"),
    "synapse_shared": dict(in_channels=12, out_channels=24, groups=3, granularity="synapse", share=4),
    "kernel": dict(in_channels=12, out_channels=24, groups=4, granularity="kernel"),
    "block": dict(in_channels=96, out_channels=64, groups=2, granularity="block"),
}
CASE = pytest.mark.parametrize("options", GROUPED.values(), ids=list(GROUPED))


def make(options, **more):
    given = {"kernel_size": 3, "padding": 1, "density": 0.4, **options, **more}
    return StochasticConv2d(given.pop("in_channels"), given.pop("out_channels"), given.pop("kernel_size"), **given)


def inside(layer):
    """[K, C] bool: the pairs of channels of one group."""
    rows = torch.arange(layer.out_channels) // (layer.out_channels // layer.groups)
    columns = torch.arange(layer.in_channels) // (layer.in_channels // layer.groups)
    return rows[:, None] == columns


@CASE
@pytest.mark.parametrize("count", ["exact", "bernoulli"])
def test_mask_stays_inside_the_groups(options, count):
    layer = make(options, count=count, seed=1)
    kept = layer.weight_dense() != 0
    grouped = layer.out_channels * layer.in_channels // layer.groups * 9
    assert not kept[~inside(layer)].any() and kept.sum() == layer.weight.numel()
    assert layer.density == layer.weight.numel() / grouped and f", groups={layer.groups}" in repr(layer)
    block = layer.weight[0].numel()
    if count == "exact":
        assert len(layer.index) == round(0.4 * grouped / block)
    # every pair of channels inside a group can be drawn
    seen = sum((make(options, count=count, seed=seed).weight_dense() != 0).any(-1).any(-1) for seed in range(40)) > 0
    assert torch.equal(seen, inside(layer))


@CASE
def test_fan_in_inside_the_groups(options):
    step = make(options).weight[0, 0].numel()
    layer = make(options, density=None, fan_in=2 * step)
    assert ((layer.weight_dense() != 0).sum((1, 2, 3)) == 2 * step).all()
    bound = (2 * step) ** -0.5
    assert 0.8 * bound < layer.weight.abs().max() <= bound
    full = make(options, density=None, fan_in=layer.in_channels // layer.groups * 9)
    assert torch.equal((full.weight_dense() != 0).all(-1).all(-1), inside(layer)) and full.density == 1


WINDOWS = [dict(), dict(stride=2), dict(kernel_size=5, padding=2, dilation=(1, 2))]
LAYOUTS = [torch.contiguous_format, torch.channels_last]
#: A third of all, in which every two of the four settings meet, in every run; the others with --full.
RUNS = [
    pytest.param(
        options, PROVIDERS[p], WINDOWS[w], LAYOUTS[layout],
        id="-".join(map(str, (name, PROVIDERS[p], WINDOWS[w], LAYOUTS[layout]))),
        marks=[] if (i + p + w + layout) % 3 == 0 else pytest.mark.slow,
    )
    for i, (name, options) in enumerate(GROUPED.items()) for p in range(len(PROVIDERS)) for w in range(3) for layout in range(2)
]  # fmt: skip


@pytest.mark.parametrize(("options", "provider", "window", "layout"), RUNS)
def test_values_and_gradients(options, provider, window, layout):
    """Against float64; a sum of n terms in single precision is off by at most (n + 2) 2^-24 times the sum of their absolute values."""
    layer = make(options, **window, seed=2)
    x = torch.randn(3, layer.in_channels, 11, 10).to(memory_format=layout)
    names = ["x", *dict(layer.named_parameters())]

    def run(module, image, cotangent=None, f=lambda t: t):
        module = copy.deepcopy(module)
        with torch.no_grad():
            for p in module.parameters():
                p.copy_(f(p))
        leaf = f(image).detach().requires_grad_()
        out = module(leaf)
        cotangent = torch.randn(out.shape, generator=torch.Generator().manual_seed(3)) if cotangent is None else cotangent
        gradients = torch.autograd.grad(out, [leaf, *module.parameters()], f(cotangent.to(out.dtype)))
        return {"out": out.detach(), **dict(zip(names, gradients))}, cotangent

    def dense_run(f):
        """Through torch's convolution in float64; the weight's gradient at the kept places."""
        dense = layer.to_dense().double()
        image = f(x.double()).detach().requires_grad_()
        mask = layer.weight_dense() != 0
        weight = (f(dense.weight) * mask).detach().requires_grad_()
        bias = f(dense.bias).detach().requires_grad_()
        out = nn.functional.conv2d(image, weight, bias, layer.stride, layer.padding, layer.dilation)
        gradients = torch.autograd.grad(out, [image, weight, bias], f(cotangent.double()))
        kept = StochasticConv2d.from_dense(
            dense, tables=(layer.indptr, layer.index), granularity=layer.granularity, share=layer.share, groups=layer.groups
        )
        kept.load_state_dict({"weight": gradients[1], "bias": gradients[2]})
        return {"out": out.detach(), "x": gradients[0], "weight": kept.weight.detach(), "bias": gradients[2]}

    with backends.use(provider[0], dense=provider[1]):
        ours, cotangent = run(layer, x)
    truth, size, terms = dense_run(lambda t: t), dense_run(torch.abs), dense_run(torch.ones_like)
    for name in ours:
        error = (ours[name].double() - truth[name]).abs()
        assert (error <= (terms[name] + 2) * 2.0**-24 * size[name]).all(), f"{name}: off by {error.max()}"


@CASE
def test_from_grouped_convolution(options):
    conv = nn.Conv2d(options["in_channels"], options["out_channels"], 3, padding=1, groups=options["groups"]).double()
    chosen = {k: options[k] for k in ("granularity", "share") if k in options}
    x = torch.randn(2, conv.in_channels, 7, 7, dtype=torch.float64)
    full = StochasticConv2d.from_dense(conv, density=1.0, **chosen)
    torch.testing.assert_close(full(x), conv(x))
    torch.testing.assert_close(full.to_dense()(x), conv(x))
    half = StochasticConv2d.from_dense(conv, density=0.5, **chosen)
    kept = half.weight_dense()[half.weight_dense() != 0].abs()
    assert half.groups == conv.groups and abs(half.density - 0.5) < 0.05
    assert kept.square().sum() > half.density * conv.weight.square().sum()  # the largest blocks hold more than their share
    each = StochasticConv2d.from_dense(conv, fan_in=conv.weight[0].numel() // 3, **{**chosen, "granularity": "synapse"})
    assert ((each.weight_dense() != 0).sum((1, 2, 3)) == conv.weight[0].numel() // 3).all()
    # a grouped checkpoint, and a dense one, load at the kept places
    layer = make(options).double()
    layer.load_state_dict(conv.state_dict())
    mask = layer.weight_dense() != 0
    assert torch.equal(layer.weight_dense(), full.weight_dense() * mask) and torch.equal(layer.bias, conv.bias)
    dense = nn.Conv2d(conv.in_channels, conv.out_channels, 3).double()
    layer.load_state_dict(dense.state_dict())
    assert torch.equal(layer.weight_dense(), dense.weight * mask)
    finer = StochasticConv2d.from_dense(dense, density=1.0, groups=conv.groups, **chosen)
    assert torch.equal((finer.weight_dense() != 0).all(-1).all(-1), inside(layer))


def test_a_table_may_cross_the_groups():
    layer = StochasticConv2d(8, 4, 3, groups=2, density=0.5, granularity="synapse")
    indptr, index = torch.tensor([0, 72, 73, 73, 74], dtype=torch.int32), torch.tensor([*range(72), 71, 0], dtype=torch.int32)
    layer.set_topology(indptr, index)
    x = torch.randn(2, 8, 6, 6)
    torch.testing.assert_close(layer(x), layer.to_dense()(x), rtol=1e-4, atol=1e-5)
    assert layer.density == 74 / 144
    spatial = StochasticConv2d(8, 4, 3, groups=2, density=0.5)
    spatial.set_topology(torch.tensor([0, 0, 2, 2, 3], dtype=torch.int32), torch.tensor([8, 9, 0], dtype=torch.int32))
    torch.testing.assert_close(spatial(x), spatial.to_dense()(x), rtol=1e-4, atol=1e-5)
    with pytest.raises(ValueError, match=r"sparse_conv2d: index must be in \[0, 18\); got 18 at \[2\]"):
        spatial.set_topology(spatial.indptr, torch.tensor([8, 9, 18], dtype=torch.int32))


def test_bad_from_dense():
    with pytest.raises(ValueError, match=r"^StochasticConv2d: groups must be a multiple of the layer's 2; got 3$"):
        StochasticConv2d.from_dense(nn.Conv2d(12, 12, 3, groups=2), density=0.5, groups=3)


@CASE
def test_state_dict_compiled_and_meta(options):
    one, two = make(options, seed=1), make(options, seed=2)
    two.load_state_dict(one.state_dict())
    x = torch.randn(2, one.in_channels, 8, 8)
    assert torch.equal(one(x), two(x)) and torch.equal(copy.deepcopy(one)(x), one(x))
    torch.testing.assert_close(torch.compile(one, backend="aot_eager", fullgraph=True)(x), one(x))
    with torch.device("meta"):
        meta = make(options, seed=1)
        assert meta(torch.empty(2, meta.in_channels, 8, 8)).shape == one(x).shape and meta.weight.shape == one.weight.shape
        real = make(options, seed=1, device="cpu")
    assert meta.weight.is_meta and torch.equal(real.index, one.index)
    assert f"in {one.groups} groups" in one.explain()
