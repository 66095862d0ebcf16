"""``sparsekern env``: versions, the machine, and who serves which op."""

from __future__ import annotations

import argparse
from typing import Any

from sparsekern.cli.terms import make_console, make_table, plain, write_json


def add_command(commands: Any) -> None:
    env = commands.add_parser("env", help="versions, the machine, and who serves which op")
    env.add_argument("--json", metavar="FILE", help="write JSON, '-' for the terminal")
    env.set_defaults(run=run_env)


def run_env(options: argparse.Namespace) -> int:
    """Print versions, the machine and who serves which op; ``--json`` for programs."""
    from sparsekern.measure.machine import machine_card
    from sparsekern.ops import OPS, backends

    card = machine_card()
    devices = ["cpu"] + (["cuda"] if card["gpu"] else [])
    serves = {op: {device: str(backends.serves(op, device)) for device in devices} for op in OPS}
    if options.json:
        write_json({"machine": card, "serves": serves}, options.json)
        return 0
    console = make_console()
    facts = make_table("machine", "fact", "value")
    for name, value in card.items():
        facts.add_row(name, ", ".join(map(str, value)) if isinstance(value, list) else plain(value))
    console.print(facts)
    who = make_table("who serves which op", "op", *devices)
    for op, by_device in serves.items():
        who.add_row(op, *by_device.values())
    console.print(who)
    if getattr(backends, "missing", None):
        console.print(f"compiled kernels: {backends.missing}")
    return 0
