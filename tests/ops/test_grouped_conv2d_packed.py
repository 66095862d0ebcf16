"""A packed weight computes what the unpacked one does, for every sample, dtype, policy and instruction set."""

from __future__ import annotations

from functools import cache

import pytest
import torch

from sparsekern.ops import OPS, backends, grouped_conv2d_packed, pack_grouped_conv2d
from sparsekern.ops.grouped_conv2d_packed import explain_packed, unpack_grouped_conv2d

pytestmark = pytest.mark.skipif(not backends.has_kernels("cpu"), reason="built without kernels")
OP = OPS["grouped_conv2d"]
SAMPLES = {s.name: s.inputs for s in OP.samples(torch.device("cpu"), torch.float32)}
NAMES = [name for name in SAMPLES if name != "same_padding"]  # words are for the layer
PROVIDERS = [(p, dense) for p in backends.providers()[1:] for dense in (("never", "always", "auto") if backends.native else ("auto",))]


def packed_call(inputs, images=None):
    """(the arguments of the packed call, the weight's pack)"""
    rest = {k: v for k, v in inputs.items() if k not in ("x", "weight", "bias")}
    window = {k: v for k, v in rest.items() if k in ("stride", "padding", "dilation", "groups")}
    shape = inputs["x"].shape
    images = images or (shape[0] if len(shape) == 4 else 1, *shape[-2:])
    packed = pack_grouped_conv2d(inputs["weight"], **window, images=images)
    kernel = tuple(inputs["weight"].shape[2:])
    return dict(x=inputs["x"], packed=packed, bias=inputs["bias"], out_channels=inputs["weight"].shape[0], kernel_size=kernel, **rest)


@pytest.mark.parametrize("provider,dense", PROVIDERS)
@pytest.mark.parametrize("name", NAMES)
def test_pack_holds_the_weight(name, provider, dense):
    with backends.use(provider, dense=dense):
        packed = packed_call(SAMPLES[name])["packed"]
    assert torch.equal(unpack_grouped_conv2d(packed), SAMPLES[name]["weight"])
    if dense != "auto" and SAMPLES[name]["x"].numel():
        assert explain_packed(packed).startswith("blocks" if dense == "never" else "the natural weight")


@cache
def truth_and_bound(name, dtype):
    """The sample in this dtype; the float64 result, and the largest error that correct arithmetic can make."""
    inputs = next(s.inputs for s in OP.samples(torch.device("cpu"), dtype) if s.name == name)
    double = {k: v.double() if isinstance(v, torch.Tensor) else v for k, v in inputs.items()}
    with backends.use("reference"):
        truth = OP.function(**double)
        size = OP.function(**{k: v.abs() if isinstance(v, torch.Tensor) else v for k, v in double.items() if k != "activation"})
    terms = inputs["weight"][0].numel() + 2
    store = {torch.bfloat16: 2.0**-8, torch.float16: 2.0**-11}.get(dtype, 0.0) * (2 if "shortcut" in inputs else 1)
    return inputs, truth, ((terms + 2) * 2.0**-24 + store) * size * (1 + 1e-3) + (2.0**-24 if dtype == torch.float16 else 0)


# half types are converted outside of the kernels, the same for all: one provider tells
CALLS = [(*p, torch.float32) for p in [("reference", "auto"), *PROVIDERS]]
CALLS += [(*PROVIDERS[-1], dtype) for dtype in (torch.bfloat16, torch.float16)] if PROVIDERS else []


@pytest.mark.parametrize("provider,dense,dtype", CALLS, ids=str)
@pytest.mark.parametrize("name", NAMES)
def test_values(name, provider, dense, dtype):
    inputs, truth, bound = truth_and_bound(name, dtype)
    for layout in (torch.contiguous_format, torch.channels_last):
        here = {**inputs, "x": inputs["x"].to(memory_format=layout) if inputs["x"].dim() == 4 and name != "sliced" else inputs["x"]}
        # a pack made for other images serves these too
        for images in (None, (2, 40, 30)):
            with backends.use(PROVIDERS[-1][0] if provider == "reference" else provider, dense=dense):
                call = packed_call(here, images)
            with backends.use(provider, dense=dense):
                out = grouped_conv2d_packed(**call)
            assert out.dtype == dtype and out.shape == truth.shape and out.stride() == OP.function(**here).stride()
            assert ((out.double() - truth).abs() <= bound).all()


def test_a_pack_of_another_processor_is_unpacked():
    x, weight = torch.randn(2, 16, 9, 9).to(memory_format=torch.channels_last), torch.randn(48, 4, 3, 3)
    isas = backends.providers()[1:]
    for there in isas:
        with backends.use(there, dense="never" if backends.native else "auto"):
            packed = pack_grouped_conv2d(weight, padding=1, groups=4)
        for here in isas:
            with backends.use(here, dense="never" if backends.native else "auto"):
                got = grouped_conv2d_packed(x, packed, None, 48, 3, padding=1, groups=4)
                want = OP.function(x, weight, padding=1, groups=4)
            torch.testing.assert_close(got, want, rtol=1e-4, atol=1e-4)


def test_compile_export_and_flops():
    from torch.utils.flop_counter import FlopCounterMode

    call = packed_call(SAMPLES["last_both"])
    x = call.pop("x")
    f = lambda x: grouped_conv2d_packed(x, **call)  # noqa: E731
    assert torch.equal(torch.compile(f, backend="aot_eager", fullgraph=True)(x), f(x))
    args = (x, call["packed"], call["bias"], call["shortcut"], 48, 1, 1, 1, 1, 0, 0, 1, 1, 1, True)
    torch.library.opcheck(torch.ops.sparsekern.grouped_conv2d_packed.default, args)
    with FlopCounterMode(display=False) as counter:
        f(x)
    assert counter.get_total_flops() == 2 * 15 * 15 * 48 * 24


def test_threads_do_not_change_a_bit():
    before = torch.get_num_threads()
    try:
        for name in NAMES:
            results = []
            for threads in (1, 2, 3):
                torch.set_num_threads(threads)
                with backends.use(PROVIDERS[-1][0], dense="never" if backends.native else "auto"):
                    results.append(grouped_conv2d_packed(**packed_call(SAMPLES[name])))
            assert all(torch.equal(results[0], other) for other in results), name
    finally:
        torch.set_num_threads(before)


def test_bad_input():
    call = packed_call(SAMPLES["last_stride"])

    def says(sentence, error=ValueError, **changes):
        for scope in ("reference", backends.providers()[-1]):
            with backends.use(scope), pytest.raises(error) as raised:
                grouped_conv2d_packed(**{**call, **changes})
            assert str(raised.value) == f"grouped_conv2d_packed: {sentence}"

    x = call["x"]
    says("x must be [..., 12, H, W]; got [2, 11, 9, 8]", x=x[:, :11])
    says("x must be float32, float16 or bfloat16; got torch.float64", x=x.double())
    says("x must be a tensor; got NoneType", TypeError, x=None)
    says("packed must be made by pack_grouped_conv2d; got 64 other numbers", packed=torch.zeros(64, dtype=torch.int32))
    says("packed must be of [K, KH, KW, groups] = [18, 3, 3, 3]; got [18, 3, 3, 6]", groups=3)
    says("packed must be of [K, KH, KW, groups] = [17, 3, 3, 6]; got [18, 3, 3, 6]", out_channels=17, bias=None)
    says("bias must be [18]; got [17]", bias=call["bias"][:17])
    says("shortcut must be [2, 18, 5, 4] like the result; got [2, 18, 4, 4]", shortcut=torch.ones(2, 18, 4, 4))
    says("padding must be at least 0; got (-1, -1)", padding=-1)
    says("activation must be one of ('none', 'relu'); got 'gelu'", activation="gelu")
    with pytest.raises(ValueError, match=r"^grouped_conv2d_packed: weight must be float32, float16 or bfloat16 on a CPU with"):
        pack_grouped_conv2d(torch.ones(2, 2, 1, 1, dtype=torch.float64))
    with pytest.raises(ValueError, match=r"^grouped_conv2d_packed: groups must be a divisor of the 4 filters; got 3$"):
        pack_grouped_conv2d(torch.ones(4, 2, 1, 1), groups=3)


def test_a_pack_that_was_cut_or_changed_is_refused():
    call = packed_call(SAMPLES["last_stride"])
    packed = call["packed"]
    short = packed[:-16].clone()
    short[7] = short.numel()  # its own length, but not that of its sizes
    changed = [short] + [packed.clone() for _ in range(4)]
    for other, (word, value) in zip(changed[1:], ((2, 1 << 20), (4, 0), (10, 3), (12, 5))):
        other[word] = value
    for other in changed:
        with pytest.raises((ValueError, RuntimeError), match="grouped_conv2d_packed: packed"):
            grouped_conv2d_packed(**{**call, "packed": other})


def test_autocast_gives_what_the_unpacked_op_gives():
    call = packed_call(SAMPLES["last_both"])
    with torch.autocast("cpu", torch.bfloat16):
        out, unpacked = grouped_conv2d_packed(**call), OP.function(**SAMPLES["last_both"])
    assert out.dtype == unpacked.dtype == torch.bfloat16
    torch.testing.assert_close(out.float(), unpacked.float(), rtol=2**-5, atol=2**-4)


@pytest.mark.skipif(backends.serves("grouped_conv2d") != "cpu/amx", reason="no matrix tiles")
@pytest.mark.parametrize("groups,stride", [(1, 1), (8, 1), (16, 2), (3, 1)])
def test_bfloat16_packs_are_tiles(groups, stride):
    channels = 96 if groups != 3 else 15
    x = torch.randn(1, channels, 20, 21).bfloat16().to(memory_format=torch.channels_last)
    weight, bias = torch.randn(2 * channels, channels // groups, 3, 3).bfloat16(), torch.randn(2 * channels).bfloat16()
    packed = pack_grouped_conv2d(weight, stride, 1, 1, groups, images=(1, 20, 21))
    if groups == 1:  # torch serves it
        assert explain_packed(packed) != "matrix tiles"
        return
    assert explain_packed(packed) == "matrix tiles"
    assert torch.equal(unpack_grouped_conv2d(packed), weight.float())
    want = torch.nn.functional.conv2d(x.double(), weight.double(), bias.double(), stride, 1, 1, groups)
    size = torch.nn.functional.conv2d(x.double().abs(), weight.double().abs(), bias.double().abs(), stride, 1, 1, groups)
    for image in (x, x.contiguous(), x.float()):  # the last two put the weight back
        got = grouped_conv2d_packed(image, packed, bias.to(image.dtype), 2 * channels, 3, stride, 1, 1, groups)
        assert ((got.double() - want).abs() <= 2**-8 * want.abs() + 2**-16 * size).all()
    with backends.use("reference"):
        got = grouped_conv2d_packed(x, packed, bias, 2 * channels, 3, stride, 1, 1, groups)
    assert ((got.double() - want).abs() <= 2**-8 * want.abs() + 2**-16 * size).all()
