"""The ops served by the CUDA kernels in the emulator, on CPU tensors: provider ``emu``.

The library is the glue and the kernels of the package's CUDA library, compiled for the emulated device; `python tests/run.py cuda`
builds it. The functions that choose between kernels and torch are those of `sparsekern.ops.cuda`.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch

from sparsekern.ops import OPS, backends, cuda

LIBRARY = Path(__file__).resolve().parent.parent.parent / "build" / "cuda" / "_C_emulated.so"


def kernels():
    """The namespace of the emulated library's ops."""
    torch.ops.load_library(str(LIBRARY))
    return torch.ops.sparsekern_emu


@contextlib.contextmanager
def sent_to(library: Any, dense: str = "never") -> Iterator[None]:
    """CPU tensors go where a GPU's do: to what chooses between these kernels and torch; ``dense`` as in `sparsekern.ops.backends.use`."""
    together = {name: OPS[name].gradients for name in cuda.SERVED}  # all gradients in one call: a product of the CPU's library
    registered = cuda.register(library, "CPU")
    for name in cuda.SERVED:
        OPS[name].gradients = None
    try:
        with backends.use(backends.providers()[-1], dense=dense):
            if backends.quick_call:
                backends.quick_call.use_reference(True)  # the short way to the CPU's kernels does not ask the dispatcher
            yield
    finally:
        registered._destroy()
        for name, gradients in together.items():
            OPS[name].gradients = gradients


@contextlib.contextmanager
def use(dense: str = "never", tf32: bool = False) -> Iterator[None]:
    """Serve CPU tensors by the emulated kernels; ``tf32`` for torch's flags."""
    flags = torch.backends.cudnn.allow_tf32, torch.backends.cuda.matmul.allow_tf32
    torch.backends.cudnn.allow_tf32 = torch.backends.cuda.matmul.allow_tf32 = tf32
    try:
        with sent_to(kernels(), dense):
            yield
    finally:
        torch.backends.cudnn.allow_tf32, torch.backends.cuda.matmul.allow_tf32 = flags
