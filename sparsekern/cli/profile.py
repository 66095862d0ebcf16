"""``sparsekern profile``: time, FLOPs, parameters and memory of a model, per layer; and two models, or two saved runs, compared."""

from __future__ import annotations

import argparse
import contextlib
import os
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from sparsekern.cli.terms import UsageError, check_threads, make_console, parse_shape

SAVED = ".json"
SORTS = ("order", "time", "flops", "params", "bytes", "memory", "gflops", "intensity", "speedup", "name")
BOUNDS = {"rounds": (1, 2**31 - 1), "top": (0, 2**31 - 1), "depth": (0, 2**31 - 1)}  # least and most


def add_command(commands: Any) -> None:
    prof = commands.add_parser("profile", help="time, FLOPs, parameters and memory of a model, per layer; two of them compared")
    prof.add_argument("model", metavar="MODEL", help="a registered model's name, module:callable, or a file that --json wrote")
    prof.add_argument("--input", default="1x3x32x32", metavar="SHAPE", help="for example 1x3x224x224")
    prof.add_argument("--against", metavar="MODEL", help="a second one, a model or a file: FLOPs and time, layer by layer")
    prof.add_argument("--backward", action="store_true", help="training mode, with the backward pass")
    prof.add_argument("--channels-last", action="store_true")
    prof.add_argument("--sort", default="order", choices=SORTS, help="of the layers in each container (default: of the calls)")
    prof.add_argument("--depth", type=int, metavar="N", help="fold what is more than N levels deep")
    prof.add_argument("--top", type=int, metavar="N", help="only the first N layers of all by --sort (default: the slowest)")
    prof.add_argument("--rounds", type=int, default=9)
    prof.add_argument("--threads", type=int, metavar="N")
    prof.add_argument("--no-twins", action="store_true", help="do not time sparse layers against their dense twins")
    prof.add_argument("--html", metavar="FILE", help="a page with plots and a table that sorts")
    prof.add_argument("--png", metavar="FILE", help="bars and roofline (any format that matplotlib knows)")
    prof.add_argument("--json", metavar="FILE", help="everything, to be read again")
    prof.add_argument("--csv", metavar="FILE", help="a line per layer")
    prof.add_argument("--trace", metavar="FILE", help="for chrome://tracing or Perfetto")
    prof.set_defaults(run=run_profile)


def run_profile(options: argparse.Namespace) -> int:
    """Profile a model, or show a saved profile; with ``--against`` also what a FLOP reduction became in time."""
    os.environ.setdefault("KINETO_LOG_LEVEL", "99")  # torch's profiler says when it starts and stops, unless told before torch is there
    from sparsekern.profile import report

    _check(options)
    for file in (options.html, options.png, options.json, options.csv, options.trace):
        if file and not Path(file).resolve().parent.is_dir():
            raise UsageError(f"profile: the folder of {file} must exist")
    console = make_console()
    names = list(filter(None, (options.model, options.against)))
    saved = [name for name in names if name.endswith(SAVED)]
    if options.trace and options.model in saved:
        raise UsageError(f"profile: --trace must be asked for when a model runs; got the saved profile {options.model}")
    found, totals = _profiles(names, options)
    first, second = found[0], found[1] if options.against else None
    for each in found:
        shown = {"top": options.top, "sort": options.sort, "depth": options.depth, "wide": console.width >= report.WIDE}
        console.print(report.table(each, **shown), "")
    if second:
        console.print(report.realised(first, second, depth=options.depth))
    if totals:
        console.print(totals, markup=False)
    _write(first, second, options)
    return 0


def _check(options: argparse.Namespace) -> None:
    """Refuse what would fail, or say nothing, only after the model ran."""
    check_threads("profile", options.threads)
    for name, (least, most) in BOUNDS.items():
        value = getattr(options, name)
        if value is not None and not least <= value <= most:
            rule = f"at least {least}" if value < least else "below 2^31"
            raise UsageError(f"profile: --{name} must be {rule}; got {value}")
    if options.channels_last and len(parse_shape(options.input)) != 4:
        raise UsageError(f"profile: --input must be four sizes with --channels-last; got {options.input}")


def _profiles(names: list[str], options: argparse.Namespace) -> tuple[list, str]:
    """The profiles in the order asked for, and a line on the two models where both ran here."""
    import torch

    from sparsekern.measure.protocol import threads
    from sparsekern.profile import profile_together
    from sparsekern.profile.save import read_json

    shape = parse_shape(options.input)
    keys = [name if name not in names[:at] else f"{name} again" for at, name in enumerate(names)]
    models = {key: _load_model(name) for key, name in zip(keys, names) if not name.endswith(SAVED)}
    found = {key: read_json(name) for key, name in zip(keys, names) if name.endswith(SAVED)}
    totals = ""
    if models:
        runs = f"MODEL must run on an input of {options.input}"
        with _one_sentence(runs), threads(options.threads or torch.get_num_threads()):
            x = torch.randn(shape, generator=torch.Generator().manual_seed(0))
            if options.channels_last:
                models = {name: model.to(memory_format=torch.channels_last) for name, model in models.items()}
                x = x.contiguous(memory_format=torch.channels_last)
            asked = {"backward": options.backward, "rounds": options.rounds, "twins": not options.no_twins}
            found |= profile_together(models, x, **asked)
            if len(models) == 2:
                totals = _realised(models, found, x, options.rounds)
    return [found[key] for key in keys], totals


def _write(first: Any, second: Any, options: argparse.Namespace) -> None:
    """The files asked for; each is named on the terminal."""
    from sparsekern.profile import page, plot, save
    from sparsekern.profile.trace import write_trace

    if options.json:
        save.write_json(first, options.json)
    if options.csv:
        save.write_csv(first, options.csv)
    if options.png:
        plot.write_plot(first, options.png)
    if options.html:
        page.write_page(first, options.html, against=second)
    if options.trace:
        write_trace(first.trace, options.trace, model=first.model)
    written = [file for file in (options.json, options.csv, options.png, options.html, options.trace) if file]
    if written:
        print("written: " + ", ".join(written))


def _realised(models: dict, found: dict, x: Any, rounds: int) -> str:
    """One line: how many times fewer FLOPs, and how many times less time, from interleaved forward passes."""
    import torch

    from sparsekern.measure.protocol import interleave, ratio

    def forward(model: Any) -> Any:
        return lambda: model(x)

    with torch.inference_mode():
        modes = {name: model.training for name, model in models.items()}
        times = interleave({name: forward(model.eval()) for name, model in models.items()}, rounds=rounds)
        for name, model in models.items():
            model.train(modes[name])
    first, second = models
    low, middle, high = ratio(times[first], times[second])
    flops = found[second].flops / max(1, found[first].flops)
    return f"{first} against {second}: {flops:.2f}x fewer FLOPs, {middle:.2f}x less time ({low:.2f}..{high:.2f}) forward"


@contextlib.contextmanager
def _one_sentence(rule: str, got: str = "") -> Iterator[None]:
    """Whatever the user's own code raises, as one line; with SPARSEKERN_TRACEBACK set, it says where that was."""
    try:
        yield
    except Exception as error:
        first = str(error).strip().splitlines()[:1]  # of torch's errors, which may be pages
        raise UsageError(f"profile: {rule}; got {': '.join([*filter(None, [got]), type(error).__name__, *first])}") from error


def _load_model(name: str) -> Any:
    """A model of the registry, or what ``module:callable`` returns."""
    from torch import nn

    if ":" in name:
        import importlib

        module, _, attribute = name.partition(":")
        sys.path.insert(0, str(Path.cwd()))
        try:
            with _one_sentence("MODEL must be module:callable that can be imported", name):
                model = getattr(importlib.import_module(module), attribute)
        finally:
            sys.path.pop(0)
        if not isinstance(model, nn.Module):
            with _one_sentence("MODEL must make a torch.nn.Module", name):
                model = model()
        if not isinstance(model, nn.Module):
            raise UsageError(f"profile: MODEL must make a torch.nn.Module; got {type(model).__name__}")
        return model
    from sparsekern.models import create_model

    return create_model(name)
