// NHWC kernels of grouped_conv2d for square filters with stride 1: a pixel is expanded to lanes once and serves all
// taps of its row (kx_tile) or of the whole filter (kxy_tile). AVX-512 only; included by *.isa.cpp only.
//
// LeftEdge/RightEdge tiles stand at the border of an image padded by K/2 pixels and leave the taps outside away at
// compile time: no padded copy, no test inside the loop. Rows outside are skipped (kx_tile) or read from a row of
// zeros (kxy_tile).
#pragma once
#include "core/grouped_conv2d_nhwc_lanes.h"

namespace sk::SK_ISA {
namespace {
#if defined(__AVX512F__)

// One output row. Weights packed [ky][channels][kx][V][W]; K*V weights and V*P accumulators in registers.
template <LaneKind Kind, int K, int V, int P, int LeftEdge, int RightEdge>
__attribute__((noinline)) void kx_tile(const LaneTile& t) {
  vf acc[1][V][P];
  start(acc, t);
  const char* next = t.prefetch;
  for (int64_t ky = 0; ky < K; ++ky) {
    if (uint64_t(t.y0 + ky) >= uint64_t(t.rows)) continue;
    Lanes lanes = Lanes::of<Kind>(t);
    RowSource<Kind, P + K - 2> x;
    x.set(t.x + ky * t.x_row, t.x2 + ky * t.x_row, lanes);
    const float* weight = t.weight + ky * t.channels * (K * V * W);
    for (int64_t j = t.channels; j > 0; --j, weight += K * V * W, next += 64) {
      __builtin_prefetch(next, 0, 2);
      vf w[K][V];
      SK_UNROLL for (int k = 0; k < K; ++k) SK_UNROLL for (int v = 0; v < V; ++v) w[k][v] = load(weight + (k * V + v) * W);
      static_for<(LeftEdge ? K / 2 : 0), P + K - 1 - (RightEdge ? K / 2 : 0)>([&](auto pixel) {
        constexpr int q = decltype(pixel)::value;
        const vf source = x.template get<q>(lanes);
        static_for<0, K>([&](auto tap) {
          constexpr int k = decltype(tap)::value, p = q - k;
          if constexpr (p >= 0 && p < P) SK_UNROLL for (int v = 0; v < V; ++v) acc[0][v][p] += source * w[k][v];
        });
      });
      x.next_channel();
      lanes.template next_channel<Kind>();
    }
  }
  finish(acc, t);
}

// R output rows of a 3x3 filter. Weights packed in their natural order [channels][3][3][W], nine in registers.
template <LaneKind Kind, int R, int P, int LeftEdge, int RightEdge>
__attribute__((noinline)) void kxy_tile(const LaneTile& t) {
  static_assert(P <= 8, "pixel offsets -1..8 from one base register per row");
  vf acc[R][1][P];
  start(acc, t);
  Lanes lanes = Lanes::of<Kind>(t);
  RowSource<Kind, 8> x[R + 2];
  SK_UNROLL for (int i = 0; i < R + 2; ++i) {  // based at pixel 1, so that pixels 0..9 are offsets -1..8
    const bool inside = uint64_t(t.y0 + i) < uint64_t(t.rows);
    x[i].set((inside ? t.x + i * t.x_row : t.zero) + t.x_pixel, (inside ? t.x2 + i * t.x_row : t.zero) + t.x_pixel, lanes);
  }
  const float* weight = t.weight;
  for (int64_t j = t.channels; j > 0; --j, weight += 9 * W) {
    vf w[9];
    SK_UNROLL for (int k = 0; k < 9; ++k) w[k] = load(weight + k * W);
    static_for<(LeftEdge ? 1 : 0), P + 2 - (RightEdge ? 1 : 0)>([&](auto pixel) {
      constexpr int q = decltype(pixel)::value;
      static_for<0, R + 2>([&](auto row) {
        constexpr int i = decltype(row)::value;
        const vf source = x[i].template get<q - 1>(lanes);
        static_for<0, 9>([&](auto tap) {
          constexpr int k = decltype(tap)::value, r = i - k / 3, p = q - k % 3;
          if constexpr (r >= 0 && r < R && p >= 0 && p < P) acc[r][0][p] += source * w[k];
        });
      });
    });
    SK_UNROLL for (int i = 0; i < R + 2; ++i) x[i].next_channel();
    lanes.template next_channel<Kind>();
  }
  finish(acc, t);
}

#define SK_EDGES(F, ...) {F<__VA_ARGS__, 0, 0>, F<__VA_ARGS__, 1, 0>, F<__VA_ARGS__, 0, 1>, F<__VA_ARGS__, 1, 1>}

#endif
}  // namespace
}  // namespace sk::SK_ISA
