// grouped_conv2d in bf16 on matrix tiles: the copy of an image, the weights in tile order, and the products. See grouped_conv2d_tiles.h.
#include "core/amx_tiles.h"
#include "core/grouped_conv2d_tiles.h"

namespace sk::amx {
namespace {

SK_INLINE int64_t smaller(int64_t a, int64_t b) { return a < b ? a : b; }
SK_INLINE __mmask32 first(int64_t n) { return n >= 32 ? ~__mmask32(0) : __mmask32((uint64_t(1) << n) - 1); }

// ---------------------------------------------------------------- the copy

SK_INLINE void zeros(uint16_t* to, int64_t count) {
  for (int64_t i = 0; i < count; i += 32) _mm512_mask_storeu_epi16(to + i, first(count - i), _mm512_setzero_si512());
}

// One pixel to a slot.
void copy_pixels(const ConvTileRow r) {
  const uint16_t* from = r.from;
  zeros(r.to, r.left * r.slot);
  uint16_t* to = r.to + r.left * r.slot;
  if (r.slot == 32) {
    const __mmask32 exist = first(r.channels);
    for (int64_t p = 0; p < r.count; ++p, from += r.step, to += 32) _mm512_storeu_si512(to, _mm512_maskz_loadu_epi16(exist, from));
  } else {
    for (int64_t p = 0; p < r.count; ++p, from += r.step, to += r.slot)
      for (int64_t c = 0; c < r.slot; c += 32)
        _mm512_storeu_si512(to + c, _mm512_maskz_loadu_epi16(c < r.channels ? first(r.channels - c) : __mmask32(0), from + c));
  }
  zeros(to, r.right * r.slot);
}

// Two pixels of 16 values to a slot.
void copy_two(const ConvTileRow r) {
  const int64_t count = r.left + r.count + r.right;
  const __mmask16 exist = __mmask16(first(r.channels));
  const auto pixel = [&](int64_t p) __attribute__((always_inline)) {
    const uint64_t i = uint64_t(p - r.left);
    return i < uint64_t(r.count) ? _mm256_maskz_loadu_epi16(exist, r.from + int64_t(i) * r.step) : _mm256_setzero_si256();
  };
  __m256i now = pixel(0);
  for (int64_t p = 0; p < count; ++p) {
    const __m256i next = pixel(p + 1);
    _mm512_storeu_si512(r.to + p * 32, _mm512_inserti64x4(_mm512_castsi256_si512(now), next, 1));
    now = next;
  }
}

// Every pixel, of 32 values at most, to the slots that hold it; the last pixel of a slot brings the zeros behind it.
void copy(const ConvTileRow& row) {
  const ConvTileRow r = row;  // stores might change the other one
  if (r.pixels == 1) return copy_pixels(r);
  if (r.pixels == 2 && r.width == 16) return copy_two(r);
  const int64_t count = r.left + r.count + r.right, last = (r.pixels - 1) * r.width, rest = r.slot - last;
  const __mmask32 exist = first(r.channels);
  const auto store_first = [](uint16_t* to, __m512i v, int64_t n) __attribute__((always_inline)) {
    if (n <= 16)  // a store that reaches over a line is slow, wanted there or not
      _mm256_mask_storeu_epi16(to, __mmask16(first(n)), _mm512_castsi512_si256(v));
    else
      _mm512_mask_storeu_epi16(to, first(n), v);
  };
  for (int64_t p = 0; p < count + r.pixels - 1; ++p) {
    const uint64_t at = uint64_t(p - r.left);
    __m512i v = _mm512_setzero_si512();
    if (at < uint64_t(r.count)) {
      const uint16_t* from = r.from + int64_t(at) * r.step;
      v = r.width <= 16 ? _mm512_castsi256_si512(_mm256_maskz_loadu_epi16(__mmask16(exist), from)) : _mm512_maskz_loadu_epi16(exist, from);
      if (r.width <= 16) v = _mm512_inserti64x4(v, _mm256_setzero_si256(), 1);
    }
    uint16_t* to = r.to + p * r.slot;  // later slots hold it earlier
    for (int64_t i = 0; i + 1 < r.pixels; ++i, to -= r.slot - r.width)
      if (uint64_t(p - i) < uint64_t(count)) store_first(to, v, r.width);
    if (uint64_t(p + 1 - r.pixels) >= uint64_t(count)) continue;
    store_first(to, v, smaller(rest, 32));
    if (rest > 32) zeros(to + 32, rest - 32);
  }
}

// ---------------------------------------------------------------- the weights

// Pairs of columns of the weight rows, [columns/2][16 rows]: 32-bit words move like floats.
SK_INLINE void transpose_rows(const ConvTileWeights& w) {
  for (int64_t c = 0; c < w.columns; c += 32) {
    const __mmask32 exist = first(w.columns - c);
    vf square[W];
    if (w.count == kTile) {
      SK_UNROLL for (int r = 0; r < W; ++r) square[r] = reinterpret_cast<vf>(_mm512_maskz_loadu_epi16(exist, w.weight + r * w.columns + c));
    } else {
      for (int64_t r = 0; r < W; ++r)
        square[r] = r < w.count ? reinterpret_cast<vf>(_mm512_maskz_loadu_epi16(exist, w.weight + r * w.columns + c)) : zero();
    }
    transpose(square);
    float* to = reinterpret_cast<float*>(w.room) + c / 2 * W;
    SK_UNROLL for (int i = 0; i < W; ++i) store(to + i * W, square[i]);
  }
}

void pack(const ConvTileWeights& w) {
  transpose_rows(w);
  const __m512i low_half = _mm512_set1_epi32(0xffff);
  const auto words = [&](int32_t column) __attribute__((always_inline)) { return _mm512_loadu_si512(w.room + column / 2 * W); };
  for (int64_t i = 0; i < w.pair_count; ++i) {
    const ConvTilePair& p = w.pairs[i];
    __m512i v = _mm512_setzero_si512();
    if (p.low >= 0 && p.high == p.low + 1 && p.low % 2 == 0 && p.low_group == p.high_group) {
      v = _mm512_maskz_mov_epi32(__mmask16(w.lanes[p.low_group]), words(p.low));
    } else {
      if (p.low >= 0) {
        const __m512i pair = words(p.low), low = p.low % 2 ? _mm512_srli_epi32(pair, 16) : _mm512_and_si512(pair, low_half);
        v = _mm512_maskz_mov_epi32(__mmask16(w.lanes[p.low_group]), low);
      }
      if (p.high >= 0) {
        const __m512i pair = words(p.high), high = p.high % 2 ? _mm512_andnot_si512(low_half, pair) : _mm512_slli_epi32(pair, 16);
        v = _mm512_or_si512(v, _mm512_maskz_mov_epi32(__mmask16(w.lanes[p.high_group]), high));
      }
    }
    _mm512_storeu_si512(w.to + i * kTileDepth, v);
  }
}

// ---------------------------------------------------------------- the products

// Sums of M x 16 positions and 16 output channels, from position tile m on, in tiles 0..M-1.
template <int M>
SK_INLINE void sum(const ConvTileWork& w, const uint16_t* weight, int64_t m) {
  const auto at = [&](int64_t i) { return w.x + smaller((m + i) * kTile, w.last) * w.pixel; };
  const char *x0 = at(0), *x1 = at(M > 1 ? 1 : 0), *x2 = at(M > 2 ? 2 : 0), *x3 = at(M > 3 ? 3 : 0);
  _tile_zero(0);
  if constexpr (M > 1) _tile_zero(1);
  if constexpr (M > 2) _tile_zero(2);
  if constexpr (M > 3) _tile_zero(3);
  for (int64_t s = 0; s < w.steps; ++s, weight += kTile * kTileDepth) {
    const int64_t offset = w.offset[s];
    _tile_loadd(6, weight, 64);
    _tile_loadd(4, x0 + offset, w.pixel);
    _tile_dpbf16ps(0, 4, 6);
    if constexpr (M > 1) {
      _tile_loadd(5, x1 + offset, w.pixel);
      _tile_dpbf16ps(1, 5, 6);
    }
    if constexpr (M > 2) {
      _tile_loadd(7, x2 + offset, w.pixel);
      _tile_dpbf16ps(2, 7, 6);
    }
    if constexpr (M > 3) {
      _tile_loadd(4, x3 + offset, w.pixel);
      _tile_dpbf16ps(3, 4, 6);
    }
  }
}

// One tile of sums [16 positions][16 channels] to the output.
SK_INLINE void write_positions(const ConvTileWork& w, const float* sums, int64_t position, int64_t o, vf bias) {
  const __mmask16 channels = __mmask16((1u << smaller(kTile, w.channels - o)) - 1);
  const vf floor = w.relu ? zero() : splat(-__builtin_inff());
  const int64_t count = smaller(kTile, w.positions - position);
  for (int64_t i = 0; i < count; ++i) {
    const int64_t place = w.place ? w.place[position + i] : position + i;
    const __mmask16 lanes = place < 0 ? 0 : channels;
    const int64_t to = (place < 0 ? 0 : place) * w.out_pixel + o;
    vf v = load(sums + i * W) + bias;
    if (w.shortcut) v += reinterpret_cast<vf>(_mm512_slli_epi32(_mm512_cvtepu16_epi32(_mm256_maskz_loadu_epi16(lanes, w.shortcut + to)), 16));
    // max with the sum second keeps NaN
    const __m512 value = _mm512_max_ps(reinterpret_cast<__m512>(floor), reinterpret_cast<__m512>(v));
    _mm256_mask_storeu_epi16(w.out + to, lanes, (__m256i)_mm512_cvtneps_pbh(value));
  }
}

template <int M>
SK_INLINE void tile_block(const ConvTileWork& w, const uint16_t* weight, int64_t m, int64_t o) {
  const vf bias = w.bias ? load_bf16(w.bias + o, smaller(kTile, w.channels - o)) : zero();
  alignas(64) float sums[4 * kTile * kTile];
  written();
  sum<M>(w, weight, m);
  _tile_stored(0, sums, 64);
  if constexpr (M > 1) _tile_stored(1, sums + 256, 64);
  if constexpr (M > 2) _tile_stored(2, sums + 512, 64);
  if constexpr (M > 3) _tile_stored(3, sums + 768, 64);
  written();
  for (int64_t i = 0; i < M; ++i) write_positions(w, sums + 256 * i, smaller((m + i) * kTile, w.last), o, bias);
}

// ---- 32 output channels at once: half the stores, and a tile of positions serves two products

// In tiles 0..3: position tile 0 and 1 of the first 16 channels, then of the others.
template <int M>
SK_INLINE void sum_two(const ConvTileWork& w, const uint16_t* weight, int64_t m) {
  const auto at = [&](int64_t i) { return w.x + smaller((m + i) * kTile, w.last) * w.pixel; };
  const char *x0 = at(0), *x1 = at(M - 1);
  const uint16_t* other = weight + w.steps * kTile * kTileDepth;
  const int64_t steps = w.steps, pixel = w.pixel;
  const int64_t* offsets = w.offset;
  _tile_zero(0);
  _tile_zero(2);
  if constexpr (M > 1) _tile_zero(1);
  if constexpr (M > 1) _tile_zero(3);
  for (int64_t s = 0; s < steps; ++s, weight += kTile * kTileDepth, other += kTile * kTileDepth) {
    const int64_t offset = offsets[s];
    _tile_loadd(4, x0 + offset, pixel);
    _tile_loadd(6, weight, 64);
    _tile_dpbf16ps(0, 4, 6);
    _tile_loadd(7, other, 64);
    _tile_dpbf16ps(2, 4, 7);
    if constexpr (M > 1) {
      _tile_loadd(5, x1 + offset, pixel);
      _tile_dpbf16ps(1, 5, 6);
      _tile_dpbf16ps(3, 5, 7);
    }
  }
}

// Two tiles of sums, [2][16 positions][16 channels] `apart` floats from each other, to the output.
SK_INLINE void write_two_positions(const ConvTileWork& work, const float* sums, int64_t apart, int64_t position, int64_t o, vf low, vf high) {
  const int64_t count = smaller(kTile, work.positions - position), out_pixel = work.out_pixel;
  const int32_t* place = work.place ? work.place + position : nullptr;
  const __mmask32 channels = first(work.channels - o);
  const __m512 floor = reinterpret_cast<__m512>(work.relu ? zero() : splat(-__builtin_inff()));
  const uint16_t* shortcut = work.shortcut ? work.shortcut + o : nullptr;
  uint16_t* out = work.out + o;
  for (int64_t i = 0; i < count; ++i) {
    const int64_t pixel = place ? place[i] : position + i;
    if (pixel < 0) continue;
    vf a = load(sums + i * W) + low, b = load(sums + apart + i * W) + high;
    if (shortcut) {
      const __m512i v = _mm512_maskz_loadu_epi16(channels, shortcut + pixel * out_pixel);
      a += reinterpret_cast<vf>(_mm512_slli_epi32(_mm512_cvtepu16_epi32(_mm512_castsi512_si256(v)), 16));
      b += reinterpret_cast<vf>(_mm512_slli_epi32(_mm512_cvtepu16_epi32(_mm512_extracti64x4_epi64(v, 1)), 16));
    }
    // max with the sum second keeps NaN
    const __m512 first_half = _mm512_max_ps(floor, reinterpret_cast<__m512>(a)), second_half = _mm512_max_ps(floor, reinterpret_cast<__m512>(b));
    _mm512_mask_storeu_epi16(out + pixel * out_pixel, channels, (__m512i)_mm512_cvtne2ps_pbh(second_half, first_half));
  }
}

template <int M>
SK_INLINE void tile_block_two(const ConvTileWork& w, const uint16_t* weight, int64_t m, int64_t o) {
  const vf low = w.bias ? load_bf16(w.bias + o, kTile) : zero(),
           high = w.bias ? load_bf16(w.bias + o + kTile, smaller(kTile, w.channels - o - kTile)) : zero();
  alignas(64) float sums[4 * kTile * kTile];
  written();
  sum_two<M>(w, weight, m);
  _tile_stored(0, sums, 64);
  if constexpr (M > 1) _tile_stored(1, sums + 256, 64);
  _tile_stored(2, sums + 512, 64);
  if constexpr (M > 1) _tile_stored(3, sums + 768, 64);
  written();
  for (int64_t i = 0; i < M; ++i) write_two_positions(w, sums + 256 * i, 512, smaller((m + i) * kTile, w.last), o, low, high);
}

void compute(const ConvTileWork* work, int64_t count) {
  const TileConfig config(kTile, kTileDepth, kTile);
  for (const ConvTileWork* w = work; w < work + count; ++w) {
    const int64_t tiles = (w->positions + kTile - 1) / kTile, block = w->steps * kTile * kTileDepth;
    // the positions of a block stay in the first-level cache while all weights pass by
    for (int64_t m = 0; m < tiles; m += 4) {
      const uint16_t* weight = w->weight;
      int64_t o = 0;
      for (; o + kTile < w->channels; o += 2 * kTile, weight += 2 * block)
        for (int64_t i = m; i < smaller(m + 4, tiles); i += 2) {
          if (i + 1 < tiles)
            tile_block_two<2>(*w, weight, i, o);
          else
            tile_block_two<1>(*w, weight, i, o);
        }
      if (o >= w->channels) continue;
      switch (tiles - m) {
        case 1: tile_block<1>(*w, weight, m, o); break;
        case 2: tile_block<2>(*w, weight, m, o); break;
        case 3: tile_block<3>(*w, weight, m, o); break;
        default: tile_block<4>(*w, weight, m, o);
      }
    }
  }
}

}  // namespace

extern const ConvTileKernels conv_tile_kernels = {copy, pack, compute};

}  // namespace sk::amx
