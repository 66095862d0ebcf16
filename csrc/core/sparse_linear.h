// sparse_linear: y[n, ob*BO + o] = bias[ob*BO + o] + sum_f sum_i x[n, index[ob, f]*BI + i] * weight[ob, f, o, i]
//
//   x [N, IB*BI]   weight [OB, F, BO, BI]   index [OB, F]   y [N, OB*BO]
// and the two other products of the same trilinear form: grad_x (on the transposed structure) and grad_weight (only at
// kept connections). The weight is read in its natural order at every call; only what follows from `index` is planned.
#pragma once
#include <cstdint>
#include <vector>

#include "core/core.h"

namespace sk {

struct SparseLinearShape {
  int64_t N;              // rows of x
  int64_t OB, F, BO, BI;  // output blocks, fan-in in blocks, block size
  int64_t IB;             // input blocks
  bool balanced = false;  // condensed, and every output has equally many inputs in each window of 32 (what a plan or a pack found)
  // Packed, not balanced: places for connections that every output has in each window, and the most that found no place.
  int64_t places = 0, left_over = 0;
  int64_t in() const { return IB * BI; }
  int64_t out() const { return OB * BO; }
  int64_t kept() const { return OB * F * BO * BI; }  // stored weights
};

enum class Product : int { forward = 0, grad_x = 1, grad_weight = 2 };

// How a product is computed. The numbers are the op's public codes (ops/sparse_linear.py names them).
enum class LinearKernel : int {
  gather = 0,            // few rows: one gathered dot product per output
  feature_major = 1,     // many rows: columns of x are the vectors, blocked for L1
  block_dot = 2,         // few rows, blocks: dot products along the block's inputs
  block_tile = 3,        // many rows, blocks: a dense register tile per block
  dense = 4,             // the weight is scattered into a dense matrix and torch multiplies
  block_amx = 5,         // bf16: blocks as matrix tiles
  expanded_amx = 6,      // bf16: unstructured rows expanded, strip by strip, into matrix tiles
  expanded = 7,          // few rows, many connections: rows of the weight expanded in registers, x loaded as it lies
  dense_rows = 8,        // packed: the zeros are kept
  balanced = 9,          // few rows, window-balanced: permutes of two registers of x in place of gathers
  windows = 10,          // packed, few rows: the same for most connections of any table, and a gather for the others
  expanded_strips = 11,  // many rows, most connections: strips of the weight expanded in the caches, columns of x are the vectors
};
enum class LinearType : int { fp32 = 0, fp16 = 1, bf16 = 2 };

// What runs for these sizes, and the two estimates it was chosen by, in microseconds.
struct LinearChoice {
  LinearKernel kernel;
  double sparse_us, dense_us;
};
SK_API LinearChoice sparse_linear_choice(const SparseLinearShape& s, Product product, LinearType type, int threads);

// Which of the fp32 kernels serves, whatever torch's dense product would take.
SK_API LinearKernel sparse_linear_plain_kernel(const SparseLinearShape& s, Product product);

// The same for a packed weight, forward.
SK_API LinearKernel sparse_linear_packed_choice(const SparseLinearShape& s, LinearType type);

// ---- plan: everything derived from the index table, in one flat int32 array
struct PlanError {
  const char* rule;  // null: the table is fine
  int64_t row, position, value;
};
SK_API PlanError sparse_linear_plan(const SparseLinearShape& s, const int32_t* index, std::vector<int32_t>& plan);
// O(1): is this array a plan made for these sizes?
// A plan of another kind of processor may lack what this one would use; its table then has to be planned anew.
SK_API bool sparse_linear_plan_complete(const SparseLinearShape& s, const int32_t* plan);
SK_API bool sparse_linear_plan_fits(const SparseLinearShape& s, const int32_t* plan, int64_t length);
SK_API bool sparse_linear_plan_is_of(const int32_t* plan, const int32_t* index);  // this table [OB, F], by a few places (core/alike.h)
// Is the table window-balanced (and is there a processor to use it)?
SK_API bool sparse_linear_plan_balanced(const int32_t* plan);

// ---- fp32 products. x_stride and y_stride are (row, column) strides in floats: (in, 1) natural, (1, N) feature-major.
struct Strides {
  int64_t row, col;
};
SK_API void sparse_linear_fwd(const SparseLinearShape& s, const int32_t* plan, const float* x, Strides x_stride, const float* weight,
                              const float* bias, float* y, Strides y_stride, const Pool& pool);
SK_API void sparse_linear_grad_x(const SparseLinearShape& s, const int32_t* plan, const float* grad_out, Strides g_stride, const float* weight,
                                 float* grad_x, Strides gx_stride, const Pool& pool);
SK_API void sparse_linear_grad_weight(const SparseLinearShape& s, const int32_t* plan, const float* grad_out, Strides g_stride, const float* x,
                                      Strides x_stride, float* grad_weight, const Pool& pool);

// dense [out, in] of a condensed weight by expanding its rows; false, and nothing written, where that cannot be.
SK_API bool sparse_linear_expand_to_dense(const SparseLinearShape& s, const int32_t* plan, const float* weight, float* dense, const Pool& pool);

// ---- pack: weights and index in the kernels' own order, in one flat int32 array (floats by their bits). Made on request from
// weights that then stay as they are; any number of rows, forward only.
// `bf16`, if not null: the same weights as they were stored; the pack then also serves bf16 rows on matrix tiles.
SK_API void sparse_linear_pack(const SparseLinearShape& s, const int32_t* plan, const float* weight, const uint16_t* bf16,
                               std::vector<int32_t>& pack);
// The sizes a pack was made for, N = 0; OB = 0 if it is none.
SK_API SparseLinearShape sparse_linear_pack_shape(const int32_t* pack, int64_t length);
SK_API void sparse_linear_packed_fwd(const SparseLinearShape& s, const int32_t* pack, const float* x, Strides x_stride, const float* bias, float* y,
                                     Strides y_stride, const Pool& pool);
// Whether this pack serves N rows of bf16 on matrix tiles, and doing so.
SK_API bool sparse_linear_packed_tiles(const SparseLinearShape& s, const int32_t* pack);
SK_API void sparse_linear_packed_fwd(const SparseLinearShape& s, const int32_t* pack, const uint16_t* x, Strides x_stride, const uint16_t* bias,
                                     uint16_t* y, Strides y_stride, const Pool& pool);

// ---- bf16 products on matrix tiles, summed in fp32. Only where sparse_linear_tiles says so (block sizes that are multiples of 16, or
// unstructured; the amx instruction set in use). One of the two strides of a matrix is 1.
SK_API bool sparse_linear_tiles(const SparseLinearShape& s, Product product);
SK_API void sparse_linear_fwd(const SparseLinearShape& s, const int32_t* plan, const uint16_t* x, Strides x_stride, const uint16_t* weight,
                              const uint16_t* bias, uint16_t* y, Strides y_stride, const Pool& pool);
SK_API void sparse_linear_grad_x(const SparseLinearShape& s, const int32_t* plan, const uint16_t* grad_out, Strides g_stride, const uint16_t* weight,
                                 uint16_t* grad_x, Strides gx_stride, const Pool& pool);
SK_API void sparse_linear_grad_weight(const SparseLinearShape& s, const int32_t* plan, const uint16_t* grad_out, Strides g_stride, const uint16_t* x,
                                      Strides x_stride, uint16_t* grad_weight, const Pool& pool);

// ---- fp64 products: plain loops, correct for everything
SK_API void sparse_linear_fwd(const SparseLinearShape& s, const int32_t* index, const double* x, const double* weight, const double* bias, double* y,
                              const Pool& pool);
SK_API void sparse_linear_grad_x(const SparseLinearShape& s, const int32_t* index, const double* grad_out, const double* weight, double* grad_x,
                                 const Pool& pool);
SK_API void sparse_linear_grad_weight(const SparseLinearShape& s, const int32_t* index, const double* grad_out, const double* x, double* grad_weight,
                                      const Pool& pool);

}  // namespace sk
