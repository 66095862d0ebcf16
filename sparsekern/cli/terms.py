"""What the commands share: their words for sizes and lists, tables, progress, and a mistake of the user."""

from __future__ import annotations

import contextlib
import json
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

from sparsekern.console import open_console

if TYPE_CHECKING:
    from rich.console import Console


MOST_THREADS = 1024


class UsageError(Exception):
    """Something the user can put right; printed as one line, without a traceback."""


def parse_numbers(option: str, text: str, kind: type, above: float = 0) -> tuple:
    """``"1,10"`` as numbers of a kind."""
    try:
        numbers = tuple(kind(word) for word in text.split(",") if word)
    except ValueError:
        raise UsageError(f"{option} must be numbers separated by commas; got {text!r}") from None
    if not all(above < number < float("inf") for number in numbers):
        raise UsageError(f"{option} must be above {above}; got {text}")
    return numbers


def check_threads(command: str, *counts: int | None) -> None:
    """Refuse numbers of threads at which torch would end the process."""
    for count in counts:
        if count is not None and not 1 <= count <= MOST_THREADS:
            raise UsageError(f"{command}: --threads must be from 1 to {MOST_THREADS}; got {count}")


def parse_words(text: str) -> tuple[str, ...]:
    return tuple(word for word in text.split(",") if word)


def parse_shape(text: str) -> tuple[int, ...]:
    try:
        sizes = tuple(int(size) for size in text.split("x"))
        if min(sizes) < 1:
            raise ValueError
        return sizes
    except ValueError:
        raise UsageError(f"--input must be sizes joined by x, for example 1x3x32x32; got {text!r}") from None


def make_console() -> Console:
    try:
        console = open_console()
    except ImportError:
        raise UsageError("this command prints tables with rich: pip install 'sparsekern[cli]'") from None
    if not console.is_terminal:
        console.width = 200  # tables are wide; a pipe should fold nothing away
    return console


def make_table(title: str, *columns: str) -> Any:
    make_console()
    from rich.table import Table

    return Table(*columns, title=title, title_justify="left", title_style="bold", box=None, pad_edge=False)


def make_progress(total: int) -> Any:
    """A context that yields ``advance(text)``; draws on a terminal only."""
    from rich.console import Console
    from rich.progress import Progress

    @contextlib.contextmanager
    def run() -> Any:
        console = Console(stderr=True)
        with Progress(console=console, disable=not console.is_terminal, transient=True) as bar:
            task = bar.add_task("", total=total)
            yield lambda text: bar.update(task, advance=1, description=text)

    return run()


def plain(value: Any) -> str:
    if isinstance(value, dict):
        return ", ".join(f"{k} {v}" for k, v in value.items())
    return "-" if value is None else str(value)


def write_json(value: Any, path: str) -> None:
    text = json.dumps(value, indent=1) + "\n"
    if path == "-":
        sys.stdout.write(text)
    else:
        Path(path).write_text(text)
