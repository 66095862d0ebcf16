"""``sparsekern bench models``: whole networks against their dense twins, under one or both settings of malloc."""

from __future__ import annotations

import argparse
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

from sparsekern.cli.terms import UsageError, make_console, parse_numbers, parse_words

REFUSED = {"density": "", "dtype": "", "layout": "", "cold": False, "both": False, "core": None, "path": None}


def run_models(options: argparse.Namespace) -> int:
    """Time the chosen models, print a table for each case as it is done; an interrupt keeps what was measured."""
    from sparsekern.measure import allocator
    from sparsekern.reproduce.timed import models
    from sparsekern.reproduce.timed.gate import WrongResult

    for name, unset in REFUSED.items():
        if getattr(options, name) != unset:
            raise UsageError(f"bench models: --{name} must be left out: models run in float32, in every layout, as they come")
    settings = parse_words(options.allocator)
    if not settings or not set(settings) <= set(allocator.SETTINGS):
        raise UsageError(f"bench models: --allocator must be among {', '.join(allocator.SETTINGS)}; got {options.allocator!r}")
    threads = parse_numbers("--threads", options.threads, int)
    if len(threads) != 1 or threads[0] < 1:
        raise UsageError(f"bench models: --threads must be one number, at least 1; got {options.threads!r}")
    batches = parse_numbers("--batch", options.batch, int)
    chosen = models.select(options.case, batches, parse_words(options.mode))
    if not chosen:
        raise UsageError(f"bench models: --case must match a case; got {options.case!r} (see --list)")
    if options.list:
        print("\n".join(name for case in chosen for name in case.ids))
        return 0
    if settings != (allocator.current(),):
        return _each_in_its_own_process(options, settings)
    measured = []
    try:
        for case in chosen:
            measured.append((case, _measured(case, threads[0], options.quick)))
            if options.json:  # after each: a run that is cut off keeps what it measured
                models.write_lines(options.json, measured)
    except WrongResult as error:
        raise ArithmeticError(str(error)) from error
    if options.plot:
        print("drawn: " + ", ".join(map(str, models.draw(options.plot, measured))))
    return 0


def _measured(case: Any, threads: int, quick: bool) -> Any:
    from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn

    from sparsekern.reproduce.timed import models
    from sparsekern.reproduce.timed.caption import caption

    console = make_console()
    columns = TextColumn("{task.description:<60}"), BarColumn(), TimeElapsedColumn()
    with Progress(*columns, console=console, transient=True) as bar:
        task = bar.add_task("", total=1.0)
        report = lambda doing, fraction: bar.update(task, description=doing, completed=fraction)  # noqa: E731
        result = models.measure(case, threads=threads, quick=quick, progress=report)
    console.print(models.models_table(case, result))
    for line in caption(result)[1:]:
        console.print(line, style="dim", soft_wrap=True)
    return result


def _each_in_its_own_process(options: argparse.Namespace, settings: tuple[str, ...]) -> int:
    """malloc reads its settings when a process starts. The rows of all come together in one file, a plot has the setting in its name."""
    from sparsekern.measure import allocator

    command = [sys.executable, "-m", "sparsekern", "bench", "models", "--threads", options.threads, *(["--quick"] if options.quick else [])]
    for name in ("case", "batch", "mode"):
        command += [f"--{name}", getattr(options, name)]
    files: list[Path] = []
    with tempfile.TemporaryDirectory() as folder:
        try:
            for setting in settings:
                print(f"\nmalloc: {setting}", flush=True)
                files.append(Path(folder) / f"{setting}.jsonl")
                rest = ["--allocator", setting, "--json", str(files[-1])]
                if options.plot:
                    plot = Path(options.plot)
                    rest += ["--plot", str(plot.with_stem(f"{plot.stem}_{setting}") if len(settings) > 1 else plot)]
                done = subprocess.run([*command, *rest], env=allocator.environment(setting))
                if done.returncode:
                    break
        finally:  # also what was measured before an interrupt
            rows = [file.read_text(encoding="utf-8") for file in files if file.is_file()]
            if options.json and rows:
                Path(options.json).write_text("".join(rows), encoding="utf-8")
    return done.returncode
