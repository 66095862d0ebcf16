// How the drivers of grouped_conv2d's matrix tiles copy an image: its padding and the phases of a strided filter, as one line of positions.
#pragma once
#include <algorithm>
#include <vector>

#include "core/grouped_conv2d.h"
#include "core/grouped_conv2d_tiles.h"

namespace sk {

constexpr int64_t kTileValues = kTile * kTileDepth;

inline int64_t conv_tile_up(int64_t a, int64_t b) { return (a + b - 1) / b; }

// One axis of the image, cut into the `stride` phases of a strided filter: pixel i of phase p is pixel i*stride + p - pad of the image.
struct ConvTileAxis {
  int64_t size, out, taps, stride, pad, dilation;
  int64_t phase(int64_t tap) const { return tap * dilation % stride; }
  int64_t shift(int64_t tap) const { return tap * dilation / stride; }
  int64_t seen() const { return out + shift(taps - 1); }  // pixels of a phase
  bool used(int64_t phase_) const {
    for (int64_t t = 0; t < taps; ++t)
      if (phase(t) == phase_) return true;
    return false;
  }
  int64_t before(int64_t phase_) const { return std::min(seen(), std::max<int64_t>(0, conv_tile_up(std::max<int64_t>(0, pad - phase_), stride))); }
  int64_t inside(int64_t phase_) const {  // pixels that the image has
    const int64_t past = size + pad - phase_;
    return past <= 0 ? 0 : std::max<int64_t>(0, std::min(seen(), conv_tile_up(past, stride)) - before(phase_));
  }
};

// How the image is copied, for any number of channels.
struct ConvTileCopy {
  ConvTileAxis rows, columns;
  std::vector<int64_t> row_phases, column_phases;  // that some tap needs
  int64_t step;                                    // pixels from one row to the next: the zeros at its end may be those of the next one
  explicit ConvTileCopy(const Conv2dShape& s)
      : rows{s.H, s.OH, s.KH, s.stride_h, s.pad_h, s.dilation_h}, columns{s.W, s.OW, s.KW, s.stride_w, s.pad_w, s.dilation_w} {
    for (int64_t p = 0; p < s.stride_h; ++p)
      if (rows.used(p)) row_phases.push_back(p);
    int64_t shared = columns.seen() - s.OW;
    for (int64_t p = 0; p < s.stride_w; ++p) {
      if (!columns.used(p)) continue;
      column_phases.push_back(p);
      shared = std::min({shared, columns.before(p), columns.seen() - columns.before(p) - columns.inside(p)});
    }
    step = columns.seen() - shared;
  }
  // pixels of one phase in a copy of `count` output rows
  int64_t phase_pixels(int64_t count) const { return (count + rows.shift(rows.taps - 1)) * step; }
  int64_t pixels(int64_t count) const { return int64_t(row_phases.size() * column_phases.size()) * phase_pixels(count); }
  static int64_t index(const std::vector<int64_t>& phases, int64_t phase) {
    return std::lower_bound(phases.begin(), phases.end(), phase) - phases.begin();
  }
};

}  // namespace sk
