// Rows of a natural weight side by side, 16 at a time (*.isa.cpp with AVX-512 only).
#pragma once
#include "core/vec.h"

namespace sk::SK_ISA {
#if defined(__AVX512F__)
namespace {

// Quarters of vectors -> columns.
SK_INLINE void turn_quarters(const __m512* t, __m512* out) {
  const __m512d a = _mm512_castps_pd(_mm512_unpacklo_ps(t[0], t[1])), b = _mm512_castps_pd(_mm512_unpacklo_ps(t[2], t[3]));
  const __m512d c = _mm512_castps_pd(_mm512_unpackhi_ps(t[0], t[1])), d = _mm512_castps_pd(_mm512_unpackhi_ps(t[2], t[3]));
  out[0] = _mm512_castpd_ps(_mm512_unpacklo_pd(a, b)), out[1] = _mm512_castpd_ps(_mm512_unpackhi_pd(a, b));
  out[2] = _mm512_castpd_ps(_mm512_unpacklo_pd(c, d)), out[3] = _mm512_castpd_ps(_mm512_unpackhi_pd(c, d));
}

// 4 columns of 16 rows as 4 vectors of 16 rows. Quarters of vectors are loaded to where they belong, which costs less than to move them
// there in registers.
SK_INLINE void turn_four(const float* w, int64_t row, __m512* out) {
  __m512 t[4];
  SK_UNROLL for (int j = 0; j < 4; ++j) {
    __m512 v = _mm512_castps128_ps512(_mm_loadu_ps(w + j * row));
    v = _mm512_insertf32x4(v, _mm_loadu_ps(w + (4 + j) * row), 1);
    v = _mm512_insertf32x4(v, _mm_loadu_ps(w + (8 + j) * row), 2);
    t[j] = _mm512_insertf32x4(v, _mm_loadu_ps(w + (12 + j) * row), 3);
  }
  turn_quarters(t, out);
}

// The first `columns` of them, of `rows` <= 16 rows; nothing else is read, and what is not there is zero.
SK_INLINE void turn_some(const float* w, int64_t row, int rows, int columns, __m512* out) {
  const auto quarter = [&](int r) { return _mm512_maskz_loadu_ps(__mmask16(r < rows ? (1u << columns) - 1 : 0), r < rows ? w + r * row : w); };
  __m512 t[4];
  for (int j = 0; j < 4; ++j) {
    __m512 v = quarter(j);
    v = _mm512_insertf32x4(v, _mm512_castps512_ps128(quarter(4 + j)), 1);
    v = _mm512_insertf32x4(v, _mm512_castps512_ps128(quarter(8 + j)), 2);
    t[j] = _mm512_insertf32x4(v, _mm512_castps512_ps128(quarter(12 + j)), 3);
  }
  turn_quarters(t, out);
}

}  // namespace
#endif
}  // namespace sk::SK_ISA
