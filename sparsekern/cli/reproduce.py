"""``sparsekern reproduce``: the papers' tables, recounted and measured."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

from sparsekern.cli.terms import UsageError, check_threads, make_console, parse_numbers

COUNTED_AND_TIMED = ("images", "counts_only", "batch", "layers", "quick")  # options that only these tables heed
TRAINED = ("data", "no_check", "preset", "seeds", "epochs", "only")  # and that only experiments do


def add_command(commands: Any) -> None:
    reproduce = commands.add_parser("reproduce", help="reproduce a table of a paper; without TABLE, list them")
    reproduce.add_argument("table", nargs="?", metavar="TABLE")
    reproduce.add_argument("--images", type=Path, metavar="PATH", help="CIFAR-10: folder, archive or batch file")
    reproduce.add_argument("--counts-only", action="store_true", help="printed cells and exact recounts, nothing timed")
    reproduce.add_argument("--batch", default="", metavar="N,N", help="images per call; default: 1 and the paper's")
    reproduce.add_argument("--threads", type=int, default=1)
    reproduce.add_argument("--layers", action="store_true", help="print the times of every layer of the largest variant")
    reproduce.add_argument("--quick", action="store_true", help="few rounds: shows the way, measures roughly")
    reproduce.add_argument("--out", type=Path, default=Path("reproduced"), metavar="FOLDER", help="for plot and numbers")
    reproduce.add_argument("--json", type=Path, metavar="FILE", help="where the numbers go, if not into FOLDER")
    trained = reproduce.add_argument_group("experiments, which train")
    trained.add_argument("--data", type=Path, metavar="FOLDER", help="of the official files, where a data set has any")
    trained.add_argument("--no-check", action="store_true", help="take files that are not the official ones")
    trained.add_argument("--preset", choices=("reduced", "full"), default="reduced", help="minutes on one core, or the paper's size")
    trained.add_argument("--seeds", default="", metavar="N,N", help="default: 0,1,2")
    trained.add_argument("--epochs", type=int, metavar="N", help="in place of the recipe's")
    trained.add_argument("--only", action="append", metavar="ROW", help="a row's label, recipe or model; may be given again")
    reproduce.set_defaults(run=run_reproduce)


def run_reproduce(options: argparse.Namespace) -> int:
    """Reproduce a table of a paper: its printed cells, exact recounts, and measurements beside them."""
    from sparsekern.reproduce import TABLES, Arguments
    from sparsekern.reproduce.tables import EXPERIMENTS
    from sparsekern.reproduce.timed.gate import WrongResult

    if not options.table:
        for name, table in TABLES.items():
            print(f"{name:24} {(table.__doc__ or '').strip().partition(chr(10))[0]}".rstrip())
        return 0
    if options.table not in TABLES:
        raise UsageError(f"reproduce: TABLE must be one of {', '.join(TABLES)}; got {options.table}")
    _refuse_what_is_not_heeded(options, experiment=options.table in EXPERIMENTS)
    if options.epochs is not None and options.epochs < 1:
        raise UsageError(f"reproduce: --epochs must be above 0; got {options.epochs}")
    seeds = parse_numbers("--seeds", options.seeds, int, above=-1)
    if len(set(seeds)) < len(seeds):
        raise UsageError(f"reproduce: --seeds must be different numbers; got {options.seeds}")
    check_threads("reproduce", options.threads)
    make_console()
    arguments = Arguments(
        images=options.images,
        batches=parse_numbers("--batch", options.batch, int) or None,
        counts_only=options.counts_only,
        layers=options.layers,
        threads=options.threads,
        out=options.out,
        quick=options.quick,
        json=options.json,
        data=options.data,
        check=not options.no_check,
        preset=options.preset,
        seeds=seeds or None,
        epochs=options.epochs,
        only=tuple(options.only) if options.only else None,
    )
    try:
        return TABLES[options.table](arguments)
    except WrongResult as error:
        raise ArithmeticError(str(error)) from error


def _refuse_what_is_not_heeded(options: argparse.Namespace, experiment: bool) -> None:
    """An option of the other kind of table would be passed over without a word."""
    given = {name: getattr(options, name) for name in (COUNTED_AND_TIMED if experiment else TRAINED)}
    for name, value in given.items():
        if value not in (None, "", False, "reduced"):  # the defaults
            does = "trains and counts nothing" if experiment else "trains nothing"
            raise UsageError(f"reproduce: --{name.replace('_', '-')} must be left out: {options.table} {does}")
