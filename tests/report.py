"""What a run of the suites found: the table that it ends in, and a page to keep (build/tests/full.md, of which docs/full_run.md is one)."""

from __future__ import annotations

import platform
import subprocess
from collections.abc import Mapping
from datetime import datetime, timezone
from importlib import metadata
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent


def total(ran: Mapping[str, dict]) -> dict:
    """Of all suites."""
    return {field: sum(r[field] for r in ran.values()) for field in ("cases", "failures", "minutes")}


def remark(result: dict) -> str:
    """What a number alone would hide."""
    said = ["FAILED"] if result["failures"] else ["skipped: a tool is missing"] if result.get("skipped") else []
    return "; ".join([*said, *result.get("notes", [])])


def table(ran: Mapping[str, dict]) -> str:
    """For a terminal."""
    line = "  {:16s} {:9d} {:8d} {:7.1f}  {}".format
    rows = [line(name, r["cases"], r["failures"], r["minutes"], remark(r)).rstrip() for name, r in {**ran, "all": total(ran)}.items()]
    return "\n".join(["suite            cases tried failures minutes", *rows])


def commit() -> str:
    """The commit of the files that are tested, and whether they are its own."""
    git = lambda *words: subprocess.run(["git", *words], cwd=ROOT, capture_output=True, text=True).stdout.strip()  # noqa: E731
    return (git("rev-parse", "--short", "HEAD") or "no commit") + (", changed" if git("status", "--porcelain") else "")


def processor() -> str:
    """This machine's, with the kernels that it can run and those that it cannot: their tests were skipped."""
    try:
        from sparsekern.measure.machine import machine_card
        from sparsekern.ops import backends
    except ImportError:
        return platform.machine()
    there = [p.removeprefix("cpu/") for p in backends.providers() if p.startswith("cpu/")]
    missing = [name for name in ("base", "avx2", "avx512", "amx") if name not in there]
    never = f" (not there, so not run: those for {' and '.join(missing)})" if missing else ""
    return f"{machine_card()['cpu']}, kernels for {', '.join(there)}{never}"


def page(ran: Mapping[str, dict]) -> str:
    """In Markdown: where it ran, and the table."""
    versions = ", ".join(f"{name} {metadata.version(name)}" for name in ("torch", "numpy"))
    where = f"{processor()}; Python {platform.python_version()}, {versions}"
    line = "| `{}` | {} | {} | {:.1f} | {} | {} |".format
    rows = [line(name, r["cases"], r["failures"], r["minutes"], r.get("commit", ""), remark(r)) for name, r in ran.items()]
    every = total(ran)
    return "\n".join(
        [
            "# The last full run",
            "",
            f"`make test-full`, ended {datetime.now(timezone.utc):%Y-%m-%d}: {where}. What each suite runs: [trust.md](trust.md).",
            "A suite whose commit is an older one read no file that changed after it, and was not run again.",
            "",
            "| suite | cases tried | failures | minutes | commit | |",
            "|---|---|---|---|---|---|",
            *rows,
            f"| all | {every['cases']} | {every['failures']} | {every['minutes']:.1f} | | |",
            "",
        ]
    )
