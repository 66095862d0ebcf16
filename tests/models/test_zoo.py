"""What every registered model gets tested for, by being registered: it trains, saves, compiles, and changes its layout and dtype.

Models are built for their card's ``reduced_shape``; those that take ``blocks=`` with the few blocks of ``SMALL``, and once, marked
slow, at their full depth. The paper's full size is run on the meta device for each.

Bounds: a sum of n products in float32 is off by at most n*u of its terms (Higham, Accuracy and Stability of Numerical Algorithms,
section 3.1), u = 2^-24; over a network these add up, to first order, to at most the sum of all fan-ins. A lost bias, a wrong
layout or a wrong mask is off by orders of magnitude more.
"""

from __future__ import annotations

import copy
import inspect
import re

import pytest
import torch
from torch import Tensor, nn

from sparsekern.models import create_model, form_stochastic, list_models
from sparsekern.models.registry import model_card

SMALL = {"blocks": (1, 2, 1, 1)}  # of a residual network: every kind of block is there

#: One model per family is compiled by inductor, too, which takes its C++ compiler 5 to 100 s each: this is the one list of them.
INDUCTOR = [
    ("nin_root_8", {}),
    pytest.param("resnet50_root_8", {}, marks=pytest.mark.slow),
    pytest.param("alexnet_groups_2", {}, marks=pytest.mark.slow),
    pytest.param("googlenet_root_8", {}, marks=pytest.mark.slow),  # 59 convolutions and 14 kinds of concatenation: the 100 s
    pytest.param("sis_svhn_3", {}, marks=pytest.mark.slow),
    pytest.param("simplenet_310k", {}, marks=pytest.mark.slow),
    ("mnist_conv_2cl", {"fan_out": (49, 5)}),
]

#: What the papers' systems are called; a model may be added, none may go.
NAMES = [
    *("nin", *(f"nin_root_{g}" for g in (2, 4, 8, 16, 32)), *(f"nin_{kind}_{g}" for kind in ("tree", "col") for g in (2, 4, 8, 16))),
    *(name for depth in (50, 200) for name in (f"resnet{depth}", *(f"resnet{depth}_root_{g}" for g in (2, 4, 8, 16, 32, 64)))),
    *("googlenet", *(f"googlenet_root_{g}" for g in (2, 4, 8, 16)), "alexnet", "alexnet_groups_2", "alexnet_groups_4"),
    *("sis_nin", *(f"sis_{data}_{row}" for data in ("cifar10", "svhn") for row in (1, 2, 3))),
    *("simplenet_5m", "simplenet_310k", "simplenet_310k_logs", "simplenet_460k"),
    *("cifar10_conv_2cl", "cifar10_conv_3cl", "cifar100_conv_2cl", "cifar100_conv_3cl", "mnist_conv_2cl", "mnist_cl", "morse_cl"),
]

#: They differ from root_8, tree_8, col_8 and the original in group numbers, or from another depth or width in layers of the same kinds:
#: built and counted in every run, trained, saved, compiled and turned in the full one.
ALIKE = re.compile(
    r"\w+_(root|tree|col)_(2|4|16|32|64)|resnet50|resnet200\w*|alexnet(_groups_4)?|googlenet|simplenet_(5m|310k_logs|460k)|cifar100\w*"
)

every_model = pytest.mark.parametrize("name", list_models())
every_kind = pytest.mark.parametrize("name", [pytest.param(n, marks=pytest.mark.slow) if ALIKE.fullmatch(n) else n for n in list_models()])


def takes(name: str) -> set[str]:
    """The options of a model's builder."""
    return set(inspect.signature(model_card(name).build).parameters)


def build(name: str, *, full: bool = False, **options) -> nn.Module:
    """The model for its reduced input, and shallow unless ``full``."""
    if "input_shape" in takes(name):
        options.setdefault("input_shape", model_card(name).reduced_shape)
    if not full:
        options |= {key: value for key, value in SMALL.items() if key in takes(name)}
    return create_model(name, **options)


def images(name: str, number: int = 2) -> Tensor:
    return torch.randn(number, *model_card(name).reduced_shape)


def scores(out: Tensor | tuple[Tensor, ...]) -> tuple[Tensor, ...]:
    """The outputs of a model: of all its classifiers, if it has more than one."""
    return tuple(out) if isinstance(out, tuple) else (out,)


def loss_of(out: Tensor | tuple[Tensor, ...]) -> Tensor:
    """A random direction of the scores, the same for the same shapes."""
    draw = torch.Generator().manual_seed(0)
    return sum((score * torch.randn(score.shape, generator=draw, dtype=torch.float64).to(score.dtype)).sum() for score in scores(out))


def without_dropout(model: nn.Module) -> nn.Module:
    """The model in training mode, but the same at every call."""
    for module in model.modules():
        if isinstance(module, nn.Dropout):
            module.p = 0.0
    return model


def num_sums(model: nn.Module) -> int:
    """The sum of all fan-ins."""
    weights = (m.weight_dense() if hasattr(m, "weight_dense") else getattr(m, "weight", None) for m in model.modules())
    return sum(weight[0].numel() for weight in weights if isinstance(weight, Tensor) and weight.dim() > 1)


def assert_near(got: Tensor, truth: Tensor, sums: int, unit_roundoff: float) -> None:
    error, size = (got.double() - truth.double()).norm().item(), truth.double().norm().item()
    assert got.shape == truth.shape
    assert error <= sums * unit_roundoff * size, f"{error:.3g} off, of {size:.3g}"


def shift_is_normalised_away(model: nn.Module, parameter: str) -> bool:
    """Whether the true gradient is zero: of a convolution's bias where batch-norm may follow and subtract it again."""
    owner, _, kind = parameter.rpartition(".")
    has_norm = any(isinstance(module, nn.BatchNorm2d) for module in model.modules())
    return kind == "bias" and has_norm and isinstance(model.get_submodule(owner), nn.Conv2d)


def train_one_step(name: str, model: nn.Module) -> None:
    """Forward, backward reaching every parameter, and an optimiser step that changes each."""
    optimiser = torch.optim.Adam(model.parameters(), lr=1e-3)  # its step does not vanish with a small gradient
    out = scores(without_dropout(model)(images(name)))
    assert all(score.dim() == 2 and len(score) == 2 and score.isfinite().all() for score in out)
    loss_of(out).backward()
    before = {key: parameter.detach().clone() for key, parameter in model.named_parameters()}
    for key, parameter in model.named_parameters():
        assert parameter.grad is not None and parameter.grad.isfinite().all(), key
        assert parameter.grad.any() or shift_is_normalised_away(model, key), key
    optimiser.step()
    for key, parameter in model.named_parameters():
        assert parameter.isfinite().all(), key
        assert not torch.equal(parameter, before[key]) or shift_is_normalised_away(model, key), key


def assert_compiled_alike(name: str, model: nn.Module, backend: str, dtype: torch.dtype = torch.float32) -> None:
    """One graph without breaks, forward and backward in training mode, with eager's values and gradients."""
    model, x = without_dropout(model).to(dtype), images(name).to(dtype)
    eager = scores(model(x))
    loss_of(eager).backward()
    expected = {key: parameter.grad.clone() for key, parameter in model.named_parameters()}
    model.zero_grad()
    compiled = scores(torch.compile(model, backend=backend, fullgraph=True)(x))
    loss_of(compiled).backward()
    unit_roundoff, sums = torch.finfo(dtype).eps / 2, num_sums(model)
    for got, score in zip(compiled, eager, strict=True):
        assert_near(got, score, 2 * sums, unit_roundoff)  # both may be off
    for key, parameter in model.named_parameters():
        if not shift_is_normalised_away(model, key):
            assert_near(parameter.grad, expected[key], 4 * sums, unit_roundoff)  # as many sums again on the way back


def test_the_papers_systems_are_all_there():
    assert set(NAMES) <= set(list_models())


@every_kind
def test_one_training_step_reaches_and_changes_every_parameter(name):
    train_one_step(name, build(name))


@every_kind
def test_a_trained_state_dict_loads_into_a_fresh_model(name):
    model = build(name)
    with torch.no_grad():
        model.train()(images(name))  # the statistics of batch-norm are state, too
    # another seed, where there is one, draws other connections, which the state replaces
    fresh = build(name, **({"seed": 1} if "seed" in takes(name) else {}))
    fresh.load_state_dict(model.state_dict(), strict=True)
    twin, x = copy.deepcopy(model), images(name)
    with torch.no_grad():
        out, *others = (scores(m.eval()(x)) for m in (model, fresh, twin))
    for other in others:
        assert all(torch.equal(a, b) for a, b in zip(out, other, strict=True))
    assert not {id(p) for p in twin.parameters()} & {id(p) for p in model.parameters()}


@every_kind
def test_it_can_be_formed_stochastically_and_trained(name):
    forming = {"conv": 0.5, "pointwise": 0.5, "linear": 0.5}
    model = build(name)
    dense = sum(layer.weight.numel() for layer in model.modules() if isinstance(layer, (nn.Conv2d, nn.Linear)))
    sparse = sum(parameter.numel() for parameter in model.parameters() if parameter.dim() > 1) - dense  # SiS has masks already
    names = [key for key, _ in model.named_parameters()]
    formed = form_stochastic(model, **forming)
    assert [key for key, _ in formed.named_parameters()] == names
    weights = sum(parameter.numel() for parameter in formed.parameters() if parameter.dim() > 1)
    assert weights - sparse == pytest.approx(dense / 2, rel=0.01)  # of a layer, half rounded to whole blocks
    train_one_step(name, formed)
    fresh = form_stochastic(build(name), **forming, seed=1)
    fresh.load_state_dict(formed.state_dict())
    with torch.no_grad():
        x = images(name)
        assert all(torch.equal(a, b) for a, b in zip(scores(formed.eval()(x)), scores(fresh.eval()(x)), strict=True))


@every_kind
def test_layouts_and_dtypes_give_one_result(name):
    model, x = build(name).eval(), images(name)
    with torch.no_grad():
        truth = scores(copy.deepcopy(model).double()(x.double()))
        outs = [scores(model(x))]
        if x.dim() == 4:
            outs.append(scores(model.to(memory_format=torch.channels_last)(x.to(memory_format=torch.channels_last))))
    assert all(score.dtype == torch.float64 and score.isfinite().all() for score in truth)
    for out in outs:
        for got, score in zip(out, truth, strict=True):
            assert got.dtype == torch.float32
            assert_near(got, score, num_sums(model), 2.0**-24)


@every_kind
def test_batches_of_none_and_of_one(name):
    model, x = build(name).eval(), images(name)
    with torch.no_grad():
        out, one, none = (scores(model(x[:number])) for number in (2, 1, 0))
    for of_two, of_one, of_none in zip(out, one, none, strict=True):
        assert of_none.shape == (0, *of_two.shape[1:])
        assert_near(of_one, of_two[:1], 2 * num_sums(model), 2.0**-24)  # kernels are chosen by size


@pytest.mark.parametrize(
    "name",
    [
        pytest.param(name, marks=[pytest.mark.slow] * (name.startswith("resnet200_root") and name != "resnet200_root_64"))
        for name in list_models()
    ],
)
def test_the_full_size_can_be_built_and_run_on_meta(name):
    card = model_card(name)
    with torch.device("meta"):
        model = create_model(name)
    assert all(tensor.is_meta for tensor in (*model.parameters(), *model.buffers()))
    out = scores(model.eval()(torch.empty(2, *card.input_shape, device="meta")))
    assert all(score.is_meta and score.dim() == 2 and len(score) == 2 for score in out)
    reduced = build(name, full=True)
    same_shapes = {key for key, value in reduced.state_dict().items() if value.shape == model.state_dict()[key].shape}
    if "input_shape" not in takes(name):  # nothing may depend on the input's size then
        assert same_shapes == set(model.state_dict())
    if card.dense is not None:
        dense = model_card(card.dense)
        assert dense.dense is None and (dense.paper, dense.input_shape) == (card.paper, card.input_shape)


@every_kind
def test_compiles_into_one_graph(name):
    assert_compiled_alike(name, build(name), "aot_eager")


@pytest.mark.parametrize(("name", "options"), INDUCTOR)
def test_inductor(name, options):
    """In float64: rounding then turns no ReLU the other way, which would be a difference, but no error."""
    assert_compiled_alike(name, build(name, **options), "inductor", torch.float64)


@pytest.mark.slow
@pytest.mark.parametrize("name", [name for name in list_models() if set(SMALL) & takes(name)])
def test_at_full_depth(name):
    model = build(name, full=True)
    train_one_step(name, model)
    model.zero_grad()
    assert_compiled_alike(name, model, "aot_eager")


@pytest.mark.parametrize(
    ("name", "near"),
    [("nin_root_3", "nin_root_2"), ("resnet50_root_7", "resnet50_root_2"), ("simplenet_5M", "simplenet_5m"), ("morse", "morse_cl")],
)
def test_an_unknown_name_is_answered_with_the_nearest(name, near):
    with pytest.raises(ValueError, match=rf"create_model: name must be a registered model; got '{name}' \(nearest: .*\)") as error:
        create_model(name)
    assert near in str(error.value)


@pytest.mark.parametrize(
    ("name", "options", "sentence"),
    [
        ("nin", {"groups": (5, 1)}, r"GroupedConv2d: in_channels must be a multiple of groups=5; got 96"),
        ("nin", {"groups": (1, 128)}, r"GroupedConv2d: in_channels must be a multiple of groups=128; got 192"),
        ("resnet50", {"groups": (3, 1, 1, 1)}, r"GroupedConv2d: in_channels must be a multiple of groups=3; got 64"),
        ("alexnet", {"groups": 5}, r"GroupedConv2d: in_channels must be a multiple of groups=5; got 96"),
        ("morse_cl", {"fan_out": (1, 8)}, r"morse_cl: fan_out must give every right neuron .* a whole number of at least 1; got 1, "),
        ("cifar10_conv_2cl", {"fan_out": (1, 0)}, r"cifar10_conv_2cl: fan_out must be in \[1, 16\] in junction 2; got 0"),
        ("sis_nin", {"t_c": 0.0}, r"form_stochastic: conv must be in \(0, 1\]; got 0.0"),
        ("nin_root_8", {"depth": 3}, r"create_model: options of nin_root_8 must be among .*; got depth"),
    ],
)
def test_an_impossible_option_is_answered_in_words(name, options, sentence):
    with pytest.raises(ValueError, match=sentence):
        create_model(name, **options)
