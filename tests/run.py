"""Runs the suites one after the other and ends in a table of them: `python tests/run.py [--full] [--resume] [suite ...]`."""

from __future__ import annotations

import argparse
import hashlib
import importlib.util
import json
import os
import shutil
import subprocess
import sys
import sysconfig
import time
from collections.abc import Iterator
from pathlib import Path
from xml.etree import ElementTree

import report

ROOT = Path(__file__).resolve().parent.parent
PYTEST = [sys.executable, "-m", "pytest", "-q", "--no-header", "--max-worker-restart=0", "-n", os.environ.get("TEST_JOBS", "2")]

# Fresh memory is 0x7f7f7f7f, 3e38 as a float: an output that a kernel forgets to write is no luck. Threads that wait sleep: spinning,
# they would take the core from the tests beside them.
ENVIRONMENT = {**os.environ, "MALLOC_PERTURB_": "128", "OMP_WAIT_POLICY": os.environ.get("OMP_WAIT_POLICY", "PASSIVE")}


def cmake(build: Path, options: list[str], targets: list[str], chosen: list[str]) -> list[list[str]]:
    """Configure, build and run tests of a folder of its own."""
    tool = lambda name: str(Path(sys.executable).parent / name)  # noqa: E731
    configure = [tool("cmake"), "-S", str(ROOT), "-B", str(build), "-GNinja", f"-DCMAKE_MAKE_PROGRAM={tool('ninja')}", *options]
    run = [tool("ctest"), "--test-dir", str(build), "-j2", "--output-on-failure", *chosen]
    return [configure, [tool("cmake"), "--build", str(build), "--target", *targets], run]


ALONE = ["-DSPARSEKERN_TORCH=OFF", "-DSPARSEKERN_PYTHON=OFF", "-DSPARSEKERN_CUDA=OFF"]  # the torch-free core


def extension() -> list[str]:
    """CMake's options for torch's operators and the Python modules; with nothing to build them against, for neither."""
    torch, pybind11 = (importlib.util.find_spec(name) for name in ("torch", "pybind11"))
    if not torch or not pybind11 or not (Path(sysconfig.get_path("include")) / "Python.h").is_file():
        return ALONE
    folder = Path(pybind11.origin).parent / "share/cmake/pybind11"
    found = [f"-DSPARSEKERN_TORCH_DIR={Path(torch.origin).parent}", f"-Dpybind11_DIR={folder}"]
    return ["-DSPARSEKERN_TORCH=ON", "-DSPARSEKERN_PYTHON=ON", f"-DPython_EXECUTABLE={sys.executable}", *found]


def core_folder() -> Path:
    """Where setup.py last built the very core that the C++ tests are linked with, which takes minutes; or a folder of their own."""
    built = (ROOT / "build").glob(f"cmake-{sys.implementation.cache_tag}-*/CMakeCache.txt")
    return max((cache.parent for cache in built), key=lambda folder: folder.stat().st_mtime, default=ROOT / "build" / "cpp")


def cpp(sanitize: str = "", under: str = "") -> list[list[str]]:
    """The torch-free core, once per instruction set; under a sanitizer the extension too; or `under` valgrind, or other processors."""
    build = ROOT / "build" / ("cpp-" + sanitize.replace(",", "-")) if sanitize else core_folder()
    if not shutil.which(os.environ.get("CXX", "g++")):
        print("no C++ compiler: the C++ tests are skipped")
        return []
    if under and not shutil.which(under):
        print(f"no {under}: its tests are skipped")
        return []
    what = extension() if sanitize else ALONE
    options = [*what, "-DSPARSEKERN_TESTS=ON", f"-DSPARSEKERN_SANITIZE={sanitize}"]
    targets = ["all"] if what == ALONE else ["all", "_quick_call"]
    steps = cmake(build, options, targets, ["-C", under, "-L", under] if under else [])
    if what != ALONE:
        steps.append([sys.executable, "tests/trust/sanitized.py", str(build), sanitize.partition(",")[0]])
    return steps


def aarch64() -> list[list[str]]:
    """The core on 64-bit Arm: cross-compiled, and run in qemu's user emulation."""
    if not shutil.which("aarch64-linux-gnu-g++"):
        print("no aarch64-linux-gnu-g++: the tests on 64-bit Arm are skipped (Debian: apt install g++-aarch64-linux-gnu)")
        return []
    if not (shutil.which("qemu-aarch64") or shutil.which("qemu-aarch64-static")):
        print("no qemu-aarch64: the tests on 64-bit Arm are skipped (Debian: apt install qemu-user)")
        return []
    toolchain = f"-DCMAKE_TOOLCHAIN_FILE={ROOT / 'tests' / 'cpp' / 'aarch64.cmake'}"
    return cmake(ROOT / "build" / "aarch64", [*ALONE, "-DSPARSEKERN_TESTS=ON", toolchain], ["all"], [])


def cuda(sanitize: str = "") -> list[list[str]]:
    """The CUDA kernels: in the emulator, behind torch's operators there, through mutants of their source, and through nvcc where it is."""
    build = ROOT / "build" / ("cuda-" + sanitize.replace(",", "-") if sanitize else "cuda")
    if not shutil.which(os.environ.get("CXX", "g++")):
        print("no C++ compiler: the CUDA kernels are not tested")
        return []
    options = [*ALONE, "-DSPARSEKERN_CUDA_TESTS=ON", f"-DSPARSEKERN_SANITIZE={sanitize}"]
    torch = importlib.util.find_spec("torch")
    options += [f"-DSPARSEKERN_TORCH_DIR={Path(torch.origin).parent}"] if torch else []
    steps = cmake(build, options, ["cuda_tests"], ["-L", "cuda"])
    return [*steps, *([] if sanitize else [[*PYTEST, "tests/cuda"]])]


SUITES = {
    "lint": lambda: [
        [sys.executable, "-m", "ruff", "check", "."],
        [sys.executable, "-m", "ruff", "format", "--check", "."],
        [sys.executable, "-m", "mypy"],
    ],
    "cpp": cpp,
    "cuda": cuda,
    "ops": lambda: [[*PYTEST, "tests/ops"]],
    "triton": lambda: [[*PYTEST, "tests/twins"]],
    "layers": lambda: [[*PYTEST, "tests/nn", "tests/topology", "tests/data", "tests/analysis", "tests/transform"]],
    "models": lambda: [[*PYTEST, "tests/models"]],
    "tools": lambda: [
        [
            *PYTEST,
            "tests/measure",
            "tests/profile",
            "tests/reproduce",
            "tests/train",
            "tests/test_cli.py",
            "tests/test_architecture.py",
            "tests/test_without_kernels.py",
            "tests/test_hardened.py",
            "tests/test_what_was_not_tried.py",
            "tests/test_import.py",
        ]
    ],
    "trust": lambda: [[*PYTEST, "tests/trust", "--ignore-glob=*/test_large*.py"]],
    "docs": lambda: [[*PYTEST, "--doctest-modules", "sparsekern"], [*PYTEST, "tests/test_docs.py", "tests/test_examples.py"]],
}


#: Only with --full, and before everything else the same suites with their slow tests.
FULL = {
    "large": lambda: [[*PYTEST[:-2], "tests/trust/test_large.py", "tests/trust/test_large_gradients.py"]],  # alone: up to 16 GiB
    "sanitize": lambda: cpp("address,undefined"),
    "sanitize_threads": lambda: cpp("thread"),
    "sanitize_cuda": lambda: cuda("address,undefined"),
    "aarch64": aarch64,
    "valgrind": lambda: cpp(under="valgrind"),
    "processors": lambda: cpp(under="qemu-x86_64"),
    "audit": lambda: [[sys.executable, "tests/dependencies.py"]],
    "package": lambda: [[*PYTEST[:-2], "tests/test_packaging.py"]],
    "wheels": lambda: [[sys.executable, f"tests/wheels/{name}.py", *rest] for name, *rest in (("make_wheel",), ("matrix", "dist"))],
}


#: What the suites of this run left: JUnit files, and how many cases the tests with many tried (tests/trust/tally.py).
RESULTS = ROOT / "build" / "tests"


#: What a suite reads, by the first words of paths; one that is not named reads everything. The others read no prose and no figures.
KERNELS = ("CMakeLists.txt", "setup.py", "csrc/", "tests/cpp/", "tests/run.py")
READS = {name: KERNELS for name in ("cpp", "valgrind", "processors", "aarch64")} | {"sanitize_cuda": (*KERNELS, "tests/cuda/")}
NO_PROSE = ("ops", "layers", "models", "triton", "cuda", "trust", "large", "sanitize", "sanitize_threads")
PROSE = ("docs/", "bench/results/", "README.md", "CHANGELOG.md", "CONTRIBUTING.md")


def source_key(name: str) -> str:
    """Of every file that the suite could depend on: one that passed is not run again for the same ones (``--resume``)."""
    found = hashlib.sha256()
    listed = subprocess.run(["git", "ls-files", "-co", "--exclude-standard"], cwd=ROOT, capture_output=True, text=True).stdout.split()
    left_out = PROSE if name in NO_PROSE else ()
    for path in sorted(listed):
        if path.startswith(READS.get(name, "")) and not path.startswith(left_out) and (file := ROOT / path).is_file():
            found.update(path.encode() + b"\0" + file.read_bytes())
    return found.hexdigest()


def reporting(command: list[str], junit: Path) -> list[str]:
    """The same command, with its results in a JUnit file."""
    if "pytest" in command or "tests/trust/sanitized.py" in command:
        return [*command, f"--junitxml={junit}"]
    return [*command, "--output-junit", str(junit)] if Path(command[0]).name == "ctest" else command


def counted(name: str) -> tuple[int, int]:
    """(cases tried, failures) of a suite: tests, and for a test of many cases those."""
    cases = failures = 0
    for suite in suites_of(name):
        skipped = int(suite.get("skipped", 0)) + int(suite.get("disabled", 0))
        cases += int(suite.get("tests", 0)) - skipped
        failures += int(suite.get("failures", 0)) + int(suite.get("errors", 0))
    tally = RESULTS / f"{name}.tally"
    cases += sum(int(line.split()[0]) for line in tally.read_text().splitlines()) if tally.exists() else 0
    return cases, failures


def notes(name: str) -> list[str]:
    """What a suite did not try, which no failure shows: lines of its tally with no cases, and tests that were skipped."""
    tally = RESULTS / f"{name}.tally"
    lines = [line.split(maxsplit=1) for line in tally.read_text().splitlines()] if tally.exists() else []
    skipped = sum(int(suite.get(kind, 0)) for suite in suites_of(name) for kind in ("skipped", "disabled"))
    return [*(what for count, what in lines if count == "0"), *([f"{skipped} skipped"] if skipped else [])]


def suites_of(name: str) -> Iterator[ElementTree.Element]:
    for path in RESULTS.glob(f"{name}-*.xml"):
        yield from ElementTree.parse(path).getroot().iter("testsuite")


def run_suite(name: str, commands: list[list[str]], full: bool) -> dict:
    """Runs it up to the first command that fails: what there is to say of it."""
    started, failed = time.monotonic(), False
    for old in RESULTS.glob(f"{name}[-.]*"):
        old.unlink()
    environment = {**ENVIRONMENT, "TEST_TALLY": str(RESULTS / f"{name}.tally")}
    for number, command in enumerate(commands):
        if "pytest" in command:
            command = command + ([] if full or name in FULL else ["-m", "not slow"])
        print(f"--- {name}: {' '.join(Path(c).name if c.startswith('/') else c for c in command)}", flush=True)
        if subprocess.run(reporting(command, RESULTS / f"{name}-{number}.xml"), cwd=ROOT, env=environment).returncode:
            failed = True
            break
    cases, failures = counted(name)
    minutes = (time.monotonic() - started) / 60
    found = {"cases": cases, "failures": max(failures, int(failed)), "minutes": minutes, "notes": notes(name)}
    return {**found, "skipped": not commands, "commit": report.commit()}


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("suites", nargs="*", metavar="suite", help=f"of {', '.join({**SUITES, **FULL})}; default: all")
    parser.add_argument("--full", action="store_true", help="also what takes minutes")
    parser.add_argument("--resume", action="store_true", help="leave out suites that passed on the very files that they read")
    options = parser.parse_args()
    suites = {**SUITES, **(FULL if options.full or options.suites else {})}
    unknown = set(options.suites) - set(suites)
    if unknown:
        parser.error(f"unknown suite {sorted(unknown)[0]!r}; choose from {', '.join(suites)}")
    RESULTS.mkdir(parents=True, exist_ok=True)
    kept = RESULTS / ("full.json" if options.full else "quick.json")
    results = json.loads(kept.read_text()) if options.resume and kept.exists() else {}
    for name in options.suites or suites:
        key = source_key(name)
        if name in results and not results[name]["failures"] and results[name]["key"] == key:
            print(f"--- {name}: passed before", flush=True)
            continue
        results[name] = run_suite(name, suites[name](), options.full) | {"key": key}
        kept.write_text(json.dumps(results, indent=1))
    ran = {name: results[name] for name in options.suites or suites}
    print("\n" + report.table(ran), flush=True)
    if options.full:
        (RESULTS / "full.md").write_text(report.page(ran))
    failed = sum(r["failures"] > 0 for r in ran.values())
    print(f"suites: {len(ran) - failed} passed, {failed} failed")
    return bool(failed)


if __name__ == "__main__":
    sys.exit(main())
