// sparse_conv2d: maps into patches (see SparseConvPatches) and back, in both layouts. AVX-512.
//   pixels side by side    16 patches' pieces of a row, 8 pixels each: two 8 x 8 transposes give 8 vectors
//   channels side by side  a pixel of each of 16 patches: a 16 x 16 transpose gives a vector of each of 16 channels
#include <cstring>

#include "core/sparse_conv2d_kernels.h"
#include "core/transpose.h"
#if defined(__AVX512F__)
#include "core/sparse_conv2d_patch_square.h"
#endif

namespace sk::SK_ISA {
namespace {

#if defined(__AVX512F__)

SK_INLINE int64_t clamp(int64_t v, int64_t low, int64_t high) { return v < low ? low : v > high ? high : v; }

template <int S>
SK_INLINE void swap_squares(vf (&r)[8]) {
  SK_UNROLL for (int i = 0; i < 8; ++i) {
    if (i & S) continue;
    const vf a = r[i], b = r[i + S];
    r[i] = low<S>(a, b, AllLanes{});
    r[i + S] = high<S>(a, b, AllLanes{});
  }
}
// r[k] holds 8 values of row k and, in its upper half, of row k + 8 -> lane k of r[i] is value i of row k
SK_INLINE void transpose_halves(vf (&r)[8]) {
  swap_squares<1>(r);
  swap_squares<2>(r);
  swap_squares<4>(r);
}

// Rows of each row of patches, one below the other, with the columns that its vectors show; zeros outside the source.
struct PaddedRows {
  int64_t width, first_row, inside_begin, inside_end;  // floats [inside_begin, inside_end) of a row may be of the source
  SK_INLINE PaddedRows(const SparseConvPatches& p, int64_t row)
      : width(p.padded_cols()),
        first_row(row),
        inside_begin(clamp(-p.first_col, 0, width)),
        inside_end(clamp(p.src_w - p.first_col, inside_begin, width)) {}

  SK_INLINE void fill(const SparseConvPatches& p, const float* x, float* room) const {
    for (int64_t i = 0; i < 16 / p.lanes_x; ++i)
      for (int64_t r = 0; r < p.rows; ++r, room += width) {
        const int64_t y = i * p.side_h + first_row + r;
        if (y < 0 || y >= p.src_h) {
          for (int64_t c = 0; c < width; c += W) store(room + c, zero());
          continue;
        }
        const float* row = x + y * p.src_w + p.first_col;
        for (int64_t c = 0; c < width; c += W) {
          if (c >= inside_begin && c + W <= inside_end) {
            store(room + c, load(row + c));
            continue;
          }
          const uint32_t below = uint32_t(1) << clamp(inside_begin - c, 0, W), above = uint32_t(1) << clamp(inside_end - c, 0, W);
          store(room + c, reinterpret_cast<vf>(_mm512_maskz_loadu_ps(__mmask16(above > below ? above - below : 0), row + c)));
        }
      }
  }
};

void fill_from_planes(const SparseConvPatches& p, int64_t first_row, const float* x, int64_t channel_stride, int64_t channels, float* out,
                      float* room) {
  const PaddedRows padded(p, first_row);
  int64_t lane[16];
  for (int64_t l = 0; l < 16; ++l) lane[l] = l / p.lanes_x * p.rows * padded.width + l % p.lanes_x * p.side_w;
  for (int64_t k = 0; k < channels; ++k, x += channel_stride, out += p.channel_floats) {
    padded.fill(p, x, room);
    for (int64_t r = 0; r < p.rows; ++r)
      for (int64_t c = 0; c < p.cols; c += 8) {
        const float* from = room + r * padded.width + c;
        float* to = out + (r * p.cols + c) * W;
        vf v[8];
        SK_UNROLL for (int l = 0; l < 8; ++l) {
          const __m256 low_half = _mm256_loadu_ps(from + lane[l]), high_half = _mm256_loadu_ps(from + lane[l + 8]);
          v[l] = reinterpret_cast<vf>(_mm512_insertf32x8(_mm512_castps256_ps512(low_half), high_half, 1));
        }
        transpose_halves(v);
        if (p.cols - c >= 8)
          SK_UNROLL for (int i = 0; i < 8; ++i) store(to + i * W, v[i]);
        else
          SK_UNROLL for (int i = 0; i < 8; ++i) if (i < p.cols - c) store(to + i * W, v[i]);
      }
  }
}

void restore_to_planes(const SparseConvPatches& p, int64_t y0, int64_t rows, const float* sums, int64_t sums_stride, int64_t channels, float* out,
                       int64_t channel_stride) {
  for (int64_t y = 0; y < rows; ++y)
    for (int64_t c = 0; c < p.side_w; c += 8) {
      const int64_t count = clamp(p.side_w - c, 0, 8);
      int64_t place[16];
      uint8_t mask[16];
      bool whole = true;
      for (int64_t l = 0; l < 16; ++l) {
        const int64_t row = l / p.lanes_x * p.side_h + y0 + y, col = l % p.lanes_x * p.side_w + c;
        const int64_t size = row < p.map_h ? clamp(p.map_w - col, 0, count) : 0;
        place[l] = size > 0 ? row * p.map_w + col : 0;
        mask[l] = uint8_t((1u << size) - 1);
        whole = whole && size == 8;
      }
      const float* from = sums + (y * p.side_w + c) * W;
      float* to = out;
      for (int64_t k = 0; k < channels; ++k, from += sums_stride, to += channel_stride) {
        vf v[8];
        SK_UNROLL for (int i = 0; i < 8; ++i) v[i] = i < count ? load(from + i * W) : zero();
        transpose_halves(v);
        if (whole) SK_UNROLL for (int l = 0; l < 8; ++l) {
            const __m512 both = reinterpret_cast<__m512>(v[l]);
            _mm256_storeu_ps(to + place[l], _mm512_castps512_ps256(both));
            _mm256_storeu_ps(to + place[l + 8], _mm512_extractf32x8_ps(both, 1));
          }
        else
          SK_UNROLL for (int l = 0; l < 8; ++l) {
            const __m512 both = reinterpret_cast<__m512>(v[l]);
            _mm256_mask_storeu_ps(to + place[l], mask[l], _mm512_castps512_ps256(both));
            __m256 high_half = _mm512_extractf32x8_ps(both, 1);
            asm("" : "+v"(high_half));  // a masked store of the half itself, vextractf32x8, faults for lanes that are off
            _mm256_mask_storeu_ps(to + place[l + 8], mask[l + 8], high_half);
          }
      }
    }
}

// Pixels of the 16 patches for vector (y, x); -1: outside.
SK_INLINE void places(const SparseConvPatches& p, int64_t y, int64_t x, int64_t height, int64_t width, int64_t (&place)[16]) {
  for (int64_t l = 0; l < 16; ++l) {
    const int64_t row = l / p.lanes_x * p.side_h + y, col = l % p.lanes_x * p.side_w + x;
    place[l] = row >= 0 && row < height && col >= 0 && col < width ? row * width + col : -1;
  }
}

void fill_from_pixels(const SparseConvPatches& p, int64_t first_row, const float* x, int64_t pixel_stride, int64_t channels, float* out) {
  for (int64_t r = 0; r < p.rows; ++r)
    for (int64_t c = 0; c < p.cols; ++c) {
      int64_t place[16];
      places(p, first_row + r, p.first_col + c, p.src_h, p.src_w, place);
      float* to = out + (r * p.cols + c) * W;
      for (int64_t k = 0; k < channels; k += W, to += W * p.channel_floats) {
        const int size = int(channels - k < W ? channels - k : W);
        const __mmask16 mask = __mmask16((1u << size) - 1);
        vf v[W];
        SK_UNROLL for (int l = 0; l < W; ++l) {
          const bool inside = place[l] >= 0;
          v[l] = reinterpret_cast<vf>(_mm512_maskz_loadu_ps(inside ? mask : __mmask16(0), x + (inside ? place[l] : 0) * pixel_stride + k));
        }
        transpose(v);
        if (size == W)
          SK_UNROLL for (int i = 0; i < W; ++i) store(to + i * p.channel_floats, v[i]);
        else
          SK_UNROLL for (int i = 0; i < W; ++i) if (i < size) store(to + i * p.channel_floats, v[i]);
      }
    }
}

void restore_to_pixels(const SparseConvPatches& p, int64_t y0, int64_t rows, const float* sums, int64_t sums_stride, int64_t channels, float* out,
                       int64_t pixel_stride) {
  for (int64_t y = 0; y < rows; ++y)
    for (int64_t x = 0; x < p.side_w; ++x) {
      int64_t place[16];
      places(p, y0 + y, x, p.map_h, p.map_w, place);
      const float* from = sums + (y * p.side_w + x) * W;
      for (int64_t k = 0; k < channels; k += W, from += W * sums_stride) {
        const int size = int(channels - k < W ? channels - k : W);
        const __mmask16 mask = __mmask16((1u << size) - 1);
        vf v[W];
        SK_UNROLL for (int i = 0; i < W; ++i) v[i] = i < size ? load(from + i * sums_stride) : zero();
        transpose(v);
        SK_UNROLL for (int l = 0; l < W; ++l) if (place[l] >= 0)
            _mm512_mask_storeu_ps(out + place[l] * pixel_stride + k, mask, reinterpret_cast<__m512>(v[l]));
      }
    }
}

void fill(const SparseConvPatches& p, int64_t first_row, const float* x, int64_t channel_stride, int64_t pixel_stride, int64_t channels, float* out,
          float* room) {
  if (pixel_stride == 1 && is_square(p, first_row))
    p.side_h == 4 ? fill_square<4>(p, first_row, x, channel_stride, channels, out) : fill_square<2>(p, first_row, x, channel_stride, channels, out);
  else if (pixel_stride == 1)
    fill_from_planes(p, first_row, x, channel_stride, channels, out, room);
  else
    fill_from_pixels(p, first_row, x, pixel_stride, channels, out);
}

void restore(const SparseConvPatches& p, int64_t y, int64_t rows, const float* sums, int64_t sums_stride, int64_t channels, float* out,
             int64_t channel_stride, int64_t pixel_stride) {
  const bool square = pixel_stride == 1 && rows == p.side_h && is_square(p, p.side_h - p.rows < 0 ? p.side_h - p.rows : 0);
  if (square)
    p.side_h == 4 ? restore_square<4>(sums, sums_stride, channels, out, channel_stride)
                  : restore_square<2>(sums, sums_stride, channels, out, channel_stride);
  else if (pixel_stride == 1)
    restore_to_planes(p, y, rows, sums, sums_stride, channels, out, channel_stride);
  else
    restore_to_pixels(p, y, rows, sums, sums_stride, channels, out, pixel_stride);
}
#endif

}  // namespace

extern const SparseConvPatchCopyKernels sparse_conv_patch_copy_kernels;
#if defined(__AVX512F__)
const SparseConvPatchCopyKernels sparse_conv_patch_copy_kernels = {fill, restore};
#else
const SparseConvPatchCopyKernels sparse_conv_patch_copy_kernels = {nullptr, nullptr};
#endif

}  // namespace sk::SK_ISA
