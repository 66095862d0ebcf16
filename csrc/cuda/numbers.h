// 16-bit and tf32 numbers with the hardware's rounding, the same on the device, on the host and in the emulator.
#pragma once
#include <cstdint>
#include <cstring>
#ifdef __CUDACC__
#include <cuda_bf16.h>
#include <cuda_fp16.h>
#define SK_HD __host__ __device__ __forceinline__
#else
#define SK_HD inline
#endif

namespace sk {

struct bf16 {
  uint16_t bits;
};
struct fp16 {
  uint16_t bits;
};

template <class To, class From>
SK_HD To bit_cast(const From& from) {
  static_assert(sizeof(To) == sizeof(From), "bit_cast needs equal sizes");
  To to;
  memcpy(&to, &from, sizeof(To));
  return to;
}

SK_HD float to_float(float v) { return v; }
SK_HD float to_float(bf16 v) { return bit_cast<float>(uint32_t(v.bits) << 16); }
SK_HD float to_float(fp16 v) {
#ifdef __CUDA_ARCH__
  return __half2float(__ushort_as_half(v.bits));
#else
  const uint32_t sign = uint32_t(v.bits & 0x8000) << 16, exponent = (v.bits >> 10) & 31, fraction = v.bits & 1023;
  if (exponent == 31) return bit_cast<float>(sign | 0x7f800000u | fraction << 13);
  if (exponent) return bit_cast<float>(sign | (exponent + 112) << 23 | fraction << 13);
  const float tiny = float(fraction) * 5.9604644775390625e-8f;  // subnormal: fraction * 2^-24, exact
  return sign ? -tiny : tiny;
#endif
}

// Round to nearest, ties to even (cvt.rn).
template <class T>
SK_HD T from_float(float v);
template <>
SK_HD float from_float<float>(float v) {
  return v;
}
template <>
SK_HD bf16 from_float<bf16>(float v) {
#ifdef __CUDA_ARCH__
  return {__bfloat16_as_ushort(__float2bfloat16_rn(v))};
#else
  const uint32_t u = bit_cast<uint32_t>(v);
  if ((u & 0x7fffffffu) > 0x7f800000u) return {0x7fff};
  return {uint16_t((u + 0x7fff + ((u >> 16) & 1)) >> 16)};
#endif
}
template <>
SK_HD fp16 from_float<fp16>(float v) {
#ifdef __CUDA_ARCH__
  return {__half_as_ushort(__float2half_rn(v))};
#else
  const uint32_t u = bit_cast<uint32_t>(v), magnitude = u & 0x7fffffffu;
  const uint16_t sign = uint16_t((u >> 16) & 0x8000);
  if (magnitude > 0x7f800000u) return {0x7fff};
  if (magnitude >= 0x477ff000u) return {uint16_t(sign | 0x7c00)};  // 65520 and above round to infinity
  if (magnitude < 0x38800000u) {                                   // below 2^-14: a multiple of 2^-24
    const uint32_t exponent = magnitude >> 23, shift = 126 - exponent;
    if (shift > 25) return {sign};
    const uint32_t full = (magnitude & 0x7fffffu) | 0x800000u, kept = full >> shift, rest = full & ((1u << shift) - 1), half = 1u << (shift - 1);
    return {uint16_t(sign | (kept + (rest > half || (rest == half && (kept & 1)))))};
  }
  const uint32_t rounded = magnitude + 0xfff + ((magnitude >> 13) & 1);
  return {uint16_t(sign | ((rounded - 0x38000000u) >> 13))};
#endif
}

// cvt.rna.tf32: ten bits of fraction, ties away from zero. The result is a float whose low 13 bits are zero.
SK_HD float to_tf32(float v) {
#ifdef __CUDA_ARCH__
  uint32_t out;
  asm("cvt.rna.tf32.f32 %0, %1;" : "=r"(out) : "f"(v));
  return __uint_as_float(out);
#else
  const uint32_t u = bit_cast<uint32_t>(v);
  if ((u & 0x7f800000u) == 0x7f800000u) return bit_cast<float>((u & 0x7fffffu) ? 0x7fffe000u : u);
  return bit_cast<float>((u + 0x1000u) & ~0x1fffu);
#endif
}

}  // namespace sk
