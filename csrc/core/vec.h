// One register of floats, for the kernel sources that are compiled once per instruction set (*.isa.cpp only).
// GCC vector extensions give +, *, comparisons; only what they cannot say is written out per instruction set.
// Everything has internal linkage: a weak symbol compiled with AVX-512 must never be the one the linker keeps.
#pragma once
#include <cstdint>
#if defined(__AVX2__)
#include <immintrin.h>
#endif

#define SK_UNROLL _Pragma("GCC unroll 64")
#define SK_INLINE inline __attribute__((always_inline))

namespace sk::SK_ISA {
namespace {

constexpr int W = SK_VEC_BYTES / 4;  // floats in a register: 4, 8 or 16
typedef float vf __attribute__((vector_size(SK_VEC_BYTES), aligned(4), may_alias));

SK_INLINE vf load(const float* p) { return *reinterpret_cast<const vf*>(p); }
SK_INLINE void store(float* p, vf v) { *reinterpret_cast<vf*>(p) = v; }
SK_INLINE vf splat(float a) { return a - vf{}; }
SK_INLINE vf zero() { return vf{}; }

// max(0, v) that keeps NaN, as torch's relu does
SK_INLINE vf relu(vf v) { return v < 0.0f ? vf{} : v; }
SK_INLINE float relu(float v) { return v < 0.0f ? 0.0f : v; }

// The sum of the lanes in one fixed order.
SK_INLINE float sum(vf v) {
#if defined(__AVX512F__)
  return _mm512_reduce_add_ps(reinterpret_cast<__m512>(v));
#else
  float s = v[0];
  SK_UNROLL for (int i = 1; i < W; ++i) s += v[i];
  return s;
#endif
}

// First n < W lanes; the others are zero and their memory is not touched.
SK_INLINE vf load_first(const float* p, int n) {
#if defined(__AVX512F__)
  return reinterpret_cast<vf>(_mm512_maskz_loadu_ps(__mmask16((1u << n) - 1), p));
#else
  vf v = {};
  for (int i = 0; i < n; ++i) v[i] = p[i];
  return v;
#endif
}
SK_INLINE void store_first(float* p, vf v, int n) {
#if defined(__AVX512F__)
  _mm512_mask_storeu_ps(p, __mmask16((1u << n) - 1), reinterpret_cast<__m512>(v));
#else
  for (int i = 0; i < n; ++i) p[i] = v[i];
#endif
}

}  // namespace
}  // namespace sk::SK_ISA
