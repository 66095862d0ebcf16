"""The extension under a sanitizer: `python tests/trust/sanitized.py BUILD address|thread [pytest's arguments]`.

BUILD is a CMake build with torch's operators and SPARSEKERN_SANITIZE. The Python files are copied beside its libraries, and pytest runs
on that package, with the sanitizer's library loaded before Python's. Torch, numpy and OpenMP are not instrumented: of them the
sanitizer sees what they allocate and free, and what our code reads and writes of it. How torch's threads are handed work it is told
(core/core.h). First a fault of each kind is planted, which must be reported, and a good call, of which nothing may be said.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

HERE = Path(__file__).resolve().parent
ROOT = HERE.parent.parent
SUPPRESSIONS = HERE / "thread_suppressions.txt"

#: Which tests, and which of them not: a sanitizer multiplies the memory that a soak looks at, and follows no fork among threads.
TESTS = {
    "address": (
        ["test_addresses.py", "test_properties.py", "test_damaged_arrays.py", "test_bad_calls.py", "test_life.py"],
        "not memory_stays",
    ),
    "thread": (["test_life.py", "test_properties.py"], "not memory_stays and not loaders"),
}
#: What is planted, and what must be said of it.
PLANTED = {
    "address": [
        ("planted.write_past_the_end(ctypes.c_void_p(x.data_ptr()), ctypes.c_int64(x.numel()))", "heap-buffer-overflow"),
        ("planted.shift_too_far(40)", "shift exponent 40"),
    ],
    "thread": [("planted.add_without_order(ctypes.c_int64(10_000_000))", "data race")],
}
PROGRAM = """
import ctypes, sys, torch
import sparsekern
from sparsekern import nn
from sparsekern.ops import backends
assert sparsekern.__file__.startswith(sys.argv[1]), sparsekern.__file__
torch.set_num_threads(2)
planted = ctypes.CDLL(str(backends._LIBRARY.with_name("planted.so")))
x = torch.randn(64, 512)
with backends.use(backends.providers()[-1], dense="never" if backends.native else "auto"):
    nn.SparseLinear(512, 256, density=0.1, seed=0)(x).sum().backward()
    nn.GroupedConv2d(16, 32, 3, groups=4)(x.view(2, 16, 32, 32)).sum().backward()
"""


def library(name: str) -> str:
    """A library of the compiler's."""
    compiler = os.environ.get("CXX", "g++")
    found = subprocess.run([compiler, f"-print-file-name={name}"], capture_output=True, text=True).stdout.strip()
    if not os.path.isabs(found):
        raise SystemExit(f"{compiler} has no {name}")
    return os.path.realpath(found)


def package(build: Path) -> Path:
    """A folder with the Python files and the libraries of this build."""
    site = build / "site"
    shutil.rmtree(site, ignore_errors=True)
    shutil.copytree(ROOT / "sparsekern", site / "sparsekern", ignore=shutil.ignore_patterns("*.so", "__pycache__"))
    if not (build / "_C.so").is_file():
        raise SystemExit(f"there is no _C.so in {build}")
    for path in build.glob("*.so"):
        shutil.copy2(path, site / "sparsekern")
    return site


def environment(kind: str, site: Path, reports: Path) -> dict[str, str]:
    # a size that cannot be had is refused, as without the sanitizer; what Python keeps to its end is no leak of ours
    options = {
        "address": f"detect_leaks=0:allocator_may_return_null=1:log_path={reports}",
        "thread": f"exitcode=66:suppressions={SUPPRESSIONS}:log_path={reports}",
    }
    # libstdc++ as well: what throws is looked for when the sanitizer starts
    preloaded = [library({"address": "libasan.so", "thread": "libtsan.so"}[kind]), library("libstdc++.so")]
    paths = os.pathsep.join((str(site), str(HERE)))
    found = {
        **os.environ,
        "PYTHONPATH": paths,
        "LD_PRELOAD": " ".join(preloaded),
        "OMP_NUM_THREADS": "2",
        "SANITIZED_BUILD": str(site.parent),
    }
    found |= {
        "ASAN_OPTIONS" if kind == "address" else "TSAN_OPTIONS": options[kind],
        "UBSAN_OPTIONS": f"print_stacktrace=1:log_path={reports}",
    }
    found.pop("MALLOC_PERTURB_", None)
    return found


def main() -> int:
    build, kind, *rest = Path(sys.argv[1]).resolve(), sys.argv[2], *sys.argv[3:]
    reports, site = build / "reports" / "said", package(build)
    shutil.rmtree(reports.parent, ignore_errors=True)
    reports.parent.mkdir()
    env = environment(kind, site, reports)
    # shadow memory wants addresses that are not drawn at random
    fixed = ["setarch", "-R"] if kind == "thread" else []

    def said() -> str:
        """What the sanitizer reported since it was asked last."""
        found = sorted(reports.parent.iterdir())
        text = "".join(path.read_text(errors="replace") for path in found)
        for path in found:
            path.unlink()
        return text

    for fault, words in [("", ""), *PLANTED[kind]]:
        done = subprocess.run([*fixed, sys.executable, "-c", PROGRAM + fault, str(site)], env=env, cwd=site, capture_output=True, text=True)
        text = said() + (done.stderr if fault else "")  # where UndefinedBehaviorSanitizer says what it has to say
        if (words not in text or not done.returncode) if fault else (text or done.returncode):
            print(f"planted: {fault or 'nothing'}; returned {done.returncode}, and said:\n{text}{done.stderr}")
            return 1
        print(f"planted: {fault or 'nothing'}: {'reported' if fault else 'nothing said'}", flush=True)
    files, but = TESTS[kind]
    # pytest puts a folder with a conftest.py on the path, and so the tree's own libraries before these: not that one, and the plugin
    # sees to it that none of them was loaded
    ours = ["--confcutdir=tests", "-p", "instrumented"]
    # UndefinedBehaviorSanitizer beside AddressSanitizer heeds no log_path (the call that would set it finds the other's), and what it says
    # while it ends the process must not end with what pytest captured
    ours.append("--capture=sys")
    chosen = [*(f"tests/trust/{name}" for name in files), *ours, "-m", "not slow", "-k", but, "-q", "--no-header"]
    jobs = ["-n", os.environ.get("TEST_JOBS", "2")]
    # as a program of its own: `python -m` would find the package of this tree first
    pytest = [*fixed, str(Path(sys.executable).with_name("pytest")), *chosen, *jobs, *rest]
    errors = build / "errors"
    with errors.open("w") as stderr:
        failed = subprocess.run(pytest, env=env, cwd=ROOT, stderr=stderr).returncode
    aside, text = errors.read_text(errors="replace"), said()
    undefined = "runtime error: " in aside
    if failed or undefined:
        print(aside)
    if text:
        print(text)
    text += aside * undefined
    print(f"{kind}: pytest returned {failed}, the sanitizer {'reported the above' if text else 'had nothing to report'}")
    return bool(failed or text)


if __name__ == "__main__":
    sys.exit(main())
