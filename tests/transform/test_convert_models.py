"""convert and to_dense on models as people have them: shared, frozen, hooked, read in ways of their own, and all that torch does."""

from __future__ import annotations

import copy
import dataclasses
import io
import pickle
import sys

import pytest
import torch
import torch.nn.functional as F
from torch import distributed, nn
from torch.nn.utils import parametrize, prune, spectral_norm, weight_norm

from sparsekern import FanIn, GroupedConv2d, Groups, SparseLinear, Stochastic, StochasticConv2d, convert, to_dense
from sparsekern.measure.protocol import Timing
from sparsekern.models import create_model, form_stochastic
from sparsekern.models.group_plan import group_plan
from sparsekern.transform import optimize
from sparsekern.transform.ways import Contiguous

LAYERS, WHOLE = (sys.modules[f"sparsekern.transform.{name}"] for name in ("sparse_twins", "whole_model"))
HALF = FanIn(density=0.5)


@pytest.fixture(autouse=True)
def no_clock(monkeypatch):
    """Everybody runs once; times are decided."""

    def race(ways, device, rounds):
        for way in ways.values():
            way()
        return {name: Timing(name, (us,), (us,), 1) for name, us in (("before", 2.0), ("after", 1.0))}, "faster"

    monkeypatch.setattr(LAYERS, "race", race)
    monkeypatch.setattr(WHOLE, "race", race)


def always(model: nn.Module, plan=HALF, **options) -> nn.Module:
    return convert(model, plan, policy="always", **options)


class Said(nn.Module):
    """A model of these layers, as ``forward(self, x)`` says."""

    def __init__(self, forward, **layers: nn.Module):
        super().__init__()
        self.say = forward
        for name, layer in layers.items():
            setattr(self, name, layer)

    def forward(self, *args, **kwargs):
        return self.say(self, *args, **kwargs)


def mlp() -> nn.Sequential:
    return nn.Sequential(nn.Linear(24, 32), nn.ReLU(), nn.Linear(32, 16))


def small_net() -> nn.Sequential:
    """One of each kind of layer."""
    return nn.Sequential(
        nn.Conv2d(4, 16, 3, padding=1), nn.BatchNorm2d(16), nn.ReLU(), nn.Conv2d(16, 16, 3, padding=1, bias=False), nn.ReLU(),
        nn.AdaptiveAvgPool2d(2), nn.Flatten(), nn.Linear(64, 10),
    )  # fmt: skip


SMALL_PLAN = {"0": Stochastic(density=0.5), "3": Groups(4), "7": FanIn(density=0.25)}


# ---- who else reads a layer


def test_a_layer_that_stands_in_two_places_is_swapped_once():
    shared = nn.Linear(16, 16)
    model, x = nn.Sequential(shared, nn.ReLU(), nn.Sequential(shared), nn.Linear(16, 4)).eval(), torch.randn(2, 16)
    sparse = always(model, example_input=x)
    assert sparse.report.swapped == ["0", "3"] and sparse.report.layers[0].calls == 2
    assert sparse[0] is sparse[2][0] and isinstance(sparse[0], SparseLinear)
    dense = to_dense(sparse)
    assert dense[0] is dense[2][0] and type(dense[0]) is nn.Linear
    torch.testing.assert_close(dense(x), sparse(x))
    assert always(model, {"2.0": HALF}).report.swapped == ["0"]  # by its other name


def test_a_parameter_of_two_modules_is_left():
    model = Said(lambda self, x: self.head(self.hidden(self.embed(x))), embed=nn.Embedding(10, 8), hidden=nn.Linear(8, 8))
    model.head = nn.Linear(8, 10)
    model.head.weight = model.embed.weight
    sparse = always(model, example_input=torch.arange(4))
    assert sparse.report.swapped == ["hidden"] and sparse.report.left == {"head": "it shares a parameter with embed"}
    assert sparse.head.weight is sparse.embed.weight


def with_raw_weight(self, x):
    return F.linear(self.one(x), self.two.weight, self.two.bias) + self.two(x)


def with_transposed_weight(self, x):
    return self.two(self.one(x)) @ self.two.weight


@pytest.mark.parametrize("forward", [with_raw_weight, with_transposed_weight])
@pytest.mark.parametrize("policy", ["always", "if_faster"])
def test_a_weight_read_as_it_is_is_found_by_running(forward, policy):
    model = Said(forward, one=nn.Linear(16, 16), two=nn.Linear(16, 16)).eval()
    x = torch.randn(2, 16)
    sparse = convert(model, HALF, policy=policy, example_input=x)
    why = {with_raw_weight: "the model fails with it (RuntimeError", with_transposed_weight: "the model reads it in a way of its own"}
    assert sparse.report.swapped == ["one"] and sparse.report.left["two"].startswith(why[forward])
    assert sparse.two(x).equal(model.two(x)) and sparse.report.error < 1e-5
    sparse(x)


def test_a_weight_that_gives_another_value_is_found_by_running():
    model = Said(lambda self, x: self.fc(x) * self.fc.weight.shape[1], fc=nn.Linear(16, 16))
    assert "in a way of its own: outputs differ by" in always(model, example_input=torch.randn(2, 16)).report.left["fc"]


def test_a_layer_called_by_another_way_than_its_name_is_found_by_running():
    model = Said(lambda self, x: self.list[0](x), fc=nn.Linear(16, 16))
    model.list = [model.fc]  # nobody sees what is in it
    assert always(model, example_input=torch.randn(2, 16)).report.left == {"fc": "the model calls it by another way than its name"}


def test_what_forwards_read_beside_calling_is_there():
    def forward(self, x):
        assert x.dtype == self.fc.weight.dtype and x.shape[-1] == self.fc.in_features and self.fc.bias is not None
        assert self.conv.kernel_size == (3, 3) and self.conv.out_channels == 8 and self.conv.stride == (1, 1)
        return self.conv(self.fc(x)[:, None, None].expand(-1, 4, 3, -1)), self.fc.out_features

    model = Said(forward, fc=nn.Linear(16, 12), conv=nn.Conv2d(4, 8, 3))
    assert always(model, {"fc": HALF, "conv": Stochastic(density=0.5)}, example_input=torch.randn(2, 16)).report.swapped == ["fc", "conv"]


class Doubled(nn.Linear):
    def forward(self, x):
        return 2 * super().forward(x)


class Scaled(torch.Tensor):
    """As quantised and sharded weights are, of another class."""


class Named(nn.Linear):
    """Nothing of its own but a name."""


@pytest.mark.filterwarnings("ignore:.*weight_norm.*:FutureWarning")
def test_layers_that_are_more_than_torchs_are_left():
    adapted, patched = nn.Linear(8, 8), nn.Linear(8, 8)
    adapted.lora = nn.Linear(8, 2)
    patched.forward = lambda x: x
    packed = GroupedConv2d(8, 8, 1)
    packed._packed = torch.zeros(1)
    identity = parametrize.register_parametrization(nn.Linear(8, 8), "weight", nn.Identity())
    layers = {
        "doubled": Doubled(8, 8), "named": Named(8, 8), "adapted": adapted, "patched": patched, "spectral": spectral_norm(nn.Linear(8, 8)),
        "normed": weight_norm(nn.Linear(8, 8)), "parametrized": identity, "meta": nn.Linear(8, 8, device="meta"),
        "packed": packed, "scaled": nn.Linear(8, 8),
    }  # fmt: skip
    layers["scaled"].weight = nn.Parameter(torch.ones(8, 8).as_subclass(Scaled))
    model = nn.ModuleDict(layers)
    report = always(model, {"*": HALF, "adapted.lora": None, "packed": Groups(2)}, inplace=True).report
    assert report.swapped == ["named"]
    assert report.left == {
        "doubled": "Doubled has a forward of its own",
        "adapted": "it holds more than a weight and a bias (lora)",
        "patched": "its forward was replaced",
        "spectral": "it holds more than a weight and a bias (weight_orig, weight_u, weight_v)",
        "normed": "it holds more than a weight and a bias (weight_g, weight_v)",
        "parametrized": "its weight is parametrized: source='mask' takes the weight as it is; or remove the parametrization first",
        "meta": "its weight has no values yet",
        "packed": "it is packed: call unpack() first",
        "scaled": "its weight is a Scaled",
    }


def test_a_layer_that_the_example_does_not_reach_is_left_where_the_clock_decides():
    model = Said(lambda self, x: self.one(x), one=nn.Linear(16, 16), two=nn.Linear(16, 16))
    x = torch.randn(2, 16)
    assert convert(model, HALF, example_input=x).report.left == {"two": "not called on the example"}
    assert always(model, example_input=x).report.swapped == ["one", "two"]


def test_lazy_layers_are_converted_once_they_have_run():
    model = nn.Sequential(nn.LazyLinear(16), nn.ReLU())
    assert always(model).report.left == {"0": "its weight has no values yet"}
    assert always(model, example_input=torch.randn(2, 8)).report.swapped == ["0"]


@dataclasses.dataclass
class Scores:
    scores: torch.Tensor
    more: dict


def test_inputs_and_outputs_of_any_form():
    def forward(self, x, *, scale, nothing=None):
        assert nothing is None
        return Scores(self.fc(x) * scale, {"hidden": [x + 1]})

    model, x, scale = Said(forward, fc=nn.Linear(16, 8)), torch.randn(2, 16), torch.tensor(2.0)
    report = always(model, example_input={"x": x, "scale": scale, "nothing": None}).report
    assert report.swapped == ["fc"] and 0 < report.error < 1e-5
    model = Said(lambda self, x, y: self.fc(x) @ y.T, fc=nn.Linear(16, 8))
    assert always(model, example_input=(x, torch.randn(3, 8))).report.layers[0].x_shape == (2, 16)
    silent = always(Said(lambda self, x: self.fc(x).tolist(), fc=nn.Linear(16, 8)), example_input=x).report
    assert silent.swapped == ["fc"] and silent.error is None and "no tensors" in silent.note


def test_a_model_that_keeps_state_gets_it_back():
    def forward(self, x):
        self.runs += 1
        x += 1  # into its input
        return self.fc(x) + torch.rand(1)

    model, x = Said(forward, fc=nn.Linear(16, 8)), torch.zeros(2, 16)
    model.register_buffer("runs", torch.tensor(3))
    state = torch.get_rng_state()
    sparse = always(model, example_input=x, inplace=True)
    assert sparse.report.swapped == ["fc"] and int(model.runs) == 3 and not x.any() and torch.equal(torch.get_rng_state(), state)


# ---- transformers


@pytest.mark.filterwarnings("ignore:The PyTorch API of nested tensors:UserWarning")
@pytest.mark.parametrize("norm_first", [False, True])
@torch.no_grad()
def test_encoders_of_torch_call_their_sparse_layers(norm_first):
    layer = nn.TransformerEncoderLayer(16, 2, 32, batch_first=True, norm_first=norm_first)
    model = nn.TransformerEncoder(layer, 2, enable_nested_tensor=not norm_first).eval()
    x, padding = torch.randn(2, 5, 16), torch.tensor([[False] * 5, [False] * 3 + [True] * 2])
    example = {"src": x, "src_key_padding_mask": padding}
    sparse = always(model, {"*": HALF, "layers.1.linear?": None}, example_input=example)
    assert sparse.report.swapped == ["layers.0.linear1", "layers.0.linear2"]
    assert sparse.report.left["layers.0.self_attn.out_proj"] == "MultiheadAttention reads its weight without calling it"
    dense = to_dense(sparse)
    valid = ~padding
    torch.testing.assert_close(sparse(**example)[valid], dense(**example)[valid])
    torch.testing.assert_close(sparse(x), dense(x))
    flags = [(m.activation_relu_or_gelu, model.use_nested_tensor) for m in model.layers]
    assert [(m.activation_relu_or_gelu, dense.use_nested_tensor) for m in dense.layers] == flags
    assert [(m.activation_relu_or_gelu, sparse.use_nested_tensor) for m in sparse.layers] == [(0, False), (1, False)]
    for train in (True, False):
        copied = pickle.loads(pickle.dumps(sparse.train(train)))
        torch.manual_seed(1)
        expected = sparse(x)
        torch.manual_seed(1)
        assert torch.equal(copied(x), expected)


@torch.no_grad()
def test_attention_is_left_even_where_everything_is_swapped():
    model = Said(lambda self, x: self.out(self.attention(x, x, x)[0]), attention=nn.MultiheadAttention(16, 2), out=nn.Linear(16, 16)).eval()
    sparse = always(model)
    assert sparse.report.swapped == ["out"] and sparse(torch.randn(3, 2, 16)).shape == (3, 2, 16)


# ---- what a layer keeps


def test_mode_frozen_parameters_hooks_dtype_and_attributes():
    model = nn.Sequential(nn.Linear(16, 8), nn.Linear(8, 8), nn.Conv2d(8, 8, 1, dtype=torch.float64)).eval()
    model[0].weight.requires_grad_(False)
    model[1].bias.requires_grad_(False)
    model[1].train()
    model[0].scale, seen = 3, []
    handles = [
        model[0].register_forward_pre_hook(lambda module, args: seen.append("before")),
        model[0].register_forward_hook(lambda module, args, kwargs, out: out * module.scale, with_kwargs=True),
        model[0].register_full_backward_hook(lambda module, grad_in, grad_out: seen.append("back")),
    ]
    sparse = always(model, {"[01]": HALF, "2": Groups(2)}, inplace=True)
    assert sparse is model and sparse.report.swapped == ["0", "1", "2"]
    assert [layer.training for layer in sparse] == [False, True, False]
    frozen = [name for name, parameter in sparse.named_parameters() if not parameter.requires_grad]
    assert frozen == ["0.weight", "1.bias"] and sparse[2].weight.dtype == torch.float64
    for changed in (sparse, to_dense(sparse)):
        seen.clear()
        x = torch.randn(2, 16, requires_grad=True)
        out = changed[0](x)
        out.sum().backward()
        assert seen == ["before", "back"] and changed[0].scale == 3
        torch.testing.assert_close(out, 3 * (x @ to_dense(sparse)[0].weight.T + sparse[0].bias))
    assert [name for name, p in to_dense(sparse).named_parameters() if not p.requires_grad] == frozen
    for handle in handles:
        handle.remove()
    assert not sparse[0]._forward_hooks and not sparse[0]._forward_pre_hooks and not sparse[0]._backward_hooks


def test_the_given_model_stays_as_it_is():
    model = small_net()
    x = torch.randn(2, 4, 6, 6)
    before, modules = copy.deepcopy(model.state_dict()), list(model.modules())
    sparse = always(model, SMALL_PLAN, example_input=x)
    assert sparse.report.swapped == ["0", "3", "7"] and list(model.modules()) == modules and not hasattr(model, "report")
    assert all(torch.equal(value, before[key]) for key, value in model.state_dict().items())


def test_a_pruned_model_is_copied_and_can_be_left():
    model = mlp()
    prune.l1_unstructured(model[0], "weight", amount=0.8)
    prune.l1_unstructured(model[2], "weight", amount=0.8)
    prune.l1_unstructured(model[2], "bias", amount=0.5)
    x = torch.randn(2, 24)
    sparse = always(model, {"2": FanIn(source="mask")}, example_input=x)
    torch.testing.assert_close(sparse(x), model(x))
    assert prune.is_pruned(sparse[0]) and not sparse[2]._forward_pre_hooks and sparse[2].bias.requires_grad
    sparse(x).sum().backward()
    assert sparse[0].weight_orig.grad is not None and sparse[2].weight.grad is not None and model[0].weight_orig.grad is None


# ---- the way back


@pytest.mark.parametrize(
    "make",
    [
        lambda: create_model("nin_root_8"),
        lambda: create_model("sis_svhn_3"),
        lambda: form_stochastic(create_model("nin"), conv=0.25),
        lambda: create_model("resnet50_root_16", blocks=(1, 1, 1, 1), classes=10),
        lambda: create_model("mnist_cl", fan_out=(8, 5)),
        lambda: nn.Sequential(GroupedConv2d(3, 24, 3, group_sizes=[(1, 8), (2, 16)], activation="relu")),
        lambda: SparseLinear(3072, 10, density=0.1),
    ],
    ids=["groups", "masks", "masks with ReLU", "residual", "connected", "unequal", "a layer"],
)
@torch.no_grad()
def test_every_sparse_model_has_a_dense_one(make):
    model = make().eval()
    takes_rows = isinstance(next(m for m in model.modules() if hasattr(m, "weight")), SparseLinear)
    x = torch.randn(2, next(m for m in model.modules() if hasattr(m, "weight")).in_features) if takes_rows else torch.randn(2, 3, 32, 32)
    for keep_groups in (False, True):
        dense = to_dense(model, keep_groups=keep_groups)
        assert not any(type(module).__module__.startswith("sparsekern.nn") for module in dense.modules())
        torch.testing.assert_close(dense(x), model(x), rtol=1e-3, atol=1e-4)
    groups = [m.groups for m in dense.modules() if isinstance(m, nn.Conv2d)]
    assert groups == [m.groups for m in model.modules() if isinstance(m, nn.Conv2d)] or max(groups, default=1) == 1
    assert to_dense(dense).state_dict().keys() == dense.state_dict().keys()


def test_there_and_back_again():
    model = small_net().eval()
    x = torch.randn(2, 4, 6, 6)
    sparse = always(model, SMALL_PLAN)
    dense = to_dense(sparse)
    assert dense.state_dict().keys() == model.state_dict().keys() and not hasattr(dense, "report")
    torch.testing.assert_close(dense(x), sparse(x))
    again = always(dense, {"0": Stochastic(source="mask", granularity="spatial"), "3": Groups(4), "7": FanIn(source="mask")})
    for key, value in sparse.state_dict().items():
        assert torch.equal(value, again.state_dict()[key]), key
    assert to_dense(sparse, inplace=True) is sparse and type(sparse[0]) is nn.Conv2d


class Block(nn.Module):
    def __init__(self):
        super().__init__()
        self.a, self.b = nn.Conv2d(4, 4, 3, padding=1), nn.Conv2d(4, 4, 3, padding=1)

    def forward(self, x):
        return torch.relu(self.b(torch.relu(self.a(x))) + x)


def test_a_graph_of_optimize_has_no_way_back(monkeypatch):
    monkeypatch.setattr(sys.modules[optimize.__module__], "race", lambda calls, *_: {name: float(name != "optimized") for name in calls})
    fast = optimize(Block().eval(), torch.randn(2, 4, 6, 6), rounds=1)
    assert fast.report.chosen == "optimized" and len(fast.report.summed) == 1
    for made in (fast, copy.deepcopy(fast), nn.Sequential(pickle.loads(pickle.dumps(fast)))):
        with pytest.raises(ValueError, match=r"to_dense: model must be as it was before optimize\(\); got one that holds a graph"):
            to_dense(made)


def test_what_optimize_made_has_no_way_back():
    model = nn.Sequential()
    model.part = Contiguous(nn.Identity())
    with pytest.raises(ValueError, match=r"to_dense: model must be as it was before optimize\(\); got one that holds Contiguous"):
        to_dense(model)


def test_a_resnet_becomes_a_root_network():
    """torchvision's shape of ResNet-50, with fewer blocks: the groups of Deep Roots' plan."""
    options = {"blocks": (1, 1, 1, 1), "stride_in": "3x3", "stem_bias": False, "classes": 10}
    model = create_model("resnet50", conv=nn.Conv2d, **options).eval()
    groups = group_plan("root", 16, levels=4)
    x = torch.randn(1, 3, 64, 64)
    plan = {f"layer{stage}.*.conv2": Groups(each) for stage, each in enumerate(groups, start=1)}
    root = always(model, plan, example_input=x)
    assert [getattr(root, f"layer{stage}")[0].conv2.groups for stage in (1, 2, 3, 4)] == [16, 8, 4, 2]
    twin = create_model("resnet50_root_16", **options).eval()
    twin.load_state_dict(root.state_dict())
    with torch.no_grad():
        torch.testing.assert_close(root(x), twin(x), rtol=1e-3, atol=1e-4)
        torch.testing.assert_close(to_dense(root)(x), root(x), rtol=1e-3, atol=1e-4)
    assert root.report.error < 1e-3 and all(0 < line.error < 1 for line in root.report.layers)


# ---- what torch does with a model


def test_compile_and_export():
    x = torch.randn(4, 4, 6, 6)
    sparse = always(small_net().eval(), SMALL_PLAN, example_input=x)
    compiled = torch.compile(sparse, backend="aot_eager", fullgraph=True)
    torch.testing.assert_close(compiled(x), sparse(x))
    with pytest.raises(ValueError, match=r"as it is before torch.compile, .* or DistributedDataParallel; got OptimizedModule"):
        always(compiled)
    exported = torch.export.export(sparse, (x,)).module()
    torch.testing.assert_close(exported(x), sparse(x))


def test_copies_files_and_other_modules():
    safetensors = pytest.importorskip("safetensors.torch")
    x = torch.randn(2, 4, 6, 6)
    sparse = always(small_net().eval(), SMALL_PLAN, example_input=x)
    file = io.BytesIO()
    torch.save(sparse, file)
    file.seek(0)
    fresh = always(small_net().eval(), sparse.report.plan)
    assert not torch.equal(fresh(x), sparse(x))
    fresh.load_state_dict(safetensors.load(safetensors.save(sparse.state_dict())))
    for other in (copy.deepcopy(sparse), pickle.loads(pickle.dumps(sparse)), torch.load(file, weights_only=False), fresh):
        assert torch.equal(other(x), sparse(x))
        assert other.report.swapped == sparse.report.swapped
    parametrize.register_parametrization(sparse[7], "weight", nn.Identity())
    assert torch.equal(sparse(x), fresh(x))
    torch.testing.assert_close(to_dense(sparse)(x), fresh(x))


def test_autocast():
    x = torch.randn(2, 4, 6, 6)
    with torch.autocast("cpu", torch.bfloat16):
        sparse = always(small_net().eval(), SMALL_PLAN, example_input=x)
        out, dense = sparse(x), to_dense(sparse)(x)
    assert sparse.report.swapped == ["0", "3", "7"] and out.dtype == torch.bfloat16
    torch.testing.assert_close(out, dense, rtol=0.1, atol=0.05)
    assert all(p.dtype == torch.float32 for p in sparse.parameters())


@pytest.mark.skipif(not distributed.is_gloo_available(), reason="torch was built without gloo")
def test_distributed_data_parallel(tmp_path):
    distributed.init_process_group("gloo", init_method=f"file://{tmp_path / 'store'}", rank=0, world_size=1)
    try:
        x = torch.randn(4, 4, 6, 6)
        sparse = always(small_net(), SMALL_PLAN, example_input=x)
        wrapped = nn.parallel.DistributedDataParallel(copy.deepcopy(sparse))
        optimizer = torch.optim.AdamW(wrapped.parameters(), lr=1e-2)
        losses = []
        for _ in range(4):
            optimizer.zero_grad()
            loss = F.cross_entropy(wrapped(x), torch.arange(4))
            loss.backward()
            optimizer.step()
            losses.append(loss.item())
        assert losses[-1] < losses[0] and not torch.equal(wrapped.module[7].weight, sparse[7].weight)
        assert type(wrapped.module[0]) is StochasticConv2d
        with pytest.raises(ValueError, match="got DistributedDataParallel"):
            always(wrapped)
    finally:
        distributed.destroy_process_group()


def test_buffers_that_a_model_puts_in_the_place_of_others():
    class Counting(nn.Module):
        def __init__(self):
            super().__init__()
            self.linear = nn.Linear(16, 8)
            self.register_buffer("calls", torch.zeros(()))

        def forward(self, x):
            self.calls = self.calls + 1
            return self.linear(x)

    model = Counting()
    before = model.calls
    convert(model, FanIn(density=0.5), policy="always", example_input=torch.randn(2, 16), inplace=True)
    assert model.calls is before and model.calls == 0


@pytest.mark.parametrize("inplace", [False, True])
def test_a_mask_of_zeros_is_left(inplace: bool):
    model = nn.Sequential(nn.Conv2d(4, 8, 3), nn.ReLU())
    nn.init.zeros_(model[0].weight)
    found = convert(model, Stochastic(source="mask"), policy="always", example_input=torch.randn(1, 4, 6, 6), inplace=inplace)
    assert type(found[0]) is nn.Conv2d
    assert "Stochastic: layer must be one that keeps a weight; got a mask of zeros" in str(found.report)
