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

// One vector of the rows of a plane: what it shows of a source plane, and where it goes.
struct Column {
  Window window;
  int lanes;             // of the vector that belong to the row
  int64_t place;         // in the copies of a channel, row 0 of the plane
  int64_t source, step;  // of row 0 in the source plane, and from row to row
  int64_t begin, end;    // rows that exist in the source
};

SK_INLINE Column column_of(const SparseConvShift& a, int64_t shift, int64_t phase, int64_t i) {
  const int64_t dx = a.shift[shift], dy = a.phase[phase];
  const int64_t lo = clamp(dx >= 0 ? 0 : (-dx + a.step_w - 1) / a.step_w, 0, a.cols);
  const int64_t hi = clamp(dx >= a.src_w ? 0 : (a.src_w - 1 - dx) / a.step_w + 1, lo, a.cols);
  Column c;
  c.window = {int(clamp(lo - i, 0, W)), int(clamp(hi - i, 0, W)), a.step_w};
  c.lanes = int(a.row_floats - i < W ? a.row_floats - i : W);
  c.place = (shift * a.phases + phase) * a.plane_rows * a.row_floats + i;
  c.source = (a.first_row * a.step_h + dy) * a.src_w + dx + i * a.step_w;
  c.step = a.step_h * a.src_w;
  // rows r of the plane with 0 <= (first_row + r)*step_h + dy < src_h; 0 <= dy < step_h
  c.begin = clamp(-a.first_row, 0, a.plane_rows);
  c.end = clamp((a.src_h > dy ? (a.src_h - 1 - dy) / a.step_h + 1 : 0) - a.first_row, c.begin, a.plane_rows);
  return c;
}

// f(columns, their number) until every shift, phase and vector of a row has had its turn: columns take divisions, so they are made
// once and used for all rows or channels.
template <class F>
SK_INLINE void for_each_columns(const SparseConvShift& a, const F& f) {
  constexpr int kMost = 32;
  Column columns[kMost];
  int count = 0;
  for (int64_t s = 0; s < a.shifts; ++s)
    for (int64_t p = 0; p < a.phases; ++p)
      for (int64_t i = 0; i < a.row_floats; i += W) {
        columns[count++] = column_of(a, s, p, i);
        if (count == kMost) f(columns, count), count = 0;
      }
  if (count > 0) f(columns, count);
}

// `count` vectors of the window, in_step and out_step floats apart
SK_INLINE void copy_windows(const float* x, int64_t in_step, const Window& window, int64_t count, float* out, int64_t out_step) {
#if defined(__AVX512F__)
  if (window.step == 1) {
    const __mmask16 mask = __mmask16(((1u << window.last) - 1) & ~((1u << window.first) - 1));
    for (; count > 0; --count, x += in_step, out += out_step) _mm512_storeu_ps(out, _mm512_maskz_loadu_ps(mask, x));
    return;
  }
#endif
  for (; count > 0; --count, x += in_step, out += out_step) store(out, load_window(x, window));
}

// The rows of one column of one channel, zeros where the source has none.
SK_INLINE void copy_rows(const float* x, const Column& c, int64_t rows, int64_t row_floats, float* out) {
  for (int64_t r = 0, stop; r < rows; r = stop) {
    stop = r < c.begin ? c.begin : r < c.end ? c.end : rows;
    const bool zeros = r < c.begin || r >= c.end;
    const float* from = x + r * c.step;
    float* to = out + r * row_floats;
    if (!zeros && c.lanes == W) {
      copy_windows(from, c.step, c.window, stop - r, to, row_floats);
      continue;
    }
    for (int64_t i = r; i < stop; ++i, from += c.step, to += row_floats) {
      const vf v = zeros ? zero() : load_window(from, c.window);
      if (c.lanes == W)
        store(to, v);
      else
        store_first(to, v, c.lanes);
    }
  }
}

// A channel's plane stays in the first-level cache for all its copies.
void shift(const SparseConvShift& a) {
  for_each_columns(a, [&](const Column* columns, int count) {
    for (int64_t channel = 0; channel < a.channels; ++channel)
      for (int i = 0; i < count; ++i)
        copy_rows(a.x + channel * a.src_h * a.src_w + columns[i].source, columns[i], a.plane_rows, a.row_floats,
                  a.out + channel * a.channel_floats + columns[i].place);
  });
}

// row_floats is a multiple of W. Row by row: a row of all channels stays in the first-level cache for all its shifts.
void shift_interleaved(const SparseConvShift& a) {
  for_each_columns(a, [&](const Column* columns, int count) {
    for (int64_t r = 0; r < a.plane_rows; ++r)
      for (int i = 0; i < count; ++i) {
        const Column& c = columns[i];
        float* out = a.out + (c.place + r * a.row_floats) * a.channels;
        if (r < c.begin || r >= c.end)
          std::memset(out, 0, sizeof(float) * W * a.channels);
        else
          copy_windows(a.x + c.source + r * c.step, a.src_h * a.src_w, c.window, a.channels, out, W);
      }
  });
}

void transpose_all(const float* in, int64_t in_stride, int64_t rows, int64_t cols, float* out, int64_t out_stride) {
  for (int64_t c = 0; c < cols; c += W)
    for (int64_t r = 0; r < rows; r += W)
      transpose_tile_exact(in + r * in_stride + c, in_stride, int(rows - r < W ? rows - r : W), int(cols - c < W ? cols - c : W),
                           out + c * out_stride + r, out_stride);
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
