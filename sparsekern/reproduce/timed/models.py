"""``sparsekern bench models``: the papers' networks against their best dense twins, forward and training, small batch and large.

The rows, the twins and the clock are those of the timed tables; here they stand in one table with what is compared in how many ways:

    ours            over the best dense (torch's layouts and prepacked weights, torch's fastest poolings)
    like for like   over the dense twin with our kernels too
    poolings        over the best dense with torch's poolings on both sides, and with ours on both
    stack           the convolutions alone, each on the input it met, one after the other
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

from sparsekern.reproduce.paper import paper_rows
from sparsekern.reproduce.timed.caption import caption
from sparsekern.reproduce.timed.report import points, result_json
from sparsekern.reproduce.timed.run import make_images
from sparsekern.reproduce.timed.runner import Progress, Result, Row, Runner
from sparsekern.reproduce.timed.tables import TIMED_TABLES, TimedTable
from sparsekern.reproduce.timed.variants import PaperRow, Variant, timed_rows

if TYPE_CHECKING:
    from rich.table import Table

MODES = ("fwd", "fwd_bwd")
MODELS = {  # table -> (models, batches)
    "deep-roots/nin": (("nin_root_2", "nin_root_4", "nin_root_8", "nin_root_16"), (1, 64)),
    "deep-roots/resnet50": (("resnet50_root_16", "resnet50_root_32", "resnet50_root_64"), (1, 32)),
    "deep-roots/googlenet": (("googlenet_root_4", "googlenet_root_8", "googlenet_root_16"), (1, 32)),
    "deep-roots/alexnet": (("alexnet_groups_2", "alexnet_groups_4"), (1, 32)),
    "sis/cifar10": (("sis_cifar10_1", "sis_cifar10_2"), (1, 64)),
    "sis/svhn": (("sis_svhn_3",), (1, 64)),
    "patterns/densities": (("mnist_conv_2cl(fan_out=(16, 10))", "morse_cl(fan_out=(128, 8))"), (1, 256)),
}
#: Timed beside the papers' rows: Morse code at 12.5 % of both junctions (figure 3 (a) draws it).
ADDED = {"patterns/densities": (Variant("morse_cl", (("fan_out", (128, 8)),)),)}
QUICK, FULL = (4.0, 5), (20.0, 31)  # seconds per row, rounds at most
KEPT = ("dense", "flop_reduction", "stack_flop_reduction", "rounds", "ms_per_image", "speedup", "served")  # of a timed table's row


@dataclass(frozen=True)
class ModelCase:
    """The models of one table, which share their dense twin, at one batch and in one mode."""

    table: TimedTable
    rows: tuple[PaperRow, ...]
    batch: int
    mode: str

    @property
    def ids(self) -> list[str]:
        return [case_id(row, self.batch, self.mode) for row in self.rows]


def case_id(row: PaperRow, batch: int, mode: str) -> str:
    """``models/nin_root_16/n64 fwd``."""
    return f"models/{row.variant.name}/n{batch} {mode}"


def select(match: str = "", batches: Sequence[int] = (), modes: Sequence[str] = ()) -> list[ModelCase]:
    """The cases whose id contains all words of ``match``; a training step takes each table's largest batch unless ``batches`` says.

    Raises:
        ValueError: ``bench: mode must be fwd or fwd_bwd; got bwd``

    Example:
        >>> [case.ids for case in select("nin_root_16 fwd", batches=(8,), modes=("fwd",))]
        [['models/nin_root_16/n8 fwd']]
    """
    found = []
    for mode in modes or MODES:
        if mode not in MODES:
            raise ValueError(f"bench: mode must be fwd or fwd_bwd; got {mode}")
        for name, (models, usual) in MODELS.items():
            table = replace(TIMED_TABLES[name], batches=usual, batch_note="one image, and about what a server collects")
            known = timed_rows(paper_rows(table.paper)) + [PaperRow(added.name, added, {}) for added in ADDED.get(name, ())]
            rows = [row for row in known if row.variant.name in models]
            for batch in batches or (usual if mode == "fwd" else usual[-1:]):
                chosen = tuple(row for row in rows if all(word in case_id(row, batch, mode) for word in match.split()))
                found += [ModelCase(table, chosen, batch, mode)] if chosen else []
    return found


def measure(case: ModelCase, *, threads: int = 1, quick: bool = False, progress: Progress = lambda doing, fraction: None) -> Result:
    """Check and time a case.

    Raises:
        WrongResult: a competitor does not compute what it should.
    """
    images, images_name = make_images(None, case.batch)
    name = images_name({row.variant.input_shape for row in case.rows})
    seconds, max_rounds = QUICK if quick else FULL
    budget = seconds * len(case.rows), max_rounds
    return Runner(case.table, images, name, case.batch, threads, *budget, mode=case.mode, poolings=True, progress=progress).run(case.rows)


# ---- what was measured


def models_table(case: ModelCase, result: Result) -> Table:
    """Times per image and speedups over the best dense; bold where ours is at least the FLOP reduction."""
    from rich import box
    from rich.table import Table

    title = _title(case, result)
    table = Table(title=title, title_justify="left", title_style="bold", box=box.SIMPLE_HEAD, pad_edge=False, padding=(0, 1, 0, 0))
    table.add_column("model", no_wrap=True)
    heads = ["FLOPs\n÷", "dense best\nms", "ours\nms", "ours\n×", "p20..p80", "torch's\nlayers ×", "like for\nlike ×"]
    if case.mode == "fwd":
        heads += ["torch's\npooling ×", "our\npooling ×", "stack\nFLOPs ÷", "stack\nours ×", "stack like\nfor like ×"]
    for head in heads:
        table.add_column(head, justify="right", no_wrap=True)
    for row in result.rows:
        table.add_row(*_cells(case, result, row))
    return table


def _title(case: ModelCase, result: Result) -> str:
    what = "inference" if case.mode == "fwd" else "training step"
    return f"{case.table.title}: {what}, batch {case.batch}, {result.clock} ms per image, × over the best dense twin"


def _cells(case: ModelCase, result: Result, row: Row) -> Iterator[str]:
    ours = row.speedup("model", "ours")
    yield row.of.variant.name
    yield f"{row.flop_reduction:.2f}"
    for role in ("dense", "ours"):
        best = row.best("model", role)
        yield "–" if best is None else f"{best.median_us / 1e3 / result.batch:.3f}"
    middle = _middle(ours)
    yield f"[bold]{middle}[/]" if ours is not None and ours[1] >= row.flop_reduction else middle
    yield "–" if ours is None else f"{ours[0]:.2f}..{ours[2]:.2f}"
    yield _middle(row.speedup("model", case.table.sparse_role))
    yield _middle(row.speedup("model", "ours", "ours_dense"))
    if case.mode == "fwd":
        alike = row.like_pooling()
        yield from (_middle(alike.get(whose)) for whose in ("torch's", "our"))
        yield f"{row.stack_reduction:.2f}"
        yield from (_middle(row.speedup("stack", "ours", rival)) for rival in ("dense", "ours_dense"))


def _middle(speedup: tuple[float, float, float] | None) -> str:
    return "–" if speedup is None else f"{speedup[1]:.2f}"


def model_rows(case: ModelCase, result: Result) -> list[dict]:
    """One plain dict per model: what the timed table's file says of it, and which case it is."""
    document = result_json(result)
    shared = {key: document[key] for key in ("table", "images", "batch", "threads", "dtype", "clock", "cpu_over_wall")}
    rows = []
    for row, said in zip(result.rows, document["rows"], strict=True):
        alike = {f"ours over dense, {whose} pooling": [round(v, 4) for v in s] for whose, s in row.like_pooling().items()}
        said["speedup"]["model"] |= alike
        kept = {key: said[key] for key in KEPT}
        if case.mode != "fwd":
            del kept["stack_flop_reduction"], kept["speedup"]["stack"], kept["ms_per_image"]["stack"]
        rows.append({"case": case_id(row.of, case.batch, case.mode), "model": row.of.variant.name, "mode": case.mode, **shared, **kept})
    return rows


def write_lines(path: str | Path, measured: Iterable[tuple[ModelCase, Result]]) -> None:
    """Rows as JSON lines, each machine's card before the rows that were taken on it."""
    lines, machine = [], None
    for case, result in measured:
        if result.machine != machine:
            machine = result.machine
            lines.append(json.dumps({"machine": machine}))
        lines += [json.dumps(row) for row in model_rows(case, result)]
    Path(path).write_text("\n".join(lines) + "\n", encoding="utf-8")


def draw(path: str | Path, measured: Sequence[tuple[ModelCase, Result]]) -> list[Path]:
    """Realised speedup against FLOP reduction: a picture of all models for each mode, of batch 1 and of larger ones.

    Raises:
        ModuleNotFoundError: ``plot_speedups: matplotlib must be installed: pip install sparsekern[plots]``
    """
    from sparsekern.reproduce.timed.plot import plot_speedups

    pages: dict[str, list[tuple[ModelCase, Result]]] = {}
    for case, result in measured:
        size = "one image" if case.batch == 1 else "batches"
        pages.setdefault(f"{'inference' if case.mode == 'fwd' else 'training'}, {size}", []).append((case, result))
    drawn = []
    for page, found in pages.items():
        file = Path(path) if len(pages) == 1 else Path(path).with_stem(f"{Path(path).stem}_{page.replace(', ', '_').replace(' ', '_')}")
        many = [point for case, result in found for point in points(result, named=True)]
        title = f"The papers' networks in {page}: " + ", ".join(dict.fromkeys(f"{c.table.name} {c.batch}" for c, _ in found))
        plot_speedups(many, file, title=title, caption=caption(found[0][1])[-1:], role="layers")
        drawn.append(file)
    return drawn
