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

template <class I, int V, bool Ranked>
struct Panel {
  static constexpr int64_t kStride = V * W;
  const I *const source, *const rank;
  const int64_t fan_in;
  const float *const weight, *const in, *const bias;
  float* const out;
  const bool fresh;

  explicit Panel(const PanelWork& p)
      : source(static_cast<const I*>(p.source)),
        rank(static_cast<const I*>(p.weights.rank)),
        fan_in(p.weights.fan_in),
        weight(p.weights.weight),
        in(row_zero(p.in, p.first_feature, kStride)),
        bias(p.bias),
        out(p.out),
        fresh(p.fresh) {}

  SK_INLINE vf weight_of(int64_t k, int64_t feature) const { return splat(Ranked ? weight[feature * fan_in + rank[k]] : weight[k]); }

  // The next lists lie in another row each: the stride says nothing to the hardware.
  SK_INLINE void prefetch(int64_t k) const {
    __builtin_prefetch(source + k);
    if constexpr (Ranked)
      __builtin_prefetch(rank + k);
    else
      __builtin_prefetch(weight + k);
  }

  // R rows of one length, [row, first connection] each.
  template <int R>
  SK_INLINE void rows(const int32_t* s, int32_t length) const {
    vf sums[R][V];
    int64_t k[R];
    float* rows_out[R];
    SK_UNROLL for (int r = 0; r < R; ++r) {
      k[r] = s[2 * r + 1];
      rows_out[r] = out + s[2 * r] * kStride;
      prefetch(s[2 * (R + r) + 1]);
      if (fresh) {
        const vf start = bias ? splat(bias[s[2 * r]]) : zero();
        SK_UNROLL for (int v = 0; v < V; ++v) sums[r][v] = start;
      } else {
        SK_UNROLL for (int v = 0; v < V; ++v) sums[r][v] = load(rows_out[r] + v * W);
      }
    }
    const I* sources[R];
    SK_UNROLL for (int r = 0; r < R; ++r) sources[r] = source + k[r];
    for (int32_t i = 0; i < length; ++i) SK_UNROLL for (int r = 0; r < R; ++r) {
        const int64_t feature = sources[r][i];
        const float* x = in + feature * kStride;
        const vf w = weight_of(k[r] + i, feature);
        SK_UNROLL for (int v = 0; v < V; ++v) sums[r][v] += w * load(x + v * W);
      }
    SK_UNROLL for (int r = 0; r < R; ++r) SK_UNROLL for (int v = 0; v < V; ++v) store(rows_out[r] + v * W, sums[r][v]);
  }
};

template <class I, int V, bool Ranked>
void panel_kernel(const PanelWork& p) {
  const Panel<I, V, Ranked> panel(p);
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
  constexpr int64_t ld = V * W;
  const float* x = row_zero(p.in, p.first_feature, ld);
  const int32_t runs = *p.segments, *run = p.segments + 1, *s = run + 2 * runs;
  for (const int32_t* end = s; run < end; run += 2)
    for (int32_t q = 0; q < run[1]; ++q, s += 2) {
      const float* grad = p.grad + s[0] * ld;
      const I* source = static_cast<const I*>(p.source) + s[1];
      float* out = p.grad_weight + s[1];
      __builtin_prefetch(static_cast<const I*>(p.source) + s[3]);
      __builtin_prefetch(p.grad_weight + s[3], 1);
      vf g[V];
      SK_UNROLL for (int v = 0; v < V; ++v) g[v] = load(grad + v * W);
      const auto dot = [&](int64_t k) {
        const float* in = x + source[k] * ld;
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

}  // namespace

const LinearColumnKernels linear_columns{
    {{{panel_kernel<uint16_t, 1, false>, panel_kernel<uint16_t, 2, false>, panel_kernel<uint16_t, 3, false>, panel_kernel<uint16_t, 4, false>},
      {panel_kernel<int32_t, 1, false>, panel_kernel<int32_t, 2, false>, panel_kernel<int32_t, 3, false>, panel_kernel<int32_t, 4, false>}},
     {{panel_kernel<uint16_t, 1, true>, panel_kernel<uint16_t, 2, true>, panel_kernel<uint16_t, 3, true>, panel_kernel<uint16_t, 4, true>},
      {panel_kernel<int32_t, 1, true>, panel_kernel<int32_t, 2, true>, panel_kernel<int32_t, 3, true>, panel_kernel<int32_t, 4, true>}}},
    {{sampled_kernel<uint16_t, 1>, sampled_kernel<uint16_t, 2>, sampled_kernel<uint16_t, 3>, sampled_kernel<uint16_t, 4>},
     {sampled_kernel<int32_t, 1>, sampled_kernel<int32_t, 2>, sampled_kernel<int32_t, 3>, sampled_kernel<int32_t, 4>}},
};

}  // namespace sk::SK_ISA
