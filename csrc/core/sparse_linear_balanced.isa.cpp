// sparse_linear, window-balanced tables, few rows of x. One vector = 16 outputs; the inputs that they read in a window of 32 are
// permuted out of two registers (vpermt2ps), which takes an eighth of the time of a gather.
#include "core/sparse_linear_balanced.h"

#include "core/sparse_linear_turn.h"

namespace sk::SK_ISA {
#if defined(__AVX512F__)
namespace {

constexpr int64_t L = BalancedRows::kLanes;
static_assert(L == W, "a vector of outputs");

SK_INLINE vf pick(vf low, __m512i lanes, vf high) {  // reads 5 bits of each lane
  return reinterpret_cast<vf>(_mm512_permutex2var_ps(reinterpret_cast<__m512>(low), lanes, reinterpret_cast<__m512>(high)));
}

// Where groups of outputs stand in their streams; the next group's are a step behind.
struct Streams {
  const float* weight;
  int64_t weight_step;
  const uint32_t* word;
  int64_t word_step;
};

// One run of steps for G groups of outputs and N rows of x: total[g][n] += its sum. Moves all streams on behind it.
template <int S, int P, int N, int G>
SK_INLINE void run(int32_t steps, const int32_t*& input, Streams& streams, const float* x, int64_t x_row, vf (*total)[N]) {
  constexpr int U = N == 1 ? 4 : N == 2 ? 2 : 1;  // sums in flight; an output's do not depend on G
  vf sums[U][G][N];
  SK_UNROLL for (int u = 0; u < U; ++u) SK_UNROLL for (int g = 0; g < G; ++g) SK_UNROLL for (int n = 0; n < N; ++n) sums[u][g][n] = zero();
  const int32_t* at = input;
  const float* w = streams.weight;
  const uint32_t* positions = streams.word;
  const int64_t w_step = streams.weight_step, word_step = streams.word_step;
  for (int32_t step = 0; step < steps; ++step, at += P, w += S * P * L, positions += L) {
    __m512i word[G];
    SK_UNROLL for (int g = 0; g < G; ++g) word[g] = _mm512_loadu_si512(positions + g * word_step);
    SK_UNROLL for (int p = 0; p < P; ++p) {
      const float* window = x + at[p];
      vf low[N], high[N];
      SK_UNROLL for (int n = 0; n < N; ++n) low[n] = load(window + n * x_row), high[n] = load(window + n * x_row + W);
      SK_UNROLL for (int s = 0; s < S; ++s) {
        const int k = p * S + s;
        SK_UNROLL for (int g = 0; g < G; ++g) {
          const vf v = load(w + g * w_step + k * L);
          const __m512i lanes = k ? _mm512_srli_epi32(word[g], unsigned(5 * (k / 2) + 16 * (k % 2))) : word[g];
          SK_UNROLL for (int n = 0; n < N; ++n) sums[k % U][g][n] += v * pick(low[n], lanes, high[n]);
        }
      }
    }
  }
  input = at, streams.weight = w, streams.word = positions;
  SK_UNROLL for (int g = 0; g < G; ++g) SK_UNROLL for (int n = 0; n < N; ++n) {
    vf sum = sums[0][g][n];
    SK_UNROLL for (int u = 1; u < U; ++u) sum += sums[u][g][n];
    total[g][n] += sum;
  }
}

template <int N, int G>
void group(const int32_t* runs, Streams streams, const float* x, int64_t x_row, vf (*total)[N]) {
  int32_t left = runs[1];
  for (runs += 2; left > 0; --left) {
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
}

// Rows of a natural weight [rows][fan_in] side by side, in the order of the runs: [fan_in][L].
SK_INLINE void turn(const float* weight, int64_t fan_in, int rows, const int32_t* order, float* out) {
  int64_t k = 0;
  if (rows == L)
    for (; k + 4 <= fan_in; k += 4) {
      __m512 t[4];
      turn_four(weight + k, fan_in, t);
      SK_UNROLL for (int i = 0; i < 4; ++i) _mm512_storeu_ps(out + order[k + i] * L, t[i]);
    }
  for (; k < fan_in; ++k)
    for (int r = 0; r < L; ++r) out[order[k] * L + r] = r < rows ? weight[r * fan_in + k] : 0.0f;
}

template <int N, int G>
SK_INLINE void rows_of_x(const BalancedRows& b, const Streams& streams, const float* x, int64_t x_row, const float* bias, float* y, int64_t y_row,
                         int64_t y_col, int64_t first) {
  vf total[G][N];
  for (int g = 0; g < G; ++g)
    for (int n = 0; n < N; ++n) total[g][n] = zero();
  group<N, G>(b.runs, streams, x, x_row, total);
  for (int g = 0; g < G; ++g, first += L) {
    const int rows = b.rows - first < L ? int(b.rows - first) : int(L);
    const vf start = bias ? load_first(bias + first, rows) : zero();
    for (int n = 0; n < N; ++n) {
      float* out = y + n * y_row + first * y_col;
      const vf value = total[g][n] + start;
      if (y_col == 1) {
        store_first(out, value, rows);
      } else {
        for (int r = 0; r < rows; ++r) out[r * y_col] = value[r];
      }
    }
  }
}

// All rows of x, up to 4 at a time.
template <int G>
SK_INLINE void all_rows(const BalancedRows& b, const Streams& streams, const float* x, int64_t x_row, int64_t count, const float* bias, float* y,
                        int64_t y_row, int64_t y_col, int64_t first) {
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

// Groups two at a time, as far as they go: a window that was loaded serves both.
SK_INLINE void all_groups(const BalancedRows& b, const float* weight, int64_t weight_step, const float* x, int64_t x_row, int64_t count,
                          const float* bias, float* y, int64_t y_row, int64_t y_col, int64_t begin, int64_t end) {
  const int64_t word_step = b.runs[0] * L;
  const auto at = [&](int64_t g) { return Streams{weight + g * weight_step, weight_step, b.words + g * word_step, word_step}; };
  int64_t g = begin;
  for (; g + 2 <= end; g += 2) all_rows<2>(b, at(g), x, x_row, count, bias, y, y_row, y_col, g * L);
  if (g < end) all_rows<1>(b, at(g), x, x_row, count, bias, y, y_row, y_col, g * L);
}

}  // namespace

void balanced(const BalancedRows& b, const float* x, int64_t x_row, int64_t count, const float* bias, float* y, int64_t y_row, int64_t y_col,
              float* turned, int64_t begin, int64_t end) {
  if (!b.order) return all_groups(b, b.weight, b.fan_in * L, x, x_row, count, bias, y, y_row, y_col, begin, end);
  for (int64_t g = begin; g < end; ++g) {  // one at a time: two do not fit the first-level cache beside x
    const int64_t first = g * L, word_step = b.runs[0] * L;
    turn(b.weight + first * b.fan_in, b.fan_in, b.rows - first < L ? int(b.rows - first) : int(L), b.order, turned);
    all_rows<1>(b, Streams{turned, 0, b.words + g * word_step, 0}, x, x_row, count, bias, y, y_row, y_col, first);
  }
}
#endif
}  // namespace sk::SK_ISA
