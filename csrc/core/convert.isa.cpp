// bf16 and fp16 to fp32 and back, compiled once per instruction set.
#include "core/convert.h"

#include "core/vec.h"

namespace sk::SK_ISA {
namespace {

SK_INLINE uint32_t bits(float v) {
  uint32_t u;
  __builtin_memcpy(&u, &v, 4);
  return u;
}
SK_INLINE float value(uint32_t u) {
  float v;
  __builtin_memcpy(&v, &u, 4);
  return v;
}

void bf16_to_f32(const uint16_t* in, float* out, int64_t size) {
  for (int64_t i = 0; i < size; ++i) out[i] = value(uint32_t(in[i]) << 16);
}
void f32_to_bf16(const float* in, uint16_t* out, int64_t size) {
  for (int64_t i = 0; i < size; ++i) {
    const uint32_t u = bits(in[i]);
    const uint32_t rounded = (u + 0x7fffu + ((u >> 16) & 1u)) >> 16;
    out[i] = uint16_t((u & 0x7fffffffu) > 0x7f800000u ? (u >> 16) | 0x40u : rounded);  // NaN stays NaN
  }
}

SK_INLINE float half_value(uint16_t h) {
  const uint32_t sign = uint32_t(h & 0x8000u) << 16, exponent = (h >> 10) & 31u, mantissa = h & 0x3ffu;
  if (exponent == 31u) return value(sign | 0x7f800000u | (mantissa << 13));
  if (exponent == 0u) return value(sign | bits(float(mantissa) * 5.9604644775390625e-8f));  // 2^-24: subnormals are exact
  return value(sign | ((exponent + 112u) << 23) | (mantissa << 13));
}
SK_INLINE uint16_t half_bits(float v) {
  const uint32_t u = bits(v), sign = (u >> 16) & 0x8000u, a = u & 0x7fffffffu;
  if (a > 0x7f800000u) return uint16_t(sign | 0x7e00u);
  if (a >= 0x477ff000u) return uint16_t(sign | 0x7c00u);                               // rounds to infinity
  if (a < 0x38800000u) return uint16_t(sign | (bits(value(a) + 0.5f) - 0x3f000000u));  // subnormal: one rounding add
  return uint16_t(sign | ((a + 0xfffu + ((a >> 13) & 1u) - 0x38000000u) >> 13));
}

void fp16_to_f32(const uint16_t* in, float* out, int64_t size) {
  int64_t i = 0;
#if defined(__AVX512F__)
  for (; i + 16 <= size; i += 16) _mm512_storeu_ps(out + i, _mm512_cvtph_ps(_mm256_loadu_si256(reinterpret_cast<const __m256i*>(in + i))));
#elif defined(__F16C__)
  for (; i + 8 <= size; i += 8) _mm256_storeu_ps(out + i, _mm256_cvtph_ps(_mm_loadu_si128(reinterpret_cast<const __m128i*>(in + i))));
#endif
  for (; i < size; ++i) out[i] = half_value(in[i]);
}
void f32_to_fp16(const float* in, uint16_t* out, int64_t size) {
  int64_t i = 0;
#if defined(__AVX512F__)
  for (; i + 16 <= size; i += 16) _mm256_storeu_si256(reinterpret_cast<__m256i*>(out + i), _mm512_cvtps_ph(_mm512_loadu_ps(in + i), 0));
#elif defined(__F16C__)
  for (; i + 8 <= size; i += 8) _mm_storeu_si128(reinterpret_cast<__m128i*>(out + i), _mm256_cvtps_ph(_mm256_loadu_ps(in + i), 0));
#endif
  for (; i < size; ++i) out[i] = half_bits(in[i]);
}

}  // namespace

const ConvertKernels convert{{bf16_to_f32, fp16_to_f32}, {f32_to_bf16, f32_to_fp16}};

}  // namespace sk::SK_ISA
