// NHWC weight gradient of grouped_conv2d (3x3 and 5x5, stride 1), AVX-512: a pixel of x is expanded to the lanes of a
// vector of output channels once and multiplied with the K pixels of grad_out whose filter row covers it.
#include "core/grouped_conv2d_nhwc_lanes.h"

namespace sk::SK_ISA {
namespace {
#if defined(__AVX512F__)

// The current pixel's input channels 0..J-1, each expanded to the lanes.
template <LaneKind Kind, int J>
struct PixelChannels {
  __m512i index[Kind == kWindow16 || Kind == kWindow32 ? J : 1];
  __mmask16 second, lanes;

  SK_INLINE explicit PixelChannels(const LaneWeightRows& t) : second(__mmask16(t.second)), lanes(__mmask16(t.lanes)) {
    if constexpr (Kind == kWindow16 || Kind == kWindow32)
      SK_UNROLL for (int j = 0; j < J; ++j) index[j] = _mm512_add_epi32(_mm512_loadu_si512(t.index), _mm512_set1_epi32(j));
  }
  template <int Channel>
  SK_INLINE __m512 get(const float* x, const float* x2) const {
    if constexpr (Kind == kOneGroup) return _mm512_set1_ps(x[Channel]);
    if constexpr (Kind == kTwoGroups) return _mm512_mask_broadcastss_ps(_mm512_set1_ps(x[Channel]), second, _mm_load_ss(x2 + Channel));
    if constexpr (Kind == kWindow16) return _mm512_permutexvar_ps(index[Channel], _mm512_loadu_ps(x));
    if constexpr (Kind == kWindow32) return _mm512_permutex2var_ps(_mm512_loadu_ps(x), index[Channel], _mm512_loadu_ps(x + 16));
    return _mm512_maskz_loadu_ps(lanes, x);
  }
};

template <LaneKind Kind, int K, int J>
void weight_rows(const LaneWeightRows& t) {
  __m512 sums[J][K];
  SK_UNROLL for (int j = 0; j < J; ++j) SK_UNROLL for (int k = 0; k < K; ++k) sums[j][k] = _mm512_loadu_ps(t.sums + (j * K + k) * 16);
  const PixelChannels<Kind, J> channels(t);
  const float *x_row = t.x, *x2_row = t.x2, *grad_row = t.grad_out;
  for (int64_t row = 0; row < t.rows; ++row, x_row += t.x_row, x2_row += t.x_row, grad_row += t.grad_row) {
    // grad_out at column q of x, or zero outside; tap k of pixel q meets column q + pad - k
    const auto grad_at = [&](int64_t column) __attribute__((always_inline)) {
      const bool inside = uint64_t(column) < uint64_t(t.grad_columns);
      return _mm512_maskz_loadu_ps(inside ? channels.lanes : __mmask16(0), grad_row + (inside ? column : 0) * t.grad_pixel);
    };
    __m512 grad[K];  // the last K columns, the newest in place (K - step) % K of every K steps
    SK_UNROLL for (int k = 1; k < K; ++k) grad[k] = grad_at(t.pad - k);
    const float *x = x_row, *x2 = x2_row;
    const auto step = [&](auto number, int64_t q) __attribute__((always_inline)) {
      constexpr int s = decltype(number)::value;
      grad[(K - s) % K] = grad_at(q + t.pad);
      static_for<0, J>([&](auto channel) {
        constexpr int j = decltype(channel)::value;
        const __m512 source = channels.template get<j>(x, x2);
        static_for<0, K>([&](auto tap) {
          constexpr int k = decltype(tap)::value;
          sums[j][k] = _mm512_fmadd_ps(source, grad[(k + K - s) % K], sums[j][k]);
        });
      });
      x += t.x_pixel, x2 += t.x_pixel;
    };
    int64_t q = 0;
    for (; q + K <= t.columns; q += K) static_for<0, K>([&](auto number) { step(number, q + decltype(number)::value); });
    static_for<0, K - 1>([&](auto number) {
      constexpr int s = decltype(number)::value;
      if (q + s < t.columns) step(number, q + s);
    });
  }
  SK_UNROLL for (int j = 0; j < J; ++j) SK_UNROLL for (int k = 0; k < K; ++k) _mm512_storeu_ps(t.sums + (j * K + k) * 16, sums[j][k]);
}

void unpack(const float* packed, const int32_t* position, int64_t rows, int64_t columns, float* grad_weight) {
  int64_t i = 0;
  for (; rows == 16 && i + 4 <= columns; i += 4) {
    __m512 v[4];
    SK_UNROLL for (int c = 0; c < 4; ++c) v[c] = _mm512_loadu_ps(packed + position[i + c] * int64_t(16));
    const __m512d ab_low = _mm512_castps_pd(_mm512_unpacklo_ps(v[0], v[1])), ab_high = _mm512_castps_pd(_mm512_unpackhi_ps(v[0], v[1]));
    const __m512d cd_low = _mm512_castps_pd(_mm512_unpacklo_ps(v[2], v[3])), cd_high = _mm512_castps_pd(_mm512_unpackhi_ps(v[2], v[3]));
    // lane group g of t[r]: row r + 4*g
    const __m512 t[4] = {_mm512_castpd_ps(_mm512_unpacklo_pd(ab_low, cd_low)), _mm512_castpd_ps(_mm512_unpackhi_pd(ab_low, cd_low)),
                         _mm512_castpd_ps(_mm512_unpacklo_pd(ab_high, cd_high)), _mm512_castpd_ps(_mm512_unpackhi_pd(ab_high, cd_high))};
    SK_UNROLL for (int r = 0; r < 4; ++r) {
      float* to = grad_weight + r * columns + i;
      _mm_storeu_ps(to, _mm512_extractf32x4_ps(t[r], 0));
      _mm_storeu_ps(to + 4 * columns, _mm512_extractf32x4_ps(t[r], 1));
      _mm_storeu_ps(to + 8 * columns, _mm512_extractf32x4_ps(t[r], 2));
      _mm_storeu_ps(to + 12 * columns, _mm512_extractf32x4_ps(t[r], 3));
    }
  }
  for (; i < columns; ++i)
    for (int64_t r = 0; r < rows; ++r) grad_weight[r * columns + i] = packed[position[i] * int64_t(16) + r];
}

// clang-format off
#define SK_BROADCAST(KIND, K, J8) {J8, weight_rows<KIND, K, 4>, weight_rows<KIND, K, 2>, weight_rows<KIND, K, 1>}
#define SK_KINDS(K, ONE8, TWO8)                                                                            \
  {                                                                                                        \
    SK_BROADCAST(kOneGroup, K, ONE8), SK_BROADCAST(kTwoGroups, K, TWO8), SK_BROADCAST(kWindow16, K, nullptr), \
        SK_BROADCAST(kWindow32, K, nullptr), {nullptr, nullptr, nullptr, weight_rows<kDepthwise, K, 1>}     \
  }
constexpr ConvLaneWeightKernels kKernels = {
    {SK_KINDS(3, (weight_rows<kOneGroup, 3, 8>), (weight_rows<kTwoGroups, 3, 8>)), SK_KINDS(5, nullptr, nullptr)}, unpack};
// clang-format on
#else
constexpr ConvLaneWeightKernels kKernels = {};
#endif
}  // namespace

extern const ConvLaneWeightKernels conv_lane_weight_kernels = kKernels;

}  // namespace sk::SK_ISA
