"""Who serves which op on which device, and how to ask for somebody else.

A *provider* is a named implementation: ``"reference"`` (plain torch, on every device) and, on the CPU, one per instruction set
of the compiled kernels: ``"cpu/base"``, ``"cpu/avx2"``, ``"cpu/avx512"``, ``"cpu/amx"`` (AVX-512 and, for bf16, matrix tiles).
The best one the processor has serves by default. On a GPU it is ``"cuda"``, where its library was built, else ``"triton"``.
Asking for one that is absent is an error, never a fallback.
"""

from __future__ import annotations

import contextlib
import importlib.machinery
import importlib.util
from collections.abc import Callable, Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import torch

_LIBRARY = Path(__file__).resolve().parent.parent / "_C.so"
_CUDA_LIBRARY = _LIBRARY.with_name("_C_cuda.so")

#: Why the compiled CPU kernels are absent; None if they are there.
missing: str | None = None
if _LIBRARY.is_file():
    torch.ops.load_library(str(_LIBRARY))
else:
    missing = "built without a C++ compiler: every op is served by its reference"


def why_no_cuda(library: Path, cuda: str | None) -> str | None:
    """Why the library of CUDA kernels cannot be loaded into a torch built for ``cuda`` (None: for the CPU); None if it can."""
    if not library.is_file():
        return "built without nvcc, or for a CPU torch: on a GPU Triton's twins serve, or the references"
    return None if cuda else "this torch is a CPU build: the CUDA kernels are not loaded"


#: Why the CUDA kernels are absent; None if they are there.
missing_cuda: str | None = why_no_cuda(_CUDA_LIBRARY, torch.version.cuda)
if missing_cuda is None:
    torch.ops.load_library(str(_CUDA_LIBRARY))


def gpu_provider(missing: str | None, cuda: str | None, triton: bool) -> str | None:
    """Whose kernels a GPU runs: the library's; without it, under a torch built for ``cuda``, Triton's twins; None: nobody's."""
    if missing is None:
        return "cuda"
    return "triton" if cuda and triton else None


#: What may serve a GPU's tensors beside the references.
GPU_PROVIDERS = ("cuda", "triton")

#: One of them, or None.
gpu: str | None = gpu_provider(missing_cuda, torch.version.cuda, importlib.util.find_spec("triton") is not None)

native: ModuleType | None
try:
    native = importlib.import_module("sparsekern._native")
except ModuleNotFoundError:  # built without Python.h; the ops do not need it
    native = None


def _load_quick_call() -> ModuleType | None:
    """csrc/python/quick_*.cpp, if they were built against this very torch."""
    for suffix in importlib.machinery.EXTENSION_SUFFIXES:
        path = _LIBRARY.with_name(f"_quick_call-torch{torch.__version__}{suffix}")
        if path.is_file():
            spec = importlib.util.spec_from_file_location("sparsekern._quick_call", path)
            assert spec is not None and spec.loader is not None
            try:
                module = importlib.util.module_from_spec(spec)
                spec.loader.exec_module(module)
            except ImportError:  # another build of the same version
                return None
            return module
    return None


#: Shorter ways from Python to the ops; None where they were built against another torch, which only makes calls slower.
quick_call: ModuleType | None = _load_quick_call()


def quick(overload: Any) -> Callable[..., Any]:
    """The overload as a plain function of positional arguments: the same call, without a frame and the reading of a schema."""
    return quick_call.quick_call(overload._schema.name, overload._op) if quick_call else overload._op


#: Set by `use("reference")`: kernels are bypassed. Read by every call (ops/define.py).
forced_reference = False

#: The policy of a build without _native, which only the choice on a GPU can follow.
_policy = "auto"


def has_kernels(device: str | torch.device) -> bool:
    """Whether compiled kernels exist for this device type."""
    return {"cpu": missing is None, "cuda": gpu is not None}.get(torch.device(device).type, False)


def can_pack(weight: torch.Tensor) -> bool:
    """Whether there are kernels that read such a weight in an order of their own."""
    return weight.dtype in (torch.float32, torch.float16, torch.bfloat16) and weight.device.type == "cpu" and has_kernels("cpu")


def dense_policy() -> str:
    """What :func:`use` was asked for: ``"auto"``, ``"never"`` or ``"always"``."""
    return native.dense_policy() if native else _policy


def providers(device: str | torch.device = "cpu") -> list[str]:
    """Every provider that can run here, slowest first.

    >>> providers("cpu")[0]
    'reference'
    """
    if not has_kernels(device):
        return ["reference"]
    if torch.device(device).type == "cuda":
        return ["reference", str(gpu)]
    names = native.supported_isas() if native else []
    return ["reference", *(f"cpu/{name}" for name in names)] if names else ["reference", "cpu/default"]


def serves(op: str, device: str | torch.device = "cpu") -> str:
    """The provider that a call of ``op`` on ``device`` reaches now.

    Which of its kernels (or torch's dense product) then runs for given sizes is answered by the layer's ``explain()``.
    """
    from sparsekern.ops import OPS

    kernel = f"_{op}" if isinstance(op, str) and op in OPS else op  # ops without autograd are registered once, under their own name
    if not isinstance(kernel, str) or not hasattr(torch.ops.sparsekern, kernel):
        raise ValueError(f"serves: op must be one of {sorted(OPS)}; got {op!r}")
    if forced_reference:
        return "reference"
    on_cpu = OPS[op].cpu_provider if op in OPS else None
    if on_cpu and torch.device(device).type == "cpu":
        return on_cpu
    key = "CUDA" if torch.device(device).type == "cuda" else "CPU"
    if not has_kernels(device) or not torch._C._dispatch_has_kernel_for_dispatch_key(f"sparsekern::{kernel}", key):
        return "reference"
    if key == "CUDA":
        return str(gpu)
    return f"cpu/{native.isa() if native else 'default'}"


def _force_reference(forced: bool) -> None:
    global forced_reference
    forced_reference = forced
    if quick_call:
        quick_call.use_reference(forced)


def _set_policy(dense: str) -> None:
    global _policy
    if native:
        native.set_dense_policy(dense)
    else:
        _policy = dense


@contextlib.contextmanager
def use(provider: str, device: str | torch.device = "cpu", *, dense: str = "auto") -> Iterator[None]:
    """Run the ops of this block by ``provider``; for tests, benchmarks and doubt. Process-wide, not per thread.

    ``dense`` says whether a compiled op may hand over to torch's dense product: ``"auto"`` where that is estimated faster,
    ``"never"``, or ``"always"``.

    Raises:
        ValueError: ``use: provider must be one of ['reference', ...]; got 'cpu/avx1024'``

    >>> with use("reference"):
    ...     serves("sparse_linear")
    'reference'
    """
    if provider not in providers(device):
        raise ValueError(f"use: provider must be one of {providers(device)}; got {provider!r}")
    if dense not in ("auto", "never", "always"):
        raise ValueError(f"use: dense must be 'auto', 'never' or 'always'; got {dense!r}")
    if dense != "auto" and not native and torch.device(device).type != "cuda":
        raise ValueError(f"use: dense must be 'auto' in a build without _native; got {dense!r}")
    before = forced_reference, native and native.isa(), dense_policy()
    _force_reference(provider == "reference")
    _set_policy(dense)
    if native and provider.startswith("cpu/"):
        native.set_isa(provider.removeprefix("cpu/"))
    try:
        yield
    finally:
        _force_reference(before[0])
        _set_policy(before[2])
        if native:
            native.set_isa(before[1])
