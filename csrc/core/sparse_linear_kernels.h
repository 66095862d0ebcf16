// The kernels behind sparse_linear.cpp: one table per instruction set. `T` in a name means feature-major: [features][columns].
#pragma once
#include "core/core.h"

namespace sk {

// Where each kept connection of a row leads. Rows are outputs (forward) or inputs (grad_x, transposed structure).
struct Connections {
  const int32_t* ptr;  // [rows + 1] first connection of each row
  const void* source;  // [kept] uint16 or int32: which column (feature) of the input
  bool wide;           // int32
  int64_t kept;
};

// A condensed weight, row by row; the set bits of its mask, in rising order, are the inputs. Words of 32 inputs; where `inputs` is no
// multiple of 32 (and larger), the last word's bits end where the row ends.
struct ExpandedRows {
  const uint32_t* mask;  // [rows][words]
  int64_t words, inputs;
  const float* weight;  // [rows][fan_in]
  int64_t fan_in;
};

// A packed condensed weight for few rows of x.
struct Interleaved {
  static constexpr int64_t kLanes = 16;
  const float* weight;  // [groups][fan_in][kLanes], zero behind the last row
  const void* source;   // uint16 or int32, likewise
  bool wide;
  int64_t rows, fan_in;
  int64_t inputs = INT64_MAX;  // of x; the turned kernel keeps few of them in registers
};

// A packed weight with its zeros: [groups][inputs][kLanes] outputs, zero behind the last row.
struct DenseRows {
  static constexpr int64_t kLanes = 16;
  const float* weight;
  int64_t rows, inputs;
};

// A condensed weight whose table is window-balanced (sparse_linear_balanced.h), for few rows of x.
struct BalancedRows {
  static constexpr int64_t kLanes = 16;
  const int32_t* runs;     // BalancedPlan::runs
  const uint32_t* words;   // BalancedPlan::words
  const float* weight;     // in the order of the runs, [groups][fan_in][kLanes], zero behind the last row; or, with `order`, [rows][fan_in]
  const int32_t* order;    // BalancedPlan::order, or null
  const uint16_t* halves;  // the same in bf16 for rows of x in bf16, or null: [groups][halves_step], pairs of a step side by side
  int64_t halves_step, rows, fan_in;
};

// A dense tile per kept block: out[r][:] += sum_e sum_k weight[e*area + r*row_step + k*k_step] * in[source[e]*depth + k][:]
struct BlockWork {
  const int32_t* entries;  // [count][2]: input block, position of the weight block
  int64_t count;
  int64_t rows, depth;  // of the output block; of the input block
  int64_t row_step, k_step, area;
  const float* weight;
  const float* in;
  int64_t in_stride;
  float* out;
  int64_t out_stride;
};

// An output block for rows [0, count_n) of x and y, both [..][features]: y[n][r] = bias[r] + sum_e sum_k weight[e][..] * x[n][source[e]*depth + k]
struct BlockRowsWork {
  const int32_t* entries;  // as in BlockWork
  int64_t count;
  int64_t rows, depth;
  const float* weight;  // [..][depth][rows], or, for dot products, [..][rows][depth]
  bool in_order;        // blocks of the weight follow each other as the entries do
  const float* x;
  int64_t x_row, count_n;
  const float* bias;  // of this block, may be null
  float* y;
  int64_t y_row;
  bool accumulate = false;       // onto y; without bias
  const float* ahead = nullptr;  // what is read after this: fetched, a part with each group of rows
  int64_t ahead_floats = 0;
};

// Outputs [begin, end) of one row each, as BlockRowsWork: the weight is [..][depth], y[n][r] for row r.
struct SingleRowsWork {
  const int32_t *ptr, *entries;
  int64_t entries_end;  // of all rows
  int64_t begin, end, depth;
  const float* weight;
  const float* x;
  int64_t x_row, count_n;
  const float* bias;  // may be null
  float* y;
  int64_t y_row;
};

// grad_weight of `count` panels, [rows][1] each, that share their outputs: (+)= sum over n of grad[n][r] * x_t[source][n]
struct PanelOuterWork {
  const int32_t* entries;
  int64_t count, rows;
  const float* grad;
  int64_t grad_row;
  const float* x_t;
  int64_t x_stride, count_n;
  bool accumulate;
  float* grad_weight;
};

// grad_weight of a kept block, [rows][depth] (+)= sum over n of grad[n][r] * x[n][k]
struct BlockOuterWork {
  const float* grad;
  int64_t grad_row;
  const float* x;
  int64_t x_row, count_n;
  int64_t rows, depth;
  bool accumulate;
  float* grad_weight;
};

struct SparseLinearKernels {
  int width;  // floats in a vector: columns come in multiples of it
  // y[r] = bias[r] + sum_k weight[k] * x[source[k]] for k in [ptr[r], ptr[r+1]), rows [begin, end)
  void (*gather)(const Connections& c, const float* x, const float* weight, const float* bias, float* y, int64_t y_stride, int64_t begin,
                 int64_t end);
  // the same for rows stored kLanes at a time, [rows / kLanes][fan_in][kLanes]: no sum over lanes, no tails; groups [begin, end)
  void (*interleaved)(const Interleaved& c, const float* x, const float* bias, float* y, int64_t y_stride, int64_t begin, int64_t end);
  // the same for few connections a row, with a natural weight, [rows][fan_in]; null without AVX-512
  void (*turned)(const Interleaved& c, const float* x, const float* bias, float* y, int64_t y_stride, int64_t begin, int64_t end);
  // y[n][r] = bias[r] + sum over set bits of weight * x[n][input], `count` rows n, outputs [begin, end); null without expanding loads
  void (*expanded)(const ExpandedRows& w, const float* x, int64_t x_row, int64_t count, const float* bias, float* y, int64_t y_row, int64_t y_col,
                   int64_t begin, int64_t end);
  // y[n][r] = bias[r] + sum over all inputs, `count` rows n, groups of outputs [begin, end)
  void (*dense_rows)(const DenseRows& d, const float* x, int64_t x_row, int64_t count, const float* bias, float* y, int64_t y_row, int64_t y_col,
                     int64_t begin, int64_t end);
  // y[n][r] = bias[r] + sum over the connections of r, `count` rows n, groups of kLanes outputs [begin, end). `turned`: with b.order,
  // [fan_in][kLanes] to work in. Inputs come in whole windows of 32, also where x has fewer. Null without AVX-512.
  void (*balanced)(const BalancedRows& b, const float* x, int64_t x_row, int64_t count, const float* bias, float* y, int64_t y_row, int64_t y_col,
                   float* turned, int64_t begin, int64_t end);
  // words [first, end) of rows [begin, end_row) with their zeros, block[row][block_row]. `used`: of each row, how many connections lie before
  // them, and then behind; null: none do
  void (*expand_block)(const ExpandedRows& w, int64_t first, int64_t end, int32_t* used, float* block, int64_t block_row, int64_t begin,
                       int64_t end_row);
  // grad_weight[k] (+)= sum_n grad[n][r] * x[n][source[k]], few rows n
  void (*outer)(const Connections& c, const float* grad, int64_t grad_row, const float* x, int64_t x_row, int64_t rows_n, float* grad_weight,
                int64_t begin, int64_t end);
  void (*block_tile[4])(const BlockWork& work);  // [vectors - 1]
  // y[r] += sum_e sum_i weight[e*area + r*depth + i] * x[source[e]*depth + i]   (weight rows contiguous over inputs)
  void (*block_dot)(const BlockWork& work);
  // y[r] += sum_e sum_i weight[(e*depth + i)*rows + r] * x[source[e]*depth + i] (outputs contiguous: panels, packed blocks)
  void (*panel_dot)(const BlockWork& work);
  // grad_weight of one kept block: gw[o][i] (+)= sum over columns of gradT[o] * xT[i]
  void (*block_sampled)(const float* grad_t, const float* x_t, int64_t columns, int64_t rows, int64_t depth, bool accumulate, float* grad_weight);
  // The same on activations as they lie. Whole vectors: of outputs; of inputs, and outputs by 4; of inputs; of inputs; of outputs.
  void (*block_rows)(const BlockRowsWork& work);
  void (*block_dots)(const BlockRowsWork& work);
  void (*block_outer)(const BlockOuterWork& work);
  void (*single_rows)(const SingleRowsWork& work);
  void (*panel_outer)(const PanelOuterWork& work);
  // one block [rows][depth] -> [depth][rows], rows in whole vectors
  void (*block_transpose)(const float* weight, int64_t rows, int64_t depth, float* out);
  // in [columns][..] natural -> out [features][padded columns: vectors, or half of one], zero-filled; and back without touching what is not there
  void (*to_feature_major)(const float* in, int64_t in_row, int64_t columns, int64_t features, float* out, int64_t out_stride);
  void (*from_feature_major)(const float* in, int64_t in_stride, int64_t columns, int64_t features, float* out, int64_t out_row);
};
SK_DECLARE_KERNELS(SparseLinearKernels, sparse_linear)

}  // namespace sk
