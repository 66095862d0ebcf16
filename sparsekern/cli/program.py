"""Every command is a function that takes the parsed arguments and returns the exit code: 0 done, 1 a promise is broken
(a probe fails, a ratio is below its floor, a paper's cell is not what it should be), 2 the user asked for something that cannot be.
"""

from __future__ import annotations

import argparse
import io
import os
import sys

from sparsekern.cli import bench, compare, env, models, probe, profile, reproduce, train
from sparsekern.cli.terms import UsageError
from sparsekern.console import silence

COMMANDS = (env, models, profile, bench, compare, probe, reproduce, train)


def main(arguments: list[str] | None = None) -> int:
    """Run one command; returns the exit code."""
    options = _parser().parse_args(arguments)
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="replace")  # a letter that the terminal lacks ends no measurement
    try:
        return options.run(options) or 0
    except BrokenPipeError:
        silence(sys.stdout.fileno())
        return 0
    except (UsageError, ValueError, OSError, ModuleNotFoundError) as error:
        if os.environ.get("SPARSEKERN_TRACEBACK"):
            raise
        print(f"sparsekern: {error}", file=sys.stderr)
        return 2
    except ArithmeticError as error:  # a provider is wrong: no speed is printed
        print(f"sparsekern: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print("sparsekern: stopped", file=sys.stderr)
        return 130


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="sparsekern", description="Structured sparsity, measured.")
    commands = parser.add_subparsers(required=True, metavar="COMMAND")
    for command in COMMANDS:
        command.add_command(commands)
    return parser
