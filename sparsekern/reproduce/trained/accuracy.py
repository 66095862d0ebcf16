"""The accuracy columns of three papers' tables, trained on the user's files of CIFAR, MNIST, SVHN and ImageNet."""

from __future__ import annotations

from sparsekern.models.counts import known_counts
from sparsekern.reproduce.paper import paper_rows, paper_table
from sparsekern.reproduce.trained.experiment import Experiment, Point
from sparsekern.train import get_recipe

#: SimpleNet's nets: the row that prints their accuracies, and on which data; of 310k all but SVHN is of the net in the logs.
SIMPLENET = {
    "5m": ("simplenet/table2/Ours", ("cifar10", "cifar100", "mnist", "svhn")),
    "310k": ("simplenet/table6/310K", ("cifar10", "mnist", "svhn", "cifar100")),
    "460k": ("simplenet/table6/460K", ("cifar10", "cifar100")),
}
IMAGENET = {"deep_roots_resnet50": "ResNet-50", "deep_roots_resnet200": "ResNet-200", "deep_roots_googlenet": "GoogLeNet"}  # top-1
ALONE = {"5m_mnist": "99.75", "5m_svhn": "98.21"}  # tables 3 and 4, which print nothing else of the net


def _params(model: str) -> int:
    return known_counts()[model]["params"]


def _deep_roots_points(preset: str) -> list[Point]:
    points = []
    for row in paper_rows("deep_roots_nin"):
        facts = {"FLOPs 1e8": f"{row['flops'] / 1e8:.2f}", "parameters": f"{row['params']:,}"}
        printed = float(row["printed"]["accuracy"])
        recipe = get_recipe(f"deep-roots/{row['model']}")
        points.append(Point(row["row"], recipe, row["flops"] / 1e8, printed, panel="NiN, CIFAR-10", facts=facts))
    for table, net in IMAGENET.items():
        for row in paper_rows(table):
            flops, params = row.get("true_flops", row["flops"]), row.get("true_params", row["params"])
            facts = {"FLOPs 1e8": f"{flops / 1e8:.2f}", "parameters": f"{params:,}"}
            told = row["printed"]
            printed = float(told["top1"]) if "top1" in told else round(1 - float(told["top1_err"]), 4)
            recipe = get_recipe(f"deep-roots/{row['model']}")
            points.append(Point(f"{net} {row['row']}", recipe, flops / 1e8, printed, panel=f"{net}, ImageNet", facts=facts))
    return points


def _sis_points(preset: str) -> list[Point]:
    points = []
    for data in ("cifar10", "svhn"):
        for row in paper_rows(f"sis_{data}"):
            name = f"sis/nin_{data}" if row["model"] == "sis_nin" else f"sis/{row['model'].removeprefix('sis_')}"
            total = row["counts"]["total"]
            facts = {"synapses": f"{total:,}", "efficiency": row["printed"]["eff"]}
            label = f"{row['row']}, {'CIFAR-10' if data == 'cifar10' else 'SVHN'}"
            printed = float(row["printed"]["accuracy"])
            points.append(Point(label, get_recipe(name), total, printed, panel=label.partition(", ")[2], facts=facts))
    return points


def _simplenet_points(preset: str) -> list[Point]:
    points = []
    rows = {row["id"]: row for row in paper_rows("simplenet_archs")}
    for net, (row, data_sets) in SIMPLENET.items():
        for data in data_sets:
            name = f"{net}_{data}"
            percent = rows[row]["printed"].get(data) or ALONE[name]
            recipe = get_recipe(f"simplenet/{name}")
            params = _params(recipe.model)
            points.append(Point(name, recipe, params, round(float(percent) / 100, 4), panel=data, facts={"parameters": f"{params:,}"}))
    return points


DEEP_ROOTS = Experiment(
    "deep-roots/accuracy", "Networks in filter groups: accuracy (top-1) against FLOPs",
    "Deep Roots: Improving CNN Efficiency with Hierarchical Filter Groups, tables 2, 4, 5, 6 and 8", _deep_roots_points,
    "FLOPs x 10^8", split="test",
)  # fmt: skip
SIS = Experiment(
    "sis/accuracy", "StochasticNet in StochasticNet: accuracy against synapses",
    paper_table("sis_cifar10")["source"] + " and 2", _sis_points, "synapses", split="test", log_x=True,
)  # fmt: skip
SIMPLENET_NETS = Experiment(
    "simplenet/accuracy", "SimpleNet: accuracy of the full and the slim nets", "SimpleNet, tables 1 to 4 and 6", _simplenet_points,
    "parameters", split="test", log_x=True,
)  # fmt: skip
