// 1x1 convolutions of channels_last images: pixels of all images in one line, as a matrix product [pixels, C] x [C, K].
//
// Pixels go in chunks that stay in L2 while block after block of weights passes by, and meanwhile the weights, pixels and
// results to come are fetched: a map larger than L2 is bound by that. A chunk is copied beforehand where its
// pixels are strided, or where they are a multiple of a page apart: the pixels of a tile would share one set of L1.
#include <cstring>

#include "core/grouped_conv2d_impl.h"

namespace sk {
namespace {

constexpr int64_t kOneChunk = 256 << 10;    // floats of x and out: at most so many are not cut
constexpr int64_t kChunk = 32 << 10;        // floats of x and out in a chunk, if they are cut ...
constexpr int64_t kHeavyChunk = 128 << 10;  // ... and the weights, which each chunk reads again, do not stay in L2
constexpr int64_t kHeavy = 128 << 10;
constexpr int64_t kCold = 128 << 10;  // floats of out: fewer were in the cache, most likely, when they were freed
constexpr int64_t kPageFloats = 4096 / 4;

// pixels [first, first + count) of the output's line -> [count][step]
void gather(const ConvJob& job, const float* x, int64_t first, int64_t count, int64_t step, float* to) {
  for (int64_t p = first; p < first + count; ++p, to += step) {
    const int64_t ox = p % job.OW, oy = p / job.OW % job.OH, n = p / (job.OW * job.OH);
    std::memcpy(to, x + ((n * job.H + oy * job.stride_h) * job.W + ox * job.stride_w) * job.C, size_t(job.C) * sizeof(float));
  }
}

// Asks for the lines that a tile will write and add, while it computes.
inline void expect(const float* out, const float* shortcut, int64_t pixel, int64_t pixels, int64_t channels) {
  for (int64_t p = 0; p < pixels; ++p)
    for (int64_t c = 0; c < channels; c += 16) {
#if defined(__x86_64__)
      asm volatile("prefetchw %0" : : "m"(out[p * pixel + c]));
#else
      __builtin_prefetch(out + p * pixel + c, 1, 3);
#endif
      if (shortcut) __builtin_prefetch(shortcut + p * pixel + c, 0, 3);
    }
}

// The same for the chunk to come, `lines` lines from `at`.
inline void expect_later(const float* at, int64_t lines) {
  for (int64_t i = 0; i < lines; ++i) __builtin_prefetch(at + 16 * i, 0, 2);
}

}  // namespace

void conv_nhwc_flat(const ConvJob& job, const LaneConfig& config, ConvWeights& weights, const float* bias, const float* x, const float* shortcut,
                    bool relu, float* out, const Pool& pool) {
  const int64_t P = config.P, C = job.C, pixels = job.N * job.OH * job.OW, vectors = weights.count(), channels = C / job.groups;
  const bool dense_line = job.stride_h == 1 && job.stride_w == 1 && job.OH == job.H && job.OW == job.W;
  const bool copied = !dense_line || (C % kPageFloats == 0 && P > 4);
  const int64_t step = copied ? C + (C % 256 == 0 ? 16 : 0) : C;
  const bool light = vectors * weights.block_floats() <= kHeavy;
  const int64_t per_pixel = C + job.K, cut = light ? kChunk : kHeavyChunk;
  const int64_t chunk = pixels * per_pixel <= kOneChunk ? pixels : std::min(pixels, std::max(P, cut / per_pixel / P * P));
  const int64_t chunks = pixels / chunk, longest = pixels - (chunks - 1) * chunk;  // the last one also takes the rest
  Scratch packed_all(weights.ready() || chunks == 1 ? 64 : size_t(vectors * weights.block_floats()) * sizeof(float));
  if (!weights.ready() && chunks > 1) weights.pack_all(packed_all.as<float>(), pool);

  const size_t copy_bytes = copied ? size_t(longest * step) * sizeof(float) : 64;
  Scratch one_copy(chunks == 1 ? copy_bytes : 64);  // for all threads; of several chunks each thread copies its own
  if (copied && chunks == 1)
    parallel(pool, pixels, 1 + 65536 / C,
             [&](int64_t begin, int64_t end) { gather(job, x, begin, end - begin, step, one_copy.as<float>() + begin * step); });

  const bool cold = pixels * job.K > kCold;

  LaneTile base{};
  const int64_t no_offset = 0, width = weights.width();
  base.tap_offset = &no_offset;
  base.taps = 1;
  base.x_pixel = step;
  base.channels = channels;
  base.relu = relu;
  base.out_pixel = job.out_step();
  // pixels [start, start + count), which lie at `line`, of one block of weights
  const auto compute = [&](int64_t start, int64_t count, const float* line, int64_t b, const float* packed) {
    const LaneMap& map = weights.blocks()[b];
    const LaneConfig& last = conv_last_tile(config, count);
    const int64_t tiles = (count + P - 1) / P;
    for (int64_t i = 0; i < tiles; ++i) {
      const LaneConfig& tile = i == tiles - 1 && count % P ? last : config;
      const int64_t p = std::min(i * P, count - tile.P);  // the last tile may overlap the one before: same values again
      LaneTile t = base;
      t.x = line + p * step + map.window;
      t.x2 = line + p * step + map.window2;
      t.weight = packed;
      if (start > 0 && light && !copied)  // the weights are there: the next chunk's pixels
        t.prefetch = reinterpret_cast<const char*>(line + count * C + (b * tiles + i) * (count * C / (vectors * tiles)));
      else
        t.prefetch = conv_prefetch(weights, b + 1, i, tiles, channels, t.x + P * step);  // then the next tile's pixels
      t.bias = bias + b * width;
      t.index = map.index;
      t.second = map.second;
      t.lanes = map.lanes();
      const int64_t at = (start + p) * job.out_step() + map.first_channel;
      t.out = out + at;
      if (shortcut) t.shortcut = shortcut + at;
      if (start == 0 && cold) expect(t.out, t.shortcut, job.out_step(), tile.P, map.channels);
      const int64_t ahead = job.out_pixel ? 0 : std::min(count, pixels - start - count) * job.K / 16, share = ahead / (vectors * tiles) + 1;
      if (ahead > 0) {
        const int64_t later = (start + count) * job.K + (b * tiles + i) * share * 16;
        expect_later(out + later, share);
        if (shortcut) expect_later(shortcut + later, share);
      }
      tile.tile[map.kind][0](t);
    }
  };
  const double macs = double(std::min(chunk, pixels)) * double(channels * width);
  parallel(pool, chunks * vectors, conv_grain(macs), [&](int64_t begin, int64_t end) {
    Scratch scratch(weights.ready() ? 64 : size_t(weights.block_floats()) * sizeof(float)), copy(chunks == 1 ? 64 : copy_bytes);
    int64_t in_copy = -1;
    for (int64_t unit = begin; unit < end; ++unit) {
      const int64_t b = unit % vectors, c = unit / vectors, start = c * chunk, count = c == chunks - 1 ? longest : chunk;
      if (copied && chunks > 1 && in_copy != c) gather(job, x, start, count, step, copy.as<float>());
      in_copy = c;
      if (!weights.ready()) weights.pack(b, scratch.as<float>());
      const float* line = !copied ? x + start * C : chunks == 1 ? one_copy.as<float>() : copy.as<float>();
      compute(start, count, line, b, weights.ready() ? weights.block(b) : scratch.as<float>());
    }
  });
}

}  // namespace sk
