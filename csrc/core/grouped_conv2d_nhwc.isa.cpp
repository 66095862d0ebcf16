// NHWC kernels of grouped_conv2d for any kernel size, stride and dilation (and for every 1x1): one output row,
// P pixels x V vectors of output channels, a loop over the taps by their offset. Also the packing of the weights.
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
  for (int64_t tap = 0; tap < t.taps; ++tap) {
    Lanes lanes = Lanes::of<Kind>(t);
    RowSource<Kind, P - 1> x;
    x.set(t.x + t.tap_offset[tap], t.x2 + t.tap_offset[tap], lanes);
    for (int64_t j = t.channels; j > 0; --j, weight += V * W) {
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

// Four columns of sixteen rows that are `row` floats apart: lane group i of t[r] holds row r + 4*i, then a 4x4
// transpose inside each group.
SK_INLINE void transpose_16x4(const float* at, int64_t row, __m512* out) {
  __m512 t[4];
  SK_UNROLL for (int r = 0; r < 4; ++r) {
    const float* p = at + r * row;
    const __m256 low = _mm256_insertf128_ps(_mm256_castps128_ps256(_mm_loadu_ps(p)), _mm_loadu_ps(p + 4 * row), 1);
    const __m256 high = _mm256_insertf128_ps(_mm256_castps128_ps256(_mm_loadu_ps(p + 8 * row)), _mm_loadu_ps(p + 12 * row), 1);
    t[r] = _mm512_insertf32x8(_mm512_castps256_ps512(low), high, 1);
  }
  const __m512d ab_low = _mm512_castps_pd(_mm512_unpacklo_ps(t[0], t[1]));
  const __m512d ab_high = _mm512_castps_pd(_mm512_unpackhi_ps(t[0], t[1]));
  const __m512d cd_low = _mm512_castps_pd(_mm512_unpacklo_ps(t[2], t[3]));
  const __m512d cd_high = _mm512_castps_pd(_mm512_unpackhi_ps(t[2], t[3]));
  out[0] = _mm512_castpd_ps(_mm512_unpacklo_pd(ab_low, cd_low));
  out[1] = _mm512_castpd_ps(_mm512_unpackhi_pd(ab_low, cd_low));
  out[2] = _mm512_castpd_ps(_mm512_unpacklo_pd(ab_high, cd_high));
  out[3] = _mm512_castpd_ps(_mm512_unpackhi_pd(ab_high, cd_high));
}

void pack(const float* weight, int64_t rows, int64_t columns, const int32_t* position, int64_t step, float* packed) {
  int64_t i = 0;
  for (; rows == W && i + 4 <= columns; i += 4) {
    __m512 v[4];
    transpose_16x4(weight + i, columns, v);
    SK_UNROLL for (int c = 0; c < 4; ++c) _mm512_store_ps(packed + position[i + c] * step, v[c]);
  }
  for (; rows == W && i < columns; ++i)
    for (int r = 0; r < W; ++r) packed[position[i] * step + r] = weight[r * columns + i];
  for (; i < columns; ++i) _mm512_store_ps(packed + position[i] * step, _mm512_setzero_ps());
  for (int64_t r = 0; rows < W && r < rows; ++r)
    for (i = 0; i < columns; ++i) packed[position[i] * step + r] = weight[r * columns + i];
}

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

void pack(const float* weight, int64_t rows, int64_t columns, const int32_t* position, int64_t step, float* packed) {
  for (int64_t i = 0; i < columns; ++i)
    for (int r = 0; r < W; ++r) packed[position[i] * step + r] = r < rows ? weight[r * columns + i] : 0.0f;
}

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

extern const ConvLaneKernels conv_lane_kernels = {W, W == 16, kTaps, int(sizeof(kTaps) / sizeof(kTaps[0])), pack};

}  // namespace sk::SK_ISA
