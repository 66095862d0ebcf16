"""The torch operators of the CUDA kernels: stable ABI and no header of CUDA, so that a CPU torch is enough to build them."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import compiled
import pytest
import torch

GLUE = [*sorted((compiled.ROOT / "csrc" / "torch").glob("*_cuda.cpp")), compiled.ROOT / "csrc" / "torch" / "sparse_linear_tensors.cpp"]


@pytest.mark.skipif(not shutil.which(os.environ.get("CXX", "g++")), reason="no C++ compiler")
@pytest.mark.parametrize("source", GLUE, ids=lambda path: path.name)
def test_glue_compiles_for_a_cuda_torch(source):
    include = [f"-I{compiled.ROOT / 'csrc'}", "-isystem", str(Path(torch.__file__).parent / "include")]
    defines = ["-DSK_CUDA", "-DUSE_CUDA", "-DTORCH_STABLE_ONLY", "-DTORCH_TARGET_VERSION=0x020A000000000000"]
    command = [
        os.environ.get("CXX", "g++"),
        "-std=c++17",
        "-fsyntax-only",
        "-fvisibility=hidden",
        "-Wall",
        "-Wextra",
        "-Werror",
        *defines,
        *include,
        str(source),
    ]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-3000:]


@pytest.mark.slow
@pytest.mark.skipif(not compiled.nvcc(), reason="no nvcc")
def test_package_library_links_against_a_cpu_torch():
    tool = lambda name: str(Path(sys.executable).parent / name)  # noqa: E731
    build, torch_dir = compiled.ROOT / "build" / "cuda-package", Path(torch.__file__).parent
    options = {"PYTHON": "OFF", "CUDA": "ON", "CUDA_ARCHITECTURES": "90a-real", "TORCH_DIR": torch_dir}
    configure = [tool("cmake"), "-S", compiled.ROOT, "-B", build, "-GNinja", f"-DCMAKE_MAKE_PROGRAM={tool('ninja')}"]
    configure += [f"-DCMAKE_CUDA_COMPILER={compiled.nvcc()}", *(f"-DSPARSEKERN_{k}={v}" for k, v in options.items())]
    for command in (configure, [tool("cmake"), "--build", build, "--target", "_C_cuda"]):
        done = subprocess.run(command, capture_output=True, text=True)
        assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-1000:]
    library = build / "_C_cuda.so"
    needed = subprocess.run(["readelf", "-d", library], capture_output=True, text=True, check=True).stdout
    assert "libtorch_cuda.so" in needed and "libcudart" not in needed and "sparsekern_core" not in needed
    symbols = subprocess.run(["nm", "-uD", library], capture_output=True, text=True, check=True).stdout
    assert "aoti_torch_get_current_cuda_stream" in symbols and "aoti_torch_create_device_guard" in symbols
    mangled = [line.split()[-1] for line in symbols.splitlines() if " _Z" in line]
    assert not [name for name in mangled if "c10" in name or "at6" in name or "2at" in name], "not the stable ABI"
