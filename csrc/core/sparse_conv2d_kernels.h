// What the drivers of sparse_conv2d hand to its kernels. Internal to csrc/core/sparse_conv2d*.
//
// Pixels are walked as a flat stream of vectors of `lanes` floats. What tap t sees of source channel c at vector v lies at
//   x + tap_offset[t] + c*x_stride + v*v_stride
// either in the caller's tensor, with one lane mask per (tap, vector) in place of the padding (AVX-512), or in copies that
// are shifted and padded so that every lane can be read.
#pragma once
#include "core/core.h"

namespace sk {

constexpr int64_t kAbsentTap = INT64_MIN;     // in tap_offset: this tap never falls on the source
constexpr int32_t kAbsentOffset = INT32_MIN;  // the same in the tables of the list kernels

struct SparseConvTile {
  // source pixels
  const float* x;
  int64_t x_stride, v_stride;
  const int64_t* tap_offset;  // [taps]
  const int32_t* tap_order;   // [taps] in which forward takes them: neighbours read the same lines
  const uint16_t* mask;       // [taps, mask_stride], or null
  int64_t mask_stride;
  const float *x_begin, *x_end;  // with masks: the memory around x that forward may read, whatever it holds
  // kept weights [nnz, BO, BI], by column (input block, tap)
  const float* weight;
  const int32_t* columns;  // [IB*taps + 1]
  const int32_t* rows;     // [nnz] output block
  const int32_t* entries;  // [nnz] place in weight
  int64_t BO, BI, IB, K, taps;
  // destination channels, vectors [v_begin, v_end), the last one with `tail` lanes
  float* out;
  int64_t out_stride;
  const float* bias;  // [K] or null; forward only
  // grad_x only: where each column crosses into the next block of filters, [filter_blocks + 1, IB*taps]
  const int32_t* splits;
  int64_t filter_blocks;
  int64_t v_begin, v_end;
  int tail;
  int block_vectors, tile_filters, block_channels;  // of a forward pass: pixels and filters of a tile, channels per sum
  // forward over maps that no cache holds: fetch ahead, at the end of an image into the next one's source and out (or null). Where floats are
  // given, these are streams of so many of them: of channels_last images the pixels to come, and those that the sums go to.
  // `reach`: the farthest tap_offset, where pixels are read in place
  bool ahead;
  const float *next_x, *next_out;
  int64_t next_x_floats, next_out_floats, reach;
};

// One tile of grad_weight: `count` filters of one column against `vectors` vectors of input channels.
struct SparseConvOuter {
  const float* x;                // [pixels, vectors*lanes], at the first pixel this tap sees
  int64_t x_row, x_col;          // steps in x for one step of an output row or column
  const float* const* grad_out;  // [count], at the first such output pixel
  int64_t grad_row, rows, cols;
  float* const* grad_weight;  // [count], added to
  int count, vectors, tail;   // tail: channels in the last vector
};

struct SparseConvList {
  const float* x;        // shifted copies of the channels of codes [code_begin, code_end)
  const int32_t* code;   // [nnz] which block of the source an entry reads, increasing inside a row
  const int32_t* entry;  // [nnz] place in weight, or null: the entry itself
  const int32_t* table;  // [code_end - code_begin] offset in x
  int32_t code_begin, code_end;
  int64_t inner;  // weights of one entry and row, L: offsets in x and in the entry
  const int32_t *inner_x, *inner_weight;
  int64_t x_step, weight_step;  // where both are multiples of a step (one tap, several channels); 0 where they are not
  const float* weight;
  int64_t entry_stride, row_stride;
  int64_t rows;  // destination channels of one row block
  float* out;    // [rows, ...], out_stride apart; grad_weight: what the kernel reads (grad_out)
  int64_t out_stride;
  const float* bias;  // [rows] or null
  bool first;         // start from the bias, not from out
  int64_t vectors;
  int tail;
  float* grad_weight;
  int64_t patch_rows, patch_cols, patch_row;  // over patches: vectors of out, and floats between rows of vectors of x
};

// A map seen as 16 patches of [side_h, side_w] pixels, rows of lanes_x of them: lane i*lanes_x + j of vector (y, x) holds pixel
// (i*side_h + y, j*side_w + x). A tap shifts whole vectors, so one copy of a channel serves all taps, and a map fills its vectors whatever
// its width; list kernels otherwise need a copy for each column of taps. Vectors outside a patch hold the pixels next to it, zeros outside
// the source.
struct SparseConvPatches {
  int64_t lanes_x, side_h, side_w;
  int64_t map_h, map_w;  // destination
  int64_t src_h, src_w;
  int64_t rows, first_col, cols;  // vectors of the copies of a strip of patch rows
  int64_t channel_floats;

  // room for the rows of one channel that a strip reads, with zeros around them
  int64_t padded_cols() const { return ((lanes_x - 1) * side_w + (cols + 7) / 8 * 8 + 15) / 16 * 16; }
  int64_t room_floats() const { return 16 / lanes_x * rows * padded_cols(); }
};

// Copies of source channels: for each distinct column shift and each row phase, `plane_rows` rows of `row_floats`.
struct SparseConvShift {
  const float* x;  // [channels, src_h, src_w], x_stride apart; rows that no copy shows need not exist
  int64_t x_stride;
  float* out;
  int64_t src_h, src_w, cols, row_floats, plane_rows, step_h, step_w;
  int64_t first_row;  // row 0 of phase p shows source row first_row*step_h + phase[p]
  int64_t shifts, phases;
  const int64_t *shift, *phase;
  int64_t channels, channel_floats;
};

struct SparseConvTileKernels {
  int lanes;
  bool masked;  // can read through lane masks
  void (*forward)(const SparseConvTile&);
  void (*grad_x)(const SparseConvTile&);
  int max_filters, max_vectors;  // of `outer`
  void (*outer)(const SparseConvOuter&);
};
struct SparseConvListKernels {
  int64_t (*forward)(const SparseConvList&, int64_t begin, int64_t end);  // -> first entry not used
  int64_t (*grad_weight)(const SparseConvList&, int64_t begin, int64_t end);
};
constexpr int64_t kMaxPatchSums = 16;                                     // vectors of out of a strip
constexpr int64_t kMaxPatchVectors = 128;                                 // of a channel and strip
struct SparseConvPatchKernels {                                           // all null where a vector is not of 16 lanes
  int64_t (*forward)(const SparseConvList&, int64_t begin, int64_t end);  // as the list kernels', of one weight per entry and channel
};
struct SparseConvPatchCopyKernels {
  // Channels of x, whose pixels or channels lie side by side, from patch row `first_row` on -> out [channels, channel_floats].
  void (*fill)(const SparseConvPatches&, int64_t first_row, const float* x, int64_t channel_stride, int64_t pixel_stride, int64_t channels,
               float* out, float* room);
  // sums [channels, sums_stride] of patch rows [y, y + rows) -> out
  void (*restore)(const SparseConvPatches&, int64_t y, int64_t rows, const float* sums, int64_t sums_stride, int64_t channels, float* out,
                  int64_t channel_stride, int64_t pixel_stride);
};
struct SparseConvCopyKernels {
  void (*shift)(const SparseConvShift&);              // out [channels][shift][phase][row]
  void (*shift_interleaved)(const SparseConvShift&);  // out [shift][phase][row][vector][channels][lanes]
  // in [rows, cols] -> out [cols, rows]
  void (*transpose)(const float* in, int64_t in_stride, int64_t rows, int64_t cols, float* out, int64_t out_stride);
  // mask[t][v]: lanes of vector v whose pixel (y, x) of a [rows, cols] grid has y + dy[t] in [0, src_h), x + dx[t] in [0, src_w)
  void (*masks)(int64_t rows, int64_t cols, int64_t src_h, int64_t src_w, int64_t taps, const int64_t* dy, const int64_t* dx, uint16_t* mask);
  // x [channels, pixels] -> out [tiles of `vectors` vectors of channels][pixels][vectors*lanes], missing channels zero
  void (*channel_tiles)(const float* x, int64_t channels, int64_t pixels, int vectors, float* out);
};
SK_DECLARE_KERNELS(SparseConvTileKernels, sparse_conv_tile_kernels)
SK_DECLARE_KERNELS(SparseConvListKernels, sparse_conv_list_kernels)
SK_DECLARE_KERNELS(SparseConvCopyKernels, sparse_conv_copy_kernels)
SK_DECLARE_KERNELS(SparseConvPatchKernels, sparse_conv_patch_kernels)
SK_DECLARE_KERNELS(SparseConvPatchCopyKernels, sparse_conv_patch_copy_kernels)

}  // namespace sk
