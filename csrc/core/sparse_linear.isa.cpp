// sparse_linear, condensed, few rows of x, compiled once per instruction set: one vector = W connections of one output, x is gathered.
// Many rows: sparse_linear_columns.isa.cpp. Here too: the layouts, and the table of all kernels.
#include "core/sparse_linear_kernels.h"
#include "core/sparse_linear_turn.h"
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

#if defined(__AVX512F__)
SK_INLINE __m512i sources_of(const uint16_t* i) { return _mm512_cvtepu16_epi32(_mm256_loadu_si256(reinterpret_cast<const __m256i*>(i))); }
SK_INLINE __m512i sources_of(const int32_t* i) { return _mm512_loadu_si512(i); }

// Up to 64 inputs in registers: two permutes take a third of the time of a gather.
struct InRegisters {
  static constexpr int64_t kMost = 4 * W;
  __m512 x[4];
  InRegisters(const float* from, int64_t inputs) {
    SK_UNROLL for (int j = 0; j < 4; ++j) {
      const int64_t left = inputs - j * W;
      x[j] = reinterpret_cast<__m512>(left >= W ? load(from + j * W) : left > 0 ? load_first(from + j * W, int(left)) : zero());
    }
  }
  template <class I>
  SK_INLINE vf at(const I* source) const {
    const __m512i i = sources_of(source);
    const __m512 low = _mm512_permutex2var_ps(x[0], i, x[1]), high = _mm512_permutex2var_ps(x[2], i, x[3]);
    return reinterpret_cast<vf>(_mm512_mask_mov_ps(low, _mm512_test_epi32_mask(i, _mm512_set1_epi32(2 * W)), high));
  }
};
struct InMemory {
  const float* x;
  template <class I>
  SK_INLINE vf at(const I* source) const {
    return gather(x, source);
  }
};

// The same for a natural weight of few connections a row: 16 rows are turned side by side in registers, 4 connections at a time, which
// costs less than to sum the lanes of each row.
template <class I, class X>
SK_INLINE void turned_groups(const Interleaved& c, const X& x, const float* bias, float* y, int64_t y_stride, int64_t begin, int64_t end) {
  constexpr int64_t L = Interleaved::kLanes;
  for (int64_t group = begin; group < end; ++group) {
    const int64_t first = group * L;
    const int rows = c.rows - first < L ? int(c.rows - first) : int(L);
    const float* w = c.weight + first * c.fan_in;
    const I* source = static_cast<const I*>(c.source) + first * c.fan_in;
    vf sums[4] = {bias ? load_first(bias + first, rows) : zero(), zero(), zero(), zero()};
    __m512 t[4];
    int64_t k = 0;
    if (c.fan_in == 1) {
      sums[0] += load_first(w, rows) * x.at(source);
      k = 1;
    } else if (rows == L) {
      for (; k + 4 <= c.fan_in; k += 4) {
        turn_four(w + k, c.fan_in, t);
        SK_UNROLL for (int i = 0; i < 4; ++i) sums[i] += reinterpret_cast<vf>(t[i]) * x.at(source + (k + i) * L);
      }
    }
    for (; k < c.fan_in; k += 4) {
      const int columns = c.fan_in - k < 4 ? int(c.fan_in - k) : 4;
      turn_some(w + k, c.fan_in, rows, columns, t);
      SK_UNROLL for (int i = 0; i < 4; ++i) if (i < columns) sums[i] += reinterpret_cast<vf>(t[i]) * x.at(source + (k + i) * L);
    }
    const vf total = (sums[0] + sums[1]) + (sums[2] + sums[3]);
    if (y_stride == 1) {
      store_first(y + first, total, rows);
    } else {
      for (int r = 0; r < rows; ++r) y[(first + r) * y_stride] = total[r];
    }
  }
}
void turned_kernel(const Interleaved& c, const float* x, const float* bias, float* y, int64_t y_stride, int64_t begin, int64_t end) {
  if (c.wide)
    turned_groups<int32_t>(c, InMemory{x}, bias, y, y_stride, begin, end);
  else if (c.inputs <= InRegisters::kMost)
    turned_groups<uint16_t>(c, InRegisters(x, c.inputs), bias, y, y_stride, begin, end);
  else
    turned_groups<uint16_t>(c, InMemory{x}, bias, y, y_stride, begin, end);
}
#else
constexpr decltype(SparseLinearKernels::turned) turned_kernel = nullptr;
#endif

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

// ---- layouts
void to_feature_major(const float* in, int64_t in_row, int64_t columns, int64_t features, float* out, int64_t out_stride) {
  if (out_stride == W / 2) {
    for (int64_t f = 0; f < features; f += W)
      transpose_half_tile(in + f, in_row, int(columns), features - f < W ? int(features - f) : W, out + f * out_stride, out_stride);
    return;
  }
  constexpr int64_t kRun = 128;  // features of W rows at a time: as many streams as the hardware follows, and what is written stays in L1
  for (int64_t first = 0; first < features; first += kRun)
    for (int64_t n = 0; n < out_stride; n += W) {
      const int64_t rows = columns - n < 0 ? 0 : columns - n < W ? columns - n : W;
      for (int64_t f = first; f < features && f < first + kRun; f += W) {
        const int cols = features - f < W ? int(features - f) : W;
        transpose_tile(in + n * in_row + f, in_row, int(rows), cols, out + f * out_stride + n, out_stride);
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
void expanded(const ExpandedRows&, const float*, int64_t, int64_t, const float*, float*, int64_t, int64_t, int64_t, int64_t);
void expand_block(const ExpandedRows&, int64_t, int64_t, int32_t*, float*, int64_t, int64_t, int64_t);
void balanced(const BalancedRows&, const float*, int64_t, int64_t, const float*, float*, int64_t, int64_t, float*, int64_t, int64_t);
#define SK_EXPANDED expanded, dense_rows, balanced, expand_block
#else
#define SK_EXPANDED nullptr, dense_rows, nullptr, nullptr
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
void single_rows(const SingleRowsWork&);
void panel_outer(const PanelOuterWork&);
void block_transpose(const float*, int64_t, int64_t, float*);

const SparseLinearKernels sparse_linear{
    W,
    gather_kernel,
    interleaved_kernel,
    turned_kernel,
    SK_EXPANDED,
    outer_kernel,
    {block_tile_1, block_tile_2, block_tile_3, block_tile_4},
    block_dot,
    panel_dot,
    block_sampled,
    block_rows,
    block_dots,
    block_outer,
    single_rows,
    panel_outer,
    block_transpose,
    to_feature_major,
    from_feature_major,
};

}  // namespace sk::SK_ISA
