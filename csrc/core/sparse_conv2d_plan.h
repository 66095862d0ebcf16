// The layout of a sparse_conv2d plan, shared by the planner and the drivers.
#pragma once
#include "core/sparse_conv2d.h"

namespace sk {

// A column of the tile kernels is one (input block, tap): enough channels for a dense inner loop over them.
constexpr int64_t kSparseConvTileChannels = 16;
inline bool sparse_conv_tiled(const SparseConv2dShape& s) { return s.BT == 1 && s.BI >= kSparseConvTileChannels; }

// View of a plan. The transposed structure groups the kept blocks by what they read:
//   tile: by (input block, tap), t_code[i] = output block;   list: by input block, t_code[i] = output block*TB + tap
struct SparseConvPlan {
  static constexpr int32_t kMagic = 0x736b6332, kVersion = 2;
  static constexpr int64_t kHeader = 12, kSeal = 11;

  const int32_t* indptr;    // [OB+1]
  const int32_t* index;     // [nnz]
  const int32_t* t_indptr;  // [columns+1]
  const int32_t* t_code;    // [nnz], increasing inside a column
  const int32_t* t_entry;   // [nnz] the block's place in weight

  static int64_t columns(const SparseConv2dShape& s) { return sparse_conv_tiled(s) ? s.IB() * s.TB() : s.IB(); }
  SparseConvPlan(const SparseConv2dShape& s, const int32_t* plan)
      : indptr(plan + kHeader), index(indptr + s.OB() + 1), t_indptr(index + s.nnz), t_code(t_indptr + columns(s) + 1), t_entry(t_code + s.nnz) {}
};

}  // namespace sk
