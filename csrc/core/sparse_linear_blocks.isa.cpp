// sparse_linear for blocks of connections (block_size > 1), compiled once per instruction set. A kept block is a small dense
// matrix: with many rows of x (feature-major) it is a register tile of up to 12 outputs x V vectors of columns, the weight
// broadcast from where it lies; with few rows it is dot products along the block's inputs, or, for panels (one input per
// block, outputs contiguous), a multiply-add of a whole vector of outputs.
#include "core/sparse_linear_kernels.h"
#include "core/transpose.h"

namespace sk::SK_ISA {
namespace {

// out[r0 .. r0+R)[:] += ...
template <int R, int V>
__attribute__((noinline)) void tile_rows(const BlockWork& p, int64_t r0) {
  vf a[R][V];
  SK_UNROLL for (int r = 0; r < R; ++r) SK_UNROLL for (int v = 0; v < V; ++v) a[r][v] = zero();  // sums of sums round less than one long sum
  for (int64_t e = 0; e < p.count; ++e) {
    const float* in = p.in + p.entries[2 * e] * p.depth * p.in_stride;
    const float* w = p.weight + p.entries[2 * e + 1] * p.area + r0 * p.row_step;
    for (int64_t k = 0; k < p.depth; ++k, in += p.in_stride, w += p.k_step) {
      vf x[V];
      SK_UNROLL for (int v = 0; v < V; ++v) x[v] = load(in + v * W);
      SK_UNROLL for (int r = 0; r < R; ++r) {
        const vf u = splat(w[r * p.row_step]);
        SK_UNROLL for (int v = 0; v < V; ++v) a[r][v] += u * x[v];
      }
    }
  }
  SK_UNROLL for (int r = 0; r < R; ++r) SK_UNROLL for (int v = 0; v < V; ++v) {
    float* out = p.out + (r0 + r) * p.out_stride + v * W;
    store(out, load(out) + a[r][v]);
  }
}

// R or fewer rows, whichever they are
template <int R, int V>
SK_INLINE void tile_of(const BlockWork& p, int64_t r0, int64_t rows) {
  if constexpr (R > 0) {
    if (rows == R) return tile_rows<R, V>(p, r0);
    tile_of<R - 1, V>(p, r0, rows);
  }
}

// Rows in groups of about the same size: a small last group would wait for its few sums.
template <int V>
SK_INLINE void tile(const BlockWork& p) {
  // sums, V loads and a broadcast fill the registers: 32 with AVX-512, else 16
  constexpr int most = W == 16 ? (V <= 2 ? 12 : V == 3 ? 8 : 6) : V <= 2 ? 6 : 3;
  const int64_t groups = (p.rows + most - 1) / most;
  for (int64_t g = 0; g < groups; ++g) {
    const int64_t r = p.rows * g / groups;
    tile_of<most, V>(p, r, p.rows * (g + 1) / groups - r);
  }
}

// R outputs share every load of x
template <int R>
SK_INLINE void dot_rows(const BlockWork& p, int64_t r0) {
  vf a[R];
  float tail[R];
  SK_UNROLL for (int r = 0; r < R; ++r) {
    a[r] = zero();
    tail[r] = 0.0f;
  }
  for (int64_t e = 0; e < p.count; ++e) {
    const float* x = p.in + p.entries[2 * e] * p.depth;
    const float* w = p.weight + p.entries[2 * e + 1] * p.area + r0 * p.depth;
    int64_t i = 0;
    for (; i + W <= p.depth; i += W) {
      const vf xv = load(x + i);
      SK_UNROLL for (int r = 0; r < R; ++r) a[r] += load(w + r * p.depth + i) * xv;
    }
    for (; i < p.depth; ++i) SK_UNROLL for (int r = 0; r < R; ++r) tail[r] += w[r * p.depth + i] * x[i];
  }
  SK_UNROLL for (int r = 0; r < R; ++r) p.out[(r0 + r) * p.out_stride] += sum(a[r]) + tail[r];
}

}  // namespace

void block_tile_1(const BlockWork& p) { tile<1>(p); }
void block_tile_2(const BlockWork& p) { tile<2>(p); }
void block_tile_3(const BlockWork& p) { tile<3>(p); }
void block_tile_4(const BlockWork& p) { tile<4>(p); }

void block_dot(const BlockWork& p) {
  int64_t r = 0;
  for (; r + 8 <= p.rows; r += 8) dot_rows<8>(p, r);
  for (; r + 2 <= p.rows; r += 2) dot_rows<2>(p, r);
  if (r < p.rows) dot_rows<1>(p, r);
}

// Outputs contiguous in the weight, [e][depth][rows], and in `out`: V vectors of outputs share each x, four sums run side by side.
template <int V>
static SK_INLINE void panel_vectors(const BlockWork& p, int64_t r) {
  vf a[4][V];
  SK_UNROLL for (int v = 0; v < V; ++v) {
    a[0][v] = load(p.out + r + v * W);
    SK_UNROLL for (int u = 1; u < 4; ++u) a[u][v] = zero();
  }
  const int64_t area = p.depth * p.rows;
  int64_t e = 0;
  if (p.depth % 4 == 0) {
    for (; e < p.count; ++e) {
      const float *x = p.in + p.entries[2 * e] * p.depth, *w = p.weight + p.entries[2 * e + 1] * area + r;
      for (int64_t i = 0; i < p.depth; i += 4, x += 4, w += 4 * p.rows) SK_UNROLL for (int u = 0; u < 4; ++u) {
          const vf xu = splat(x[u]);
          SK_UNROLL for (int v = 0; v < V; ++v) a[u][v] += xu * load(w + u * p.rows + v * W);
        }
    }
  } else if (p.depth == 1) {
    for (; e + 4 <= p.count; e += 4) SK_UNROLL for (int u = 0; u < 4; ++u) {
        const vf xu = splat(p.in[p.entries[2 * (e + u)]]);
        const float* w = p.weight + p.entries[2 * (e + u) + 1] * p.rows + r;
        SK_UNROLL for (int v = 0; v < V; ++v) a[u][v] += xu * load(w + v * W);
      }
  }
  for (; e < p.count; ++e) {
    const float *x = p.in + p.entries[2 * e] * p.depth, *w = p.weight + p.entries[2 * e + 1] * area + r;
    for (int64_t i = 0; i < p.depth; ++i) SK_UNROLL for (int v = 0; v < V; ++v) a[0][v] += splat(x[i]) * load(w + i * p.rows + v * W);
  }
  SK_UNROLL for (int v = 0; v < V; ++v) store(p.out + r + v * W, (a[0][v] + a[1][v]) + (a[2][v] + a[3][v]));
}

void panel_dot(const BlockWork& p) {
  int64_t r = 0;
  for (; r + 2 * W <= p.rows; r += 2 * W) panel_vectors<2>(p, r);
  if (r + W <= p.rows) {
    panel_vectors<1>(p, r);
    r += W;
  }
  for (; r < p.rows; ++r) {
    float a = p.out[r];
    for (int64_t e = 0; e < p.count; ++e)
      for (int64_t i = 0; i < p.depth; ++i) a += p.in[p.entries[2 * e] * p.depth + i] * p.weight[(p.entries[2 * e + 1] * p.depth + i) * p.rows + r];
    p.out[r] = a;
  }
}

void block_sampled(const float* grad_t, const float* x_t, int64_t columns, int64_t rows, int64_t depth, bool accumulate, float* gw) {
  const int64_t vectors = columns / W;
  for (int64_t o = 0; o < rows; ++o, gw += depth) {
    const float* g = grad_t + o * columns;
    int64_t i = 0;
    for (; i + W <= depth; i += W) {
      vf dots[W];
      SK_UNROLL for (int l = 0; l < W; ++l) dots[l] = load(g) * load(x_t + (i + l) * columns);
      for (int64_t v = 1; v < vectors; ++v) {
        const vf gv = load(g + v * W);
        SK_UNROLL for (int l = 0; l < W; ++l) dots[l] += gv * load(x_t + (i + l) * columns + v * W);
      }
      const vf total = sum_each(dots);
      store(gw + i, accumulate ? load(gw + i) + total : total);
    }
    for (; i < depth; ++i) {
      vf dot = zero();
      for (int64_t v = 0; v < vectors; ++v) dot += load(g + v * W) * load(x_t + i * columns + v * W);
      gw[i] = accumulate ? gw[i] + sum(dot) : sum(dot);
    }
  }
}

}  // namespace sk::SK_ISA
