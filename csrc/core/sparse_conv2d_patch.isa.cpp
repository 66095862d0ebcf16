// sparse_conv2d, square maps as 4 x 4 patches: lane 4*a + b of vector (y, x) is pixel (a*side + y, b*side + x), for 16 lanes.
// Into patches and back, side 2 and 4: 16 pixels of each of 4 rows of patches are 4 vectors of the other order.
#include "core/sparse_conv2d_kernels.h"
#include "core/vec.h"

namespace sk::SK_ISA {
namespace {

#if defined(__AVX512F__)
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
SK_INLINE int outside(const SparseConvPatches& p, Outside* list) {
  int count = 0;
  for (int64_t y = p.first_row; y < p.first_row + p.rows; ++y)
    for (int64_t x = p.first_col; x < p.first_col + p.cols; ++x) {
      const int down = floor_div(y, p.side), right = floor_div(x, p.side);
      if (down == 0 && right == 0) continue;
      uint16_t mask = 0;
      for (int a = 0; a < 4; ++a)
        for (int b = 0; b < 4; ++b) mask = uint16_t(mask | (a + down >= 0 && a + down < 4 && b + right >= 0 && b + right < 4) << (4 * a + b));
      list[count++] = {(y - down * p.side - p.first_row) * p.cols + x - right * p.side - p.first_col, (y - p.first_row) * p.cols + x - p.first_col,
                       4 * down + right, mask};
    }
  return count;
}

template <int Side>
SK_INLINE void to_patches(const SparseConvPatches& p) {
  constexpr int kPixels = 16 * Side * Side;
  const Order<Side> order;
  Outside list[kMaxPatchVectors];
  const int count = outside(p, list);
  const __m512i lanes = _mm512_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15);
  for (int64_t c = 0; c < p.channels; ++c) {
    const float* x = p.x + c * kPixels;
    float* out = p.out + c * p.channel_floats;
    SK_UNROLL for (int g = 0; g < Side * Side / 4; ++g) {
      __m512 r[4];
      SK_UNROLL for (int a = 0; a < 4; ++a) r[a] = _mm512_permutexvar_ps(order.in, _mm512_loadu_ps(x + a * kPixels / 4 + g * 16));
      transpose_blocks(r);
      SK_UNROLL for (int v = 0; v < 4; ++v) {
        const int y = (4 * g + v) / Side, col = (4 * g + v) % Side;
        _mm512_storeu_ps(out + ((y - p.first_row) * p.cols + col - p.first_col) * 16, r[v]);
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
SK_INLINE void to_pixels(float* planes, int64_t count) {
  constexpr int kVectors = Side * Side;
  const Order<Side> order;
  for (; count > 0; --count, planes += 16 * kVectors) {
    __m512 r[kVectors];
    SK_UNROLL for (int v = 0; v < kVectors; ++v) r[v] = _mm512_loadu_ps(planes + v * 16);
    SK_UNROLL for (int g = 0; g < kVectors / 4; ++g) {
      transpose_blocks(r + 4 * g);
      SK_UNROLL for (int a = 0; a < 4; ++a) _mm512_storeu_ps(planes + a * 4 * kVectors + g * 16, _mm512_permutexvar_ps(order.back, r[4 * g + a]));
    }
  }
}

void fill(const SparseConvPatches& p) { p.side == 4 ? to_patches<4>(p) : to_patches<2>(p); }
void restore(float* planes, int64_t count, int side) { side == 4 ? to_pixels<4>(planes, count) : to_pixels<2>(planes, count); }
#endif

// forward of list kernels with one weight per entry and channel: sums over the entries of a channel block
template <int Side>
__attribute__((noinline)) int64_t patch_tile(const SparseConvList& a, int64_t begin, int64_t end) {
  vf sums[Side][Side];
  const vf bias = splat(a.bias ? *a.bias : 0.0f);
  SK_UNROLL for (int y = 0; y < Side; ++y) SK_UNROLL for (int x = 0; x < Side; ++x) sums[y][x] = a.first ? bias : load(a.out + (y * Side + x) * W);
  // in registers: every load beside the inputs' costs a multiply-add
  const int64_t row = a.patch_row;
  const int32_t limit = a.code_end;
  const int32_t *const codes = a.code, *const table = a.table - a.code_begin, *const entries = a.entry;
  const float *const x0 = a.x, *const weight = a.weight;
  float* const out = a.out;
  int64_t e = begin;
  for (; e < end; ++e) {
    const int32_t code = codes[e];
    if (code >= limit) break;
    const float* p = x0 + table[code];
    const vf w = splat(weight[entries ? entries[e] : e]);
    SK_UNROLL for (int y = 0; y < Side; ++y, p += row) {
      asm("" : "+r"(p));  // one register, not base + index: an indexed operand costs the multiply-add a second micro-op
      SK_UNROLL for (int x = 0; x < Side; ++x) sums[y][x] += w * load(p + x * W);
    }
  }
  SK_UNROLL for (int y = 0; y < Side; ++y) SK_UNROLL for (int x = 0; x < Side; ++x) store(out + (y * Side + x) * W, sums[y][x]);
  return e;
}
int64_t forward(const SparseConvList& a, int64_t begin, int64_t end) {
  return a.vectors == 16 ? patch_tile<4>(a, begin, end) : patch_tile<2>(a, begin, end);
}

}  // namespace

extern const SparseConvPatchKernels sparse_conv_patch_kernels;
#if defined(__AVX512F__)
const SparseConvPatchKernels sparse_conv_patch_kernels = {fill, restore, forward};
#else
const SparseConvPatchKernels sparse_conv_patch_kernels = {nullptr, nullptr, forward};
#endif

}  // namespace sk::SK_ISA
