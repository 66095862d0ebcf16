// One matrix step of 16 x 8 sums over two 16-byte pieces, for every way to multiply.
#pragma once
#include "cuda/device.h"
#include "cuda/fp32.h"

namespace sk {

// 16-bit numbers: 16 of them per step, products exact.
template <class T, Fp32>
struct MatrixStep {
  using Left = uint32_t[4];
  SK_DEVICE static void prepare(const uint32_t (&raw)[4], Left& left) {
    SK_UNROLL
    for (int q = 0; q < 4; ++q) left[q] = raw[q];
  }
  SK_DEVICE static void add(float (&sum)[4], const Left& left, Two<uint32_t> right) {
    const uint32_t b[2] = {right.v[0], right.v[1]};
    mma_16x8x16<T>(sum, left, b);
  }
};

// fp32 as tf32: 8 numbers per step.
template <>
struct MatrixStep<float, Fp32::tf32> {
  using Left = uint32_t[4];
  SK_DEVICE static void prepare(const uint32_t (&raw)[4], Left& left) {
    SK_UNROLL
    for (int q = 0; q < 4; ++q) left[q] = bit_cast<uint32_t>(to_tf32(bit_cast<float>(raw[q])));
  }
  SK_DEVICE static void add(float (&sum)[4], const Left& left, Two<uint32_t> right) {
    const uint32_t b[2] = {bit_cast<uint32_t>(to_tf32(bit_cast<float>(right.v[0]))), bit_cast<uint32_t>(to_tf32(bit_cast<float>(right.v[1])))};
    mma_16x8x8_tf32(sum, left, b);
  }
};

// fp32 proper: v = big + small + rest, the rest below 2^-22 of v; big*big + big*small + small*big (Ootomo and Yokota 2022).
struct BigSmall {
  uint32_t big, small;
};
SK_DEVICE BigSmall split_tf32(uint32_t bits) {
  const float v = bit_cast<float>(bits), big = to_tf32(v);
  // an Inf has no rest: Inf - Inf would make a NaN of it
  const float rest = (bit_cast<uint32_t>(big) & 0x7f800000u) == 0x7f800000u ? 0.0f : v - big;
  return {bit_cast<uint32_t>(big), bit_cast<uint32_t>(to_tf32(rest))};
}
template <>
struct MatrixStep<float, Fp32::strict> {
  struct Left {
    uint32_t big[4], small[4];
  };
  SK_DEVICE static void prepare(const uint32_t (&raw)[4], Left& left) {
    SK_UNROLL
    for (int q = 0; q < 4; ++q) {
      const BigSmall s = split_tf32(raw[q]);
      left.big[q] = s.big, left.small[q] = s.small;
    }
  }
  SK_DEVICE static void add(float (&sum)[4], const Left& left, Two<uint32_t> right) {
    const BigSmall first = split_tf32(right.v[0]), second = split_tf32(right.v[1]);
    const uint32_t big[2] = {first.big, second.big}, small[2] = {first.small, second.small};
    mma_16x8x8_tf32(sum, left.small, big);
    mma_16x8x8_tf32(sum, left.big, small);
    mma_16x8x8_tf32(sum, left.big, big);
  }
};

}  // namespace sk
