// NHWC kernels of grouped_conv2d for 3x3 and 5x5 filters of stride 2, and 3x3 ones of dilation 2, AVX-512: a pixel is expanded
// to lanes once and serves those taps of its row that meet it, which is less loads than one per tap. Edges as in
// grouped_conv2d_nhwc_row.h.
#pragma GCC optimize("no-ivopts")
#include "core/grouped_conv2d_nhwc_lanes.h"
#include "core/grouped_conv2d_spread.h"

namespace sk::SK_ISA {
namespace {
#if defined(__AVX512F__)

// One output row. Weights packed [ky][channels][kx][V][W]; tap k of pixel p meets column p*Stride + k*Dilation, of which the
// first Left and the last Right are outside.
template <LaneKind Kind, int K, int V, int P, int Stride, int Dilation, int Left, int Right>
__attribute__((noinline)) void spread_tile(const LaneTile& t) {
  constexpr int kColumns = (P - 1) * Stride + (K - 1) * Dilation + 1;
  static_assert(kColumns <= 25, "columns 0..24 from three base registers");
  vf acc[1][V][P];
  start(acc, t);
  const char* next = t.prefetch;
  for (int64_t ky = 0; ky < K; ++ky) {
    if (uint64_t(t.y0 + ky * Dilation) >= uint64_t(t.rows)) continue;
    Lanes lanes = Lanes::of<Kind>(t);
    RowSource<Kind, kColumns - 1> x;
    x.set(t.x + ky * Dilation * t.x_row, t.x2 + ky * Dilation * t.x_row, lanes);
    const float* weight = t.weight + ky * t.channels * (K * V * W);
    for (int64_t j = t.channels; j > 0; --j, weight += K * V * W, next += 64) {
      __builtin_prefetch(next, 0, 2);
      vf w[K][V];
      SK_UNROLL for (int k = 0; k < K; ++k) SK_UNROLL for (int v = 0; v < V; ++v) w[k][v] = load(weight + (k * V + v) * W);
      static_for<Left, kColumns - Right>([&](auto column) {
        constexpr int q = decltype(column)::value;
        const vf source = x.template get<q>(lanes);
        static_for<0, K>([&](auto tap) {
          constexpr int k = decltype(tap)::value, p = (q - k * Dilation) / Stride;
          if constexpr (q >= k * Dilation && (q - k * Dilation) % Stride == 0 && p < P)
            SK_UNROLL for (int v = 0; v < V; ++v) acc[0][v][p] += source * w[k][v];
        });
      });
      x.next_channel();
      lanes.template next_channel<Kind>();
    }
  }
  finish(acc, t);
}

// clang-format off
#define SK_EDGES(LEFT, RIGHT, ...) \
  {spread_tile<__VA_ARGS__, 0, 0>, spread_tile<__VA_ARGS__, LEFT, 0>, spread_tile<__VA_ARGS__, 0, RIGHT>, spread_tile<__VA_ARGS__, LEFT, RIGHT>}
#define SK_SPANNING(LEFT, RIGHT, K, P, ...)                                                                           \
  LaneConfig{LaneConfig::kRowMajor, 1, P, 1,                                                                          \
             {SK_EDGES(LEFT, RIGHT, kOneGroup, K, 1, P, __VA_ARGS__), SK_EDGES(LEFT, RIGHT, kTwoGroups, K, 1, P, __VA_ARGS__), \
              SK_EDGES(LEFT, RIGHT, kWindow16, K, 1, P, __VA_ARGS__), SK_EDGES(LEFT, RIGHT, kWindow32, K, 1, P, __VA_ARGS__), \
              SK_EDGES(LEFT, RIGHT, kDepthwise, K, 1, P, __VA_ARGS__)}}
#define SK_ALIGNED(LEFT, RIGHT, K, V, P, ...) \
  LaneConfig{LaneConfig::kRowMajor, 1, P, V, {SK_EDGES(LEFT, RIGHT, kOneGroup, K, V, P, __VA_ARGS__)}}
constexpr LaneConfig k3[] = {
    SK_SPANNING(1, 1, 3, 7, 2, 1),
#if !defined(__SANITIZE_ADDRESS__)  // a tile takes seconds to compile under it
    SK_ALIGNED(1, 1, 3, 2, 7, 2, 1),
#endif
};
constexpr LaneConfig k5[] = {SK_SPANNING(2, 1, 5, 7, 2, 1)};
constexpr LaneConfig kDilated3[] = {
    SK_SPANNING(2, 2, 3, 7, 1, 2),
#if !defined(__SANITIZE_ADDRESS__)
    SK_ALIGNED(2, 2, 3, 2, 7, 1, 2),
#endif
};
// clang-format on
template <int N>
constexpr ConvRowKernels of(const LaneConfig (&configs)[N]) {
  return {configs, N};
}
constexpr ConvRowKernels kStrided3 = of(k3), kStrided5 = of(k5), kDilated = of(kDilated3);
#else
constexpr ConvRowKernels kStrided3 = {nullptr, 0}, kStrided5 = {nullptr, 0}, kDilated = {nullptr, 0};
#endif
}  // namespace

extern const ConvRowKernels conv_row3_strided_kernels = kStrided3, conv_row5_strided_kernels = kStrided5, conv_row3_dilated_kernels = kDilated;

}  // namespace sk::SK_ISA
