// sparse_linear, condensed, few rows of x and not too few connections: a row of the weight is expanded in registers to where its
// inputs lie, so that x is loaded as it is and nothing is gathered. Costs by positions, kept or not: pays from about a quarter kept.
#include <algorithm>

#include "core/sparse_linear_kernels.h"
#include "core/vec.h"

namespace sk::SK_ISA {
#if defined(__AVX512F__)
namespace {

constexpr int64_t kWord = 32;  // inputs of one word of the mask: two vectors

// The next popcount(bits) weights, each in the lane of its bit; moves on behind them. Reads nothing else.
SK_INLINE vf expand(uint32_t bits, const float*& weight) {
  const vf v = reinterpret_cast<vf>(_mm512_maskz_expandloadu_ps(__mmask16(bits), weight));
  weight += __builtin_popcount(bits);
  return v;
}

// R rows of the weight times N rows of x. A row's sum does not depend on R.
template <int R, int N>
SK_INLINE void rows_tile(const ExpandedRows& w, const float* x, int64_t x_row, const float* bias, float* y, int64_t y_row, int64_t y_col,
                         int64_t row) {
  vf sums[R][N];
  const float* weight[R];
  const uint32_t* mask[R];
  SK_UNROLL for (int r = 0; r < R; ++r) {
    weight[r] = w.weight + (row + r) * w.fan_in;
    mask[r] = w.mask + (row + r) * w.words;
    SK_UNROLL for (int n = 0; n < N; ++n) sums[r][n] = zero();
  }
  // A vector of inputs: half a word.
  const auto add = [&](const uint32_t* bits, const auto& inputs) __attribute__((always_inline)) {
    vf a[R];
    SK_UNROLL for (int r = 0; r < R; ++r) a[r] = expand(bits[r], weight[r]);
    SK_UNROLL for (int n = 0; n < N; ++n) {
      const vf xn = inputs(n);
      SK_UNROLL for (int r = 0; r < R; ++r) sums[r][n] += a[r] * xn;
    }
  };
  const bool narrow = w.inputs < kWord;  // then there is one word, and x is shorter than it
  for (int64_t word = 0; word < w.words; ++word) {
    const float* at = x + (narrow ? 0 : word * kWord < w.inputs - kWord ? word * kWord : w.inputs - kWord);
    uint32_t low[R], high[R];
    SK_UNROLL for (int r = 0; r < R; ++r) low[r] = mask[r][word] & 0xffff, high[r] = mask[r][word] >> 16;
    if (narrow) {
      add(low, [&](int n) { return load_first(at + n * x_row, w.inputs < W ? int(w.inputs) : W); });
      if (w.inputs > W) add(high, [&](int n) { return load_first(at + n * x_row + W, int(w.inputs) - W); });
    } else {
      add(low, [&](int n) { return load(at + n * x_row); });
      add(high, [&](int n) { return load(at + n * x_row + W); });
    }
  }
  SK_UNROLL for (int r = 0; r < R; ++r) SK_UNROLL for (int n = 0; n < N; ++n) y[n * y_row + (row + r) * y_col] =
      sum(sums[r][n]) + (bias ? bias[row + r] : 0.0f);
}

template <int N>
void rows(const ExpandedRows& w, const float* x, int64_t x_row, const float* bias, float* y, int64_t y_row, int64_t y_col, int64_t begin,
          int64_t end) {
  constexpr int R = N <= 4 ? 4 : 2;
  int64_t row = begin;
  for (; row + R <= end; row += R) rows_tile<R, N>(w, x, x_row, bias, y, y_row, y_col, row);
  for (; row < end; ++row) rows_tile<1, N>(w, x, x_row, bias, y, y_row, y_col, row);
}

}  // namespace

// Up to 8 rows of x share what was expanded.
void expanded(const ExpandedRows& w, const float* x, int64_t x_row, int64_t count, const float* bias, float* y, int64_t y_row, int64_t y_col,
              int64_t begin, int64_t end) {
  for (; count > 0; count -= 8, x += 8 * x_row, y += 8 * y_row) {
#define SK_ROWS(N) rows<N>(w, x, x_row, bias, y, y_row, y_col, begin, end)
    switch (count) {
      case 1: SK_ROWS(1); break;
      case 2: SK_ROWS(2); break;
      case 3: SK_ROWS(3); break;
      case 4: SK_ROWS(4); break;
      case 5: SK_ROWS(5); break;
      case 6: SK_ROWS(6); break;
      case 7: SK_ROWS(7); break;
      default: SK_ROWS(8); break;
    }
#undef SK_ROWS
  }
}

// dense [rows][inputs] = the weight where it is kept, zero elsewhere; rows [begin, end).
void expand_to_dense(const ExpandedRows& w, float* dense, int64_t begin, int64_t end) {
  for (int64_t row = begin; row < end; ++row) {
    const float* weight = w.weight + row * w.fan_in;
    float* out = dense + row * w.inputs;
    for (int64_t word = 0; word < w.words; ++word) {
      const uint32_t bits = w.mask[row * w.words + word];
      const vf a = expand(bits & 0xffff, weight), b = expand(bits >> 16, weight);
      const int64_t left = w.inputs - word * kWord;
      if (left >= kWord) {
        store(out + word * kWord, a), store(out + word * kWord + W, b);
      } else if (w.inputs < kWord) {
        store_first(out, a, left < W ? int(left) : W);
        if (left > W) store_first(out + W, b, int(left) - W);
      } else {  // the last word ends with the row, and its first lanes belong to the one before
        const uint32_t own = ~0u << (kWord - left);
        _mm512_mask_storeu_ps(out + w.inputs - kWord, __mmask16(own & 0xffff), reinterpret_cast<__m512>(a));
        _mm512_mask_storeu_ps(out + w.inputs - W, __mmask16(own >> 16), reinterpret_cast<__m512>(b));
      }
    }
  }
}
#endif
}  // namespace sk::SK_ISA
