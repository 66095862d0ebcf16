// sparse_conv2d: 2-D convolution with a fixed random mask (StochasticNet); only the kept weights exist.
//
//   x [N, C, H, W]   weight [nnz, BO, BI, BT]   indptr [OB+1]   index [nnz]   bias [K] or null   ->   out [N, K, OH, OW]
//   out[n, ob*BO+o, y, x] = bias + sum over e in [indptr[ob], indptr[ob+1]), i < BI, t < BT of
//     weight[e, o, i, t] * in[n, (index[e] / TB)*BI + i, y*stride_h + ky*dilation_h - pad_h, x*stride_w + kx*dilation_w - pad_w]
//   with tap = (index[e] % TB)*BT + t = ky*KW + kx,   OB = K/BO, IB = C/BI, TB = KH*KW/BT,   BT = 1 or KH*KW
//
// Granularities: synapse (1, 1, 1); spatial (1, C, 1), the paper's; kernel (1, 1, KH*KW); shared by V filters (V, 1, 1); blocks.
// Two families of kernels serve all of them:
//   tile  BT = 1 and BI >= 16: for one tap, the filters that keep it form a dense matrix over BI input channels
//   list  everything else: every output channel walks its list of kept taps over shifted copies of the input, or, for single weights
//         and stride 1 (AVX-512), over one copy whose vectors hold a pixel of each of 16 patches of the map
// Of channels_last images a band of pixels at a time is turned into planes (into patches at once), and its sums are turned back: bands and
// sums stay in a second-level cache.
// Accumulation is in one fixed order: results do not depend on the number of threads.
#pragma once
#include "core/core.h"

namespace sk {

struct SparseConv2dShape {
  int64_t N, C, H, W;  // x
  int64_t K, KH, KW;   // filters
  int64_t stride_h, stride_w, pad_h, pad_w, dilation_h, dilation_w;
  int64_t BO, BI, BT;  // block of weights kept or dropped together
  int64_t nnz;         // kept blocks
  bool channels_last;  // of x and out

  int64_t taps() const { return KH * KW; }
  int64_t OB() const { return K / BO; }
  int64_t IB() const { return C / BI; }
  int64_t TB() const { return taps() / BT; }
  int64_t OH() const { return (H + 2 * pad_h - dilation_h * (KH - 1) - 1) / stride_h + 1; }
  int64_t OW() const { return (W + 2 * pad_w - dilation_w * (KW - 1) - 1) / stride_w + 1; }
};

// The plan: what depends on the table of connections only, one flat int32 array. It holds copies of indptr and index, so
// a kernel that is given a plan never reads the caller's tables.
enum class SparseConv2dFault { none, indptr_start, indptr_order, indptr_end, index_range, index_order };
struct SparseConv2dStatus {
  SparseConv2dFault fault;
  int64_t position;  // into indptr or index
};
SK_API int64_t sparse_conv2d_plan_size(const SparseConv2dShape& shape);  // int32 elements
// Checks the tables and fills `plan`. Nothing outside indptr [OB+1] and index [nnz] is read whatever they contain.
SK_API SparseConv2dStatus sparse_conv2d_plan(const SparseConv2dShape& shape, const int32_t* indptr, const int32_t* index, int32_t* plan);
SK_API bool sparse_conv2d_plan_matches(const SparseConv2dShape& shape, const int32_t* plan, int64_t size);  // O(1)
// of these tables, by a few places (core/alike.h)
SK_API bool sparse_conv2d_plan_is_of(const SparseConv2dShape& shape, const int32_t* plan, const int32_t* indptr, const int32_t* index);

// The three products. Outputs are written whole; x, out and their gradients are contiguous in the shape's layout.
SK_API void sparse_conv2d(const SparseConv2dShape& shape, const float* x, const float* weight, const int32_t* plan, const float* bias, float* out,
                          const Pool& pool);
SK_API void sparse_conv2d_grad_x(const SparseConv2dShape& shape, const float* grad_out, const float* weight, const int32_t* plan, float* grad_x,
                                 const Pool& pool);
SK_API void sparse_conv2d_grad_weight(const SparseConv2dShape& shape, const float* x, const float* grad_out, const int32_t* plan, float* grad_weight,
                                      const Pool& pool);

// The same in double precision, in plain loops.
SK_API void sparse_conv2d(const SparseConv2dShape& shape, const double* x, const double* weight, const int32_t* plan, const double* bias, double* out,
                          const Pool& pool);
SK_API void sparse_conv2d_grad_x(const SparseConv2dShape& shape, const double* grad_out, const double* weight, const int32_t* plan, double* grad_x,
                                 const Pool& pool);
SK_API void sparse_conv2d_grad_weight(const SparseConv2dShape& shape, const double* x, const double* grad_out, const int32_t* plan,
                                      double* grad_weight, const Pool& pool);

// weight [nnz, BO, BI, BT] <-> dense [K, C, KH, KW], zeros where nothing is kept. For storage types of 2 and 4 bytes.
SK_API void sparse_conv2d_to_dense(const SparseConv2dShape& shape, const int32_t* plan, const float* weight, float* dense, const Pool& pool);
SK_API void sparse_conv2d_to_dense(const SparseConv2dShape& shape, const int32_t* plan, const uint16_t* weight, uint16_t* dense, const Pool& pool);
SK_API void sparse_conv2d_from_dense(const SparseConv2dShape& shape, const int32_t* plan, const float* dense, float* weight, const Pool& pool);
SK_API void sparse_conv2d_from_dense(const SparseConv2dShape& shape, const int32_t* plan, const uint16_t* dense, uint16_t* weight, const Pool& pool);

// Who should run: these kernels, or a dense convolution on the densified weight. From sizes only.
enum class SparseConv2dProduct { out, grad_x, grad_weight };
enum class SparseConv2dKernel { tile, list, dense };
struct SparseConv2dChoice {
  SparseConv2dKernel kernel;
  double relative_cost;  // estimated time of the tile or list kernels over that of the dense convolution
};
SK_API SparseConv2dChoice sparse_conv2d_choice(const SparseConv2dShape& shape, SparseConv2dProduct product, bool half_precision);

}  // namespace sk
