// sparse_conv2d: square maps of 4 x 4 patches of 4 or 16 pixels, planes into patches and back in few instructions: 16 pixels of each of 4 rows
// of patches are 4 vectors of the other order, and vectors outside a patch are those of its far side, moved over by whole patches.
// Included by sparse_conv2d_patch_copy.isa.cpp, AVX-512.
#pragma once
#include "core/sparse_conv2d_kernels.h"
#include "core/vec.h"

namespace sk::SK_ISA {
namespace {

// Block i of four lanes of r[j] <-> block j of r[i].
SK_INLINE void transpose_blocks(__m512* r) {
  const __m512 a = _mm512_shuffle_f32x4(r[0], r[1], 0x44), b = _mm512_shuffle_f32x4(r[2], r[3], 0x44);
  const __m512 c = _mm512_shuffle_f32x4(r[0], r[1], 0xee), d = _mm512_shuffle_f32x4(r[2], r[3], 0xee);
  r[0] = _mm512_shuffle_f32x4(a, b, 0x88);
  r[1] = _mm512_shuffle_f32x4(a, b, 0xdd);
  r[2] = _mm512_shuffle_f32x4(c, d, 0x88);
  r[3] = _mm512_shuffle_f32x4(c, d, 0xdd);
}

// Of 16 neighbouring pixels of a row of patches: lane 4*v + b of `in` is where patch b's pixel of vector v lies; `back` undoes it.
template <int Side>
struct Order {
  __m512i in, back;
  SK_INLINE Order() {
    int from[16], to[16];
    for (int v = 0; v < 4; ++v)
      for (int b = 0; b < 4; ++b) {
        const int pixel = Side == 4 ? b * 4 + v : (v / 2 * 4 + b) * 2 + v % 2;
        from[4 * v + b] = pixel;
        to[pixel] = 4 * v + b;
      }
    in = _mm512_loadu_si512(from);
    back = _mm512_loadu_si512(to);
  }
};

// Vectors outside the patch: where their pixels lie inside, in which other patch, and whether it exists.
struct Outside {
  int64_t from, to;  // vectors of a channel
  int move;          // lanes
  uint16_t mask;
};
SK_INLINE int floor_div(int64_t a, int b) { return int(a >= 0 ? a / b : -((-a + b - 1) / b)); }
SK_INLINE int outside(const SparseConvPatches& p, int64_t first_row, Outside* list) {
  int count = 0;
  for (int64_t y = first_row; y < first_row + p.rows; ++y)
    for (int64_t x = p.first_col; x < p.first_col + p.cols; ++x) {
      const int down = floor_div(y, int(p.side_h)), right = floor_div(x, int(p.side_h));
      if (down == 0 && right == 0) continue;
      uint16_t mask = 0;
      for (int a = 0; a < 4; ++a)
        for (int b = 0; b < 4; ++b) mask = uint16_t(mask | (a + down >= 0 && a + down < 4 && b + right >= 0 && b + right < 4) << (4 * a + b));
      list[count++] = {(y - down * p.side_h - first_row) * p.cols + x - right * p.side_h - p.first_col, (y - first_row) * p.cols + x - p.first_col,
                       4 * down + right, mask};
    }
  return count;
}

// Whether a strip is such a map, all of it, with every vector of a patch among those that taps reach.
SK_INLINE bool is_square(const SparseConvPatches& p, int64_t first_row) {
  const int64_t side = p.side_h, size = 4 * side;
  return p.lanes_x == 4 && p.side_w == side && (side == 2 || side == 4) && p.map_h == size && p.map_w == size && p.src_h == size && p.src_w == size &&
         first_row <= 0 && first_row + p.rows >= side && p.first_col <= 0 && p.first_col + p.cols >= side;
}

template <int Side>
SK_INLINE void fill_square(const SparseConvPatches& p, int64_t first_row, const float* x, int64_t channel_stride, int64_t channels, float* out) {
  constexpr int kPixels = 16 * Side * Side;
  const Order<Side> order;
  Outside list[kMaxPatchVectors];
  const int count = outside(p, first_row, list);
  const __m512i lanes = _mm512_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15);
  for (int64_t c = 0; c < channels; ++c, x += channel_stride, out += p.channel_floats) {
    SK_UNROLL for (int g = 0; g < Side * Side / 4; ++g) {
      __m512 r[4];
      SK_UNROLL for (int a = 0; a < 4; ++a) r[a] = _mm512_permutexvar_ps(order.in, _mm512_loadu_ps(x + a * kPixels / 4 + g * 16));
      transpose_blocks(r);
      SK_UNROLL for (int v = 0; v < 4; ++v) {
        const int y = (4 * g + v) / Side, col = (4 * g + v) % Side;
        _mm512_storeu_ps(out + ((y - first_row) * p.cols + col - p.first_col) * 16, r[v]);
      }
    }
    for (int i = 0; i < count; ++i) {
      const __m512 v = _mm512_loadu_ps(out + list[i].from * 16);
      const __m512i from = _mm512_add_epi32(lanes, _mm512_set1_epi32(list[i].move));
      _mm512_storeu_ps(out + list[i].to * 16, _mm512_maskz_permutexvar_ps(list[i].mask, from, v));
    }
  }
}

template <int Side>
SK_INLINE void restore_square(const float* sums, int64_t sums_stride, int64_t channels, float* out, int64_t channel_stride) {
  constexpr int kVectors = Side * Side;
  const Order<Side> order;
  for (int64_t k = 0; k < channels; ++k, sums += sums_stride, out += channel_stride) {
    __m512 r[kVectors];
    SK_UNROLL for (int v = 0; v < kVectors; ++v) r[v] = _mm512_loadu_ps(sums + v * 16);
    SK_UNROLL for (int g = 0; g < kVectors / 4; ++g) {
      transpose_blocks(r + 4 * g);
      SK_UNROLL for (int a = 0; a < 4; ++a) _mm512_storeu_ps(out + a * 4 * kVectors + g * 16, _mm512_permutexvar_ps(order.back, r[4 * g + a]));
    }
  }
}

}  // namespace
}  // namespace sk::SK_ISA
