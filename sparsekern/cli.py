"""The command line: ``sparsekern env | profile | bench | compare | probe | reproduce``.

Every command is a function that takes the parsed arguments and returns the exit code: 0 done, 1 a promise is broken
(a probe fails, a ratio is below its floor), 2 the user asked for something that cannot be.
"""

from __future__ import annotations

import argparse
import os
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from rich.console import Console


class UsageError(Exception):
    """Something the user can put right; printed as one line, without a traceback."""


def main(arguments: list[str] | None = None) -> int:
    """Run one command; returns the exit code."""
    options = _parser().parse_args(arguments)
    try:
        return options.run(options) or 0
    except (UsageError, ValueError, FileNotFoundError) as error:
        if os.environ.get("SPARSEKERN_TRACEBACK"):
            raise
        print(f"sparsekern: {error}", file=sys.stderr)
        return 2
    except ArithmeticError as error:  # a provider is wrong: no speed is printed
        print(f"sparsekern: {error}", file=sys.stderr)
        return 1
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0
    except KeyboardInterrupt:
        print("sparsekern: stopped", file=sys.stderr)
        return 130


# ---- env


def run_env(options: argparse.Namespace) -> int:
    """Print versions, the machine and who serves which op; ``--json`` for programs."""
    from sparsekern.measure.machine import machine_card
    from sparsekern.ops import OPS, backends

    card = machine_card()
    devices = ["cpu"] + (["cuda"] if card["gpu"] else [])
    serves = {op: {device: str(backends.serves(op, device)) for device in devices} for op in OPS}
    if options.json:
        _write_json({"machine": card, "serves": serves}, options.json)
        return 0
    console = _console()
    facts = _table("machine", "fact", "value")
    for name, value in card.items():
        facts.add_row(name, ", ".join(map(str, value)) if isinstance(value, list) else _plain(value))
    console.print(facts)
    who = _table("who serves which op", "op", *devices)
    for op, by_device in serves.items():
        who.add_row(op, *by_device.values())
    console.print(who)
    if getattr(backends, "missing", None):
        console.print(f"compiled kernels: {backends.missing}")
    return 0


# ---- profile


def run_profile(options: argparse.Namespace) -> int:
    """Profile a model; with ``--against`` also print what its FLOP reduction became in time."""
    import torch

    from sparsekern.measure.protocol import threads
    from sparsekern.profile import profile, report

    shape = _shape(options.input)
    models = {name: _load_model(name) for name in filter(None, (options.model, options.against))}
    torch.manual_seed(0)
    x = torch.randn(shape)
    if options.channels_last:
        models = {name: model.to(memory_format=torch.channels_last) for name, model in models.items()}
        x = x.contiguous(memory_format=torch.channels_last)
    console = _console()
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


# ---- bench


def run_bench(options: argparse.Namespace) -> int:
    """Time cases against every rival and print a table per case."""
    from sparsekern.measure import cases

    if options.kind == "check":
        return run_check(options)
    chosen = cases.select(
        options.kind,
        match=options.case,
        batches=_numbers(options.batch, int),
        densities=_numbers(options.density, float),
        dtypes=_words(options.dtype),
        layouts=_words(options.layout),
        quick=options.quick,
    )
    if options.list:
        print("\n".join(case.id for case in chosen))
        return 0
    if not chosen:
        raise UsageError(f"bench: --case must match a case of {options.kind}; got {options.case!r} (see --list)")
    for path in filter(None, (options.json, options.plot)):
        if not Path(path).resolve().parent.is_dir():
            raise UsageError(f"bench: the folder of {path} must exist")
    rows = _measure(chosen, options)
    from sparsekern.measure import rows as rows_file
    from sparsekern.measure import show

    for line in [*show.summary(rows), show.busy(rows)]:
        if line:
            print(line)
    if options.json:
        rows_file.write_rows(options.json, rows)
    if options.plot:
        show.plot(rows, options.plot)
    return 0


def _measure(chosen: list, options: argparse.Namespace) -> list:
    """Measure the cases, show each as it is done; an interrupt keeps what was measured."""
    import torch

    from sparsekern.measure import protocol, rows, show

    console, measured = _console(), []
    pin_to = options.core if options.threads == 1 else None
    with protocol.threads(options.threads), protocol.pin(pin_to), _progress(len(chosen)) as advance:
        for case in chosen:
            for mode in _words(options.mode):
                for cold in (False, True) if options.both else (options.cold,):
                    with torch.set_grad_enabled(mode == "fwd_bwd"):
                        found = rows.measure(
                            case,
                            mode=mode,
                            cold=cold,
                            rounds=options.rounds,
                            min_time_ms=options.min_time_ms,
                            clock=options.clock,
                        )
                    console.print(show.table(found))
                    measured += found
            advance(case.id)
    return measured


def run_check(options: argparse.Namespace) -> int:
    """Measure the quick cases now (or take recorded rows) and hold them against the floors."""
    from sparsekern.measure import cases, compare
    from sparsekern.measure.machine import machine_card, machine_kind
    from sparsekern.measure.rows import read_rows, write_rows

    path = Path(options.path or "bench/results")
    if not path.exists():
        raise UsageError(f"bench check: FILE must be a file of rows or a folder of them; got {path}")
    kind = machine_kind(machine_card())
    file = path / f"{kind}.jsonl" if path.is_dir() else path
    committed = read_rows(file) if file.is_file() else []
    if not committed:
        print(f"bench check: no committed rows for this kind of machine ({file.name})")
    if options.recorded:
        if not committed:
            raise UsageError("bench check: --recorded needs a file of rows")
        measured = committed
    else:
        options.mode, options.both = "fwd", False
        measured = _measure([c for k in cases.BUILDERS for c in cases.select(k, match=options.case, quick=True)], options)
        if options.json:
            write_rows(options.json, measured)
    checks = compare.check(measured, committed)
    if not checks:
        raise UsageError("bench check: nothing to check: no row of ours has a rival with a floor")
    table = _table("ratios against floors", "case", "ours", "rival", "ratio", "floor", "committed", "")
    for check in checks:
        table.add_row(
            " ".join(check.key[:3]),
            check.key[3],
            check.rival,
            f"{check.ratio[1]:.2f}x",
            f"{check.floor:.2f}",
            f"{check.committed:.2f}x" if check.committed else "-",
            "ok" if check.kept else "[red]BROKEN[/]",
        )
    _console().print(table)
    broken = [check for check in checks if not check.kept]
    missing = {row.reason for row in measured if row.ours and row.reason}
    for reason in sorted(missing):
        print(f"not measured: {reason}")
    print(f"{len(checks) - len(broken)} of {len(checks)} ratios kept" + (f", {len(broken)} BROKEN" if broken else ""))
    return 1 if broken else 0


def run_compare(options: argparse.Namespace) -> int:
    """Two files of rows: which measurements got faster, slower, stayed, or cannot be told apart."""
    from sparsekern.measure.compare import compare
    from sparsekern.measure.rows import read_rows

    a, b = read_rows(options.a), read_rows(options.b)
    both, single = compare(a, b)
    if not both:
        raise UsageError("compare: the two files must have a measurement in common; got none")
    differ = [name for name in ("cpu", "cores", "torch", "threads", "isa", "allocator") if a[0].machine.get(name) != b[0].machine.get(name)]
    if differ:
        print(f"note: the two runs differ in {', '.join(differ)}; times compare machines and settings, not code")
    table = _table("b against a", "case", "mode", "cache", "provider", "a µs", "b µs", "b is", "verdict")
    colors = {"FAST": "green", "SLOW": "red", "SAME": "default", "AMBG": "yellow"}
    for c in both:
        table.add_row(*c.key, f"{c.a_us:.4g}", f"{c.b_us:.4g}", f"{c.ratio:.2f}x", f"[{colors[c.verdict]}]{c.verdict}[/]")
    _console().print(table)
    counts = {verdict: sum(c.verdict == verdict for c in both) for verdict in colors}
    print(
        ", ".join(f"{count} {verdict}" for verdict, count in counts.items())
        + f"; {len(single)} measured in one run only. AMBG: intervals overlap, no winner."
    )
    return 0


# ---- probe, reproduce


def run_probe(options: argparse.Namespace) -> int:
    """Run every probe on every layer and print the table; 1 if any fails."""
    from sparsekern.measure.probe import PROBES, run_one, subjects

    layers = [s for s in subjects() if options.layer.lower() in s.name.lower()]
    probes = {name: f for name, f in PROBES.items() if options.probe in name}
    if not layers or not probes:
        raise UsageError(f"probe: must be one of {', '.join(PROBES)} on {', '.join(s.name for s in subjects())}")
    table, failures = _table("integration probe", "probe", *(s.name for s in layers)), []
    with _progress(len(probes)) as advance:
        for name, function in probes.items():
            results = [run_one(function, layer) for layer in layers]
            failures += [(layer.name, name, r) for layer, r in zip(layers, results, strict=True) if r.startswith("FAIL")]
            table.add_row(name.replace("_", " "), *("[red]FAIL[/]" if r.startswith("FAIL") else r for r in results))
            advance(name)
    _console().print(table)
    for layer, name, message in failures:
        print(f"{layer}, {name}: {message}")
    print(f"{len(failures)} FAIL" if failures else "all ok ('-': does not apply)")
    return 1 if failures else 0


def run_reproduce(options: argparse.Namespace) -> int:
    """Reproduce a table of a paper: its printed cells, exact recounts, and measurements beside them."""
    from sparsekern.reproduce import TABLES, Arguments
    from sparsekern.reproduce.gate import WrongResult

    if not options.table:
        for name, table in TABLES.items():
            print(f"{name:24} {(table.__doc__ or '').strip().partition(chr(10))[0]}".rstrip())
        return 0
    if options.table not in TABLES:
        raise UsageError(f"reproduce: TABLE must be one of {', '.join(TABLES)}; got {options.table}")
    _console()
    arguments = Arguments(
        images=options.images,
        batch=options.batch,
        threads=options.threads,
        out=options.out,
        quick=options.quick,
        json=options.json,
    )
    try:
        return TABLES[options.table](arguments)
    except WrongResult as error:
        raise ArithmeticError(str(error)) from error


# ---- arguments


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="sparsekern", description="Structured sparsity, measured.")
    commands = parser.add_subparsers(required=True, metavar="COMMAND")

    env = commands.add_parser("env", help="versions, the machine, and who serves which op")
    env.add_argument("--json", metavar="FILE", help="write JSON, '-' for the terminal")
    env.set_defaults(run=run_env)

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

    bench = commands.add_parser("bench", help="time cases against every rival, or check rows against floors")
    bench.add_argument("kind", choices=("linear", "conv", "gemm", "check"))
    bench.add_argument("path", nargs="?", metavar="FILE", help="check: committed rows, a file or a folder of them")
    bench.add_argument("--case", default="", metavar="WORDS", help="words that the case's id contains")
    bench.add_argument("--batch", default="", metavar="N,N")
    bench.add_argument("--density", default="", metavar="D,D")
    bench.add_argument("--dtype", default="", metavar="NAME,NAME", help="float32 (default), bfloat16, ...")
    bench.add_argument("--layout", default="", metavar="NAME", help="rows, features, nchw, channels_last")
    bench.add_argument("--mode", default="fwd", metavar="NAME,NAME", help="fwd (default), fwd_bwd")
    bench.add_argument("--quick", action="store_true", help="only the cases that bench check asserts")
    bench.add_argument("--cold", action="store_true", help="weights out of the private caches before every call")
    bench.add_argument("--both", action="store_true", help="hot and cold")
    bench.add_argument("--list", action="store_true", help="print the ids of the chosen cases and stop")
    bench.add_argument("--rounds", type=int, default=9)
    bench.add_argument("--min-time-ms", type=float, default=3.0)
    bench.add_argument("--threads", type=int, default=1)
    bench.add_argument("--clock", default="wall", choices=("wall", "cpu"), help="cpu: for one thread on a core that others use too")
    bench.add_argument("--core", type=int, help="pin to this core (one thread only)")
    bench.add_argument("--recorded", action="store_true", help="check: the rows of FILE, without measuring")
    bench.add_argument("--json", metavar="FILE", help="write rows as JSON lines")
    bench.add_argument("--plot", metavar="FILE", help="draw the speedups (.png, .svg, .pdf)")
    bench.set_defaults(run=run_bench)

    compare = commands.add_parser("compare", help="two files of rows, with verdicts")
    compare.add_argument("a", metavar="A")
    compare.add_argument("b", metavar="B")
    compare.set_defaults(run=run_compare)

    probe = commands.add_parser("probe", help="does every layer do what a user of PyTorch expects")
    probe.add_argument("--layer", default="", metavar="WORD")
    probe.add_argument("--probe", default="", metavar="WORD")
    probe.set_defaults(run=run_probe)

    reproduce = commands.add_parser("reproduce", help="reproduce a table of a paper; without TABLE, list them")
    reproduce.add_argument("table", nargs="?", metavar="TABLE")
    reproduce.add_argument("--images", type=Path, metavar="PATH", help="CIFAR-10: folder, archive or batch file")
    reproduce.add_argument("--batch", type=int, default=1)
    reproduce.add_argument("--threads", type=int, default=1)
    reproduce.add_argument("--quick", action="store_true", help="few rounds: shows the way, measures roughly")
    reproduce.add_argument("--out", type=Path, default=Path("reproduced"), metavar="FOLDER", help="for plot and numbers")
    reproduce.add_argument("--json", type=Path, metavar="FILE", help="where the numbers go, if not into FOLDER")
    reproduce.set_defaults(run=run_reproduce)
    return parser


# ---- small helpers


def _numbers(text: str, kind: type) -> tuple:
    try:
        return tuple(kind(word) for word in text.split(",") if word)
    except ValueError:
        raise UsageError(f"must be numbers separated by commas; got {text!r}") from None


def _words(text: str) -> tuple[str, ...]:
    return tuple(word for word in text.split(",") if word)


def _shape(text: str) -> tuple[int, ...]:
    try:
        return tuple(int(size) for size in text.split("x"))
    except ValueError:
        raise UsageError(f"--input must be sizes joined by x, for example 1x3x32x32; got {text!r}") from None


def _console() -> Console:
    try:
        from rich.console import Console
    except ImportError:
        raise UsageError("this command prints tables with rich: pip install 'sparsekern[cli]'") from None
    # tables are wide; a pipe or a narrow terminal should fold nothing away
    console = Console(highlight=False)
    return console if console.is_terminal else Console(highlight=False, width=200)


def _table(title: str, *columns: str) -> Any:
    _console()
    from rich.table import Table

    return Table(*columns, title=title, title_justify="left", title_style="bold", box=None, pad_edge=False)


def _progress(total: int) -> Any:
    """A context that yields ``advance(text)``; draws on a terminal only."""
    import contextlib

    from rich.console import Console
    from rich.progress import Progress

    @contextlib.contextmanager
    def run() -> Any:
        console = Console(stderr=True)
        with Progress(console=console, disable=not console.is_terminal, transient=True) as bar:
            task = bar.add_task("", total=total)
            yield lambda text: bar.update(task, advance=1, description=text)

    return run()


def _plain(value: Any) -> str:
    if isinstance(value, dict):
        return ", ".join(f"{k} {v}" for k, v in value.items())
    return "-" if value is None else str(value)


def _write_json(value: Any, path: str) -> None:
    import json

    text = json.dumps(value, indent=1) + "\n"
    if path == "-":
        sys.stdout.write(text)
    else:
        Path(path).write_text(text)


if __name__ == "__main__":
    sys.exit(main())
