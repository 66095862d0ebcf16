"""What ``sparsekern reproduce NAME`` can run: one function per table, each with the same arguments."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path


@dataclass
class Arguments:
    """What a table needs to know; any object with these attributes will do."""

    images: Path | None = None  # CIFAR-10 folder, archive or batch file; None: patches of photographs
    batches: tuple[int, ...] | None = None  # images per call; None: 1 and the paper's
    counts_only: bool = False  # printed cells and recounts, nothing timed
    layers: bool = False  # print the times of every layer of the largest variant
    threads: int = 1
    out: Path = Path("reproduced")  # folder for plots and JSON files
    quick: bool = False  # few rounds: shows the way, measures roughly
    json: Path | None = None  # where the numbers go; None: into ``out``
    # of the experiments, which train
    data: Path | None = None  # folder of the data sets' official files
    check: bool = True  # compare them with their official checksums
    preset: str = "reduced"  # minutes on one core; "full": the paper's size
    seeds: tuple[int, ...] | None = None  # None: 0, 1, 2
    epochs: int | None = None  # in place of the recipe's; nothing is judged then
    only: tuple[str, ...] | None = None  # labels, recipes or models; nothing is judged then


Run = Callable[[Arguments], int]  # returns the exit status of the process

TABLES: dict[str, Run] = {}

PAPER_TABLES = {
    "deep-roots/nin": "Deep Roots, tables 2 and 8: Network in Network, root, tree and column",
    "deep-roots/resnet50": "Deep Roots, table 4: ResNet-50",
    "deep-roots/resnet200": "Deep Roots, table 5: ResNet-200, as printed and true",
    "deep-roots/googlenet": "Deep Roots, table 6: GoogLeNet with auxiliary classifiers",
    "deep-roots/alexnet": "Deep Roots, figure 2: AlexNet with 1, 2 and 4 groups",
    "sis/cifar10": "StochasticNet in StochasticNet, table 1: synapses on CIFAR-10",
    "sis/svhn": "StochasticNet in StochasticNet, table 2: synapses on SVHN",
    "simplenet/archs": "SimpleNet, tables 1, 2 and 6: sizes",
    "simplenet/flops": "SimpleNet, appendix: operations of eleven networks",
    "patterns/densities": "Sparse connectivity patterns, table 1: densities of the junctions",
    "patterns/savings": "Sparse connectivity patterns, table 2: parameters and operations saved",
}

EXPERIMENTS = {
    "patterns/morse": "Sparse connectivity patterns, figure 3 (a): Morse code, accuracy against density",
    "patterns/junction_densities": "Sparse connectivity patterns, figure 3 (b, c): Morse code, how junctions share connections",
    "patterns/scatter": "Sparse connectivity patterns, section 3: Morse code, accuracy against scatter",
    "digits/density": "Digits of 8 x 8 pixels: accuracy against density, real images in seconds",
    "deep-roots/accuracy": "Deep Roots, tables 2, 4 to 6 and 8: accuracy of networks in groups (with CIFAR-10 or ImageNet)",
    "sis/accuracy": "StochasticNet in StochasticNet, tables 1 and 2: accuracy (with CIFAR-10 or SVHN)",
    "simplenet/accuracy": "SimpleNet, tables 1 to 4 and 6: accuracy (with CIFAR, MNIST or SVHN)",
}


def register_table(name: str) -> Callable[[Run], Run]:
    """Make a function the run of ``sparsekern reproduce NAME``; the first line of its docstring is what the list shows."""

    def register(run: Run) -> Run:
        TABLES[name] = run
        return run

    return register


def _register_paper_table(name: str, description: str) -> None:
    def run(args: Arguments) -> int:
        return reproduce_table(name, args)

    run.__doc__ = description
    register_table(name)(run)


for _name, _description in PAPER_TABLES.items():
    _register_paper_table(_name, _description)


def _register_experiment(name: str, description: str) -> None:
    def run(args: Arguments) -> int:
        from sparsekern.reproduce.trained.experiments import EXPERIMENTS as experiments
        from sparsekern.reproduce.trained.run import run_experiment

        return run_experiment(experiments[name], args)

    run.__doc__ = description
    register_table(name)(run)


for _name, _description in EXPERIMENTS.items():
    _register_experiment(_name, _description)


def reproduce_table(name: str, args: Arguments) -> int:
    """Recount and judge every cell of a table; unless ``args.counts_only``, time its networks too.

    Returns:
        0 if every cell has the status that the table's data expects and the timed part succeeded, else 1.
    """
    from sparsekern.reproduce.counted.run import all_ok, run_counted, show_tables

    if args.counts_only:
        return run_counted(name, [name], Path(args.out), args.json)
    from sparsekern.reproduce.timed.run import run_measured

    cells = show_tables([name])
    return max(run_measured(name, args, cells[name]), int(not all_ok(cells)))


@register_table("all")
def reproduce_all(args: Arguments) -> int:
    """Every table above but the experiments, which train, with one line each at the end"""
    from sparsekern.reproduce.counted.run import run_counted

    if args.counts_only:
        return run_counted("all", list(PAPER_TABLES), Path(args.out), args.json)
    if args.json is not None:
        raise ValueError(f"reproduce: json must be given for one table, or with counts only; got {args.json} for all")
    return max(reproduce_table(name, args) for name in PAPER_TABLES)
