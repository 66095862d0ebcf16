// Flat-pixel planes: the padded copy of NCHW (or NHWC) images that the NCHW kernels and the weight gradient read.
// A padded image row has stride `row`; where the right padding of a row can double as the left padding of the next
// one it is stored once, so that nearly all lanes of the flat vectors are pixels whatever the width.
#pragma once
#include <algorithm>
#include <cstring>
#include <vector>

#include "core/grouped_conv2d_impl.h"

namespace sk {

struct Planes {
  const ConvJob& job;
  const ConvPlaneKernels& kernels;
  bool direct;        // a 1x1 convolution may read the image itself
  int64_t row;        // S: floats between rows of one phase
  int64_t phase;      // floats between the stride_h*stride_w phases of a plane
  int64_t plane;      // floats between planes
  int64_t positions;  // flat positions from the first to the last output pixel
  int64_t vectors;
  int64_t top, left, skip_top, skip_left, copy_h, copy_w;  // the part of the image that lies inside the padded plane
  std::vector<int64_t> tap_offset;                         // [KH*KW]

  Planes(const ConvJob& j, const ConvPlaneKernels& k, bool may_be_direct) : job(j), kernels(k) {
    const int64_t lanes = k.lanes, padded_h = j.padded_h(), padded_w = j.padded_w();
    const bool plain = j.stride_h == 1 && j.stride_w == 1 && j.expand_h == 1 && j.expand_w == 1;
    // a plane that is a multiple of 4 KB puts the same pixel of every channel into one cache set: copy those too
    direct = may_be_direct && plain && j.KH == 1 && j.KW == 1 && j.pad_h == 0 && j.pad_w == 0 && j.OH == j.H && j.OW == j.W &&
             j.H * j.W % lanes == 0 && j.H * j.W * 4 % 4096 != 0;
    top = std::max<int64_t>(0, j.pad_h), skip_top = std::max<int64_t>(0, -j.pad_h);
    left = std::max<int64_t>(0, j.pad_w), skip_left = std::max<int64_t>(0, -j.pad_w);
    copy_h = std::max<int64_t>(0, std::min(j.H - skip_top, padded_h - top));
    copy_w = std::max<int64_t>(0, std::min(j.W - skip_left, padded_w - left));
    row = (padded_w + j.stride_w - 1) / j.stride_w;
    if (plain && padded_w - left - copy_w <= left) row = std::max<int64_t>(j.OW, left + copy_w);
    positions = (j.OH - 1) * row + j.OW;
    vectors = (positions + lanes - 1) / lanes;
    int64_t reach = 0;
    std::vector<int64_t> within;  // offset of the tap inside its phase
    for (int64_t y = 0; y < j.KH; ++y)
      for (int64_t x = 0; x < j.KW; ++x) {
        within.push_back(y * j.dilation_h / j.stride_h * row + x * j.dilation_w / j.stride_w);
        reach = std::max(reach, within.back());
      }
    const int64_t rows = (padded_h + j.stride_h - 1) / j.stride_h;
    phase = std::max(reach + vectors * lanes, rows * row);
    plane = (phase * j.stride_h * j.stride_w + 15) / 16 * 16;
    if (plane / 16 % 2 == 0) plane += 16;  // an odd number of cache lines
    if (direct) plane = j.H * j.W;
    for (int64_t y = 0; y < j.KH; ++y)
      for (int64_t x = 0; x < j.KW; ++x)
        tap_offset.push_back(within[y * j.KW + x] + (y * j.dilation_h % j.stride_h * j.stride_w + x * j.dilation_w % j.stride_w) * phase);
  }

  // `count` channels from `channel` of image n -> dst [count][plane]. The padding must already be zero (clear()).
  void copy(const float* x, int64_t n, int64_t channel, int64_t count, float* dst) const {
    const ConvJob& j = job;
    const int64_t pixel = j.channels_last ? j.C : 1, x_row = j.W * pixel, x_plane = j.channels_last ? 1 : j.H * j.W;
    const float* src = x + n * j.C * j.H * j.W + channel * x_plane;
    if (j.stride_h == 1 && j.stride_w == 1 && j.expand_h == 1 && j.expand_w == 1) {
      if (copy_h == 0 || copy_w == 0) return;
      src += skip_top * x_row + skip_left * pixel;
      dst += top * row + left;
      if (j.channels_last)
        kernels.copy_rows_nhwc(src, pixel, x_row, copy_h, copy_w, count, dst, row, plane);
      else
        for (int64_t c = 0; c < count; ++c) kernels.copy_rows(src + c * x_plane, x_row, copy_h, copy_w, dst + c * plane, row);
      return;
    }
    const int64_t padded_h = j.padded_h(), padded_w = j.padded_w();
    // pixels [first, end) of a row lie inside; one axis is strided or the other expanded, never both
    const int64_t first = std::max<int64_t>(0, (j.expand_w - 1 - j.pad_w) / j.expand_w);
    const int64_t end = std::max(first, std::min(j.W, (padded_w - j.pad_w + j.expand_w - 1) / j.expand_w));
    for (int64_t c = 0; c < count; ++c)
      for (int64_t y = 0; y < j.H; ++y) {
        const int64_t v = y * j.expand_h + j.pad_h;  // row of the padded, expanded image
        if (v < 0 || v >= padded_h) continue;
        float* to = dst + c * plane + v % j.stride_h * j.stride_w * phase + v / j.stride_h * row;
        const float* from = src + c * x_plane + y * x_row;
        if (j.stride_w == 1) {
          for (int64_t i = first; i < end; ++i) to[i * j.expand_w + j.pad_w] = from[i * pixel];
          continue;
        }
        for (int64_t start = first; start < std::min(end, first + j.stride_w); ++start) {
          const int64_t u = start + j.pad_w, pixels = (end - start + j.stride_w - 1) / j.stride_w, step = j.stride_w * pixel;
          float* of_phase = to + u % j.stride_w * phase + u / j.stride_w;
          const float* at = from + start * pixel;
          if (step == 2)
            for (int64_t i = 0; i < pixels; ++i) of_phase[i] = at[2 * i];
          else
            for (int64_t i = 0; i < pixels; ++i) of_phase[i] = at[i * step];
        }
      }
  }
  void clear(float* dst, int64_t count) const { std::memset(dst, 0, size_t(count * plane) * sizeof(float)); }
};

}  // namespace sk
