"""A sequence is its layers one after the other, whoever serves, however many images go together; with the bits of the layers."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F

from sparsekern.ops import backends, pack_grouped_conv2d, plan_sparse_conv2d, pool2d, sequence2d, sparse_conv2d
from sparsekern.ops.grouped_conv2d_packed import grouped_conv2d_packed
from sparsekern.ops.pool2d import AVERAGE, AVERAGE_COUNTING_PADDING, MAX
from sparsekern.ops.sequence2d import PACKED_CONV, POOL, SPARSE_CONV, Stage
from sparsekern.ops.sparse_conv2d import dense_weight
from sparsekern.topology.conv_masks import conv_mask

pytestmark = pytest.mark.skipif(not backends.has_kernels("cpu"), reason="built without kernels")
PROVIDERS = [("reference", "auto")]
PROVIDERS += [(p, dense) for p in backends.providers()[1:] for dense in (("never", "always", "auto") if backends.native else ("auto",))]

# conv: in, out, kernel, stride, padding, dilation, groups, bias, relu, with the next; sparse: block in place of groups; pool: as said
SEQUENCES = {
    "nin": [
        ("sparse", 3, 32, 5, 1, 2, 1, (1, 3, 1), False, True), ("conv", 32, 20, 1, 1, 0, 1, 1, False, True, True),
        ("conv", 20, 24, 1, 1, 0, 1, 1, True, True, False), ("pool", MAX, True, 3, 2, 0),
        ("conv", 24, 48, 3, 1, 1, 1, 8, True, True, False), ("pool", AVERAGE, True, 3, 2, 1),
        ("sparse", 48, 16, 3, 2, 1, 1, (1, 1, 1), True, False), ("pool", AVERAGE_COUNTING_PADDING, False, 0, 1, 0),
    ],
    "bands": [
        ("conv", 3, 192, 5, 1, 2, 1, 1, True, True, True), ("conv", 192, 160, 1, 1, 0, 1, 1, True, True, True),
        ("conv", 160, 33, 1, 1, 0, 1, 1, False, False, False),
    ],
    "planes": [  # large maps, which a 1x1 reads as the sparse convolution before it made them
        ("sparse", 3, 192, 5, 1, 2, 1, (1, 3, 1), False, True), ("conv", 192, 40, 1, 1, 0, 1, 1, True, True, False),
        ("sparse", 40, 200, 3, 1, 1, 1, (1, 1, 1), True, False), ("conv", 200, 70, 1, 1, 0, 1, 1, False, False, False),
        ("sparse", 70, 160, 1, 1, 0, 1, (4, 1, 1), True, True), ("conv", 160, 5, 1, 1, 0, 1, 1, True, True, False),
    ],
    "pools": [  # of planes: windows one and two pixels apart, over the padding
        ("sparse", 3, 20, 3, 1, 1, 1, (1, 3, 1), False, True), ("pool", AVERAGE, True, 3, 2, 1),
        ("sparse", 20, 18, 3, 1, 1, 1, (1, 1, 1), True, True), ("pool", AVERAGE_COUNTING_PADDING, False, 3, 1, 1),
        ("conv", 18, 9, 1, 1, 0, 1, 1, True, False, False), ("pool", MAX, True, 2, 2, 0),
    ],
    "odd": [
        ("conv", 3, 18, 3, 2, 1, 1, 3, False, False, False), ("sparse", 18, 12, 3, 1, 2, 2, (4, 1, 1), True, True),
        ("pool", AVERAGE_COUNTING_PADDING, True, 2, 2, 1),
    ],
}  # fmt: skip


def build(name, dtype=torch.float32, seed=0):
    """(tensors, numbers; layers as (op on x, its truth in float64 with the sum of magnitudes, terms))"""
    generator = torch.Generator().manual_seed(seed)
    randn = lambda *shape: torch.randn(*shape, generator=generator).to(dtype)  # noqa: E731
    tensors, numbers, layers = [], [], []
    for kind, *said in SEQUENCES[name]:
        if kind == "pool":
            way, ceil, kernel, stride, padding = said
            numbers += Stage(POOL, way, ceil, False, kernel, kernel, stride, stride, padding, padding)
            layers.append((pool2d, (kernel or None, stride, padding, ceil, "max" if way == MAX else "average", way != AVERAGE), None))
            continue
        inputs, filters, kernel, stride, padding, dilation, form, has_bias, relu, *rest = said
        bias = randn(filters) if has_bias else None
        if kind == "conv":
            weight = randn(filters, inputs // form, kernel, kernel) / (inputs // form * kernel * kernel) ** 0.5
            packed = pack_grouped_conv2d(weight, stride, padding, dilation, form, images=(2, 13, 16))
            tensors.append(packed)
            arguments = (packed, bias, filters, kernel, stride, padding, dilation, form, "relu" if relu else "none")
            op, dense, groups = grouped_conv2d_packed, weight, form
        else:
            rows, positions = filters // form[0], inputs // form[1] * kernel * kernel // form[2]
            indptr, index = conv_mask(rows, positions, density=0.4, count="exact", seed=seed)
            weight = randn(len(index), *form) / (0.4 * inputs * kernel * kernel) ** 0.5
            plan = plan_sparse_conv2d(indptr, index, inputs, (kernel, kernel), form)
            tensors += [weight, indptr, index, plan]
            arguments = (weight, indptr, index, (kernel, kernel), bias, stride, padding, dilation, plan)
            op, dense, groups = sparse_conv2d, dense_weight(weight, indptr, index, inputs, (kernel, kernel)), 1
        window = (kernel, kernel, stride, stride, padding, padding, dilation, dilation, groups if kind == "conv" else 1)
        numbers += Stage(PACKED_CONV if kind == "conv" else SPARSE_CONV, relu, has_bias, *(rest or [False]), *window, filters)
        tensors += [bias] if has_bias else []
        layers.append((op, arguments, (dense, bias, stride, padding, dilation, groups, relu)))
    return tensors, numbers, layers


def one_by_one(x, layers):
    for op, arguments, truth in layers:
        x = op(x, *arguments)
        x = x.relu() if op is sparse_conv2d and truth[-1] else x
    return x


def truth_of(x, layers):
    """The result in float64, and what rounding of every term of every layer may have added to it, to first order."""
    y, error = x.double(), torch.zeros_like(x, dtype=torch.float64)
    for _, arguments, conv in layers:
        if conv is None:
            kernel, stride, padding, ceil, how, counted = arguments
            kernel = kernel or y.shape[2:]
            if how == "max":
                y, error = (F.max_pool2d(t, kernel, stride, padding, 1, ceil) for t in (y, error))
            else:
                size = F.avg_pool2d(y.abs(), kernel, stride, padding, ceil, counted)
                error = F.avg_pool2d(error, kernel, stride, padding, ceil, counted) + size * (2 + kernel[0] * kernel[1] if
                        isinstance(kernel, torch.Size) else 2 + kernel**2) * 2**-24  # fmt: skip
                y = F.avg_pool2d(y, kernel, stride, padding, ceil, counted)
            continue
        weight, bias, stride, padding, dilation, groups, relu = conv
        w, b = weight.double(), None if bias is None else bias.double()
        terms = weight[0].numel() + 2
        size = F.conv2d(y.abs(), w.abs(), None if b is None else b.abs(), stride, padding, dilation, groups)
        error = F.conv2d(error, w.abs(), None, stride, padding, dilation, groups) * 1.01 + size * terms * 2**-24
        y = F.conv2d(y, w, b, stride, padding, dilation, groups)
        y = y.relu() if relu else y
    return y, error


@pytest.mark.parametrize("provider,dense", PROVIDERS)
@pytest.mark.parametrize("name", SEQUENCES)
def test_values(name, provider, dense):
    with backends.use(PROVIDERS[-1][0] if provider == "reference" else provider, dense=dense):  # packs are for the processor that made them
        tensors, numbers, layers = build(name)
    for images, together, layout in (
        (3, 0, torch.channels_last),
        (5, 2, torch.channels_last),
        (1, 4, torch.contiguous_format),
        (0, 0, None),
    ):
        x = torch.randn(images, 3, 13, 16, generator=torch.Generator().manual_seed(images))
        x = x.to(memory_format=layout) if layout else x
        with backends.use(provider, dense=dense):
            out = sequence2d(x, tensors, numbers, together)
        truth, error = truth_of(x, layers)
        assert out.shape == truth.shape and out.dtype == torch.float32
        assert ((out.double() - truth).abs() <= error).all()
        assert layout is None or out.is_contiguous(memory_format=layout)


@pytest.mark.parametrize("name", SEQUENCES)
def test_the_bits_are_those_of_the_layers_for_any_threads_and_images(name):
    tensors, numbers, layers = build(name)
    x = torch.randn(7, 3, 32, 30).to(memory_format=torch.channels_last)
    before = torch.get_num_threads()
    try:
        with backends.use(backends.providers()[-1], dense="never" if backends.native else "auto"):
            expected = one_by_one(x, layers)
            for threads in (1, 2, 3):
                torch.set_num_threads(threads)
                assert all(torch.equal(sequence2d(x, tensors, numbers, together), expected) for together in (0, 1, 2, 3, 7, 9))
    finally:
        torch.set_num_threads(before)


def test_not_a_number_and_infinity_go_through():
    tensors, numbers, layers = build("nin")
    x = torch.randn(2, 3, 13, 16).to(memory_format=torch.channels_last)
    x[0, 1, 3, 3], x[1, 0, 9, 2] = torch.nan, torch.inf
    with backends.use(backends.providers()[-1], dense="never" if backends.native else "auto"):
        out, expected = sequence2d(x, tensors, numbers), one_by_one(x, layers)
    assert torch.equal(out.isnan(), expected.isnan()) and out.isnan().any()


@pytest.mark.parametrize("provider", ["reference", backends.providers()[-1]])
def test_other_types(provider):
    tensors, numbers, layers = build("nin", torch.bfloat16)
    x = torch.randn(2, 3, 13, 16, dtype=torch.bfloat16).to(memory_format=torch.channels_last)
    with backends.use(provider):
        out, expected = sequence2d(x, tensors, numbers), one_by_one(x, layers)
        assert out.dtype == torch.bfloat16 and torch.equal(out, expected)
        with torch.autocast("cpu", torch.bfloat16):
            assert torch.equal(sequence2d(x.float(), tensors, numbers), expected)


def test_compile_and_flops():
    from torch.utils.flop_counter import FlopCounterMode

    tensors, numbers, layers = build("nin")
    x = torch.randn(2, 3, 32, 32).to(memory_format=torch.channels_last)
    f = lambda x: sequence2d(x, tensors, numbers, 1)  # noqa: E731
    torch.testing.assert_close(torch.compile(f, backend="aot_eager", fullgraph=True)(x), f(x), rtol=0, atol=0)
    torch.library.opcheck(torch.ops.sparsekern.sequence2d.default, (x, tensors, numbers, 1), test_utils=("test_schema", "test_faketensor"))
    totals = []
    for run in (f, lambda x: one_by_one(x, layers)):
        with FlopCounterMode(display=False) as counter:
            run(x)
        totals.append(counter.get_total_flops())
    assert totals[0] == totals[1] > 0


@pytest.mark.parametrize("provider", ["reference", backends.providers()[-1]])
def test_bad_input(provider):
    tensors, numbers, _ = build("nin")
    x, n = torch.randn(2, 3, 13, 16), len(Stage._fields)
    put = lambda at, value: [*numbers[:at], value, *numbers[at + 1 :]]  # noqa: E731
    for sentence, error, arguments in (
        ("sequence2d: x must be a tensor; got list", TypeError, ([1.0], tensors, numbers)),
        ("sequence2d: x must be float32, float16 or bfloat16; got torch.float64", ValueError, (x.double(), tensors, numbers)),
        ("sequence2d: x must be [N, C, H, W]; got [3, 13, 16]", ValueError, (x[0], tensors, numbers)),
        ("sequence2d: numbers must be 14 for each of at least one stage; got 0", ValueError, (x, [], [])),
        ("sequence2d: numbers must be 14 for each of at least one stage; got 111", ValueError, (x, tensors, numbers[1:])),
        ("sequence2d: numbers must be of a kind in [0, 1, 2]; got 7", ValueError, (x, tensors, put(0, 7))),
        ("sequence2d: tensors must be 14 for these stages; got 13", ValueError, (x, tensors[1:], numbers)),
        ("sequence2d: images must be at least 1, or 0 for all together; got -1", ValueError, (x, tensors, numbers, -1)),
        ("sequence2d: numbers must be with_next before up to 2 packed 1x1 convolutions; got [1, 1, 0, 1, 5, 5, 1, 1, 2, 2, 1, 1, 1, 32]",
         ValueError, (x, tensors, put(3, 1))),
        ("sequence2d: numbers must be with_next before up to 2 packed 1x1 convolutions; got [2, 0, 1, 0, 3, 3, 2, 2, 0, 0, 1, 1, 1, 0]",
         ValueError, (x, tensors, put(2 * n + 3, 1))),
        ("sequence2d: numbers must be of out_channels 32; got 33", ValueError, (x, tensors, put(n - 1, 33))),
        ("sparse_conv2d: x must be [N, a positive multiple of BI=3, H, W]; got [2, 4, 13, 16]", ValueError,
         (torch.zeros(2, 4, 13, 16), tensors, numbers)),
        ("grouped_conv2d_packed: packed must be made by pack_grouped_conv2d; got 64 other numbers", ValueError,
         (x, [*tensors[:4], torch.zeros(64, dtype=torch.int32), *tensors[5:]], numbers)),
        ("grouped_conv2d_packed: stride must be at least 1; got (0, 1)", ValueError, (x, tensors, put(n + 6, 0))),
        ("pool2d: padding must be 0 to half of the window (3, 3); got (2, 0)", ValueError, (x, tensors, put(3 * n + 8, 2))),
    ):  # fmt: skip
        with backends.use(provider), pytest.raises(error) as raised:
            sequence2d(*arguments)
        assert str(raised.value) == sentence
