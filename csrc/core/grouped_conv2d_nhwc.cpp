// Driver of the NHWC kernels: map output channels to vectors, choose the tile by counting its instructions, pack the
// weights (every call: nothing derived from weight values outlives it), then run (image, row, vectors, pixels).
//
// Only where a border cannot be handled inside a kernel is the image copied with its padding; from then on the
// convolution has none.
#include <algorithm>
#include <cstring>
#include <vector>

#include "core/grouped_conv2d_impl.h"

namespace sk {
namespace {

// ---------------------------------------------------------------- which tile

struct Counts {
  int64_t of[kLaneKinds] = {};  // blocks of each kind
};

// Instructions decide: a tile issues two vector operations and about 1.5 loads per cycle, and costs some cycles to
// enter, start and store.
double tile_cycles(const ConvJob& job, const LaneConfig& c, LaneKind kind) {
  const double loads_per_source = kind == kTwoGroups || kind == kWindow32 ? 2 : 1;
  const double shuffles_per_source = kind == kOneGroup || kind == kDepthwise ? 0 : 1;
  const double taps = double(job.KH * job.KW), outputs = c.R * c.P * c.V;
  double sources, steps, overhead = 1;  // per step: one input channel of ...
  if (c.weight_order == LaneConfig::kTapMajor)
    sources = c.P, steps = taps;  // one tap
  else if (c.weight_order == LaneConfig::kRowMajor)
    sources = c.P + job.KW - 1, steps = job.KH;  // one filter row
  else
    sources = (c.R + 2) * (c.P + 2), steps = 1, overhead = 3.2;  // the whole filter
  const double operations = outputs * taps / steps + sources * shuffles_per_source;
  const double loads = sources * loads_per_source + taps / steps * c.V;
  const double channels = double(job.C / job.groups);
  return 25 + 2 * outputs + channels * steps * (std::max(operations / 2, loads / 1.5) + overhead);
}

struct Plan {
  const LaneConfig* config = nullptr;
  bool spanning = false;
  double cycles = 0;
};

// `edges`: same-size padding stays in the kernel, which needs a last tile that starts at least K/2 after the others
void consider(const ConvJob& job, const LaneConfig* configs, int count, int64_t rows, int64_t columns, bool edges, const Counts& counts,
              bool spanning, int lanes, Plan* best) {
  for (const LaneConfig* c = configs; c < configs + count; ++c) {
    if (c->R > rows || c->P > columns) continue;
    if (edges && columns % c->P != 0 && columns % c->P < job.KW / 2) continue;
    if (spanning && c->V > 1) continue;
    const int64_t out_group = job.K / job.groups;
    const double tiles = double((rows + c->R - 1) / c->R) * double((columns + c->P - 1) / c->P);
    double cycles = 0;
    bool all = true;
    for (int kind = 0; kind < kLaneKinds; ++kind) {
      int64_t blocks = counts.of[kind];
      if (kind == kOneGroup && !spanning && blocks) blocks = job.groups * ((out_group + c->V * lanes - 1) / (c->V * lanes));
      if (blocks && !c->tile[kind][0]) all = false;
      if (blocks && all) cycles += double(blocks) * tiles * tile_cycles(job, *c, LaneKind(kind));
    }
    if (all && (!best->config || cycles < best->cycles)) *best = {c, spanning, cycles};
  }
}

// ---------------------------------------------------------------- padding

bool reads_outside(const ConvJob& job) { return job.pad_h != 0 || job.pad_w != 0 || job.padded_h() > job.H || job.padded_w() > job.W; }

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
  int64_t first;
  int edges;
};

std::vector<PixelTile> pixel_tiles(int64_t columns, int P, bool edges) {
  std::vector<PixelTile> tiles;
  for (int64_t x = 0; x < columns; x += P) {
    const int64_t first = std::min(x, columns - P);  // the last tile may overlap the one before: same values again
    tiles.push_back({first, edges ? (first == 0 ? 1 : 0) | (first + P == columns ? 2 : 0) : 0});
  }
  return tiles;
}

// The weights of a block of vectors in the order its kernel reads them, and its bias.
struct Packing {
  const ConvLaneKernels& kernels;
  const float *weight, *bias;  // [K, columns] as it lies in memory, [K] or null
  const int32_t* position;     // [columns]
  int64_t columns, width;      // C/G*KH*KW, output channels of a block
  int64_t block_floats() const { return (columns + 1) * width; }

  // -> to [columns][width], then the bias [width]
  void operator()(const LaneMap& block, float* to) const {
    const int64_t lanes = kernels.lanes;
    for (int64_t v = 0; v < width; v += lanes) {
      const int64_t first = block.first_channel + v, rows = std::max<int64_t>(0, std::min(lanes, block.channels - v));
      kernels.pack(weight + (rows ? first * columns : 0), rows, columns, position, width, to + v);
      for (int64_t l = 0; l < lanes; ++l) to[columns * width + v + l] = bias && l < rows ? bias[first + l] : 0.0f;
    }
  }
};

// The job is free of padding, except for same-size padding (`edges`) and rows outside with the row kernels.
void run(const ConvJob& job, const LaneConfig& config, bool edges, const std::vector<LaneMap>& blocks, const Packing& packing, const float* x,
         const float* shortcut, bool relu, float* out, const Pool& pool) {
  const int R = config.R, P = config.P;
  const int64_t C = job.C, taps = job.KH * job.KW;
  const bool flat = taps == 1 && job.stride_h == 1 && job.stride_w == 1;  // pixels of all images in one line
  int64_t images = job.N, rows = job.OH / R, columns = job.OW, last_columns = job.OW;
  if (flat) {
    const int64_t pixels = job.N * job.OH * job.OW;
    columns = std::min<int64_t>(pixels, P * std::max<int64_t>(1, (32 << 10) / (C * P)));  // 128 KB of input
    images = 1, rows = pixels / columns, last_columns = pixels - (rows - 1) * columns;
  }
  const std::vector<PixelTile> inner_tiles = pixel_tiles(columns, P, edges), last_tiles = pixel_tiles(last_columns, P, edges);
  std::vector<int64_t> tap_offset;
  for (int64_t y = 0; y < job.KH; ++y)
    for (int64_t w = 0; w < job.KW; ++w) tap_offset.push_back((y * job.dilation_h * job.W + w * job.dilation_w) * C);
  const int64_t zeros = config.weight_order == LaneConfig::kNatural ? (P + job.KW) * C + 32 : 0;
  Scratch zero_row(size_t(zeros) * sizeof(float) + 64);
  if (zeros) std::memset(zero_row.as<float>(), 0, size_t(zeros) * sizeof(float));

  LaneTile base{};
  base.zero = zero_row.as<float>();
  base.x_pixel = C * job.stride_w;
  base.x_row = job.W * C;
  base.rows = job.H;
  base.tap_offset = tap_offset.data();
  base.taps = taps;
  base.channels = C / job.groups;
  base.relu = relu;
  base.out_pixel = job.K;
  base.out_row = job.OW * job.K;
  const int64_t image_floats = job.H * job.W * C;
  const auto compute = [&](int64_t n, int64_t oy, const LaneMap& map, const float* packed, const PixelTile& pixels) {
    LaneTile t = base;
    const int64_t y = flat ? 0 : oy * job.stride_h - job.pad_h, column = pixels.first * job.stride_w - job.pad_w;
    const int64_t pixel = flat ? oy * columns + pixels.first : y * job.W + column;
    const int64_t at = n * image_floats + pixel * C;  // may lie before x at a left edge, where it is not read
    t.x = reinterpret_cast<const float*>(reinterpret_cast<uintptr_t>(x) + uintptr_t(4 * (at + map.window)));
    t.x2 = reinterpret_cast<const float*>(reinterpret_cast<uintptr_t>(x) + uintptr_t(4 * (at + map.window2)));
    t.y0 = y;
    t.weight = packed;
    t.bias = packed + packing.columns * packing.width;
    t.index = map.index;
    t.second = map.second;
    t.lanes = map.channels >= 64 ? ~uint64_t(0) : (uint64_t(1) << map.channels) - 1;
    const int64_t out_pixel = flat ? pixel : (n * job.OH + oy) * job.OW + pixels.first;
    t.out = out + out_pixel * job.K + map.first_channel;
    if (shortcut) t.shortcut = shortcut + out_pixel * job.K + map.first_channel;
    config.tile[map.kind][pixels.edges](t);
  };
  // unit of rows r: R rows; the last one also takes the remaining rows, with an overlapping tile
  const auto for_rows = [&](int64_t r, const auto& f) {
    f(r * R);
    if (!flat && r == rows - 1 && job.OH % R) f(job.OH - R);
  };

  const int64_t vectors = int64_t(blocks.size()), block_floats = packing.block_floats();
  const double macs = double(columns) * R * base.channels * taps * packing.width;  // of one unit

  // Weights heavier than the group's part of the image: one block at a time for all images, packed when its turn comes.
  if (vectors > 1 && packing.columns * packing.width > job.H * job.W * base.channels) {
    parallel(pool, vectors * images * rows, conv_grain(macs), [&](int64_t begin, int64_t end) {
      Scratch packed(size_t(block_floats) * sizeof(float));
      for (int64_t unit = begin; unit < end; ++unit) {
        const int64_t r = unit % rows, n = unit / rows % images, b = unit / (rows * images);
        if (unit == begin || (r == 0 && n == 0)) packing(blocks[b], packed.as<float>());
        for_rows(r, [&](int64_t oy) {
          for (const PixelTile& tile : r == rows - 1 ? last_tiles : inner_tiles) compute(n, oy, blocks[b], packed.as<float>(), tile);
        });
      }
    });
    return;
  }
  Scratch all(size_t(vectors * block_floats) * sizeof(float));
  float* packed = all.as<float>();
  parallel(pool, vectors, 1 + 65536 / block_floats, [&](int64_t begin, int64_t end) {
    for (int64_t b = begin; b < end; ++b) packing(blocks[b], packed + b * block_floats);
  });

  // Wide maps with vectors over several groups (few instructions per pixel) go down in strips of one tile: the rows
  // that the next tile reads again are still in L1.
  if (!flat && blocks[0].kind != kOneGroup && columns >= 2 * P && R > 1) {
    const int64_t full = columns / P;
    parallel(pool, images * full * rows, conv_grain(macs * vectors / full), [&](int64_t begin, int64_t end) {
      for (int64_t unit = begin; unit < end; ++unit) {
        const int64_t r = unit % rows, strip = unit / rows % full, n = unit / rows / full;
        for_rows(r, [&](int64_t oy) {
          for (int64_t b = 0; b < vectors; ++b) {
            compute(n, oy, blocks[b], packed + b * block_floats, inner_tiles[strip]);
            if (strip == full - 1 && columns % P) compute(n, oy, blocks[b], packed + b * block_floats, inner_tiles[full]);
          }
        });
      }
    });
    return;
  }
  // What stays in L1: with few weights those of all vectors, row after row; else one vector's weights for an image.
  const bool rows_outside = flat || vectors * block_floats <= (6 << 10);
  parallel(pool, images * rows * vectors, conv_grain(macs), [&](int64_t begin, int64_t end) {
    for (int64_t unit = begin; unit < end; ++unit) {
      const int64_t n = unit / (rows * vectors), rest = unit % (rows * vectors);
      const int64_t b = rows_outside ? rest % vectors : rest / rows, r = rows_outside ? rest / vectors : rest % rows;
      for_rows(r, [&](int64_t oy) {
        for (const PixelTile& tile : r == rows - 1 ? last_tiles : inner_tiles) compute(n, oy, blocks[b], packed + b * block_floats, tile);
      });
    }
  });
}

}  // namespace

void conv_nhwc(const ConvJob& original, const float* x, const float* weight, const float* bias, const float* shortcut, bool relu, float* out,
               const Pool& pool) {
  if (original.N * original.K * original.OH * original.OW == 0) return;
  ConvJob job = original;
  const ConvLaneKernels& kernels = SK_PICK_KERNELS(conv_lane_kernels);
  const int64_t in_group = job.C / job.groups, out_group = job.K / job.groups, taps = job.KH * job.KW;
  const int lanes = kernels.lanes;
  const bool depthwise = in_group == 1 && out_group == 1;

  // ---- the tile: row kernels for square filters with stride 1, else a loop over taps
  std::vector<LaneMap> spanning;
  if (kernels.spans_groups && !depthwise && out_group % lanes != 0 && job.groups > 1) spanning = spanning_blocks(job, lanes);
  Counts aligned_counts, spanning_counts;
  aligned_counts.of[depthwise ? kDepthwise : kOneGroup] = depthwise ? (job.K + lanes - 1) / lanes : 1;
  for (const LaneMap& b : spanning) ++spanning_counts.of[b.kind];
  const auto best_of = [&](const LaneConfig* configs, int count, bool edges, Plan* best) {
    const bool flat = taps == 1 && job.stride_h == 1 && job.stride_w == 1;
    const int64_t rows = flat ? 1 : job.OH, columns = flat ? job.N * job.OH * job.OW : job.OW;
    consider(job, configs, count, rows, columns, edges, aligned_counts, false, lanes, best);
    if (!spanning.empty()) consider(job, configs, count, rows, columns, edges, spanning_counts, true, lanes, best);
  };
  const bool padded = reads_outside(job) || job.expand_h != 1 || job.expand_w != 1;
  Plan plan;
  bool edges = false, by_row = false;
  if (job.KH == job.KW && (job.KH == 3 || job.KH == 5) && job.stride_h == 1 && job.stride_w == 1 && job.dilation_h == 1 && job.dilation_w == 1) {
    const ConvRowKernels& row = job.KH == 3 ? SK_PICK_KERNELS(conv_row3_kernels) : SK_PICK_KERNELS(conv_row5_kernels);
    edges = job.expand_h == 1 && job.expand_w == 1 && job.pad_w == job.KW / 2 && job.OW == job.W;
    best_of(row.configs, row.count, edges, &plan);
    if (!plan.config) {
      edges = false;
      best_of(row.configs, row.count, edges, &plan);
    }
    by_row = plan.config != nullptr;
  }
  if (!by_row) best_of(kernels.taps, kernels.taps_count, false, &plan);
  const bool copy = padded && !(by_row && edges);  // rows outside are no trouble for the row kernels

  // ---- blocks and the order of their weights
  const LaneConfig& config = *plan.config;
  const std::vector<LaneMap> blocks = plan.spanning ? std::move(spanning) : aligned_blocks(job, config.V * lanes, depthwise);
  const int64_t columns = in_group * taps;
  Scratch positions(size_t(columns) * sizeof(int32_t));
  int32_t* position = positions.as<int32_t>();
  for_each_weight(job, [&, i = int64_t(0)](int64_t j, int64_t ky, int64_t kx) mutable {
    position[i++] = int32_t(config.weight_order == LaneConfig::kTapMajor   ? (ky * job.KW + kx) * in_group + j
                            : config.weight_order == LaneConfig::kRowMajor ? (ky * in_group + j) * job.KW + kx
                                                                           : (j * job.KH + ky) * job.KW + kx);
  });
  const Packing packing{kernels, weight, bias, position, columns, config.V * lanes};

  if (!copy) return run(job, config, edges, blocks, packing, x, shortcut, relu, out, pool);
  ConvJob inner = job;
  inner.H = job.padded_h(), inner.W = job.padded_w();
  inner.pad_h = inner.pad_w = 0;
  inner.expand_h = inner.expand_w = 1;
  const int64_t image = inner.H * inner.W * job.C, chunk = std::max<int64_t>(1, std::min<int64_t>(job.N, (1 << 20) / image));
  Scratch images(size_t(chunk * image) * sizeof(float));
  for (int64_t n = 0; n < job.N; n += chunk) {
    inner.N = std::min(chunk, job.N - n);
    pad_images(job, x + n * job.H * job.W * job.C, inner.N, images.as<float>(), pool);
    const int64_t first = n * job.OH * job.OW * job.K;
    run(inner, config, false, blocks, packing, images.as<float>(), shortcut ? shortcut + first : nullptr, relu, out + first, pool);
  }
}

}  // namespace sk
