// Window-balanced tables: every output has equally many inputs in each window of 32 inputs. Then 16 outputs go through the windows
// together: a window of x lies in two registers, and a permute of those takes the place of a gather.
#pragma once
#include <vector>

#include "core/sparse_linear.h"
#include "core/sparse_linear_kernels.h"

namespace sk {

// The connections that 16 outputs have in a window are cut into pieces of up to 6. Positions in a window take 5 bits, 6 of them one
// word, in pairs: number k is at bit 5*(k/2) + 16*(k%2). So a step handles `share` windows with a piece of `size` connections each, size * share
// <= 6. Steps of one kind, up to kMostSteps of them, are a run; a run's sum begins anew, so that no sum is long.
//   runs [words, count of runs, { size, share, steps, first input of each window [steps * share] } ...]
struct BalancedPlan {
  static constexpr int64_t kWindow = 32, kMostSize = 6, kMostSteps = 24;
  std::vector<int32_t> runs;
  std::vector<int32_t> order;   // [fan_in] place of each connection of a row in the order of the runs
  std::vector<uint32_t> words;  // [groups][words][BalancedRows::kLanes]
};

#ifdef SK_HAVE_amx
namespace amx {
// SparseLinearKernels::balanced for b.halves, x and y in bf16, with the instructions that come with matrix tiles; summed in fp32.
void balanced(const BalancedRows& b, const uint16_t* x, int64_t x_row, int64_t count, const uint16_t* bias, uint16_t* y, int64_t y_row, int64_t y_col,
              int64_t begin, int64_t end);
}  // namespace amx
#endif

// Is this table balanced? OB rows of F inputs, rising, below IB.
bool is_balanced(int64_t OB, int64_t F, int64_t IB, const int32_t* index);
BalancedPlan balanced_plan(int64_t OB, int64_t F, int64_t IB, const int32_t* index);

// How many places per window pay for a table that is not balanced, if any; left_over[places]: the most connections of an output that
// find none.
int64_t sparse_linear_places(const SparseLinearShape& s, const std::vector<int64_t>& left_over);

}  // namespace sk
