"""Live progress: a bar with the numbers of the moment on a terminal, a line per epoch anywhere else."""

from __future__ import annotations

import time
from typing import Any

from sparsekern.console import open_console


class Quiet:
    """Says nothing; what the others do, in one place."""

    def begin(self, title: str, epoch: int, epochs: int, step: int, steps: int) -> None: ...

    def step(self, loss: float, accuracy: float, rate: float) -> None: ...

    def epoch(self, row: dict[str, Any]) -> None: ...

    def note(self, text: str) -> None: ...

    def end(self) -> None: ...


class Live(Quiet):
    """Rich's progress bar, refreshed a few times per second; a line stays for every epoch."""

    def __init__(self) -> None:
        from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

        self.console = open_console()
        numbers = TextColumn("{task.description}"), BarColumn(bar_width=30), MofNCompleteColumn(), TextColumn("{task.fields[live]}")
        self.bar = Progress(*numbers, TimeRemainingColumn(), console=self.console, disable=not self.console.is_terminal, transient=True)
        self.task: Any = None
        self.shown = self.done = 0.0

    def begin(self, title: str, epoch: int, epochs: int, step: int, steps: int) -> None:
        if self.task is None:
            self.console.print(title, soft_wrap=True)
            self.bar.start()
            self.task = self.bar.add_task("", live="")
        self.done = step
        self.bar.update(self.task, description=f"epoch {epoch + 1}/{epochs}", total=steps, completed=step, live="")

    def step(self, loss: float, accuracy: float, rate: float) -> None:
        self.done += 1
        if self.bar.disable or time.monotonic() - self.shown < 0.1:
            return
        self.shown = time.monotonic()
        live = f"loss {loss:.4f}  accuracy {accuracy:.3f}  rate {rate:.2g}"
        self.bar.update(self.task, completed=self.done, live=live)

    def epoch(self, row: dict[str, Any]) -> None:
        self.console.print(
            f"epoch {row['epoch']:4d}  loss {row['train_loss']:.4f}  accuracy {row['train_accuracy']:.4f}  "
            f"val loss {row['val_loss']:.4f}  val accuracy {row['val_accuracy']:.4f}  "
            f"{row['samples_per_s']:.0f} samples/s  {row['seconds']:.1f} s",
            soft_wrap=True,
        )

    def note(self, text: str) -> None:
        self.console.print(text, soft_wrap=True)

    def end(self) -> None:
        self.bar.stop()
