"""Time a table, print it, draw it and write its numbers: the measured half of ``sparsekern reproduce``."""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Iterable, Sequence
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from sparsekern.console import open_console
from sparsekern.reproduce.paper import paper_rows
from sparsekern.reproduce.timed.caption import caption
from sparsekern.reproduce.timed.report import points, result_json
from sparsekern.reproduce.timed.runner import Result, Runner
from sparsekern.reproduce.timed.table import measured_tables, natural_width, part_titles
from sparsekern.reproduce.timed.tables import TIMED_TABLES, TimedTable
from sparsekern.reproduce.timed.variants import PaperRow, timed_rows

if TYPE_CHECKING:
    from rich.console import Console, RenderableType

QUICK: dict[str, Any] = {"seconds_budget": 20.0, "max_rounds": 5}
FULL: dict[str, Any] = {"seconds_budget": 100.0, "max_rounds": 31}
PATCH_SIZES = range(1, 428)  # the photographs are 427 pixels high


def run_measured(table_name: str, args: Any, cells: Iterable = ()) -> int:
    """Time every row of a table whose model exists, batch by batch; print tables, write a plot and a JSON file for each.

    Args:
        table_name: one of ``TIMED_TABLES``: ``"deep-roots/nin"``.
        args: :class:`~sparsekern.reproduce.tables.Arguments` or anything like it. ``batches`` None is the table's own list; with
            ``quick`` its first.
        cells: the table's counted cells, kept in the JSON file beside the times.

    Returns:
        the exit status of the process.

    Raises:
        ValueError: ``reproduce: table must be one of deep-roots/nin, ...; got 'deep-roots/vgg'``;
            ``reproduce: batch must be at least 1; got 0``; ``reproduce: threads must be at least 1; got 0``
        WrongResult: a layer or a model is not within its float32 bound of float64.
    """
    if table_name not in TIMED_TABLES:
        raise ValueError(f"reproduce: table must be one of {', '.join(TIMED_TABLES)}; got {table_name!r}")
    table = TIMED_TABLES[table_name]
    batches = _batches(table, args)
    for name, value in [*(("batch", batch) for batch in batches), ("threads", args.threads)]:
        if value < 1:
            raise ValueError(f"reproduce: {name} must be at least 1; got {value}")
    rows = timed_rows(paper_rows(table.paper))
    out, cells = Path(args.out), list(cells)
    out.mkdir(parents=True, exist_ok=True)
    console = _console()
    for batch in batches:
        result = _run(table, rows, batch, args, console)
        for part in measured_tables(result, console.width, layers=bool(getattr(args, "layers", False))):
            _print_whole(console, part)
        suffix = "" if batch == batches[0] else f"_batch{batch}"
        numbers = Path(args.json or out / f"{table.paper}.json")
        _write(result, numbers.with_stem(numbers.stem + suffix), out / f"{table.paper}{suffix}.png", cells, console)
    return 0


def _batches(table: TimedTable, args: Any) -> tuple[int, ...]:
    given = getattr(args, "batches", None) or getattr(args, "batch", None)
    if given:
        return (given,) if isinstance(given, int) else tuple(given)
    if given == 0:
        return (0,)  # an error, not the default
    return table.batches[:1] if args.quick else table.batches


def _console() -> Console:
    console = open_console()
    if not console.is_terminal and "COLUMNS" not in os.environ:
        console.width = 180  # a pipe has no width of its own: room for both parts side by side
    return console


def _print_whole(console: Console, part: RenderableType) -> None:
    """Print without cutting a table's cells: where the terminal is too narrow its lines run over."""
    from rich.table import Table

    narrow = console.width
    if isinstance(part, Table):
        console.width = max(narrow, natural_width(part))
    console.print(part, crop=False)
    console.width = narrow


def _run(table: TimedTable, rows: Sequence[PaperRow], batch: int, args: Any, console: Console) -> Result:
    from rich.progress import BarColumn, Progress, TaskProgressColumn, TextColumn, TimeElapsedColumn

    images, images_name = make_images(getattr(args, "images", None), batch)
    columns = TextColumn("{task.description:<44}"), BarColumn(), TaskProgressColumn(), TimeElapsedColumn()
    with Progress(*columns, console=console, transient=True) as bar:
        task = bar.add_task(f"{table.name}, batch {batch}", total=1.0)
        runner = Runner(
            table,
            images,
            images_name({row.variant.input_shape for row in rows}),
            batch,
            args.threads,
            **(QUICK if args.quick else FULL),
            progress=lambda doing, fraction: bar.update(task, description=doing, completed=fraction),
        )
        return runner.run(rows)


def _write(result: Result, numbers: Path, plot: Path, cells: Sequence, console: Console) -> None:
    from sparsekern.reproduce.timed.plot import plot_speedups

    numbers.parent.mkdir(parents=True, exist_ok=True)
    numbers.write_text(json.dumps(result_json(result, cells), indent=1) + "\n", encoding="utf-8")
    found = points(result)
    if found:
        try:
            of = part_titles(result)[result.table.plotted]
            plot_speedups(found, plot, title=result.table.title, caption=caption(result), role=result.table.sparse_role, of=of)
            console.print(f"\nplot: {plot}", soft_wrap=True)
        except ModuleNotFoundError as missing:
            console.print(f"\nno plot: {missing}", soft_wrap=True)
    console.print(f"numbers: {numbers} ({result.seconds:.0f} s)", soft_wrap=True)


def make_images(path: Path | None, batch: int) -> tuple[Callable[[tuple[int, ...]], Tensor], Callable[[set], str]]:
    """``(images, images_name)``: the input of any shape, and what the inputs of some shapes are, in words.

    CIFAR-10 from ``path`` for 3x32x32, else patches of photographs for three channels, else normal noise.
    """
    from sparsekern.data import cifar10_images, sample_patches
    from sparsekern.data.sample_images import PHOTOGRAPHS

    def kind(shape: tuple[int, ...]) -> str:
        if path is not None and shape == (3, 32, 32):
            return f"the first {batch} of CIFAR-10, {Path(path).name}"
        if _is_patch(shape):
            return f"{batch} patch{'es' * (batch > 1)} of {shape[1]}x{shape[2]} of {PHOTOGRAPHS}"
        return f"normal noise [{batch}, {', '.join(map(str, shape))}]"

    @cache
    def images(shape: tuple[int, ...]) -> Tensor:
        if path is not None and shape == (3, 32, 32):
            return cifar10_images(path, batch)
        if _is_patch(shape):
            return sample_patches(batch, size=shape[1])
        return torch.randn(batch, *shape, generator=torch.Generator().manual_seed(0))

    return images, lambda shapes: "; ".join(dict.fromkeys(kind(shape) for shape in sorted(shapes)))


def _is_patch(shape: tuple[int, ...]) -> bool:
    return len(shape) == 3 and shape[0] == 3 and shape[1] == shape[2] and shape[1] in PATCH_SIZES
