// Condensed products for many rows of x, feature-major: a vector is W rows of x for one feature, [features][columns]. The kernels
// are in sparse_linear_columns.isa.cpp, what drives them in sparse_linear_columns.cpp.
#pragma once
#include "core/sparse_linear_plan.h"

namespace sk {

// Rows of the output cut into panels, features of the input into blocks that stay in L1; for each (panel, block) the list of its
// segments: the connections of one row in one block. Segments of equal length make a run, so that no branch depends on the data.
//   table  panels, blocks, rows of a panel, features of a block, then the offset of each list, [panels][blocks]
//   list   runs, (length, rows) x runs, (row in panel, first connection) x rows of all runs, kAhead entries to prefetch in vain
struct Panels {
  static constexpr int kHeader = 4;
  static constexpr int kAhead = 8;  // rows: what they read may have to come from the last-level cache
  const int32_t* table;
  int64_t count() const { return table[0]; }
  int64_t blocks() const { return table[1]; }
  int64_t rows() const { return table[2]; }
  int64_t features() const { return table[3]; }
  const int32_t* segments(int64_t panel, int64_t block) const { return table + table[kHeader + panel * blocks() + block]; }
};

// Where the weight of a connection lies: at the connection's own position, or, on the transposed structure, where it is in its row.
struct ColumnWeights {
  const float* weight;
  const void* rank = nullptr;  // uint16 or int32 like the sources: weight[source * fan_in + rank]; null: weight[connection]
  int64_t fan_in = 0;
};

// One (panel, block) times up to 4 vectors of columns, feature-major.
struct PanelWork {
  const int32_t* segments;
  const void* source;  // as in Connections
  ColumnWeights weights;
  const float* in;  // [features of the block][in_stride]
  int64_t in_stride, first_feature;
  float* out;  // [panel rows][out_stride]: added to; or, in the first block, where no row is missing, written anew from the bias
  int64_t out_stride;
  bool fresh;
  const float* bias;  // of the panel's first row, or null; only read if fresh
};

// grad_weight[k] (+)= grad[row] * in[source[k]] over the columns, for the connections of one (panel, block)
struct SampledWork {
  const int32_t* segments;
  const void* source;
  const float* grad;  // [panel rows][grad_stride]
  int64_t grad_stride;
  const float* in;  // [features of the block][in_stride]
  int64_t in_stride, first_feature;
  bool accumulate;
  float* grad_weight;
};

struct LinearColumnKernels {
  bool halves;                                     // products also take half a vector of columns
  void (*panel[2][2][5])(const PanelWork& work);   // [ranked][wide][vectors; 0: half a vector]
  void (*sampled[2][4])(const SampledWork& work);  // [wide][vectors - 1]
  // out[k] = the weight of connection k of the transposed structure, for [begin, end)
  void (*in_order)(const Connections& c, const ColumnWeights& weights, float* out, int64_t begin, int64_t end);
};
SK_DECLARE_KERNELS(LinearColumnKernels, linear_columns)

// out[n][r] = bias[r] + sum over the connections of r of weight * in[n][source]
void feature_major_product(int64_t N, const Connections& c, Panels panels, const float* in, Strides in_s, int64_t in_features,
                           const ColumnWeights& weights, const float* bias, float* out, Strides out_s, int64_t out_features, const Pool& pool);
void feature_major_grad_weight(int64_t N, const Connections& c, Panels panels, const float* grad, Strides g_s, int64_t out_features, const float* in,
                               Strides in_s, int64_t in_features, float* grad_weight, const Pool& pool);

}  // namespace sk
