// sparse_linear, condensed, many rows of x: one vector = W rows of x for one feature, so that a connection is one broadcast and one
// load per vector. Block of inputs by block, which stay in L1, two rows of the output at a time.
#include "core/sparse_linear_columns.h"

#include "core/transpose.h"

namespace sk::SK_ISA {
namespace {

// Row 0 of a matrix of which only the rows from `first` on exist.
SK_INLINE const float* row_zero(const float* at_first, int64_t first, int64_t stride) {
  return reinterpret_cast<const float*>(reinterpret_cast<uintptr_t>(at_first) - uintptr_t(first * stride) * sizeof(float));
}

// V vectors of columns; V = 0: half a vector.
template <int V>
struct ColumnLanes {
  typedef vf Vector;
  static constexpr int count = V, width = W;
};
#if SK_VEC_BYTES >= 32
template <>
struct ColumnLanes<0> {
  typedef float Vector __attribute__((vector_size(SK_VEC_BYTES / 2), aligned(4), may_alias));
  static constexpr int count = 1, width = W / 2;
};
#endif

template <class I, int Vectors, bool Ranked>
struct Panel {
  typedef typename ColumnLanes<Vectors>::Vector vec;
  static constexpr int V = ColumnLanes<Vectors>::count, L = ColumnLanes<Vectors>::width;
  static SK_INLINE vec load(const float* at) { return *reinterpret_cast<const vec*>(at); }
  static SK_INLINE void store(float* at, vec v) { *reinterpret_cast<vec*>(at) = v; }
  static SK_INLINE vec splat(float a) { return a - vec{}; }
  const I *const source, *const rank;
  const int64_t fan_in;
  const float *const weight, *const in, *const bias;
  float* const out;
  const int64_t in_stride, out_stride;
  const bool fresh;

  explicit Panel(const PanelWork& p)
      : source(static_cast<const I*>(p.source)),
        rank(static_cast<const I*>(p.weights.rank)),
        fan_in(p.weights.fan_in),
        weight(p.weights.weight),
        in(row_zero(p.in, p.first_feature, p.in_stride)),
        bias(p.bias),
        out(p.out),
        in_stride(p.in_stride),
        out_stride(p.out_stride),
        fresh(p.fresh) {}

  SK_INLINE vec weight_of(int64_t k, int64_t feature) const { return splat(Ranked ? weight[feature * fan_in + rank[k]] : weight[k]); }

  // The next lists lie in another row each: the stride says nothing to the hardware.
  SK_INLINE void prefetch(int64_t k) const {
    __builtin_prefetch(source + k);
    if constexpr (Ranked)
      __builtin_prefetch(rank + k);
    else
      __builtin_prefetch(weight + k);
  }

  // R rows of one length, [row, first connection] each. A line of the next lists is fetched ahead for each that is used.
  template <int R>
  SK_INLINE void rows(const int32_t* s, int32_t length) const {
    vec sums[R][V];
    int64_t k[R], next[R];
    float* rows_out[R];
    SK_UNROLL for (int r = 0; r < R; ++r) {
      k[r] = s[2 * r + 1];
      next[r] = s[2 * (Panels::kAhead + r - (R - 1)) + 1];
      rows_out[r] = out + s[2 * r] * out_stride;
      SK_UNROLL for (int v = 0; v < V; ++v) sums[r][v] = vec{};  // of this block alone: sums of sums round less than one long sum
    }
    const I* sources[R];
    SK_UNROLL for (int r = 0; r < R; ++r) sources[r] = source + k[r];
    constexpr int32_t kLine = 16;
    for (int32_t i = 0; i < length;) {
      SK_UNROLL for (int r = 0; r < R; ++r) prefetch(next[r] + i);
      const int32_t stop = length - i < kLine ? length : i + kLine;
      for (; i < stop; ++i) SK_UNROLL for (int r = 0; r < R; ++r) {
          const int64_t feature = sources[r][i];
          const float* x = in + feature * in_stride;
          const vec w = weight_of(k[r] + i, feature);
          SK_UNROLL for (int v = 0; v < V; ++v) sums[r][v] += w * load(x + v * L);
        }
    }
    SK_UNROLL for (int r = 0; r < R; ++r) {
      if (fresh) {
        const vec start = bias ? splat(bias[s[2 * r]]) : vec{};
        SK_UNROLL for (int v = 0; v < V; ++v) store(rows_out[r] + v * L, start + sums[r][v]);
      } else {
        SK_UNROLL for (int v = 0; v < V; ++v) store(rows_out[r] + v * L, load(rows_out[r] + v * L) + sums[r][v]);
      }
    }
  }
};

template <class I, int Vectors, bool Ranked>
void panel_kernel(const PanelWork& p) {
  const Panel<I, Vectors, Ranked> panel(p);
  const int32_t runs = *p.segments, *run = p.segments + 1, *s = run + 2 * runs;
  for (const int32_t* end = s; run < end; run += 2) {
    int32_t q = 0;
    for (; q + 2 <= run[1]; q += 2, s += 4) panel.template rows<2>(s, run[0]);
    if (q < run[1]) panel.template rows<1>(s, run[0]), s += 2;
  }
}

// ---- grad_weight: one dot product of two feature-major rows per connection, W of them summed together
template <class I, int V>
void sampled_kernel(const SampledWork& p) {
  const int64_t in_stride = p.in_stride, grad_stride = p.grad_stride;
  const float* x = row_zero(p.in, p.first_feature, in_stride);
  const int32_t runs = *p.segments, *run = p.segments + 1, *s = run + 2 * runs;
  for (const int32_t* end = s; run < end; run += 2)
    for (int32_t q = 0; q < run[1]; ++q, s += 2) {
      const float* grad = p.grad + s[0] * grad_stride;
      const I* source = static_cast<const I*>(p.source) + s[1];
      float* out = p.grad_weight + s[1];
      __builtin_prefetch(static_cast<const I*>(p.source) + s[2 * Panels::kAhead + 1]);
      __builtin_prefetch(p.grad_weight + s[2 * Panels::kAhead + 1], 1);
      vf g[V];
      SK_UNROLL for (int v = 0; v < V; ++v) g[v] = load(grad + v * W);
      const auto dot = [&](int64_t k) {
        const float* in = x + source[k] * in_stride;
        vf sum = g[0] * load(in);
        SK_UNROLL for (int v = 1; v < V; ++v) sum += g[v] * load(in + v * W);
        return sum;
      };
      for (int64_t k = 0; k < run[0]; k += W) {
        const int here = run[0] - k < W ? int(run[0] - k) : W;
        vf dots[W];
        if (here == W) {
          SK_UNROLL for (int l = 0; l < W; ++l) dots[l] = dot(k + l);
          const vf total = sum_each(dots);
          store(out + k, p.accumulate ? load(out + k) + total : total);
        } else {
          SK_UNROLL for (int l = 0; l < W; ++l) dots[l] = l < here ? dot(k + l) : zero();
          const vf total = sum_each(dots);
          store_first(out + k, p.accumulate ? load_first(out + k, here) + total : total, here);
        }
      }
    }
}

// ---- the weights of the transposed structure in its order
template <class I>
SK_INLINE void in_order(const Connections& c, const ColumnWeights& w, float* out, int64_t begin, int64_t end) {
  const I *source = static_cast<const I*>(c.source), *rank = static_cast<const I*>(w.rank);
  int64_t k = begin;
#if defined(__AVX512F__)
  for (; k + W <= end; k += W) {
    __m512i row, place;
    if constexpr (sizeof(I) == 2) {
      row = _mm512_cvtepu16_epi32(_mm256_loadu_si256(reinterpret_cast<const __m256i*>(source + k)));
      place = _mm512_cvtepu16_epi32(_mm256_loadu_si256(reinterpret_cast<const __m256i*>(rank + k)));
    } else {
      row = _mm512_loadu_si512(source + k), place = _mm512_loadu_si512(rank + k);
    }
    const __m512i at = _mm512_add_epi32(_mm512_mullo_epi32(row, _mm512_set1_epi32(int(w.fan_in))), place);
    store(out + k, reinterpret_cast<vf>(_mm512_i32gather_ps(at, w.weight, 4)));
  }
#endif
  for (; k < end; ++k) out[k] = w.weight[source[k] * w.fan_in + rank[k]];
}
void in_order_kernel(const Connections& c, const ColumnWeights& w, float* out, int64_t begin, int64_t end) {
  c.wide ? in_order<int32_t>(c, w, out, begin, end) : in_order<uint16_t>(c, w, out, begin, end);
}

}  // namespace

#if SK_VEC_BYTES >= 32
#define SK_PANELS(I, Ranked) \
  {panel_kernel<I, 0, Ranked>, panel_kernel<I, 1, Ranked>, panel_kernel<I, 2, Ranked>, panel_kernel<I, 3, Ranked>, panel_kernel<I, 4, Ranked>}
#else
#define SK_PANELS(I, Ranked) {nullptr, panel_kernel<I, 1, Ranked>, panel_kernel<I, 2, Ranked>, panel_kernel<I, 3, Ranked>, panel_kernel<I, 4, Ranked>}
#endif
const LinearColumnKernels linear_columns{
    W >= 8,
    {{SK_PANELS(uint16_t, false), SK_PANELS(int32_t, false)}, {SK_PANELS(uint16_t, true), SK_PANELS(int32_t, true)}},
    {{sampled_kernel<uint16_t, 1>, sampled_kernel<uint16_t, 2>, sampled_kernel<uint16_t, 3>, sampled_kernel<uint16_t, 4>},
     {sampled_kernel<int32_t, 1>, sampled_kernel<int32_t, 2>, sampled_kernel<int32_t, 3>, sampled_kernel<int32_t, 4>}},
    in_order_kernel,
};

}  // namespace sk::SK_ISA
