"""convert: each rule makes the layer it says, of the weights it says, where it is faster; and the report tells."""

from __future__ import annotations

import copy
import io
import json
import sys

import pytest
import torch
from torch import nn
from torch.nn.utils import parametrize, prune

from sparsekern import FanIn, GroupedConv2d, Groups, Root, RootModule, SparseLinear, Stochastic, StochasticConv2d, convert, to_dense
from sparsekern.measure.protocol import Timing
from sparsekern.ops import backends
from sparsekern.transform.example import race

EXAMPLE, LAYERS, WHOLE = (sys.modules[f"sparsekern.transform.{name}"] for name in ("example", "sparse_twins", "whole_model"))


def always(model: nn.Module, plan, **options) -> nn.Module:
    return convert(model, plan, policy="always", **{"rounds": 1, **options})


def timed(before_us: float, after_us: float, said: str):
    """A race with this end, in which everybody runs once."""
    timings = {name: Timing(name, (us,), (us,), 1) for name, us in (("before", before_us), ("after", after_us))}

    def race(ways, device, rounds):
        for way in ways.values():
            way()
        return timings, said

    return race


@pytest.fixture(autouse=True)
def no_clock(request, monkeypatch):
    """Times are decided here but for the test of the clock."""
    if "clock" not in request.node.name:
        monkeypatch.setattr(LAYERS, "race", timed(2.0, 1.0, "faster"))
        monkeypatch.setattr(WHOLE, "race", timed(2.0, 1.0, "faster"))


def largest(strength: torch.Tensor, count: int) -> torch.Tensor:
    """Bool: the ``count`` largest of the last dimension."""
    return strength >= strength.sort(dim=-1, descending=True).values[..., count - 1, None]


def blocks_of(strength: torch.Tensor, rows: int, columns: int) -> torch.Tensor:
    """Sums over blocks, ``[OB, IB]``."""
    return strength.reshape(strength.shape[0] // rows, rows, -1, columns).sum((1, 3))


def spelt(keep: torch.Tensor, rows: int, columns: int) -> torch.Tensor:
    return keep.repeat_interleave(rows, 0).repeat_interleave(columns, 1)


def inside(filters: int, channels: int, groups: int) -> torch.Tensor:
    """``[K, C, 1, 1]`` bool: filter and channel are of one group."""
    return (torch.arange(filters)[:, None] * groups // filters == torch.arange(channels) * groups // channels)[..., None, None]


LINEAR = {
    "fan-in 8": (FanIn(density=0.25), lambda w: largest(w**2, 8)),
    "fan-in 5": (FanIn(fan_in=5), lambda w: largest(w**2, 5)),
    "fan-in 8, balanced": (FanIn(density=0.25, topology="balanced"), lambda w: largest(w**2, 8)),  # one window
    "blocks 8x8": (FanIn(density=0.25, block_size=8), lambda w: spelt(largest(blocks_of(w**2, 8, 8), 1), 8, 8)),
    "panels of 4": (FanIn(fan_in=6, block_size=(4, 1)), lambda w: spelt(largest(blocks_of(w**2, 4, 1), 6), 4, 1)),
}
CONV = {
    "4 groups": (Groups(4), lambda w: inside(*w.shape[:2], 4).expand_as(w)),
    "spatial mask": (Stochastic(density=0.25), lambda w: largest((w**2).sum(1).flatten(), 36).reshape(16, 1, 3, 3).expand_as(w)),
    "synapse mask": (
        Stochastic(density=0.25, granularity="synapse"),
        lambda w: largest((w**2).flatten(), 288).reshape(w.shape),
    ),
    "kernel mask": (
        Stochastic(fan_in=18, granularity="kernel"),
        lambda w: largest((w**2).sum((2, 3)), 2)[..., None, None].expand_as(w),
    ),
    "spatial mask, shared by 4": (
        Stochastic(density=1 / 3, share=4),
        lambda w: largest((w**2).sum(1).reshape(4, 4, 9).sum(1).flatten(), 12).reshape(4, 1, 3, 3).repeat_interleave(4, 0).expand_as(w),
    ),
}


@pytest.mark.parametrize("kind", [*LINEAR, *CONV])
def test_what_stays_of_a_trained_layer(kind):
    rule, kept = {**LINEAR, **CONV}[kind]
    layer = nn.Linear(32, 16) if kind in LINEAR else nn.Conv2d(8, 16, 3, padding=1)
    x = torch.randn(3, 32) if kind in LINEAR else torch.randn(2, 8, 5, 5)
    model = nn.Sequential(layer, nn.ReLU()).eval()
    before = copy.deepcopy(model.state_dict())
    sparse = always(model, rule, example_input=x)
    dense = layer.weight * kept(layer.weight)
    assert torch.equal(sparse[0].weight_dense(), dense)
    assert torch.equal(sparse[0].bias, layer.bias)
    assert all(torch.equal(value, before[key]) for key, value in model.state_dict().items()) and isinstance(model[0], type(layer))

    (line,) = sparse.report.layers
    assert line.kind == kind and line.swapped and line.name == "0" and line.x_shape == tuple(x.shape) and line.calls == 1
    assert line.density == pytest.approx(float(kept(layer.weight).float().mean()))
    assert line.expected == pytest.approx(1 / line.density) and line.measured > 0
    assert line.before_bytes == 4 * (layer.weight.numel() + 16)
    assert line.after_bytes >= 4 * (sparse[0].weight.numel() + 16)
    with torch.no_grad():
        twin = copy.deepcopy(model)
        twin[0].weight.mul_(kept(layer.weight))
        torch.testing.assert_close(sparse(x), twin(x))
        old, new = model[0](x), twin[0](x)
    assert line.error == pytest.approx(float((new - old).norm() / old.norm()), rel=1e-3)


def test_a_root_module_begins_as_its_groups():
    model, x = nn.Sequential(nn.Conv2d(8, 16, 3, padding=1, stride=2), nn.ReLU()).eval(), torch.randn(2, 8, 6, 6)
    sparse = always(model, Root(4), example_input=x)
    assert isinstance(sparse[0], RootModule) and sparse.report.layers[0].kind == "root module, 4 groups"
    with torch.no_grad():
        twin = copy.deepcopy(model)
        twin[0].weight.mul_(inside(16, 8, 4))
        torch.testing.assert_close(sparse(x), twin(x))
    assert sparse.report.layers[0].density == pytest.approx((16 * 2 * 9 + 16 * 16) / (16 * 8 * 9))
    kept = dict(to_dense(sparse)[0].named_children())
    assert [type(part) for part in kept.values()] == [nn.Sequential, nn.Conv2d]
    torch.testing.assert_close(to_dense(sparse)(x), sparse(x))
    left = always(nn.Conv2d(8, 16, 3, dilation=2), Root(4), example_input=x).report.layers[0]
    assert not left.swapped and "without dilation" in left.why_not


@pytest.mark.parametrize("rule", [FanIn(density=0.5, source="random"), FanIn(fan_in=8, topology="regular", source="random")])
def test_random_connections_follow_seed_and_name(rule):
    model = nn.Sequential(nn.Linear(32, 16), nn.Linear(16, 32), nn.Linear(32, 16))
    one, again, other = (always(model, {"[02]": rule}, seed=seed) for seed in (1, 1, 2))
    assert torch.equal(one[0].index, again[0].index) and not torch.equal(one[0].index, other[0].index)
    assert not torch.equal(one[0].index, one[2].index)  # alike, but of another name
    assert not torch.equal(one[0].weight, again[0].weight)  # fresh weights, from torch's generator
    assert one[0].weight.abs().max() <= one[0].fan_in ** -0.5
    assert one.report.layers[0].error is None and one.report.layers[0].weights_from == "random"


@pytest.mark.parametrize("rule", [Groups(4, source="random"), Root(4, source="random"), Stochastic(density=0.5, source="random")])
def test_random_weights_of_convolutions_are_fresh(rule):
    layer = nn.Conv2d(8, 16, 3)
    sparse = always(layer, rule)
    dense = to_dense(sparse).state_dict()
    kept = next(value for key, value in dense.items() if key.endswith("weight"))
    shared = kept == layer.weight if kept.shape == layer.weight.shape else torch.zeros(1)
    assert not shared[kept != 0].any() if kept.shape == layer.weight.shape else True
    assert sparse.report.layers[0].swapped


def test_only_random_weights_touch_the_generator():
    model = nn.Sequential(nn.Linear(32, 16), nn.Dropout(), nn.Linear(16, 8))
    state = torch.get_rng_state()
    convert(model, FanIn(density=0.5), policy="always", example_input=torch.randn(2, 32, generator=torch.Generator()), rounds=1)
    assert torch.equal(torch.get_rng_state(), state)
    always(model, FanIn(density=0.5, source="random"))
    assert not torch.equal(torch.get_rng_state(), state)


# ---- masks


def pruned(layer: nn.Module, how: str) -> nn.Module:
    if how == "parametrized":
        mask = torch.rand_like(layer.weight) < 0.3

        class Masked(nn.Module):
            def forward(self, weight):
                return weight * mask

        parametrize.register_parametrization(layer, "weight", Masked())
    elif how == "zeros":
        layer.weight.data[torch.rand_like(layer.weight) < 0.7] = 0
    else:
        prune.l1_unstructured(layer, "weight", amount=0.7)
    return layer


@pytest.mark.parametrize("how", ["prune", "parametrized", "zeros"])
@pytest.mark.parametrize("kind", ["linear", "blocks", "conv"])
def test_a_mask_gives_the_same_function(how, kind):
    layer = pruned(nn.Conv2d(8, 16, 3) if kind == "conv" else nn.Linear(32, 16), how)
    model = nn.Sequential(layer, nn.ReLU()).eval()
    x = torch.randn(2, 8, 5, 5) if kind == "conv" else torch.randn(3, 32)
    weight, mask = layer.weight.detach().clone(), layer.weight != 0
    rule = {"linear": FanIn(source="mask"), "blocks": FanIn(source="mask", block_size=4), "conv": Stochastic(source="mask")}[kind]
    sparse = always(model, rule, example_input=x)
    (line,) = sparse.report.layers
    assert line.swapped and line.error < 1e-6, line
    assert torch.equal(sparse[0].weight_dense(), weight)
    torch.testing.assert_close(sparse(x), model(x))
    beside = sparse[0].weight.numel() - int(mask.sum())
    if kind == "linear":
        assert sparse[0].fan_in == int(mask.sum(1).max()) and beside > 0
    if kind == "conv":
        assert beside == 0 and sparse[0].granularity == "synapse"
    assert line.weights_from == ("mask" if beside == 0 else f"mask and {beside} beside it")
    assert not any("mask" in key or "orig" in key for key in sparse.state_dict())


def test_a_mask_with_a_fan_in_keeps_the_largest_of_it():
    layer = nn.Linear(32, 16)
    prune.random_unstructured(layer, "weight", amount=0.5)
    sparse = always(layer, FanIn(fan_in=4, source="mask"), example_input=torch.randn(2, 32))
    strength = layer.weight.detach() ** 2  # 0 outside the mask
    assert torch.equal(sparse.weight_dense(), layer.weight.detach() * largest(strength, 4)) and sparse.report.layers[0].error > 0.01


def test_weights_trained_since_the_mask_was_made_count():
    layer = nn.Linear(32, 16)
    prune.l1_unstructured(layer, "weight", amount=0.5)
    with torch.no_grad():
        layer.weight_orig.mul_(2)  # layer.weight follows at the next call only
    sparse = always(layer, FanIn(source="mask"))
    torch.testing.assert_close(sparse(torch.ones(1, 32)), layer(torch.ones(1, 32)))


def test_connections_of_a_mask_stay_where_their_weight_is_zero():
    layer = nn.Linear(32, 16)
    mask = torch.zeros(16, 32).scatter_(1, torch.rand(16, 32).argsort(1)[:, :6], 1)
    prune.custom_from_mask(layer, "weight", mask)
    layer.weight_orig.data[:, ::2] = 0  # as a layer that begins at zero
    sparse = always(layer, FanIn(source="mask"))
    assert torch.equal(sparse.index, mask.nonzero()[:, 1].reshape(16, 6).int())


def test_no_mask_is_said():
    assert always(nn.Linear(8, 4), FanIn(source="mask")).report.left == {"": "its weight has no mask and no zeros"}


# ---- what is swapped


@pytest.mark.skipif(not backends.has_kernels("cpu"), reason="built without kernels")
def test_the_clock_decides():
    """A tenth of the weights is several times faster; to train nearly all of them through an index table is not."""
    torch.set_num_threads(1)
    model = nn.Sequential(nn.Linear(2048, 512)).eval()
    for _ in range(3):  # beside other work a measurement may fail
        fast = convert(model, FanIn(density=0.1), example_input=torch.randn(1, 2048), rounds=3)
        if fast.report.swapped and fast.report.speedup > 1.3:
            break
    assert fast.report.swapped == ["0"] and isinstance(fast[0], SparseLinear) and fast.report.layers[0].measured > 1.5
    assert fast.report.speedup > 1.3 and fast.report.verdict == "faster"
    model = nn.Sequential(nn.Linear(256, 256))
    slow = convert(model, FanIn(density=0.9), example_input=torch.randn(64, 256), rounds=3)
    assert slow.report.left["0"].endswith("x") and slow.report.layers[0].measured < 1.1 and type(slow[0]) is nn.Linear


@pytest.mark.parametrize("said", ["faster", "slower", "same", "ambiguous"])
def test_a_layer_is_swapped_where_it_is_faster(said, monkeypatch):
    monkeypatch.setattr(LAYERS, "race", timed(20.0, 10.0, said))
    monkeypatch.setattr(WHOLE, "race", timed(40.0, 30.0, "faster"))
    model, x = nn.Linear(32, 16), torch.randn(2, 32)
    (line,) = convert(model, FanIn(density=0.5), example_input=x).report.layers
    assert line.swapped == (said == "faster") and line.verdict == said and line.measured == 2
    assert line.why_not == {"faster": "", "slower": "slower: 2.00x"}.get(said, "not clearly faster: 2.00x")
    assert always(model, FanIn(density=0.5), example_input=x).report.swapped == [""]


def test_all_stay_where_the_whole_model_is_slower(monkeypatch):
    monkeypatch.setattr(LAYERS, "race", timed(20.0, 10.0, "faster"))
    monkeypatch.setattr(WHOLE, "race", timed(20.0, 25.0, "slower"))
    model, x = nn.Sequential(nn.Linear(32, 16), nn.Linear(16, 32)), torch.randn(2, 32)
    report = convert(model, FanIn(density=0.5), example_input=x).report
    assert report.swapped == [] and report.left["1"] == "faster alone (2.00x), but the whole model is not (0.80x)"
    assert always(model, FanIn(density=0.5), example_input=x).report.swapped == ["0", "1"]


def test_layers_alike_are_timed_once(monkeypatch):
    raced = []
    monkeypatch.setattr(LAYERS, "race", lambda ways, *_: raced.append(1) or timed(2.0, 1.0, "faster")(ways, *_))
    monkeypatch.setattr(WHOLE, "race", timed(2.0, 1.0, "faster"))
    model = nn.Sequential(nn.Linear(32, 32), nn.Linear(32, 32), nn.Linear(32, 32), nn.Linear(32, 32, bias=False)).eval()
    assert len(convert(model, FanIn(density=0.5), example_input=torch.randn(2, 32)).report.swapped) == 4
    assert len(raced) == 3  # the first is given the model's own input


def test_patterns_functions_and_exceptions():
    model = nn.ModuleDict({name: nn.Linear(16, 16) for name in ("up", "down", "head")})
    model["conv"] = nn.Conv2d(4, 8, 3)
    rule = FanIn(density=0.5)
    assert always(model, rule).report.swapped == ["up", "down", "head"]
    assert always(model, {"*": rule, "head": None}).report.swapped == ["up", "down"]
    assert always(model, {"*": rule, "head": None}).report.left == {"conv": "FanIn is for Linear"}
    assert always(model, {lambda name, layer: "o" in name and isinstance(layer, nn.Linear): rule}).report.swapped == ["down"]
    both = always(model, {"*": rule, "conv": Groups(4)})
    assert both.report.swapped == ["up", "down", "head", "conv"] and isinstance(both["conv"], GroupedConv2d)
    assert "multiple of groups=3" in always(model, {"conv": Groups(3)}).report.left["conv"]


def test_a_training_step_is_timed_in_training(monkeypatch):
    seen = []

    def race(ways, device, rounds):
        for name, way in ways.items():
            out = way()
            seen.append((name, [tuple(t.shape) for t in out] if isinstance(out, tuple) and isinstance(out[0], torch.Tensor) else None))
        return timed(2.0, 1.0, "faster")(ways, device, rounds)

    monkeypatch.setattr(LAYERS, "race", race)
    model = nn.Sequential(nn.Linear(8, 6), nn.BatchNorm1d(6), nn.Linear(6, 4, bias=False))
    x = torch.randn(3, 8)
    before = copy.deepcopy(model.state_dict())
    made = convert(model, FanIn(density=0.5), example_input=x, rounds=1)
    assert made.report.training and "training step" in str(made.report)
    assert seen == [
        ("before", [(6, 8), (6,)]), ("after", [(6, 4), (6,)]),  # the model's own input needs no gradient
        ("before", [(3, 6), (4, 6)]), ("after", [(3, 6), (4, 3)]),
    ]  # fmt: skip
    assert all(torch.equal(made.state_dict()[f"1.{key}"], before[f"1.{key}"]) for key in ("running_mean", "num_batches_tracked"))
    assert made.training and all(p.grad is None for p in made.parameters())
    seen.clear()
    convert(model, FanIn(density=0.5), example_input=x, rounds=1, training=False)
    assert [shapes for _, shapes in seen] == [None] * 4


def test_what_cannot_be_timed_as_a_whole_is_said():
    model = nn.Sequential(nn.Linear(8, 6), nn.BatchNorm1d(6))
    report = always(model, FanIn(density=0.5), example_input=torch.randn(1, 8)).report
    assert report.swapped == ["0"] and report.speedup is None and "not timed (ValueError: Expected more than 1 value" in report.note


def test_a_race_without_an_end_is_run_again_and_longer(monkeypatch):
    asked = []

    def interleave(ways, rounds):
        asked.append(rounds)
        assert [way() for way in ways.values()] == [1, 2]
        spread = {"before": (1.0, 2.0, 3.0), "after": (1.1, 1.5, 4.0)} if len(asked) == 1 else {"before": (3.0,), "after": (1.0,)}
        return {name: Timing(name, tuple(2 * us for us in samples), samples, 1) for name, samples in spread.items()}

    monkeypatch.setattr(EXAMPLE, "interleave", interleave)
    torch.set_num_threads(1)
    times, said = race({"before": lambda: 1, "after": lambda: 2}, torch.device("cpu"), 4)
    assert (asked, said, times["after"].median_us) == ([4, 12], "faster", 1.0)  # of one thread, its own time
    torch.set_num_threads(2)
    assert race({"before": lambda: 1, "after": lambda: 2}, torch.device("cpu"), 4)[0]["after"].median_us == 2.0


# ---- the report


def test_the_report_is_for_reading_and_for_files(tmp_path, capsys):
    model = nn.Sequential(nn.Linear(32, 16), nn.Conv2d(4, 8, 3)).eval()
    model[0].weight.requires_grad_(False)
    report = always(model, {"*": FanIn(density=0.25)}).report
    assert "1 of 2 layers swapped (always; inference" in str(report) and "FanIn is for Linear" in str(report) and "fan-in 8" in str(report)
    text = report.to_json(tmp_path / "report.json")
    assert (tmp_path / "report.json").read_text() == text
    found = json.loads(text)
    assert found["machine"]["torch"] == torch.__version__ and found["policy"] == "always" and found["speedup"] is None
    line = found["layers"][0]
    assert line["rule"] == {"rule": "FanIn", "density": 0.25, "block_size": 1, "topology": "random", "source": "magnitude"}
    assert (line["name"], line["kind"], line["density"], line["expected"], line["measured"]) == ("0", "fan-in 8", 0.25, 4, None)
    assert found["layers"][1]["why_not"] == "FanIn is for Linear"


def test_the_report_is_a_table_with_rich():
    console = pytest.importorskip("rich.console").Console(width=200, file=io.StringIO())
    console.print(always(nn.Linear(32, 16), FanIn(density=0.25)).report)
    assert "weights from" in console.file.getvalue() and "fan-in 8" in console.file.getvalue()


def test_the_plan_of_a_report_gives_the_same_shapes():
    model = nn.Sequential(nn.Linear(32, 16), nn.Flatten(0), nn.Unflatten(0, (1, 4, 4, 2)), nn.Conv2d(4, 8, (1, 2)), nn.Conv2d(8, 8, 1))
    prune.l1_unstructured(model[0], "weight", amount=0.7)
    plan = {"0": FanIn(source="mask"), "3": Stochastic(density=0.5, granularity="synapse"), "4": Groups(2)}
    made = always(model, plan)
    fresh = nn.Sequential(*[copy.deepcopy(layer) for layer in model[1:]])
    fresh = nn.Sequential(nn.Linear(32, 16), *fresh)
    twin = always(fresh, made.report.plan)
    twin.load_state_dict(made.state_dict())
    x = torch.randn(2, 32)
    assert torch.equal(twin(x), made(x)) and type(made[3]) is StochasticConv2d


# ---- bad arguments

BAD = {
    "convert: model must be an nn.Module; got list": lambda: convert([], FanIn(density=0.1)),
    "convert: plan must match layers of the model (0); got 'fc*'": lambda: always(nn.Sequential(nn.Linear(4, 4)), {"fc*": None}),
    "convert: plan must match layers of the model (0); got 'never', which matches none": lambda: always(
        nn.Sequential(nn.Linear(4, 4)), {never: FanIn(density=0.5)}
    ),
    "convert: plan must match layers of the model (of which there are none); got '*'": lambda: always(nn.ReLU(), {"*": Groups(2)}),
    "convert: plan must be a rule or a mapping of patterns or functions to rules; got 0.1": lambda: always(nn.Linear(4, 4), 0.1),
    "convert: plan['*'] must be FanIn, Groups, Root, Stochastic or None; got 0.1": lambda: always(nn.Linear(4, 4), {"*": 0.1}),
    "convert: plan must be a mapping of patterns or functions to rules; got the key 3": lambda: always(nn.Linear(4, 4), {3: Groups(2)}),
    "convert: policy must be one of ('if_faster', 'always'); got 'sometimes'": lambda: convert(
        nn.Linear(4, 4), FanIn(density=0.5), policy="sometimes"
    ),
    "convert: example_input must be given with policy 'if_faster'; got None": lambda: convert(nn.Linear(4, 4), FanIn(density=0.5)),
    "convert: model must be without a layer or tensor of its own called report; got ModuleDict": lambda: always(
        nn.ModuleDict({"report": nn.Linear(4, 4)}), FanIn(density=0.5)
    ),
    "convert: rounds must be at least 1; got 0": lambda: always(nn.Linear(4, 4), FanIn(density=0.5), rounds=0),
    "FanIn: density and fan_in must be given one without the other; got both": lambda: FanIn(density=0.1, fan_in=3),
    "FanIn: density and fan_in must be given one without the other; got neither": lambda: FanIn(),
    "FanIn: density must be in (0, 1]; got 0": lambda: FanIn(density=0),
    "FanIn: fan_in must be at least 1; got 0": lambda: FanIn(fan_in=0),
    "FanIn: source must be one of ('magnitude', 'mask', 'random'); got 'luck'": lambda: FanIn(density=0.1, source="luck"),
    "FanIn: topology must be 'random' or 'balanced' where connections are chosen; got 'regular'": lambda: FanIn(
        density=0.1, topology="regular"
    ),
    "FanIn: topology must be 'random' with source='mask'; got 'balanced'": lambda: FanIn(source="mask", topology="balanced"),
    "Stochastic: granularity must be one of": lambda: Stochastic(density=0.1, granularity="fine"),
    "Stochastic: share must be at least 1; got 0": lambda: Stochastic(density=0.1, share=0),
    "Stochastic: count must be one of ('exact', 'bernoulli'); got 'about'": lambda: Stochastic(density=0.1, count="about"),
    "Groups: groups must be at least 1; got 0": lambda: Groups(0),
    "Root: source must be one of ('dense', 'random'); got 'mask'": lambda: Root(4, source="mask"),
    "to_dense: model must be an nn.Module; got int": lambda: to_dense(3),
}


def never(name, layer):
    return False


@pytest.mark.parametrize("message", BAD)
def test_bad_arguments(message):
    with pytest.raises(ValueError) as error:
        BAD[message]()
    assert str(error.value).startswith(message)


@pytest.mark.parametrize("rule", [FanIn(fan_in=6, block_size=4), FanIn(density=0.5, block_size=5), FanIn(fan_in=40)])
def test_a_rule_that_does_not_fit_a_layer_is_left(rule):
    linear = nn.Linear(32, 16)
    assert " must be " in always(linear, rule).report.left[""]
    linear.weight.data[:, :4] = 0
    masked = FanIn(fan_in=rule.fan_in, density=rule.density, block_size=rule.block_size, source="mask")
    assert " must be " in always(linear, masked).report.left[""]
