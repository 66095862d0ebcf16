"""``sparsekern compare``: two files of rows, with verdicts."""

from __future__ import annotations

import argparse
from typing import Any

from sparsekern.cli.terms import UsageError, make_console, make_table


def add_command(commands: Any) -> None:
    compare = commands.add_parser("compare", help="two files of rows, with verdicts")
    compare.add_argument("a", metavar="A")
    compare.add_argument("b", metavar="B")
    compare.set_defaults(run=run_compare)


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
    make_console()  # says so where rich is missing
    from rich.markup import escape

    table = make_table("b against a", "case", "mode", "cache", "threads", "provider", "a µs", "b µs", "b is", "verdict")
    colors = {"FAST": "green", "SLOW": "red", "SAME": "default", "AMBG": "yellow"}
    for c in both:
        table.add_row(*map(escape, c.key), f"{c.a_us:.4g}", f"{c.b_us:.4g}", f"{c.ratio:.2f}x", f"[{colors[c.verdict]}]{c.verdict}[/]")
    make_console().print(table)
    counts = {verdict: sum(c.verdict == verdict for c in both) for verdict in colors}
    print(
        ", ".join(f"{count} {verdict}" for verdict, count in counts.items())
        + f"; {len(single)} measured in one run only. AMBG: intervals overlap, no winner."
    )
    return 0
