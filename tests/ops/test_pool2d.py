"""Pooling gives torch's values, gradients, shapes and layouts, whoever serves."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F

from sparsekern.ops import backends, pool2d

PROVIDERS = [("reference", "auto")]
PROVIDERS += [(p, dense) for p in backends.providers()[1:] for dense in (("never", "always", "auto") if backends.native else ("auto",))]
WINDOWS = [  # shape, kernel_size, stride, padding, ceil_mode
    ((2, 24, 9, 12), 3, 2, 0, True),
    ((1, 17, 8, 7), 3, 2, 1, False),
    ((3, 64, 8, 8), (3, 3), 1, 1, False),
    ((2, 3, 10, 5), (2, 4), (3, 1), (1, 2), True),
    ((5, 7, 6), 3, 1, 1, True),
    ((0, 16, 5, 5), 3, 2, 0, False),
    ((2, 130, 7, 7), None, None, 0, False),
    ((1, 1, 1, 1), 1, None, 0, False),
    ((2, 17, 2, 2), 3, 2, 0, True),  # a window that hangs over all of the image
    ((1, 3, 1, 9), (2, 3), 2, 0, True),
]


def torch_pool(x, kernel_size, stride, padding, ceil_mode, pooling, counted):
    kernel_size = x.shape[-2:] if kernel_size is None else kernel_size
    if pooling == "max":
        return F.max_pool2d(x, kernel_size, stride, padding, 1, ceil_mode)
    return F.avg_pool2d(x, kernel_size, stride, padding, ceil_mode, counted)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
@pytest.mark.parametrize("provider,dense", PROVIDERS)
def test_values_and_layout(provider, dense, dtype):
    for shape, *window in WINDOWS:
        for layout in (torch.contiguous_format, torch.channels_last):
            x = torch.randn(shape).to(dtype)
            x = x.to(memory_format=layout) if x.dim() == 4 else x
            for pooling, counted in (("max", True), ("average", True), ("average", False)):
                with backends.use(provider, dense=dense):
                    out = pool2d(x, *window, pooling, counted)
                truth = torch_pool(x.double(), *window, pooling, counted)
                size = torch_pool(x.double().abs(), *window, pooling, counted)
                terms = 1 if pooling == "max" else 2 + (x[0, 0].numel() if x.dim() == 4 and len(x) else 36)
                bound = size * (terms * (2**-53 if dtype == torch.float64 else 2**-24) + (2**-8 if dtype == torch.bfloat16 else 0))
                assert out.dtype == dtype and ((out.double() - truth).abs() <= bound).all()
                if x.dim() == 4 and x.shape[1] > 1 and x.numel() and out[0, 0].numel() > 1:
                    assert out.is_contiguous(memory_format=layout)
                meta = pool2d(x.to("meta"), *window, pooling, counted)
                assert meta.shape == out.shape and (out.numel() == 0 or meta.stride() == out.stride())


@pytest.mark.parametrize("provider,dense", PROVIDERS)
def test_a_nan_stays_and_an_infinity_is_the_largest(provider, dense):
    for at in range(9):
        x = torch.randn(1, 16, 3, 3).to(memory_format=torch.channels_last)
        x[0, 3, at // 3, at % 3], x[0, 5, at // 3, at % 3] = float("nan"), float("inf")
        with backends.use(provider, dense=dense):
            out = pool2d(x, 3)
        torch.testing.assert_close(out, F.max_pool2d(x, 3), equal_nan=True)


def test_gradients_transforms_and_compile():
    x = torch.randn(2, 8, 7, 7, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(lambda x: pool2d(x, 3, 2, 1, pooling="average"), x)
    pool = lambda x: pool2d(x, 3, 2, ceil_mode=True)  # noqa: E731
    xs = torch.randn(3, 2, 8, 7, 7)
    torch.testing.assert_close(torch.func.vmap(pool)(xs), torch.stack([pool(x) for x in xs]))
    assert torch.equal(torch.compile(pool, backend="aot_eager", fullgraph=True)(xs[0]), pool(xs[0]))
    if backends.has_kernels("cpu"):
        torch.library.opcheck(torch.ops.sparsekern.pool2d.default, (xs[0], 3, 3, 2, 2, 1, 1, True, 0), test_utils="test_schema")
        torch.library.opcheck(torch.ops.sparsekern.pool2d.default, (xs[0], 3, 3, 2, 2, 1, 1, True, 0), test_utils="test_faketensor")


@pytest.mark.parametrize("provider", ["reference", backends.providers()[-1]])
def test_bad_input(provider):
    x = torch.ones(1, 2, 5, 5)
    for sentence, error, args in (
        ("x must be a tensor; got list", TypeError, ([1.0], 3)),
        ("x must be [N, C, H, W] or [C, H, W]; got [5, 5]", ValueError, (x[0, 0], 3)),
        ("x must be float32, float64, float16 or bfloat16; got torch.int64", ValueError, (x.long(), 3)),
        ("x must be at least 6 x 6 with its padding; got [1, 2, 5, 5]", ValueError, (x, 6)),
        ("kernel_size must be at least 1; got (0, 0)", ValueError, (x, 0)),
        ("kernel_size must be an int or two; got (1.5, 1.5)", ValueError, (x, 1.5)),
        ("stride must be at least 1; got (0, 0)", ValueError, (x, 3, 0)),
        ("padding must be 0 to half of the window (3, 3); got (2, 2)", ValueError, (x, 3, 1, 2)),
        ("pooling must be one of ('max', 'average'); got 'mean'", ValueError, (x, 3, 1, 0, False, "mean")),
    ):
        with backends.use(provider), pytest.raises(error) as raised:
            pool2d(*args)
        assert str(raised.value) == f"pool2d: {sentence}"
