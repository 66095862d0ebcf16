"""Runs the suites one after the other and says how long each took: `python tests/run.py [--full] [suite ...]`."""

from __future__ import annotations

import argparse
import importlib.util
import os
import shutil
import subprocess
import sys
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
PYTEST = [sys.executable, "-m", "pytest", "-q", "--no-header", "-n", os.environ.get("TEST_JOBS", "2")]

# Fresh memory is 0x7f7f7f7f, 3e38 as a float: an output that a kernel forgets to write is no luck.
ENVIRONMENT = {**os.environ, "MALLOC_PERTURB_": "128"}


def cpp(sanitize: str = "") -> list[list[str]]:
    """The torch-free core, once per instruction set."""
    build = ROOT / "build" / ("cpp-" + sanitize.replace(",", "-") if sanitize else "cpp")
    tool = lambda name: str(Path(sys.executable).parent / name)  # noqa: E731
    if not shutil.which(os.environ.get("CXX", "g++")):
        print("no C++ compiler: the C++ tests are skipped")
        return []
    configure = [tool("cmake"), "-S", str(ROOT), "-B", str(build), "-GNinja", f"-DCMAKE_MAKE_PROGRAM={tool('ninja')}"]
    options = ["-DSPARSEKERN_TORCH=OFF", "-DSPARSEKERN_PYTHON=OFF", "-DSPARSEKERN_TESTS=ON", f"-DSPARSEKERN_SANITIZE={sanitize}"]
    run = [tool("ctest"), "--test-dir", str(build), "-j2", "--output-on-failure"]
    return [configure + options, [tool("cmake"), "--build", str(build)], run]


def cuda(sanitize: str = "") -> list[list[str]]:
    """The CUDA kernels: in the emulator, behind torch's operators there, through mutants of their source, and through nvcc where it is."""
    build = ROOT / "build" / ("cuda-" + sanitize.replace(",", "-") if sanitize else "cuda")
    tool = lambda name: str(Path(sys.executable).parent / name)  # noqa: E731
    if not shutil.which(os.environ.get("CXX", "g++")):
        print("no C++ compiler: the CUDA kernels are not tested")
        return []
    configure = [tool("cmake"), "-S", str(ROOT), "-B", str(build), "-GNinja", f"-DCMAKE_MAKE_PROGRAM={tool('ninja')}"]
    options = ["-DSPARSEKERN_TORCH=OFF", "-DSPARSEKERN_PYTHON=OFF", "-DSPARSEKERN_CUDA_TESTS=ON", f"-DSPARSEKERN_SANITIZE={sanitize}"]
    torch = importlib.util.find_spec("torch")
    options += [f"-DSPARSEKERN_TORCH_DIR={Path(torch.origin).parent}"] if torch else []
    make = [tool("cmake"), "--build", str(build), "--target", "cuda_tests"]
    run = [tool("ctest"), "--test-dir", str(build), "-L", "cuda", "-j2", "--output-on-failure"]
    return [configure + options, make, run, *([] if sanitize else [[*PYTEST, "tests/cuda"]])]


SUITES = {
    "lint": lambda: [[sys.executable, "-m", "ruff", "check", "."], [sys.executable, "-m", "ruff", "format", "--check", "."]],
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
            "tests/test_import.py",
        ]
    ],
    "docs": lambda: [[*PYTEST, "--doctest-modules", "sparsekern"], [*PYTEST, "tests/test_docs.py", "tests/test_examples.py"]],
}


#: Only with --full, and before everything else the same suites with their slow tests.
FULL = {
    "sanitize": lambda: cpp("address,undefined"),
    "sanitize_cuda": lambda: cuda("address,undefined"),
    "package": lambda: [[*PYTEST[:-2], "tests/test_packaging.py"]],
}


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("suites", nargs="*", metavar="suite", help=f"of {', '.join({**SUITES, **FULL})}; default: all")
    parser.add_argument("--full", action="store_true", help="also what takes minutes")
    options = parser.parse_args()
    suites = {**SUITES, **(FULL if options.full or options.suites else {})}
    unknown = set(options.suites) - set(suites)
    if unknown:
        parser.error(f"unknown suite {sorted(unknown)[0]!r}; choose from {', '.join(suites)}")
    failed, lines = [], []
    for name in options.suites or suites:
        started = time.monotonic()
        for command in suites[name]():
            if "pytest" in command:
                command = command + ([] if options.full or name in FULL else ["-m", "not slow"])
            print(f"--- {name}: {' '.join(Path(c).name if c.startswith('/') else c for c in command)}", flush=True)
            if subprocess.run(command, cwd=ROOT, env=ENVIRONMENT).returncode:
                failed.append(name)
                break
        lines.append(f"  {name:8s} {(time.monotonic() - started) / 60:5.1f} min{'  FAILED' if name in failed else ''}")
    print("\n".join(["", "suite", *lines]), flush=True)
    print(f"suites: {len(lines) - len(failed)} passed, {len(failed)} failed")
    return bool(failed)


if __name__ == "__main__":
    sys.exit(main())
