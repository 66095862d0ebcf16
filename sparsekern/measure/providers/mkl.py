"""MKL's inspector-executor product, through the ``mkl`` wheel: the strongest sparse rival on this kind of processor.

    handle of W [out, in] (CSR int32, or BSR)  →  hint (operation, layout, rows of x, many calls)  →  optimize  →  product

MKL multiplies row-major matrices with features first: W times ``xT [in, N]`` gives ``yT [out, N]``. Three ways to a call:

features    x already feature-major, y left so                                     (free transposes)
transposed  x [N, in] and y [N, out] row-major, MKL's own transposition before and after
column      x and y as they are, read by MKL as column-major matrices              (no copy, but a slow kernel except for tiny fan-in)

The library is found when first asked for, from the list of files of the installed wheel: one single dynamic library, 32-bit indices
(LP64), and GNU threads, so that it shares torch's OpenMP.
"""

from __future__ import annotations

import ctypes
import re
import time
from collections.abc import Callable, Iterable
from ctypes import byref, c_float, c_int, c_size_t, c_void_p
from functools import cache
from importlib import metadata
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

LP64, GNU_THREADS = 0, 3
PLAIN, GENERAL, ROW_MAJOR, COLUMN_MAJOR = 10, 20, 101, 102  # operation, matrix type, layouts of the sparse header
MANY_CALLS = 100_000


class MatrixDescription(ctypes.Structure):
    """``struct matrix_descr`` of the header: a general matrix needs no more than its type."""

    _fields_ = (("type", c_int), ("mode", c_int), ("diag", c_int))


GENERAL_MATRIX = MatrixDescription(GENERAL, 0, 0)
_SIGNATURES = {
    "mkl_sparse_s_create_csr": (c_void_p, c_int, c_int, c_int, *[c_void_p] * 4),
    "mkl_sparse_s_create_bsr": (c_void_p, c_int, c_int, c_int, c_int, c_int, *[c_void_p] * 4),
    "mkl_sparse_set_mv_hint": (c_void_p, c_int, MatrixDescription, c_int),
    "mkl_sparse_set_mm_hint": (c_void_p, c_int, MatrixDescription, c_int, c_int, c_int),
    "mkl_sparse_optimize": (c_void_p,),
    "mkl_sparse_destroy": (c_void_p,),
    "mkl_sparse_s_mv": (c_int, c_float, c_void_p, MatrixDescription, c_void_p, c_float, c_void_p),
    "mkl_sparse_s_mm": (
        *(c_int, c_float, c_void_p, MatrixDescription, c_int),  # operation, alpha, handle, description, layout
        *(c_void_p, c_int, c_int, c_float, c_void_p, c_int),  # x, columns, stride of x, beta, y, stride of y
    ),
    "MKL_Somatcopy": (ctypes.c_char, ctypes.c_char, c_size_t, c_size_t, c_float, c_void_p, c_size_t, c_void_p, c_size_t),
    "MKL_Set_Num_Threads": (c_int,),
    "MKL_Set_Interface_Layer": (c_int,),
    "MKL_Set_Threading_Layer": (c_int,),
}


def library_file() -> str:
    """The path of ``libmkl_rt`` in the installed ``mkl`` wheel.

    Raises:
        ImportError: ``the mkl wheel is not installed (pip install "sparsekern[bench]")``
    """
    try:
        files = metadata.files("mkl") or []
    except metadata.PackageNotFoundError:
        raise ImportError('the mkl wheel is not installed (pip install "sparsekern[bench]")') from None
    for file in files:
        if re.fullmatch(r"libmkl_rt\.so(\.\d+)*", file.name):
            return str(Path(file.locate()).resolve())
    raise ImportError("the mkl wheel holds no libmkl_rt.so (x86-64 Linux only)")


@cache
def library() -> ctypes.CDLL:
    """The library, loaded once, with 32-bit indices and torch's kind of threads."""
    loaded = ctypes.CDLL(library_file())
    for name, arguments in _SIGNATURES.items():
        getattr(loaded, name).argtypes = arguments
    loaded.MKL_Set_Interface_Layer(LP64)
    loaded.MKL_Set_Threading_Layer(GNU_THREADS)
    return loaded


class Product:
    """A handle of ``weight [out, in]``, optimized for ``rows`` rows of x in one layout; no value may change.

    Args:
        weight: torch's CSR tensor, or its BSR tensor of square blocks.
        layout: ``ROW_MAJOR`` (xT and yT) or ``COLUMN_MAJOR`` (x and y); without effect for one row.

    Raises:
        RuntimeError: ``mkl_sparse_s_create_csr must return 0; got <status>``
    """

    def __init__(self, weight: Tensor, rows: int, *, layout: int = ROW_MAJOR) -> None:
        self.mkl = library()
        self.values = weight.values().contiguous()  # [nnz] or [blocks, block, block]
        self.starts, self.columns = weight.crow_indices().int(), weight.col_indices().int()
        self.block = self.values.size(-1) if self.values.dim() == 3 else 1
        self.handle = c_void_p()
        start = self.starts.data_ptr()
        arrays = start, start + self.starts.element_size(), self.columns.data_ptr(), self.values.data_ptr()
        out_blocks, in_blocks = (size // self.block for size in weight.shape)
        if self.block == 1:
            self._run("mkl_sparse_s_create_csr", byref(self.handle), 0, out_blocks, in_blocks, *arrays)
        else:
            self._run("mkl_sparse_s_create_bsr", byref(self.handle), 0, ROW_MAJOR, out_blocks, in_blocks, self.block, *arrays)
        if rows == 1:
            self._run("mkl_sparse_set_mv_hint", self.handle, PLAIN, GENERAL_MATRIX, MANY_CALLS)
        else:
            self._run("mkl_sparse_set_mm_hint", self.handle, PLAIN, GENERAL_MATRIX, layout, rows, MANY_CALLS)
        self._run("mkl_sparse_optimize", self.handle)

    def _run(self, name: str, *arguments: object) -> None:
        status = getattr(self.mkl, name)(*arguments)
        if status != 0:
            raise RuntimeError(f"{name} must return 0; got {status}")

    def __del__(self) -> None:
        if getattr(self, "handle", None):
            self.mkl.mkl_sparse_destroy(self.handle)

    @property
    def memory(self) -> dict[str, int]:
        """Bytes of the arrays given to MKL; what its optimized handle copies is not known."""
        return {"weight": self.values.nbytes, "index": self.starts.nbytes + self.columns.nbytes}


def one_row(weight: Tensor, bias: Tensor, x: Tensor) -> Callable[[], Tensor]:
    """``x [1, in]`` → ``[1, out]``: a matrix times a vector, added to the bias."""
    product = Product(weight, 1)
    multiply, handle, x = product.mkl.mkl_sparse_s_mv, product.handle, x.contiguous()

    def run() -> Tensor:
        y = bias.clone()
        multiply(PLAIN, 1.0, handle, GENERAL_MATRIX, x.data_ptr(), 1.0, y.data_ptr())
        return y[None]

    return _labelled(run, product, bias, "vector")


def features(weight: Tensor, bias: Tensor, x: Tensor) -> Callable[[], Tensor]:
    """x of strides (1, N) → out of strides (1, N): nothing is transposed."""
    rows, (out_features, _) = x.size(0), weight.shape
    product = Product(weight, rows)
    multiply, handle, column, x_features = product.mkl.mkl_sparse_s_mm, product.handle, bias[:, None], x.t().contiguous()

    def run() -> Tensor:
        y = torch.empty(out_features, rows)
        multiply(
            *(PLAIN, 1.0, handle, GENERAL_MATRIX, ROW_MAJOR),
            *(x_features.data_ptr(), rows, rows, 0.0, y.data_ptr(), rows),
        )
        return y.add_(column).t()

    return _labelled(run, product, bias, "feature-major")


def transposed(weight: Tensor, bias: Tensor, x: Tensor) -> Callable[[], Tensor]:
    """Row-major x and out, with MKL's transposition of both."""
    (rows, in_features), out_features = x.shape, weight.size(0)
    product = Product(weight, rows)
    multiply, transpose, handle = product.mkl.mkl_sparse_s_mm, product.mkl.MKL_Somatcopy, product.handle
    x = x.contiguous()

    def run() -> Tensor:
        x_features, y_features, y = torch.empty(in_features, rows), torch.empty(out_features, rows), torch.empty(rows, out_features)
        transpose(b"R", b"T", rows, in_features, 1.0, x.data_ptr(), in_features, x_features.data_ptr(), rows)
        multiply(
            *(PLAIN, 1.0, handle, GENERAL_MATRIX, ROW_MAJOR),
            *(x_features.data_ptr(), rows, rows, 0.0, y_features.data_ptr(), rows),
        )
        transpose(b"R", b"T", out_features, rows, 1.0, y_features.data_ptr(), rows, y.data_ptr(), out_features)
        return y.add_(bias)

    return _labelled(run, product, bias, "transposes included")


def column(weight: Tensor, bias: Tensor, x: Tensor) -> Callable[[], Tensor]:
    """Row-major x and out, which MKL takes for column-major matrices of features first."""
    (rows, in_features), out_features = x.shape, weight.size(0)
    product = Product(weight, rows, layout=COLUMN_MAJOR)
    multiply, handle, x = product.mkl.mkl_sparse_s_mm, product.handle, x.contiguous()

    def run() -> Tensor:
        y = torch.empty(rows, out_features).copy_(bias)
        multiply(
            *(PLAIN, 1.0, handle, GENERAL_MATRIX, COLUMN_MAJOR),
            *(x.data_ptr(), rows, in_features, 1.0, y.data_ptr(), out_features),
        )
        return y

    return _labelled(run, product, bias, "column-major")


def fastest(ways: Iterable[Callable], weights: Iterable[Tensor], bias: Tensor, x: Tensor) -> Callable[[], Tensor]:
    """The fastest of several ways to the same product with the same weight in several formats, after a short trial.

    MKL runs on as many threads as torch.

    Returns:
        a function without arguments; its ``served_by`` names the way, its ``memory`` the bytes.
    """
    library().MKL_Set_Num_Threads(torch.get_num_threads())
    calls = [way(weight, bias, x) for way in ways for weight in weights]
    return min(calls, key=_trial_s) if len(calls) > 1 else calls[0]


def _trial_s(call: Callable[[], Tensor], tries: int = 3) -> float:
    call()
    taken = []
    for _ in range(tries):
        start = time.perf_counter()
        call()
        taken.append(time.perf_counter() - start)
    return min(taken)


def _labelled(run: Any, product: Product, bias: Tensor, way: str) -> Callable[[], Tensor]:
    stored = "CSR" if product.block == 1 else f"BSR {product.block}"
    run.served_by = f"MKL {metadata.version('mkl')}, {stored}, {way}"
    run.memory = product.memory | {"bias": bias.nbytes}
    run.product = product  # lives as long as its calls: a handle dies with it
    return run
