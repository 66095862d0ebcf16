// The host's part of a convolution: strides of a layout, the shape of a tile, what fits into shared memory.
#pragma once
#include <algorithm>

#include "cuda/conv_job.h"
#include "cuda/grouped_conv2d.h"

namespace sk {

inline Strides4 strides_of(int64_t channels, int64_t h, int64_t w, bool channels_last) {
  return channels_last ? Strides4{h * w * channels, 1, w * channels, channels} : Strides4{channels * h * w, h * w, w, 1};
}

enum class Direction { forward, grad_x };

// Everything but the tile.
template <class T>
ConvJob conv_job(const Conv2dShape& s, Direction direction, const void* source, const void* target, bool relu) {
  const bool backwards = direction == Direction::grad_x;
  const int64_t in_group = s.C / s.groups, out_group = s.K / s.groups, taps = s.KH * s.KW;
  const Strides4 x_at = strides_of(s.C, s.H, s.W, s.channels_last), out_at = strides_of(s.K, s.OH, s.OW, s.channels_last);
  const int64_t of_in = s.weight_channels_last ? 1 : taps, of_out = in_group * taps, of_tap = s.weight_channels_last ? in_group : 1;
  ConvJob job{};
  job.source_at = backwards ? out_at : x_at, job.target_at = backwards ? x_at : out_at;
  job.weight_group = out_group * of_out, job.weight_target = backwards ? of_in : of_out, job.weight_source = backwards ? of_out : of_in;
  job.weight_y = s.KW * of_tap, job.weight_x = of_tap;
  job.N = int(s.N), job.groups = int(s.groups);
  job.source_group = int(backwards ? out_group : in_group), job.target_group = int(backwards ? in_group : out_group);
  job.source_h = int(backwards ? s.OH : s.H), job.source_w = int(backwards ? s.OW : s.W);
  job.target_h = int(backwards ? s.H : s.OH), job.target_w = int(backwards ? s.W : s.OW);
  job.y = {int(s.KH), int(s.stride_h), int(s.pad_h), int(s.dilation_h), backwards};
  job.x = {int(s.KW), int(s.stride_w), int(s.pad_w), int(s.dilation_w), backwards};
  job.relu = relu;
  const int64_t channels = int64_t(job.groups) * job.source_group;
  job.vectors = s.channels_last && channels * sizeof(T) % 16 == 0 && reinterpret_cast<uintptr_t>(source) % 16 == 0;
  job.pairs = s.channels_last && job.groups * job.target_group % 2 == 0 && reinterpret_cast<uintptr_t>(target) % (2 * sizeof(T)) == 0;
  return job;
}

inline int longest_span(const Axis& axis) {
  int span = 0;
  for (int phase = 0; phase < axis.target_step(); ++phase) span = std::max(span, axis.taps(phase).span());
  return span;
}
inline int most_taps(const Axis& axis) {
  int count = 0;
  for (int phase = 0; phase < axis.target_step(); ++phase) count = std::max(count, axis.taps(phase).count);
  return count;
}
inline int64_t pieces_up(int64_t a, int64_t b) { return (a + b - 1) / b; }

// A tile of 2^log2_pixels target pixels, in the shape that loads and multiplies least; false if none has at most `limit` halo pixels.
inline bool choose_tile(ConvJob& job, int log2_pixels, int limit) {
  const int rows = int(pieces_up(job.target_h, job.y.target_step())), columns = int(pieces_up(job.target_w, job.x.target_step()));
  const int span_y = longest_span(job.y), span_x = longest_span(job.x);
  double best = -1;
  for (int w = 0; w <= log2_pixels; ++w)
    for (int h = 0; h + w <= log2_pixels; ++h) {
      const int n = log2_pixels - w - h;
      if ((h && 1 << (h - 1) >= rows) || (w && 1 << (w - 1) >= columns)) continue;  // half of it would be empty
      const int halo_h = ((1 << h) - 1) * job.y.source_step() + span_y + 1, halo_w = ((1 << w) - 1) * job.x.source_step() + span_x + 1;
      const int64_t pixels = int64_t(halo_h) * halo_w << n;
      if (pixels > limit || halo_h >= 65536 || halo_w >= 65536) continue;
      const int64_t tiles_h = pieces_up(rows, 1 << h), tiles_w = pieces_up(columns, 1 << w), tiles = pieces_up(job.N, 1 << n) * tiles_h * tiles_w;
      const double cost = double(tiles) * (double(pixels) + (1 << log2_pixels)) * (w < 2 ? 1.5 : 1);  // short rows are scattered in memory
      if (tiles > INT32_MAX || (best >= 0 && cost >= best)) continue;
      best = cost;
      job.tile_n = n, job.tile_h = h, job.tile_w = w;
      job.tiles_h = int(tiles_h), job.tiles_w = int(tiles_w), job.tiles = int(tiles);
      job.halo_h = halo_h, job.halo_w = halo_w, job.pixels = int(pixels);
    }
  job.by_halo_h = Divider::by(job.halo_h), job.by_halo_w = Divider::by(job.halo_w), job.by_pixels = Divider::by(job.pixels);
  return best >= 0;
}

inline uint32_t up_to_16(int64_t bytes) { return uint32_t((bytes + 15) / 16 * 16); }

// Source pieces of one block of 8 * tiles target channels, and of one of its sets, at the most.
struct Widths {
  int block, set;
};
inline Widths widths(const ConvJob& job, int tiles, int shared, int per_piece) {
  Widths most{0, 0};
  const int channels = job.groups * job.target_group;
  for (int first = 0; first < channels; first += 8 * shared) {
    most.set = std::max(most.set, pieces_of(job, first, first + 8 * shared, per_piece).size());
    if (first % (8 * tiles) == 0) most.block = std::max(most.block, pieces_of(job, first, first + 8 * tiles, per_piece).size());
  }
  return most;
}

// Shared memory of a forward or grad_x block, in at most `limit` bytes: false if nothing fits. `step_bytes`: offsets and weights.
inline bool choose_stages(ConvJob& job, Widths width, int sets, int step_bytes, size_t limit) {
  const int taps = most_taps(job.y) * most_taps(job.x);
  for (bool keeps : {true, false})
    for (int pieces = width.block; pieces; pieces = pieces > 8 ? 8 : pieces / 2)
      for (int stages : {2, 1}) {
        const int rounds = int(pieces_up(width.block, pieces));
        // an even number of steps per set and round at the worst
        const int64_t steps =
            int64_t(sets) * (keeps ? pieces_up(int64_t(taps) * width.set, 2) + rounds : pieces_up(int64_t(taps) * std::min(pieces, width.set), 2));
        const uint32_t pixel = (pieces | 1) * 16, stage = job.pixels * pixel;  // an odd number of pieces: eight pixels in eight different banks
        const uint32_t table = up_to_16(int64_t(stages) * stage), fragments = table + up_to_16(steps * 8);
        if (int64_t(fragments) + steps * (step_bytes - 8) > int64_t(limit)) continue;
        job.round_pieces = pieces, job.rounds = rounds, job.by_round = Divider::by(pieces);
        job.pixel_bytes = pixel, job.stage_bytes = stage, job.stages = stages, job.keeps_weights = keeps;
        job.table_at = table, job.fragments_at = fragments, job.shared_bytes = uint32_t(fragments + steps * (step_bytes - 8));
        return true;
      }
  return false;
}

}  // namespace sk
