// 2-D convolution with the kept blocks of a masked filter bank on a CUDA device; the formula is in core/sparse_conv2d.h.
//
// T is float, bf16 or fp16; sums are in fp32, in one order, without atomics. x and out are both NCHW or both NHWC. Tables were
// checked when they were planned and are not checked again here. Launchers are asynchronous, can be captured, and return null or
// what went wrong.
//
// Three ways to make a product (sparse_conv2d_way):
//   list    every target channel walks its own list of kept weights, in fp32 on the plain cores: any mask
//   matrix  target channels that share a list (blocks at least 8 wide) are columns of a product on tensor cores, whose rows are pixels
//           and whose terms are gathered
//   scatter source channels that are kept together (at least 8), for targets with lists of their own: tap by tap, those that keep it
//           are the columns of a product on tensor cores
// The weight's gradient has the same three, its sums in place of the pixels: by lists; with columns of target channels that share a list,
// and kept weights as rows (matrix); with rows of source channels kept together, and the filters that keep them as columns (scatter).
// NOTE: on tensor cores an Inf or NaN in one source pixel may give NaN in a target that does not read it.
#pragma once
#include "core/sparse_conv2d.h"
#include "cuda/fp32.h"
#include "cuda/numbers.h"
#include "cuda/stream.h"

namespace sk {

// The mask, and what is derived from it (sparsekern/ops/cuda.py makes it).
struct KeptTables {
  const int32_t* indptr;  // [OB + 1]: the kept blocks of each output block
  const int32_t* index;   // [nnz]: input block * TB + tap (block) of each
  const int32_t* row;     // [nnz]: its output block
  // kept blocks by input block: those of ib are [columns[ib], columns[ib + 1]), in the order of their rows
  const int32_t* columns;       // [IB + 1]
  const int32_t* column_row;    // [nnz]: output block
  const int32_t* column_place;  // [nnz]: place in `index`
  // and by what `index` says: those of (input block, tap (block)) are [cells[code], cells[code + 1]), in the order of their rows
  const int32_t* cells;       // [IB * TB + 1]
  const int32_t* cell_place;  // [nnz]: place in `index`
};

enum class SparseConv2dWay { list, matrix, scatter };
// From sizes alone. A weight gradient whose tile is too large for shared memory goes by lists, whatever is said here.
inline SparseConv2dWay sparse_conv2d_way(const SparseConv2dShape& s, SparseConv2dProduct product) {
  if (product == SparseConv2dProduct::grad_weight)
    return s.BI >= 8 ? SparseConv2dWay::scatter : s.BO >= 8 ? SparseConv2dWay::matrix : SparseConv2dWay::list;
  const bool forward = product == SparseConv2dProduct::out;
  if ((forward ? s.BO : s.BI) >= 8) return SparseConv2dWay::matrix;
  return (forward ? s.BI : s.BO) >= 8 ? SparseConv2dWay::scatter : SparseConv2dWay::list;
}

template <class T>
const char* launch_sparse_conv2d_fwd(const SparseConv2dShape& shape,
                                     const T* x,       // [N, C, H, W]
                                     const T* weight,  // [nnz, BO, BI, BT]
                                     const KeptTables& tables,
                                     const T* bias,  // [K] or null
                                     T* out,         // [N, K, OH, OW]
                                     Fp32 mode, Stream stream);

template <class T>
const char* launch_sparse_conv2d_grad_x(const SparseConv2dShape& shape,
                                        const T* grad_out,  // [N, K, OH, OW]
                                        const T* weight,    // [nnz, BO, BI, BT]
                                        const KeptTables& tables,
                                        T* grad_x,  // [N, C, H, W]
                                        Fp32 mode, Stream stream);

// Floats of scratch memory that grad_weight needs.
template <class T>
int64_t sparse_conv2d_grad_weight_scratch(const SparseConv2dShape& shape);
template <class T>
const char* launch_sparse_conv2d_grad_weight(const SparseConv2dShape& shape,
                                             const T* grad_out,  // [N, K, OH, OW]
                                             const T* x,         // [N, C, H, W]
                                             const KeptTables& tables,
                                             T* grad_weight,  // [nnz, BO, BI, BT]
                                             float* scratch, Fp32 mode, Stream stream);

}  // namespace sk
