// Matrix tiles of AMX (amx_*.cpp only): configuration, one product step, and the way out of a tile.
#pragma once
#include <immintrin.h>

#include "core/sparse_linear_bf16.h"
#include "core/transpose.h"

namespace sk::amx {
namespace {

// Tiles 0-3 sum (0 + 2*weight tile + row group), 4-5 are left factors, 6-7 right factors.
class TileConfig {
 public:
  TileConfig(int64_t left_rows, int64_t depth, int64_t right_columns) {
    for (int i = 0; i < 8; ++i) {
      data_.rows[i] = uint8_t(i < 6 ? left_rows : depth / 2);
      data_.row_bytes[i] = uint16_t(i == 4 || i == 5 ? depth * 2 : right_columns * 4);
    }
    asm volatile("ldtilecfg %0" ::"m"(data_));
  }
  ~TileConfig() { asm volatile("tilerelease" ::); }
  TileConfig(const TileConfig&) = delete;

 private:
  struct {
    uint8_t palette = 1, start = 0, reserved[14] = {};
    uint16_t row_bytes[16] = {};
    uint8_t rows[16] = {};
  } data_;
};

// Tile loads do not tell the compiler what they read: everything written so far must be in memory.
SK_INLINE void written() { asm volatile("" ::: "memory"); }

template <int R, int G>
SK_INLINE void clear() {
  _tile_zero(0);
  if constexpr (G > 1) _tile_zero(1);
  if constexpr (R > 1) _tile_zero(2);
  if constexpr (R > 1 && G > 1) _tile_zero(3);
}

struct Nothing {
  SK_INLINE void operator()(int) const {}
};

// A tile of x. PassBy: without driving others out of the first-level cache.
#define SK_LOAD_X(tile, from)                 \
  if constexpr (PassBy)                       \
    _tile_stream_loadd(tile, from, x_stride); \
  else                                        \
    _tile_loadd(tile, from, x_stride)

// R weight tiles times G row groups of x. WeightLeft: sums are [outputs][rows of x], else [rows of x][outputs]. between(0..3): other
// work, to be done while the tiles multiply; in pieces, for the processor looks ahead some hundred operations only.
template <bool WeightLeft, int R, int G, bool PassBy = false, class F = Nothing>
SK_INLINE void multiply(const char* w, int64_t w_next, int64_t w_stride, const char* x, int64_t x_next, int64_t x_stride, const F& between = F()) {
  if constexpr (WeightLeft) {
    _tile_loadd(4, w, w_stride);
    SK_LOAD_X(6, x);
    _tile_dpbf16ps(0, 4, 6);
    between(0);
    if constexpr (R > 1) {
      _tile_loadd(5, w + w_next, w_stride);
      _tile_dpbf16ps(2, 5, 6);
    }
    between(1);
    if constexpr (G > 1) {
      SK_LOAD_X(7, x + x_next);
      _tile_dpbf16ps(1, 4, 7);
    }
    between(2);
    if constexpr (R > 1 && G > 1) _tile_dpbf16ps(3, 5, 7);
    between(3);
  } else {
    _tile_loadd(6, w, w_stride);
    SK_LOAD_X(4, x);
    _tile_dpbf16ps(0, 4, 6);
    between(0);
    if constexpr (R > 1) {
      _tile_loadd(7, w + w_next, w_stride);
      _tile_dpbf16ps(2, 4, 7);
    }
    between(1);
    if constexpr (G > 1) {
      SK_LOAD_X(5, x + x_next);
      _tile_dpbf16ps(1, 5, 6);
    }
    between(2);
    if constexpr (R > 1 && G > 1) _tile_dpbf16ps(3, 5, 7);
    between(3);
  }
}

// The sums, [tile][16][16] floats, to memory and back.
template <int R, int G>
SK_INLINE void keep(float* sums, int64_t stride) {
  _tile_stored(0, sums, stride);
  if constexpr (G > 1) _tile_stored(1, sums + 256, stride);
  if constexpr (R > 1) _tile_stored(2, sums + 512, stride);
  if constexpr (R > 1 && G > 1) _tile_stored(3, sums + 768, stride);
}
template <int R, int G>
SK_INLINE void resume(const float* sums, int64_t stride) {
  _tile_loadd(0, sums, stride);
  if constexpr (G > 1) _tile_loadd(1, sums + 256, stride);
  if constexpr (R > 1) _tile_loadd(2, sums + 512, stride);
  if constexpr (R > 1 && G > 1) _tile_loadd(3, sums + 768, stride);
}

SK_INLINE float value(uint16_t bf16) {
  const uint32_t u = uint32_t(bf16) << 16;
  float v;
  __builtin_memcpy(&v, &u, 4);
  return v;
}
SK_INLINE vf load_bf16(const uint16_t* p, int64_t n) {
  const __m256i v = _mm256_maskz_loadu_epi16(__mmask16((1u << n) - 1), p);
  return reinterpret_cast<vf>(_mm512_slli_epi32(_mm512_cvtepu16_epi32(v), 16));
}
SK_INLINE void store_bf16(uint16_t* p, vf v, int64_t n) {
  const __m256i h = (__m256i)_mm512_cvtneps_pbh(reinterpret_cast<__m512>(v));
  if (n == 16)
    _mm256_storeu_si256(reinterpret_cast<__m256i*>(p), h);
  else
    _mm256_mask_storeu_epi16(p, __mmask16((1u << n) - 1), h);
}

// One tile of sums to y: outputs [o, o + outputs), rows of x [n, n + count).
template <bool WeightLeft>
__attribute__((noinline)) void write(const float* sums, const Bf16Out& out, int64_t o, int64_t outputs, int64_t n, int64_t count) {
  const bool natural = out.col == 1;
  vf t[W];
  SK_UNROLL for (int i = 0; i < W; ++i) t[i] = load(sums + i * W);
  if (WeightLeft == natural) transpose(t);  // lanes along the contiguous side of y
  if (natural) {
    const vf bias = out.bias ? load_bf16(out.bias + o, outputs) : zero();
    uint16_t* y = out.y + n * out.row + o;
    if (count == kTile && outputs == kTile) {
      SK_UNROLL for (int i = 0; i < W; ++i) store_bf16(y + i * out.row, t[i] + bias, kTile);
      return;
    }
    for (int64_t i = 0; i < count; ++i) store_bf16(y + i * out.row, t[i] + bias, outputs);
  } else {
    for (int64_t i = 0; i < outputs; ++i) store_bf16(out.y + (o + i) * out.col + n, t[i] + splat(out.bias ? value(out.bias[o + i]) : 0.0f), count);
  }
}
// Two whole tiles, weight right, natural y: 32 outputs in a row.
SK_INLINE void write_two(const float* sums, const Bf16Out& out, int64_t o, int64_t n) {
  const vf low = out.bias ? load_bf16(out.bias + o, kTile) : zero(), high = out.bias ? load_bf16(out.bias + o + kTile, kTile) : zero();
  uint16_t* y = out.y + n * out.row + o;
  SK_UNROLL for (int i = 0; i < W; ++i) {
    const vf a = load(sums + i * W) + low, b = load(sums + 512 + i * W) + high;
    _mm512_storeu_si512(y + i * out.row, (__m512i)_mm512_cvtne2ps_pbh(reinterpret_cast<__m512>(b), reinterpret_cast<__m512>(a)));
  }
}
// A single row of x, weight left: the sums are a column of 16 outputs, stored one behind the other.
SK_INLINE void write_row(const float* sums, const Bf16Out& out, int64_t o, int64_t outputs) {
  const vf bias = out.bias ? load_bf16(out.bias + o, outputs) : zero();
  const vf v = load(sums) + bias;
  if (out.col == 1) return store_bf16(out.y + o, v, outputs);
  alignas(64) uint16_t y[16];
  store_bf16(y, v, 16);
  for (int64_t i = 0; i < outputs; ++i) out.y[(o + i) * out.col] = y[i];
}

// Two groups of rows of x, or one.
struct Groups {
  int64_t n[2];
  int64_t next;  // bytes from the first to the second
  Groups(const Tiles& x, int64_t g) : n{x.start(g), x.start(g + 1)}, next((n[1] - n[0]) * x.row) {}
};

}  // namespace
}  // namespace sk::amx
