"""``sparsekern models``: the registered models, what they cost, and what was measured of them."""

from __future__ import annotations

import argparse
import json
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from sparsekern.cli.terms import UsageError, make_console, make_table, write_json

RESULTS = (Path("reproduced"), Path("bench/results"))  # where ``reproduce`` writes, and the rows that come with the source


@dataclass(frozen=True)
class Measured:
    """A model's whole speedup, and what it was taken on."""

    speedup: tuple[float, float, float]  # p20, median, p80
    file: str
    cpu: str | None
    threads: int
    dtype: str


def add_command(commands: Any) -> None:
    models = commands.add_parser("models", help="the papers' networks: parameters, FLOPs, measured speedup")
    models.add_argument("pattern", nargs="?", default="*", metavar="PATTERN", help="for example 'nin_root_*'")
    models.add_argument("--results", type=Path, action="append", metavar="FOLDER", help="of JSON files that reproduce wrote")
    models.add_argument("--json", metavar="FILE", help="write JSON, '-' for the terminal")
    models.set_defaults(run=run_models)


def run_models(options: argparse.Namespace) -> int:
    """Print one line per model: counted numbers from the package, measured ones from result files where there are any."""
    from sparsekern.models import list_models, model_card
    from sparsekern.models.counts import known_counts

    names = list_models(options.pattern)
    if not names:
        raise UsageError(f"models: PATTERN must match a registered model; got {options.pattern!r}")
    for folder in options.results or ():
        if not folder.is_dir():
            raise UsageError(f"models: --results must be a folder; got {folder}")
    measured = _measured(options.results or [folder for folder in RESULTS if folder.is_dir()])
    counts, rows = known_counts(), []
    for name in names:
        card = model_card(name)
        flops = counts[name]["flops"]
        row: dict[str, Any] = {"model": name, "paper": card.paper, "input": list(card.input_shape), **counts[name], "dense": card.dense}
        row["flop_reduction"] = counts[card.dense]["flops"] / flops if card.dense else None
        rows.append(row | {"measured": measured.get(name)})
    if options.json:
        write_json(rows, options.json)
        return 0
    _print(rows)
    return 0


def _measured(folders: list[Path]) -> dict[str, dict]:
    """Model to its whole-model speedup over the best dense twin, one image per call; the first folder that has it wins."""
    found: dict[str, dict] = {}
    for file in (file for folder in folders for file in sorted(Path(folder).glob("*.json"))):
        try:
            found = _read(file) | found
        except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
            raise UsageError(f"models: {file} must be JSON that reproduce wrote; got {type(error).__name__}: {error}") from error
    return found


def _read(file: Path) -> dict[str, dict]:
    """What one file has; nothing where it is of more images, or of something else."""
    from sparsekern.measure.records import record

    document = json.loads(file.read_text(encoding="utf-8"))
    if not isinstance(document, dict) or document.get("batch") != 1:
        return {}
    found: dict[str, dict] = {}
    for row in document.get("rows", []):
        speedup = row.get("speedup", {}).get("model", {}).get("ours over dense")
        if speedup and not row.get("options"):  # options make another network of the name
            facts = {"speedup": tuple(speedup), "file": file.as_posix(), "cpu": document["machine"].get("cpu")}
            taken = record(Measured, facts | {"threads": document["threads"], "dtype": document["dtype"]})
            found.setdefault(row["model"], asdict(taken))
    return found


def _print(rows: list[dict]) -> None:
    console = make_console()
    table = make_table("models", "model", "paper", "input")
    for head in ("parameters", "MFLOP", "FLOPs ÷", "measured", "p20..p80"):
        table.add_column(head, justify="right", no_wrap=True)
    for row in rows:
        measured = row["measured"]
        low, middle, high = measured["speedup"] if measured else (None,) * 3
        table.add_row(
            row["model"],
            row["paper"],
            "x".join(map(str, row["input"])),
            f"{row['params']:,}",
            f"{row['flops'] / 1e6:,.1f}",
            f"{row['flop_reduction']:.2f}" if row["flop_reduction"] else "",
            f"{middle:.2f}x" if measured else "",
            f"{low:.2f}..{high:.2f}" if measured else "",
        )
    console.print(table)
    console.print("FLOPs: multiply and add count 2, one image. ÷: FLOPs of the dense twin over these.")
    used = {(m["file"], m["cpu"], m["threads"], m["dtype"]) for row in rows if (m := row["measured"])}
    if used:
        console.print("measured: whole model over its best dense twin, one image per call; a dense model: our kernels over the best dense.")
    for file, cpu, threads, dtype in sorted(used):
        console.print(f"  {file}: {cpu}, {threads} thread(s), {dtype}", soft_wrap=True, markup=False)
