// sparse_conv2d, data movement: shifted copies, lane masks, channel tiles and transposes.
#include <cstring>

#include "core/sparse_conv2d_kernels.h"
#include "core/transpose.h"

namespace sk::SK_ISA {
namespace {

SK_INLINE int64_t clamp(int64_t v, int64_t low, int64_t high) { return v < low ? low : v > high ? high : v; }

// What one vector of a copy shows: lanes [first, last) exist in the source, `step` floats apart.
struct Window {
  int first, last;
  int64_t step;
};
SK_INLINE vf load_window(const float* x, const Window& w) {
#if defined(__AVX512F__)
  if (w.step == 1) {  // lanes outside are not accessed
    const uint32_t mask = ((1u << w.last) - 1) & ~((1u << w.first) - 1);
    return reinterpret_cast<vf>(_mm512_maskz_loadu_ps(__mmask16(mask), x));
  }
#else
  if (w.step == 1 && w.first == 0 && w.last == W) return load(x);
#endif
  vf v = {};
  for (int i = w.first; i < w.last; ++i) v[i] = x[i * w.step];
  return v;
}

// f(window, lanes of the vector that belong to the row, its place in the copies, row 0 of the source, step between rows,
//   rows before the image, rows in it) for each (shift, vector of a row, phase)
template <class F>
SK_INLINE void for_each_column(const SparseConvShift& a, const F& f) {
  const int64_t plane = a.plane_rows * a.row_floats, step = a.step_h * a.src_w;
  for (int64_t s = 0; s < a.shifts; ++s) {
    const int64_t dx = a.shift[s];
    const int64_t lo = clamp(dx >= 0 ? 0 : (-dx + a.step_w - 1) / a.step_w, 0, a.cols);
    const int64_t hi = clamp(dx >= a.src_w ? 0 : (a.src_w - 1 - dx) / a.step_w + 1, lo, a.cols);
    for (int64_t i = 0; i < a.row_floats; i += W) {
      const Window window{int(clamp(lo - i, 0, W)), int(clamp(hi - i, 0, W)), a.step_w};
      for (int64_t p = 0; p < a.phases; ++p) {
        // rows r of the plane with 0 <= (first_row + r)*step_h + phase < src_h; 0 <= phase < step_h
        const int64_t before = clamp(-a.first_row, 0, a.plane_rows);
        const int64_t rows_in_phase = a.src_h > a.phase[p] ? (a.src_h - 1 - a.phase[p]) / a.step_h + 1 : 0;
        const int64_t end = clamp(rows_in_phase - a.first_row, before, a.plane_rows);
        const int64_t source = (a.first_row * a.step_h + a.phase[p]) * a.src_w + dx + i * a.step_w;
        f(window, int(a.row_floats - i < W ? a.row_floats - i : W), (s * a.phases + p) * plane + i, source, step, before, end);
      }
    }
  }
}

void shift(const SparseConvShift& a) {
  for_each_column(a, [&](Window window, int lanes, int64_t place, int64_t source, int64_t step, int64_t begin, int64_t end) {
    for (int64_t c = 0; c < a.channels; ++c) {
      const float* x = a.x + c * a.x_stride + source + begin * step;
      float* out = a.out + c * a.channel_floats + place;
      const auto put = [&](vf v) {
        if (lanes == W)
          store(out, v);
        else
          store_first(out, v, lanes);
        out += a.row_floats;
      };
      for (int64_t r = 0; r < begin; ++r) put(zero());
      for (int64_t r = begin; r < end; ++r, x += step) put(load_window(x, window));
      for (int64_t r = end; r < a.plane_rows; ++r) put(zero());
    }
  });
}

// row_floats is a multiple of W
void shift_interleaved(const SparseConvShift& a) {
  for_each_column(a, [&](Window window, int, int64_t place, int64_t source, int64_t step, int64_t begin, int64_t end) {
    for (int64_t r = 0; r < a.plane_rows; ++r) {
      float* out = a.out + (place + r * a.row_floats) * a.channels;
      if (r < begin || r >= end) {
        std::memset(out, 0, sizeof(float) * W * a.channels);
        continue;
      }
      const float* x = a.x + source + r * step;
      for (int64_t c = 0; c < a.channels; ++c, x += a.x_stride, out += W) store(out, load_window(x, window));
    }
  });
}

void transpose_all(const float* in, int64_t in_stride, int64_t rows, int64_t cols, float* out, int64_t out_stride) {
  for (int64_t c = 0; c < cols; c += W)
    for (int64_t r = 0; r < rows; r += W) {
      // the lines of the next square: stores that miss the first-level cache wait for each other
      const bool more = r + W < rows;
      const float* next = out + (more ? c : c + W) * out_stride + (more ? r + W : 0);
      for (int i = 0; i < W && (more || c + W + i < cols); ++i) __builtin_prefetch(next + i * out_stride, 1);
      transpose_tile_exact(in + r * in_stride + c, in_stride, int(rows - r < W ? rows - r : W), int(cols - c < W ? cols - c : W),
                           out + c * out_stride + r, out_stride);
    }
}

void masks(int64_t rows, int64_t cols, int64_t src_h, int64_t src_w, int64_t taps, const int64_t* dy, const int64_t* dx, uint16_t* mask) {
#if defined(__AVX512F__)
  const int64_t vectors = (rows * cols + W - 1) / W;
  int y[W], x[W];  // of the lanes of the vector
  for (int i = 0; i < W; ++i) y[i] = int(i / cols), x[i] = int(i % cols);
  __m512i vy = _mm512_loadu_si512(y), vx = _mm512_loadu_si512(x);
  const __m512i step_y = _mm512_set1_epi32(int(W / cols)), step_x = _mm512_set1_epi32(int(W % cols));
  const __m512i width = _mm512_set1_epi32(int(cols)), one = _mm512_set1_epi32(1);
  const __m512i h = _mm512_set1_epi32(int(src_h)), w = _mm512_set1_epi32(int(src_w)), end = _mm512_set1_epi32(int(rows));
  for (int64_t v = 0; v < vectors; ++v) {
    const __mmask16 inside = _mm512_cmplt_epi32_mask(vy, end);
    for (int64_t t = 0; t < taps; ++t) {
      const __m512i sy = _mm512_add_epi32(vy, _mm512_set1_epi32(int(dy[t])));
      const __m512i sx = _mm512_add_epi32(vx, _mm512_set1_epi32(int(dx[t])));
      mask[t * vectors + v] = inside & _mm512_cmplt_epu32_mask(sy, h) & _mm512_cmplt_epu32_mask(sx, w);
    }
    vy = _mm512_add_epi32(vy, step_y);
    vx = _mm512_add_epi32(vx, step_x);
    const __mmask16 wrap = _mm512_cmpge_epi32_mask(vx, width);
    vx = _mm512_mask_sub_epi32(vx, wrap, vx, width);
    vy = _mm512_mask_add_epi32(vy, wrap, vy, one);
  }
#else
  (void)rows, (void)cols, (void)src_h, (void)src_w, (void)taps, (void)dy, (void)dx, (void)mask;
#endif
}

void channel_tiles(const float* x, int64_t channels, int64_t pixels, int vectors, float* out) {
  const int64_t width = int64_t(vectors) * W;
  for (int64_t c = 0; c < channels; c += W) {
    float* to = out + c / width * width * pixels + c % width;
    const int present = int(channels - c < W ? channels - c : W);
    for (int64_t p = 0; p < pixels; p += W)
      transpose_tile(x + c * pixels + p, pixels, present, int(pixels - p < W ? pixels - p : W), to + p * width, width);
  }
}

}  // namespace

extern const SparseConvCopyKernels sparse_conv_copy_kernels;
const SparseConvCopyKernels sparse_conv_copy_kernels = {shift, shift_interleaved, transpose_all, masks, channel_tiles};

}  // namespace sk::SK_ISA
