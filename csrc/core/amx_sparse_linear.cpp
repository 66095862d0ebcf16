// sparse_linear in bf16 on matrix tiles: kept blocks multiplied where they lie (unstructured weights: amx_rows.cpp). See
// sparse_linear_bf16.h for the words, amx_tiles.h for a tile's product.
#include "core/amx_tiles.h"

namespace sk::amx {
namespace {

SK_INLINE int64_t smaller(int64_t a, int64_t b) { return a < b ? a : b; }

// ---- operands

// 16 vectors: of rows [n, n + 16) the values [k, k + 32) (natural), or, feature-major, of 16 pairs of values the rows.
SK_INLINE void load_square(const Bf16Matrix& m, int64_t n, int64_t k, vf* t) {
  if (m.overlap) k = smaller(k, m.depth - kTileDepth);
  const int64_t rows = n < m.count ? smaller(kTile, m.count - n) : 0, depth = smaller(kTileDepth, m.depth - k);
  if (m.col == 1 && rows == kTile && depth == kTileDepth) {
    SK_UNROLL for (int i = 0; i < W; ++i) t[i] = reinterpret_cast<vf>(_mm512_loadu_si512(m.data + (n + i) * m.row + k));
  } else if (m.col == 1) {
    const __mmask32 mask = depth == kTileDepth ? ~__mmask32(0) : (__mmask32(1) << depth) - 1;
    SK_UNROLL for (int i = 0; i < W; ++i) t[i] =
        i < rows ? reinterpret_cast<vf>(_mm512_maskz_loadu_epi16(mask, m.data + (n + i) * m.row + k)) : zero();
  } else {
    const __mmask16 mask = __mmask16((1u << rows) - 1);
    const auto values = [&](int64_t at) {
      return _mm512_cvtepu16_epi32(at < depth ? _mm256_maskz_loadu_epi16(mask, m.data + n + (k + at) * m.col) : _mm256_setzero_si256());
    };
    SK_UNROLL for (int i = 0; i < W; ++i) t[i] = reinterpret_cast<vf>(_mm512_or_si512(values(2 * i), _mm512_slli_epi32(values(2 * i + 1), 16)));
  }
}

// Natural rows as `rows`: a copy of each row, cut into pieces.
void copy_rows(const Bf16Matrix& m, int64_t tile_depth, int64_t depth, uint16_t* out, int64_t begin, int64_t end) {
  for (int64_t n = begin * kTile; n < end * kTile; ++n) {
    const uint16_t* from = m.data + n * m.row;
    uint16_t* to = out + n / kTile * depth * kTile + n % kTile * tile_depth;
    const int64_t there = n < m.count ? m.depth : 0;
    int64_t k = 0;
    if (tile_depth == kTileDepth)
      for (; k + kTileDepth <= there; k += kTileDepth, to += kTile * kTileDepth) _mm512_store_si512(to, _mm512_loadu_si512(from + k));
    if (m.overlap && there) {
      _mm512_store_si512(to, _mm512_loadu_si512(from + m.depth - kTileDepth));
      continue;
    }
    for (; k < depth; k += tile_depth, to += kTile * tile_depth) {
      const int64_t left = there - k < 0 ? 0 : smaller(there - k, tile_depth);
      _mm512_mask_storeu_epi16(to, __mmask32((uint64_t(1) << tile_depth) - 1),
                               _mm512_maskz_loadu_epi16(__mmask32((uint64_t(1) << left) - 1), from + k));
    }
  }
}

void prepare(const Bf16Matrix& m, int64_t tile_depth, bool pairs, int64_t columns, uint16_t* out, int64_t begin, int64_t end) {
  const int64_t depth = (m.depth + tile_depth - 1) / tile_depth * tile_depth, across = pairs ? columns : kTile;
  if (!pairs && m.col == 1) return copy_rows(m, tile_depth, depth, out, begin, end);
  for (int64_t g = begin; g < end; ++g)
    for (int64_t k = 0; k < depth; k += kTileDepth) {
      vf t[W];
      load_square(m, g * kTile, k, t);
      if ((m.col == 1) == pairs) transpose(t);
      uint16_t* to = out + (g * depth + k) * across;
      const int64_t half = smaller(kTileDepth, depth - k) / 2;  // 16 pairs, or the last 8 where tiles are 16 deep
      if (pairs && columns == kTile && half == kTile) {
        SK_UNROLL for (int i = 0; i < W; ++i) store(reinterpret_cast<float*>(to + i * 2 * kTile), t[i]);
      } else if (pairs) {
        const __mmask16 mask = __mmask16((1u << columns) - 1);
        for (int64_t i = 0; i < half; ++i) _mm512_mask_storeu_epi32(to + i * 2 * columns, mask, reinterpret_cast<__m512i>(t[i]));
      } else if (tile_depth == kTileDepth) {
        SK_UNROLL for (int i = 0; i < W; ++i) store(reinterpret_cast<float*>(to + i * kTileDepth), t[i]);
      } else {
        for (int64_t i = 0; i < W; ++i)
          for (int64_t part = 0; part < half / 8; ++part)
            __builtin_memcpy(to + part * 256 + i * 16, reinterpret_cast<const char*>(&t[i]) + part * 32, 32);
      }
    }
}

// ---- kept blocks

// Some of the rows ahead at every step, so that all are there after the last one.
class Fetch {
 public:
  Fetch(const Bf16Ahead& a, int64_t steps)
      : at_(reinterpret_cast<const char*>(a.data)), lines_((a.depth * 2 + 63) / 64), step_bytes_(a.row * 2 - lines_ * 64), left_(a.rows * lines_) {
    each_ = steps ? (left_ + steps - 1) / steps : 0;
    line_ = lines_;
  }
  SK_INLINE void some() {
    if (left_ == 0) return;
    for (int64_t end = left_ < each_ ? 0 : left_ - each_; left_ > end; --left_, at_ += 64) {
      _mm_prefetch(at_, _MM_HINT_T1);
      if (--line_ == 0) line_ = lines_, at_ += step_bytes_;
    }
  }

 private:
  const char* at_;
  int64_t lines_, step_bytes_, left_, each_, line_;
};

// Sums on their way to y. They are written while the tiles work on the next ones.
struct Pending {
  const Bf16Out& out;
  bool weight_left;
  int64_t o, outputs, n[2];
  int groups = 0;  // none pending
  const float* sums;

  void flush() {
    for (int i = 0; i < groups; ++i) {
      const float* from = sums + i * 256;
      const int64_t count = smaller(kTile, out.count - n[i]);
      if (!weight_left && outputs == 2 * kTile && out.col == 1 && count == kTile) {
        write_two(from, out, o, n[i]);
        continue;
      }
      for (int64_t r = 0; r * kTile < outputs; ++r, from += 512) {
        const int64_t here = smaller(kTile, outputs - r * kTile);
        weight_left ? write<true>(from, out, o + r * kTile, here, n[i], count) : write<false>(from, out, o + r * kTile, here, n[i], count);
      }
    }
    groups = 0;
  }
};

template <bool WeightLeft, int R, int G>
SK_INLINE void sum_blocks(const Bf16Blocks& w, const Tiles& x, Pending& pending, Fetch& fetch, int64_t block, int64_t r, const Groups& g) {
  const int64_t tile_depth = w.tile_depth(), k_tiles = w.depth / tile_depth;
  const int64_t next = kTile * w.depth * 2, step = tile_depth * (WeightLeft ? 2 : 2 * kTile), stride = WeightLeft ? w.depth * 2 : 4 * kTile;
  const char* weight = reinterpret_cast<const char*>(w.weight) + r * next;
  const int32_t begin = w.ptr[block], end = w.ptr[block + 1];
  clear<R, G>();
  for (int32_t e = begin; e < end; ++e) {
    const char* from = weight + int64_t(w.entries[2 * e + 1]) * w.rows * w.depth * 2;
    const char* in = x.at(g.n[0], w.entries[2 * e] * k_tiles);
    for (int64_t k = 0; k < k_tiles; ++k, from += step, in += x.step) {
      multiply<WeightLeft, R, G, !WeightLeft && G == 2>(from, next, stride, in, g.next, x.stride);
      if constexpr (G == 2) fetch.some();  // one group: few rows, and none behind them
    }
    if (e - begin == 1) pending.flush();
  }
  if (end - begin < 2) pending.flush();
}

template <bool WeightLeft, int R>
SK_INLINE void block_rows(const Bf16Blocks& w, const Tiles& x, int64_t columns, const Bf16Out& out, Pending& pending, Fetch& fetch, float* sums,
                          int64_t block, int64_t r) {
  const int64_t o = block * w.rows + r * kTile, groups = (out.count + kTile - 1) / kTile;
  if (WeightLeft && columns == 1) {
    sum_blocks<WeightLeft, R, 1>(w, x, pending, fetch, block, r, Groups(x, 0));
    keep<R, 1>(sums, 4);
    SK_UNROLL for (int i = 0; i < R; ++i) write_row(sums + 512 * i, out, o + i * kTile, kTile);
    return;
  }
  for (int64_t g = 0; g < groups; g += 2) {
    const bool two = g + 2 <= groups;
    const Groups at(x, g);
    if (two) {
      sum_blocks<WeightLeft, R, 2>(w, x, pending, fetch, block, r, at);
      keep<R, 2>(sums, 64);
    } else {
      sum_blocks<WeightLeft, R, 1>(w, x, pending, fetch, block, r, at);
      keep<R, 1>(sums, 64);
    }
    pending.o = o, pending.outputs = R * kTile, pending.n[0] = at.n[0], pending.n[1] = at.n[1], pending.groups = two ? 2 : 1;
  }
}

template <bool WeightLeft>
SK_INLINE void all_blocks(const Bf16Blocks& w, const Tiles& x, int64_t columns, const Bf16Out& out, const Bf16Ahead& ahead, int64_t begin,
                          int64_t end) {
  alignas(64) float sums[4 * 256] = {};
  Pending pending{out, WeightLeft, 0, 0, {}, 0, sums};
  const int64_t passes = (w.rows + 2 * kTile - 1) / (2 * kTile) * ((out.count + 2 * kTile - 1) / (2 * kTile));
  Fetch fetch(ahead, (w.ptr[end] - w.ptr[begin]) * (w.depth / w.tile_depth()) * passes);
  const TileConfig config(WeightLeft ? kTile : columns, w.tile_depth(), WeightLeft ? columns : kTile);
  written();
  for (int64_t block = begin; block < end; ++block) {
    int64_t r = 0;
    for (; (r + 2) * kTile <= w.rows; r += 2) block_rows<WeightLeft, 2>(w, x, columns, out, pending, fetch, sums, block, r);
    if (r * kTile < w.rows) block_rows<WeightLeft, 1>(w, x, columns, out, pending, fetch, sums, block, r);
  }
  pending.flush();
}

void blocks(const Bf16Blocks& w, const Tiles& x, int64_t columns, const Bf16Out& out, const Bf16Ahead& ahead, int64_t begin, int64_t end) {
  w.pairs ? all_blocks<false>(w, x, columns, out, ahead, begin, end) : all_blocks<true>(w, x, columns, out, ahead, begin, end);
}

template <int R, int G>
SK_INLINE void block_gradient(const Tiles& grad, const Tiles& x, int64_t k_tiles, const Bf16Out& out, float* sums, int64_t grad_row, int64_t x_row,
                              int64_t r, int64_t c) {
  clear<R, G>();
  const char *a = grad.at(grad_row + r, 0), *b = x.at(x_row + c, 0);
  for (int64_t k = 0; k < k_tiles; ++k, a += grad.step, b += x.step)
    multiply<true, R, G>(a, kTile * grad.row, grad.stride, b, kTile * x.row, x.stride);
  keep<R, G>(sums, 64);
  Pending{out, true, r, R * kTile, {c, c + kTile}, G, sums}.flush();
}

void blocks_grad_weight(const Bf16Blocks& w, int64_t fan_in, const Tiles& grad, const Tiles& x, int64_t k_tiles, uint16_t* grad_weight, int64_t begin,
                        int64_t end) {
  alignas(64) float sums[4 * 256] = {};
  const TileConfig config(kTile, kTileDepth, kTile);
  written();
  for (int64_t e = begin; e < end; ++e) {
    const Bf16Out out{grad_weight + e * w.rows * w.depth, 1, w.depth, nullptr, w.depth};  // the inputs of the block stand where rows of x do
    const int64_t target = e / fan_in * w.rows, source = w.entries[2 * e] * w.depth;
    for (int64_t r = 0; r < w.rows; r += 2 * kTile)
      for (int64_t c = 0; c < w.depth; c += 2 * kTile) {
        const bool two_r = r + 2 * kTile <= w.rows, two_c = c + 2 * kTile <= w.depth;
        if (two_r && two_c)
          block_gradient<2, 2>(grad, x, k_tiles, out, sums, target, source, r, c);
        else if (two_r)
          block_gradient<2, 1>(grad, x, k_tiles, out, sums, target, source, r, c);
        else if (two_c)
          block_gradient<1, 2>(grad, x, k_tiles, out, sums, target, source, r, c);
        else
          block_gradient<1, 1>(grad, x, k_tiles, out, sums, target, source, r, c);
      }
  }
}

}  // namespace

extern const TileKernels tile_kernels;
const TileKernels tile_kernels{prepare, blocks, blocks_grad_weight};

}  // namespace sk::amx
