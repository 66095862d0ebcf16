// sparse_linear, condensed, few rows of x and not too few connections: a row of the weight is expanded in registers to where its
// inputs lie, so that x is loaded as it is and nothing is gathered. Costs by positions, kept or not: pays from about a quarter kept.
#include <algorithm>

#include "core/sparse_linear_kernels.h"
#include "core/transpose.h"

namespace sk::SK_ISA {
#if defined(__AVX512F__)
namespace {

constexpr int64_t kWord = 32;  // inputs of one word of the mask: two vectors

// The next popcount(bits) weights, each in the lane of its bit; moves on behind them. Reads nothing else.
SK_INLINE vf expand(uint32_t bits, const float*& weight) {
  asm("" : "+r"(bits));  // counted where it is, not behind a mask register
  const vf v = reinterpret_cast<vf>(_mm512_maskz_expandloadu_ps(__mmask16(bits), weight));
  weight += __builtin_popcount(bits);
  return v;
}

// Rows of a matrix, three to a pointer, one or two strides away from it: then addresses stay in registers.
template <class T, int N>
struct Rows {
  const T* at[(N + 2) / 3];
  const int64_t row;
  SK_INLINE Rows(const T* first, int64_t stride) : row(stride) {
    SK_UNROLL for (int n = 0; n < N; n += 3) at[n / 3] = first + n * stride;
    move(0);
  }
  SK_INLINE void move(int64_t by) {
    SK_UNROLL for (int j = 0; j < (N + 2) / 3; ++j) {
      at[j] += by;
      asm("" : "+r"(at[j]));
    }
  }
  SK_INLINE const T* of(int n) const { return at[n / 3] + n % 3 * row; }
};

// The same R floats again and again.
template <int R>
SK_INLINE vf repeat(const float* p) {
  static_assert(R == 1 || R == 2 || R == 4, "");
  if constexpr (R == 1) return splat(*p);
  if constexpr (R == 2) return reinterpret_cast<vf>(_mm512_broadcastsd_pd(_mm_loadl_pd(_mm_setzero_pd(), reinterpret_cast<const double*>(p))));
  return reinterpret_cast<vf>(_mm512_broadcast_f32x4(_mm_loadu_ps(p)));
}

// R rows of the weight times N rows of x. A row's sum does not depend on R.
template <int R, int N>
__attribute__((noinline)) void rows_tile(const ExpandedRows& w, const float* x, int64_t x_row, const float* bias, float* y, int64_t y_row,
                                         int64_t y_col, int64_t row) {
  vf sums[R][N];
  const float* weight[R];
  const int64_t words = w.words, inputs = w.inputs;
  SK_UNROLL for (int r = 0; r < R; ++r) {
    weight[r] = w.weight + (row + r) * w.fan_in;
    SK_UNROLL for (int n = 0; n < N; ++n) sums[r][n] = zero();
  }
  // A vector of inputs: half a word.
  const auto add = [&](const uint32_t* bits, const auto& in) __attribute__((always_inline)) {
    vf a[R];
    SK_UNROLL for (int r = 0; r < R; ++r) a[r] = expand(bits[r] & 0xffff, weight[r]);
    SK_UNROLL for (int n = 0; n < N; ++n) {
      vf xn = in(n);
      asm("" : "+v"(xn));  // loaded once
      SK_UNROLL for (int r = 0; r < R; ++r) sums[r][n] += a[r] * xn;
    }
  };
  Rows<float, N> rows(x, x_row);
  Rows<uint32_t, R> mask(w.mask + row * words, words);
  const auto add_word = [&]() __attribute__((always_inline)) {
    uint32_t bits[R];
    SK_UNROLL for (int r = 0; r < R; ++r) bits[r] = *mask.of(r);
    add(bits, [&](int n) { return load(rows.of(n)); });
    SK_UNROLL for (int r = 0; r < R; ++r) bits[r] >>= 16;
    add(bits, [&](int n) { return load(rows.of(n) + W); });
  };
  if (inputs >= kWord) {
    for (int64_t word = 1; word < words; ++word) {
      add_word();
      rows.move(kWord), mask.move(1);
    }
    rows.move(inputs - words * kWord);  // the last word ends with the row
    add_word();
  } else {  // one word, and x is shorter than it
    uint32_t bits[R];
    SK_UNROLL for (int r = 0; r < R; ++r) bits[r] = *mask.of(r);
    add(bits, [&](int n) { return load_first(rows.of(n), inputs < W ? int(inputs) : W); });
    SK_UNROLL for (int r = 0; r < R; ++r) bits[r] >>= 16;
    if (inputs > W) add(bits, [&](int n) { return load_first(rows.of(n) + W, int(inputs) - W); });
  }
  // Sums of R outputs, the next row's behind them.
  static_assert(W % R == 0, "a vector begins with a row");
  constexpr int kSums = R * N, kRounded = (kSums + W - 1) / W * W;
  const vf start = bias ? repeat<R>(bias + row) : zero();
  float out[kRounded];
  SK_UNROLL for (int first = 0; first < kSums; first += W) {
    vf lanes[W];
    SK_UNROLL for (int j = 0; j < W; ++j) lanes[j] = first + j < kSums ? sums[(first + j) % R][(first + j) / R] : zero();
    store(out + first, sum_each(lanes) + start);
  }
  if (y_col == 1) {
    SK_UNROLL for (int n = 0; n < N; ++n) __builtin_memcpy(y + n * y_row + row, out + n * R, R * sizeof(float));
  } else {
    for (int n = 0; n < N; ++n)
      for (int r = 0; r < R; ++r) y[n * y_row + (row + r) * y_col] = out[n * R + r];
  }
}

template <int N>
void rows(const ExpandedRows& w, const float* x, int64_t x_row, const float* bias, float* y, int64_t y_row, int64_t y_col, int64_t begin,
          int64_t end) {
  constexpr int R = N <= 6 ? 4 : 2;  // sums, expanded rows and a vector of x fit the registers
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

// block[row][..] = the weight where it is kept, zero elsewhere, in words [first, end) of rows [begin, end_row). `used`: of each row, how many
// connections lie before them; moved on behind them. Null: none do.
void expand_block(const ExpandedRows& w, int64_t first, int64_t end, int32_t* used, float* block, int64_t block_row, int64_t begin, int64_t end_row) {
  for (int64_t row = begin; row < end_row; ++row) {
    const float* const row_weight = w.weight + row * w.fan_in;
    const float* weight = row_weight + (used ? used[row] : 0);
    float* out = block + row * block_row;
    for (int64_t word = first; word < end; ++word, out += kWord) {
      const uint32_t bits = w.mask[row * w.words + word];
      const vf a = expand(bits & 0xffff, weight), b = expand(bits >> 16, weight);
      const int64_t left = w.inputs - word * kWord;
      if (left >= kWord) {
        store(out, a), store(out + W, b);
      } else if (w.inputs < kWord) {
        store_first(out, a, left < W ? int(left) : W);
        if (left > W) store_first(out + W, b, int(left) - W);
      } else {  // the last word ends with the row, and its first lanes belong to the one before
        const uint32_t own = ~0u << (kWord - left);
        _mm512_mask_storeu_ps(out + left - kWord, __mmask16(own & 0xffff), reinterpret_cast<__m512>(a));
        _mm512_mask_storeu_ps(out + left - W, __mmask16(own >> 16), reinterpret_cast<__m512>(b));
      }
    }
    if (used) used[row] = int32_t(weight - row_weight);
  }
}
#endif
}  // namespace sk::SK_ISA
