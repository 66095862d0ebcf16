"""Sparse layers of other packages, where they are installed: SparseProp and sparselab.

Both take and give row-major matrices, transpose inside, know float32 only, and have gradients of the kept weights.

    pip install "sparsekern[peers]"     SparseProp compiles itself; sparselab has wheels for Python 3.11 and later
"""

from __future__ import annotations

import ctypes
import importlib
import re
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn


def sparseprop_layer(weight: Tensor, bias: Tensor) -> tuple[nn.Module, nn.Parameter]:
    """``sparseprop``'s SparseLinear of ``weight [out, in]``, and its kept weights by rows ``[nnz]``."""
    linear = _import("sparseprop.modules.linear")
    layer = linear.SparseLinear(weight, nn.Parameter(bias.clone()))
    return layer, layer.W_val


def sparselab_layer(weight: Tensor, bias: Tensor) -> tuple[nn.Module, nn.Parameter]:
    """``sparselab``'s SparseLinear of ``weight [out, in]``, and its kept weights by rows ``[nnz]``.

    Its constructor draws a topology; the given one is put in its place, without room to grow, as its own ``reset_parameters`` does.
    """
    sparselab = _import("sparselab")
    layer = sparselab.SparseLinear(weight.size(1), weight.size(0), sparsity=0.99)
    layer._csr = sparselab.PaddedCSR.from_dense(weight, padding_ratio=0.0)
    layer._values = nn.Parameter(torch.as_tensor(layer._csr.values))
    with torch.no_grad():
        layer.bias.copy_(bias)
    return layer, layer._values


def memory(layer: Any) -> dict[str, int]:
    """Bytes of kept weights, index and bias of a layer of either package."""
    if hasattr(layer, "W_idx"):
        weight, index = layer.W_val, sum(t.nbytes for t in layer.W_idx)
    else:
        csr, weight = layer._csr, layer._values
        index = sum(getattr(csr, name).nbytes for name in ("col_indices", "row_start", "row_nnz", "row_capacity"))
    return {"weight": weight.nbytes, "index": index, "bias": layer.bias.nbytes}


def _import(module: str) -> Any:
    try:
        found = importlib.import_module(module)
    except ModuleNotFoundError as error:
        raise ImportError(f'{error.name} is not installed (pip install "sparsekern[peers]")') from None
    same_threads()
    return found


def same_threads() -> None:
    """Tell every OpenMP library of this process to use as many threads as torch; packages may bring their own."""
    maps = Path("/proc/self/maps")
    if not maps.exists():
        return
    named = re.compile(r"/lib(gomp|iomp|omp)\d?(-[^/]*)?\.so[\d.]*$")
    libraries = {line.split()[-1] for line in maps.read_text().splitlines() if named.search(line)}
    for path in libraries:
        ctypes.CDLL(path).omp_set_num_threads(torch.get_num_threads())
