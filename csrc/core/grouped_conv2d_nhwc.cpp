// Driver of the NHWC kernels: map output channels to vectors, choose the tile, pack the weights (every call, unless a pack
// has them: nothing derived from weight values outlives it), then run (image, row, vectors, pixels).
//
// Only where a border cannot be handled inside a kernel is the image copied with its padding; from then on the
// convolution has none.
#include <algorithm>
#include <cstring>
#include <vector>

#include "core/grouped_conv2d_spread.h"

namespace sk {
namespace {

// ---------------------------------------------------------------- padding

// images [count][H][W][C] -> [count][padded_h][padded_w][C]
void pad_images(const ConvJob& job, const float* x, int64_t count, float* padded, const Pool& pool) {
  const int64_t PH = job.padded_h(), PW = job.padded_w(), C = job.C;
  const size_t pixel = size_t(C) * sizeof(float);
  parallel(pool, count * PH, 1 + 16384 / (PW * C), [&](int64_t begin, int64_t end) {
    for (int64_t i = begin; i < end; ++i) {
      float* to = padded + i * PW * C;
      const int64_t v = i % PH - job.pad_h;
      const bool inside = v >= 0 && v % job.expand_h == 0 && v / job.expand_h < job.H;
      const float* from = x + (i / PH * job.H + (inside ? v / job.expand_h : 0)) * job.W * C;
      if (inside && job.expand_w == 1) {
        const int64_t left = std::min(PW, std::max<int64_t>(0, job.pad_w)), skip = std::max<int64_t>(0, -job.pad_w);
        const int64_t columns = std::max<int64_t>(0, std::min(job.W - skip, PW - left));
        std::memset(to, 0, left * pixel);
        if (columns) std::memcpy(to + left * C, from + skip * C, columns * pixel);
        std::memset(to + (left + columns) * C, 0, (PW - left - columns) * pixel);
        continue;
      }
      std::memset(to, 0, PW * pixel);
      for (int64_t w = 0; inside && w < job.W; ++w) {
        const int64_t u = w * job.expand_w + job.pad_w;
        if (u >= 0 && u < PW) std::memcpy(to + u * C, from + w * C, pixel);
      }
    }
  });
}

// ---------------------------------------------------------------- running

struct PixelTile {
  const LaneConfig* config;
  int64_t first;
  int edges;
};

// edges: 1 the left border, 2 the right one
std::vector<PixelTile> pixel_tiles(int64_t columns, const LaneConfig& config, int edges) {
  std::vector<PixelTile> tiles;
  for (int64_t x = 0; x < columns; x += config.P) {
    const LaneConfig& tile = columns - x < config.P ? conv_last_tile(config, columns) : config;
    const int64_t first = std::min(x, columns - tile.P);  // the last tile may overlap the one before: same values again
    tiles.push_back({&tile, first, edges & ((first == 0 ? 1 : 0) | (first + tile.P == columns ? 2 : 0))});
  }
  return tiles;
}

// The job is free of padding, except for columns outside (`edges`) and rows outside with the row kernels.
void run(const ConvJob& job, const LaneConfig& config, bool edges, ConvWeights& weights, const float* bias, const float* x, const float* shortcut,
         bool relu, float* out, const Pool& pool) {
  if (conv_is_flat(job)) return conv_nhwc_flat(job, config, weights, bias, x, shortcut, relu, out, pool);
  const int R = config.R, P = config.P;
  const int64_t C = job.C, images = job.N, rows = job.OH / R, columns = job.OW;
  const std::vector<PixelTile> tiles = pixel_tiles(columns, config, !edges ? 0 : columns_beyond(job) > 0 ? 3 : 1);
  // the pixels under a filter row lie side by side: with one group they are one tap of KW*C channels
  const bool whole_rows =
      weights.blocks()[0].kind == kOneGroup && job.groups == 1 && job.dilation_w == 1 && config.weight_order == LaneConfig::kTapMajor;
  const int64_t taps_x = whole_rows ? 1 : job.KW;
  std::vector<int64_t> tap_offset;
  for (int64_t y = 0; y < job.KH; ++y)
    for (int64_t w = 0; w < taps_x; ++w) tap_offset.push_back((y * job.dilation_h * job.W + w * job.dilation_w) * C);
  const int64_t zeros = config.weight_order == LaneConfig::kNatural ? (P + job.KW) * C + 32 : 0;
  Scratch zero_row(size_t(zeros) * sizeof(float) + 64);
  if (zeros) std::memset(zero_row.as<float>(), 0, size_t(zeros) * sizeof(float));

  LaneTile base{};
  base.zero = zero_row.as<float>();
  base.x_pixel = config.weight_order == LaneConfig::kTapMajor ? C * job.stride_w : C;  // the row kernels see every pixel
  base.x_row = job.W * C;
  base.rows = job.H;
  base.tap_offset = tap_offset.data();
  base.taps = job.KH * taps_x;
  base.channels = C / job.groups * (job.KW / taps_x);
  base.relu = relu;
  base.out_pixel = job.out_step();
  base.out_row = job.OW * job.out_step();
  const int64_t image_floats = job.H * job.W * C, vectors = weights.count();
  const auto compute = [&](int64_t n, int64_t oy, int64_t b, const float* packed, const PixelTile& pixels, const char* prefetch) {
    const LaneMap& map = weights.blocks()[b];
    LaneTile t = base;
    const int64_t y = oy * job.stride_h - job.pad_h, column = pixels.first * job.stride_w - job.pad_w;
    const int64_t at = n * image_floats + (y * job.W + column) * C;  // may lie before x at a left edge, where it is not read
    t.x = reinterpret_cast<const float*>(reinterpret_cast<uintptr_t>(x) + uintptr_t(4 * (at + map.window)));
    t.x2 = reinterpret_cast<const float*>(reinterpret_cast<uintptr_t>(x) + uintptr_t(4 * (at + map.window2)));
    t.y0 = y;
    t.weight = packed;
    t.prefetch = prefetch;
    t.bias = bias + b * weights.width();
    t.index = map.index;
    t.second = map.second;
    t.lanes = map.lanes();
    const int64_t out_at = ((n * job.OH + oy) * job.OW + pixels.first) * job.out_step() + map.first_channel;
    t.out = out + out_at;
    if (shortcut) t.shortcut = shortcut + out_at;
    pixels.config->tile[map.kind][pixels.edges](t);
  };
  // unit of rows r: R rows; the last one also takes the remaining rows, with an overlapping tile
  const auto for_rows = [&](int64_t r, const auto& f) {
    f(r * R);
    if (r == rows - 1 && job.OH % R) f(job.OH - R);
  };
  const double macs = double(columns) * R * double(weights.columns() * weights.width());  // of one unit
  const auto nothing = [](const float* packed) { return reinterpret_cast<const char*>(packed); };
  const int64_t all_floats = vectors * weights.block_floats(), image_group = job.H * job.W * (C / job.groups);

  // Wide maps with vectors over several groups (few instructions per pixel) go down in strips of one tile: the rows
  // that the next tile reads again are still in L1.
  const bool strips = weights.blocks()[0].kind != kOneGroup && columns >= 2 * P && R > 1;
  // What stays in L1: with few weights those of all vectors, row after row; else one vector's weights for an image.
  const bool rows_outside = all_floats <= (6 << 10);
  // Weights that are used for one image only, or heavier than the group's part of it, are packed when their turn comes.
  const bool block_outside = vectors > 1 && (weights.block_floats() > image_group || (images == 1 && !strips && !rows_outside));
  if (block_outside) {
    const int64_t steps = weights.columns() / (config.weight_order == LaneConfig::kRowMajor ? job.KW : 1);
    const int64_t passes = images * rows * int64_t(tiles.size());
    parallel(pool, vectors * images * rows, conv_grain(macs), [&](int64_t begin, int64_t end) {
      Scratch scratch(weights.ready() ? 64 : size_t(weights.block_floats()) * sizeof(float));
      const float* packed = nullptr;
      for (int64_t unit = begin; unit < end; ++unit) {
        const int64_t r = unit % rows, n = unit / rows % images, b = unit / (rows * images);
        if (weights.ready())
          packed = weights.block(b);
        else if (unit == begin || (r == 0 && n == 0))
          weights.pack(b, scratch.as<float>()), packed = scratch.as<float>();
        for_rows(r, [&](int64_t oy) {
          for (size_t i = 0; i < tiles.size(); ++i)
            compute(n, oy, b, packed, tiles[i],
                    conv_prefetch(weights, b + 1, (n * rows + r) * int64_t(tiles.size()) + int64_t(i), passes, steps, packed));
        });
      }
    });
    return;
  }
  Scratch all(weights.ready() ? 64 : size_t(all_floats) * sizeof(float));
  if (!weights.ready()) weights.pack_all(all.as<float>(), pool);
  if (strips) {
    const int64_t full = columns / P;
    parallel(pool, images * full * rows, conv_grain(macs * vectors / full), [&](int64_t begin, int64_t end) {
      for (int64_t unit = begin; unit < end; ++unit) {
        const int64_t r = unit % rows, strip = unit / rows % full, n = unit / rows / full;
        for_rows(r, [&](int64_t oy) {
          for (int64_t b = 0; b < vectors; ++b) {
            const float* packed = weights.block(b);
            compute(n, oy, b, packed, tiles[strip], nothing(packed));
            if (strip == full - 1 && columns % P) compute(n, oy, b, packed, tiles[full], nothing(packed));
          }
        });
      }
    });
    return;
  }
  parallel(pool, images * rows * vectors, conv_grain(macs), [&](int64_t begin, int64_t end) {
    for (int64_t unit = begin; unit < end; ++unit) {
      const int64_t n = unit / (rows * vectors), rest = unit % (rows * vectors);
      const int64_t b = rows_outside ? rest % vectors : rest / rows, r = rows_outside ? rest / vectors : rest % rows;
      for_rows(r, [&](int64_t oy) {
        for (const PixelTile& tile : tiles) compute(n, oy, b, weights.block(b), tile, nothing(weights.block(b)));
      });
    }
  });
}

// The biases of the blocks' vectors, zero where there is none.
void spread_bias(const ConvWeights& weights, const float* bias, float* to) {
  std::memset(to, 0, size_t(weights.count() * weights.width()) * sizeof(float));
  if (!bias) return;
  for (const LaneMap& map : weights.blocks()) {
    std::memcpy(to, bias + map.first_channel, size_t(map.channels) * sizeof(float));
    to += weights.width();
  }
}

bool reads_outside(const ConvJob& job) {
  return job.pad_h != 0 || job.pad_w != 0 || job.expand_h != 1 || job.expand_w != 1 || job.padded_h() > job.H || job.padded_w() > job.W;
}

bool convolve(const ConvJob& job, const ConvBlockOrder* order, const float* x, const float* weight, const float* ready, const float* bias,
              const float* shortcut, bool relu, float* out, const Pool& pool) {
  if (job.N * job.K * job.OH * job.OW == 0) return true;
  const ConvLanePlan plan = conv_nhwc_plan(job, order);
  if (!plan.config) return false;
  ConvWeights weights(job, plan, weight, ready);
  Scratch biases(size_t(weights.count() * weights.width()) * sizeof(float));
  spread_bias(weights, bias, biases.as<float>());
  const bool by_row = plan.config->weight_order != LaneConfig::kTapMajor;  // rows outside are no trouble for the row kernels
  if (!reads_outside(job) || (by_row && plan.edges)) {
    run(job, *plan.config, plan.edges, weights, biases.as<float>(), x, shortcut, relu, out, pool);
    return true;
  }
  ConvJob inner = job;
  inner.H = job.padded_h(), inner.W = job.padded_w();
  inner.pad_h = inner.pad_w = 0;
  inner.expand_h = inner.expand_w = 1;
  // light weights are read again for every few images that stay in L2, heavy ones for more
  const int64_t image = inner.H * inner.W * job.C, together = weights.count() * weights.block_floats() < (64 << 10) ? 1 << 18 : 1 << 20;
  const int64_t chunk = std::max<int64_t>(1, std::min<int64_t>(job.N, together / image));
  Scratch images(size_t(chunk * image) * sizeof(float));
  for (int64_t n = 0; n < job.N; n += chunk) {
    inner.N = std::min(chunk, job.N - n);
    pad_images(job, x + n * job.H * job.W * job.C, inner.N, images.as<float>(), pool);
    const int64_t first = n * job.OH * job.OW * job.out_step();
    run(inner, *plan.config, false, weights, biases.as<float>(), images.as<float>(), shortcut ? shortcut + first : nullptr, relu, out + first, pool);
  }
  return true;
}

}  // namespace

void conv_nhwc(const ConvJob& job, const float* x, const float* weight, const float* bias, const float* shortcut, bool relu, float* out,
               const Pool& pool) {
  convolve(job, nullptr, x, weight, nullptr, bias, shortcut, relu, out, pool);
}

bool conv_nhwc_packed(const ConvJob& job, const ConvBlockOrder& order, const float* x, const float* blocks, const float* bias, const float* shortcut,
                      bool relu, float* out, const Pool& pool) {
  return convolve(job, &order, x, nullptr, blocks, bias, shortcut, relu, out, pool);
}

}  // namespace sk
