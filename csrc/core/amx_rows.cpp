// sparse_linear in bf16 on matrix tiles, unstructured: weights are expanded, tile by tile, into a strip that stays in the first-level
// cache while all rows of x pass by it. See sparse_linear_bf16.h for the words, amx_tiles.h for a tile's product.
#include "core/amx_tiles.h"

namespace sk::amx {
namespace {

SK_INLINE int64_t smaller(int64_t a, int64_t b) { return a < b ? a : b; }

constexpr int64_t kStripTiles = 8;               // along K: a strip of 2 x 8 tiles, 16 KB, and some of x fit into L1
constexpr int64_t kLongStrip = kStripTiles + 2;  // the last one, rather than a short one behind it
constexpr int64_t kTileValues = 512;             // bf16 in a tile
constexpr int64_t kStripStep = 2 * kTileValues;  // from one K tile of a strip to the next; two tiles, 32 outputs, lie in between
constexpr int64_t kMostGroupPairs = 16;          // of rows of x, in one call

SK_INLINE int64_t strip_tiles(int64_t left) { return left <= kLongStrip ? left : kStripTiles; }

SK_INLINE void prefetch(const void* p) { _mm_prefetch(static_cast<const char*>(p), _MM_HINT_T0); }

// The weights of the set bits, in order, with zeros between them.
SK_INLINE void expand(uint32_t mask, const uint16_t*& from, uint16_t* to) {
  _mm512_store_si512(to, _mm512_maskz_expandloadu_epi16(mask, from));
  from += __builtin_popcount(mask);
}

struct PanelWork {
  const Tiles& x;
  int64_t columns;
  const Bf16Out& out;
  int64_t o, outputs, groups;
  float* sums;  // [pairs of groups][4][256]
};

SK_INLINE void transpose_tile_at(float* sums) {
  vf t[W];
  SK_UNROLL for (int i = 0; i < W; ++i) t[i] = load(sums + i * W);
  transpose(t);
  SK_UNROLL for (int i = 0; i < W; ++i) store(sums + i * W, t[i]);
}
// The finished sums of one or two row groups of x and one or two output tiles.
template <bool WeightLeft>
SK_INLINE void write_sums(const PanelWork& p, float* sums, const Groups& at, int64_t groups) {
  for (int64_t i = 0; i < groups; ++i, sums += 256) {
    const int64_t n = at.n[i], count = smaller(kTile, p.out.count - n);
    if (WeightLeft && p.columns == 1) {
      for (int64_t r = 0; r * kTile < p.outputs; ++r) write_row(sums + 512 * r, p.out, p.o + r * kTile, smaller(kTile, p.outputs - r * kTile));
    } else if (p.outputs == 2 * kTile && p.out.col == 1 && count == kTile) {
      if (WeightLeft) transpose_tile_at(sums), transpose_tile_at(sums + 512);
      write_two(sums, p.out, p.o, n);
    } else {
      for (int64_t r = 0; r * kTile < p.outputs; ++r)
        write<WeightLeft>(sums + 512 * r, p.out, p.o + r * kTile, smaller(kTile, p.outputs - r * kTile), n, count);
    }
  }
}

// The weights of 32 outputs after 32 outputs, each strip of them once and in order.
//
// Packed: two streams of tiles. A tile is expanded where the last user of the one before it has just left, so that the vector unit
// expands while the tiles multiply.
class PackedStrips {
 public:
  PackedStrips(const Bf16Rows& w, int64_t panel, int64_t end, uint16_t* strip) : w_(w), panel_(panel), end_(end), strip_(strip) {
    next_panel();
    for (int64_t k = 0; k < strip_tiles(w.k_tiles); ++k, next()) SK_UNROLL for (int q = 0; q < 4; ++q) quarter(k, q);
  }
  static constexpr bool kInPlace = true, kWeightLeft = false;
  static int64_t panels(int64_t) { return 1; }
  // Of K tile k of the strip to come the quarter q, 0..3: 4 pairs of inputs.
  SK_INLINE void quarter(int64_t k, int q) {
    constexpr int64_t kFar = 512;  // bytes: half a tile without zeros
    SK_UNROLL for (int h = 0; h < 2; ++h) {
      prefetch(reinterpret_cast<const char*>(from_[h]) + kFar);
      prefetch(reinterpret_cast<const char*>(from_[h]) + kFar + 64);
      uint16_t* to = strip_ + k * kStripStep + h * kTileValues;
      SK_UNROLL for (int i = 4 * q; i < 4 * q + 4; ++i) expand(mask_[h][i], from_[h], to + i * kTileDepth);
    }
  }
  SK_INLINE void next() {
    mask_[0] += kTile, mask_[1] += kTile;
    if (--left_ == 0) ++panel_, next_panel();
  }
  void begin(int64_t, int64_t, int64_t) {}
  void write(const PanelWork& p, float* sums, const Groups& at, int64_t groups) const { write_sums<kWeightLeft>(p, sums, at, groups); }

 private:
  void next_panel() {
    left_ = w_.k_tiles;
    for (int64_t h = 0; h < 2; ++h) {  // outputs that do not exist are the last ones again, and nobody's; so is what follows the last panel
      const int64_t tile = smaller(2 * smaller(panel_, end_ - 1) + h, (w_.rows - 1) / kTile);
      from_[h] = w_.weight + w_.ptr[tile], mask_[h] = w_.mask + tile * w_.k_tiles * kTile;
    }
  }

  const Bf16Rows& w_;
  int64_t panel_, end_, left_ = 0;
  uint16_t* strip_;
  const uint16_t* from_[2];
  const uint32_t* mask_[2];
};

// Natural: every output has a row of its own. Transposed: into pairs of inputs x 16 outputs, in place.
template <bool Transposed>
class NaturalStrips {
 public:
  static constexpr bool kInPlace = false, kWeightLeft = !Transposed;
  static int64_t panels(int64_t) { return 1; }
  NaturalStrips(const Bf16Rows& w, int64_t, int64_t, uint16_t* strip) : w_(w), strip_(strip) {}

  // K tiles [k0, k0 + count) of a panel.
  SK_INLINE void begin(int64_t panel, int64_t k0, int64_t count) {
    for (int64_t i = 0; i < 2 * kTile; ++i) {
      const int64_t row = smaller(panel * 2 * kTile + i, w_.rows - 1);  // an output that does not exist is the last one again, and nobody's
      if (k0 == 0) from_[i] = w_.weight + row * w_.fan_in;
      const uint32_t* mask = w_.mask + row * w_.k_tiles + k0;
      const uint16_t* from = from_[i];
      uint16_t* to = strip_ + i * kTileDepth;
      if (count == kStripTiles) {
        SK_UNROLL for (int k = 0; k < kStripTiles; ++k) expand(mask[k], from, to + k * kStripStep);
      } else {
        for (int64_t k = 0; k < count; ++k) expand(mask[k], from, to + k * kStripStep);
      }
      from_[i] = from;
      prefetch(from + 8), prefetch(from + 40), prefetch(from + 72);
    }
    if (Transposed) transpose_strip(2 * count);
  }
  void quarter(int64_t, int) {}
  void next() {}
  void write(const PanelWork& p, float* sums, const Groups& at, int64_t groups) const { write_sums<kWeightLeft>(p, sums, at, groups); }

 private:
  void transpose_strip(int64_t tiles) {
    for (int64_t k = 0; k < tiles; ++k) {
      transpose_tile_at(reinterpret_cast<float*>(strip_ + k * kTileValues));  // pairs of values move like floats
    }
  }

  const Bf16Rows& w_;
  uint16_t* strip_;
  const uint16_t* from_[2 * kTile];
};

// For grad_x: panels of 32 inputs, K tiles of 32 outputs. A word of the mask is an output's connections to a panel; two of them, paired,
// are a row of both tiles: within each 8 inputs, the first tile has the first 4 and the second one the last 4.
class InputStrips {
 public:
  static constexpr bool kInPlace = true, kWeightLeft = false;
  // Panels of a strip, one after another: its weights and bits come in whole cache lines. Few rows of x: one, the sums stay in the tiles.
  static int64_t panels(int64_t groups) { return groups > 2 ? kInputPanels : 1; }
  // places [rows]: room for where the next weights of each output are
  InputStrips(const Bf16Rows& w, int64_t inputs, int64_t begin, int64_t end, int64_t panels, uint16_t* strip, const uint16_t** places)
      : mask_(w.mask),
        words_(w.k_tiles),
        all_rows_(w.rows),
        inputs_(inputs),
        panels_(panels),
        panel_(begin),
        block_(begin),
        end_(end),
        rows_(w.rows),
        strip_(strip),
        places_(places) {
    for (int64_t row = 0; row < w.rows; ++row) {
      places[row] = w.weight + row * w.fan_in;
      for (int64_t i = 0; i < begin; ++i) places[row] += __builtin_popcount(w.mask[row * w.k_tiles + i]);
    }
    const int64_t first = strip_tiles((w.rows + kTileDepth - 1) / kTileDepth);
    strip_end_ = first * kTileDepth;
    for (int64_t k = 0; k < first; ++k, next()) SK_UNROLL for (int q = 0; q < 4; ++q) quarter(k, q);
  }
  void begin(int64_t, int64_t, int64_t) {}
  // 8 outputs.
  SK_INLINE void quarter(int64_t k, int q) {
    const int64_t first = row_ + 8 * q;
    const uint32_t* mask = mask_ + first * words_ + panel_;
    uint16_t* to = strip_ + k * kStripStep + 4 * q * kTileDepth;
    if (first + 8 <= rows_) {
      SK_UNROLL for (int i = 0; i < 8; i += 2, to += kTileDepth)
          pair(values(mask[i * words_], first + i), values(mask[(i + 1) * words_], first + i + 1), to);
    } else {
      const auto at = [&](int64_t i) { return first + i < rows_ ? values(mask[i * words_], first + i) : _mm512_setzero_si512(); };
      for (int64_t i = 0; i < 8; i += 2, to += kTileDepth) {
        const __m512i even = at(i);
        pair(even, at(i + 1), to);
      }
    }
  }
  SK_INLINE void next() {
    row_ += kTileDepth;
    if (row_ < strip_end_) return;
    if (++panel_ == smaller(block_ + panels_, end_)) {  // the next strip of these panels, or the next panels
      if (row_ < all_rows_) {
        strip_row_ = row_;
      } else {
        strip_row_ = 0, block_ = panel_;
        if (block_ == end_) rows_ = 0;  // there are no more
      }
      panel_ = block_;
    }
    row_ = strip_row_;
    strip_end_ = row_ + strip_tiles((all_rows_ - row_ + kTileDepth - 1) / kTileDepth) * kTileDepth;
  }
  SK_INLINE void write(const PanelWork& p, float* sums, const Groups& at, int64_t groups) const {
    // the last panel ends where the inputs end, and the first inputs of it are those of the panel before
    const int64_t fresh = smaller(kTileDepth, inputs_ - p.o), first = inputs_ < kTileDepth ? 0 : p.o + fresh - kTileDepth;
    const __mmask32 which = inputs_ < kTileDepth ? (1u << fresh) - 1 : ~__mmask32(0) << (kTileDepth - fresh);
    for (int64_t i = 0; i < groups; ++i, sums += 256) write_group(p.out, sums, first, which, at.n[i], smaller(kTile, p.out.count - at.n[i]));
  }

 private:
  SK_INLINE __m512i values(uint32_t mask, int64_t row) {
    const uint16_t* from = places_[row];
    places_[row] = from + __builtin_popcount(mask);
    return _mm512_maskz_expandloadu_epi16(mask, from);
  }
  static SK_INLINE void pair(__m512i even, __m512i odd, uint16_t* to) {
    _mm512_store_si512(to, _mm512_unpacklo_epi16(even, odd));
    _mm512_store_si512(to + kTileValues, _mm512_unpackhi_epi16(even, odd));
  }
  static SK_INLINE void write_group(const Bf16Out& out, const float* sums, int64_t first, __mmask32 which, int64_t n, int64_t count) {
    if (out.col == 1) {
      alignas(64) static constexpr uint16_t kOrder[32] = {0, 1, 2,  3,  16, 17, 18, 19, 4,  5,  6,  7,  20, 21, 22, 23,
                                                          8, 9, 10, 11, 24, 25, 26, 27, 12, 13, 14, 15, 28, 29, 30, 31};
      const __m512i order = _mm512_load_si512(kOrder);
      for (int64_t i = 0; i < count; ++i) {
        const __m512 a = reinterpret_cast<__m512>(load(sums + i * W)), b = reinterpret_cast<__m512>(load(sums + 512 + i * W));
        const __m512i v = _mm512_permutexvar_epi16(order, (__m512i)_mm512_cvtne2ps_pbh(b, a));
        _mm512_mask_storeu_epi16(out.y + (n + i) * out.row + first, which, v);
      }
      return;
    }
    for (int64_t half = 0; half < 2; ++half) {
      vf t[W];
      SK_UNROLL for (int i = 0; i < W; ++i) t[i] = load(sums + 512 * half + i * W);
      transpose(t);
      for (int64_t i = 0; i < W; ++i) {
        const int64_t input = i / 4 * 8 + half * 4 + i % 4;
        if (which >> input & 1) store_bf16(out.y + (first + input) * out.col + n, t[i], count);
      }
    }
  }

  const uint32_t* const mask_;
  const int64_t words_, all_rows_, inputs_, panels_;
  int64_t panel_, block_, end_, rows_, row_ = 0, strip_row_ = 0, strip_end_;
  uint16_t* strip_;
  const uint16_t** places_;
};

// ---- products

// As multiply(), but the weight tiles are in registers before between() may write where they came from.
template <bool WeightLeft, int R, int G, class F>
SK_INLINE void multiply_and_leave(const char* w, int64_t w_next, int64_t w_stride, const char* x, int64_t x_next, int64_t x_stride,
                                  const F& between) {
  if constexpr (WeightLeft) {
    _tile_loadd(4, w, w_stride);
    if constexpr (R > 1) _tile_loadd(5, w + w_next, w_stride);
    _tile_loadd(6, x, x_stride);
    if constexpr (G > 1) _tile_loadd(7, x + x_next, x_stride);
  } else {
    _tile_loadd(6, w, w_stride);
    if constexpr (R > 1) _tile_loadd(7, w + w_next, w_stride);
    _tile_loadd(4, x, x_stride);
    if constexpr (G > 1) _tile_loadd(5, x + x_next, x_stride);
  }
  written();
  _tile_dpbf16ps(0, 4, 6);
  between(0);
  if constexpr (R > 1 && WeightLeft) _tile_dpbf16ps(2, 5, 6);
  if constexpr (R > 1 && !WeightLeft) _tile_dpbf16ps(2, 4, 7);
  between(1);
  if constexpr (G > 1 && WeightLeft) _tile_dpbf16ps(1, 4, 7);
  if constexpr (G > 1 && !WeightLeft) _tile_dpbf16ps(1, 5, 6);
  between(2);
  if constexpr (R > 1 && G > 1) _tile_dpbf16ps(3, 5, 7);
  between(3);
  written();
}

// K tiles [k0, k0 + count), at hand in the strip, times row groups g and g + 1 of x; the last of the row groups leave room for the
// first `coming` tiles of the strip to come.
template <int R, int G, class Strips>
SK_INLINE void multiply_strip(const PanelWork& p, const uint16_t* strip, int64_t k0, int64_t count, bool last, int64_t coming, Strips& strips,
                              int64_t g) {
  constexpr bool WeightLeft = Strips::kWeightLeft;
  const bool stay = p.groups <= 2;  // the sums stay in the tiles
  const int64_t stride = WeightLeft && p.columns == 1 ? 4 : 64;
  const Groups at(p.x, g);
  float* sums = p.sums + g / 2 * 1024;
  if (k0 == 0)
    clear<R, G>();
  else if (!stay)
    resume<R, G>(sums, stride);
  written();
  const char* w = reinterpret_cast<const char*>(strip);
  int64_t k = 0;
  if (Strips::kInPlace && g + G == p.groups)
    for (; k < smaller(count, coming); ++k, w += kStripStep * 2) {
      multiply_and_leave<WeightLeft, R, G>(w, kTileValues * 2, 64, p.x.at(at.n[0], k0 + k), at.next, p.x.stride,
                                           [&](int q) { strips.quarter(k, q); });
      strips.next();
    }
  for (; k < count; ++k, w += kStripStep * 2) multiply<WeightLeft, R, G>(w, kTileValues * 2, 64, p.x.at(at.n[0], k0 + k), at.next, p.x.stride);
  if (last || !stay) keep<R, G>(sums, stride);
  if (last) strips.write(p, sums, at, G);
}

template <int R, class Strips>
SK_INLINE void multiply_groups(const PanelWork& p, const uint16_t* strip, int64_t k0, int64_t count, bool last, int64_t coming, Strips& strips) {
  int64_t g = 0;
  for (; g + 2 <= p.groups; g += 2) multiply_strip<R, 2>(p, strip, k0, count, last, coming, strips, g);
  if (g < p.groups) multiply_strip<R, 1>(p, strip, k0, count, last, coming, strips, g);
  if (Strips::kInPlace)
    for (int64_t k = count; k < coming; ++k, strips.next()) SK_UNROLL for (int q = 0; q < 4; ++q) strips.quarter(k, q);
}

// `rows` results, for which `k_tiles` K tiles are summed. `sums` [panels][pairs of row groups][4][256].
template <class Strips>
SK_INLINE void all_panels(Strips& strips, uint16_t* strip, float* sums, int64_t rows, int64_t k_tiles, const Tiles& x, int64_t columns,
                          const Bf16Out& out, int64_t begin, int64_t end) {
  const int64_t groups = (out.count + kTile - 1) / kTile, pairs = (groups + 1) / 2;
  const int64_t panels = Strips::panels(groups);
  for (int64_t block = begin; block < end; block += panels) {
    const int64_t block_end = smaller(block + panels, end);
    for (int64_t k0 = 0, count; k0 < k_tiles; k0 += count) {
      count = strip_tiles(k_tiles - k0);
      const int64_t left = k_tiles - k0 - count;
      for (int64_t panel = block; panel < block_end; ++panel) {
        const int64_t o = panel * 2 * kTile, outputs = smaller(2 * kTile, rows - o);
        const int64_t coming = panel + 1 < block_end ? count : strip_tiles(left ? left : k_tiles);
        const PanelWork p{x, columns, out, o, outputs, groups, sums + (panel - block) * pairs * 1024};
        strips.begin(panel, k0, count);
        if (outputs > kTile)
          multiply_groups<2>(p, strip, k0, count, left == 0, coming, strips);
        else
          multiply_groups<1>(p, strip, k0, count, left == 0, coming, strips);
      }
    }
  }
}

template <class Strips>
SK_INLINE void expanded_by(const Bf16Rows& w, const Tiles& x, int64_t columns, const Bf16Out& out, int64_t begin, int64_t end) {
  alignas(64) uint16_t strip[kLongStrip * kStripStep];
  alignas(64) float sums[kMostGroupPairs * 1024];
  const TileConfig config(Strips::kWeightLeft ? kTile : columns, kTileDepth, Strips::kWeightLeft ? columns : kTile);
  Strips strips(w, begin, end, strip);
  all_panels(strips, strip, sums, w.rows, w.k_tiles, x, columns, out, begin, end);
}

void expanded(const Bf16Rows& w, bool transposed, const Tiles& x, int64_t columns, const Bf16Out& out, int64_t begin, int64_t end) {
  if (w.ptr)
    expanded_by<PackedStrips>(w, x, columns, out, begin, end);
  else if (transposed)
    expanded_by<NaturalStrips<true>>(w, x, columns, out, begin, end);
  else
    expanded_by<NaturalStrips<false>>(w, x, columns, out, begin, end);
}

void grad_x(const Bf16Rows& w, int64_t inputs, const Tiles& grad, int64_t columns, const Bf16Out& out, void* room, int64_t begin, int64_t end) {
  alignas(64) uint16_t strip[kLongStrip * kStripStep];
  float* sums = static_cast<float*>(room);
  const TileConfig config(columns, kTileDepth, kTile);
  InputStrips strips(w, inputs, begin, end, InputStrips::panels((out.count + kTile - 1) / kTile), strip,
                     reinterpret_cast<const uint16_t**>(sums + input_sums(out.count)));
  all_panels(strips, strip, sums, w.k_tiles * kTileDepth, (w.rows + kTileDepth - 1) / kTileDepth, grad, columns, out, begin, end);
}

}  // namespace

extern const RowKernels row_kernels;
const RowKernels row_kernels{expanded, grad_x, rows_grad_weight};

}  // namespace sk::amx
