// Plans of window-balanced tables, and what drives their kernel.
#include "core/sparse_linear_balanced.h"

#include <algorithm>
#include <array>
#include <cstdlib>

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
      for (int64_t k = 0; k < sizes[step]; ++k)
        word |= uint32_t(index[row * F + steps[step][k].begin] - steps[step][k].input) << (5 * (k / 2) + 16 * (k % 2));
      plan.words[(row / L * steps.size() + step) * L + row % L] = word;
    }
  return plan;
}

namespace {

// Rows as they lie if their features do and there is a window of them; else copied, and zeros behind the last feature.
template <class T>
const T* whole_windows(const T* x, Strides& stride, int64_t N, int64_t features, const Scratch& scratch) {
  const int64_t width = std::max(features, BalancedPlan::kWindow);
  if (stride.col == 1 && width == features) return x;
  T* copy = scratch.as<T>();
  for (int64_t n = 0; n < N; ++n) {
    for (int64_t i = 0; i < features; ++i) copy[n * width + i] = x[n * stride.row + i * stride.col];
    std::fill(copy + n * width + features, copy + (n + 1) * width, T(0));
  }
  stride = {width, 1};
  return copy;
}
template <class T>
size_t whole_windows_bytes(Strides stride, int64_t N, int64_t features) {
  return stride.col == 1 && features >= BalancedPlan::kWindow ? 0 : size_t(N * std::max(features, BalancedPlan::kWindow)) * sizeof(T);
}

}  // namespace

void balanced_product(int64_t N, const BalancedRows& b, int64_t in_features, const float* x, Strides x_s, const float* bias, float* y, Strides y_s,
                      const Pool& pool) {
  constexpr int64_t L = BalancedRows::kLanes;
  const Scratch scratch(whole_windows_bytes<float>(x_s, N, in_features));
  const float* rows = whole_windows(x, x_s, N, in_features, scratch);
  parallel(pool, (b.rows + L - 1) / L, 1 + 2048 / b.fan_in, [&](int64_t begin, int64_t end) {
    const Scratch turned(b.order ? size_t(b.fan_in * L) * sizeof(float) : 0);
    SK_PICK_KERNELS(sparse_linear).balanced(b, rows, x_s.row, N, bias, y, y_s.row, y_s.col, turned.as<float>(), begin, end);
  });
}

#ifdef SK_HAVE_amx
void balanced_product(int64_t N, const BalancedRows& b, int64_t in_features, const uint16_t* x, Strides x_s, const uint16_t* bias, uint16_t* y,
                      Strides y_s, const Pool& pool) {
  const Scratch scratch(whole_windows_bytes<uint16_t>(x_s, N, in_features));
  const uint16_t* rows = whole_windows(x, x_s, N, in_features, scratch);
  parallel(pool, (b.rows + BalancedRows::kLanes - 1) / BalancedRows::kLanes, 1 + 2048 / b.fan_in,
           [&](int64_t begin, int64_t end) { amx::balanced(b, rows, x_s.row, N, bias, y, y_s.row, y_s.col, begin, end); });
}
#else
void balanced_product(int64_t, const BalancedRows&, int64_t, const uint16_t*, Strides, const uint16_t*, uint16_t*, Strides, const Pool&) {
  std::abort();  // sparse_linear_packed_tiles() said no
}
#endif

}  // namespace sk
