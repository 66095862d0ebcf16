// How the NHWC kernels read one input channel of one pixel into the lanes of a vector of output channels.
// Included by *.isa.cpp only.
//
// AVX-512: pixel offsets up to 24 are addressed as base + {0, 8, 16} pixels with the index registers 1, 3, 5 and 7
// pixels and x86 scales 1, 2, 4, 8. The loads are inline asm because GCC otherwise keeps one address register per
// offset, runs out of them, and spills inside the innermost loop.
#pragma once
#pragma GCC diagnostic ignored "-Wuninitialized"  // GCC 12 about its own intrinsics
#pragma GCC diagnostic ignored "-Wmaybe-uninitialized"
#include "core/grouped_conv2d_impl.h"
#include "core/vec.h"

namespace sk::SK_ISA {
namespace {

template <int I>
struct Int {
  static constexpr int value = I;
};
// f(Int<Begin>{}), ..., f(Int<End - 1>{}): loops whose index must be a constant
template <int Begin, int End, class F>
SK_INLINE void static_for(const F& f) {
  if constexpr (Begin < End) {
    f(Int<Begin>{});
    static_for<Begin + 1, End>(f);
  }
}

#if defined(__AVX512F__)

// What all loads of a tile share; in registers.
struct Lanes {
  int64_t minus_one, one, three, five, seven;  // bytes of so many pixels
  __m512i index;                               // kWindow*: the permutation for the current input channel
  __mmask16 mask;                              // kTwoGroups: lanes of the second group; kDepthwise: lanes that exist

  template <LaneKind Kind>
  static SK_INLINE Lanes of(const LaneTile& t) {
    Lanes s;
    s.one = 4 * t.x_pixel, s.minus_one = -s.one, s.three = 3 * s.one, s.five = 5 * s.one, s.seven = 7 * s.one;
    s.index = Kind == kWindow16 || Kind == kWindow32 ? _mm512_loadu_si512(t.index) : _mm512_setzero_si512();
    s.mask = __mmask16(Kind == kTwoGroups ? t.second : t.lanes);
    return s;
  }
  template <LaneKind Kind>
  SK_INLINE void next_channel() {
    if constexpr (Kind == kWindow16 || Kind == kWindow32) index = _mm512_add_epi32(index, _mm512_set1_epi32(1));
  }
};

// clang-format off
// NAME<O>(vector, base, lanes): one load instruction at pixel offset O in -1..8
#define SK_PIXEL_LOAD(NAME, BEFORE, AFTER, OUT)                                                             \
  template <int O>                                                                                          \
  SK_INLINE void NAME(__m512& v, const char* base, const Lanes& s) {                                        \
    constexpr int kScale = O == -1 || O == 1 || O == 3 || O == 5 || O == 7 ? 1 : O == 2 || O == 6 ? 2 : O == 4 ? 4 : 8; \
    const int64_t step = O == -1 ? s.minus_one : O == 3 || O == 6 ? s.three : O == 5 ? s.five : O == 7 ? s.seven : s.one; \
    if constexpr (O == 0)                                                                                   \
      asm(BEFORE "(%1)" AFTER : OUT(v) : "r"(base), "v"(s.index), "Yk"(s.mask));                            \
    else                                                                                                    \
      asm(BEFORE "(%1,%4,%c5)" AFTER : OUT(v) : "r"(base), "v"(s.index), "Yk"(s.mask), "r"(step), "i"(kScale)); \
  }
SK_PIXEL_LOAD(load_broadcast, "vbroadcastss ", ", %0", "=v")
SK_PIXEL_LOAD(load_broadcast_masked, "vbroadcastss ", ", %0%{%3%}", "+v")
SK_PIXEL_LOAD(load_permuted, "vpermps ", ", %2, %0", "=v")
SK_PIXEL_LOAD(load_vector, "vmovups ", ", %0", "=v")
SK_PIXEL_LOAD(permute_with_next, "vpermt2ps 64", ", %2, %0", "+v")
SK_PIXEL_LOAD(load_masked, "vmovups ", ", %0%{%3%}%{z%}", "=v")
#undef SK_PIXEL_LOAD
// clang-format on

// One image row under a tile. get<Pixel>() is the current input channel of that pixel.
template <LaneKind Kind, int LastPixel>
struct RowSource {
  const char *first[3], *second[3];  // pixels 0, 8 and 16, for the first and the second group

  SK_INLINE void set(const float* x, const float* x2, const Lanes& s) {
    SK_UNROLL for (int i = 0; i < 3; ++i) {
      first[i] = reinterpret_cast<const char*>(x) + 8 * i * s.one;
      second[i] = reinterpret_cast<const char*>(x2) + 8 * i * s.one;
    }
  }
  template <int Pixel>
  SK_INLINE vf get(const Lanes& s) const {
    constexpr int kBlock = Pixel <= 8 ? 0 : Pixel <= 16 ? 1 : 2, O = Pixel - 8 * kBlock;
    __m512 v;
    if constexpr (Kind == kOneGroup || Kind == kTwoGroups) load_broadcast<O>(v, first[kBlock], s);
    if constexpr (Kind == kTwoGroups) load_broadcast_masked<O>(v, second[kBlock], s);
    if constexpr (Kind == kWindow16) load_permuted<O>(v, first[kBlock], s);
    if constexpr (Kind == kWindow32) load_vector<O>(v, first[kBlock], s);
    if constexpr (Kind == kWindow32) permute_with_next<O>(v, first[kBlock], s);
    if constexpr (Kind == kDepthwise) load_masked<O>(v, first[kBlock], s);
    return reinterpret_cast<vf>(v);
  }
  SK_INLINE void next_channel() {
    if constexpr (Kind == kOneGroup || Kind == kTwoGroups) {
      SK_UNROLL for (int i = 0; i < 3; ++i) {
        if (i > 0 && LastPixel <= 8 * i) continue;
        first[i] += 4;
        if (Kind == kTwoGroups) second[i] += 4;
      }
    }
  }
};

#else  // no lanes that straddle groups

struct Lanes {
  int64_t pixel;
  int lanes;
  template <LaneKind Kind>
  static SK_INLINE Lanes of(const LaneTile& t) {
    return {t.x_pixel, t.lanes >> (W - 1) & 1 ? W : __builtin_popcountll(t.lanes)};
  }
  template <LaneKind Kind>
  SK_INLINE void next_channel() {}
};

template <LaneKind Kind, int LastPixel>
struct RowSource {
  const float* x;
  SK_INLINE void set(const float* x_, const float*, const Lanes&) { x = x_; }
  template <int Pixel>
  SK_INLINE vf get(const Lanes& s) const {
    if constexpr (Kind == kDepthwise) return s.lanes == W ? load(x + Pixel * s.pixel) : load_first(x + Pixel * s.pixel, s.lanes);
    return splat(x[Pixel * s.pixel]);
  }
  SK_INLINE void next_channel() { ++x; }
};

#endif

// ---- accumulators: [R][V][P] vectors, started with the bias, stored with or without shortcut and relu
template <int R, int V, int P>
SK_INLINE void start(vf (&acc)[R][V][P], const LaneTile& t) {
  SK_UNROLL for (int v = 0; v < V; ++v) {
    const vf bias = load(t.bias + v * W);
    SK_UNROLL for (int r = 0; r < R; ++r) SK_UNROLL for (int p = 0; p < P; ++p) acc[r][v][p] = bias;
  }
}
// the lanes whose bit is set; a vector is full or ends early
SK_INLINE vf load_lanes(const float* p, uint64_t lanes) {
#if defined(__AVX512F__)
  return reinterpret_cast<vf>(_mm512_maskz_loadu_ps(__mmask16(lanes), p));
#else
  lanes &= (1u << W) - 1;
  return lanes == (1u << W) - 1 ? load(p) : load_first(p, __builtin_popcountll(lanes));
#endif
}
template <int R, int V, int P>
SK_INLINE void finish(vf (&acc)[R][V][P], const LaneTile& t) {
  if (t.shortcut) {
    SK_UNROLL for (int r = 0; r < R; ++r) {
      const float* shortcut = t.shortcut + r * t.out_row;
      SK_UNROLL for (int p = 0; p < P; ++p, shortcut += t.out_pixel) SK_UNROLL for (int v = 0; v < V; ++v) acc[r][v][p] +=
          load_lanes(shortcut + v * W, t.lanes >> (v * W));
    }
  }
  SK_UNROLL for (int r = 0; r < R; ++r) {
    float* out = t.out + r * t.out_row;
    SK_UNROLL for (int p = 0; p < P; ++p, out += t.out_pixel) SK_UNROLL for (int v = 0; v < V; ++v) {
#if defined(__AVX512F__)
      // max with the accumulator second keeps NaN
      const __m512 floor = _mm512_set1_ps(t.relu ? 0.0f : -__builtin_inff());
      const __m512 value = _mm512_max_ps(floor, reinterpret_cast<__m512>(acc[r][v][p]));
      _mm512_mask_storeu_ps(out + v * W, __mmask16(t.lanes >> (v * W)), value);
#else
      const vf value = t.relu ? relu(acc[r][v][p]) : acc[r][v][p];
      const uint64_t lanes = t.lanes >> (v * W) & ((1u << W) - 1);
      if (lanes == (1u << W) - 1)
        store(out + v * W, value);
      else
        store_first(out + v * W, value, __builtin_popcountll(lanes));
#endif
    }
  }
}

}  // namespace
}  // namespace sk::SK_ISA
