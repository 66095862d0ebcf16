"""The ops: one card each. ``OPS`` finds them by name; ``backends`` says who serves them."""

from sparsekern.ops import backends
from sparsekern.ops.cuda_grouped_mm import explain_grouped_mm
from sparsekern.ops.define import OPS
from sparsekern.ops.grouped_conv2d import grouped_conv2d
from sparsekern.ops.grouped_conv2d_packed import grouped_conv2d_packed, pack_grouped_conv2d
from sparsekern.ops.grouped_mm import grouped_mm
from sparsekern.ops.joined_conv2d import joined_conv2d_packed
from sparsekern.ops.pool2d import pool2d
from sparsekern.ops.root_conv2d import root_conv2d, root_conv2d_packed
from sparsekern.ops.sequence2d import sequence2d
from sparsekern.ops.sparse_conv2d import plan_sparse_conv2d, sparse_conv2d
from sparsekern.ops.sparse_linear import plan_sparse_linear, sparse_linear
from sparsekern.ops.sparse_linear_packed import pack_sparse_linear, sparse_linear_packed

if backends.gpu:
    import torch

    from sparsekern.ops import cuda, triton

    _on_cuda = cuda.register(torch.ops.sparsekern_cuda if backends.gpu == "cuda" else triton.kernels(), "CUDA")

__all__ = [
    "OPS",
    "backends",
    "explain_grouped_mm",
    "grouped_conv2d",
    "grouped_conv2d_packed",
    "grouped_mm",
    "joined_conv2d_packed",
    "pack_grouped_conv2d",
    "pack_sparse_linear",
    "plan_sparse_conv2d",
    "plan_sparse_linear",
    "pool2d",
    "root_conv2d",
    "root_conv2d_packed",
    "sequence2d",
    "sparse_conv2d",
    "sparse_linear",
    "sparse_linear_packed",
]
