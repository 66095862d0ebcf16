// grouped_conv2d in bf16 on matrix tiles (AMX), channels_last: kernels in amx_conv.cpp, driver in grouped_conv2d_tiles.cpp.
//
// A tile product takes 16 positions x 32 values by 32 values x 16 output channels. The image is copied, a few groups (a bundle)
// at a time, with its padding and with the pixels of a strided filter's phases side by side. A position of the copy is a slot of
// whole cache lines (rows of a tile that cross lines cost more) and holds as many pixels, from its own on, as
// make the fewest steps: taps side by side then are one step, whatever the width of the groups. What lies between the channels of
// two groups, or behind the pixels, is multiplied by zero weights.
#pragma once
#include "core/sparse_linear_bf16.h"

namespace sk {

// Two neighbouring values of a slot: the columns of a weight row [C/G*KH*KW] that meet them (-1: none does), and their
// groups in the bundle.
struct ConvTilePair {
  int32_t low, high, low_group, high_group;
};

// One row of the copy: pixels are `left` that are zero, `count` that lie `step` values apart, and `right` that are zero; each has
// `width` values, of which the first `channels` exist. A slot of `slot` values holds `pixels` of them; with several,
// none has more than 32 values.
struct ConvTileRow {
  const uint16_t* from;
  int64_t step, left, count, right, channels, width, pixels, slot;
  uint16_t* to;  // [left + count + right][slot]
};

// The weights of up to 16 output channels: rows [count][columns] in natural order -> [pairs/16][16 pairs][16][2].
struct ConvTileWeights {
  const uint16_t* weight;
  int64_t count, columns;
  const ConvTilePair* pairs;
  int64_t pair_count;
  uint32_t lanes[2 * kTile];  // of each group of the bundle
  uint32_t* room;             // [columns/2 rounded up to 16][16]
  uint16_t* to;
};

// One bundle of one image: out[place[p]][channel] = bias + sum over steps of x[p*pixel + offset[step] ...] * weight + shortcut, relu.
struct ConvTileWork {
  // inputs
  const char* x;            // position 0
  int64_t pixel;            // bytes from one position to the next
  int64_t positions, last;  // how many; where the last 16 of them begin (they overlap those before)
  const int64_t* offset;    // [steps], bytes
  int64_t steps;
  const uint16_t* weight;           // [channels/16][steps][16 pairs][16][2]
  const uint16_t *bias, *shortcut;  // may be null; of the bundle's first channel (and first pixel)
  const int32_t* place;             // [positions]: output pixel, or -1; position p is pixel p if null
  int64_t channels;                 // of the output, in this bundle
  bool relu;
  // outputs
  uint16_t* out;      // first pixel, first channel
  int64_t out_pixel;  // channels in a pixel
};

struct ConvTileKernels {
  void (*copy)(const ConvTileRow& row);
  void (*pack)(const ConvTileWeights& weights);
  void (*compute)(const ConvTileWork* work, int64_t count);
};

// ---- the weight gradient: 16 output channels x 32 positions by 32 positions x 16 input channels
//
// Position p of a line is [16 channels][2]: the values there and those at p + 1. Every second one, from any p on, are the rows of a tile.

// One row of positions behind those before it: `left` that are zero, `count` that lie `step` values apart, and `right` that are zero.
struct ConvTileLine {
  const uint16_t* from;
  int64_t step, left, count, right, channels;  // channels: of 16, that exist
  uint16_t* to;                                // [1 + left + count + right][32]: begins with the position before
};

// sums[term][k][j] += over blocks of 32 positions of grad[block][k] * x[offset[term] + block][j]
struct ConvTileGrad {
  const uint16_t* grad;  // [blocks][16][32 positions]
  const uint16_t* x;     // [positions][16][2]
  int64_t blocks, terms;
  const int64_t* offset;  // [terms], bytes
  float* sums;            // [terms][16][16]
};

struct ConvTileGradKernels {
  void (*line)(const ConvTileLine& line);
  void (*turn)(const uint16_t* line, int64_t blocks, uint16_t* grad);  // [32 * blocks][16][2] -> [blocks][16][32]
  void (*multiply)(const ConvTileGrad& work);
};

// ---- packs of tiles (grouped_conv2d_pack.cpp); of the shape, images and their padding do not matter
struct Conv2dShape;
struct ConvTilePackSizes {
  int64_t groups, steps, pixels;  // in a bundle, of a bundle, of a position
};
ConvTilePackSizes conv_tile_pack_sizes(const Conv2dShape& shape);
int64_t conv_tile_pack_words(const Conv2dShape& shape, const ConvTilePackSizes& sizes);
void conv_tile_pack(const Conv2dShape& shape, const uint16_t* weight, int32_t* words);
void conv_tile_unpack(const Conv2dShape& shape, const ConvTilePackSizes& sizes, const int32_t* words, float* weight);  // contiguous
// False if the sizes are not those of the shape, whose stride and dilation may be others.
bool conv_tile_packed_fwd(const Conv2dShape& shape, const ConvTilePackSizes& sizes, const uint16_t* x, const int32_t* words, const uint16_t* bias,
                          const uint16_t* shortcut, bool relu, uint16_t* out, const Pool& pool);

#ifdef SK_HAVE_amx
namespace amx {
extern const ConvTileKernels conv_tile_kernels;
extern const ConvTileGradKernels conv_tile_grad_kernels;
}  // namespace amx
#endif

}  // namespace sk
