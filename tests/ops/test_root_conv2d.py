"""root_conv2d computes what its convolutions compute one after the other, packed or not, whoever serves; it can be differentiated."""

from __future__ import annotations

import pytest
import torch

from sparsekern.ops import backends, grouped_conv2d, pack_grouped_conv2d, root_conv2d, root_conv2d_packed

from ops.test_contract import STORE, TINY, error_of_sum

PROVIDERS = [("reference", "auto")]
PROVIDERS += [(p, dense) for p in backends.providers()[1:] for dense in (("never", "always", "auto") if backends.native else ("auto",))]


def draw(x, first, kernel, *others, groups=1, shortcut=None, bias=True, **options):
    """Keyword arguments of root_conv2d."""
    generator = torch.Generator().manual_seed(sum(x) + first)
    randn = lambda *size: torch.randn(*size, generator=generator, dtype=torch.float64)  # noqa: E731
    inputs = dict(x=randn(*x).to(memory_format=torch.channels_last), groups=groups, **options)
    channels, inputs["weight1"] = first, randn(first, x[1] // groups, kernel, kernel)
    inputs["bias1"] = randn(first) if bias else None
    for i, filters in enumerate(others, 2):
        inputs[f"weight{i}"], inputs[f"bias{i}"], channels = randn(filters, channels, 1, 1), randn(filters) if bias else None, filters
    if shortcut:
        inputs["shortcut"] = randn(*shortcut).to(memory_format=torch.channels_last)
    return inputs


SAMPLES = {
    "root": draw((2, 24, 9, 11), 48, 3, 20, groups=4, padding=1),
    "nin": draw((3, 12, 33, 40), 48, 5, 48, 16, groups=4, padding=2),
    "bottleneck": draw((1, 16, 61, 32), 64, 3, 40, groups=8, padding=1, shortcut=(1, 40, 61, 32)),
    "plain_end": draw((2, 8, 9, 9), 16, 3, 24, groups=2, bias=False, last_activation="none", shortcut=(2, 24, 7, 7)),
    "strided": draw((5, 8, 15, 14), 24, 3, 8, groups=2, stride=2, padding=1, activation="none"),
    "empty": draw((0, 8, 6, 6), 16, 3, 8, groups=2),
}
SAMPLES["odd"] = draw((1, 6, 5, 4), 10, 3, 270, groups=2, bias=False, padding=(1, 2), dilation=(1, 2), last_activation="none")
SAMPLES["wide"] = draw((1, 20, 3, 5), 70, 1, 9, groups=1, activation="none", last_activation="relu")
SAMPLES["wide"]["x"] = SAMPLES["wide"]["x"].contiguous()
SAMPLES["nchw"] = {**SAMPLES["root"], "x": SAMPLES["root"]["x"].contiguous()}
SAMPLES["sliced"] = dict(SAMPLES["root"])


def at(name, dtype):
    inputs = {k: v.to(dtype) if isinstance(v, torch.Tensor) else v for k, v in SAMPLES[name].items()}
    return {**inputs, "x": inputs["x"][..., 2:]} if name == "sliced" else inputs


def one_by_one(
    x, weight1, bias1, weight2, bias2, weight3=None, bias3=None, shortcut=None, activation="relu", last_activation=None, **window
):
    stages = [(weight1, bias1, window), (weight2, bias2, {})] + ([(weight3, bias3, {})] if weight3 is not None else [])
    for i, (weight, bias, rest) in enumerate(stages):
        x = torch.nn.functional.conv2d(x, weight, bias, **rest)
        end = i == len(stages) - 1
        x = x + shortcut if end and shortcut is not None else x
        x = x.relu() if ((last_activation or activation) if end else activation) == "relu" else x
    return x


def packed_call(inputs):
    inputs = dict(inputs)
    weights = [inputs.pop(f"weight{i}", None) for i in (1, 2, 3)]
    window = {k: inputs[k] for k in ("stride", "padding", "dilation", "groups") if k in inputs}
    packs = [pack_grouped_conv2d(weights[0], **window)] + [None if w is None else pack_grouped_conv2d(w) for w in weights[1:]]
    filters = [w for w in weights if w is not None][-1].shape[0]
    biases = {f"bias{i}": inputs.pop(f"bias{i}", None) for i in (1, 2, 3)}
    named = {f"packed{i}": p for i, p in enumerate(packs, 1)}
    return dict(**inputs, **named, **biases, out_channels=filters, kernel_size=tuple(weights[0].shape[2:]))


def hold_to_truth(name, dtype, make_calls=lambda inputs: [lambda: root_conv2d(**inputs)], device="cpu", cut=False, **arithmetic):
    """What each call of one sample returns against float64; the same bits twice.

    A convolution is off by the error of its sums and by a rounding, of the sums of absolute values; the next one takes its error on.
    ``cut`` and ``arithmetic`` as in :func:`ops.test_contract.bounds`.
    """
    inputs = {k: v.to(device) if isinstance(v, torch.Tensor) else v for k, v in at(name, dtype).items()}
    double = {k: v.double() if isinstance(v, torch.Tensor) else v for k, v in inputs.items()}
    truth = one_by_one(**double)
    size = one_by_one(**{k: v.abs() if isinstance(v, torch.Tensor) else v for k, v in double.items()})
    off, rounded = 1.0, 1 + STORE.get(dtype, 0.0) * (1 + cut)
    for weight in [w for w in (inputs.get(f"weight{i}") for i in (1, 2, 3)) if w is not None]:
        off *= (1 + error_of_sum(weight[0].numel() + 2, dtype, **arithmetic)) * rounded
    for call in make_calls(inputs):
        out, again = call(), call()
        assert out.dtype == dtype and out.shape == truth.shape
        error = (out.double() - truth).abs()
        assert (error <= (off * rounded - 1) * size + 100 * TINY.get(dtype, 0.0)).all(), f"off by {error.max()}"
        assert torch.equal(out, again), "differs between two runs"
        plain = name in ("nchw", "sliced", "wide")
        assert name == "empty" or out.is_contiguous(memory_format=torch.contiguous_format if plain else torch.channels_last)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
@pytest.mark.parametrize("provider,dense", PROVIDERS)
@pytest.mark.parametrize("name", SAMPLES)
def test_values(name, provider, dense, dtype):
    def calls(inputs):
        served = [lambda: root_conv2d(**inputs)]
        if dtype != torch.float64 and provider != "reference":
            packed = packed_call(inputs)
            served.append(lambda: root_conv2d_packed(**packed))
        return served

    with backends.use(provider, dense=dense):
        hold_to_truth(name, dtype, calls)


def test_gradients_transforms_compile_and_flops():
    from torch.utils.flop_counter import FlopCounterMode

    inputs = at("plain_end", torch.float64)
    leaves = {k: v.requires_grad_() for k, v in inputs.items() if isinstance(v, torch.Tensor)}
    rest = {k: v for k, v in inputs.items() if k not in leaves}
    out = root_conv2d(**inputs)
    cotangent = torch.randn_like(out)
    ours = torch.autograd.grad(out, list(leaves.values()), cotangent)
    theirs = torch.autograd.grad(one_by_one(**{"bias1": None, "bias2": None, **leaves, **rest}), list(leaves.values()), cotangent)
    for a, b in zip(ours, theirs):
        torch.testing.assert_close(a, b, rtol=1e-10, atol=1e-10)
    x = torch.randn(3, 2, 24, 9, 11)
    inputs = at("root", torch.float32)
    call = lambda x: root_conv2d(**{**inputs, "x": x})  # noqa: E731
    torch.testing.assert_close(torch.func.vmap(call)(x), torch.stack([call(image) for image in x]), rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(torch.compile(call, backend="aot_eager", fullgraph=True)(inputs["x"]), call(inputs["x"]), rtol=0, atol=0)
    with FlopCounterMode(display=False) as counter:
        call(inputs["x"])
    assert counter.get_total_flops() == 2 * 2 * 9 * 11 * (48 * 6 * 9 + 20 * 48)
    with FlopCounterMode(display=False) as packed_counter:
        root_conv2d_packed(**packed_call(inputs))
    assert packed_counter.get_total_flops() == counter.get_total_flops()
    args = (inputs["x"], *(inputs[k] for k in ("weight1", "bias1", "weight2", "bias2")), None, None, None, 1, 1, 1, 1, 1, 1, 4, True, True)
    torch.library.opcheck(torch.ops.sparsekern.root_conv2d.default, args, test_utils=("test_schema", "test_faketensor"))


@pytest.mark.skipif(not backends.has_kernels("cpu"), reason="built without kernels")
def test_threads_do_not_change_a_bit():
    before = torch.get_num_threads()
    try:
        for name in SAMPLES:
            inputs, results = at(name, torch.float32), []
            for threads in (1, 2, 3):
                torch.set_num_threads(threads)
                with backends.use(PROVIDERS[-1][0], dense="never" if backends.native else "auto"):
                    results += [root_conv2d(**inputs), root_conv2d_packed(**packed_call(inputs))]
            assert all(torch.equal(results[0], other) for other in results[2::2]), name
            assert all(torch.equal(results[1], other) for other in results[3::2]), name
    finally:
        torch.set_num_threads(before)


@pytest.mark.parametrize("provider", ["reference", backends.providers()[-1]])
def test_bad_input(provider):
    good = at("root", torch.float32)
    for sentence, error, changes in (
        ("x must be a tensor; got NoneType", TypeError, {"x": None}),
        ("x must be [N, C, H, W]; got [24, 9, 11]", ValueError, {"x": good["x"][0]}),
        ("x must be [N, 24, H, W]; got [2, 23, 9, 11]", ValueError, {"x": good["x"][:, :23]}),
        ("x must be at least 3 x 3 with its padding; got [2, 24, 9, 2]", ValueError, {"x": good["x"][..., :2], "padding": 0}),
        ("weight1 must be a tensor; got NoneType", TypeError, {"weight1": None}),
        ("weight2 must be torch.float32 like x; got torch.float64", ValueError, {"weight2": good["weight2"].double()}),
        ("weight2 must be [K, 48, 1, 1]; got [20, 47, 1, 1]", ValueError, {"weight2": good["weight2"][:, :47]}),
        ("weight2 must be [K, C, 1, 1], each at least 1; got [20, 48, 1]", ValueError, {"weight2": good["weight2"][..., 0]}),
        ("weight1 must be of a multiple of groups=4 filters; got [47, 6, 3, 3]", ValueError, {"weight1": good["weight1"][:47]}),
        ("bias2 must be [20]; got [19]", ValueError, {"bias2": good["bias2"][:19]}),
        ("shortcut must be [2, 20, 9, 11] like the result; got [2, 20, 9, 1]", ValueError, {"shortcut": torch.ones(2, 20, 9, 1)}),
        ("stride must be at least 1; got (0, 0)", ValueError, {"stride": 0}),
        ("padding must be at least 0; got (-1, -1)", ValueError, {"padding": -1}),
        ("groups must be an int of at least 1; got 0", ValueError, {"groups": 0}),
        ("activation must be one of ('none', 'relu'); got 'gelu'", ValueError, {"activation": "gelu"}),
    ):
        with backends.use(provider), pytest.raises(error) as raised:
            root_conv2d(**{**good, **changes})
        assert str(raised.value) == f"root_conv2d: {sentence}"
    assert torch.equal(root_conv2d(**good), root_conv2d(**good))


@pytest.mark.skipif(not backends.has_kernels("cpu"), reason="built without kernels")
def test_bad_packs():
    good = packed_call(at("root", torch.float32))
    other = pack_grouped_conv2d(torch.ones(20, 47, 1, 1))
    for sentence, changes in (
        ("packed2 must be made by pack_grouped_conv2d; got 64 other numbers", {"packed2": torch.zeros(64, dtype=torch.int32)}),
        ("packed2 must be of [C, KH, KW, groups] = [48, 1, 1, 1]; got [47, 1, 1, 1]", {"packed2": other}),
        ("packed2 must be of 21 filters; got 20", {"out_channels": 21}),
        ("packed1 must be of [C, KH, KW, groups] = [24, 5, 5, 4]; got [24, 3, 3, 4]", {"kernel_size": 5}),
        ("bias1 must be [48]; got [47]", {"bias1": good["bias1"][:47]}),
    ):
        with pytest.raises(ValueError) as raised:
            root_conv2d_packed(**{**good, **changes})
        assert str(raised.value) == f"root_conv2d: {sentence}"


def test_it_is_the_composition_of_our_convolutions():
    inputs = at("root", torch.float32)
    y = grouped_conv2d(inputs["x"], inputs["weight1"], inputs["bias1"], padding=1, groups=4, activation="relu")
    torch.testing.assert_close(root_conv2d(**inputs), grouped_conv2d(y, inputs["weight2"], inputs["bias2"], activation="relu"))
