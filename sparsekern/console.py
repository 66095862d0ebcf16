"""The console of every table and bar: rich's, but for a reader that goes away."""

from __future__ import annotations

import os
import sys
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from rich.console import Console


def open_console() -> Console:
    """A console whose reader may go (``sparsekern models | head -1``): what was begun is done to its end and says no more, where rich
    would end the process.

    Raises:
        ModuleNotFoundError: rich is not installed.
    """
    from rich.console import Console

    class Patient(Console):
        def on_broken_pipe(self) -> None:
            self.quiet = True
            silence(sys.stdout.fileno())

    return Patient(highlight=False)


def silence(file: int) -> None:
    """Let what is still written to a file descriptor vanish."""
    nowhere = os.open(os.devnull, os.O_WRONLY)
    os.dup2(nowhere, file)
    os.close(nowhere)
