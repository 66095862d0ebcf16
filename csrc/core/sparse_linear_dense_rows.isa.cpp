// A packed condensed weight that keeps so many connections that its zeros are kept too, through a plain dense product on activations
// as they lie. One vector = outputs; an input is one broadcast, and a weight that was loaded serves several rows of x.
#include "core/sparse_linear_kernels.h"
#include "core/vec.h"

namespace sk::SK_ISA {
namespace {

constexpr int64_t L = DenseRows::kLanes;

// Vectors of outputs, `weight_step` floats apart, some inputs and some rows of x.
struct Tile {
  const float* weight;
  int64_t weight_step, inputs;
  const float* x;
  int64_t x_row;
  const float* bias;  // of the first output, or null
  float* y;
  int64_t y_row, y_col, outputs;  // outputs: from the first one to the last there is
  bool first;                     // of the inputs; the others add to y
};

// G vectors of outputs, N rows of x; U inputs at a time have sums of their own, so that enough sums are in flight. An output's sum does
// not depend on G.
template <int G, int N, int U>
SK_INLINE void product(const Tile& t) {
  SK_UNROLL for (int n = 0; n < N; ++n) {  // the next rows of x and the sums: far apart, so that the hardware does not see them coming
    __builtin_prefetch(t.x + (N + n) * t.x_row);
    SK_UNROLL for (int g = 0; g < G; ++g) __builtin_prefetch(t.y + n * t.y_row + g * W * t.y_col, 1);
  }
  vf sums[U][G][N];
  SK_UNROLL for (int u = 0; u < U; ++u) SK_UNROLL for (int g = 0; g < G; ++g) SK_UNROLL for (int n = 0; n < N; ++n) sums[u][g][n] = zero();
  const auto add = [&](int u, int64_t i) __attribute__((always_inline)) {
    vf weight[G];
    SK_UNROLL for (int g = 0; g < G; ++g) weight[g] = load(t.weight + g * t.weight_step + i * L);
    SK_UNROLL for (int n = 0; n < N; ++n) {
      const vf x = splat(t.x[n * t.x_row + i]);
      SK_UNROLL for (int g = 0; g < G; ++g) sums[u][g][n] += weight[g] * x;
    }
  };
  int64_t i = 0;
  for (; i + U <= t.inputs; i += U) SK_UNROLL for (int u = 0; u < U; ++u) add(u, i + u);
  for (; i < t.inputs; ++i) add(0, i);
  SK_UNROLL for (int u = 1; u < U; ++u) SK_UNROLL for (int g = 0; g < G; ++g) SK_UNROLL for (int n = 0; n < N; ++n) sums[0][g][n] += sums[u][g][n];
  if (t.y_col == 1 && t.outputs >= G * W) {
    SK_UNROLL for (int g = 0; g < G; ++g) {
      const vf bias = t.first && t.bias ? load(t.bias + g * W) : zero();
      SK_UNROLL for (int n = 0; n < N; ++n) {
        float* y = t.y + n * t.y_row + g * W;
        store(y, sums[0][g][n] + (t.first ? bias : load(y)));
      }
    }
    return;
  }
  float out[G][N][W];
  SK_UNROLL for (int g = 0; g < G; ++g) SK_UNROLL for (int n = 0; n < N; ++n) store(out[g][n], sums[0][g][n]);
  for (int64_t r = 0; r < G * W && r < t.outputs; ++r)
    for (int64_t n = 0; n < N; ++n) {
      float* y = t.y + n * t.y_row + r * t.y_col;
      *y = out[r / W][n][r % W] + (!t.first ? *y : t.bias ? t.bias[r] : 0.0f);
    }
}

// Rows [n, n + N) of x.
template <int G, int N, int U>
__attribute__((noinline)) void rows(Tile t, int64_t n) {
  t.x += n * t.x_row, t.y += n * t.y_row;
  product<G, N, U>(t);
}

constexpr int64_t kTileRows = 6, kFew = 8;  // with 4 vectors of outputs: sums, weights and a broadcast fill 32 registers

template <int G>
SK_INLINE void few_rows(const Tile& t, int64_t count) {
  switch (count) {
    case 1: return rows<G, 1, 8>(t, 0);
    case 2: return rows<G, 2, 4>(t, 0);
    case 3: return rows<G, 3, 2>(t, 0);
    case 4: return rows<G, 4, 2>(t, 0);
    case 5: return rows<G, 5, 1>(t, 0);
    case 6: return rows<G, 6, 1>(t, 0);
    case 7: return rows<G, 7, 1>(t, 0);
    case 8: return rows<G, 8, 1>(t, 0);
  }
}

template <int G>
SK_INLINE void many_rows(const Tile& t, int64_t count) {
  int64_t n = 0;
  for (; n + kTileRows <= count; n += kTileRows) rows<G, kTileRows, 1>(t, n);
  switch (count - n) {
    case 5: return rows<G, 5, 1>(t, n);
    case 4: return rows<G, 4, 1>(t, n);
    case 3: return rows<G, 3, 1>(t, n);
    case 2: return rows<G, 2, 1>(t, n);
    case 1: return rows<G, 1, 1>(t, n);
  }
}

}  // namespace

void dense_rows(const DenseRows& d, const float* x, int64_t x_row, int64_t count, const float* bias, float* y, int64_t y_row, int64_t y_col,
                int64_t begin, int64_t end) {
  // Vectors that share a broadcast, and inputs whose weights stay in the caches while they serve many rows: shorter blocks visit y, which does
  // not stay there, more often; of longer ones, sums of sums would round less.
  constexpr int kMany = W == 16 ? 4 : 1, kPair = W == 16 ? 2 : 1;
  const bool few = count <= kFew;
  const int64_t block = few ? 512 : 768;
  for (int64_t group = begin; group < end;) {
    const int64_t most = few ? (count == 1 ? 1 : kPair) : kMany, here = end - group >= most ? most : 1;
    for (int64_t i = 0; i == 0 || i < d.inputs; i += block)
      for (int64_t v = 0; v < L; v += W) {
        const int64_t first = group * L + v;
        if (first >= d.rows) break;
        const int64_t inputs = d.inputs - i < block ? d.inputs - i : block;
        const Tile t{d.weight + (group * d.inputs + i) * L + v,
                     d.inputs * L,
                     inputs,
                     x + i,
                     x_row,
                     bias ? bias + first : nullptr,
                     y + first * y_col,
                     y_row,
                     y_col,
                     d.rows - first,
                     i == 0};
        if (few)
          here == 1 ? few_rows<1>(t, count) : few_rows<kPair>(t, count);
        else
          here == 1 ? many_rows<1>(t, count) : many_rows<kMany>(t, count);
      }
    group += here;
  }
}

}  // namespace sk::SK_ISA
