// Driver of the weight gradient of grouped_conv2d in bf16 on matrix tiles: (groups) by (groups), images in strips of rows that stay in the
// first-level cache, so the order of the sums depends on the sizes alone.
#include <cstdlib>
#include <cstring>

#include "core/convert.h"
#include "core/grouped_conv2d_bf16.h"
#include "core/grouped_conv2d_impl.h"
#include "core/grouped_conv2d_tiles_copy.h"

namespace sk {
namespace {

#ifdef SK_HAVE_amx
const ConvTileGradKernels& kernels() { return amx::conv_tile_grad_kernels; }
#else
const ConvTileGradKernels& kernels() { std::abort(); }  // grouped_conv2d_on_tiles() said no
#endif

constexpr int64_t kPosition = kTileDepth;  // values of a position of a line
constexpr int64_t kStripBytes = 32 << 10;  // of x and grad_out
constexpr int64_t kSumsBytes = 256 << 10;
constexpr int64_t kBlock = 2 * kTile;       // positions
constexpr int64_t kSquare = kTile * kTile;  // sums of a tile

// Groups that share a tile, and what they come to.
struct Share {
  int64_t groups, in, out, in_tiles, out_tiles;
  explicit Share(const Conv2dShape& s) {
    const int64_t in_group = s.C / s.groups, out_group = s.K / s.groups;
    groups = std::max<int64_t>(1, std::min(s.groups, kTile / std::max(in_group, out_group)));
    in = groups * in_group, out = groups * out_group;
    in_tiles = conv_tile_up(in, kTile), out_tiles = conv_tile_up(out, kTile);
  }
};

// Strips of output rows, and the lines of one.
struct Strips {
  int64_t rows, count, blocks;         // output rows; blocks of positions
  int64_t x_positions, out_positions;  // of a line, with zeros to its end
  Strips(const Conv2dShape& s, const ConvTileCopy& copy, const Share& share) {
    const int64_t phases = int64_t(copy.row_phases.size() * copy.column_phases.size());
    const int64_t row_bytes = copy.step * (share.in_tiles * phases * 2 * kPosition + share.out_tiles * kPosition);
    const int64_t most = std::max<int64_t>({1, std::min<int64_t>(4, s.OH), std::min(s.OH, kStripBytes / row_bytes)});
    rows = conv_tile_up(s.OH, conv_tile_up(s.OH, most));
    count = conv_tile_up(s.OH, rows);
    blocks = conv_tile_up(rows * copy.step, kBlock);
    out_positions = blocks * kBlock;
    x_positions = copy.pixels(rows) + kBlock + copy.columns.seen();
  }
};

// Rows of one phase of the image as one line; -> behind them
uint16_t* put_rows(const uint16_t* image, int64_t channels, int64_t pixel, int64_t row, int64_t first, int64_t row_step, int64_t rows, int64_t height,
                   int64_t left, int64_t count, int64_t positions, uint16_t* to) {
  for (int64_t r = 0; r < rows; ++r, to += positions * kPosition) {
    const int64_t y = first + r * row_step;
    ConvTileLine line{image, pixel, positions, 0, 0, channels, to};
    if (y >= 0 && y < height && count > 0) line = {image + y * row, pixel, left, count, positions - left - count, channels, to};
    kernels().line(line);
  }
  return to;
}

// [1 + positions][16][2] of 16 channels of the image under output rows [first, first + rows)
void put_x(const Conv2dShape& s, const ConvTileCopy& copy, int64_t channels, const uint16_t* image, int64_t first, int64_t rows, int64_t positions,
           uint16_t* to) {
  std::memset(to, 0, kPosition * 2);
  uint16_t* const end = to + positions * kPosition;
  for (int64_t a : copy.row_phases)
    for (int64_t p : copy.column_phases) {
      const int64_t left = std::min(copy.step, copy.columns.before(p)), count = copy.columns.inside(p);
      const uint16_t* column = image + (count > 0 ? (left * s.stride_w + p - s.pad_w) * s.C : 0);
      to = put_rows(column, channels, s.stride_w * s.C, s.W * s.C, first * s.stride_h + a - s.pad_h, s.stride_h,
                    rows + copy.rows.shift(copy.rows.taps - 1), s.H, left, count, copy.step, to);
    }
  std::memset(to + kPosition, 0, size_t(end - to) * 2);
}

// Where the terms [in_tiles][KH][KW] read, in bytes from position 0.
std::vector<int64_t> offsets_of(const Conv2dShape& s, const ConvTileCopy& copy, const Strips& strips, int64_t in_tiles) {
  std::vector<int64_t> offsets;
  for (int64_t tile = 0; tile < in_tiles; ++tile)
    for (int64_t ky = 0; ky < s.KH; ++ky)
      for (int64_t kx = 0; kx < s.KW; ++kx) {
        const int64_t phase = ConvTileCopy::index(copy.row_phases, copy.rows.phase(ky)) * int64_t(copy.column_phases.size()) +
                              ConvTileCopy::index(copy.column_phases, copy.columns.phase(kx));
        const int64_t position = phase * copy.phase_pixels(strips.rows) + copy.rows.shift(ky) * copy.step + copy.columns.shift(kx);
        offsets.push_back((tile * (1 + strips.x_positions) + position) * kPosition * 2);
      }
  return offsets;
}

// sums [out_tiles][in_tiles][taps][16][16] -> grad_weight [out][C/G][taps] of the groups in a tile
void put_sums(const Conv2dShape& s, const Share& share, int64_t out_channels, const float* sums, uint16_t* grad_weight) {
  const int64_t in_group = s.C / s.groups, out_group = s.K / s.groups, taps = s.KH * s.KW;
  const Scratch scratch(size_t(out_channels * in_group * taps) * sizeof(float));
  float* to = scratch.as<float>();
  for (int64_t k = 0; k < out_channels; ++k)
    for (int64_t j = 0; j < in_group; ++j) {
      const int64_t c = k / out_group * in_group + j;
      const float* from = sums + (k / kTile * share.in_tiles + c / kTile) * taps * kSquare + k % kTile * kTile + c % kTile;
      for (int64_t t = 0; t < taps; ++t) *to++ = from[t * kSquare];
    }
  from_f32(Half::bf16, scratch.as<float>(), grad_weight, out_channels * in_group * taps, kSerial);
}

}  // namespace

void grouped_conv2d_tiles_grad_weight(const Conv2dShape& s, const uint16_t* grad_out, const uint16_t* x, uint16_t* grad_weight, const Pool& pool) {
  const int64_t columns = s.C / s.groups * s.KH * s.KW;
  const ConvTileCopy copy(s);
  const Share share(s);
  const Strips strips(s, copy, share);
  const std::vector<int64_t> offsets = offsets_of(s, copy, strips, share.in_tiles);
  const int64_t terms = int64_t(offsets.size()), line = (1 + strips.x_positions) * kPosition, block = strips.out_positions * kTile;
  const double macs = double(share.out_tiles * terms) * double(kSquare) * double(s.N * strips.count * strips.out_positions);
  const int64_t sums_floats = share.out_tiles * terms * kSquare;
  // an image is read once for as many groups as have their sums in the second-level cache
  const int64_t together = std::max<int64_t>(1, kSumsBytes / (sums_floats * int64_t(sizeof(float))));
  parallel(pool, conv_tile_up(s.groups, share.groups), conv_grain(macs / 8), [&](int64_t begin, int64_t end) {
    const Scratch xs(size_t(share.in_tiles * line) * 2), grads(size_t(share.out_tiles * block) * 2);
    const Scratch grad_line(size_t((1 + strips.out_positions) * kPosition) * 2);
    const Scratch sums(size_t(std::min(together, end - begin) * sums_floats) * sizeof(float));
    const auto add = [&](int64_t n, int64_t strip, int64_t i, float* to) {
      const int64_t first = strip * strips.rows, rows = std::min(strips.rows, s.OH - first), first_in = i * share.in, first_out = i * share.out;
      for (int64_t t = 0; t < share.in_tiles; ++t)
        put_x(s, copy, std::min(kTile, std::min(share.in, s.C - first_in) - t * kTile), x + n * s.H * s.W * s.C + first_in + t * kTile, first,
              strips.rows, strips.x_positions, xs.as<uint16_t>() + t * line);
      for (int64_t t = 0; t < share.out_tiles; ++t) {
        uint16_t* out_line = grad_line.as<uint16_t>();
        std::memset(out_line, 0, kPosition * 2);
        const int64_t channels = std::min(kTile, std::min(share.out, s.K - first_out) - t * kTile);
        const uint16_t* image = grad_out + n * s.OH * s.OW * s.K + first_out + t * kTile;
        uint16_t* rest = put_rows(image, channels, s.K, s.OW * s.K, first, 1, rows, s.OH, 0, s.OW, copy.step, out_line) + kPosition;
        std::memset(rest, 0, size_t(out_line + (1 + strips.out_positions) * kPosition - rest) * 2);
        kernels().turn(out_line + kPosition, strips.blocks, grads.as<uint16_t>() + t * block);
      }
      for (int64_t t = 0; t < share.out_tiles; ++t)
        kernels().multiply(
            {grads.as<uint16_t>() + t * block, xs.as<uint16_t>() + kPosition, strips.blocks, terms, offsets.data(), to + t * terms * kSquare});
    };
    for (int64_t from = begin; from < end; from += together) {
      const int64_t count = std::min(together, end - from);
      std::memset(sums.as<float>(), 0, size_t(count * sums_floats) * sizeof(float));
      for (int64_t n = 0; n < s.N; ++n)
        for (int64_t i = 0; i < count; ++i)
          for (int64_t strip = 0; strip < strips.count; ++strip) add(n, strip, from + i, sums.as<float>() + i * sums_floats);
      for (int64_t i = from; i < from + count; ++i)
        put_sums(s, share, std::min(share.out, s.K - i * share.out), sums.as<float>() + (i - from) * sums_floats,
                 grad_weight + i * share.out * columns);
    }
  });
}

}  // namespace sk
