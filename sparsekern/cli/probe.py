"""``sparsekern probe``: does every layer do what a user of PyTorch expects."""

from __future__ import annotations

import argparse
from typing import Any

from sparsekern.cli.terms import UsageError, make_console, make_progress, make_table


def add_command(commands: Any) -> None:
    probe = commands.add_parser("probe", help="does every layer do what a user of PyTorch expects")
    probe.add_argument("--layer", default="", metavar="WORD")
    probe.add_argument("--probe", default="", metavar="WORD")
    probe.set_defaults(run=run_probe)


def run_probe(options: argparse.Namespace) -> int:
    """Run every probe on every layer and print the table; 1 if any fails."""
    from sparsekern.measure.probe import PROBES, run_one, subjects

    layers = [s for s in subjects() if options.layer.lower() in s.name.lower()]
    probes = {name: f for name, f in PROBES.items() if options.probe in name}
    if not layers or not probes:
        raise UsageError(f"probe: must be one of {', '.join(PROBES)} on {', '.join(s.name for s in subjects())}")
    table, failures = make_table("integration probe", "probe", *(s.name for s in layers)), []
    with make_progress(len(probes)) as advance:
        for name, function in probes.items():
            results = [run_one(function, layer) for layer in layers]
            failures += [(layer.name, name, r) for layer, r in zip(layers, results, strict=True) if r.startswith("FAIL")]
            table.add_row(name.replace("_", " "), *("[red]FAIL[/]" if r.startswith("FAIL") else r for r in results))
            advance(name)
    make_console().print(table)
    for layer, name, message in failures:
        print(f"{layer}, {name}: {message}")
    print(f"{len(failures)} FAIL" if failures else "all ok ('-': does not apply)")
    return 1 if failures else 0
