"""``sparsekern profile``: time, FLOPs and parameters of a model, per layer."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path
from typing import Any

from sparsekern.cli.terms import UsageError, make_console, parse_shape


def add_command(commands: Any) -> None:
    prof = commands.add_parser("profile", help="time, FLOPs and parameters of a model, per layer")
    prof.add_argument("model", metavar="MODEL", help="a registered model's name, or module:callable")
    prof.add_argument("--input", default="1x3x32x32", metavar="SHAPE", help="for example 1x3x224x224")
    prof.add_argument("--against", metavar="MODEL", help="a second model: the FLOP ratio and the time ratio")
    prof.add_argument("--backward", action="store_true", help="training mode, with the backward pass")
    prof.add_argument("--channels-last", action="store_true")
    prof.add_argument("--top", type=int, metavar="N", help="only the N slowest layers")
    prof.add_argument("--rounds", type=int, default=9)
    prof.add_argument("--threads", type=int, metavar="N")
    prof.add_argument("--json", metavar="FILE")
    prof.set_defaults(run=run_profile)


def run_profile(options: argparse.Namespace) -> int:
    """Profile a model; with ``--against`` also print what its FLOP reduction became in time."""
    import torch

    from sparsekern.measure.protocol import threads
    from sparsekern.profile import profile, report

    shape = parse_shape(options.input)
    models = {name: _load_model(name) for name in filter(None, (options.model, options.against))}
    torch.manual_seed(0)
    x = torch.randn(shape)
    if options.channels_last:
        models = {name: model.to(memory_format=torch.channels_last) for name, model in models.items()}
        x = x.contiguous(memory_format=torch.channels_last)
    console = make_console()
    with threads(options.threads or torch.get_num_threads()):
        found = {name: profile(model, x, backward=options.backward, rounds=options.rounds, name=name) for name, model in models.items()}
        for name in found:
            console.print(report.table(found[name], top=options.top))
        if options.against:
            console.print(report.realised(found[options.model], found[options.against]))
            console.print(_realised(models, found, x, options))
    if options.json:
        report.write_json(found[options.model], options.json)
    return 0


def _realised(models: dict, found: dict, x: Any, options: argparse.Namespace) -> str:
    """One line: how many times fewer FLOPs, and how many times less time, from interleaved forward passes."""
    import torch

    from sparsekern.measure.protocol import interleave, ratio

    def forward(model: Any) -> Any:
        return lambda: model(x)

    with torch.inference_mode():
        modes = {name: model.training for name, model in models.items()}
        times = interleave({name: forward(model.eval()) for name, model in models.items()}, rounds=options.rounds)
        for name, model in models.items():
            model.train(modes[name])
    low, middle, high = ratio(times[options.model], times[options.against])
    flops = found[options.against].flops / max(1, found[options.model].flops)
    return f"{options.model} against {options.against}: {flops:.2f}x fewer FLOPs, {middle:.2f}x less time ({low:.2f}..{high:.2f}) forward"


def _load_model(name: str) -> Any:
    """A model of the registry, or what ``module:callable`` returns."""
    from torch import nn

    if ":" in name:
        import importlib

        module, _, attribute = name.partition(":")
        sys.path.insert(0, str(Path.cwd()))
        try:
            built = getattr(importlib.import_module(module), attribute)
        except (ImportError, AttributeError) as error:
            raise UsageError(f"profile: MODEL must be module:callable that can be imported; got {name} ({error})") from error
        finally:
            sys.path.pop(0)
        model = built if isinstance(built, nn.Module) else built()
        if not isinstance(model, nn.Module):
            raise UsageError(f"profile: MODEL must make a torch.nn.Module; got {type(model).__name__}")
        return model
    from sparsekern.models import create_model

    return create_model(name)
