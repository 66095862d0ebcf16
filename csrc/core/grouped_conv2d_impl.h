// What the drivers and the kernels of grouped_conv2d share. Not for users of the core.
#pragma once
#include <algorithm>
#include <vector>

#include "core/core.h"
#include "core/grouped_conv2d.h"

namespace sk {

// A convolution as the drivers see it. grad_x is one too: pads may then be negative (the border is cut off) and
// `expand` - 1 zeros stand between neighbouring input pixels.
struct ConvJob : Conv2dShape {
  int64_t expand_h = 1, expand_w = 1;
  int64_t out_step() const { return out_pixel ? out_pixel : K; }                        // channels_last
  int64_t padded_h() const { return (OH - 1) * stride_h + (KH - 1) * dilation_h + 1; }  // rows that are looked at
  int64_t padded_w() const { return (OW - 1) * stride_w + (KW - 1) * dilation_w + 1; }
};

// grad_x as a forward convolution of grad_out: stride s becomes s - 1 zeros between its pixels.
inline ConvJob grad_x_job(const Conv2dShape& s) {
  ConvJob job{s};
  job.C = s.K, job.H = s.OH, job.W = s.OW;
  job.K = s.C, job.OH = s.H, job.OW = s.W;
  job.weight_channels_last = false;
  job.stride_h = job.stride_w = 1;
  job.expand_h = s.stride_h, job.expand_w = s.stride_w;
  job.pad_h = s.dilation_h * (s.KH - 1) - s.pad_h;
  job.pad_w = s.dilation_w * (s.KW - 1) - s.pad_w;
  return job;
}

// [K, C/G, KH, KW] -> contiguous [C, K/G, KH, KW], taps reversed: the weight of grad_x seen as a forward convolution
template <class T>
void flip_weight(const Conv2dShape& s, const T* weight, T* flipped, const Pool& pool) {
  const int64_t in_group = s.C / s.groups, out_group = s.K / s.groups, taps = s.KH * s.KW;
  const int64_t channel = s.weight_channels_last ? 1 : taps, tap = s.weight_channels_last ? in_group : 1;
  parallel(pool, s.C, 1 + 65536 / (out_group * taps + 1), [&](int64_t begin, int64_t end) {
    for (int64_t c = begin; c < end; ++c) {
      const int64_t g = c / in_group, j = c % in_group;
      const T* from = weight + g * out_group * in_group * taps + j * channel;
      T* to = flipped + c * out_group * taps;
      for (int64_t k = 0; k < out_group; ++k, from += in_group * taps, to += taps)
        for (int64_t t = 0; t < taps; ++t) to[t] = from[(taps - 1 - t) * tap];
    }
  });
}

// f(channel, ky, kx) for the weights of one output channel in the order they have in memory
template <class F>
void for_each_weight(const Conv2dShape& s, F f) {
  const int64_t channels = s.C / s.groups, outer = s.weight_channels_last ? 1 : channels, inner = s.weight_channels_last ? channels : 1;
  for (int64_t j = 0; j < outer; ++j)
    for (int64_t ky = 0; ky < s.KH; ++ky)
      for (int64_t kx = 0; kx < s.KW; ++kx)
        for (int64_t i = 0; i < inner; ++i) f(j + i, ky, kx);
}

// out [N, K, OH, OW] of the job, in the layout the name says
void conv_nchw(const ConvJob& job, const float* x, const float* weight, const float* bias, const float* shortcut, bool relu, float* out,
               const Pool& pool);
void conv_nhwc(const ConvJob& job, const float* x, const float* weight, const float* bias, const float* shortcut, bool relu, float* out,
               const Pool& pool);

// Units of work per piece, so that starting a thread pays: about 2^18 multiply-adds.
inline int64_t conv_grain(double macs_per_unit) {
  const double grain = 262144.0 / (macs_per_unit + 1.0);
  return grain < 1.0 ? 1 : int64_t(grain);
}

// ================================================================ NCHW: vectors run over pixels of one plane

// Input planes are copied with their padding into scratch memory, row stride S. The pixel (oy, ox) of the output
// is then the flat position oy*S + ox, and tap t reads flat position + tap_offset[t], for any kernel size, dilation
// and stride (a plane is split into stride_h*stride_w phases). One vector covers consecutive flat positions.
struct PlaneVector {
  int64_t first;  // index in the output plane of the first position that is a pixel
  uint32_t mask;  // which lanes are pixels; the others stand in the padding and are not stored
  uint32_t count;
};

struct PlaneTile {
  // inputs
  const float* x;         // first padded plane of the group, at the first flat position of the tile
  const int64_t* offset;  // [terms] of each (channel, tap), in the order of the weights
  int64_t terms;          // C/G * KH*KW
  const float* weight;    // [rows][terms] as it lies in memory
  const float* bias;      // [rows] or null
  const float* shortcut;  // as out, or null
  bool relu;
  // outputs
  float* out;
  int64_t out_plane;
  const PlaneVector* vectors;
};
using PlaneTileFn = void (*)(const PlaneTile&);

constexpr int kWeightTileX = 6;  // (channel, tap) pairs per tile of the weight gradient
struct PlaneWeightTile {
  const float* grad_out;  // [images][rows] planes in flat positions, zero in the padding
  int64_t grad_out_plane, grad_out_image;
  const float* x[kWeightTileX];  // plane + tap offset of each pair, in the first image
  int64_t x_image;
  int64_t images, vectors;
  float sums[4][kWeightTileX];  // out
};
using PlaneWeightTileFn = void (*)(PlaneWeightTile&);

constexpr int kPlaneRows = 8, kPlaneVectors = 8;
struct ConvPlaneKernels {
  int lanes;
  PlaneTileFn tile[kPlaneRows + 1][kPlaneVectors + 1];  // [output channels][vectors], null where registers run out
  PlaneWeightTileFn weight_tile[5];                     // [output channels 1..4]
  void (*add_shortcut)(const float* shortcut, bool relu, float* out, int64_t count);
  // rows x columns from src (pixel stride 1) to dst; dst has row stride dst_row
  void (*copy_rows)(const float* src, int64_t src_row, int64_t rows, int64_t columns, float* dst, int64_t dst_row);
  // the same from channels_last: `channels` planes at once
  void (*copy_rows_nhwc)(const float* src, int64_t src_pixel, int64_t src_row, int64_t rows, int64_t columns, int64_t channels, float* dst,
                         int64_t dst_row, int64_t dst_plane);
};
SK_DECLARE_KERNELS(ConvPlaneKernels, conv_plane_kernels)

// ================================================================ NHWC: vectors run over output channels

// How a vector of output channels gets "input channel j of each lane's group" from one pixel.
enum LaneKind : int {
  kOneGroup = 0,   // all lanes in one group: broadcast
  kTwoGroups = 1,  // broadcast, then a masked broadcast of the second group's channel
  kWindow16 = 2,   // all inputs within 16 channels: one load and permute, permutation + 1 for the next j
  kWindow32 = 3,   // within 32 channels: two loads and one two-source permute
  kDepthwise = 4,  // one input and one output channel per group: the pixel itself
  kLaneKinds = 5,
};

struct LaneMap {
  LaneKind kind;
  int64_t first_channel, channels;  // output channels of the block
  int64_t window;                   // input channel the block reads from; kTwoGroups: of the first group
  int64_t window2;                  // kTwoGroups: of the second group
  uint32_t second;                  // kTwoGroups: lanes of the second group
  int32_t index[16];                // kWindow*: lane -> position in the window for j = 0
  uint64_t lanes() const { return channels >= 64 ? ~uint64_t(0) : (uint64_t(1) << channels) - 1; }
};

// Vectors cut regardless of group borders, 16 channels each; empty if some vector needs more than two groups and
// more than 32 input channels.
std::vector<LaneMap> spanning_blocks(const ConvJob& job, int lanes);
// Every block inside one group; a depthwise convolution takes its vectors as they come.
std::vector<LaneMap> aligned_blocks(const ConvJob& job, int block, bool depthwise);

struct LaneTile {
  // inputs
  const float* x;             // input pixel under the first tap of the first output; with a left edge it lies before the row
  const float* x2;            // the same for the second group (kTwoGroups)
  const float* zero;          // stands for rows outside the image, same pixel stride, P + K - 1 pixels
  int64_t x_pixel, x_row;     // floats
  int64_t y0, rows;           // input row under the first tap of the first output row; rows of the image
  const int64_t* tap_offset;  // [taps], tap kernel only
  int64_t taps, channels;     // KH*KW, C/G
  const float* weight;        // packed for the block, see pack()
  const char* prefetch;       // one cache line per step: the weights of the block to come
  const float* bias;          // [V*lanes], always there
  const int32_t* index;       // [lanes]
  uint32_t second;
  uint64_t lanes;         // one bit per output channel of the block that exists
  const float* shortcut;  // as out, or null
  bool relu;
  // outputs
  float* out;
  int64_t out_pixel, out_row;
};
using LaneTileFn = void (*)(const LaneTile&);

// A kernel computes R output rows x P pixels x V vectors of output channels.
struct LaneConfig {
  enum Order { kTapMajor, kRowMajor, kNatural } weight_order;
  int R, P, V;
  LaneTileFn tile[kLaneKinds][4];  // [kind][1: left edge | 2: right edge]; null where there is none
};

struct ConvLaneKernels {
  int lanes;
  bool spans_groups;       // vectors may straddle groups (kTwoGroups, kWindow*)
  const LaneConfig* taps;  // any kernel size; P descending to 1, V in {2, 1}; no edges
  int taps_count;
};
struct ConvRowKernels {  // square kernels of size 3 or 5, stride 1: a source register serves several taps
  const LaneConfig* configs;
  int count;
};

struct ConvPackKernels {
  // weight [rows][columns], natural, -> packed + position[column]*step, `lanes` values each; missing rows are zero
  void (*pack)(const float* weight, int64_t rows, int64_t columns, const int32_t* position, int64_t step, float* packed);
};

// ---- which tile, and the weights in its order

// 1x1 without padding: the pixels of all images in one line, whatever the stride.
inline bool conv_is_flat(const ConvJob& job) {
  return job.KH == 1 && job.KW == 1 && job.pad_h == 0 && job.pad_w == 0 && job.expand_h == 1 && job.expand_w == 1;
}
struct ConvBlockOrder {  // how a pack lies in memory; only tiles that read it so may be chosen
  LaneConfig::Order order;
  int V;
  bool spanning;
};
struct ConvLanePlan {
  const LaneConfig* config = nullptr;  // null: no tile of the order fits the map
  bool spanning = false;
  bool edges = false;            // same-size padding stays in the kernel
  double cycles = 0;             // estimated
  std::vector<LaneMap> spanned;  // the blocks if they span groups
};
ConvLanePlan conv_nhwc_plan(const ConvJob& job, const ConvBlockOrder* packed);
// The tile for what is left of a row of `columns` pixels after whole ones: the narrowest that holds it.
const LaneConfig& conv_last_tile(const LaneConfig& config, int64_t columns);

// The weights of blocks of vectors, each [columns][width] in the order its kernel reads them: ready in a pack, or natural
// ones that are packed when a block's turn comes.
class ConvWeights {
 public:
  // `ready`: the blocks of a pack, made of vectors of `lanes`
  ConvWeights(const ConvJob& job, const ConvBlockOrder& order, int64_t lanes, const float* ready);
  ConvWeights(const ConvJob& job, ConvLanePlan plan, const float* natural, const float* ready);
  const std::vector<LaneMap>& blocks() const { return blocks_; }
  int64_t count() const { return int64_t(blocks_.size()); }
  int64_t columns() const { return columns_; }  // C/G*KH*KW
  int64_t width() const { return width_; }      // output channels of a block
  int64_t block_floats() const { return columns_ * width_; }
  bool ready() const { return ready_ != nullptr; }
  const float* block(int64_t b) const { return ready_ + b * block_floats(); }  // ready ones
  void pack(int64_t b, float* to) const;
  // packs all of them, [count()][block_floats()]; from then on they are ready
  void pack_all(float* to, const Pool& pool);
  // where block b, about to be needed, lies now: ready or natural, `lines()` cache lines
  const char* source(int64_t b) const;
  int64_t lines() const { return block_floats() / 16; }
  int32_t position(int64_t channel, int64_t ky, int64_t kx) const;  // of a weight among its block's columns

 private:
  ConvWeights(const ConvJob& job, const ConvBlockOrder& order, int64_t lanes, const float* ready, std::vector<LaneMap> spanned);
  const ConvJob& job_;
  LaneConfig::Order order_;
  std::vector<LaneMap> blocks_;
  int64_t columns_, width_, lanes_;
  const float *natural_, *ready_;
  std::vector<int32_t> positions_;  // [columns] in the order of the natural weight
};

// What to prefetch during tile `tile` of `tiles` of one block, each of `steps` steps: a share of the next block, or else `then`.
inline const char* conv_prefetch(const ConvWeights& weights, int64_t next, int64_t tile, int64_t tiles, int64_t steps, const float* then) {
  const int64_t share = std::max(steps, weights.lines() / tiles);
  if (next >= weights.count() || tile * share >= weights.lines()) return reinterpret_cast<const char*>(then);
  return weights.source(next) + 64 * tile * share;
}

// conv_nhwc on the blocks of a pack; false if no tile that reads them fits the job.
bool conv_nhwc_packed(const ConvJob& job, const ConvBlockOrder& order, const float* x, const float* blocks, const float* bias, const float* shortcut,
                      bool relu, float* out, const Pool& pool);

// out [N, K, OH, OW] channels_last of a flat job; bias [blocks][width]
void conv_nhwc_flat(const ConvJob& job, const LaneConfig& config, ConvWeights& weights, const float* bias, const float* x, const float* shortcut,
                    bool relu, float* out, const Pool& pool);

// The weight gradient of a square 3x3 or 5x5 filter with stride 1: rows of grad_out against the rows of x under one
// filter row, J input channels at a time; sums stay in registers over the rows.
struct LaneWeightRows {
  // inputs
  const float *x, *x2;    // first row, first pixel, first of the J channels; of the second group (kTwoGroups)
  const float* grad_out;  // first row, first pixel, first channel of the block
  int64_t x_pixel, x_row, grad_pixel, grad_row, rows;
  int64_t columns, grad_columns, pad;  // pixels in a row of x and of grad_out; padding at the left
  const int32_t* index;                // kWindow*: [lanes] for the first of the J channels
  uint32_t second, lanes;
  // outputs, added to
  float* sums;  // [J][K][16]
};
using LaneWeightFn = void (*)(const LaneWeightRows&);
struct ConvLaneWeightKernels {
  LaneWeightFn rows[2][kLaneKinds][4];  // [3x3, 5x5][kind][J = 8, 4, 2, 1]; null where there is none
  // packed sums [columns] at position[column]*16 -> grad_weight [rows][columns]
  void (*unpack)(const float* packed, const int32_t* position, int64_t rows, int64_t columns, float* grad_weight);
};
// False if there is no such kernel for the shape.
bool conv_nhwc_grad_weight(const ConvJob& job, const float* grad_out, const float* x, float* grad_weight, const Pool& pool);

SK_DECLARE_KERNELS(ConvLaneKernels, conv_lane_kernels)
SK_DECLARE_KERNELS(ConvPackKernels, conv_pack_kernels)
SK_DECLARE_KERNELS(ConvLaneWeightKernels, conv_lane_weight_kernels)
SK_DECLARE_KERNELS(ConvRowKernels, conv_row3_kernels)
SK_DECLARE_KERNELS(ConvRowKernels, conv_row5_kernels)

}  // namespace sk
