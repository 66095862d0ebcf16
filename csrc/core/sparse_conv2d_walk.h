// The geometry of sparse_conv2d: forward, and each phase of grad_x, is a walk over a grid of destination pixels that reads
// source pixel (y*step_h + dy[tap], x*step_w + dx[tap]). Internal to csrc/core/sparse_conv2d*.
#pragma once
#include <algorithm>
#include <vector>

#include "core/sparse_conv2d_kernels.h"
#include "core/sparse_conv2d_plan.h"

namespace sk {

struct SparseConvWalk {
  int64_t rows, cols;    // destination grid
  int64_t dst_y, dst_x;  // grid pixel (y, x) is destination pixel (dst_y + y*dst_step_h, dst_x + x*dst_step_w)
  int64_t dst_step_h, dst_step_w;
  int64_t src_h, src_w;
  int64_t step_h, step_w;
  std::vector<int64_t> dy, dx;  // [taps]; kAbsentTap where the tap never falls on the grid
};

inline SparseConvWalk sparse_conv_forward_walk(const SparseConv2dShape& s) {
  SparseConvWalk w{s.OH(), s.OW(), 0, 0, 1, 1, s.H, s.W, s.stride_h, s.stride_w, {}, {}};
  w.dy.reserve(s.taps());
  w.dx.reserve(s.taps());
  for (int64_t t = 0; t < s.taps(); ++t) {
    w.dy.push_back(t / s.KW * s.dilation_h - s.pad_h);
    w.dx.push_back(t % s.KW * s.dilation_w - s.pad_w);
  }
  return w;
}

// Input pixels y = first_y + a*stride_h get their gradient from output pixels a + dy[tap], for the taps that divide.
inline SparseConvWalk sparse_conv_grad_walk(const SparseConv2dShape& s, int64_t first_y, int64_t first_x) {
  SparseConvWalk w{(s.H - first_y + s.stride_h - 1) / s.stride_h,
                   (s.W - first_x + s.stride_w - 1) / s.stride_w,
                   first_y,
                   first_x,
                   s.stride_h,
                   s.stride_w,
                   s.OH(),
                   s.OW(),
                   1,
                   1,
                   {},
                   {}};
  for (int64_t t = 0; t < s.taps(); ++t) {
    const int64_t y = first_y + s.pad_h - t / s.KW * s.dilation_h, x = first_x + s.pad_w - t % s.KW * s.dilation_w;
    const bool present = y % s.stride_h == 0 && x % s.stride_w == 0;
    w.dy.push_back(present ? y / s.stride_h : kAbsentTap);
    w.dx.push_back(present ? x / s.stride_w : kAbsentTap);
  }
  return w;
}

// Source channels as planes, pixels of a channel side by side.
struct SparseConvPlanes {
  const float* x;  // pixel 0; pixels outside those that were asked for need not exist
  int64_t stride;  // between channels
};
// An odd number of 64-byte lines between planes spreads them over the cache sets.
inline int64_t sparse_conv_odd_lines(int64_t floats) { return ((floats + 15) / 16 | 1) * 16; }

// Shifted copies of one source channel for `strip` grid rows: [shift][phase][plane_rows][row_floats]. A shift is a value of
// dx; a phase, one of dy modulo step_h. Whatever the padding, stride and dilation, each tap then reads one flat stream.
struct SparseConvCopies {
  int64_t strip, row_floats, first_row = 0, plane_rows = 0, channel_floats = 0;
  std::vector<int64_t> shift, phase;
  std::vector<int64_t> tap_offset;  // [taps]

  SparseConvCopies(const SparseConvWalk& w, int64_t strip_rows, int64_t row_size) : strip(strip_rows), row_floats(row_size) {
    const auto floor_div = [&](int64_t a) { return a >= 0 ? a / w.step_h : -((-a + w.step_h - 1) / w.step_h); };
    const auto place = [](std::vector<int64_t>& list, int64_t value) {
      const auto at = std::find(list.begin(), list.end(), value);
      if (at != list.end()) return int64_t(at - list.begin());
      list.push_back(value);
      return int64_t(list.size()) - 1;
    };
    int64_t last_row = 0;
    for (size_t t = 0; t < w.dy.size(); ++t) {
      if (w.dy[t] == kAbsentTap) continue;
      const int64_t row = floor_div(w.dy[t]);
      first_row = shift.empty() ? row : std::min(first_row, row);
      last_row = shift.empty() ? row : std::max(last_row, row);
      place(shift, w.dx[t]);
      place(phase, w.dy[t] - row * w.step_h);
    }
    plane_rows = strip + last_row - first_row;
    const int64_t plane = plane_rows * row_floats;
    channel_floats = sparse_conv_odd_lines(int64_t(shift.size() * phase.size()) * plane);
    for (size_t t = 0; t < w.dy.size(); ++t) {
      if (w.dy[t] == kAbsentTap) {
        tap_offset.push_back(kAbsentTap);
        continue;
      }
      const int64_t row = floor_div(w.dy[t]);
      const int64_t which = place(shift, w.dx[t]) * int64_t(phase.size()) + place(phase, w.dy[t] - row * w.step_h);
      tap_offset.push_back(which * plane + (row - first_row) * row_floats);
    }
  }

  // Pixels [first, last) of the source are shown by the copies for the grid rows from `row` on.
  int64_t first_pixel(const SparseConvWalk& w, int64_t row) const { return std::clamp<int64_t>((row + first_row) * w.step_h, 0, w.src_h) * w.src_w; }
  int64_t last_pixel(const SparseConvWalk& w, int64_t row) const {
    return std::clamp<int64_t>((row + first_row + plane_rows) * w.step_h, 0, w.src_h) * w.src_w;
  }
  int64_t most_pixels(const SparseConvWalk& w) const { return std::min(w.src_h, plane_rows * w.step_h) * w.src_w; }

  // Copies `channels` channels for the grid rows from `row` on: one channel after the other, or vector by vector, `channels` times
  // as far apart.
  void fill(const SparseConvCopyKernels& kernels, const SparseConvWalk& w, const SparseConvPlanes& planes, int64_t channels, int64_t row, float* out,
            bool interleaved = false) const {
    const SparseConvShift a{planes.x,
                            planes.stride,
                            out,
                            w.src_h,
                            w.src_w,
                            w.cols,
                            row_floats,
                            plane_rows,
                            w.step_h,
                            w.step_w,
                            row + first_row,
                            int64_t(shift.size()),
                            int64_t(phase.size()),
                            shift.data(),
                            phase.data(),
                            channels,
                            channel_floats};
    (interleaved ? kernels.shift_interleaved : kernels.shift)(a);
  }
};

// The drivers of the two families. `grad`: the walk belongs to grad_x, source and destination change places.
struct SparseConvJob {
  const SparseConv2dShape& shape;
  const SparseConvPlan& plan;
  const float* weight;
  const float* bias;  // [K] or null; forward only
  bool grad;
  const float* src;  // [N, source channels, src_h, src_w], in the shape's layout
  float* dst;        // [N, destination channels, dst_h, dst_w]
  int64_t dst_h, dst_w;
  const Pool& pool;

  int64_t src_channels() const { return grad ? shape.K : shape.C; }
  int64_t dst_channels() const { return grad ? shape.C : shape.K; }
  // The destination can be written as one flat stream of `row_floats` per row.
  bool flat(const SparseConvWalk& w, int64_t row_floats) const {
    return w.dst_step_h == 1 && w.dst_step_w == 1 && w.cols == dst_w && row_floats == w.cols;
  }
  const float* source(int64_t n, int64_t channel, int64_t pixels) const {
    return src + n * pixels * src_channels() + channel * (shape.channels_last ? 1 : pixels);
  }
  // Channels [channel, channel + channels) of image n, pixels [first, last): where they lie or, of a channels_last source, turned in `room`.
  SparseConvPlanes planes(const SparseConvWalk& w, int64_t n, int64_t channel, int64_t channels, int64_t first, int64_t last, float* room) const;
  int64_t planes_floats(int64_t channels, int64_t pixels) const { return shape.channels_last ? channels * sparse_conv_odd_lines(pixels) : 0; }
  // sums [channels, stride] of grid rows [row, row + rows) -> channels of image n from `channel` on
  void scatter(const SparseConvWalk& w, const float* sums, int64_t stride, int64_t row_floats, int64_t n, int64_t channel, int64_t channels,
               int64_t row, int64_t rows) const;
  // sums [destination channels, stride] of pixels [first, last) -> image n, channels_last
  void scatter(const float* sums, int64_t stride, int64_t n, int64_t first, int64_t last) const;
};
void sparse_conv_tile_run(const SparseConvJob& job, const SparseConvWalk& walk);
void sparse_conv_list_run(const SparseConvJob& job, const SparseConvWalk& walk);
// grad_weight [nnz, BO, BI, BT] += products of x [N, C, H, W], of the tile kernels in the shape's layout, and grad_out [N, K, OH, OW]
void sparse_conv_tile_grad_weight(const SparseConv2dShape& shape, const SparseConvPlan& plan, const float* x, const float* grad_out,
                                  float* grad_weight, const Pool& pool);
void sparse_conv_list_grad_weight(const SparseConv2dShape& shape, const SparseConvPlan& plan, const float* x, const float* grad_out,
                                  float* grad_weight, const Pool& pool);

inline int64_t sparse_conv_ceil(int64_t a, int64_t b) { return (a + b - 1) / b; }

}  // namespace sk
