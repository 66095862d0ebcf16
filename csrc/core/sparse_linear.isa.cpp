// sparse_linear, compiled once per instruction set. Two ideas:
//   gather          one vector = W connections of one output; x is gathered (few rows of x)
//   feature-major   one vector = W rows of x for one feature; a connection is one broadcast and one load per vector. Rows of
//                   the output are visited block of inputs by block (32 KB of x^T stays in L1), and inside a block in
//                   runs of equal length, two rows at a time, so that no branch depends on the data.
#include "core/sparse_linear_kernels.h"
#include "core/transpose.h"

namespace sk::SK_ISA {
namespace {

// ---- gather: W values of x by index; or the first n, zero for the rest, reading nothing there
#if defined(__AVX512F__)
#define SK_MASKED_GATHER 1
SK_INLINE vf gather_first(const float* x, const uint16_t* i, int n) {  // the plan is padded: indices may be read past the end
  return reinterpret_cast<vf>(_mm512_mask_i32gather_ps(_mm512_setzero_ps(), __mmask16((1u << n) - 1),
                                                       _mm512_cvtepu16_epi32(_mm256_loadu_si256(reinterpret_cast<const __m256i*>(i))), x, 4));
}
SK_INLINE vf gather_first(const float* x, const int32_t* i, int n) {
  return reinterpret_cast<vf>(_mm512_mask_i32gather_ps(_mm512_setzero_ps(), __mmask16((1u << n) - 1), _mm512_loadu_si512(i), x, 4));
}
SK_INLINE vf gather(const float* x, const uint16_t* i) {
  return reinterpret_cast<vf>(_mm512_i32gather_ps(_mm512_cvtepu16_epi32(_mm256_loadu_si256(reinterpret_cast<const __m256i*>(i))), x, 4));
}
SK_INLINE vf gather(const float* x, const int32_t* i) { return reinterpret_cast<vf>(_mm512_i32gather_ps(_mm512_loadu_si512(i), x, 4)); }
#elif defined(__AVX2__)
SK_INLINE vf gather(const float* x, const uint16_t* i) {
  return reinterpret_cast<vf>(_mm256_i32gather_ps(x, _mm256_cvtepu16_epi32(_mm_loadu_si128(reinterpret_cast<const __m128i*>(i))), 4));
}
SK_INLINE vf gather(const float* x, const int32_t* i) {
  return reinterpret_cast<vf>(_mm256_i32gather_ps(x, _mm256_loadu_si256(reinterpret_cast<const __m256i*>(i)), 4));
}
#else
template <class I>
SK_INLINE vf gather(const float* x, const I* i) {
  vf v = {};
  SK_UNROLL for (int l = 0; l < W; ++l) v[l] = x[i[l]];
  return v;
}
#endif

#ifdef SK_MASKED_GATHER
// The connections of all rows are one stream, cut into whole vectors wherever rows end: weights are loaded aligned, no gather is
// wasted on tails, and a vector that two rows share is gathered once. A connection's lane depends on its place in the
// stream alone, so a row's sum does not depend on the thread that starts there.
template <class I>
SK_INLINE void gather_rows(const Connections& c, const float* x, const float* w, const float* bias, float* y, int64_t y_stride, int64_t begin,
                           int64_t end) {
  const I* source = static_cast<const I*>(c.source);
  const int64_t stop = c.ptr[end];
  const auto products = [&](int64_t k) {  // of vector k; the caller masks what is not its own
    if (k + W <= stop) return load(w + k) * gather(x, source + k);
    return load_first(w + k, int(stop - k)) * gather_first(x, source + k, int(stop - k));
  };
  const auto lanes = [](vf v, int64_t first, int64_t last) {  // the others are zero
    const uint32_t low = (1u << (first < 0 ? 0 : first)) - 1, high = last >= W ? 0xffffu : (1u << last) - 1;
    return reinterpret_cast<vf>(_mm512_maskz_mov_ps(__mmask16(high & ~low), reinterpret_cast<__m512>(v)));
  };
  vf shared = zero();
  int64_t shared_at = -1;
  for (int64_t r = begin; r < end; ++r) {
    const int64_t first = c.ptr[r], last = c.ptr[r + 1];
    int64_t k = first / W * W;
    vf a = zero();
    if (k < first) {
      if (shared_at != k) shared = products(k), shared_at = k;
      a = lanes(shared, first - k, last - k);
      k += W;
    }
    for (; k + W <= last; k += W) a += load(w + k) * gather(x, source + k);
    if (k < last) {
      shared = products(k), shared_at = k;
      a += lanes(shared, 0, last - k);
    }
    y[r * y_stride] = sum(a) + (bias ? bias[r] : 0.0f);
  }
}
#else
template <class I>
SK_INLINE float gathered_dot(const float* x, const float* w, const I* i, int64_t count) {
  vf a = zero(), b = zero();
  int64_t k = 0;
  for (; k + 2 * W <= count; k += 2 * W) {
    a += load(w + k) * gather(x, i + k);
    b += load(w + k + W) * gather(x, i + k + W);
  }
  if (k + W <= count) {
    a += load(w + k) * gather(x, i + k);
    k += W;
  }
  float tail = 0.0f;
  for (; k < count; ++k) tail += w[k] * x[i[k]];
  return sum(a + b) + tail;
}
template <class I>
SK_INLINE void gather_rows(const Connections& c, const float* x, const float* w, const float* bias, float* y, int64_t y_stride, int64_t begin,
                           int64_t end) {
  const I* source = static_cast<const I*>(c.source);
  for (int64_t r = begin; r < end; ++r) {
    const int64_t k = c.ptr[r];
    y[r * y_stride] = gathered_dot(x, w + k, source + k, c.ptr[r + 1] - k) + (bias ? bias[r] : 0.0f);
  }
}
#endif
void gather_kernel(const Connections& c, const float* x, const float* w, const float* bias, float* y, int64_t y_stride, int64_t begin, int64_t end) {
  if (c.wide)
    gather_rows<int32_t>(c, x, w, bias, y, y_stride, begin, end);
  else
    gather_rows<uint16_t>(c, x, w, bias, y, y_stride, begin, end);
}

// One vector = W outputs: each lane gathers for its own row.
template <class I>
SK_INLINE void interleaved_groups(const Interleaved& c, const float* x, const float* bias, float* y, int64_t y_stride, int64_t begin, int64_t end) {
  constexpr int64_t L = Interleaved::kLanes;
  constexpr int V = L / W;
  for (int64_t group = begin; group < end; ++group) {
    const float* w = c.weight + group * c.fan_in * L;
    const I* source = static_cast<const I*>(c.source) + group * c.fan_in * L;
    vf a[4][V];
    SK_UNROLL for (int u = 0; u < 4; ++u) SK_UNROLL for (int v = 0; v < V; ++v) a[u][v] = zero();
    int64_t k = 0;
    for (; k + 4 <= c.fan_in; k += 4, w += 4 * L, source += 4 * L)
      SK_UNROLL for (int u = 0; u < 4; ++u) SK_UNROLL for (int v = 0; v < V; ++v) a[u][v] +=
          load(w + u * L + v * W) * gather(x, source + u * L + v * W);
    for (; k < c.fan_in; ++k, w += L, source += L) SK_UNROLL for (int v = 0; v < V; ++v) a[0][v] += load(w + v * W) * gather(x, source + v * W);
    float out[L];
    SK_UNROLL for (int v = 0; v < V; ++v) store(out + v * W, (a[0][v] + a[1][v]) + (a[2][v] + a[3][v]));
    const int64_t first = group * L, rows = c.rows - first < L ? c.rows - first : L;
    for (int64_t r = 0; r < rows; ++r) y[(first + r) * y_stride] = out[r] + (bias ? bias[first + r] : 0.0f);
  }
}
void interleaved_kernel(const Interleaved& c, const float* x, const float* bias, float* y, int64_t y_stride, int64_t begin, int64_t end) {
  if (c.wide)
    interleaved_groups<int32_t>(c, x, bias, y, y_stride, begin, end);
  else
    interleaved_groups<uint16_t>(c, x, bias, y, y_stride, begin, end);
}

// ---- grad_weight for few rows: every connection is one product per row of x
template <class I>
SK_INLINE void outer_rows(const Connections& c, const float* grad, int64_t grad_row, const float* x, int64_t x_row, int64_t rows_n, float* gw,
                          int64_t begin, int64_t end) {
  const I* source = static_cast<const I*>(c.source);
  for (int64_t r = begin; r < end; ++r) {
    int64_t k = c.ptr[r];
    const int64_t stop = c.ptr[r + 1];
    for (; k + W <= stop; k += W) {
      vf a = zero();
      for (int64_t n = 0; n < rows_n; ++n) a += splat(grad[n * grad_row + r]) * gather(x + n * x_row, source + k);
      store(gw + k, a);
    }
    for (; k < stop; ++k) {
      float a = 0.0f;
      for (int64_t n = 0; n < rows_n; ++n) a += grad[n * grad_row + r] * x[n * x_row + source[k]];
      gw[k] = a;
    }
  }
}
void outer_kernel(const Connections& c, const float* grad, int64_t grad_row, const float* x, int64_t x_row, int64_t rows_n, float* gw, int64_t begin,
                  int64_t end) {
  if (c.wide)
    outer_rows<int32_t>(c, grad, grad_row, x, x_row, rows_n, gw, begin, end);
  else
    outer_rows<uint16_t>(c, grad, grad_row, x, x_row, rows_n, gw, begin, end);
}

// ---- feature-major: one panel of rows
template <class I, int V>
void panel_kernel(const PanelWork& p) {
  const int32_t* s = p.segments;
  const I* source = static_cast<const I*>(p.source);
  const int64_t ld = p.in_stride;
  for (int64_t block = 0; block < p.blocks; ++block) {
    for (int32_t runs = *s++; runs > 0; --runs) {
      const int32_t length = s[0], rows = s[1];
      s += 2;
      int32_t q = 0;
      for (; q + 2 <= rows; q += 2, s += 4) {
        float *out0 = p.out + s[0] * p.out_stride, *out1 = p.out + s[2] * p.out_stride;
        const float *w0 = p.weight + s[1], *w1 = p.weight + s[3];
        const I *i0 = source + s[1], *i1 = source + s[3];
        vf a[V], b[V];
        SK_UNROLL for (int v = 0; v < V; ++v) {
          a[v] = load(out0 + v * W);
          b[v] = load(out1 + v * W);
        }
        for (int32_t k = 0; k < length; ++k) {
          const float *in0 = p.in + i0[k] * ld, *in1 = p.in + i1[k] * ld;
          const vf u0 = splat(w0[k]), u1 = splat(w1[k]);
          SK_UNROLL for (int v = 0; v < V; ++v) a[v] += u0 * load(in0 + v * W);
          SK_UNROLL for (int v = 0; v < V; ++v) b[v] += u1 * load(in1 + v * W);
        }
        SK_UNROLL for (int v = 0; v < V; ++v) {
          store(out0 + v * W, a[v]);
          store(out1 + v * W, b[v]);
        }
      }
      if (q < rows) {
        float* out0 = p.out + s[0] * p.out_stride;
        const float* w0 = p.weight + s[1];
        const I* i0 = source + s[1];
        s += 2;
        vf a[V];
        SK_UNROLL for (int v = 0; v < V; ++v) a[v] = load(out0 + v * W);
        for (int32_t k = 0; k < length; ++k) {
          const float* in0 = p.in + i0[k] * ld;
          const vf u0 = splat(w0[k]);
          SK_UNROLL for (int v = 0; v < V; ++v) a[v] += u0 * load(in0 + v * W);
        }
        SK_UNROLL for (int v = 0; v < V; ++v) store(out0 + v * W, a[v]);
      }
    }
  }
}

// ---- grad_weight for many rows: one dot product of two feature-major rows per connection, W of them summed together
template <class I, int V>
SK_INLINE void sampled_row(const float* grad, const float* x_t, const I* source, int64_t count, bool accumulate, float* gw) {
  constexpr int64_t ld = V * W;
  vf g[V];
  SK_UNROLL for (int v = 0; v < V; ++v) g[v] = load(grad + v * W);
  int64_t k = 0;
  for (; k + W <= count; k += W) {
    vf dots[W];
    SK_UNROLL for (int l = 0; l < W; ++l) {
      const float* in = x_t + source[k + l] * ld;
      dots[l] = g[0] * load(in);
      SK_UNROLL for (int v = 1; v < V; ++v) dots[l] += g[v] * load(in + v * W);
    }
    const vf total = sum_each(dots);
    store(gw + k, accumulate ? load(gw + k) + total : total);
  }
  for (; k < count; ++k) {
    const float* in = x_t + source[k] * ld;
    vf dot = g[0] * load(in);
    SK_UNROLL for (int v = 1; v < V; ++v) dot += g[v] * load(in + v * W);
    gw[k] = accumulate ? gw[k] + sum(dot) : sum(dot);
  }
}
template <class I>
SK_INLINE void sampled_rows(const Connections& c, const float* grad_t, const float* x_t, int64_t columns, bool accumulate, float* gw, int64_t begin,
                            int64_t end) {
  const I* source = static_cast<const I*>(c.source);
  for (int64_t r = begin; r < end; ++r) {
    const int64_t k = c.ptr[r], count = c.ptr[r + 1] - k;
    const float* grad = grad_t + r * columns;
    switch (columns / W) {
      case 1: sampled_row<I, 1>(grad, x_t, source + k, count, accumulate, gw + k); break;
      case 2: sampled_row<I, 2>(grad, x_t, source + k, count, accumulate, gw + k); break;
      case 3: sampled_row<I, 3>(grad, x_t, source + k, count, accumulate, gw + k); break;
      default: sampled_row<I, 4>(grad, x_t, source + k, count, accumulate, gw + k); break;
    }
  }
}
void sampled_kernel(const Connections& c, const float* grad_t, const float* x_t, int64_t columns, bool accumulate, float* gw, int64_t begin,
                    int64_t end) {
  if (c.wide)
    sampled_rows<int32_t>(c, grad_t, x_t, columns, accumulate, gw, begin, end);
  else
    sampled_rows<uint16_t>(c, grad_t, x_t, columns, accumulate, gw, begin, end);
}

// ---- layouts
void to_feature_major(const float* in, int64_t in_row, int64_t columns, int64_t features, float* out, int64_t out_stride) {
  for (int64_t f = 0; f < features; f += W) {
    const int cols = features - f < W ? int(features - f) : W;
    for (int64_t n = 0; n < out_stride; n += W) {
      const int64_t rows = columns - n;
      transpose_tile(in + n * in_row + f, in_row, rows < 0 ? 0 : rows < W ? int(rows) : W, cols, out + f * out_stride + n, out_stride);
    }
  }
}
void from_feature_major(const float* in, int64_t in_stride, int64_t columns, int64_t features, float* out, int64_t out_row) {
  for (int64_t n = 0; n < columns; n += W) {
    const int cols = columns - n < W ? int(columns - n) : W;
    for (int64_t f = 0; f < features; f += W)
      transpose_tile_exact(in + f * in_stride + n, in_stride, features - f < W ? int(features - f) : W, cols, out + n * out_row + f, out_row);
  }
}

}  // namespace

// sparse_linear_blocks.isa.cpp
void dense_rows(const DenseRows&, const float*, int64_t, int64_t, const float*, float*, int64_t, int64_t, int64_t, int64_t);
#if defined(__AVX512F__)
void expanded_1(const ExpandedRows&, const float*, int64_t, const float*, float*, int64_t, int64_t, int64_t, int64_t);
void expanded_2(const ExpandedRows&, const float*, int64_t, const float*, float*, int64_t, int64_t, int64_t, int64_t);
void expanded_3(const ExpandedRows&, const float*, int64_t, const float*, float*, int64_t, int64_t, int64_t, int64_t);
void expanded_4(const ExpandedRows&, const float*, int64_t, const float*, float*, int64_t, int64_t, int64_t, int64_t);
void expand_to_dense(const ExpandedRows&, float*, int64_t, int64_t);
#define SK_EXPANDED {expanded_1, expanded_2, expanded_3, expanded_4}, dense_rows, expand_to_dense
#else
#define SK_EXPANDED {nullptr, nullptr, nullptr, nullptr}, dense_rows, nullptr
#endif
void block_tile_1(const BlockWork&);
void block_tile_2(const BlockWork&);
void block_tile_3(const BlockWork&);
void block_tile_4(const BlockWork&);
void block_dot(const BlockWork&);
void panel_dot(const BlockWork&);
void block_sampled(const float*, const float*, int64_t, int64_t, int64_t, bool, float*);
// sparse_linear_block_rows.isa.cpp
void block_rows(const BlockRowsWork&);
void block_dots(const BlockRowsWork&);
void block_outer(const BlockOuterWork&);
void block_transpose(const float*, int64_t, int64_t, float*);

const SparseLinearKernels sparse_linear{
    W,
    gather_kernel,
    interleaved_kernel,
    SK_EXPANDED,
    outer_kernel,
    {{panel_kernel<uint16_t, 1>, panel_kernel<uint16_t, 2>, panel_kernel<uint16_t, 3>, panel_kernel<uint16_t, 4>},
     {panel_kernel<int32_t, 1>, panel_kernel<int32_t, 2>, panel_kernel<int32_t, 3>, panel_kernel<int32_t, 4>}},
    sampled_kernel,
    {block_tile_1, block_tile_2, block_tile_3, block_tile_4},
    block_dot,
    panel_dot,
    block_sampled,
    block_rows,
    block_dots,
    block_outer,
    block_transpose,
    to_feature_major,
    from_feature_major,
};

}  // namespace sk::SK_ISA
