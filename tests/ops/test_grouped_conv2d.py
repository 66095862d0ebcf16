"""What is special to grouped_conv2d: torch's semantics to the letter, layouts, the fused ReLU, who serves."""

from __future__ import annotations

import itertools

import pytest
import torch
import torch.nn.functional as F

from sparsekern.ops import backends
from sparsekern.ops.grouped_conv2d import explain_grouped_conv2d, grouped_conv2d, is_channels_last

LAYOUTS = [torch.contiguous_format, torch.channels_last]
KERNELS = pytest.mark.skipif(not backends.has_kernels("cpu"), reason="built without kernels")
POLICIES = ["never", "always"] if backends.native else ["auto"]
WINDOWS = [
    (1, 1, 0, 1), (1, 2, 0, 1), (1, 1, 1, 1), (2, 1, 1, 1), (3, 1, 1, 1), (3, 1, 0, 1), (3, 1, 2, 1), (3, 2, 1, 1), (3, 1, 2, 2),
    (5, 1, 2, 1), (5, 3, 4, 1), (7, 1, 3, 1), ((3, 1), (1, 2), (1, 0), 1), ((1, 5), 1, (0, 2), (2, 1)), (3, 1, "same", 2),
    ((2, 4), 1, "same", 1), (3, 2, "valid", 1),
]  # fmt: skip


def products(function, x, weight, bias, args, cotangent):
    """[out, grad_x, grad_weight, grad_bias]"""
    leaves = tuple(t.detach().requires_grad_() for t in (x, weight, bias))
    out = function(*leaves, *args)
    return [out.detach(), *torch.autograd.grad(out, leaves, cotangent)]


def assert_rounded_sums(got, inputs, args, cotangent):
    """Each of the four is a sum of so many products in any order, in float32."""
    exact = [t.double() for t in inputs]
    want = products(F.conv2d, *exact, args, cotangent.double())
    size = products(F.conv2d, *(t.abs() for t in exact), args, cotangent.double().abs())
    terms = products(F.conv2d, *(torch.ones_like(t) for t in exact), args, torch.ones_like(cotangent, dtype=torch.float64))
    for g, w, s, t in zip(got, want, size, terms):
        assert ((g - w).abs() <= (t + 2) * 2.0**-24 * s).all()


@pytest.mark.parametrize("dense", POLICIES)
@pytest.mark.parametrize("layout", LAYOUTS, ids=str)
@pytest.mark.parametrize("kernel,stride,padding,dilation", WINDOWS, ids=str)
def test_is_torchs_convolution(kernel, stride, padding, dilation, layout, dense):
    for groups, channels, filters in ((1, 5, 7), (2, 32, 48), (4, 32, 64), (16, 16, 16)):
        x = torch.randn(2, channels, 8, 18).to(memory_format=layout)
        size = (kernel, kernel) if isinstance(kernel, int) else kernel
        weight, bias = torch.randn(filters, channels // groups, *size), torch.randn(filters)
        args = (stride, padding, dilation, groups)
        cotangent = torch.randn_like(F.conv2d(x, weight, bias, *args))
        with backends.use(backends.providers()[-1], dense=dense):
            got = products(grouped_conv2d, x, weight, bias, args, cotangent)
        assert is_channels_last(got[0]) == is_channels_last(x)
        assert_rounded_sums(got, (x, weight, bias), args, cotangent)


@pytest.mark.parametrize("provider", backends.providers())
def test_pixels_that_a_stride_passes_by_are_not_read(provider):
    """torch's weight gradient of one tap is wrong for them on AVX2, by what happens to lie in memory."""
    for seed, dense in itertools.product(range(10), POLICIES):
        torch.manual_seed(seed)
        x, cotangent = torch.randn(2, 5, 8, 18).to(memory_format=torch.channels_last), torch.randn(2, 7, 4, 9)
        weight, bias, args = torch.randn(7, 5, 1, 1), torch.randn(7), (2, 0, 1, 1)
        with backends.use(provider, dense=dense):
            got = products(grouped_conv2d, x, weight, bias, args, cotangent)
        assert_rounded_sums(got, (x, weight, bias), args, cotangent)


@KERNELS
@pytest.mark.parametrize("dense", POLICIES)
def test_taps_that_meet_padding_only_are_left_out(dense):
    torch.manual_seed(0)
    for size, taps, stride, padding, dilation in itertools.product((1, 2, 5), (2, 3, 4, 5, 7), (1, 3), range(5), (1, 2, 4)):
        outputs = (size + 2 * padding - dilation * (taps - 1) - 1) // stride + 1
        if outputs < 1:
            continue
        met = [any(0 <= o * stride + t * dilation - padding < size for o in range(outputs)) for t in range(taps)]
        front, back = (met.index(True), met[::-1].index(True)) if any(met) else (taps, taps)
        dead = min(front, back, padding // dilation, (taps - 1) // 2)
        if dead == 0 and (padding % 2 or taps % 2):
            continue  # the other convolutions are tested elsewhere
        layouts = LAYOUTS[(padding + taps) % 2], LAYOUTS[(size + dilation) // 2 % 2]
        x = torch.randn(2, 8, size, 3).to(memory_format=layouts[0])
        weight, bias = torch.randn(12, 4, taps, 1).to(memory_format=layouts[1]), torch.randn(12)
        args = ((stride, 1), (padding, 0), (dilation, 1), 2)
        cotangent = torch.randn_like(F.conv2d(x, weight, bias, *args))
        want = products(F.conv2d, *(t.double() for t in (x, weight, bias)), args, cotangent.double())
        weight[:, :, :dead], weight[:, :, taps - dead :] = torch.nan, torch.nan  # whoever multiplies them, even by zero, is found out
        with backends.use(backends.providers()[-1], dense=dense):
            got = products(grouped_conv2d, x, weight, bias, args, cotangent)
            turned = grouped_conv2d(*(t.transpose(2, 3) for t in (x, weight)), bias, *(a[::-1] for a in args[:3]), 2)
        for g, w in zip(got, want):
            torch.testing.assert_close(g.double(), w, rtol=1e-5, atol=1e-5)
        torch.testing.assert_close(turned.transpose(2, 3).double(), want[0], rtol=1e-5, atol=1e-5)
        if dead:
            assert not got[2][:, :, :dead].any() and not got[2][:, :, taps - dead :].any()


def test_output_layout_follows_the_input():
    weight = torch.randn(8, 2, 3, 3)
    nchw = torch.randn(2, 4, 6, 7)
    nhwc = nchw.to(memory_format=torch.channels_last)
    for w in (weight, weight.to(memory_format=torch.channels_last)):
        assert grouped_conv2d(nchw, w, groups=2).stride() == (160, 20, 5, 1)
        assert grouped_conv2d(nhwc, w, groups=2).stride() == (160, 1, 40, 8)
        assert grouped_conv2d(nhwc[..., 1:], w, groups=2).is_contiguous()  # neither of the two: contiguous
        torch.testing.assert_close(grouped_conv2d(nhwc, w, groups=2), grouped_conv2d(nchw, w, groups=2), rtol=1e-4, atol=1e-4)


@KERNELS
@pytest.mark.parametrize("dense", POLICIES)
def test_gradients_when_layouts_are_mixed(dense):
    torch.manual_seed(0)
    weight = torch.randn(8, 2, 3, 3)
    x = torch.randn(2, 4, 6, 7)
    cotangent = torch.randn(2, 8, 4, 5)
    want = torch.autograd.grad(F.conv2d(x.requires_grad_(), weight.requires_grad_(), groups=2), (x, weight), cotangent)
    for a, b, c in itertools.product(LAYOUTS, repeat=3):
        leaves = x.detach().to(memory_format=a).requires_grad_(), weight.detach().to(memory_format=b).requires_grad_()
        with backends.use(backends.providers()[-1], dense=dense):
            got = torch.autograd.grad(grouped_conv2d(*leaves, groups=2), leaves, cotangent.to(memory_format=c))
        for g, w in zip(got, want):
            torch.testing.assert_close(g, w, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("layout", LAYOUTS, ids=str)
def test_relu_is_the_same_fused_or_not(layout):
    x = torch.randn(2, 24, 9, 10).to(memory_format=layout)
    weight, bias = torch.randn(48, 6, 3, 3), torch.randn(48)
    fused = grouped_conv2d(x, weight, bias, padding=1, groups=4, activation="relu")
    plain = grouped_conv2d(x, weight, bias, padding=1, groups=4)
    trained = grouped_conv2d(x, weight.clone().requires_grad_(), bias, padding=1, groups=4, activation="relu")
    assert torch.equal(fused, plain.relu()) and torch.equal(trained, fused)
    seen = torch.func.vmap(lambda one: grouped_conv2d(one, weight, bias, padding=1, groups=4, activation="relu"))(x)
    torch.testing.assert_close(seen, fused)


@KERNELS
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("dense", POLICIES)
@pytest.mark.parametrize("layouts", list(itertools.product(LAYOUTS, repeat=2)), ids=str)
def test_shortcut_is_the_same_fused_or_not(layouts, dense, dtype):
    torch.manual_seed(0)
    # last tiles that overlap the one before must not add twice: 15 * 15 pixels, 40 channels, rows of 13
    for kernel, groups, stride, size in (
        (1, 1, 1, (15, 15)),
        (1, 2, 2, (9, 11)),
        (3, 4, 1, (10, 13)),
        (3, 1, 1, (7, 7)),
        (5, 8, 1, (9, 17)),
    ):
        x, weight, bias = torch.randn(2, 16, *size), torch.randn(40, 16 // groups, kernel, kernel), torch.randn(40)
        x, weight, bias = x.to(dtype, memory_format=layouts[0]), weight.to(dtype), bias.to(dtype)
        args = (bias, stride, kernel // 2, 1, groups)
        with backends.use(backends.providers()[-1], dense=dense):
            plain = grouped_conv2d(x, weight, *args)
            shortcut = torch.randn(plain.shape).to(dtype, memory_format=layouts[1])
            for activation in ("none", "relu"):
                fused = grouped_conv2d(x, weight, *args, activation, shortcut)
                leaf = shortcut.clone().requires_grad_()
                trained = grouped_conv2d(x, weight, *args, activation, leaf)
                want = plain.float() + shortcut
                want = want.relu() if activation == "relu" else want
                assert fused.stride() == trained.stride() == plain.stride() and fused.dtype == dtype
                rtol = 1e-5 if dtype == torch.float32 else 2**-6
                torch.testing.assert_close(fused.float(), want, rtol=rtol, atol=10 * rtol)
                torch.testing.assert_close(trained.float(), want, rtol=rtol, atol=10 * rtol)
                (grad,) = torch.autograd.grad(trained.sum(), leaf)
                passes = torch.ones_like(trained) if activation == "none" else (trained > 0).to(dtype)
                assert torch.equal(grad, passes)


def test_shortcut_of_one_image():
    x, weight, shortcut = torch.randn(6, 9, 8), torch.randn(4, 3, 3, 3), torch.randn(4, 9, 8)
    want = F.conv2d(x, weight, groups=2, padding=1) + shortcut
    torch.testing.assert_close(grouped_conv2d(x, weight, groups=2, padding=1, shortcut=shortcut), want)
    with pytest.raises(ValueError, match=r"^grouped_conv2d: shortcut must be \[4, 9, 8\] like the result; got \[1, 4, 9, 8\]$"):
        grouped_conv2d(x, weight, groups=2, padding=1, shortcut=shortcut[None])


def test_fused_end_is_not_differentiated_silently():
    x, weight = torch.randn(1, 4, 5, 5), torch.randn(4, 2, 3, 3, requires_grad=True)
    out = torch.ops.sparsekern.grouped_conv2d(x, weight, None, torch.randn(1, 4, 3, 3), 1, 1, 0, 0, 1, 1, 2, False)
    with pytest.raises(RuntimeError, match="a fused relu or shortcut has no gradient"):
        out.sum().backward()


@KERNELS
@pytest.mark.parametrize("dense", POLICIES)
@pytest.mark.parametrize("layout", LAYOUTS, ids=str)
def test_nan_and_inf_reach_what_they_reach_in_torch(layout, dense):
    for kernel, groups in ((1, 1), (3, 4), (5, 2), (3, 16)):
        x, weight = torch.randn(1, 16, 12, 15), torch.randn(32, 16 // groups, kernel, kernel)
        x[0, 3, 4, 7], x[0, 9, 0, 0] = torch.nan, torch.inf
        want = F.conv2d(x.double(), weight.double(), padding=kernel // 2, groups=groups).relu()
        with backends.use(backends.providers()[-1], dense=dense):
            got = grouped_conv2d(x.to(memory_format=layout), weight, padding=kernel // 2, groups=groups, activation="relu")
        assert torch.equal(got.isnan(), want.isnan()) and torch.equal(got.isinf(), want.isinf())


def test_one_image():
    x, weight = torch.randn(6, 9, 8), torch.randn(4, 3, 3, 3)
    torch.testing.assert_close(grouped_conv2d(x, weight, groups=2, padding=1), F.conv2d(x, weight, groups=2, padding=1))
    with pytest.raises(ValueError, match=r"^grouped_conv2d: x must be \[..., 6, H, W\] for groups=2 and C/G=3; got \[5, 9, 8\]$"):
        grouped_conv2d(x[:5], weight, groups=2)


@KERNELS
def test_who_serves_is_decided_from_sizes():
    def served(door, x, weight, channels_last=False, **kwargs):
        window = (kwargs.get("stride", 1),) * 2 + (weight[-1] // 2,) * 2 + (1, 1, x[1] // weight[1])
        return explain_grouped_conv2d(x, weight, window, channels_last, kwargs.get("dtype", torch.float32))[door]

    if backends.serves("grouped_conv2d") not in ("cpu/avx512", "cpu/amx"):
        pytest.skip("the rules asserted here are those of AVX-512")
    nin2a, nin3a = ((1, 96, 16, 16), (192, 6, 5, 5)), ((1, 192, 8, 8), (192, 24, 3, 3))
    for layer in (nin2a, nin3a):
        for channels_last in (False, True):
            assert served("forward", *layer, channels_last)[0] == served("grad_x", *layer, channels_last)[0] == "sparsekern"
    assert served("forward", (1, 192, 32, 32), (160, 192, 1, 1), True)[0] == "sparsekern"
    assert served("forward", (32, 64, 56, 56), (64, 1, 3, 3), True) == ("torch", "depthwise: torch is faster")
    assert served("forward", (8, 64, 56, 56), (64, 8, 3, 3), stride=2)[0] == "sparsekern"
    assert (
        served("forward", (8, 64, 56, 56), (64, 16, 3, 3), stride=2)[0] == served("forward", (1, 64, 28, 28), (64, 16, 3, 3), stride=2)[0]
    )
    assert served("forward", (1, 64, 28, 28), (64, 16, 3, 3), stride=2) == ("sparsekern", "own kernel")
    assert served("forward", (8, 128, 14, 14), (128, 32, 3, 3), stride=2) == ("torch", "stride above 1: torch is faster")
    assert served("forward", (1, 3, 224, 224), (64, 3, 7, 7), True, stride=2) == ("sparsekern", "own kernel")
    assert served("forward", (1, 512, 14, 14), (512, 512, 3, 3), True, stride=2)[0] == "sparsekern"
    assert served("forward", (32, 128, 28, 28), (128, 16, 3, 3), True, stride=2)[0] == "sparsekern"
    assert served("forward", (32, 128, 56, 56), (128, 16, 3, 3), True, stride=2)[0] == "torch"
    assert served("forward", (32, 160, 10, 10), (320, 16, 3, 3), True)[0] == "torch"  # rows of 10 fill no tile
    assert served("forward", (1, 160, 10, 10), (320, 16, 3, 3), True)[0] == "sparsekern"
    assert served("forward", (32, 96, 32, 32), (192, 12, 5, 5), True, stride=2)[0] == "sparsekern"
    assert served("forward", (32, 128, 32, 32), (128, 16, 5, 5), True, stride=2)[0] == "torch"
    assert served("forward", (8, 128, 28, 28), (128, 32, 3, 3), True, stride=2)[0] == "sparsekern"
    assert served("forward", (8, 128, 28, 28), (128, 16, 3, 3), True, stride=3)[0] == "torch"
    assert served("forward", (2, 96, 28, 28), (96, 12, 3, 3), True, stride=3)[0] == "sparsekern"
    assert served("forward", (8, 3, 224, 224), (64, 3, 7, 7), True, stride=2)[0] == "torch"
    assert served("forward", (1, 3, 224, 224), (64, 3, 7, 7), False, stride=2)[0] == "torch"
    assert served("forward", (1, 256, 56, 56), (512, 256, 1, 1), True, stride=2)[0] == "sparsekern"
    assert served("forward", (8, 256, 56, 56), (64, 256, 1, 1), True)[0] == "sparsekern"
    assert served("forward", (32, 64, 56, 56), (256, 64, 1, 1), True) == ("torch", "dense 1x1 bound by memory: torch is faster")
    assert served("forward", (1, 8, 4, 4), (8, 2, 3, 3))[0] == "sparsekern"
    assert (
        served("forward", (1, 40, 9, 9), (40, 4, 7, 7), True)[0] == served("forward", (8, 40, 9, 9), (40, 2, 7, 7), True)[0] == "sparsekern"
    )
    assert served("forward", (8, 40, 9, 9), (40, 4, 7, 7), True)[0] == "torch"
    assert (
        served("forward", (8, 96, 14, 14), (96, 12, 7, 7), True)[0]
        == served("forward", (1, 96, 14, 14), (96, 16, 7, 7), True)[0]
        == "sparsekern"
    )
    assert served("forward", (8, 96, 14, 14), (96, 16, 7, 7), True)[0] == "torch"
    for in_group, server in ((24, "sparsekern"), (32, "torch")):
        assert served("grad_weight", (8, 96, 13, 27), (96, in_group, 5, 5), True)[0] == server
    assert served("forward", (32, 128, 28, 28), (128, 32, 3, 3), True, dtype=torch.bfloat16)[0] == "torch"
    if backends.serves("grouped_conv2d") == "cpu/amx":
        on_tiles = ("sparsekern", "own kernel on matrix tiles")
        for layer in (((1, 128, 28, 28), (128, 16, 3, 3)), ((8, 256, 14, 14), (256, 32, 3, 3)), ((1, 96, 16, 16), (192, 12, 5, 5))):
            assert served("forward", *layer, True, dtype=torch.bfloat16) == on_tiles
        for images, in_group in ((32, 8), (16, 12), (8, 16)):  # 12 channels of many images fill torch's tiles well
            assert served("forward", (images, 96, 14, 14), (96, in_group, 5, 5), True, dtype=torch.bfloat16) == on_tiles
        assert served("forward", (32, 96, 16, 16), (96, 12, 5, 5), True, dtype=torch.bfloat16)[0] == "torch"
        for images, server in ((8, "sparsekern"), (32, "torch")):  # strided
            assert served("forward", (images, 128, 28, 28), (128, 32, 3, 3), True, dtype=torch.bfloat16, stride=2)[0] == server
        nin2a, narrow = ((1, 96, 16, 16), (192, 12, 5, 5)), ((32, 128, 28, 28), (128, 8, 3, 3))
        for layer in (nin2a, narrow):
            for product in ("grad_x", "grad_weight"):
                assert served(product, *layer, True, dtype=torch.bfloat16) == on_tiles
                assert served(product, (32, 256, 14, 14), (256, 128, 3, 3), True, dtype=torch.bfloat16)[0] == "torch"
    assert served("forward", (8, 256, 14, 14), (256, 32, 3, 3), True, dtype=torch.float16)[0] == "sparsekern"


@KERNELS
@pytest.mark.skipif(not backends.native, reason="built without _native")
def test_policy_is_obeyed():
    x, weight = torch.randn(1, 96, 16, 16), torch.randn(192, 6, 5, 5)
    with backends.use(backends.providers()[-1], dense="always"):
        assert torch.equal(grouped_conv2d(x, weight, padding=2, groups=16), F.conv2d(x, weight, padding=2, groups=16))
    for dense, server in (("always", "torch"), ("never", "sparsekern")):
        with backends.use(backends.providers()[-1], dense=dense):
            served = explain_grouped_conv2d(x.shape, weight.shape, (1, 1, 2, 2, 1, 1, 16), False, torch.float32)
        assert set(served.values()) == {(server, "asked for")}
