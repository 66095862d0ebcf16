// NHWC kernels of grouped_conv2d for any kernel size, stride and dilation (and for every 1x1): one output row,
// P pixels x V vectors of output channels, a loop over the taps by their offset.
#pragma GCC optimize("no-ivopts")
#include "core/grouped_conv2d_nhwc_lanes.h"

namespace sk::SK_ISA {
namespace {

// out[pixel][lane] = bias[lane] + sum over taps and channels; weight packed [taps][channels][V][W]
template <LaneKind Kind, int V, int P>
__attribute__((noinline)) void tap_tile(const LaneTile& t) {
  vf acc[1][V][P];
  start(acc, t);
  const float* weight = t.weight;
  const char* next = t.prefetch;
  for (int64_t tap = 0; tap < t.taps; ++tap) {
    Lanes lanes = Lanes::of<Kind>(t);
    RowSource<Kind, P - 1> x;
    x.set(t.x + t.tap_offset[tap], t.x2 + t.tap_offset[tap], lanes);
    for (int64_t j = t.channels; j > 0; --j, weight += V * W, next += 64) {
      __builtin_prefetch(next, 0, 2);
      SK_UNROLL for (int v = 0; v < V; ++v) __builtin_prefetch(weight + (8 * V + v) * W, 0, 3);
      vf w[V];
      SK_UNROLL for (int v = 0; v < V; ++v) w[v] = load(weight + v * W);
      static_for<0, P>([&](auto pixel) {
        constexpr int p = decltype(pixel)::value;
        const vf source = x.template get<p>(lanes);
        SK_UNROLL for (int v = 0; v < V; ++v) acc[0][v][p] += source * w[v];
      });
      x.next_channel();
      lanes.template next_channel<Kind>();
    }
  }
  finish(acc, t);
}

#if defined(__AVX512F__)

// clang-format off
#define SK_TAPS_SPANNING(V, P) \
  {{tap_tile<kOneGroup, V, P>}, {tap_tile<kTwoGroups, V, P>}, {tap_tile<kWindow16, V, P>}, {tap_tile<kWindow32, V, P>}, {tap_tile<kDepthwise, V, P>}}
#define SK_TAPS(V, P) {{tap_tile<kOneGroup, V, P>}}
constexpr LaneConfig kTaps[] = {
    {LaneConfig::kTapMajor, 1, 14, 2, SK_TAPS(2, 14)}, {LaneConfig::kTapMajor, 1, 12, 2, SK_TAPS(2, 12)},
    {LaneConfig::kTapMajor, 1, 8, 3, SK_TAPS(3, 8)}, {LaneConfig::kTapMajor, 1, 7, 3, SK_TAPS(3, 7)},
    {LaneConfig::kTapMajor, 1, 7, 2, SK_TAPS(2, 7)},   {LaneConfig::kTapMajor, 1, 4, 2, SK_TAPS(2, 4)},
    {LaneConfig::kTapMajor, 1, 14, 1, SK_TAPS_SPANNING(1, 14)}, {LaneConfig::kTapMajor, 1, 7, 1, SK_TAPS_SPANNING(1, 7)},
    {LaneConfig::kTapMajor, 1, 4, 1, SK_TAPS_SPANNING(1, 4)},   {LaneConfig::kTapMajor, 1, 1, 1, SK_TAPS_SPANNING(1, 1)},
};
// clang-format on

#else

// clang-format off
#define SK_TAPS(V, P) {{tap_tile<kOneGroup, V, P>}}
#define SK_TAPS_1(P) {{tap_tile<kOneGroup, 1, P>}, {}, {}, {}, {tap_tile<kDepthwise, 1, P>}}
constexpr LaneConfig kTaps[] = {
    {LaneConfig::kTapMajor, 1, 6, 2, SK_TAPS(2, 6)}, {LaneConfig::kTapMajor, 1, 4, 2, SK_TAPS(2, 4)},
    {LaneConfig::kTapMajor, 1, 8, 1, SK_TAPS_1(8)}, {LaneConfig::kTapMajor, 1, 4, 1, SK_TAPS_1(4)},
    {LaneConfig::kTapMajor, 1, 1, 1, SK_TAPS_1(1)},
};
// clang-format on

#endif

}  // namespace

extern const ConvLaneKernels conv_lane_kernels = {W, W == 16, kTaps, int(sizeof(kTaps) / sizeof(kTaps[0]))};

}  // namespace sk::SK_ISA
