// ldmatrix and mma.sync: which lane holds which element, after the PTX manual ("Matrix multiply-accumulate operation using mma").
#pragma once
#include <cmath>

#include "cuda/emu/collective.h"
#include "cuda/numbers.h"

namespace emu {

// Four 8x8 matrices of 16-bit elements; lanes 8q..8q+7 give the row addresses of matrix q.
inline void ldmatrix(uint32_t* to, uint32_t row, bool transposed, Site site) {
  struct Argument {
    uint32_t* to;
    uint32_t row;
  } mine{to, row};
  shared.check("ldmatrix", row, 16, 16, site);
  shared.read(lane(), row, 16, site);
  count(Space::shared, row, 16, site);
  warp_meet(transposed ? "ldmatrix.trans" : "ldmatrix", &mine, site, [transposed](const std::vector<void*>& lanes) {
    uint16_t m[4][8][8];
    for (int i = 0; i < 32; ++i) memcpy(m[i / 8][i % 8], shared.at(static_cast<Argument*>(lanes[i])->row), 16);
    for (int i = 0; i < 32; ++i)
      for (int q = 0; q < 4; ++q) {
        const int r = i / 4, c = i % 4 * 2;
        const uint32_t low = transposed ? m[q][c][r] : m[q][r][c], high = transposed ? m[q][c + 1][r] : m[q][r][c + 1];
        static_cast<Argument*>(lanes[i])->to[q] = low | high << 16;
      }
  });
}

// sum + the products, as a tensor core adds them: terms are aligned to the largest exponent and cut below 25 bits, the sum is cut
// to fp32 (Fasi, Higham, Mikaitis, Pranesh 2021: products exact, alignment and normalisation truncate).
inline float hardware_sum(float sum, const double* products, int count) {
  double largest = std::fabs(double(sum));
  for (int k = 0; k < count; ++k) largest = std::max(largest, std::fabs(products[k]));
  if (!(largest > 0) || !std::isfinite(largest)) {
    for (int k = 0; k < count; ++k) sum += float(products[k]);
    return sum;
  }
  const double quantum = std::ldexp(1.0, std::ilogb(largest) - 24), per_quantum = 1 / quantum;
  double total = std::trunc(sum * per_quantum);
  for (int k = 0; k < count; ++k) total += std::trunc(products[k] * per_quantum);
  total *= quantum;  // exact: fewer than 30 bits
  const float rounded = float(total);
  return std::fabs(double(rounded)) > std::fabs(total) ? std::nextafter(rounded, 0.0f) : rounded;
}

// d [16, 8] += a [16, K] b [K, 8], from the floats that the hardware would see.
template <int K>
void multiply(float (&d)[16][8], const float (&a)[16][K], const float (&b)[K][8]) {
  for (int r = 0; r < 16; ++r) {
    if (options.hardware_sums) {
      for (int c = 0; c < 8; ++c) {
        double products[K];
        for (int k = 0; k < K; ++k) products[k] = double(a[r][k]) * b[k][c];
        d[r][c] = hardware_sum(d[r][c], products, K);
      }
    } else {
      for (int k = 0; k < K; ++k)
        for (int c = 0; c < 8; ++c) d[r][c] += a[r][k] * b[k][c];
    }
  }
}

// Lane i holds rows i/4 and i/4 + 8 of d and a, columns (i%4)*2 and +1 of d, and column i/4 of b. Of K it holds, in each register of
// a and b, `Pack` neighbours: two 16-bit numbers, or one tf32. `unpack(register, which)` is the float behind one of them.
template <int K, int Pack, class Unpack>
void mma(const char* what, float* d, const uint32_t* a, const uint32_t* b, Site site, const Unpack& unpack) {
  struct Argument {
    float* d;
    const uint32_t *a, *b;
  } mine{d, a, b};
  warp_meet(what, &mine, site, [&unpack](const std::vector<void*>& lanes) {
    static float sum[16][8], left[16][K], right[K][8];
    for (int i = 0; i < 32; ++i) {
      const Argument& x = *static_cast<Argument*>(lanes[i]);
      for (int q = 0; q < 4; ++q) {
        sum[i / 4 + (q / 2) * 8][i % 4 * 2 + q % 2] = x.d[q];
        for (int p = 0; p < Pack; ++p) left[i / 4 + (q % 2) * 8][i % 4 * Pack + p + (q / 2) * (K / 2)] = unpack(x.a[q], p);
      }
      for (int q = 0; q < 2; ++q)
        for (int p = 0; p < Pack; ++p) right[i % 4 * Pack + p + q * (K / 2)][i / 4] = unpack(x.b[q], p);
    }
    multiply<K>(sum, left, right);
    for (int i = 0; i < 32; ++i)
      for (int q = 0; q < 4; ++q) static_cast<Argument*>(lanes[i])->d[q] = sum[i / 4 + (q / 2) * 8][i % 4 * 2 + q % 2];
  });
}

template <class T>
float unpack_16(uint32_t bits, int which) {
  return sk::to_float(T{uint16_t(which ? bits >> 16 : bits)});
}
inline float unpack_tf32(uint32_t bits, int) { return sk::bit_cast<float>(bits & ~0x1fffu); }  // the low bits are not looked at

}  // namespace emu
