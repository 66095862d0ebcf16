// What the sizes of a convolution alone say of its window: taps that never meet a pixel, and windows that torch cannot run.
#pragma once
#include <algorithm>

#include "core/grouped_conv2d.h"

namespace sk {

// ---- taps at the borders of a filter that never meet a pixel, wherever the filter stands (a dilated 3x3 on a map of one pixel keeps its
// middle): the convolution may go on without them, with less padding and a cropped weight

// How many there are at either end of one direction; the result keeps its size if as many go at both. `outputs` positions.
inline int64_t dead_taps(int64_t size, int64_t outputs, int64_t taps, int64_t stride, int64_t pad, int64_t dilation) {
  const int64_t most = std::min((taps - 1) / 2, pad / dilation);
  const auto lives = [&](int64_t tap) {  // the first position at which the tap is not left of the map must be there, and not right of it
    const int64_t shift = pad - tap * dilation, first = shift > 0 ? (shift + stride - 1) / stride : 0;
    return first < outputs && first * stride - shift < size;
  };
  int64_t dead = 0;
  while (dead < most && !lives(dead) && !lives(taps - 1 - dead)) ++dead;
  return dead;
}

struct DeadTaps {
  int64_t rows, columns;  // at either end
  explicit DeadTaps(const Conv2dShape& s)
      : rows(dead_taps(s.H, s.OH, s.KH, s.stride_h, s.pad_h, s.dilation_h)), columns(dead_taps(s.W, s.OW, s.KW, s.stride_w, s.pad_w, s.dilation_w)) {}
  explicit operator bool() const { return rows + columns > 0; }
  int64_t height(int64_t taps) const { return taps - 2 * rows; }
  int64_t width(int64_t taps) const { return taps - 2 * columns; }
};

// ---- oneDNN's 16-bit convolutions under torch 2.13 end the process where a window touches no pixel, are wrong for one output column by a
// stride, and their weight gradient for a tap that touches no pixel: such calls stay here

// `size` of x, windows of `taps` that lie `dilation` apart
inline bool each_window_touches(int64_t size, int64_t outputs, int64_t taps, int64_t stride, int64_t pad, int64_t dilation) {
  for (int64_t o = 0; o < outputs; ++o) {
    const int64_t first = o * stride - pad, skipped = first < 0 ? (-first + dilation - 1) / dilation : 0;  // taps before the image
    if (skipped >= taps || first + skipped * dilation >= size) return false;
  }
  return true;
}
// In any type it ends the process where taps that lie apart miss the image, in a channels_last convolution.
inline bool torch_survives(const int64_t (&size)[2], const int64_t (&outputs)[2], const int64_t (&taps)[2], const int64_t (&stride)[2],
                           const int64_t (&pad)[2], const int64_t (&dilation)[2]) {
  const auto touches = [&](int d) { return each_window_touches(size[d], outputs[d], taps[d], stride[d], pad[d], dilation[d]); };
  const bool apart = (taps[0] > 1 && dilation[0] > 1) || (taps[1] > 1 && dilation[1] > 1);
  return !apart || (touches(0) && touches(1));
}
inline bool torch_can_run(const int64_t (&size)[2], const int64_t (&outputs)[2], const int64_t (&taps)[2], const int64_t (&stride)[2],
                          const int64_t (&pad)[2], const int64_t (&dilation)[2]) {
  if (outputs[1] == 1 && stride[1] > 1) return false;
  for (int d = 0; d < 2; ++d) {
    if (!each_window_touches(size[d], outputs[d], taps[d], stride[d], pad[d], dilation[d])) return false;
    if (!each_window_touches(size[d], taps[d], outputs[d], dilation[d], pad[d], stride[d])) return false;  // so does each tap in some window
  }
  return true;
}
// Its float32 weight gradient of a single tap reads memory of its own that nobody wrote, where strides pass pixels by and few channels come in
// (oneDNN's kernel for AVX2).
inline bool torch_misreads_passed_pixels(int64_t channels, const int64_t (&taps)[2], const int64_t (&stride)[2], const int64_t (&pad)[2]) {
  return channels < 8 && taps[0] * taps[1] == 1 && stride[0] * stride[1] > 1 && pad[0] + pad[1] == 0;
}

}  // namespace sk
