// Driver of grouped_conv2d in bf16 on matrix tiles: groups into bundles, filter rows into steps, then (image, bundle, rows) by (image,
// bundle, rows): copy and multiply. See grouped_conv2d_tiles.h.
#include <algorithm>
#include <cstdlib>
#include <cstring>
#include <vector>

#include "core/grouped_conv2d_bf16.h"
#include "core/grouped_conv2d_impl.h"
#include "core/grouped_conv2d_tiles_copy.h"

namespace sk {
namespace {

#ifdef SK_HAVE_amx
const ConvTileKernels& kernels() { return amx::conv_tile_kernels; }
#else
const ConvTileKernels& kernels() { std::abort(); }  // grouped_conv2d_on_tiles() said no
#endif

int64_t up(int64_t a, int64_t b) { return conv_tile_up(a, b); }

constexpr int64_t kBlockValues = 16 << 10;  // of a copy, to stay in the first-level cache: larger ones are cut into rows ...
constexpr int64_t kFewestRows = 8;          // ... but not too few, for a cut's neighbours copy the rows between them twice
constexpr int64_t kLine = 1024;             // pixels of a 1x1 convolution in one unit of work

struct Bundles {
  int64_t groups, count;                                                                // groups in each, bundles
  int64_t width, channels;                                                              // values of a pixel, output channels
  int64_t pixels, slot;                                                                 // of a position: pixels, values
  int64_t tiles, steps;                                                                 // output tiles, steps of each
  int64_t block() const { return tiles * steps * kTileValues; }                         // values of a bundle's weights
  int64_t cover(int64_t taps) const { return up(taps, pixels) * (slot / kTileDepth); }  // steps
};

// Taps that lie side by side under a filter: pixels [first, last] of a row of one phase.
struct Run {
  int64_t ky, phase, first, last;
};
std::vector<Run> runs_of(const Conv2dShape& s, const ConvTileCopy& copy, const Bundles& b) {
  std::vector<Run> runs;
  for (int64_t ky = 0; ky < s.KH; ++ky)
    for (int64_t p : copy.column_phases) {
      bool open = false;
      for (int64_t kx = 0; kx < s.KW; ++kx) {
        if (copy.columns.phase(kx) != p) continue;
        const int64_t at = copy.columns.shift(kx);
        // across a gap of dilated taps if that takes no more steps
        if (open && b.cover(at - runs.back().first + 1) <= b.cover(runs.back().last - runs.back().first + 1) + b.cover(1))
          runs.back().last = at;
        else
          runs.push_back({ky, p, at, at});
        open = true;
      }
    }
  return runs;
}

// Groups go together if they fill output tiles, and pixels if they fill steps, as long as the zeros between them cost less.
Bundles bundles_of(const Conv2dShape& s, const ConvTileCopy& copy) {
  const int64_t in_group = s.C / s.groups, out_group = s.K / s.groups, phases = int64_t(copy.row_phases.size() * copy.column_phases.size());
  Bundles best{};
  double least = 0;
  for (int64_t n = 1; n == 1 || (n <= s.groups && n * out_group <= 2 * kTile); ++n)
    for (int64_t pixels = 1; pixels <= copy.columns.shift(s.KW - 1) + 1 && (pixels == 1 || n * in_group <= kTileDepth); ++pixels) {
      const int64_t slot = up(pixels * n * in_group, kTileDepth) * kTileDepth;
      Bundles b{n, up(s.groups, n), n * in_group, n * out_group, pixels, slot, up(n * out_group, kTile), 0};
      for (const Run& r : runs_of(s, copy, b)) b.steps += b.cover(r.last - r.first + 1);
      // cycles for 16 positions: products, writing, copying
      const double copied = 10.0 * double(up(b.width, kTileDepth)) + 2.0 * double(pixels - 1);
      const double cycles = double(b.count) * (double(b.tiles) * (17.0 * double(b.steps) + 70.0) + 16.0 * double(phases) * copied);
      if (best.groups == 0 || cycles < least) best = b, least = cycles;
    }
  return best;
}

bool is_line(const Conv2dShape& s, const Bundles& b) {
  return s.KH == 1 && s.KW == 1 && s.stride_h == 1 && s.stride_w == 1 && s.pad_h == 0 && s.pad_w == 0 && b.width % kTileDepth == 0 &&
         s.groups % b.groups == 0 && s.N * s.OH * s.OW >= kTile;
}

// Where each step reads, in values from position 0 (copies of `rows` output rows), and which weights it meets.
void steps_of(const Conv2dShape& s, const ConvTileCopy& copy, const Bundles& b, int64_t rows, std::vector<int64_t>* offsets,
              std::vector<ConvTilePair>* pairs) {
  const int64_t in_group = s.C / s.groups;
  for (const Run& r : runs_of(s, copy, b)) {
    const int64_t phase = ConvTileCopy::index(copy.row_phases, copy.rows.phase(r.ky)) * int64_t(copy.column_phases.size()) +
                          ConvTileCopy::index(copy.column_phases, r.phase);
    for (int64_t at = r.first; at <= r.last; at += b.pixels) {
      const int64_t start = (phase * copy.phase_pixels(rows) + copy.rows.shift(r.ky) * copy.step + at) * b.slot;
      const auto column = [&](int64_t value) {  // of a weight row; -1 behind the pixels or between dilated taps
        const int64_t pixel = value / b.width, j = value % b.width % in_group, place = (at + pixel) * s.stride_w + r.phase;
        if (pixel >= b.pixels || at + pixel > r.last || place % s.dilation_w) return int32_t(-1);
        const int64_t kx = place / s.dilation_w;
        return int32_t(s.weight_channels_last ? (r.ky * s.KW + kx) * in_group + j : (j * s.KH + r.ky) * s.KW + kx);
      };
      const auto group = [&](int64_t value) { return int32_t(value % b.width / in_group); };
      for (int64_t v = 0; v < b.slot; v += kTileDepth) {
        if (offsets) offsets->push_back((start + v) * 2);
        for (int64_t i = v; pairs && i < v + kTileDepth; i += 2) pairs->push_back({column(i), column(i + 1), group(i), group(i + 1)});
      }
    }
  }
}

// The weights of bundles in tile order, [bundles][tiles][steps][512].
void pack_weights(const Conv2dShape& s, const ConvTileCopy& copy, const Bundles& b, const uint16_t* weight, uint16_t* to, const Pool& pool) {
  const int64_t columns = s.C / s.groups * s.KH * s.KW, out_group = s.K / s.groups;
  std::vector<ConvTilePair> pairs;
  steps_of(s, copy, b, 1, nullptr, &pairs);
  parallel(pool, b.count * b.tiles, 1 + 16384 / (b.steps * kTileValues), [&](int64_t begin, int64_t end) {
    const Scratch room(size_t(up(columns, 2 * kTile) * kTile * kTile * 4));
    for (int64_t i = begin; i < end; ++i) {
      const int64_t first = i / b.tiles * b.channels + i % b.tiles * kTile;
      ConvTileWeights w{};
      w.count = std::max<int64_t>(0, std::min({kTile, b.channels - i % b.tiles * kTile, s.K - first}));
      w.weight = weight + (w.count ? first * columns : 0);
      w.columns = columns;
      w.pairs = pairs.data(), w.pair_count = int64_t(pairs.size());
      for (int64_t lane = 0; lane < w.count; ++lane) w.lanes[b.groups == 1 ? 0 : (i % b.tiles * kTile + lane) / out_group] |= 1u << lane;
      w.room = room.as<uint32_t>();
      w.to = to + i * b.steps * kTileValues;
      kernels().pack(w);
    }
  });
}

// Output rows [first, first + rows) of one image need these values of a bundle's channels.
void copy_rows(const Conv2dShape& s, const ConvTileCopy& copy, const Bundles& b, int64_t channels, const uint16_t* image, int64_t first, int64_t rows,
               uint16_t* to) {
  const int64_t seen = rows + copy.rows.shift(copy.rows.taps - 1);
  for (int64_t a : copy.row_phases)
    for (int64_t p : copy.column_phases) {
      const int64_t left = std::min(copy.step, copy.columns.before(p)), count = copy.columns.inside(p);
      for (int64_t r = 0; r < seen; ++r, to += copy.step * b.slot) {
        const int64_t y = (first + r) * s.stride_h + a - s.pad_h;
        ConvTileRow row{image, s.stride_w * s.C, copy.step, 0, 0, channels, b.width, b.pixels, b.slot, to};
        if (y >= 0 && y < s.H && count > 0) {
          row.from = image + (y * s.W + left * s.stride_w + p - s.pad_w) * s.C;
          row.left = left, row.count = count, row.right = copy.step - left - count;
        }
        kernels().copy(row);
      }
    }
}

}  // namespace

bool grouped_conv2d_on_tiles(const Conv2dShape& s) {
#ifdef SK_HAVE_amx
  const int64_t columns = s.C / s.groups * s.KH * s.KW, positions = s.OH * (s.OW + s.dilation_w * s.KW);
  return isa() == Isa::amx && s.channels_last && columns < INT32_MAX && positions < INT32_MAX;
#else
  (void)s;
  return false;
#endif
}

namespace {

// `weights`: of all bundles, in tile order
void forward(const Conv2dShape& s, const ConvTileCopy& copy, const Bundles& b, const uint16_t* x, const uint16_t* weights, const uint16_t* bias,
             const uint16_t* shortcut, bool relu, uint16_t* out, const Pool& pool) {
  const bool line = is_line(s, b);  // the image itself will do
  const int64_t images = line ? std::max<int64_t>(1, s.N * s.OH * s.OW / kLine) : s.N, out_rows = line ? 1 : s.OH;
  // a copy stays in the cache, and every thread has work
  const int64_t wanted = up(4 * pool.threads, images * b.count),
                largest =
                    std::max<int64_t>(kFewestRows, kBlockValues / (int64_t(copy.row_phases.size() * copy.column_phases.size()) * copy.step * b.slot));
  const int64_t most = line ? 1 : std::min({out_rows, largest, pool.threads > 1 ? std::max<int64_t>(1, up(out_rows, wanted)) : out_rows});
  const int64_t rows = up(out_rows, up(out_rows, most)), parts = up(out_rows, rows);
  std::vector<int64_t> offsets[2];  // of a whole part, and of the last one
  const int64_t last_rows = out_rows - (parts - 1) * rows;
  steps_of(s, copy, b, rows, &offsets[0], nullptr);
  if (last_rows == rows)
    offsets[1] = offsets[0];
  else
    steps_of(s, copy, b, last_rows, &offsets[1], nullptr);

  std::vector<int32_t> place;  // of each position of a part: the pixel it becomes
  for (int64_t r = 0; !line && r < rows; ++r) {
    for (int64_t c = 0; c < s.OW; ++c) place.push_back(int32_t(r * s.OW + c));
    place.resize(size_t((r + 1) * copy.step), -1);
  }
  const int64_t slack = (kTile + copy.columns.seen()) * b.slot;  // read, but multiplied by zeros or given away
  const double macs = double(rows * s.OW) * double(b.tiles * b.steps * kTileValues) * (line ? double(kLine) : 1.0);
  parallel(pool, images * b.count * parts, conv_grain(macs / 8), [&](int64_t begin, int64_t end) {
    const Scratch block(line ? 64 : size_t(copy.pixels(rows) * b.slot + slack) * 2);
    for (int64_t unit = begin; unit < end; ++unit) {
      const int64_t part = unit % parts, i = unit / parts % b.count, n = unit / parts / b.count;
      const int64_t first_channel = i * b.width, channels = std::min(b.width, s.C - first_channel);
      ConvTileWork w{};
      int64_t pixel = n * s.OH * s.OW + part * rows * s.OW;
      if (line) {
        pixel = n * kLine;
        w.positions = n == images - 1 ? s.N * s.OH * s.OW - pixel : kLine;
        w.x = reinterpret_cast<const char*>(x + pixel * s.C + first_channel);
        w.pixel = s.C * 2;
      } else {
        const int64_t count = part == parts - 1 ? last_rows : rows;
        uint16_t* to = block.as<uint16_t>();
        copy_rows(s, copy, b, channels, x + n * s.H * s.W * s.C + first_channel, part * rows, count, to);
        std::fill_n(to + copy.pixels(count) * b.slot, slack, uint16_t(0));
        w.positions = (count - 1) * copy.step + s.OW;
        w.x = reinterpret_cast<const char*>(to);
        w.pixel = b.slot * 2;
        w.place = place.data();
      }
      const int64_t o = i * b.channels;
      w.last = std::max<int64_t>(0, w.positions - kTile);
      w.offset = offsets[part == parts - 1].data();
      w.steps = b.steps;
      w.weight = weights + i * b.block();
      w.bias = bias ? bias + o : nullptr;
      w.shortcut = shortcut ? shortcut + pixel * s.K + o : nullptr;
      w.channels = std::min(b.channels, s.K - o);
      w.relu = relu;
      w.out = out + pixel * s.K + o;
      w.out_pixel = s.K;
      kernels().compute(&w, 1);
    }
  });
}

}  // namespace

void grouped_conv2d_tiles_fwd(const Conv2dShape& s, const uint16_t* x, const uint16_t* weight, const uint16_t* bias, const uint16_t* shortcut,
                              bool relu, uint16_t* out, const Pool& pool) {
  if (s.N * s.K * s.OH * s.OW == 0) return;
  const ConvTileCopy copy(s);
  const Bundles b = bundles_of(s, copy);
  const Scratch weights(size_t(b.count * b.block() * 2));
  pack_weights(s, copy, b, weight, weights.as<uint16_t>(), pool);
  forward(s, copy, b, x, weights.as<uint16_t>(), bias, shortcut, relu, out, pool);
}

// ---- grad_x

bool grouped_conv2d_grad_x_on_tiles(const Conv2dShape& s) {
  const ConvJob job = grad_x_job(s);
  return s.stride_h == 1 && s.stride_w == 1 && job.pad_h >= 0 && job.pad_w >= 0 && grouped_conv2d_on_tiles(job);
}

void grouped_conv2d_tiles_grad_x(const Conv2dShape& s, const uint16_t* grad_out, const uint16_t* weight, uint16_t* grad_x, const Pool& pool) {
  const Scratch flipped(size_t(s.C * (s.K / s.groups) * s.KH * s.KW) * 2);
  flip_weight(s, weight, flipped.as<uint16_t>(), pool);
  grouped_conv2d_tiles_fwd(grad_x_job(s), grad_out, flipped.as<uint16_t>(), nullptr, nullptr, false, grad_x, pool);
}

// ---- packs: a table of what each value meets, [steps*16] ConvTilePair, and the weights of all bundles

ConvTilePackSizes conv_tile_pack_sizes(const Conv2dShape& s) {
  const Bundles b = bundles_of(s, ConvTileCopy(s));
  return {b.groups, b.steps, b.pixels};
}

int64_t conv_tile_pack_words(const Conv2dShape& s, const ConvTilePackSizes& sizes) {
  const int64_t tiles = up(sizes.groups * (s.K / s.groups), kTile);
  return sizes.steps * kTile * 4 + up(s.groups, sizes.groups) * tiles * sizes.steps * kTileValues / 2;
}

void conv_tile_pack(const Conv2dShape& s, const uint16_t* weight, int32_t* words) {
  const ConvTileCopy copy(s);
  const Bundles b = bundles_of(s, copy);
  std::vector<ConvTilePair> pairs;
  Conv2dShape natural = s;  // the table says where a weight lies in [K, C/G, KH, KW], however it lay
  natural.weight_channels_last = false;
  steps_of(natural, copy, b, 1, nullptr, &pairs);
  std::memcpy(words, pairs.data(), pairs.size() * sizeof(ConvTilePair));
  const Scratch weights(size_t(b.count * b.block() * 2));  // aligned, which the words need not be
  pack_weights(s, copy, b, weight, weights.as<uint16_t>(), kSerial);
  std::memcpy(words + pairs.size() * 4, weights.as<uint16_t>(), size_t(b.count * b.block() * 2));
}

void conv_tile_unpack(const Conv2dShape& s, const ConvTilePackSizes& sizes, const int32_t* words, float* weight) {
  const int64_t columns = s.C / s.groups * s.KH * s.KW, out_group = s.K / s.groups, channels = sizes.groups * out_group;
  const int64_t tiles = up(channels, kTile), pairs = sizes.steps * kTile;
  const uint16_t* tile = reinterpret_cast<const uint16_t*>(words + pairs * 4);
  for (int64_t i = 0; i < up(s.groups, sizes.groups) * tiles; ++i, tile += sizes.steps * kTileValues)
    for (int64_t lane = 0; lane < std::min(kTile, channels - i % tiles * kTile); ++lane) {
      const int64_t k = i / tiles * channels + i % tiles * kTile + lane, group = (i % tiles * kTile + lane) / out_group;
      if (k >= s.K) break;
      for (int64_t p = 0; p < pairs; ++p)
        for (int half : {0, 1}) {
          const int32_t column = words[p * 4 + half];
          const uint32_t bits = uint32_t(tile[(p * kTile + lane) * 2 + half]) << 16;
          if (column >= 0 && column < columns && words[p * 4 + 2 + half] == group) std::memcpy(weight + k * columns + column, &bits, sizeof(float));
        }
    }
}

bool conv_tile_packed_fwd(const Conv2dShape& s, const ConvTilePackSizes& sizes, const uint16_t* x, const int32_t* words, const uint16_t* bias,
                          const uint16_t* shortcut, bool relu, uint16_t* out, const Pool& pool) {
  if (s.N * s.K * s.OH * s.OW == 0) return true;
  const ConvTileCopy copy(s);
  const Bundles b = bundles_of(s, copy);
  if (b.groups != sizes.groups || b.steps != sizes.steps || b.pixels != sizes.pixels) return false;
  forward(s, copy, b, x, reinterpret_cast<const uint16_t*>(words + b.steps * kTile * 4), bias, shortcut, relu, out, pool);
  return true;
}

}  // namespace sk
