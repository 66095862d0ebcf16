"""The wheel in fresh environments: `python tests/wheels/matrix.py WHEEL [--only TORCH:PYTHON ...]`. Ends in a table of them, as
the page docs/wheels.md has it.

Every torch that pip offers from 2.10 on (the newest of each minor version), each with one of the Pythons of this machine, so that every
Python has its turn. An environment holds torch, the wheel with its [cli] and pytest, sees no compiler, and is deleted at once: with
CUDA's libraries it takes up to 7 GB. What cannot be installed is skipped, with pip's reason.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import shutil
import subprocess
import sys
import tempfile
from itertools import cycle
from pathlib import Path

HERE = Path(__file__).resolve().parent
OLDEST = (2, 10)
ROOM_BYTES = 12e9
HEAD = ("torch", "Python", "op cases against float64", "short calls", "`sparsekern probe`", "seconds", "result")
KEYS = ("torch", "python", "cases", "quick", "probe", "seconds", "outcome")


def call(*command: object, **kwargs) -> subprocess.CompletedProcess:
    return subprocess.run([str(word) for word in command], capture_output=True, text=True, **kwargs)


def pythons() -> dict[str, str]:
    """Version -> file, one per minor version that has venv and pip: this one, those on the path, those of pyenv."""
    names = [f"python3.{minor}" for minor in range(10, 20)]
    folders = [Path(folder) for folder in os.environ["PATH"].split(":")] + sorted((Path.home() / ".pyenv" / "versions").glob("3.*/bin"))
    files = [Path(sys.executable), *(folder / name for name in names for folder in folders)]
    ask = "import ensurepip, venv, sys; print('%d.%d' % sys.version_info[:2])"
    found: dict[str, str] = {}
    for file in files:
        if file.is_file() and not (answer := call(file, "-c", ask)).returncode:
            found.setdefault(answer.stdout.strip(), str(file))
    return dict(sorted(found.items(), key=lambda item: int(item[0].split(".")[1])))


def torches() -> list[str]:
    """The newest version of each minor one that pip offers, oldest first. Of builds for CUDA and for the CPU pip takes the latter."""
    said = call(sys.executable, "-m", "pip", "index", "versions", "torch").stdout
    listed = re.search(r"Available versions: (.*)", said)
    newest: dict[tuple[int, int], int] = {}
    for version in listed.group(1).split(", ") if listed else []:
        major, minor, patch = map(int, version.partition("+")[0].split(".")[:3])
        if (major, minor) >= OLDEST:
            newest[major, minor] = max(newest.get((major, minor), 0), patch)
    return [f"{major}.{minor}.{patch}" for (major, minor), patch in sorted(newest.items())]


def try_one(torch: str, python: str, wheel: Path) -> dict:
    """What there is to say of one environment: {"outcome": "ok" | "skipped: ..." | "FAILED: ..."} and what the trial found."""
    if shutil.disk_usage(tempfile.gettempdir()).free < ROOM_BYTES:
        return {"outcome": f"skipped: less than {ROOM_BYTES / 1e9:.0f} GB free in {tempfile.gettempdir()}"}
    with tempfile.TemporaryDirectory() as folder:
        made = call(python, "-m", "venv", f"{folder}/venv")
        if made.returncode:
            return {"outcome": f"skipped: {made.stderr.strip().splitlines()[-1]}"}
        binary = f"{folder}/venv/bin"
        pip = (f"{binary}/python", "-m", "pip", "install", "--quiet")
        got = call(*pip, f"torch=={torch}", "numpy", "pytest")
        if got.returncode:
            return {"outcome": f"skipped: {got.stderr.strip().splitlines()[-1]}"}
        got = call(*pip, f"{wheel}[cli]")
        if got.returncode:
            return {"outcome": f"FAILED: {got.stderr.strip()}"}
        tests = shutil.copytree(HERE.parent / "ops", f"{folder}/ops")
        environment = {**{k: v for k, v in os.environ.items() if not k.startswith(("PYTHON", "CXX"))}, "PATH": binary}
        done = call(f"{binary}/python", HERE / "trial.py", tests, cwd=folder, env=environment)
        if done.returncode:
            return {"outcome": f"FAILED: {(done.stdout + done.stderr)[-3000:]}"}
        return {"outcome": "ok", **json.loads(done.stdout.splitlines()[-1])}


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("wheel", type=Path)
    parser.add_argument("--only", nargs="*", metavar="TORCH:PYTHON", help="for example 2.10.0:3.12")
    options = parser.parse_args()
    wheel = options.wheel if options.wheel.is_file() else next(options.wheel.glob("sparsekern-*.whl"))
    have = pythons()
    pairs = [pair.split(":") for pair in options.only] if options.only else list(zip(torches(), cycle(have)))
    if not pairs:
        print("skipped: pip offers no torch here")
    lines, failed = [" | ".join(HEAD), " | ".join("-" * len(head) for head in HEAD)], 0
    for torch, python in pairs:
        found = try_one(torch, have[python], wheel.resolve())
        failed += found["outcome"].startswith("FAILED")
        told = {"torch": torch, "python": python, "quick": None} | found
        told["quick"] = {True: "yes", False: "no"}.get(told["quick"], "")
        lines.append(" | ".join(str(told.get(key, "")).replace("\n", " ") for key in KEYS))
        print(f"{found['outcome']}\n| {lines[-1]} |", flush=True)
        if os.environ.get("TEST_TALLY") and "cases" in found:
            with open(os.environ["TEST_TALLY"], "a") as tally:
                tally.write(f"{found['cases']} wheel\n")
    print("\n".join(["", wheel.name, "", *(f"| {line} |" for line in lines)]))
    return bool(failed)


if __name__ == "__main__":
    sys.exit(main())
