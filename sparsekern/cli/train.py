"""``sparsekern train``: a network of the papers, by its recipe.

In several processes: ``torchrun --nproc-per-node 2 -m sparsekern train RECIPE``.
"""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

from sparsekern.cli.terms import UsageError, check_threads, make_console, make_table, parse_numbers


def add_command(commands: Any) -> None:
    train = commands.add_parser("train", help="train a network by its paper's recipe; --list names the recipes")
    train.add_argument("recipe", nargs="?", metavar="RECIPE", help="for example patterns/morse")
    train.add_argument("--list", action="store_true", help="the recipes, and where their settings are from")
    train.add_argument("--data", type=Path, metavar="FOLDER", help="of the official files, where the data set has any")
    train.add_argument("--no-check", action="store_true", help="take files that are not the official ones")
    train.add_argument("--preset", choices=("full", "reduced"), default="full", help="the paper's size, or minutes on one core")
    train.add_argument("--epochs", type=int, metavar="N")
    train.add_argument("--batch", type=int, metavar="N", help="samples per step, of all processes together")
    train.add_argument("--lr", type=float, metavar="RATE")
    train.add_argument("--fan-out", metavar="N,N", help="edges per left neuron of each junction; networks of sparse connectivity patterns")
    train.add_argument(
        "--dynamic",
        metavar="KIND[:STEPS]",
        help="moving: connections follow the gradient; drawn: masks are drawn anew (drawn:epoch: once an epoch)",
    )
    train.add_argument("--out", type=Path, metavar="FOLDER", help="for checkpoints, log and curves; default trained/RECIPE")
    train.add_argument("--resume", action="store_true", help="go on where the folder stands")
    train.add_argument("--checkpoint-every", type=int, metavar="STEPS", help="beside the one after every epoch")
    train.add_argument("--seed", type=int, default=0)
    train.add_argument("--device", default="cpu", metavar="DEVICE")
    train.add_argument("--amp", action="store_true", help="bfloat16 where torch's autocast deems it safe")
    train.add_argument("--threads", type=int, metavar="N")
    train.set_defaults(run=run_train)


def run_train(options: argparse.Namespace) -> int:
    """Train, showing progress; checkpoints, log and curves go into a folder."""
    if options.list:
        return _list()
    if not options.recipe:
        raise UsageError("train: RECIPE must be given (sparsekern train --list); got none")
    make_console()
    import torch

    from sparsekern.train import get_recipe, train
    from sparsekern.train.checkpoint import need_safetensors
    from sparsekern.train.dynamic import parse_dynamic
    from sparsekern.train.show import Live

    for name in ("epochs", "batch", "lr", "checkpoint_every"):
        value = getattr(options, name)
        if value is not None and value <= 0:
            raise UsageError(f"train: --{name.replace('_', '-')} must be above 0; got {value}")
    check_threads("train", options.threads)
    try:
        need_safetensors()
    except ModuleNotFoundError as missing:
        raise UsageError(str(missing)) from missing
    recipe = get_recipe(options.recipe).preset(options.preset)
    changes = {name: getattr(options, name) for name in ("epochs", "batch", "lr") if getattr(options, name) is not None}
    if options.fan_out:
        changes["options"] = {"fan_out": parse_numbers("--fan-out", options.fan_out, int)}
    if options.threads:
        torch.set_num_threads(options.threads)
    out = options.out or Path("trained") / options.recipe.replace("/", "_")
    trained = train(
        recipe.with_(**changes),
        path=options.data,
        check=not options.no_check,
        out=out,
        resume=options.resume,
        seed=options.seed,
        device=options.device,
        amp=options.amp,
        dynamic=parse_dynamic(options.dynamic) if options.dynamic else None,
        checkpoint_every=options.checkpoint_every,
        show=Live(),
    )
    print(f"validation accuracy {trained.last:.4f}, best {trained.best:.4f}; checkpoints, log and curves: {out}")
    return 0


def _list() -> int:
    from sparsekern.train import list_recipes

    console = make_console()
    table = make_table("recipes", "recipe", "model", "data", "optimiser", "rate", "batch", "epochs", "source")
    for r in list_recipes():
        epochs = f"{r.epochs} ({r.preset('reduced').epochs})"
        table.add_row(r.name, r.model, r.data, r.optimiser.name, f"{r.optimiser.lr:g}", str(r.batch), epochs, r.source)
    console.print(table)
    console.print("epochs in parentheses: --preset reduced")
    return 0
