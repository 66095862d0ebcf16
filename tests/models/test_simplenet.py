"""SimpleNet: the layers of the published files, the paper's counts, and its three kinds of input."""

import math

import pytest
import torch
from torch import nn

from sparsekern.models import simplenet
from sparsekern.models.registry import create_model, list_models
from sparsekern.profile.count import count

# weights, weights + biases, + batch-norm's scale and shift; multiply-adds at 32x32x3, 28x28x1 and 224x224x3.
# simplenet_5m: SimpleNet, Tables 1, 2 and appendix (5.48M, 652M MACC); the others follow from the published layers by the same rule.
COUNTS = {
    "simplenet_5m": ((5_484_736, 5_489_290, 5_493_258), (652_151_296, 509_275_648, 31_955_290_624)),
    "simplenet_310k": ((309_568, 310_506, 311_594), (55_788_160, 42_305_152, 2_733_589_120)),
    "simplenet_310k_logs": ((300_296, 301_032, 302_028), (56_207_336, 43_003_112, 2_754_111_464)),
    "simplenet_460k": ((453_832, 454_710, 455_862), (75_241_960, 57_994_216, 3_686_808_040)),
}
INPUTS = ((3, 32, 32), (1, 28, 28), (3, 224, 224))


def on_meta(name, **options):
    with torch.device("meta"):
        return create_model(name, **options)


def by_hand(name, shape):
    """(weights, biases, multiply-adds) from the table of widths alone."""
    sizes = simplenet.SIZES[name]
    weights, biases, macs = 0, 0, 0
    channels, height, width = shape
    for layer, filters, kernel in zip(simplenet.NAMES, sizes.widths, (3,) * 10 + sizes.last_kernels):
        layer_weights = filters * channels * kernel**2
        weights, biases, macs = weights + layer_weights, biases + filters, macs + layer_weights * height * width
        if layer in simplenet.POOLED:
            height, width = math.ceil(height / 2), math.ceil(width / 2)
        channels = filters
    return weights + 10 * channels, biases + 10, macs + 10 * channels


def test_the_four_names():
    assert list_models("simplenet_*") == sorted(COUNTS)


@pytest.mark.parametrize("name", COUNTS)
def test_parameters_are_the_papers_to_the_last_unit(name):
    model = on_meta(name)
    sizes = {key: parameter.numel() for key, parameter in model.named_parameters()}
    weights = sum(size for key, size in sizes.items() if key.endswith("weight") and not key.startswith("bn"))
    biases = sum(size for key, size in sizes.items() if key.endswith("bias") and not key.startswith("bn"))
    assert (weights, weights + biases, sum(sizes.values())) == COUNTS[name][0]
    assert by_hand(name, (3, 32, 32))[:2] == (weights, biases)


@pytest.mark.parametrize("name", COUNTS)
@pytest.mark.parametrize("shape", INPUTS)
def test_multiply_adds_are_the_papers_to_the_last_unit(name, shape):
    counted = count(on_meta(name, input_shape=shape), shape, convention="deep_roots")
    assert counted.macs == by_hand(name, shape)[2] == COUNTS[name][1][INPUTS.index(shape)]


def test_feature_maps_halve_with_caffes_ceil():
    for shape, maps in (
        ((1, 28, 28), (28, 14, 7, 4, 2, 1)),
        ((3, 32, 32), (32, 16, 8, 4, 2, 1)),
        ((3, 224, 224), (224, 112, 56, 28, 14, 1)),
    ):
        seen = [shape[1]]
        model = on_meta("simplenet_310k", input_shape=shape).eval()
        for module in model.modules():
            if isinstance(module, nn.MaxPool2d):
                module.register_forward_hook(lambda module, args, out, seen=seen: seen.append(out.shape[-1]))
        assert model(torch.empty(1, *shape, device="meta")).shape == (1, 10)
        assert tuple(seen) == maps


def test_layers_are_named_and_ordered_as_published():
    names = [name for name, _ in create_model("simplenet_310k", dropout=0.2, conv=nn.Conv2d).named_children()]
    assert names[:4] == ["conv1", "bn1", "relu1", "drop1"]
    assert names[names.index("conv4") :][:5] == ["conv4", "pool4", "bn4", "relu4", "drop4"]  # pooled before batch-norm
    assert names[-9:] == ["cccp5", "relu_cccp5", "poolcp5", "drop_cccp5", "cccp6", "relu_cccp6", "poolcp6", "flatten", "ip1"]


def test_comparisons_are_the_papers_0_838_million():
    """COMP of the appendix: one per ReLU element, four per output of a 2x2 max-pool."""
    model, comparisons = on_meta("simplenet_5m", conv=nn.Conv2d).eval(), []
    for module in model.modules():
        if isinstance(module, (nn.ReLU, nn.MaxPool2d)):
            each = 1 if isinstance(module, nn.ReLU) else 4
            module.register_forward_hook(lambda module, args, out, each=each: comparisons.append(each * out.numel()))
    model(torch.empty(1, 3, 32, 32, device="meta"))
    assert sum(comparisons) == 837_632


@pytest.mark.parametrize("name", COUNTS)
def test_batch_norm_and_dropout_stand_where_the_paper_has_them(name):
    plain, dropping = on_meta(name), on_meta(name, dropout=0.2)
    norms = [m for m in plain.modules() if isinstance(m, nn.BatchNorm2d)]
    assert len(norms) == 10 and all(m.momentum == 0.05 for m in norms)
    assert sum(isinstance(m, nn.Dropout) for m in plain.modules()) == 0
    drops = [m for m in dropping.modules() if isinstance(m, nn.Dropout)]
    assert len(drops) == 12 and all(m.p == 0.2 for m in drops)
    assert not any(isinstance(m, nn.BatchNorm2d) for m in on_meta(name, batch_norm=False).modules())
    assert plain.state_dict().keys() == dropping.state_dict().keys()


def test_without_batch_norm_it_is_the_folded_network():
    """Folding by hand: exact where batch-norm's scale is positive, as it is here."""
    model = create_model("simplenet_310k", input_shape=(3, 20, 20), conv=nn.Conv2d).double().eval()
    folded = create_model("simplenet_310k", input_shape=(3, 20, 20), batch_norm=False).double().eval()
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.running_mean.normal_(std=0.1), module.running_var.uniform_(0.5, 2)
            nn.init.uniform_(module.weight, 0.5, 2), nn.init.normal_(module.bias, std=0.1)
    state = model.state_dict()
    for name in simplenet.NAMES[: simplenet.NORMED]:
        norm = model.get_submodule("bn" + name.removeprefix("conv"))
        scale = norm.weight / (norm.running_var + norm.eps).sqrt()
        state[f"{name}.weight"] = state[f"{name}.weight"] * scale[:, None, None, None]
        state[f"{name}.bias"] = (state[f"{name}.bias"] - norm.running_mean) * scale + norm.bias
    folded.load_state_dict({key: value for key, value in state.items() if not key.startswith("bn")})
    x = torch.randn(2, 3, 20, 20, dtype=torch.float64)
    # thirteen layers of float64 rounding, far above which a misplaced pooling or a lost shift would stand
    torch.testing.assert_close(folded(x), model(x), rtol=1e-10, atol=1e-12)


def test_initial_values_are_the_published_fillers():
    model = create_model("simplenet_310k", generator=torch.Generator().manual_seed(3))
    again = create_model("simplenet_310k", generator=torch.Generator().manual_seed(3))
    assert all(torch.equal(a, b) for a, b in zip(model.parameters(), again.parameters(), strict=True))
    for name, module in model.named_children():
        if isinstance(module, (nn.Conv2d, nn.Linear)):
            fan_in, samples = module.weight[0].numel(), module.weight.numel()
            variance = 1e-4 if name in ("conv2", "conv2_1", "conv2_2") else 1 / fan_in
            # five deviations of a sample variance; a uniform's is below a normal's 2 s^4 / (samples - 1)
            assert module.weight.var().item() == pytest.approx(variance, rel=5 * math.sqrt(2 / (samples - 1)))
            assert module.bias.count_nonzero() == 0


def test_bad_options_are_answered_in_words():
    with pytest.raises(ValueError, match=r"SimpleNet: dropout must be in \[0, 1\); got 1.5"):
        create_model("simplenet_5m", dropout=1.5)
    with pytest.raises(ValueError, match=r"SimpleNet: input_shape must be positive \(C, H, W\); got \(32, 32\)"):
        create_model("simplenet_5m", input_shape=(32, 32))
    with pytest.raises(ValueError, match=r"create_model: options of simplenet_5m must be among .*; got depth"):
        create_model("simplenet_5m", depth=3)
