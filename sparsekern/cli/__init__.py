"""The command line: one file per command."""

from sparsekern.cli.program import main

__all__ = ["main"]
