// sparse_linear on packed bf16 weights, window-balanced tables, few rows of x. As sparse_linear_balanced.isa.cpp, but a window of 32
// inputs is one register, a permute of it serves two connections of 16 outputs, and so does a multiplication (vdpbf16ps).
#include "core/sparse_linear_balanced.h"
#include "core/vec.h"

namespace sk::amx {
namespace {

constexpr int64_t L = BalancedRows::kLanes;
constexpr __mmask32 kFirst = 0x55555555, kSecond = 0xaaaaaaaa;  // of two connections

// The inputs behind connections 2j and 2j + 1 of a step with windows of S connections each: zero behind the last one.
template <int S, int P>
SK_INLINE __m512bh pick_two(int j, __m512i word, const __m512i* window) {
  const int first = 2 * j / S, second = (2 * j + 1) / S;
  const __m512i lanes = j ? _mm512_srli_epi16(word, unsigned(5 * j)) : word;  // of 16 bits; 5 of them are read
  __m512i two;
  if (first == second)
    two = _mm512_permutexvar_epi16(lanes, window[first]);
  else
    two = _mm512_maskz_permutexvar_epi16(kFirst, lanes, window[first]);
  if (first != second && second < P) two = _mm512_mask_permutexvar_epi16(two, kSecond, lanes, window[second]);
  return reinterpret_cast<__m512bh>(two);
}

// Where two groups of outputs stand in their streams, a step apart.
struct Streams {
  const uint16_t* weight;
  int64_t weight_step;
  const uint32_t* word;
  int64_t word_step;
};

// One run of steps for G groups of outputs and N rows of x: total[g][n] += its sum. Moves all streams on behind it.
template <int S, int P, int N, int G>
SK_INLINE void run(int32_t steps, const int32_t*& input, Streams& streams, const uint16_t* x, int64_t x_row, __m512 (*total)[N]) {
  constexpr int U = N == 1 ? 3 : N == 2 ? 2 : 1, kPairs = (S * P + 1) / 2;  // sums in flight; an output's do not depend on G
  __m512 sums[U][G][N];
  SK_UNROLL for (int u = 0; u < U; ++u) SK_UNROLL for (int g = 0; g < G; ++g) SK_UNROLL for (int n = 0; n < N; ++n) sums[u][g][n] =
      _mm512_setzero_ps();
  for (int32_t step = 0; step < steps; ++step, input += P, streams.weight += kPairs * 2 * L, streams.word += L) {
    __m512i window[N][P];
    SK_UNROLL for (int n = 0; n < N; ++n) SK_UNROLL for (int p = 0; p < P; ++p) window[n][p] = _mm512_loadu_si512(x + n * x_row + input[p]);
    SK_UNROLL for (int g = 0; g < G; ++g) {
      const __m512i word = _mm512_loadu_si512(streams.word + g * streams.word_step);
      SK_UNROLL for (int j = 0; j < kPairs; ++j) {
        const __m512bh weight = reinterpret_cast<__m512bh>(_mm512_loadu_si512(streams.weight + g * streams.weight_step + j * 2 * L));
        SK_UNROLL for (int n = 0; n < N; ++n) sums[j % U][g][n] = _mm512_dpbf16_ps(sums[j % U][g][n], weight, pick_two<S, P>(j, word, window[n]));
      }
    }
  }
  SK_UNROLL for (int g = 0; g < G; ++g) SK_UNROLL for (int n = 0; n < N; ++n) {
    __m512 sum = sums[0][g][n];
    SK_UNROLL for (int u = 1; u < U; ++u) sum = _mm512_add_ps(sum, sums[u][g][n]);
    total[g][n] = _mm512_add_ps(total[g][n], sum);
  }
}

// y[n][r] for N rows of x and G groups of outputs from row `first` on.
template <int N, int G>
SK_INLINE void rows_of_x(const BalancedRows& b, Streams streams, const uint16_t* x, int64_t x_row, const uint16_t* bias, uint16_t* y, int64_t y_row,
                         int64_t y_col, int64_t first) {
  __m512 total[G][N];
  SK_UNROLL for (int g = 0; g < G; ++g) SK_UNROLL for (int n = 0; n < N; ++n) total[g][n] = _mm512_setzero_ps();
  const int32_t* runs = b.runs + 2;
  for (int32_t left = b.runs[1]; left > 0; --left) {
    const int32_t size = runs[0], share = runs[1], steps = runs[2];
    runs += 3;
#define SK_RUN(S, P) run<S, P, N, G>(steps, runs, streams, x, x_row, total)
    switch (size * (share > 1 ? -1 : 1)) {
      case -1: SK_RUN(1, 6); break;
      case -2: SK_RUN(2, 3); break;
      case -3: SK_RUN(3, 2); break;
      case 1: SK_RUN(1, 1); break;
      case 2: SK_RUN(2, 1); break;
      case 3: SK_RUN(3, 1); break;
      case 4: SK_RUN(4, 1); break;
      case 5: SK_RUN(5, 1); break;
      default: SK_RUN(6, 1); break;
    }
#undef SK_RUN
  }
  for (int g = 0; g < G; ++g, first += L) {
    const int rows = b.rows - first < L ? int(b.rows - first) : int(L);
    const __mmask16 mask = __mmask16((1u << rows) - 1);
    __m512 start = _mm512_setzero_ps();
    if (bias) start = _mm512_castsi512_ps(_mm512_slli_epi32(_mm512_cvtepu16_epi32(_mm256_maskz_loadu_epi16(mask, bias + first)), 16));
    for (int n = 0; n < N; ++n) {
      const __m256i value = reinterpret_cast<__m256i>(_mm512_cvtneps_pbh(_mm512_add_ps(total[g][n], start)));
      uint16_t* out = y + n * y_row + first * y_col;
      if (y_col == 1) {
        _mm256_mask_storeu_epi16(out, mask, value);
      } else {
        alignas(32) uint16_t each[L];
        _mm256_store_si256(reinterpret_cast<__m256i*>(each), value);
        for (int r = 0; r < rows; ++r) out[r * y_col] = each[r];
      }
    }
  }
}

template <int G>
SK_INLINE void all_rows(const BalancedRows& b, const Streams& streams, const uint16_t* x, int64_t x_row, int64_t count, const uint16_t* bias,
                        uint16_t* y, int64_t y_row, int64_t y_col, int64_t first) {
#define SK_ROWS(N) rows_of_x<N, G>(b, streams, x + n * x_row, x_row, bias, y + n * y_row, y_row, y_col, first)
  int64_t n = 0;
  for (; n + 4 <= count; n += 4) SK_ROWS(4);
  switch (count - n) {
    case 3: SK_ROWS(3); break;
    case 2: SK_ROWS(2); break;
    case 1: SK_ROWS(1); break;
  }
#undef SK_ROWS
}

}  // namespace

void balanced(const BalancedRows& b, const uint16_t* x, int64_t x_row, int64_t count, const uint16_t* bias, uint16_t* y, int64_t y_row, int64_t y_col,
              int64_t begin, int64_t end) {
  const int64_t word_step = b.runs[0] * L;
  const auto at = [&](int64_t g) { return Streams{b.halves + g * b.halves_step, b.halves_step, b.words + g * word_step, word_step}; };
  int64_t g = begin;
  for (; g + 2 <= end; g += 2) all_rows<2>(b, at(g), x, x_row, count, bias, y, y_row, y_col, g * L);
  if (g < end) all_rows<1>(b, at(g), x, x_row, count, bias, y, y_row, y_col, g * L);
}

}  // namespace sk::amx
