// 1x1 convolutions of channels_last images: pixels of all images in one line, as a matrix product [pixels, C] x [C, K].
//
// Pixels go in chunks that stay in L2 while block after block of weights passes by. A chunk is copied beforehand where its
// pixels are strided, or where they are a multiple of a page apart: the pixels of a tile would share one set of L1.
#include <cstring>

#include "core/grouped_conv2d_impl.h"

namespace sk {
namespace {

constexpr int64_t kOneChunk = 256 << 10;  // floats of x and out: at most so many are not cut
constexpr int64_t kChunk = 128 << 10;     // floats of x and out in a chunk, if they are cut
constexpr int64_t kCopied = 1 << 20;      // floats of x that are copied at a time
constexpr int64_t kPageFloats = 4096 / 4;

// pixels [first, first + count) of the output's line -> [count][step]
void gather(const ConvJob& job, const float* x, int64_t first, int64_t count, int64_t step, float* to, const Pool& pool) {
  parallel(pool, count, 1 + 65536 / job.C, [&](int64_t begin, int64_t end) {
    for (int64_t i = begin; i < end; ++i) {
      const int64_t p = first + i, ox = p % job.OW, oy = p / job.OW % job.OH, n = p / (job.OW * job.OH);
      std::memcpy(to + i * step, x + ((n * job.H + oy * job.stride_h) * job.W + ox * job.stride_w) * job.C, size_t(job.C) * sizeof(float));
    }
  });
}

// Asks for the lines that a tile will write and add, while it computes.
inline void expect(const float* out, const float* shortcut, int64_t pixel, int64_t pixels, int64_t channels) {
  for (int64_t p = 0; p < pixels; ++p)
    for (int64_t c = 0; c < channels; c += 16) {
#if defined(__x86_64__)
      asm volatile("prefetchw %0" : : "m"(out[p * pixel + c]));
#endif
      if (shortcut) __builtin_prefetch(shortcut + p * pixel + c, 0, 3);
    }
}

}  // namespace

void conv_nhwc_flat(const ConvJob& job, const LaneConfig& config, ConvWeights& weights, const float* bias, const float* x, const float* shortcut,
                    bool relu, float* out, const Pool& pool) {
  const int64_t P = config.P, C = job.C, pixels = job.N * job.OH * job.OW, vectors = weights.count();
  const bool dense_line = job.stride_h == 1 && job.stride_w == 1 && job.OH == job.H && job.OW == job.W;
  const bool copied = !dense_line || (C % kPageFloats == 0 && P > 4);
  const int64_t step = copied ? C + (C % 256 == 0 ? 16 : 0) : C;
  const int64_t stretch = copied ? std::min(pixels, std::max(P, kCopied / C / P * P)) : pixels;  // pixels copied at a time
  const int64_t chunk = stretch * (C + job.K) <= kOneChunk ? stretch : std::min(stretch, std::max(P, kChunk / (C + job.K) / P * P));
  const int64_t channels = C / job.groups;
  Scratch packed_all(weights.ready() || pixels < 2 * chunk ? 64 : size_t(vectors * weights.block_floats()) * sizeof(float));
  if (!weights.ready() && pixels >= 2 * chunk) weights.pack_all(packed_all.as<float>(), pool);
  const int64_t stretches = pixels / stretch;  // the last one also takes the rest, as the last chunk of each does
  const int64_t longest = pixels - (stretches - 1) * stretch;
  Scratch lines(copied ? size_t(longest * step) * sizeof(float) : 64);

  LaneTile base{};
  const int64_t no_offset = 0;
  base.tap_offset = &no_offset;
  base.taps = 1;
  base.channels = channels;
  base.x_pixel = step;
  base.relu = relu;
  base.out_pixel = job.K;
  for (int64_t s = 0; s < stretches; ++s) {
    const int64_t start = s * stretch, count = s == stretches - 1 ? longest : stretch, chunks = std::max<int64_t>(1, count / chunk);
    if (copied) gather(job, x, start, count, step, lines.as<float>(), pool);
    const float* line = copied ? lines.as<float>() : x + start * C;
    const double macs = double(std::min(chunk, count)) * double(channels * weights.width());
    parallel(pool, chunks * vectors, conv_grain(macs), [&](int64_t begin, int64_t end) {
      Scratch scratch(weights.ready() ? 64 : size_t(weights.block_floats()) * sizeof(float));
      for (int64_t unit = begin; unit < end; ++unit) {
        const int64_t b = unit % vectors, first = unit / vectors * chunk, size = unit / vectors == chunks - 1 ? count - first : chunk;
        const LaneMap& map = weights.blocks()[b];
        const float* packed = weights.ready() ? weights.block(b) : scratch.as<float>();
        if (!weights.ready()) weights.pack(b, scratch.as<float>());
        const LaneConfig& last = conv_last_tile(config, size);
        const int64_t tiles = (size + P - 1) / P;
        for (int64_t i = 0; i < tiles; ++i) {
          const LaneConfig& tile = i == tiles - 1 && size % P ? last : config;
          const int64_t p = std::min(i * P, size - tile.P);  // the last tile may overlap the one before: same values again
          LaneTile t = base;
          t.x = line + (first + p) * step + map.window;
          t.x2 = line + (first + p) * step + map.window2;
          t.weight = packed;
          t.prefetch = conv_prefetch(weights, b + 1, i, tiles, channels, t.x + P * step);  // then the pixels to come
          t.bias = bias + b * weights.width();
          t.index = map.index;
          t.second = map.second;
          t.lanes = map.lanes();
          const int64_t at = (start + first + p) * job.K + map.first_channel;
          t.out = out + at;
          if (shortcut) t.shortcut = shortcut + at;
          expect(t.out, t.shortcut, job.K, tile.P, map.channels);
          tile.tile[map.kind][0](t);
        }
      }
    });
  }
}

}  // namespace sk
