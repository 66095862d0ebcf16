"""Every argument of every public function, given everything that it is not: a sentence of ours or a result, whoever serves.

``CALLS`` holds one good call of each function; each argument in turn is replaced by each of ``WRONG``. What comes back is a result (1.5 is
a good slope and no good size) or ``<op>: <arg> must be <rule>; got <value>``, the same from every provider; never an exception of torch's
or Python's, a hang, or the end of the process. The exact sentences of single calls are in bad_calls.txt and in the cards of the ops.
"""

from __future__ import annotations

import copy
import importlib.util
import math
import re
import resource
import signal
import tempfile
from collections import defaultdict
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn
from trust.tally import tally

import sparsekern
from sparsekern import data, models, ops, topology, train
from sparsekern import nn as layers
from sparsekern.models import registry
from sparsekern.models.simplenet import SIZES
from sparsekern.ops import backends

WRONG: dict[str, Any] = {
    "None": None, "'x'": "x", "-1": -1, "0": 0, "1.5": 1.5, "nan": math.nan, "inf": math.inf, "2**31": 2**31, "2**63 - 1": 2**63 - 1,
    "2**70": 2**70, "-2**70": -(2**70), "[]": [], "(1, 2, 3)": (1, 2, 3), "(0, 0)": (0, 0), "('a', 'b')": ("a", "b"),
    "(1, 2**40)": (1, 2**40), "{}": {}, "object()": object(), "[None]": [None], "a type": int, "ones(3)": torch.ones(3),
    "integers": torch.ones(2, 2, dtype=torch.int64), "no memory": torch.ones(2, 8, device="meta"), "sparse": torch.eye(4).to_sparse(),
    "nothing": torch.empty(0), "6 dimensions": torch.ones(2, 1, 1, 1, 1, 1), "int32": torch.tensor([[-5, 2**31 - 1, 0]], dtype=torch.int32),
}  # fmt: skip
#: Handed to torch, or to the model, as they are, which answer for them.
TORCHS = ("device", "generator", "example_input")
SECONDS, MEMORY = 20, 8 << 30
SENTENCE = re.compile(r"[A-Za-z_0-9]+: [^;]+ must [^;]+(; got |; it does|$)", re.DOTALL)


def _operators() -> dict[str, tuple[Callable, dict]]:
    ones = torch.ones
    layer = layers.SparseLinear(8, 4, fan_in=2, seed=0)
    masked = layers.StochasticConv2d(4, 6, 3, density=0.5, seed=0, granularity="synapse")
    x, image, index, weight, filters = ones(2, 8), ones(1, 4, 5, 5), layer.index, ones(4, 2), ones(8, 2, 3, 3)
    window = dict(stride=1, padding=0, dilation=1)
    grouped = dict(x=image, weight=filters, bias=ones(8), **window, groups=2, activation="none", shortcut=None)
    root = dict(x=image, weight1=filters, bias1=ones(8), weight2=ones(3, 8, 1, 1), bias2=ones(3), weight3=ones(2, 3, 1, 1), bias3=ones(2))
    root |= dict(**window, groups=2, activation="relu", last_activation=None, shortcut=None)
    found = {
        "sparse_linear": (ops.sparse_linear, dict(x=x, weight=weight, index=index, bias=ones(4), plan=None)),
        "grouped_conv2d": (ops.grouped_conv2d, grouped),
        "grouped_conv2d with an end": (ops.grouped_conv2d, grouped | dict(shortcut=ones(1, 8, 3, 3), activation="relu")),
        "grouped_conv2d, differentiated": (ops.grouped_conv2d, grouped | dict(x=image.clone().requires_grad_())),
        "grouped_mm": (ops.grouped_mm, dict(a=ones(3, 2, 4), b=ones(3, 4, 5), offsets=None)),
        "grouped_mm, ragged": (ops.grouped_mm, dict(a=ones(5, 4), b=ones(3, 4, 5), offsets=torch.tensor([1, 3, 5], dtype=torch.int32))),
        "explain_grouped_mm": (ops.explain_grouped_mm, dict(a=ones(3, 2, 4), b=ones(3, 4, 5))),
        "pool2d": (ops.pool2d, dict(x=image, kernel_size=3, stride=1, padding=1, ceil_mode=False, pooling="max", count_include_pad=True)),
        "root_conv2d": (ops.root_conv2d, root),
        "sparse_conv2d": (ops.sparse_conv2d, dict(x=image, weight=masked.weight.detach(), indptr=masked.indptr, index=masked.index,
                                                  kernel_size=3, bias=ones(6), **window, plan=None)),
        "plan_sparse_conv2d": (ops.plan_sparse_conv2d, dict(indptr=masked.indptr, index=masked.index, channels=4, kernel_size=(3, 3),
                                                            block=(1, 1, 1))),
        "plan_sparse_linear": (ops.plan_sparse_linear, dict(index=index, in_features=8, block_size=(1, 1))),
        "serves": (backends.serves, dict(op="sparse_linear", device="cpu")),
    }  # fmt: skip
    if not backends.has_kernels("cpu"):
        return found
    pack, packed, last = ops.pack_sparse_linear(weight, index, 8), ops.pack_grouped_conv2d(filters, groups=2), ones(3, 8, 1, 1)
    rooted = {k.replace("weight", "packed"): v for k, v in root.items()} | dict(out_channels=3, kernel_size=3, packed3=None, bias3=None)
    return found | {
        "pack_sparse_linear": (ops.pack_sparse_linear, dict(weight=weight, index=index, in_features=8)),
        "sparse_linear_packed": (ops.sparse_linear_packed, dict(x=x, packed=pack, bias=ones(4), out_features=4, kept=8)),
        "pack_grouped_conv2d": (ops.pack_grouped_conv2d, dict(weight=filters, **window, groups=2, images=(1, 28, 28))),
        "grouped_conv2d_packed": (ops.grouped_conv2d_packed, dict(x=image, packed=packed, bias=ones(8), out_channels=8, kernel_size=3,
                                                                  **window, groups=2, activation="none", shortcut=None)),
        "root_conv2d_packed": (ops.root_conv2d_packed, rooted | dict(packed1=packed, packed2=ops.pack_grouped_conv2d(last))),
        "joined_conv2d_packed": (ops.joined_conv2d_packed, dict(xs=[image], packed=[packed], biases=[ones(8)], activation="none",
                                                                windows=[3, 3, 1, 1, 0, 0, 1, 1, 2])),
    }  # fmt: skip


def _layers() -> dict[str, tuple[Callable, dict]]:
    x, image, ones = torch.ones(2, 8), torch.ones(1, 4, 5, 5), torch.ones
    linear, grouped = layers.SparseLinear(8, 4, fan_in=2, seed=0), layers.GroupedConv2d(4, 8, 3, groups=2)
    masked = layers.StochasticConv2d(4, 6, 3, density=0.5, seed=0, granularity="synapse")
    run = lambda make, x: lambda **k: make(**k)(x)  # noqa: E731
    ready = lambda layer, do: lambda **k: getattr(copy.deepcopy(layer), do)(**k)  # noqa: E731
    conv = dict(conv=nn.Conv2d(4, 6, 3))
    window = dict(kernel_size=3, stride=1, padding=0, dilation=1, groups=2, bias=True, padding_mode="zeros", device=None, dtype=None)
    both = dict(in_channels=4, out_channels=8, **window, activation="none")
    sizes = both | dict(groups=1, group_sizes=[(1, 3), (3, 5)])
    stochastic = dict(in_channels=4, out_channels=6, **window, granularity="spatial", share=1, count="exact", seed=0)
    sparse = dict(in_features=8, out_features=4, bias=True, block_size=1, seed=0, device=None, dtype=None)
    root = dict(in_channels=4, mid_channels=8, out_channels=6, kernel_size=3, groups=2, stride=1, padding=0, bias=True, activation="relu")
    found = {
        "SparseLinear": (run(layers.SparseLinear, x), sparse | dict(fan_in=2, topology=None)),
        "SparseLinear, density": (run(layers.SparseLinear, x), sparse | dict(density=0.5, topology="balanced")),
        "SparseLinear, fan_out": (run(layers.SparseLinear, x), sparse | dict(fan_out=1, topology="spread")),
        "SparseLinear, clash-free": (run(layers.SparseLinear, x), sparse | dict(density=0.5, topology="clash_free")),
        "SparseLinear()": (linear, dict(input=x)),
        "SparseLinear.set_topology": (ready(linear, "set_topology"), dict(index=linear.index.clone(), weight=ones(4, 2))),
        "SparseLinear.draw_topology": (linear.draw_topology, dict(seed=0)),
        "SparseLinear.explain": (linear.explain, dict(rows=1)),
        "SparseLinear.from_dense": (layers.SparseLinear.from_dense, dict(linear=nn.Linear(8, 4), index=None, density=0.5, seed=0)),
        "GroupedConv2d": (run(layers.GroupedConv2d, image), both),
        "GroupedConv2d, unequal": (run(layers.GroupedConv2d, image), sizes),
        "UnequalGroupedConv2d": (run(layers.UnequalGroupedConv2d, image), sizes),
        "GroupedConv2d()": (grouped, dict(input=image, shortcut=ones(1, 8, 3, 3), activation="none")),
        "GroupedConv2d.add_relu": (grouped.add_relu, dict(x=image, shortcut=ones(1, 8, 3, 3))),
        "GroupedConv2d.explain": (grouped.explain, dict(x_shape=(1, 4, 5, 5), channels_last=False)),
        "GroupedConv2d.from_dense": (layers.GroupedConv2d.from_dense, dict(conv=nn.Conv2d(4, 8, 3), groups=2, activation="none")),
        "RootModule": (run(layers.RootModule, image), root),
        "RootModule()": (layers.RootModule(4, 8, 6, 3, groups=2), dict(input=image)),
        "SpatialBasisConv2d": (run(layers.SpatialBasisConv2d, image), both),
        "SpatialBasisConv2d()": (layers.SpatialBasisConv2d(4, 8, 3), dict(input=image)),
        "SpatialBasisConv2d.from_dense": (layers.SpatialBasisConv2d.from_dense, dict(conv=nn.Conv2d(4, 8, 3), groups=2)),
        "StochasticConv2d": (run(layers.StochasticConv2d, image), stochastic | dict(density=0.5)),
        "StochasticConv2d, fan_in": (run(layers.StochasticConv2d, image), stochastic | dict(fan_in=6, granularity="synapse")),
        "StochasticConv2d()": (masked, dict(input=image)),
        "StochasticConv2d.set_topology": (ready(masked, "set_topology"), dict(indptr=masked.indptr.clone(), index=masked.index.clone(),
                                                                              weight=masked.weight.detach())),
        "StochasticConv2d.draw_topology": (masked.draw_topology, dict(seed=0)),
        "StochasticConv2d.explain": (masked.explain, dict(x_shape=(1, 4, 5, 5), channels_last=False)),
        "StochasticConv2d.from_dense": (layers.StochasticConv2d.from_dense, conv | dict(tables=None, density=0.5)),
        "StochasticConv2d.from_dense, mask": (layers.StochasticConv2d.from_dense, conv | dict(mask=ones(6, 4, 3, 3).bool())),
    }  # fmt: skip
    if not backends.has_kernels("cpu"):
        return found
    shortcut = dict(input=image, shortcut=ones(1, 8, 3, 3), activation="none")
    return found | {
        "GroupedConv2d.pack": (ready(grouped, "pack"), dict(x_shape=(1, 4, 5, 5))),
        "GroupedConv2d(), packed": (copy.deepcopy(grouped).requires_grad_(False).pack(), shortcut),
        "SparseLinear(), packed": (copy.deepcopy(linear).requires_grad_(False).pack(), dict(input=x)),
    }


def _topologies() -> dict[str, tuple[Callable, dict]]:
    table, sizes = topology.fan_in_table(8, 4, 2, seed=0), dict(in_blocks=8, out_blocks=4, fan_in=2)
    matrix, network = torch.ones(4, 4, dtype=torch.bool), dict(junctions=[table], sizes=[8])
    arguments: dict[str, dict] = {
        "adjacency": dict(junction=table, size=8), "balanced_counts": dict(inputs=64, fan_in=8),
        "balanced_table": dict(inputs=64, outputs=4, fan_in=8, seed=0), "fan_in_table": sizes | dict(seed=0),
        "clash_free_table": dict(in_blocks=8, out_blocks=8, fan_in=2, parallel=4, order="free", dither=False, seed=0),
        "connected_units": network, "path_counts": network, "window_matrices": network, "scatter": network | dict(measure="present"),
        "conv_mask": dict(rows=4, positions=9, density=0.5, count="exact", seed=0), "mask_tables": dict(keep=matrix),
        "equal_budget_splits": dict(layers=[16, 16, 16], density=0.5), "plan_densities": dict(layers=[16, 16, 16], density=0.5, growth=3.0),
        "expand_blocks": dict(table=table, block_size=2), "fan_in_step": dict(in_blocks=8, out_blocks=4), "local_table": sizes,
        "grouped_table": dict(in_blocks=8, out_blocks=4, groups=2), "regular_table": sizes | dict(seed=0),
        "rewire": dict(table=table, in_blocks=8, fraction=0.5, seed=0),
        "spread_table": dict(in_shape=(4, 4), out_shape=(2, 2), fan_in=4, seed=0),
        "window_adjacency": dict(adjacent=matrix, windows=2, side="left"), "window_counts": dict(shape=(4, 4), fan=4),
        "window_ids": dict(shape=(4, 4), counts=(2, 2)), "neurons": dict(shape=(4, 4)),
    }  # fmt: skip
    made = {"Connected", "DensityPlan", "Scatter", "Windows", "check_whole"}  # results, and what checks
    assert arguments.keys() == set(topology.__all__) - made
    fan_in = (topology.conv_mask, dict(rows=4, positions=9, fan_in=2))
    return {name: (getattr(topology, name), given) for name, given in arguments.items()} | {"conv_mask, fan_in": fan_in}


def _conversions() -> dict[str, tuple[Callable, dict]]:
    dense = lambda: nn.Sequential(nn.Linear(16, 8), nn.ReLU(), nn.Linear(8, 4))  # noqa: E731
    convolution = lambda: nn.Sequential(nn.Conv2d(4, 4, 3))  # noqa: E731
    always = dict(policy="always", example_input=None, training=None, rounds=1, seed=0, inplace=False)
    rule = lambda kind, model: lambda **k: sparsekern.convert(model(), {"0": kind(**k)}, policy="always")  # noqa: E731
    return {
        "convert": (sparsekern.convert, dict(model=dense(), plan={"0": sparsekern.FanIn(0.5)}, **always)),
        "to_dense": (sparsekern.to_dense, dict(model=layers.SparseLinear(8, 4, fan_in=2), keep_groups=False, inplace=False)),
        "FanIn": (rule(sparsekern.FanIn, dense), dict(density=0.5, block_size=1, topology="random", source="magnitude")),
        "FanIn, fan_in": (rule(sparsekern.FanIn, dense), dict(fan_in=4)),
        "Groups": (rule(sparsekern.Groups, convolution), dict(groups=2, source="dense")),
        "Root": (rule(sparsekern.Root, convolution), dict(groups=2, source="dense")),
        "Stochastic": (rule(sparsekern.Stochastic, convolution), dict(density=0.5, granularity=None, share=1, count="exact",
                                                                      source="magnitude")),
    }  # fmt: skip


def _files() -> dict[str, tuple[Callable, dict]]:
    folder = Path(tempfile.mkdtemp())
    state, path = {"a": torch.ones(2)}, folder / "a.safetensors"
    checkpoints = {}
    if importlib.util.find_spec("safetensors"):
        train.save_checkpoint(path, state, {"a": 1})
        checkpoints = {
            "save_checkpoint": (train.save_checkpoint, dict(path=path, tensors=state, facts={"a": 1})),
            "load_checkpoint": (train.load_checkpoint, dict(path=path)),
        }
    samples = data.Samples(torch.ones(4, 3, 4, 4), torch.zeros(4, dtype=torch.int64), 2)
    split = dict(path=folder, split="train")
    morse = dict(
        split="train", variant="baseline", per_class=1, noise_sd=0.0, leading=None, dot=(1, 3), dash=None, space=(1, 3), dilation=1
    )
    return {
        **checkpoints,
        "Optimiser": (train.Optimiser, dict(name="sgd", lr=0.1, options={})),
        "Schedule": (lambda **k: train.Schedule(**k).rate(0.1, 1, 10), dict(milestones=(0.5,), gamma=0.1, decay=0.0)),
        "get_recipe": (train.get_recipe, dict(name=train.list_recipes()[0].name)),
        "DrawnAnew": (train.DrawnAnew, dict(every=1)),
        "MovingConnections": (train.MovingConnections, dict(every=100, alpha=0.3, until=0.75)),
        "Samples": (data.Samples, dict(x=samples.x, y=samples.y, classes=2)),
        "Samples.first_per_class": (samples.first_per_class, dict(n=1)),
        **{name: (getattr(data, name), split) for name in ("cifar10", "cifar100", "mnist", "svhn", "ImageNet")},
        "cifar10_images": (data.cifar10_images, dict(path=folder, n=1)),
        "unpack_imagenet": (data.unpack_imagenet, dict(archives=folder, path=folder / "out", split="val")),
        "digits": (data.digits, dict(split="train", seed=0)),
        "sample_patches": (data.sample_patches, dict(n=1, size=8, seed=0)),
        "morse": (data.morse, morse | dict(space=(1, 3), style="gray", max_flip=0, seed=0)),
    }


def _models() -> dict[str, tuple[Callable, dict]]:
    def light(build: Callable) -> Callable:  # without its weights, in milliseconds
        def built(**options: Any) -> object:
            with torch.device("meta"):
                return build(**options)

        return built

    def registered(**options: Any) -> None:
        known = dict(registry._CARDS)
        try:
            models.register_model(**options)
        finally:
            registry._CARDS.clear()
            registry._CARDS.update(known)

    small = nn.Sequential(nn.Conv2d(4, 4, 3), nn.Conv2d(4, 4, 1), nn.Linear(8, 4))
    layer = nn.Sequential(nn.Conv2d(2, 4, 1))
    trained = nn.Sequential(nn.Conv2d(2, 4, 1), nn.BatchNorm2d(4)).state_dict()
    entries = {name.replace(".", "_"): value for name, value in trained.items()}
    ones, usual = (1, 1, 1, 1), dict(classes=2, conv=None, generator=None)
    normed = usual | dict(batch_norm=True)
    fractions = dict(conv=0.5, pointwise=0.5, linear=0.5, layers={"0": 0.5})
    masks = dict(granularity="spatial", count="exact", seed=0)
    connected = dict(name="net", neurons=(8, 4), input_shape=(8,), fan_out=(2, 2), bias=True, topology="regular", seed=0)
    convolved = connected | dict(convs=(4, "P"), kernel_size=3, input_shape=(1, 4, 4), batch_norm=True, conv=None, generator=None)
    return {
        "group_plan": (models.group_plan, dict(topology="tree", degree=2, levels=2, channels=[(4, 4), (8, 8)])),
        "group_plan, levels": (models.group_plan, dict(topology="root", degree=2, levels=2)),
        "create_model": (light(models.create_model), dict(name="nin")),
        "model_card": (models.model_card, dict(name="nin")),
        "list_models": (models.list_models, dict(pattern="nin*")),
        "register_model": (registered, dict(builder=models.NiN, name="new", paper="a paper", input_shape=(3, 32, 32),
                                            reduced_shape=(3, 16, 16), dense="nin")),
        "form_stochastic": (lambda model, **k: models.form_stochastic(copy.deepcopy(model), **k),
                            dict(model=small, **fractions, **masks, pointwise_granularity="synapse")),
        "load_dense": (models.load_dense, dict(model=layer, state_dict=trained, eps=1e-5)),
        "load_dense, entries": (lambda **k: models.load_dense(layer, {name.replace("_", ".", 1): v for name, v in k.items()}), entries),
        "NiN": (models.NiN, dict(groups=(2, 2), widths=((4, 4, 4), (4, 4, 4), (4, 4)), bias=True, **normed)),
        "AlexNet": (light(models.AlexNet), dict(groups=(2, 2, 2), input_shape=(3, 67, 67), dropout=0.5, **usual)),
        "GoogLeNet": (light(models.GoogLeNet), dict(groups=(2, (2, 2), 1, 1), aux="training", input_shape=(3, 32, 32), dropout=0.4,
                                                    aux_dropout=0.7, **normed)),
        "ResNet": (light(models.ResNet), dict(groups=ones, blocks=ones, preactivation=False, stride_in="1x1", stem_bias=True, **normed)),
        "SimpleNet": (light(models.SimpleNet), dict(sizes=SIZES["simplenet_310k"], input_shape=(3, 20, 20), dropout=0.1, **normed)),
        "PatternNet": (models.PatternNet, connected),
        "PatternNet, convolutions": (models.PatternNet, convolved),
        "sis_nin": (light(models.sis_nin), dict(t_p=0.25, t_c=0.25, **masks, bias=False, **normed)),
        "optimize": (lambda model, example_input, **k: sparsekern.optimize(model, example_input, **k),
                     dict(model=nn.Linear(8, 4), example_input=torch.ones(1, 8), pack=False, pool=False, rounds=1, progress=None)),
    }  # fmt: skip


CALLS = {
    "operators": _operators, "layers": _layers, "topologies": _topologies, "conversions": _conversions, "files": _files,
    "models": _models,
}  # fmt: skip


def answer(call: Callable, arguments: dict) -> str | None:
    """None for a result, else what was said; memory that cannot be had is an answer for sizes that are only large."""
    try:
        call(**arguments)
    except (ValueError, TypeError, FileNotFoundError, ModuleNotFoundError) as error:
        return f"{type(error).__name__}: {error}"
    except (RuntimeError, MemoryError) as error:
        if isinstance(error, MemoryError) or re.search(
            "can't allocate memory|aoti_torch_empty_strided|could not create a memory", str(error)
        ):
            return None
        raise
    return None


def too_long(*_: Any) -> None:
    raise TimeoutError(f"of {SECONDS} seconds")


@pytest.fixture
def little_memory_and_time(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)  # where a file is called x
    used = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
    before, handler = resource.getrlimit(resource.RLIMIT_AS), signal.signal(signal.SIGALRM, too_long)
    resource.setrlimit(resource.RLIMIT_AS, (used + MEMORY, before[1]))
    yield
    resource.setrlimit(resource.RLIMIT_AS, before)
    signal.signal(signal.SIGALRM, handler)


@pytest.mark.usefixtures("little_memory_and_time")
@pytest.mark.parametrize("kind", CALLS)
def test_everything_that_an_argument_is_not(kind):
    given, tried, wrong = CALLS[kind](), 0, defaultdict(list)
    providers = ["reference", backends.providers()[-1]] if kind in ("operators", "layers") else [backends.providers()[-1]]
    for name, (call, good) in given.items():
        answer(call, good)
        for arg in (arg for arg in good if arg not in TORCHS):
            for what, value in WRONG.items():
                said = set()
                for provider in providers:
                    tried += 1
                    signal.alarm(SECONDS)
                    try:
                        with backends.use(provider):
                            found = answer(call, copy.copy(good) | {arg: value})
                        if found and not SENTENCE.match(found.partition(": ")[2]):
                            wrong[name, arg, found].append(what)
                        said.add(found)
                    except Exception as error:
                        wrong[name, arg, f"{type(error).__name__}: {error}"].append(what)
                    finally:
                        signal.alarm(0)
                if len(said) > 1:
                    wrong[name, arg, " and ".join(map(repr, said))].append(what)
    tally(f"wrong arguments, {kind}", tried)
    lines = [f"{name}({arg}={', '.join(whats)}): {found[:200]}" for (name, arg, found), whats in wrong.items()]
    assert not lines, f"{len(lines)}:\n" + "\n".join(lines)


# ---- what was found so, by name

FILTERS, IMAGE = torch.ones(8, 2, 3, 3), torch.arange(100.0).reshape(1, 4, 5, 5)


def convolutions() -> dict[str, Callable[..., torch.Tensor]]:
    masked = layers.StochasticConv2d(4, 6, 3, density=0.5, seed=0, granularity="synapse")
    tables = masked.weight.detach(), masked.indptr, masked.index
    found: dict[str, Callable[..., torch.Tensor]] = {
        "grouped_conv2d": lambda **window: ops.grouped_conv2d(IMAGE, FILTERS, groups=2, **window),
        "sparse_conv2d": lambda **window: ops.sparse_conv2d(IMAGE, *tables, 3, **window),
        "root_conv2d": lambda **window: ops.root_conv2d(IMAGE, FILTERS, None, torch.ones(3, 8, 1, 1), groups=2, **window),
    }
    if backends.has_kernels("cpu"):
        packed = ops.pack_grouped_conv2d(FILTERS, groups=2)
        found["grouped_conv2d_packed"] = lambda **window: ops.grouped_conv2d_packed(IMAGE, packed, None, 8, 3, groups=2, **window)
    return found


PROVIDERS = pytest.mark.parametrize("provider", ["reference", backends.providers()[-1]])


@PROVIDERS
@pytest.mark.parametrize("arg", ["stride", "padding", "dilation"])
def test_numbers_of_a_window_whose_sums_leave_64_bits(arg, provider):
    """They sent kernels far outside of the image: 2 * padding and dilation * (kernel - 1) came out small, or below 0."""
    for name, call in convolutions().items():
        for value in (2**31, 2**40, 2**62, 2**63 - 3, 2**63 - 1):
            with backends.use(provider), pytest.raises(ValueError) as raised:
                call(**{arg: value})
            assert str(raised.value) == f"{name}: {arg} must be below 2^31; got {(value, value)}"
    for value in (2**62, 2**63 - 1):
        with backends.use(provider), pytest.raises(ValueError, match=r"pool2d: padding must be 0 to half of the window \(3, 3\)"):
            ops.pool2d(IMAGE, 3, padding=value)


@PROVIDERS
def test_a_stride_beyond_the_image_is_one_window(provider):
    """Kernels made room for as many phases as the stride has; layers go ways of their own."""
    dense = "never" if backends.native and provider != "reference" else "auto"
    for name, call in convolutions().items():
        with backends.use(provider, dense=dense):
            for stride in (7, 2**20, 2**31 - 1, (2, 2**31 - 1)):
                rows = 2 if isinstance(stride, tuple) else 1
                torch.testing.assert_close(call(stride=stride), call()[:, :, : 2 * rows : 2, :1], msg=f"{name} {stride}")
    for layer in (layers.GroupedConv2d(4, 8, 3, 2**30, groups=2), layers.StochasticConv2d(4, 6, 3, 2**30, density=0.5, seed=0)):
        near = copy.deepcopy(layer)
        near.stride = (5, 5)
        for last in (torch.contiguous_format, torch.channels_last):
            with backends.use(provider, dense=dense):
                gradients = [torch.autograd.grad(each(IMAGE.to(memory_format=last)).sum(), each.weight)[0] for each in (layer, near)]
                with torch.no_grad():
                    torch.testing.assert_close(layer(IMAGE.to(memory_format=last)), near(IMAGE.to(memory_format=last)))
            torch.testing.assert_close(*gradients)


@pytest.mark.skipif(not backends.has_kernels("cpu"), reason="built without kernels")
def test_a_window_wider_than_the_images_it_is_packed_for():
    layer = layers.GroupedConv2d(4, 8, 3, dilation=20, groups=2).requires_grad_(False)
    x = torch.randn(1, 4, 45, 45)
    torch.testing.assert_close(copy.deepcopy(layer).pack()(x), layer(x))
