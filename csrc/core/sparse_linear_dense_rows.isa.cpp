// A packed condensed weight that keeps so many connections that its zeros are kept too: few rows of x through a plain dense product.
// One vector = outputs; an input is one broadcast, and a weight that was loaded serves up to 8 rows of x.
#include "core/sparse_linear_kernels.h"
#include "core/vec.h"

namespace sk::SK_ISA {
namespace {

// N rows of x; U inputs at a time have sums of their own, so that enough sums are in flight.
template <int N, int U>
SK_INLINE void group_tile(const DenseRows& d, const float* x, int64_t x_row, const float* bias, float* y, int64_t y_row, int64_t y_col,
                          int64_t group) {
  constexpr int64_t L = DenseRows::kLanes;
  constexpr int V = L / W;
  const float* w = d.weight + group * d.inputs * L;
  const int64_t first = group * L, rows = d.rows - first < L ? d.rows - first : L;
  SK_UNROLL for (int v = 0; v < V; ++v) {
    vf sums[U][N];
    SK_UNROLL for (int u = 0; u < U; ++u) SK_UNROLL for (int n = 0; n < N; ++n) sums[u][n] = zero();
    int64_t i = 0;
    for (; i + U <= d.inputs; i += U) SK_UNROLL for (int u = 0; u < U; ++u) {
        const vf weight = load(w + (i + u) * L + v * W);
        SK_UNROLL for (int n = 0; n < N; ++n) sums[u][n] += weight * splat(x[n * x_row + i + u]);
      }
    for (; i < d.inputs; ++i) SK_UNROLL for (int n = 0; n < N; ++n) sums[0][n] += load(w + i * L + v * W) * splat(x[n * x_row + i]);
    SK_UNROLL for (int n = 0; n < N; ++n) {
      vf total = sums[0][n];
      SK_UNROLL for (int u = 1; u < U; ++u) total += sums[u][n];
      float out[W];
      store(out, total);
      const int64_t lanes = rows - v * W < W ? rows - v * W : W;
      for (int64_t r = 0; r < lanes; ++r) y[n * y_row + (first + v * W + r) * y_col] = out[r] + (bias ? bias[first + v * W + r] : 0.0f);
    }
  }
}

}  // namespace

void dense_rows(const DenseRows& d, const float* x, int64_t x_row, int64_t count, const float* bias, float* y, int64_t y_row, int64_t y_col,
                int64_t begin, int64_t end) {
  for (int64_t group = begin; group < end; ++group) {
    int64_t n = 0;
    for (; n + 8 <= count; n += 8) group_tile<8, 1>(d, x + n * x_row, x_row, bias, y + n * y_row, y_row, y_col, group);
    for (; n + 4 <= count; n += 4) group_tile<4, 2>(d, x + n * x_row, x_row, bias, y + n * y_row, y_row, y_col, group);
    for (; n + 2 <= count; n += 2) group_tile<2, 4>(d, x + n * x_row, x_row, bias, y + n * y_row, y_row, y_col, group);
    for (; n < count; ++n) group_tile<1, 8>(d, x + n * x_row, x_row, bias, y + n * y_row, y_row, y_col, group);
  }
}

}  // namespace sk::SK_ISA
