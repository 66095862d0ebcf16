"""Joined convolutions are the concatenation of the convolutions, whoever serves; what lies between the channels stays as it is."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F

from sparsekern.ops import backends, joined_conv2d_packed, pack_grouped_conv2d

pytestmark = pytest.mark.skipif(not backends.has_kernels("cpu"), reason="built without kernels")
PROVIDERS = [("reference", "auto")]
PROVIDERS += [(p, dense) for p in backends.providers()[1:] for dense in (("never", "always", "auto") if backends.native else ("auto",))]
BRANCHES = {  # in, out, kernel, stride, padding, dilation, groups
    "inception": [(24, 33, 1, 1, 0, 1, 1), (24, 64, 3, 1, 1, 1, 4), (8, 20, 5, 1, 2, 1, 2), (24, 16, 1, 1, 0, 1, 1)],
    "padded_copy": [(12, 18, 3, 1, 2, 2, 3), (12, 7, 1, 1, 0, 1, 1), (12, 12, 3, 1, 1, 1, 12)],
    "one_strided": [(8, 24, 3, 2, 1, 1, 2), (16, 40, 1, 2, 0, 1, 1)],
}


def call(name, dtype=torch.float32, images=3, size=(13, 16), layout=torch.channels_last, seed=0):
    """(arguments of the op; what F.conv2d needs)"""
    generator = torch.Generator().manual_seed(seed)
    randn = lambda *shape: torch.randn(*shape, generator=generator).to(dtype)  # noqa: E731
    arguments, plain = ([], [], [], []), []
    for channels, filters, kernel, stride, padding, dilation, groups in BRANCHES[name]:
        x = randn(images, channels, *size).to(memory_format=layout)
        weight, bias = randn(filters, channels // groups, kernel, kernel), randn(filters)
        packed = pack_grouped_conv2d(weight, stride, padding, dilation, groups, images=(max(images, 1), *size))
        window = [kernel] * 2 + [stride] * 2 + [padding] * 2 + [dilation] * 2 + [groups]
        for kept, value in zip(arguments, ([x], [packed], [bias], window)):
            kept.extend(value)
        plain.append((x, weight, bias, stride, padding, dilation, groups))
    return arguments, plain


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("provider,dense", PROVIDERS)
@pytest.mark.parametrize("name", BRANCHES)
def test_values(name, provider, dense, dtype):
    last, plain_layout = torch.channels_last, torch.contiguous_format
    for layout, images, activation in ((last, 3, "relu"), (last, 1, "none"), (plain_layout, 2, "relu"), (last, 0, "none")):
        with backends.use(PROVIDERS[-1][0] if provider == "reference" else provider, dense=dense):
            arguments, plain = call(name, dtype, images, layout=layout)
        with backends.use(provider, dense=dense):
            out = joined_conv2d_packed(*arguments, activation)
        double = [tuple(v.double() if isinstance(v, torch.Tensor) else v for v in branch) for branch in plain]
        truth = torch.cat([F.conv2d(*branch) for branch in double], 1)
        size = torch.cat([F.conv2d(x.abs(), w.abs(), b.abs(), *rest) for x, w, b, *rest in double], 1)
        terms = max(w[0].numel() for _, w, *_ in plain) + 3
        truth = truth.relu() if activation == "relu" else truth
        assert out.dtype == dtype and out.shape == truth.shape and (images == 0 or out.is_contiguous(memory_format=layout))
        assert ((out.double() - truth).abs() <= size * (terms * 2**-24 + (2**-8 if dtype == torch.bfloat16 else 0))).all()


def test_compile_threads_and_flops():
    from torch.utils.flop_counter import FlopCounterMode

    arguments, plain = call("inception")
    f = lambda xs: joined_conv2d_packed(xs, *arguments[1:], "relu")  # noqa: E731
    before, results = torch.get_num_threads(), []
    try:
        for threads in (1, 2, 3):
            torch.set_num_threads(threads)
            results.append(f(arguments[0]))
    finally:
        torch.set_num_threads(before)
    assert all(torch.equal(results[0], other) for other in results)
    torch.testing.assert_close(torch.compile(f, backend="aot_eager", fullgraph=True)(arguments[0]), results[0], rtol=0, atol=0)
    torch.library.opcheck(
        torch.ops.sparsekern.joined_conv2d_packed.default, (*arguments, True), test_utils=("test_schema", "test_faketensor")
    )
    with FlopCounterMode(display=False) as counter:
        f(arguments[0])
    assert counter.get_total_flops() == sum(2 * 3 * 13 * 16 * w.numel() for _, w, *_ in plain)


@pytest.mark.parametrize("provider", ["reference", backends.providers()[-1]])
def test_bad_input(provider):
    xs, packed, biases, windows = call("inception")[0]
    other = [*xs[:3], xs[3][:, :, 1:]]
    for sentence, error, arguments in (
        ("xs must be at least one image; got 0", ValueError, ([], [], [], [])),
        ("packed must be 4 packs with their biases; got (3, 4)", ValueError, (xs, packed[:3], biases, windows)),
        ("windows must be 9 numbers for each of 4; got 35", ValueError, (xs, packed, biases, windows[1:])),
        ("xs must be a tensor; got NoneType", TypeError, ([None, *xs[1:]], packed, biases, windows)),
        ("xs must be float32, float16 or bfloat16; got torch.float64", ValueError, ([x.double() for x in xs], packed, biases, windows)),
        ("xs must be of results [N, OH, OW] = [3, 13, 16] like the first; got [3, 12, 16]", ValueError, (other, packed, biases, windows)),
        ("packed must be of [K, C, KH, KW, groups] = [33, 24, 1, 1, 1]; got [64, 24, 3, 3, 4]", ValueError,
         (xs, [packed[1], *packed[1:]], biases, windows)),
        ("packed must be made by pack_grouped_conv2d; got 64 other numbers", ValueError,
         (xs, [torch.zeros(64, dtype=torch.int32), *packed[1:]], biases, windows)),
        ("windows must be of positive numbers; got [1, 1, 0, 1, 0, 0, 1, 1, 1]", ValueError, (xs, packed, biases, [1, 1, 0, *windows[3:]])),
    ):  # fmt: skip
        with backends.use(provider), pytest.raises(error) as raised:
            joined_conv2d_packed(*arguments)
        assert str(raised.value) == f"joined_conv2d: {sentence}"
    with pytest.raises(ValueError, match=r"^joined_conv2d: activation must be one of"):
        joined_conv2d_packed(xs, packed, biases, windows, "gelu")


@pytest.mark.parametrize("provider", ["reference", backends.providers()[-1]])
def test_autocast(provider):
    arguments, _ = call("inception")
    xs, packed, biases, windows = arguments
    low = lambda tensors: [t.bfloat16() for t in tensors]  # noqa: E731
    with backends.use(provider):
        expected = joined_conv2d_packed(low(xs), packed, low(biases), windows)
        with torch.autocast("cpu", torch.bfloat16):
            for images in (xs, low(xs)):  # as they came, or from a convolution before
                assert torch.equal(joined_conv2d_packed(images, packed, biases, windows), expected)
