// The weight gradient of grouped_conv2d in bf16 on matrix tiles: positions in pairs, and the products. See grouped_conv2d_tiles.h.
#include "core/amx_tiles.h"
#include "core/grouped_conv2d_tiles.h"

namespace sk::amx {
namespace {

constexpr int kTerms = 5;  // tiles of sums; 5 and 7 take x, 6 the gradient

void line(const ConvTileLine& line) {
  const ConvTileLine l = line;  // stores might change the other one
  const __mmask16 exist = __mmask16((1u << l.channels) - 1);
  const auto value_at = [&](int64_t p) __attribute__((always_inline)) {
    const uint64_t i = uint64_t(p - l.left);
    return i < uint64_t(l.count) ? _mm512_cvtepu16_epi32(_mm256_maskz_loadu_epi16(exist, l.from + int64_t(i) * l.step)) : _mm512_setzero_si512();
  };
  const int64_t positions = l.left + l.count + l.right;
  uint16_t* to = l.to;
  __m512i now = _mm512_loadu_si512(to);
  for (int64_t p = 0; p < positions; ++p, to += kTileDepth) {
    const __m512i next = value_at(p);
    _mm512_storeu_si512(to, _mm512_or_si512(now, _mm512_slli_epi32(next, 16)));
    now = next;
  }
  _mm512_storeu_si512(to, now);
}

void turn(const uint16_t* line, int64_t blocks, uint16_t* grad) {
  for (int64_t b = 0; b < blocks; ++b, line += 2 * kTile * kTileDepth, grad += kTile * kTileDepth) {
    vf square[W];  // pairs of positions move like floats
    SK_UNROLL for (int i = 0; i < W; ++i) square[i] = load(reinterpret_cast<const float*>(line + 2 * i * kTileDepth));
    transpose(square);
    SK_UNROLL for (int i = 0; i < W; ++i) store(reinterpret_cast<float*>(grad + i * kTileDepth), square[i]);
  }
}

template <int N>
void multiply_terms(const ConvTileGrad& w, int64_t first) {
  constexpr int64_t kRow = kTileDepth * 2, kSquare = kTile * kTile;
  float* sums = w.sums + first * kSquare;
  _tile_loadd(0, sums, 64);
  if constexpr (N > 1) _tile_loadd(1, sums + kSquare, 64);
  if constexpr (N > 2) _tile_loadd(2, sums + 2 * kSquare, 64);
  if constexpr (N > 3) _tile_loadd(3, sums + 3 * kSquare, 64);
  if constexpr (N > 4) _tile_loadd(4, sums + 4 * kSquare, 64);
  const char *x = reinterpret_cast<const char*>(w.x), *grad = reinterpret_cast<const char*>(w.grad);
  const int64_t *o = w.offset + first, o0 = o[0], o1 = o[N > 1], o2 = o[N > 2 ? 2 : 0], o3 = o[N > 3 ? 3 : 0], o4 = o[N > 4 ? 4 : 0];
  for (int64_t b = 0; b < w.blocks; ++b, grad += kTile * kRow, x += 2 * kTile * kRow) {
    _tile_loadd(6, grad, kRow);
    _tile_loadd(7, x + o0, 2 * kRow);
    _tile_dpbf16ps(0, 6, 7);
    if constexpr (N > 1) {
      _tile_loadd(5, x + o1, 2 * kRow);
      _tile_dpbf16ps(1, 6, 5);
    }
    if constexpr (N > 2) {
      _tile_loadd(7, x + o2, 2 * kRow);
      _tile_dpbf16ps(2, 6, 7);
    }
    if constexpr (N > 3) {
      _tile_loadd(5, x + o3, 2 * kRow);
      _tile_dpbf16ps(3, 6, 5);
    }
    if constexpr (N > 4) {
      _tile_loadd(7, x + o4, 2 * kRow);
      _tile_dpbf16ps(4, 6, 7);
    }
  }
  _tile_stored(0, sums, 64);
  if constexpr (N > 1) _tile_stored(1, sums + kSquare, 64);
  if constexpr (N > 2) _tile_stored(2, sums + 2 * kSquare, 64);
  if constexpr (N > 3) _tile_stored(3, sums + 3 * kSquare, 64);
  if constexpr (N > 4) _tile_stored(4, sums + 4 * kSquare, 64);
}

void multiply(const ConvTileGrad& work) {
  const TileConfig config(kTile, kTileDepth, kTile);
  written();
  for (int64_t left = work.terms, parts = (left + kTerms - 1) / kTerms, first = 0, n; left > 0; left -= n, first += n, --parts) {
    n = (left + parts - 1) / parts;
    switch (n) {
      case 1: multiply_terms<1>(work, first); break;
      case 2: multiply_terms<2>(work, first); break;
      case 3: multiply_terms<3>(work, first); break;
      case 4: multiply_terms<4>(work, first); break;
      default: multiply_terms<5>(work, first);
    }
  }
  written();
}

}  // namespace

extern const ConvTileGradKernels conv_tile_grad_kernels = {line, turn, multiply};

}  // namespace sk::amx
