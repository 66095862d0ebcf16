// sparse_linear for blocks, on activations as they lie, [rows][features]: nothing is transposed but, at most, the weight.
// Compiled once per instruction set. Register tiles of sums, each started once per group of rows:
//   block_rows    weights with their outputs contiguous: V vectors of outputs x a value of each of up to kRows rows of x
//   block_dots    weights as they lie, few rows of x: 4 outputs x up to kDotRows rows, along the inputs; lanes summed at the end
//   block_outer   grad_weight: values of up to kRows outputs of grad_out x V vectors of inputs, over the rows of x
//   single_rows   blocks one output high: up to kSingleRows rows of x, lanes summed W outputs at a time
//   panel_outer   grad_weight of blocks one input wide: V vectors of outputs of grad_out x values of up to kRows inputs
#include "core/sparse_linear_kernels.h"
#include "core/sparse_linear_turn.h"
#include "core/transpose.h"

namespace sk::SK_ISA {
namespace {

// Sums, V loads and a broadcast fit the registers. One vector: more than 14 rows of x, a multiple of a page apart, would not stay in
// the 12 lines of their set of the first-level cache.
constexpr int kRows = W == 16 ? 12 : W == 8 ? 6 : 4;
constexpr int kRowsOfOneVector = W == 16 ? 14 : 8;
constexpr int kDotRows = W == 16 ? 6 : 2;
constexpr int kSingleRows = W == 16 ? 8 : 4;
constexpr int kLine = 16;  // floats in a line of the cache

// `count` rows in groups of at most Most and of about the same size: f(first row, integral constant: rows)
template <int N>
struct Rows {
  static constexpr int value = N;
};
template <int N, class F>
SK_INLINE void with_rows(int64_t rows, const F& f) {
  if constexpr (N > 0) {
    if (rows == N) return f(Rows<N>{});
    with_rows<N - 1>(rows, f);
  }
}
template <int Most, class F>
SK_INLINE void in_groups(int64_t count, const F& f) {
  const int64_t groups = (count + Most - 1) / Most;
  for (int64_t g = 0; g < groups; ++g) {
    const int64_t first = count * g / groups, rows = count * (g + 1) / groups - first;
    with_rows<Most>(rows, [&](auto n) { f(first, n); });
  }
}

// y[n0 .. n0+N)[o .. o+V*W)
template <int V, int N>
__attribute__((noinline)) void rows_tile(const BlockRowsWork& p, int64_t n0, int64_t o) {
  vf a[N][V];
  if (p.accumulate) {
    const float* y = p.y + n0 * p.y_row + o;
    SK_UNROLL for (int n = 0; n < N; ++n) SK_UNROLL for (int v = 0; v < V; ++v) a[n][v] = load(y + n * p.y_row + v * W);
  } else {
    SK_UNROLL for (int v = 0; v < V; ++v) {
      const vf b = p.bias ? load(p.bias + o + v * W) : zero();
      SK_UNROLL for (int n = 0; n < N; ++n) a[n][v] = b;
    }
  }
  const float* x = p.x + n0 * p.x_row;
  const int64_t x_row = p.x_row, rows = p.rows;
  const float* ahead = p.ahead + p.ahead_floats * n0 / p.count_n / kLine * kLine;
  const float* const ahead_end = p.ahead + p.ahead_floats * (n0 + N) / p.count_n;
  const int64_t ahead_lines = p.count ? (ahead_end - ahead) / (kLine * p.count) + 1 : 0;
  for (int64_t e = 0; e < p.count; ++e) {
    for (int64_t l = 0; l < ahead_lines && ahead < ahead_end; ++l, ahead += kLine) __builtin_prefetch(ahead);
    const float* in = x + p.entries[2 * e] * p.depth;
    const float* w = p.weight + (p.in_order ? e : int64_t(p.entries[2 * e + 1])) * p.depth * rows + o;
    // the rows of x are far apart, and the processor does not guess where the next block is
    if (e + 1 < p.count) {
      const float* next = x + p.entries[2 * e + 2] * p.depth;
      for (int64_t k = 0; k < p.depth; k += kLine) SK_UNROLL for (int n = 0; n < N; ++n) __builtin_prefetch(next + n * x_row + k);
    }
    // Three rows of x share a pointer, one or two strides away from it: then addresses stay in registers.
    const float* at[(N + 2) / 3];
    SK_UNROLL for (int n = 0; n < N; n += 3) {
      at[n / 3] = in + n * x_row;
      asm("" : "+r"(at[n / 3]));
    }
    for (int64_t k = 0; k < p.depth; ++k, w += rows) {
      vf u[V];
      SK_UNROLL for (int v = 0; v < V; ++v) {
        u[v] = load(w + v * W);
        __builtin_prefetch(w + 8 * rows + v * W);
      }
      SK_UNROLL for (int n = 0; n < N; ++n) {
        const vf s = splat(at[n / 3][n % 3 * x_row]);
        SK_UNROLL for (int v = 0; v < V; ++v) a[n][v] += s * u[v];
      }
      SK_UNROLL for (int n = 0; n < N; n += 3)++ at[n / 3];
    }
  }
  float* y = p.y + n0 * p.y_row + o;
  SK_UNROLL for (int n = 0; n < N; ++n) SK_UNROLL for (int v = 0; v < V; ++v) store(y + n * p.y_row + v * W, a[n][v]);
}

template <int S>
SK_INLINE vf sum_pairs(vf a, vf b) {
  return low<S>(a, b, AllLanes{}) + high<S>(a, b, AllLanes{});
}

// Outputs [o, o+4) of rows [n0, n0+N), each still 4-lane groups of sums, for sums[n][at].
template <int N>
SK_INLINE void dots_of_4(const BlockRowsWork& p, int64_t n0, int64_t o, vf (*sums)[W], int at) {
  vf a[4][N];
  SK_UNROLL for (int r = 0; r < 4; ++r) SK_UNROLL for (int n = 0; n < N; ++n) a[r][n] = zero();
  const float* x = p.x + n0 * p.x_row;
  for (int64_t e = 0; e < p.count; ++e) {
    const float* in = x + p.entries[2 * e] * p.depth;
    const float* w = p.weight + (int64_t(p.entries[2 * e + 1]) * p.rows + o) * p.depth;
    for (int64_t i = 0; i < p.depth; i += W) {
      vf u[4];
      SK_UNROLL for (int r = 0; r < 4; ++r) u[r] = load(w + r * p.depth + i);
      SK_UNROLL for (int n = 0; n < N; ++n) {
        const vf v = load(in + n * p.x_row + i);
        SK_UNROLL for (int r = 0; r < 4; ++r) a[r][n] += u[r] * v;
      }
    }
  }
  SK_UNROLL for (int n = 0; n < N; ++n) sums[n][at] = sum_pairs<2>(sum_pairs<1>(a[0][n], a[1][n]), sum_pairs<1>(a[2][n], a[3][n]));
}

template <int N>
__attribute__((noinline)) void dots_tile(const BlockRowsWork& p, int64_t n0) {
  vf sums[N][W];
  for (int64_t o = 0; o < p.rows; o += W) {
    const int outputs = p.rows - o < W ? int(p.rows - o) : W;
    for (int r = 0; r < W; r += 4) {
      if (r < outputs)
        dots_of_4<N>(p, n0, o + r, sums, r);
      else
        SK_UNROLL for (int n = 0; n < N; ++n) sums[n][r] = zero();
    }
    const vf b = !p.bias ? zero() : outputs == W ? load(p.bias + o) : load_first(p.bias + o, outputs);
    SK_UNROLL for (int n = 0; n < N; ++n) {
      sum_stage<4>(sums[n]);
      float* y = p.y + (n0 + n) * p.y_row + o;
      outputs == W ? store(y, sums[n][0] + b) : store_first(y, sums[n][0] + b, outputs);
    }
  }
}

// gw[o .. o+N)[i .. i+V*W)
template <int V, int N>
__attribute__((noinline)) void outer_tile(const BlockOuterWork& p, int64_t o, int64_t i) {
  vf a[N][V];
  SK_UNROLL for (int n = 0; n < N; ++n) SK_UNROLL for (int v = 0; v < V; ++v) a[n][v] = zero();
  const float *g = p.grad + o, *x = p.x + i;
  for (int64_t row = 0; row < p.count_n; ++row, g += p.grad_row, x += p.x_row) {
    vf u[V];
    SK_UNROLL for (int v = 0; v < V; ++v) {
      u[v] = load(x + v * W);
      __builtin_prefetch(x + 6 * p.x_row + v * W);
    }
    SK_UNROLL for (int n = 0; n < N; ++n) {
      const vf s = splat(g[n]);
      SK_UNROLL for (int v = 0; v < V; ++v) a[n][v] += s * u[v];
    }
  }
  float* gw = p.grad_weight + o * p.depth + i;
  SK_UNROLL for (int n = 0; n < N; ++n) SK_UNROLL for (int v = 0; v < V; ++v) {
    float* to = gw + n * p.depth + v * W;
    store(to, p.accumulate ? load(to) + a[n][v] : a[n][v]);
  }
}

// y[n0 .. n0+N) for outputs [o, o+count), at most W
template <int N>
__attribute__((noinline)) void single_tile(const SingleRowsWork& p, int64_t n0, int64_t o, int count) {
  constexpr int64_t kAhead = 8;  // blocks of the weight lie anywhere
  vf sums[N][W];
  const float* x = p.x + n0 * p.x_row;
  for (int j = 0; j < W; ++j) {
    vf a[N];
    SK_UNROLL for (int n = 0; n < N; ++n) a[n] = zero();
    const int64_t end = j < count ? p.ptr[o + j + 1] : 0;
    for (int64_t e = j < count ? p.ptr[o + j] : 0; e < end; ++e) {
      if (e + kAhead < p.entries_end) __builtin_prefetch(p.weight + p.entries[2 * (e + kAhead) + 1] * p.depth);
      const float *in = x + p.entries[2 * e] * p.depth, *w = p.weight + p.entries[2 * e + 1] * p.depth;
      for (int64_t k = 0; k < p.depth; k += W) {
        const vf u = load(w + k);
        SK_UNROLL for (int n = 0; n < N; ++n) a[n] += u * load(in + n * p.x_row + k);
      }
    }
    SK_UNROLL for (int n = 0; n < N; ++n) sums[n][j] = a[n];
  }
  const vf b = !p.bias ? zero() : count == W ? load(p.bias + o) : load_first(p.bias + o, count);
  SK_UNROLL for (int n = 0; n < N; ++n) {
    const vf v = sum_each(sums[n]) + b;
    float* y = p.y + (n0 + n) * p.y_row + o;
    count == W ? store(y, v) : store_first(y, v, count);
  }
}

// gw of entries [e, e+N), outputs [o, o+V*W)
template <int V, int N>
__attribute__((noinline)) void panel_outer_tile(const PanelOuterWork& p, int64_t e, int64_t o) {
  constexpr int kStep = 4;  // rows of x per visit of a source: its address is read once
  vf a[N][V];
  const float* x[N];
  SK_UNROLL for (int j = 0; j < N; ++j) {
    x[j] = p.x_t + p.entries[2 * (e + j)] * p.x_stride;
    SK_UNROLL for (int v = 0; v < V; ++v) a[j][v] = zero();
  }
  const float* g = p.grad + o;
  int64_t n = 0;
  for (; n + kStep <= p.count_n; n += kStep, g += kStep * p.grad_row) {
    vf u[kStep][V];
    SK_UNROLL for (int q = 0; q < kStep; ++q) SK_UNROLL for (int v = 0; v < V; ++v) u[q][v] = load(g + q * p.grad_row + v * W);
    SK_UNROLL for (int j = 0; j < N; ++j) {
      const float* from = x[j] + n;
      SK_UNROLL for (int q = 0; q < kStep; ++q) {
        const vf s = splat(from[q]);
        SK_UNROLL for (int v = 0; v < V; ++v) a[j][v] += s * u[q][v];
      }
    }
  }
  for (; n < p.count_n; ++n, g += p.grad_row)
    SK_UNROLL for (int j = 0; j < N; ++j) SK_UNROLL for (int v = 0; v < V; ++v) a[j][v] += splat(x[j][n]) * load(g + v * W);
  SK_UNROLL for (int j = 0; j < N; ++j) SK_UNROLL for (int v = 0; v < V; ++v) {
    float* to = p.grad_weight + p.entries[2 * (e + j) + 1] * p.rows + o + v * W;
    store(to, p.accumulate ? load(to) + a[j][v] : a[j][v]);
  }
}

}  // namespace

void block_rows(const BlockRowsWork& p) {
  int64_t o = 0;
  for (; o + 2 * W <= p.rows; o += 2 * W) in_groups<kRows>(p.count_n, [&](int64_t n, auto rows) { rows_tile<2, rows.value>(p, n, o); });
  if (o < p.rows) in_groups<kRowsOfOneVector>(p.count_n, [&](int64_t n, auto rows) { rows_tile<1, rows.value>(p, n, o); });
}

void block_dots(const BlockRowsWork& p) {
  in_groups<kDotRows>(p.count_n, [&](int64_t n, auto rows) { dots_tile<rows.value>(p, n); });
}

void block_outer(const BlockOuterWork& p) {
  int64_t i = 0;
  for (; i + 2 * W <= p.depth; i += 2 * W) in_groups<kRows>(p.rows, [&](int64_t o, auto rows) { outer_tile<2, rows.value>(p, o, i); });
  if (i < p.depth) in_groups<kRowsOfOneVector>(p.rows, [&](int64_t o, auto rows) { outer_tile<1, rows.value>(p, o, i); });
}

void single_rows(const SingleRowsWork& p) {
  in_groups<kSingleRows>(p.count_n, [&](int64_t n, auto rows) {
    for (int64_t o = p.begin; o < p.end; o += W) single_tile<rows.value>(p, n, o, p.end - o < W ? int(p.end - o) : W);
  });
}

void panel_outer(const PanelOuterWork& p) {
  // V vectors of grad_out for each of 4 rows stand beside the sums
  int64_t o = 0;
  for (; o + 2 * W <= p.rows; o += 2 * W)
    in_groups<W == 16 ? 8 : 3>(p.count, [&](int64_t e, auto count) { panel_outer_tile<2, count.value>(p, e, o); });
  if (o < p.rows) in_groups<W == 16 ? 12 : 6>(p.count, [&](int64_t e, auto count) { panel_outer_tile<1, count.value>(p, e, o); });
}

void block_transpose(const float* weight, int64_t rows, int64_t depth, float* out) {
#if defined(__AVX512F__)
  if (depth % 4 == 0) {  // fewer moves between lanes than a square takes
    for (int64_t o = 0; o < rows; o += W)
      for (int64_t k = 0; k < depth; k += 4) {
        __m512 columns[4];
        turn_four(weight + o * depth + k, depth, columns);
        SK_UNROLL for (int i = 0; i < 4; ++i) _mm512_storeu_ps(out + (k + i) * rows + o, columns[i]);
      }
    return;
  }
#endif
  for (int64_t k = 0; k < depth; k += W)
    for (int64_t o = 0; o < rows; o += W)
      transpose_tile(weight + o * depth + k, depth, W, depth - k < W ? int(depth - k) : W, out + k * rows + o, rows);
}

}  // namespace sk::SK_ISA
