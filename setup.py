"""Drives CMake (CMakeLists.txt is the one list of sources and flags) and is its own PEP 517 backend.

Only torch's headers and libtorch_cpu.so are needed (LibTorch stable ABI), so torch is found in the environment that is installed
*into*, also from inside pip's isolated build, and is never imported; a second torch is downloaded only where there is none.
"""

import hashlib
import os
import re
import shutil
import subprocess
import sys
import sysconfig
from pathlib import Path

from setuptools import Extension, setup
from setuptools.command.build_ext import build_ext

ROOT = Path(__file__).resolve().parent
PACKAGE = ROOT / "sparsekern"
ONE_ABI = not sysconfig.get_config_var("Py_GIL_DISABLED")  # a free-threaded Python has no limited API


def find_torch():
    """The directory of torch in this interpreter, else in the environment that pip installs into."""
    if os.environ.get("SPARSEKERN_TORCH_DIR"):
        return Path(os.environ["SPARSEKERN_TORCH_DIR"])
    candidates = [Path(p) / "torch" for p in sys.path if p]
    candidates += [Path(sysconfig.get_path(kind)) / "torch" for kind in ("purelib", "platlib")]  # hidden by build isolation
    for candidate in candidates:
        if (candidate / "include/torch/csrc/stable/library.h").is_file() and (candidate / "lib").is_dir():
            return candidate
    return None


def torch_version(torch_dir):
    """Its version, and that of the CUDA it was built for, or None."""
    text = (torch_dir / "version.py").read_text()
    cuda = re.search(r"^cuda(?::[^=]*)? = '([^']+)'", text, re.M)
    return re.search(r"__version__ = '([^']+)'", text).group(1), cuda and cuda.group(1)


def nvcc():
    return (
        os.environ.get("CUDACXX") or shutil.which("nvcc") or shutil.which(Path(os.environ.get("CUDA_HOME", "/usr/local/cuda")) / "bin/nvcc")
    )


def wants_cuda(cuda):
    """SPARSEKERN_CUDA=auto (the default: a CUDA torch and nvcc are there), on or off."""
    asked = os.environ.get("SPARSEKERN_CUDA", "auto").lower()
    if asked not in ("auto", "on", "off"):
        raise SystemExit(f"sparsekern: SPARSEKERN_CUDA must be auto, on or off; got {asked}")
    if asked == "on" and not nvcc():
        raise SystemExit("sparsekern: SPARSEKERN_CUDA=on needs nvcc, which was not found (set CUDACXX or CUDA_HOME)")
    return asked == "on" or (asked == "auto" and bool(cuda and nvcc()))


class CMakeBuild(build_ext):
    def build_extension(self, ext):
        out = Path(self.build_lib).resolve() / "sparsekern"
        out.mkdir(parents=True, exist_ok=True)
        compiler = os.environ.get("CXX", "g++")
        if not shutil.which(compiler):
            print(f"sparsekern: {compiler} not found: building without kernels, every op is served by its reference", flush=True)
            return
        torch_dir = find_torch()
        if torch_dir is None:
            raise SystemExit("sparsekern: PyTorch >= 2.10 was not found; run `pip install torch` first (or set SPARSEKERN_TORCH_DIR)")
        with_python = ONE_ABI and (Path(sysconfig.get_path("include")) / "Python.h").is_file()
        arguments = [
            "-GNinja",
            f"-DCMAKE_MAKE_PROGRAM={shutil.which('ninja')}",
            f"-DCMAKE_BUILD_TYPE={'Debug' if self.debug else 'Release'}",
            f"-DPython_EXECUTABLE={sys.executable}",
            f"-DSPARSEKERN_TORCH_DIR={torch_dir}",
            f"-DSPARSEKERN_PYTHON={'ON' if with_python else 'OFF'}",
            "-DSPARSEKERN_TORCH=ON",
            "-DSPARSEKERN_TESTS=OFF",  # the C++ tests may have been built here (tests/run.py)
        ]
        if with_python:
            import pybind11

            arguments.append(f"-Dpybind11_DIR={pybind11.get_cmake_dir()}")
        else:
            reason = "Python.h not found (python3-dev)" if ONE_ABI else "a free-threaded Python"
            print(f"sparsekern: {reason}: building without _native", flush=True)
        version, cuda = torch_version(torch_dir)
        arguments.append(f"-DSPARSEKERN_CUDA={'ON' if wants_cuda(cuda) else 'OFF'}")
        if wants_cuda(cuda):
            arguments.append(f"-DCMAKE_CUDA_COMPILER={nvcc()}")
        options = os.environ.get("CMAKE_ARGS", "").split()
        # CMake keeps its options, so every set of them gets a build directory of its own
        key = hashlib.sha1(
            " ".join([str(torch_dir), version, str(self.debug), *(["cuda"] if wants_cuda(cuda) else []), *options]).encode()
        ).hexdigest()[:8]
        build = ROOT / "build" / f"cmake-{sys.implementation.cache_tag}-{key}"
        build.mkdir(parents=True, exist_ok=True)
        kernels = "with" if wants_cuda(cuda) else "without"
        print(f"sparsekern: building against torch {version}, {kernels} CUDA kernels", flush=True)
        subprocess.check_call(["cmake", "-S", str(ROOT), "-B", str(build), *arguments, *options])
        subprocess.check_call(["cmake", "--build", str(build), "-j", os.environ.get("MAX_JOBS", str(os.cpu_count() or 1))])
        quick = ["cmake", "--build", str(build), "-j", os.environ.get("MAX_JOBS", str(os.cpu_count() or 1)), "--target", "_quick_call"]
        if with_python and os.environ.get("SPARSEKERN_QUICK_CALL", "on") != "off" and subprocess.call(quick):
            print("sparsekern: _quick_call does not build against this torch: calls take a few microseconds more", flush=True)
        for old in out.glob("*.so"):  # among them those for another torch
            old.unlink()
        subprocess.check_call(["cmake", "--install", str(build), "--prefix", str(out), "--component", "python"])

    def copy_extensions_to_source(self):  # editable installs load the libraries from the source tree
        for old in PACKAGE.glob("*.so"):
            old.unlink()
        for library in (Path(self.build_lib) / "sparsekern").glob("*.so"):
            shutil.copy2(library, PACKAGE)

    def get_outputs(self):
        return [str(p) for p in (Path(self.build_lib) / "sparsekern").glob("*.so")]


# ---- PEP 517 backend (pyproject.toml names this file): setuptools, plus torch where none is found
from setuptools import build_meta as _base  # noqa: E402
from setuptools.build_meta import *  # noqa: E402,F403


def get_requires_for_build_wheel(config_settings=None):
    return _base.get_requires_for_build_wheel(config_settings) + ([] if find_torch() else ["torch>=2.10"])


get_requires_for_build_editable = get_requires_for_build_wheel

if __name__ == "__main__":
    # cp310-abi3: nothing in the wheel needs one Python alone but the optional _quick_call, whose name says which one may load it
    setup(
        ext_modules=[Extension("sparsekern._native", sources=[], py_limited_api=ONE_ABI)],
        cmdclass={"build_ext": CMakeBuild},
        options={"bdist_wheel": {"py_limited_api": "cp310"}} if ONE_ABI else {},
    )
