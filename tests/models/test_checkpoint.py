"""Weights of dense twins in our models: what is kept, sliced, folded and left, and that the function is the checkpoint's."""

import json
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from sparsekern.models.alexnet import AlexNet
from sparsekern.models.checkpoint import load_dense
from sparsekern.models.googlenet import GoogLeNet
from sparsekern.models.nin import NiN
from sparsekern.models.resnet import ResNet
from sparsekern.nn import GroupedConv2d

SHAPES = json.loads((Path(__file__).parent / "dense_twins.json").read_text())
SHALLOW = (1, 2, 1, 1)


def dense_twin(name: str, blocks: tuple[int, ...] | None = None, dtype: torch.dtype = torch.float32) -> dict[str, torch.Tensor]:
    """A state dict with torchvision's names and shapes and random values, of the first ``blocks`` of each stage."""
    generator = torch.Generator().manual_seed(0)
    state = {}
    for layer, entries in SHAPES[name].items():
        if blocks and layer.startswith("layer") and int(layer.split(".")[1]) >= blocks[int(layer[5]) - 1]:
            continue
        for entry, shape in entries.items():
            if entry == "num_batches_tracked":
                value = torch.tensor(7)
            elif len(shape) > 1:
                fan_in = torch.Size(shape[1:]).numel()
                value = torch.randn(shape, generator=generator, dtype=dtype) / fan_in**0.5
            elif entry == "running_var" or (entry == "weight" and "running_var" in entries):
                value = 0.5 + torch.rand(shape, generator=generator, dtype=dtype)
            else:
                value = 0.1 * torch.randn(shape, generator=generator, dtype=dtype)
            state[f"{layer}.{entry}"] = value
    return state


def resnet_v1_5(state: dict[str, torch.Tensor], x: torch.Tensor, groups: tuple[int, ...] = (1, 1, 1, 1)) -> torch.Tensor:
    """torchvision's ResNet of bottlenecks in eval mode, written out: the stride is on the 3x3."""

    def norm(name, x):
        return F.batch_norm(x, *(state[f"{name}.{entry}"] for entry in ("running_mean", "running_var", "weight", "bias")))

    def conv(name, x, stride=1, groups=1):
        weight = state[f"{name}.weight"]
        if groups > 1:  # a dense convolution with zeros between the groups
            filters, channels = weight.shape[:2]
            same = torch.arange(filters)[:, None] // (filters // groups) == torch.arange(channels) // (channels // groups)
            weight = weight * same[:, :, None, None]
        return F.conv2d(x, weight, stride=stride, padding=weight.shape[-1] // 2)

    x = F.max_pool2d(norm("bn1", conv("conv1", x, 2)).relu(), 3, 2, 1)
    for stage in range(4):
        index = 0
        while f"layer{stage + 1}.{index}.conv1.weight" in state:
            block = f"layer{stage + 1}.{index}"
            stride = 2 if stage and not index else 1
            y = norm(f"{block}.bn1", conv(f"{block}.conv1", x)).relu()
            y = norm(f"{block}.bn2", conv(f"{block}.conv2", y, stride, groups[stage])).relu()
            y = norm(f"{block}.bn3", conv(f"{block}.conv3", y))
            if f"{block}.downsample.0.weight" in state:
                x = norm(f"{block}.downsample.1", conv(f"{block}.downsample.0", x, stride))
            x, index = (x + y).relu(), index + 1
    return F.linear(x.mean((2, 3)), state["fc.weight"], state["fc.bias"])


def off_by(out: torch.Tensor, expected: torch.Tensor) -> float:
    return ((out - expected).abs().max() / expected.abs().max()).item()


@pytest.mark.parametrize("batch_norm", [True, False])
@pytest.mark.parametrize("groups", [(1, 1, 1, 1), (64, 32, 16, 8)])
def test_resnet50_computes_what_torchvisions_weights_say(groups, batch_norm):
    state = dense_twin("resnet50", SHALLOW, torch.float64)
    model = ResNet(groups, blocks=SHALLOW, stride_in="3x3", batch_norm=batch_norm, conv=nn.Conv2d).double().eval()
    report = load_dense(model, state)
    x = torch.randn(2, 3, 64, 64, dtype=torch.float64)
    assert off_by(model(x), resnet_v1_5(state, x, groups)) < 1e-12
    assert report.left == {} and report.missing == ({"conv1.bias": "set to zero"} if batch_norm else {})
    assert len(report.sliced) == (0 if groups[0] == 1 else sum(SHALLOW))
    assert len(report.folded) == (0 if batch_norm else len([name for name in state if name.endswith("running_mean")]))
    # every other place of the stride is another function
    caffe = ResNet(groups, blocks=SHALLOW, batch_norm=batch_norm, conv=nn.Conv2d).double().eval()
    load_dense(caffe, state)
    assert off_by(caffe(x), resnet_v1_5(state, x, groups)) > 1e-3


def test_all_of_resnet50_finds_a_place_and_root_64_slices_its_sixteen_3x3():
    state = dense_twin("resnet50")
    with torch.device("meta"):
        dense, root = ResNet(), ResNet((64, 32, 16, 8))
    assert len(state) == 320
    dense, root = dense.to_empty(device="cpu"), root.to_empty(device="cpu")
    report = load_dense(dense, state)
    assert (len(report.kept), report.sliced, report.left, report.missing) == (320, {}, {}, {"conv1.bias": "set to zero"})
    assert dense.conv1.bias.count_nonzero() == 0 and torch.equal(dense.layer4[2].conv3.weight, state["layer4.2.conv3.weight"])
    report = load_dense(root, state)
    assert len(report.kept) == 304 and len(report.sliced) == 16 and report.left == {}
    assert report.sliced["layer2.3.conv2.weight"] == "[128, 128, 3, 3] inside 32 groups, [128, 4, 3, 3]"
    weight, ours = state["layer2.3.conv2.weight"], root.layer2[3].conv2.weight
    for group in range(32):
        assert torch.equal(ours[4 * group : 4 * group + 4], weight[4 * group : 4 * group + 4, 4 * group : 4 * group + 4])


def test_googlenet_leaves_the_5x5_that_torchvision_has_as_3x3_and_the_fc_of_the_papers_geometry():
    state = dense_twin("googlenet")
    model = GoogLeNet((8, 4, 2, 1))
    before = {name: value.clone() for name, value in model.state_dict().items()}
    report = load_dense(model, state)
    fives = [f"inception{name}.branch3.1" for name in ("3a", "3b", "4a", "4b", "4c", "4d", "4e", "5a", "5b")]
    norms = [f"{name}.bn.{entry}" for name in fives for entry in ("weight", "bias", "running_mean", "running_var")]
    heads = [f"{name}.{entry}" for name in ("aux1.fc1", "aux2.fc1", "fc") for entry in ("weight", "bias")]
    assert sorted(report.left) == sorted([f"{name}.conv.weight" for name in fives] + norms + heads)
    assert report.left["inception4c.branch3.1.conv.weight"] == "weight is [64, 24, 3, 3], the model's [64, 12, 5, 5]"
    assert report.left["inception4c.branch3.1.bn.bias"] == "its convolution was left"
    assert report.left["fc.bias"] == "weight is [1000, 1024], the model's [1000, 4096]"
    assert sorted(report.missing) == sorted([f"{name}.conv.{entry}" for name in fives for entry in ("weight", "bias")] + heads)
    assert len(report.sliced) == 8 and len(report.folded) == 59 - 9
    for name, value in model.state_dict().items():  # what was left is as it was, a layer is never filled in part
        assert torch.equal(value, before[name]) == (name in report.missing), name


def test_batch_norm_without_scale_takes_the_statistics_and_only_those_of_convolutions_that_fit():
    state = dense_twin("googlenet")
    model = GoogLeNet(batch_norm=True, conv=nn.Conv2d)
    report = load_dense(model, state)
    assert torch.equal(model.conv3.bn.running_var, state["conv3.bn.running_var"]) and model.conv3.conv.bias.count_nonzero() == 0
    assert report.left["conv3.bn.bias"] == "the model's layer has no such entry"
    # the 5x5's statistics are those of torchvision's 3x3: left with it
    assert torch.equal(model.inception4a.branch3[1].bn.running_mean, torch.zeros(48))
    assert report.left["inception4a.branch3.1.bn.running_mean"] == "its convolution was left"
    assert report.missing["inception4a.branch3.1.bn.running_mean"] == "keeps its value"


def test_googlenet_folds_with_the_eps_of_torchvision():
    state = dense_twin("googlenet", dtype=torch.float64)
    model = GoogLeNet(conv=nn.Conv2d).double()
    load_dense(model, state)
    gamma = state["conv1.bn.weight"] / torch.sqrt(state["conv1.bn.running_var"] + 1e-3)
    assert torch.allclose(model.conv1.conv.weight, state["conv1.conv.weight"] * gamma[:, None, None, None], rtol=1e-14, atol=0)
    assert torch.allclose(model.conv1.conv.bias, state["conv1.bn.bias"] - state["conv1.bn.running_mean"] * gamma, rtol=1e-13, atol=1e-15)


def test_alexnet_takes_torchvisions_classifier_and_leaves_its_narrower_convolutions():
    state = dense_twin("alexnet")
    model = AlexNet(2, conv=nn.Conv2d)
    report = load_dense(model, state)
    assert sorted(report.kept) == sorted(f"fc{i}.{entry}" for i in (6, 7, 8) for entry in ("weight", "bias"))
    assert sorted(report.left) == sorted(f"features.{i}.{entry}" for i in (0, 3, 6, 8, 10) for entry in ("weight", "bias"))
    assert report.left["features.3.weight"] == "weight is [192, 64, 5, 5], the model's [256, 48, 5, 5]"
    assert torch.equal(model.fc7.weight, state["classifier.4.weight"])
    text = str(report)
    assert "left    weight, bias of features.0: weight is [64, 3, 11, 11], the model's [96, 3, 11, 11]" in text
    assert "missing weight, bias of conv1, conv2, conv3 and 2 more: keeps its value" in text


def trained(model: nn.Module) -> nn.Module:
    """``model`` with statistics, scales and biases of a network that saw data."""
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.running_mean.normal_(0, 0.1)
            module.running_var.uniform_(0.5, 1.5)
            if module.affine:
                nn.init.uniform_(module.weight, 0.5, 1.5)
                nn.init.normal_(module.bias, 0, 0.1)
        elif isinstance(module, (nn.Conv2d, nn.Linear)) and module.bias is not None:
            nn.init.normal_(module.bias, 0, 0.1)
    return model.eval()


RESNET200 = {"blocks": (1, 2, 1, 1), "preactivation": True, "stride_in": "3x3", "stem_bias": False}


@pytest.mark.parametrize(
    ("build", "options", "size"),
    [
        (NiN, {"groups": (8, 4)}, 32),
        (ResNet, {"groups": (8, 4, 2, 1), "blocks": SHALLOW}, 64),
        (ResNet, {"groups": (8, 4, 2, 1)} | RESNET200, 64),
        (GoogLeNet, {"groups": (8, 4, 2, 1), "input_shape": (3, 64, 64)}, 64),
    ],
    ids=["nin", "resnet50", "resnet200", "googlenet"],
)
def test_a_net_trained_with_batch_norm_becomes_the_one_that_runs_without(build, options, size):
    source = trained(build(**options, batch_norm=True, conv=nn.Conv2d).double())
    folded = build(**options, batch_norm=False, conv=nn.Conv2d).double().eval()
    report = load_dense(folded, source.state_dict())
    assert report.left == {} and report.missing == {} and report.sliced == {}
    x = torch.randn(2, 3, size, size, dtype=torch.float64)
    assert off_by(folded(x), source(x)) < 1e-12


def test_unequal_groups_take_their_parts_of_a_dense_layer():
    sizes = [(16, 64), (16, 64), (64, 64)]
    dense, model = NiN(conv=nn.Conv2d).double(), NiN(groups=(sizes, 8)).double()
    report = load_dense(model, dense.state_dict())
    assert report.left == {} and report.missing == {}
    assert {name for name in report.sliced if name.startswith("conv2a")} == {
        f"conv2a.parts.{i}.{entry}" for i in (0, 1) for entry in ("weight", "bias")
    }
    weight = torch.zeros_like(dense.conv2a.weight)
    for out, first, inputs in ((0, 0, 16), (64, 16, 16), (128, 32, 64)):
        weight[out : out + 64, first : first + inputs] = dense.conv2a.weight[out : out + 64, first : first + inputs]
    x = torch.randn(1, 96, 9, 9, dtype=torch.float64)
    assert off_by(model.conv2a(x), F.conv2d(x, weight, dense.conv2a.bias, padding=2).relu()) < 1e-13


def test_wrappers_and_prefixes_of_training_scripts_are_taken_off():
    state = NiN(conv=nn.Conv2d).state_dict()
    for wrapped in (
        {"state_dict": {f"module.{name}": value for name, value in state.items()}, "epoch": 90},
        {"model": {f"module._orig_mod.{name}": value for name, value in state.items()}},
        {"model": {"state_dict": state, "epoch": 90}},
        {**state, "optimizer": "sgd"},
    ):
        model = NiN(conv=nn.Conv2d)
        report = load_dense(model, wrapped)
        assert len(report.kept) == len(state) and report.missing == {}
        assert report.left == ({"optimizer": "not a tensor but str"} if "optimizer" in wrapped else {})
        assert all(torch.equal(value, state[name]) for name, value in model.state_dict().items())


class Rooted(nn.Module):
    """Parameters of the model itself, and a child called as a wrapper is."""

    def __init__(self):
        super().__init__()
        self.cls_token, self.bias = nn.Parameter(torch.randn(1, 1, 4)), nn.Parameter(torch.randn(3))
        self.module = nn.Linear(4, 4)


def test_parameters_of_the_model_itself_and_a_child_called_module_are_found():
    source, model = Rooted(), Rooted()
    report = load_dense(model, source.state_dict())
    assert report.kept == ["cls_token", "bias", "module.weight", "module.bias"] and report.left == report.missing == {}
    assert all(torch.equal(value, source.state_dict()[name]) for name, value in model.state_dict().items())
    state = source.state_dict() | {"pos_embed": torch.ones(2)}
    report = load_dense(model, {name: value for name, value in state.items() if name != "cls_token"})
    assert report.left == {"pos_embed": "the model's layer has no such entry"} and report.missing == {"cls_token": "keeps its value"}
    assert "missing cls_token of the model itself: keeps its value" in str(report)
    with pytest.raises(ValueError, match=r"got 1 entries of which none fits \(first 'head'\)$"):
        load_dense(model, {"head": torch.ones(3)})
    conv, grouped = nn.Conv2d(8, 8, 3), nn.Conv2d(8, 8, 3, groups=2)
    assert list(load_dense(grouped, conv.state_dict()).sliced) == ["weight"]
    parts = GroupedConv2d(8, 8, 3, groups=2, group_sizes=[(2, 4), (6, 4)])
    assert load_dense(parts, conv.state_dict()).missing == {} and torch.equal(parts.bias_dense(), conv.bias)


class Preactivated(nn.Module):
    """The batch-norm stands before the convolution of its name."""

    def __init__(self, batch_norm):
        super().__init__()
        if batch_norm is not None:
            self.bn1 = nn.BatchNorm2d(4) if batch_norm else nn.Identity()
        self.conv1, self.fc, self.act = nn.Conv2d(4, 4, 3), nn.Linear(4, 4), nn.PReLU()


def test_a_batch_norm_is_folded_only_into_a_convolution_that_stands_before_it():
    source = trained(Preactivated(True))
    for placeholder in (False, None):  # what stands first says the model or, where it lacks the one, the checkpoint
        model = Preactivated(placeholder)
        report = load_dense(model, source.state_dict())
        assert report.folded == {} and torch.equal(model.conv1.weight, source.conv1.weight)
        assert report.left["bn1.weight"] == "the model has no such layer"
    source = NiN(batch_norm=True).state_dict()
    by_type = sorted(source, key=lambda name: (source[name].is_floating_point(), name))  # an order that says nothing of the layers'
    report = load_dense(NiN(batch_norm=False), {name: source[name] for name in by_type})
    assert report.folded and report.left == {}


def test_what_stands_under_two_names_is_filled_by_either():
    shared, linear = nn.Linear(3, 3), nn.Linear(3, 3)
    model = nn.Sequential(shared, nn.ReLU(), shared)
    for names in (("0.weight", "0.bias"), ("2.weight", "2.bias"), ("0.weight", "0.bias", "2.weight")):
        nn.init.zeros_(shared.bias)
        report = load_dense(model, {name: linear.state_dict()[name[2:]] for name in names})
        assert report.missing == {} and torch.equal(shared.weight, linear.weight) and torch.equal(shared.bias, linear.bias)
    report = load_dense(model, {"2.weight": linear.weight})
    assert set(report.missing.values()) == {"set to zero"} and shared.bias.count_nonzero() == 0


def test_a_bias_for_which_parts_have_no_place_is_in_the_report():
    model = nn.Sequential(GroupedConv2d(8, 8, 3, groups=2, bias=False, group_sizes=[(2, 4), (6, 4)]))
    report = load_dense(model, nn.Sequential(nn.Conv2d(8, 8, 3)).state_dict())
    assert report.left == {"0.bias": "the model's layer has no such entry"} and len(report.sliced) == 2


def test_models_and_checkpoints_without_values_are_answered_in_words():
    state = nn.Sequential(nn.Linear(2, 2)).state_dict()
    rule = "run once before, for all of its layers to have a shape"
    with pytest.raises(ValueError, match=rf"^load_dense: model must be {rule}; got '0.weight' without$"):
        load_dense(nn.Sequential(nn.LazyLinear(2)), state)
    on_meta = {f"module.{name}": value.to("meta") for name, value in state.items()}
    with pytest.raises(ValueError, match=r"^load_dense: state_dict must be of tensors with values; got 'module.0.weight' on meta$"):
        load_dense(nn.Sequential(nn.Linear(2, 2)), on_meta)


def test_what_cannot_be_loaded_changes_nothing():
    model = NiN(conv=nn.Conv2d)
    before = {name: value.clone() for name, value in model.state_dict().items()}
    with pytest.raises(ValueError, match="load_dense: state_dict must be a mapping of names to tensors; got list"):
        load_dense(model, [torch.ones(3)])
    with pytest.raises(ValueError, match=r"must hold layers of NiN; got 2 entries of which none fits \(first 'encoder.weight'\)"):
        load_dense(model, {"encoder.weight": torch.ones(3, 3), "conv1a.weight": torch.ones(192, 4, 5, 5)})
    with pytest.raises(ValueError, match=r"got 0 entries of which none fits$"):
        load_dense(model, {})
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())


def test_a_batch_norm_that_does_not_fit_is_left_with_its_convolution():
    trained = nn.Sequential(nn.Conv2d(2, 4, 1), nn.BatchNorm2d(4), nn.Conv2d(4, 3, 1)).state_dict()
    for wrong in ({"1.running_var": torch.ones(3)}, {"1.running_var": None}, {"0.bias": torch.ones(2, 4)}):
        model = nn.Sequential(nn.Conv2d(2, 4, 1), nn.Identity(), nn.Conv2d(4, 3, 1))
        report = load_dense(model, trained | wrong)
        assert (
            report.left["0.weight"] == "it and its batch-norm do not fit together" and report.left["1.weight"] == "its convolution was left"
        )
        assert report.kept == ["2.weight", "2.bias"] and list(report.missing) == ["0.weight", "0.bias"]


def test_more_groups_than_ours_and_groups_that_do_not_divide_ours_are_left():
    dense, grouped = NiN(conv=nn.Conv2d), NiN((4, 4), conv=nn.Conv2d)
    assert load_dense(dense, grouped.state_dict()).left["conv2a.weight"] == "weight is [192, 24, 5, 5], the model's [192, 96, 5, 5]"
    six = NiN((6, 6), conv=nn.Conv2d)
    assert "conv2a.bias" in load_dense(six, grouped.state_dict()).left
    assert "conv2a.weight" in load_dense(NiN((12, 12), conv=nn.Conv2d), grouped.state_dict()).sliced  # 12 is a multiple of 4
