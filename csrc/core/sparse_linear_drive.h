// The pieces of sparse_linear.cpp that a packed weight drives too.
#pragma once
#include "core/sparse_linear_columns.h"

namespace sk {

constexpr int64_t kFewRows = 2;  // gather up to here: a vector of columns would be mostly padding

// One block product: output block b sums entries [ptr[b], ptr[b+1]).
struct Blocks {
  const int32_t *ptr, *entries;                        // entries [kept][2]: input block, position of the weight block
  int64_t count, rows, depth, row_step, k_step, area;  // rows, depth: of one block of this product
  bool outputs_contiguous() const { return row_step == 1 && (depth == 1 || k_step == rows); }  // each weight block is [depth][rows]
  BlockWork work(int64_t block, const float* weight, const float* x, int64_t x_stride, float* y, int64_t y_stride) const {
    return {entries + 2 * ptr[block], ptr[block + 1] - ptr[block], rows, depth, row_step, k_step, area, weight, x, x_stride, y, y_stride};
  }
};

// Rows [N][features] as they lie, or copied into `scratch` when x is feature-major.
const float* natural_rows(const float* x, Strides& stride, int64_t rows, int64_t features, const Scratch& scratch);

// Columns [first, first + count) of a [N][features] matrix as feature-major rows of `width` floats, zero-padded; in `buffer`, or where
// they lie.
struct Chunk {
  const float* data;
  int64_t stride;
};
Chunk chunk_of(const float* x, Strides s, int64_t first, int64_t count, int64_t features, int64_t width, float* buffer, const Pool& pool,
               bool must_copy = false);

// Rows of the weight as they are expanded, times few rows of x; strips of them, times many.
void expanded_product(int64_t N, const ExpandedRows& w, int64_t out_features, const float* x, Strides x_s, const float* bias, float* y, Strides y_s,
                      const Pool& pool);
void expanded_strips(int64_t N, const ExpandedRows& w, int64_t out_features, const float* x, Strides x_s, const float* bias, float* y, Strides y_s,
                     const Pool& pool);
// Few rows and window-balanced tables, through windows of 32 inputs; only with AVX-512, and for bf16 with matrix tiles.
void balanced_product(int64_t N, const BalancedRows& b, int64_t in_features, const float* x, Strides x_s, const float* bias, float* y, Strides y_s,
                      const Pool& pool);
void balanced_product(int64_t N, const BalancedRows& b, int64_t in_features, const uint16_t* x, Strides x_s, const uint16_t* bias, uint16_t* y,
                      Strides y_s, const Pool& pool);
void block_tile_product(int64_t N, const Blocks& b, const float* in, Strides in_s, int64_t in_features, const float* weight, const float* bias,
                        float* out, Strides out_s, const Pool& pool);
// The same where x and y can be taken as they lie, or copied if they are few rows; false, and nothing written, where they cannot.
bool block_natural_product(int64_t N, const Blocks& b, const float* in, Strides in_s, int64_t in_features, const float* weight, const float* bias,
                           float* out, Strides out_s, const Pool& pool);
bool block_natural_grad_weight(int64_t N, const Blocks& b, const float* grad, Strides g_s, const float* x, Strides x_s, int64_t in_features,
                               float* grad_weight, const Pool& pool);

}  // namespace sk
