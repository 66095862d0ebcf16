"""Calls that torch's own convolution does not survive, or gets wrong: our kernels serve them, whatever the policy.

oneDNN under torch 2.13 may end the process on float16 and bfloat16 images where a window touches no pixel, and is wrong in bfloat16 for
one output column by a stride. Drawn calls found it.
"""

import pytest
import torch

from sparsekern.nn import GroupedConv2d, StochasticConv2d
from sparsekern.ops import backends, grouped_conv2d

DENSE = ["always", "auto", "never"] if backends.native else ["auto"]
WINDOWS = [  # images, kernel, stride, padding, dilation, groups
    ((1, 7, 11, 2), (1, 1), 3, (1, 1), 3, 1),
    ((3, 20, 5, 1), (5, 1), 2, (2, 1), 2, 4),
    ((1, 4, 5, 1), (1, 1), 3, (1, 2), 3, 4),
    ((3, 48, 16, 1), (2, 1), 2, (3, 3), 3, 3),
    ((1, 48, 1, 16), (3, 2), (3, 1), (3, 0), 2, 1),
    ((3, 48, 23, 3), (3, 3), (1, 2), (1, 1), 2, 1),
    ((3, 48, 11, 5), (1, 5), (2, 3), (0, 0), 1, 1),
    ((3, 144, 1, 1), (1, 5), (3, 2), (0, 3), 1, 3),
]


@pytest.mark.skipif(not backends.has_kernels("cpu"), reason="the reference is torch's convolution")
@pytest.mark.parametrize("dense", ["always", "auto", "never"])
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
@pytest.mark.parametrize("shape, kernel, stride, padding, dilation, groups", WINDOWS)
def test_torch_does_not_serve_them(shape, kernel, stride, padding, dilation, groups, dtype, dense):
    draw = torch.Generator().manual_seed(0)
    x = torch.randn(shape, generator=draw).to(dtype)
    window = {"stride": stride, "padding": padding, "dilation": dilation}
    weight = torch.randn(2 * groups, shape[1] // groups, *kernel, generator=draw).to(dtype).requires_grad_()
    exact = weight.detach().double().requires_grad_()
    truth = torch.nn.functional.conv2d(x.double(), exact, **window, groups=groups)
    truth.sum().backward()
    bound = torch.finfo(dtype).eps * (truth.abs().max() + 1)  # the rounding of the result; of its sum, in float32, far less
    policy = backends.use(backends.providers()[-1], dense=dense) if backends.native else backends.use(backends.providers()[-1])
    with policy:
        out = grouped_conv2d(x, weight, **window, groups=groups)
        out.sum().backward()
        assert (out.double() - truth).abs().max() <= bound and (weight.grad.double() - exact.grad).abs().max() <= torch.finfo(dtype).eps * (
            exact.grad.abs().max() + 1
        )
        sparse = StochasticConv2d(shape[1], 6, kernel, density=0.5, seed=0, **window, dtype=dtype)
        truth = torch.nn.functional.conv2d(x.double(), sparse.weight_dense().double(), sparse.bias.double(), **window)
        assert (sparse(x).double() - truth).abs().max() <= torch.finfo(dtype).eps * (truth.abs().max() + 1)


@pytest.mark.parametrize("shape, kernel, stride, padding, dilation, groups", WINDOWS[4:])
def test_the_references_are_computed_in_float32_under_autocast_too(shape, kernel, stride, padding, dilation, groups):
    draw = torch.Generator().manual_seed(0)
    x, weight = torch.randn(shape, generator=draw), torch.randn(2 * groups, shape[1] // groups, *kernel, generator=draw)
    window = {"stride": stride, "padding": padding, "dilation": dilation}
    sparse = StochasticConv2d(shape[1], 6, kernel, density=0.5, seed=0, **window)

    def in_bf16(weight, bias, groups):
        return torch.nn.functional.conv2d(x.bfloat16().double(), weight.bfloat16().double(), bias, **window, groups=groups)

    with backends.use("reference"), torch.autocast("cpu", torch.bfloat16), torch.no_grad():
        found = (
            (grouped_conv2d(x, weight, **window, groups=groups), in_bf16(weight, None, groups)),
            (sparse(x), in_bf16(sparse.weight_dense(), sparse.bias.bfloat16().double(), 1)),
        )
    for out, truth in found:
        assert out.dtype == torch.bfloat16
        assert (out.double() - truth).abs().max() <= torch.finfo(torch.bfloat16).eps * (truth.abs().max() + 1)


@pytest.mark.parametrize("provider, dense", [("reference", "auto"), *((backends.providers()[-1], d) for d in DENSE)])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
def test_one_tap_knows_no_dilation(dtype, provider, dense):
    """In float32 too torch's channels_last convolution ends the process where a window touches no pixel and one tap is told a dilation."""
    draw = torch.Generator().manual_seed(0)
    for images, groups, own, filters, kernel in (
        (3, 16, 4, 12, (1, 1)),
        (1, 2, 4, 12, (1, 1)),
        (3, 1, 64, 192, (1, 1)),
        (2, 2, 8, 8, (3, 1)),
    ):
        x = torch.randn(images, groups * own, 2, 2, generator=draw).to(dtype)
        weight, bias = (torch.randn(s, generator=draw).to(dtype) for s in ((groups * filters, own, *kernel), (groups * filters,)))
        window = {"stride": (1, 3), "padding": (1, 1), "dilation": (1, 3)}
        truth = torch.nn.functional.conv2d(x.double(), weight.double(), bias.double(), (1, 3), (1, 1), (1, 1), groups)
        size = torch.nn.functional.conv2d(x.double().abs(), weight.double().abs(), bias.double().abs(), (1, 3), (1, 1), (1, 1), groups)
        bound = size * (torch.finfo(dtype).eps + (own * 3 + 2) * 2.0**-24)
        sparse = StochasticConv2d(groups * own, 6, kernel, density=0.5, seed=0, **window, dtype=dtype)
        exact = torch.nn.functional.conv2d(x.double(), sparse.weight_dense().double(), sparse.bias.double(), (1, 3), (1, 1))
        for layout in (torch.contiguous_format, torch.channels_last):
            image, filter_ = x.to(memory_format=layout), weight.to(memory_format=torch.channels_last).requires_grad_()
            with backends.use(provider, dense=dense):
                out = grouped_conv2d(image, filter_, bias, **window, groups=groups)
                out.sum().backward()  # through torch's or ours
                assert ((out.double() - truth).abs() <= bound).all() and filter_.grad.isfinite().all()
                torch.testing.assert_close(sparse(image).double(), exact, rtol=0.05, atol=0.05)
                layer = GroupedConv2d(groups * own, groups * filters, kernel, groups=groups, **window, dtype=dtype)
                with torch.no_grad():
                    layer.weight.copy_(weight)
                    layer.bias.copy_(bias)
                    assert ((layer(image).double() - truth).abs() <= bound).all()


@pytest.mark.parametrize("provider, dense", [("reference", "auto"), *((backends.providers()[-1], d) for d in DENSE)])
@pytest.mark.parametrize("kernel", [(3, 3), (1, 3), (2, 2)])
def test_dilated_windows_that_miss_a_channels_last_image(kernel, provider, dense):
    draw = torch.Generator().manual_seed(0)
    x, weight = torch.randn(1, 16, 2, 2, generator=draw), torch.randn(16, 8, *kernel, generator=draw)
    window = {"stride": (1, 3), "padding": (4, 7), "dilation": (1, 3)}
    leaves = [t.double().requires_grad_() for t in (x, weight)]
    truth = torch.nn.functional.conv2d(*leaves, None, *window.values(), 2)
    exact = torch.autograd.grad(truth.square().sum(), leaves)
    for layout in (torch.contiguous_format, torch.channels_last):
        leaves = [t.to(memory_format=layout).requires_grad_() for t in (x, weight)]
        with backends.use(provider, dense=dense):
            out = grouped_conv2d(*leaves, None, *window.values(), 2)
            found = torch.autograd.grad(out.square().sum(), leaves)
            sparse = StochasticConv2d(16, 6, kernel, density=0.5, seed=0, **window)
            sparse(leaves[0]).square().sum().backward()
            with torch.no_grad():
                dense_truth = torch.nn.functional.conv2d(x.double(), sparse.weight_dense().double(), sparse.bias.double(), **window)
                torch.testing.assert_close(sparse(leaves[0]).double(), dense_truth, rtol=1e-4, atol=1e-4)
        for got, want in zip((out, *found), (truth, *exact)):
            torch.testing.assert_close(got.double(), want, rtol=1e-4, atol=1e-4)


@pytest.mark.skipif(not (backends.has_kernels("cpu") and backends.native), reason="asks for torch where there is a choice")
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
@pytest.mark.parametrize("shape, kernel, stride, padding, dilation, groups", WINDOWS)
def test_explain_says_who_serves_them(shape, kernel, stride, padding, dilation, groups, dtype):
    window = {"stride": stride, "padding": padding, "dilation": dilation}
    grouped = GroupedConv2d(shape[1], 2 * groups, kernel, groups=groups, **window)
    sparse = [StochasticConv2d(shape[1], 6, kernel, density=0.5, granularity=g, seed=0, **window) for g in ("spatial", "synapse")]
    with backends.use(backends.providers()[-1], dense="always"):
        missed = [
            w[1:] for w in (WINDOWS[1], WINDOWS[3], WINDOWS[4])
        ]  # taps that lie apart, and a window without a pixel: not in float32 either
        left = 0 if (kernel, stride, padding, dilation, groups) in missed else 3
        assert grouped.explain(shape).count(" torch ") == left and all(layer.explain(shape).count(" dense  ") == left for layer in sparse)
        assert "torch " not in "".join(line[:27] for line in grouped.to(dtype).explain(shape).splitlines()[1:])
        assert not any(" dense  " in layer.to(dtype).explain(shape) for layer in sparse)
