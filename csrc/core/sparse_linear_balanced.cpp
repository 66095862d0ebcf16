// Plans of window-balanced tables, and what drives their kernel.
#include "core/sparse_linear_balanced.h"

#include <algorithm>
#include <array>
#include <cstring>

#include "core/sparse_linear_drive.h"

namespace sk {

bool is_balanced(int64_t OB, int64_t F, int64_t IB, const int32_t* index) {
  if (OB == 0) return false;
  if (IB <= BalancedPlan::kWindow) return true;
  for (int64_t row = 1; row < OB; ++row)  // rows rise: equal windows, place by place, are equal counts
    for (int64_t f = 0; f < F; ++f)
      if (index[row * F + f] / BalancedPlan::kWindow != index[f] / BalancedPlan::kWindow) return false;
  return true;
}

BalancedPlan balanced_plan(int64_t OB, int64_t F, int64_t IB, const int32_t* index) {
  constexpr int64_t kWindow = BalancedPlan::kWindow, kMostSize = BalancedPlan::kMostSize, L = BalancedRows::kLanes;
  struct Piece {
    int64_t begin, input;  // first connection of a row, first input of the window
  };
  std::array<std::vector<Piece>, kMostSize + 1> pieces;  // by size
  for (int64_t f = 0; f < F;) {
    const int64_t window = index[f] / kWindow;
    int64_t end = f;
    while (end < F && index[end] / kWindow == window) ++end;
    const int64_t input = std::max<int64_t>(0, std::min(window * kWindow, IB - kWindow));  // the last window ends where x ends
    for (; f < end; f = std::min(end, f + kMostSize)) pieces[std::min(kMostSize, end - f)].push_back({f, input});
  }
  BalancedPlan plan;
  plan.order.resize(F);
  plan.runs = {0, 0};
  std::vector<std::array<Piece, kMostSize>> steps;
  std::vector<int64_t> sizes;
  int32_t place = 0;
  for (int64_t size = kMostSize; size > 0; --size) {
    const std::vector<Piece>& all = pieces[size];
    for (size_t at = 0; at < all.size();) {
      const int64_t left = int64_t(all.size() - at), share = left >= kMostSize / size ? kMostSize / size : 1;
      const int64_t count = std::min(left / share, BalancedPlan::kMostSteps);
      ++plan.runs[1];
      plan.runs.insert(plan.runs.end(), {int32_t(size), int32_t(share), int32_t(count)});
      for (int64_t step = 0; step < count; ++step) {
        steps.emplace_back(), sizes.push_back(size * share);
        for (int64_t p = 0; p < share; ++p) {
          const Piece& piece = all[at++];
          plan.runs.push_back(int32_t(piece.input));
          for (int64_t k = 0; k < size; ++k) {
            plan.order[piece.begin + k] = place++;
            steps.back()[p * size + k] = {piece.begin + k, piece.input};
          }
        }
      }
    }
  }
  plan.runs[0] = int32_t(steps.size());
  plan.words.resize((OB + L - 1) / L * steps.size() * L);
  for (int64_t row = 0; row < OB; ++row)
    for (size_t step = 0; step < steps.size(); ++step) {
      uint32_t word = 0;
      for (int64_t k = 0; k < sizes[step]; ++k) word |= uint32_t(index[row * F + steps[step][k].begin] - steps[step][k].input) << (5 * k);
      plan.words[(row / L * steps.size() + step) * L + row % L] = word;
    }
  return plan;
}

void balanced_product(int64_t N, const BalancedRows& b, int64_t in_features, const float* x, Strides x_s, const float* bias, float* y, Strides y_s,
                      const Pool& pool) {
  constexpr int64_t L = BalancedRows::kLanes, kWindow = BalancedPlan::kWindow;
  const int64_t padded = std::max(in_features, kWindow);
  const Scratch scratch(size_t(in_features < kWindow || x_s.col != 1 ? N * padded : 0) * sizeof(float));
  const float* rows = natural_rows(x, x_s, N, in_features, scratch);
  if (in_features < kWindow) {  // room for a whole window behind each row; from the last row on, as they may lie in the same place
    float* copy = scratch.as<float>();
    for (int64_t n = N; n-- > 0;) {
      std::memmove(copy + n * kWindow, rows + n * x_s.row, size_t(in_features) * sizeof(float));
      std::fill(copy + n * kWindow + in_features, copy + (n + 1) * kWindow, 0.0f);
    }
    rows = copy, x_s.row = kWindow;
  }
  parallel(pool, (b.rows + L - 1) / L, 1 + 2048 / b.fan_in, [&](int64_t begin, int64_t end) {
    const Scratch turned(b.order ? size_t(b.fan_in * L) * sizeof(float) : 0);
    SK_PICK_KERNELS(sparse_linear).balanced(b, rows, x_s.row, N, bias, y, y_s.row, y_s.col, turned.as<float>(), begin, end);
  });
}

}  // namespace sk
