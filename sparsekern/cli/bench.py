"""``sparsekern bench``: cases against every rival, and rows against floors."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

from sparsekern.cli.terms import UsageError, check_threads, make_console, make_progress, make_table, parse_numbers, parse_words

ALWAYS = {"kind", "run", "unset", "case", "rounds", "min_time_ms", "clock", "threads", "core", "json"}
CASES = ALWAYS | {"batch", "density", "dtype", "layout", "mode", "quick", "cold", "both", "list", "plot"}
HEEDED = {  # what is not here must be left out
    **dict.fromkeys(("linear", "conv", "gemm"), CASES),
    "models": (CASES | {"allocator", "path"}) - {"rounds", "min_time_ms", "clock"},  # and some more, in its own words
    "overhead": ALWAYS | {"mode", "list"},
    "check": ALWAYS | {"path", "recorded"},
}
MODES = ("fwd", "fwd_bwd")


def add_command(commands: Any) -> None:
    bench = commands.add_parser("bench", help="time cases against every rival, or check rows against floors")
    bench.add_argument("kind", choices=("linear", "conv", "gemm", "models", "overhead", "check"))
    bench.add_argument("path", nargs="?", metavar="FILE", help="check: committed rows, a file or a folder of them")
    bench.add_argument("--case", default="", metavar="WORDS", help="words that the case's id contains")
    bench.add_argument("--batch", default="", metavar="N,N")
    bench.add_argument("--density", default="", metavar="D,D")
    bench.add_argument("--dtype", default="", metavar="NAME,NAME", help="float32, bfloat16, ... (default: as each case says)")
    bench.add_argument("--layout", default="", metavar="NAME", help="rows, features, nchw, channels_last")
    bench.add_argument("--mode", default="", metavar="NAME,NAME", help="fwd, fwd_bwd (default: fwd; some cases both)")
    bench.add_argument("--quick", action="store_true", help="only the cases that bench check asserts; models: few rounds")
    bench.add_argument("--cold", action="store_true", help="weights out of the private caches before every call (default: some cases both)")
    bench.add_argument("--both", action="store_true", help="hot and cold")
    bench.add_argument("--list", action="store_true", help="print the ids of the chosen cases and stop")
    bench.add_argument("--rounds", type=int, default=7)
    bench.add_argument("--min-time-ms", type=float, default=3.0)
    bench.add_argument("--threads", default="1", metavar="N,N", help="of torch, ours and every rival (default: 1)")
    bench.add_argument("--clock", default="wall", choices=("wall", "cpu"), help="cpu: for one thread on a core that others use too")
    bench.add_argument("--allocator", default="default", metavar="NAME,NAME", help="models: malloc's setting, default or kept (or both)")
    bench.add_argument("--core", type=int, help="pin to this core (one thread only)")
    bench.add_argument("--recorded", action="store_true", help="check: the rows of FILE, without measuring")
    bench.add_argument("--json", metavar="FILE", help="write rows as JSON lines")
    bench.add_argument("--plot", metavar="FILE", help="draw the speedups (.png, .svg, .pdf), against density where there are several")
    bench.set_defaults(run=run_bench, unset=lambda kind: vars(bench.parse_args([kind])))


def run_bench(options: argparse.Namespace) -> int:
    """Time cases against every rival and print a table per case."""
    from sparsekern.measure import cases

    for name, unset in options.unset(options.kind).items():
        if name not in HEEDED[options.kind] and getattr(options, name) != unset:
            flag = "FILE" if name == "path" else f"--{name.replace('_', '-')}"
            raise UsageError(f"bench {options.kind}: {flag} must be left out; got {getattr(options, name)}")
    for path in filter(None, (options.json, options.plot)):
        if not Path(path).resolve().parent.is_dir():
            raise UsageError(f"bench: the folder of {path} must exist")
    check_threads("bench", *parse_numbers("--threads", options.threads, int))
    if options.kind == "check":
        return run_check(options)
    if options.kind == "models":
        from sparsekern.cli.bench_models import run_models

        return run_models(options)
    if options.kind == "overhead":
        from sparsekern.cli.overhead import run_overhead

        return run_overhead(options)
    if set(parse_words(options.mode)) - set(MODES):
        raise UsageError(f"bench: --mode must be of {', '.join(MODES)}; got {options.mode}")
    chosen: list[Any] = cases.select(
        options.kind,
        match=options.case,
        batches=parse_numbers("--batch", options.batch, int),
        densities=parse_numbers("--density", options.density, float),
        dtypes=parse_words(options.dtype),
        layouts=parse_words(options.layout),
        quick=options.quick,
    )
    if not chosen:
        raise UsageError(f"bench: --case must match a case of {options.kind}; got {options.case!r} (see --list)")
    if options.list:
        print("\n".join(case.id for case in chosen))
        return 0
    rows = _measure(chosen, options)
    from sparsekern.measure import crossover, show

    curves = crossover.curves(rows)
    for line in [*show.summary(rows), show.busy(rows)]:
        if line:
            print(line)
    for table in (show.memory(rows), show.threads(rows), crossover.table(curves) if curves else None):
        if table is not None:
            make_console().print("", table)
    if options.plot:
        files = crossover.plot(curves, options.plot) if curves else [show.plot(rows, options.plot)]
        print("drawn: " + ", ".join(map(str, files)))
    return 0


def _measure(chosen: list, options: argparse.Namespace) -> list:
    """Measure the cases, show each and write its rows as it is done: a run that is cut off keeps what it measured."""
    import torch

    from sparsekern.measure import protocol, rows, show

    console = make_console()
    measured: list[Any] = []
    counts = parse_numbers("--threads", options.threads, int) or (1,)
    with make_progress(len(chosen)) as advance:
        for case in chosen:
            for mode, cache in _runs(case, options):
                for count in counts:
                    pin_to = options.core if count == 1 else None
                    with protocol.threads(count), protocol.pin(pin_to), torch.set_grad_enabled(mode == "fwd_bwd"):
                        found = rows.measure(
                            case,
                            mode=mode,
                            cold=cache == "cold",
                            rounds=options.rounds,
                            min_time_ms=options.min_time_ms,
                            clock=options.clock,
                        )
                    if options.json:  # only now is an older run's file given up
                        rows.write_rows(options.json, found, append=bool(measured))
                    measured += found
                    console.print(show.table(found))
            advance(case.id)
    return measured


def _runs(case: Any, options: argparse.Namespace) -> list[tuple[str, str]]:
    """(mode, cache) of each measurement of a case: its own, unless options ask for others."""
    modes = parse_words(options.mode)
    caches = ("hot", "cold") if options.both else ("cold",) if options.cold else ()
    if not modes and not caches:
        return list(case.runs[:1] if options.quick else case.runs)
    return [(mode, cache) for mode in modes or ("fwd",) for cache in caches or ("hot",)]


def run_check(options: argparse.Namespace) -> int:
    """Measure the quick cases now (or take recorded rows) and hold them against the floors."""
    from sparsekern.measure import cases, compare
    from sparsekern.measure.machine import machine_card, machine_kind
    from sparsekern.measure.rows import read_rows

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
        options.quick, options.mode, options.both = True, "fwd", False
        measured = _measure([c for k in cases.BUILDERS for c in cases.select(k, match=options.case, quick=True)], options)
    checks = compare.check(measured, committed)
    if not checks:
        raise UsageError("bench check: nothing to check: no row of ours has a rival with a floor")
    from rich.markup import escape

    table = make_table("ratios against floors", "case", "ours", "rival", "ratio", "floor", "committed", "")
    for check in checks:
        table.add_row(
            escape(" ".join(check.key[:-1])),
            escape(check.key[-1]),
            escape(check.rival),
            f"{check.ratio[1]:.2f}x",
            f"{check.floor:.2f}",
            f"{check.committed:.2f}x" if check.committed else "-",
            "ok" if check.kept else "[red]BROKEN[/]",
        )
    make_console().print(table)
    broken = [check for check in checks if not check.kept]
    missing = {row.reason for row in measured if row.ours and row.reason}
    for reason in sorted(missing):
        print(f"not measured: {reason}")
    print(f"{len(checks) - len(broken)} of {len(checks)} ratios kept" + (f", {len(broken)} BROKEN" if broken else ""))
    return 1 if broken else 0
