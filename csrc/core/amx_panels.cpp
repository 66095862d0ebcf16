// sparse_linear in bf16 on matrix tiles, blocks one input wide (panels): outputs that share their inputs make dense products of those
// inputs, which are gathered from x feature-major, where an input is a row. See sparse_linear_bf16.h for the words.
//
// Feature-major x, `columns`, is [inputs / 16][K tiles along the rows of x][16 inputs][32 rows], as prepare() leaves `rows` of x^T.
#include "core/amx_tiles.h"

namespace sk::amx {
namespace {

constexpr int64_t kPiece = 2 * kTile;               // rows of x that are taken together: 64 bytes of an input
constexpr int64_t kTileBytes = kTile * kPiece * 2;  // of bf16

SK_INLINE int64_t smaller(int64_t a, int64_t b) { return a < b ? a : b; }
SK_INLINE int64_t up(int64_t a, int64_t b) { return (a + b - 1) / b; }

// Where the pieces of an input begin.
SK_INLINE const char* pieces(const Bf16Columns& x, int64_t input) {
  return reinterpret_cast<const char*>(x.data) + input / kTile * x.k_tiles * kTileBytes + input % kTile * 64;
}

// The weights of a panel [fan_in][outputs] as left factors [outputs / 16][K tiles][16][32], zero behind the last input.
void left_factors(const uint16_t* weight, int64_t fan_in, int64_t outputs, uint16_t* out) {
  const auto values = [&](int64_t f, int64_t o) {
    if (f >= fan_in) return _mm512_setzero_si512();
    return _mm512_cvtepu16_epi32(_mm256_loadu_si256(reinterpret_cast<const __m256i*>(weight + f * outputs + o)));
  };
  for (int64_t o = 0; o < outputs; o += kTile)
    for (int64_t f = 0; f < fan_in; f += kTileDepth, out += kTile * kTileDepth) {
      vf t[W];  // pairs of inputs x outputs
      SK_UNROLL for (int i = 0; i < W; ++i) t[i] =
          reinterpret_cast<vf>(_mm512_or_si512(values(f + 2 * i, o), _mm512_slli_epi32(values(f + 2 * i + 1, o), 16)));
      transpose(t);
      SK_UNROLL for (int i = 0; i < W; ++i) store(reinterpret_cast<float*>(out + i * kTileDepth), t[i]);
    }
}

// ---- forward: the weight is the left factor. Of 32 rows of x the first tile has, in every 8, the first 4, and the second one the last 4.

SK_INLINE void gather_pairs(const char* const* inputs, int64_t fan_in, int64_t piece, char* out) {
  const auto at = [&](int64_t f) { return f < fan_in ? _mm512_load_si512(inputs[f] + piece * kTileBytes) : _mm512_setzero_si512(); };
  for (int64_t k = 0; k < fan_in; k += kTileDepth, out += 2 * kTileBytes) {
    const int64_t pairs = smaller(kTile, (fan_in - k) / 2);
    for (int64_t i = 0; i < pairs; ++i) {
      const __m512i even = _mm512_load_si512(inputs[k + 2 * i] + piece * kTileBytes),
                    odd = _mm512_load_si512(inputs[k + 2 * i + 1] + piece * kTileBytes);
      _mm512_store_si512(out + i * 64, _mm512_unpacklo_epi16(even, odd));
      _mm512_store_si512(out + kTileBytes + i * 64, _mm512_unpackhi_epi16(even, odd));
    }
    for (int64_t i = pairs; i < kTile; ++i) {
      const __m512i even = at(k + 2 * i), odd = at(k + 2 * i + 1);
      _mm512_store_si512(out + i * 64, _mm512_unpacklo_epi16(even, odd));
      _mm512_store_si512(out + kTileBytes + i * 64, _mm512_unpackhi_epi16(even, odd));
    }
  }
}

// Outputs [o, o + 16) of rows [n, n + count): sums [2][16 outputs][16 rows], in the order above.
SK_INLINE void write_piece(const float* sums, const Bf16Out& out, int64_t o, int64_t n, int64_t count) {
  if (out.col == 1) {
    const vf bias = out.bias ? load_bf16(out.bias + o, kTile) : zero();
    for (int64_t half = 0; half < 2; ++half) {
      vf t[W];
      SK_UNROLL for (int i = 0; i < W; ++i) t[i] = load(sums + half * 256 + i * W);
      transpose(t);
      uint16_t* y = out.y + n * out.row + o;
      SK_UNROLL for (int i = 0; i < W; ++i) {
        const int64_t row = i / 4 * 8 + half * 4 + i % 4;
        if (row < count) store_bf16(y + row * out.row, t[i] + bias, kTile);
      }
    }
    return;
  }
  const __m512i first = _mm512_setr_epi64(0, 1, 8, 9, 2, 3, 10, 11), second = _mm512_setr_epi64(4, 5, 12, 13, 6, 7, 14, 15);
  const __mmask32 rows = count >= kPiece ? ~__mmask32(0) : (__mmask32(1) << count) - 1;
  for (int64_t i = 0; i < W; ++i) {
    const vf bias = splat(out.bias ? value(out.bias[o + i]) : 0.0f);
    const __m512d a = reinterpret_cast<__m512d>(load(sums + i * W) + bias), b = reinterpret_cast<__m512d>(load(sums + 256 + i * W) + bias);
    const __m512 low = reinterpret_cast<__m512>(_mm512_permutex2var_pd(a, first, b));
    const __m512 high = reinterpret_cast<__m512>(_mm512_permutex2var_pd(a, second, b));
    _mm512_mask_storeu_epi16(out.y + (o + i) * out.col + n, rows, (__m512i)_mm512_cvtne2ps_pbh(high, low));
  }
}

template <int R>
SK_INLINE void panel_outputs(const char* weight, int64_t k_tiles, const char* gathered, float* sums, const Bf16Out& out, int64_t o, int64_t n) {
  clear<R, 2>();
  for (int64_t k = 0; k < k_tiles; ++k)
    multiply<true, R, 2>(weight + k * kTileBytes, k_tiles * kTileBytes, 64, gathered + k * 2 * kTileBytes, kTileBytes, 64);
  keep<R, 2>(sums, 64);
  written();
  SK_UNROLL for (int r = 0; r < R; ++r) write_piece(sums + 512 * r, out, o + r * kTile, n, smaller(kPiece, out.count - n));
}

void panels(const Bf16Panels& w, const Bf16Columns& x, const Bf16Out& out, void* room, int64_t begin, int64_t end) {
  alignas(64) float sums[4 * 256];
  const int64_t k_tiles = up(w.fan_in, kTileDepth), area = k_tiles * kTileDepth * w.outputs;
  uint16_t* made = static_cast<uint16_t*>(room);
  char* gathered = reinterpret_cast<char*>(made + area);
  const char** inputs = reinterpret_cast<const char**>(gathered + k_tiles * 2 * kTileBytes);
  const TileConfig config(kTile, kTileDepth, kTile);
  for (int64_t panel = begin; panel < end; ++panel) {
    if (!w.left_factors) left_factors(w.weight + panel * w.fan_in * w.outputs, w.fan_in, w.outputs, made);
    const char* weight = reinterpret_cast<const char*>(w.left_factors ? w.weight + panel * area : made);
    for (int64_t f = 0; f < w.fan_in; ++f) inputs[f] = pieces(x, w.entries[2 * (panel * w.fan_in + f)]);
    for (int64_t n = 0; n < out.count; n += kPiece) {
      gather_pairs(inputs, w.fan_in, n / kPiece, gathered);
      written();
      int64_t o = 0;
      for (; o + 2 * kTile <= w.outputs; o += 2 * kTile)
        panel_outputs<2>(weight + o * k_tiles * kTileDepth * 2, k_tiles, gathered, sums, out, panel * w.outputs + o, n);
      if (o < w.outputs) panel_outputs<1>(weight + o * k_tiles * kTileDepth * 2, k_tiles, gathered, sums, out, panel * w.outputs + o, n);
    }
  }
}

// ---- grad_x: the weight lies as a left factor, [inputs of the panel][outputs]; results are added to feature-major sums.

template <int R>
SK_INLINE void input_sums(const Bf16Panels& w, const Tiles& grad, float* sums, int64_t panel, int64_t f, int64_t group) {
  const int64_t depth = w.outputs % kTileDepth ? kTile : kTileDepth, k_tiles = w.outputs / depth;
  const char* weight = reinterpret_cast<const char*>(w.weight + (panel * w.fan_in + f) * w.outputs);
  const char* g = grad.at(group * kTile, panel * k_tiles);
  clear<R, 2>();
  for (int64_t k = 0; k < k_tiles; ++k)
    multiply<true, R, 2>(weight + k * depth * 2, kTile * w.outputs * 2, w.outputs * 2, g + k * grad.step, kTile * grad.row, grad.stride);
  keep<R, 2>(sums, 64);
}

// `totals` [2][inputs, whole tiles][16 rows of x]
SK_INLINE void add_rows(const float* sums, const int32_t* entries, int64_t count, float* totals, int64_t half_step) {
  for (int64_t f = 0; f < count; ++f) {
    float* to = totals + entries[2 * f] * kTile;
    store(to, load(to) + load(sums + f * W));
    store(to + half_step, load(to + half_step) + load(sums + 256 + f * W));
  }
}

void panels_grad_x(const Bf16Panels& w, int64_t count, int64_t inputs, const Tiles& grad, const Bf16Out& out, void* room, int64_t begin,
                   int64_t end) {
  alignas(64) float sums[4 * 256];
  float* totals = static_cast<float*>(room);
  const int64_t half_step = up(inputs, kTile) * kTile * kTile, rows = smaller(kTile, w.fan_in);
  for (int64_t piece = begin; piece < end; ++piece) {
    for (int64_t i = 0; i < 2 * half_step; i += W) store(totals + i, zero());
    {
      const TileConfig config(rows, w.outputs % kTileDepth ? kTile : kTileDepth, kTile);
      for (int64_t panel = 0; panel < count; ++panel) {
        const int32_t* entries = w.entries + 2 * panel * w.fan_in;
        int64_t f = 0;
        for (; f + 2 * kTile <= w.fan_in; f += 2 * kTile) {
          input_sums<2>(w, grad, sums, panel, f, 2 * piece);
          written();
          add_rows(sums, entries + 2 * f, kTile, totals, half_step);
          add_rows(sums + 512, entries + 2 * (f + kTile), kTile, totals, half_step);
        }
        for (; f < w.fan_in; f += rows) {
          const int64_t first = smaller(f, w.fan_in - rows);  // the last tile begins among the inputs of the one before
          input_sums<1>(w, grad, sums, panel, first, 2 * piece);
          written();
          add_rows(sums + (f - first) * W, entries + 2 * f, rows - (f - first), totals, half_step);
        }
      }
    }
    for (int64_t half = 0; half < 2; ++half) {
      const int64_t n = (2 * piece + half) * kTile, here = smaller(kTile, out.count - n);
      for (int64_t i = 0; i < inputs && here > 0; i += kTile)
        write<true>(totals + half * half_step + i * kTile, out, i, smaller(kTile, inputs - i), n, here);
    }
  }
}

// ---- grad_weight: the gathered inputs are the left factor, grad_out the right one.

template <int R, int G>
SK_INLINE void weight_sums(const char* gathered, const Tiles& grad, int64_t k_tiles, float* sums, int64_t output) {
  clear<R, G>();
  const char* g = grad.at(output, 0);
  for (int64_t k = 0; k < k_tiles; ++k)
    multiply<true, R, G>(gathered + k * kTileBytes, k_tiles * kTileBytes, 64, g + k * grad.step, kTile * grad.row, grad.stride);
  keep<R, G>(sums, 64);
  written();
}

void panels_grad_weight(const Bf16Panels& w, const Bf16Columns& x, const Tiles& grad, uint16_t* grad_weight, void* room, int64_t begin, int64_t end) {
  alignas(64) float sums[4 * 256];
  char* gathered = static_cast<char*>(room);  // [2][K tiles]
  const TileConfig config(kTile, kTileDepth, kTile);
  for (int64_t panel = begin; panel < end; ++panel)
    for (int64_t f = 0; f < w.fan_in; f += 2 * kTile) {
      const int64_t count = smaller(2 * kTile, w.fan_in - f);
      for (int64_t i = 0; i < 2 * kTile; ++i) {  // inputs that do not exist are the last one again, and nobody's
        const char* from = pieces(x, w.entries[2 * (panel * w.fan_in + f + smaller(i, count - 1))]);
        char* to = gathered + i / kTile * x.k_tiles * kTileBytes + i % kTile * 64;
        for (int64_t k = 0; k < x.k_tiles; ++k) _mm512_store_si512(to + k * kTileBytes, _mm512_load_si512(from + k * kTileBytes));
      }
      written();
      for (int64_t o = 0; o < w.outputs; o += 2 * kTile) {
        const bool two = o + kTile < w.outputs;
        if (two)
          weight_sums<2, 2>(gathered, grad, x.k_tiles, sums, panel * w.outputs + o);
        else
          weight_sums<2, 1>(gathered, grad, x.k_tiles, sums, panel * w.outputs + o);
        uint16_t* to = grad_weight + (panel * w.fan_in + f) * w.outputs + o;
        for (int64_t i = 0; i < count; ++i, to += w.outputs) {
          const float* from = sums + i / kTile * 512 + i % kTile * W;
          store_bf16(to, load(from), kTile);
          if (two) store_bf16(to + kTile, load(from + 256), kTile);
        }
      }
    }
}

}  // namespace

extern const PanelKernels panel_kernels;
const PanelKernels panel_kernels{panels, panels_grad_x, panels_grad_weight};

}  // namespace sk::amx
