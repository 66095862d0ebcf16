"""What is timed for each table: its batches, its roles, and what its stack is. The rows come from the tables' own data."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class TimedTable:
    """How a table is timed."""

    name: str  # as in ``sparsekern reproduce NAME``
    title: str
    batches: tuple[int, ...]
    batch_note: str  # where the batches come from
    sparse_role: str = "grouped"  # what torch makes of the variant: "grouped" convolutions, or dense weights with zeros, "masked"
    stack_of: str = "convolutions"  # or "connected layers"
    convention: str = "flops"  # of the FLOP reduction

    @property
    def plotted(self) -> str:
        """The part whose speedups are drawn: the whole model, unless the table is about some of its layers."""
        return "model" if self.stack_of == "convolutions" else "stack"

    @property
    def paper(self) -> str:
        """The name of the paper's data and of the result files: ``deep_roots_nin``."""
        return self.name.replace("-", "_").replace("/", "_")


_ROOTS = {"convention": "deep_roots"}
_MASKED = {"sparse_role": "masked"}

TIMED_TABLES = {
    table.name: table
    for table in (
        TimedTable(
            "deep-roots/nin",
            "Network in Network in filter groups (Deep Roots, tables 2 and 8)",
            (1, 32),
            "the paper names no batch for this table: 1 and 32 are ours",
            **_ROOTS,
        ),
        TimedTable(
            "deep-roots/resnet50", "ResNet-50 in filter groups (Deep Roots, table 4)", (1, 10), "1, and the paper's batch of 10", **_ROOTS
        ),
        TimedTable(
            "deep-roots/resnet200", "ResNet-200 in filter groups (Deep Roots, table 5)", (1,), "the paper times none of these", **_ROOTS
        ),
        TimedTable(
            "deep-roots/googlenet", "GoogLeNet in filter groups (Deep Roots, table 6)", (1, 32), "1, and the paper's batch of 32", **_ROOTS
        ),
        TimedTable(
            "deep-roots/alexnet",
            "AlexNet with 1, 2 and 4 groups (Deep Roots, figure 2)",
            (1, 10),
            "the paper names no batch for this network: 1 and 10 are ours",
            **_ROOTS,
        ),
        TimedTable("sis/cifar10", "StochasticNet in StochasticNet, CIFAR-10 (table 1)", (1, 32), "the paper times nothing", **_MASKED),
        TimedTable("sis/svhn", "StochasticNet in StochasticNet, SVHN (table 2)", (1, 32), "the paper times nothing", **_MASKED),
        TimedTable("simplenet/archs", "SimpleNet architectures (tables 1 and 6)", (1, 32), "1 and 32 are ours"),
        TimedTable("simplenet/flops", "SimpleNet, operations (appendix)", (1, 32), "1 and 32 are ours"),
        TimedTable(
            "patterns/densities",
            "Pre-defined sparse connected layers (Sparse connectivity patterns, table 1)",
            (1, 32),
            "the paper times nothing",
            stack_of="connected layers",
            **_MASKED,
        ),
        TimedTable(
            "patterns/savings",
            "Pre-defined sparse connected layers (Sparse connectivity patterns, table 2)",
            (1, 32),
            "the paper times nothing",
            stack_of="connected layers",
            **_MASKED,
        ),
    )
}
