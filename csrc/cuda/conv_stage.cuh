// What the convolution kernels share: a tile of source pixels in shared memory, and the list of steps over it.
//
// Shared memory holds, per source pixel, pieces of 16 bytes of its channels. A matrix step takes two pieces, each from the pixel
// under some tap: (tap, piece) pairs in order, two at a time. So groups narrower than a step still fill it, with two taps, and no
// im2col is written anywhere: ldmatrix takes an address per row, the target pixel's own plus one offset per step and half.
#pragma once
#include "cuda/conv_job.h"

namespace sk {

constexpr int kConvThreads = 128;
template <class T>
constexpr int kPerPiece = 16 / int(sizeof(T));  // channels

struct TapPlane {
  Taps y, x;
  SK_HD int count() const { return y.count * x.count; }
  // Halo pixels from the tap at the lowest offsets.
  SK_HD int pixel(const ConvJob& job, int tap) const {
    const int iy = tap / x.count, ix = tap - iy * x.count;
    return (y.at(iy) - y.low()) * job.halo_w + x.at(ix) - x.low();
  }
  SK_HD int64_t weight(const ConvJob& job, int tap) const {
    const int iy = tap / x.count, ix = tap - iy * x.count;
    return y.weight(iy) * job.weight_y + x.weight(ix) * job.weight_x;
  }
};

// Pieces [pieces.first, pieces.end) of all halo pixels of `tile` into the stage at `to`: asynchronous copies where pixels are whole
// pieces, else channel by channel (any strides), which transposes NCHW on its way.
template <class T>
SK_DEVICE void load_source(const ConvJob& job, const T* source, int tile, const TapPlane& taps, Span pieces, uint32_t to) {
  constexpr int E = kPerPiece<T>;
  const int channels = job.groups * job.source_group, low_y = taps.y.low(), low_x = taps.x.low();
  if (!taps.count()) return;
  if (job.vectors) {
    for (int i = threadIdx.x; i < job.pixels * job.round_pieces; i += kConvThreads) {
      const int pixel = job.by_round.divide(i), piece = i - pixel * job.round_pieces, channel = (pieces.first + piece) * E;
      if (pieces.first + piece >= pieces.end) continue;
      const SourcePixel p = source_pixel(job, tile, pixel, low_y, low_x);
      const bool inside = p.inside && channel < channels;
      const T* from = source + p.n * job.source_at.n + p.y * job.source_at.y + p.x * job.source_at.x + channel;
      copy_async_16(to + pixel * job.pixel_bytes + piece * 16, inside ? from : source, inside ? 16 : 0);
    }
  } else {
    for (int i = threadIdx.x; i < job.pixels * job.round_pieces; i += kConvThreads) {
      // neighbouring threads read neighbouring pixels of NCHW, neighbouring channels of NHWC
      int pixel, piece;
      if (job.source_at.c == 1)
        pixel = job.by_round.divide(i), piece = i - pixel * job.round_pieces;
      else
        piece = job.by_pixels.divide(i), pixel = i - piece * job.pixels;
      if (pieces.first + piece >= pieces.end) continue;
      const SourcePixel p = source_pixel(job, tile, pixel, low_y, low_x);
      const int64_t at = p.n * job.source_at.n + p.y * job.source_at.y + p.x * job.source_at.x;
      alignas(16) T values[E];
      SK_UNROLL
      for (int e = 0; e < E; ++e) {
        const int channel = (pieces.first + piece) * E + e;
        values[e] = p.inside && channel < channels ? load(source + at + channel * job.source_at.c) : T{};
      }
      store_shared(to + pixel * job.pixel_bytes + piece * 16, bit_cast<Four<uint32_t>>(values));
    }
  }
}

}  // namespace sk
