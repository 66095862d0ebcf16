"""What ``sparsekern reproduce NAME`` can run: one function per table, each with the same arguments."""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path


@dataclass
class Arguments:
    """What a table needs to know; any object with these attributes will do."""

    images: Path | None = None  # CIFAR-10 folder, archive or batch file; None: patches of photographs
    batch: int = 1
    threads: int = 1
    out: Path = Path("reproduced")  # folder for the plot and the JSON file
    quick: bool = False  # few rounds: shows the way, measures roughly
    json: Path | None = None  # where the numbers go; None: into ``out``


TABLES: dict[str, Callable[[Arguments], int]] = {}  # name -> run, which returns the exit status of the process


def register_table(name: str) -> Callable:
    def register(run: Callable[[Arguments], int]) -> Callable[[Arguments], int]:
        TABLES[name] = run
        return run

    return register


@register_table("deep-roots/nin")
def deep_roots_nin(args: Arguments) -> int:
    """Network in Network, 13 variants: exact counts, measured times, realised speedup beside FLOP reduction."""
    from rich.console import Console
    from rich.progress import BarColumn, Progress, TaskProgressColumn, TextColumn, TimeElapsedColumn

    from sparsekern.reproduce.deep_roots import run_nin
    from sparsekern.reproduce.plot import plot_speedups
    from sparsekern.reproduce.report import nin_json, nin_points
    from sparsekern.reproduce.table import caption, nin_tables

    if args.batch < 1 or args.threads < 1:
        name, got = ("batch", args.batch) if args.batch < 1 else ("threads", args.threads)
        raise ValueError(f"reproduce: {name} must be at least 1; got {got}")
    images, images_name = _images(args.images, args.batch)
    out = Path(args.out)
    out.mkdir(parents=True, exist_ok=True)
    console = Console(highlight=False)
    # The tables need 100 columns; a pipe has no width of its own.
    console.width = max(100, console.width) if console.is_terminal or "COLUMNS" in os.environ else 160
    columns = TextColumn("{task.description:<44}"), BarColumn(), TaskProgressColumn(), TimeElapsedColumn()
    with Progress(*columns, console=console, transient=True) as bar:
        task = bar.add_task("deep-roots/nin", total=1.0)
        result = run_nin(
            images,
            images_name=images_name,
            threads_count=args.threads,
            seconds_budget=20.0 if args.quick else 100.0,
            max_rounds=5 if args.quick else 31,
            progress=lambda doing, fraction: bar.update(task, description=doing, completed=fraction),
        )
    for part in nin_tables(result, console.width):
        console.print(part)
    plot_path, json_path = out / "deep_roots_nin.png", Path(args.json or out / "deep_roots_nin.json")
    json_path.parent.mkdir(parents=True, exist_ok=True)
    json_path.write_text(json.dumps(nin_json(result), indent=1) + "\n", encoding="utf-8")
    title = "Network in Network in filter groups (Deep Roots, tables 2 and 8)"
    try:
        plot_speedups(nin_points(result), plot_path, title=title, caption=caption(result))
        console.print(f"\nplot: {plot_path}", soft_wrap=True)
    except ModuleNotFoundError as missing:
        console.print(f"\nno plot: {missing}", soft_wrap=True)
    console.print(f"numbers: {json_path} ({result.seconds:.0f} s)", soft_wrap=True)
    return 0


def _images(path: Path | None, batch: int):
    """``[batch, 3, 32, 32]`` and what they are."""
    from sparsekern.data import cifar10_images, sample_patches
    from sparsekern.data.sample_images import PHOTOGRAPHS

    if path is not None:
        return cifar10_images(path, batch), f"the first {batch} of CIFAR-10, {Path(path).name}"
    return sample_patches(batch), f"{batch} patch{'es' * (batch > 1)} of 32x32 of {PHOTOGRAPHS}"
