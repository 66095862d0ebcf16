// One description for the forward convolution and its gradients: pixels of a `source` are multiplied by taps into pixels of a
// `target`. Forward reads x and writes out. grad_x reads grad_out and writes grad_x: there the taps run backwards, and with a
// stride s the target pixels of one residue mod s (a phase) have taps of their own.
#pragma once
#include "cuda/device.h"

namespace sk {

// n / d for n, d < 65536 by one multiplication: with m = floor(2^32 / d) + 1, n * m / 2^32 is off by less than n * d / 2^32 / d.
struct Divider {
  uint32_t d, m;
  SK_HD static Divider by(int divisor) { return {uint32_t(divisor), divisor > 1 ? uint32_t((uint64_t(1) << 32) / unsigned(divisor) + 1) : 0}; }
  SK_HD int divide(int n) const { return m ? int((uint64_t(uint32_t(n)) * m) >> 32) : n; }
  SK_HD int remainder(int n) const { return n - divide(n) * int(d); }
};

// The taps that reach the target pixels of one phase, along one axis: tap i has weight row weight_first + i * weight_step and reads
// the source pixel at_first + i * at_step away from where the target pixel stands.
struct Taps {
  int count, weight_first, weight_step, at_first, at_step;
  SK_HD int weight(int i) const { return weight_first + i * weight_step; }
  SK_HD int at(int i) const { return at_first + i * at_step; }
  SK_HD int low() const { return at_step < 0 ? at(count - 1) : at_first; }
  SK_HD int span() const { return count ? (count - 1) * (at_step < 0 ? -at_step : at_step) : 0; }
};

struct Axis {
  int kernel, stride, pad, dilation;
  bool backwards;
  // Target pixel `target_step * j + phase` stands at source pixel `source_step * j`.
  SK_HD int target_step() const { return backwards ? stride : 1; }
  SK_HD int source_step() const { return backwards ? 1 : stride; }
  SK_HD Taps taps(int phase) const {
    if (!backwards) return {kernel, 0, 1, -pad, dilation};
    // tap k reads source pixel (phase + pad - k * dilation) / stride, where that is whole: every (stride / gcd)-th k
    int a = stride, b = dilation;
    while (b) {
      const int rest = a % b;
      a = b, b = rest;
    }
    const int step = stride / a;
    for (int first = 0; first < step && first < kernel; ++first) {
      const int at = phase + pad - first * dilation;
      if (at % stride == 0) return {(kernel - 1 - first) / step + 1, first, step, at / stride, -(dilation / a)};
    }
    return {0, 0, 0, 0, 0};
  }
};

struct Strides4 {  // of a tensor [N, C, H, W], in elements
  int64_t n, c, y, x;
};

struct ConvJob {
  Strides4 source_at, target_at;
  int64_t weight_group, weight_target, weight_source, weight_y, weight_x;  // strides of the weight, in elements
  int N, groups, source_group, target_group;                               // channels per group
  int source_h, source_w, target_h, target_w;
  Axis y, x;
  bool relu;
  bool vectors;  // source pixels are rows of whole, aligned 16-byte pieces
  bool pairs;    // target channels can be written two at a time

  // ---- the tile of target pixels (of one phase) that a block computes at a time: 2^tile_n images x 2^tile_h rows x 2^tile_w columns
  int tile_n, tile_h, tile_w;
  int tiles_h, tiles_w, tiles;  // tiles: of all images
  int halo_h, halo_w;           // source pixels under a tile, per image
  int pixels;                   // of all its images
  Divider by_halo_h, by_halo_w, by_pixels, by_round;

  // ---- shared memory. A source pixel holds `round_pieces` pieces of 16 bytes (8 or 4 channels) and a gap that keeps its
  // neighbours in other banks.
  int round_pieces, rounds;
  uint32_t pixel_bytes, stage_bytes, table_at, fragments_at, shared_bytes;
  int stages;
  bool keeps_weights;  // the fragments of all rounds fit
};

struct Span {  // pieces [first, end)
  int first, end;
  SK_HD int size() const { return end > first ? end - first : 0; }
};
SK_HD Span overlap(Span a, Span b) { return {a.first > b.first ? a.first : b.first, a.end < b.end ? a.end : b.end}; }
// The pieces of `per_piece` source channels that the target channels [first, end) need.
SK_HD Span pieces_of(const ConvJob& job, int first, int end, int per_piece) {
  const int channels = job.groups * job.target_group;
  if (end > channels) end = channels;
  if (first >= end) return {0, 0};
  return {first / job.target_group * job.source_group / per_piece, (((end - 1) / job.target_group + 1) * job.source_group - 1) / per_piece + 1};
}

// Where a halo pixel (index within the tile) lies in the source. `low`: the phase's smallest tap offsets.
struct SourcePixel {
  int n, y, x;
  bool inside;
};
SK_HD SourcePixel source_pixel(const ConvJob& job, int tile, int pixel, int low_y, int low_x) {
  const int row = job.by_halo_w.divide(pixel), x = pixel - row * job.halo_w;
  const int image = job.by_halo_h.divide(row), y = row - image * job.halo_h;
  const int tile_x = tile % job.tiles_w, rest = tile / job.tiles_w, tile_y = rest % job.tiles_h;
  SourcePixel p{(rest / job.tiles_h << job.tile_n) + image, (tile_y << job.tile_h) * job.y.source_step() + low_y + y,
                (tile_x << job.tile_w) * job.x.source_step() + low_x + x, false};
  p.inside = p.n < job.N && p.y >= 0 && p.y < job.source_h && p.x >= 0 && p.x < job.source_w;
  return p;
}

// The o-th target pixel of a tile.
struct TargetPixel {
  int n, y, x;
  bool inside;
};
SK_HD TargetPixel target_pixel(const ConvJob& job, int tile, int o, int phase_y, int phase_x) {
  const int tile_x = tile % job.tiles_w, rest = tile / job.tiles_w, tile_y = rest % job.tiles_h;
  const int x = o & ((1 << job.tile_w) - 1), y = (o >> job.tile_w) & ((1 << job.tile_h) - 1);
  TargetPixel p{(rest / job.tiles_h << job.tile_n) + (o >> (job.tile_w + job.tile_h)), ((tile_y << job.tile_h) + y) * job.y.target_step() + phase_y,
                ((tile_x << job.tile_w) + x) * job.x.target_step() + phase_x, false};
  p.inside = p.n < job.N && p.y < job.target_h && p.x < job.target_w;
  return p;
}
// Its halo pixel for the tap at (low_y, low_x).
SK_HD int halo_pixel(const ConvJob& job, int o) {
  const int x = o & ((1 << job.tile_w) - 1), y = (o >> job.tile_w) & ((1 << job.tile_h) - 1), image = o >> (job.tile_w + job.tile_h);
  return (image * job.halo_h + y * job.y.source_step()) * job.halo_w + x * job.x.source_step();
}

}  // namespace sk
