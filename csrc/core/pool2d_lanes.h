// What both kernels of poolings do with a register (*.isa.cpp only).
#pragma once
#include "core/vec.h"

namespace sk::SK_ISA {
namespace {

// The larger one; NaN if either is, as torch's max-pool does.
SK_INLINE vf larger(vf a, vf b) {
#if defined(__AVX512F__)
  const __m512 p = reinterpret_cast<__m512>(a), q = reinterpret_cast<__m512>(b);
  // max(p, q) is q where one is NaN: only a NaN in p has to stay
  return reinterpret_cast<vf>(_mm512_mask_max_ps(p, _mm512_cmp_ps_mask(p, p, _CMP_ORD_Q), p, q));
#else
  return (a > b) | (a != a) ? a : b;
#endif
}

}  // namespace
}  // namespace sk::SK_ISA
