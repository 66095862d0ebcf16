// sparse_linear in bf16 on matrix tiles (AMX): kernels in amx_sparse_linear.cpp and amx_rows*.cpp, driver in sparse_linear_tiles.cpp. Products are
// summed in fp32. Sizes: a tile product multiplies 16 x K by K x 16, K = 32 or 16; its left factor holds rows of K values
// ("rows"), its right factor pairs of values along K, [K/2][16][2] ("pairs"). Either of x and the weight may be the left one:
// a weight in its natural order is `rows` already, so with few rows of x (or of any length, feature-major) x becomes `pairs`;
// else x becomes `rows`, and the weight `pairs`, which is what a pack holds.
#pragma once
#include "core/core.h"

// The kernels are compiled for one instruction set: what they share with the driver must leave no symbol of its own.
#define SK_NO_SYMBOL inline __attribute__((always_inline))

namespace sk {

constexpr int64_t kTile = 16;       // rows and columns of a tile product
constexpr int64_t kTileDepth = 32;  // longest K

// A matrix [count][depth] cut into K-deep tiles of 16 rows: the one that begins with row n is at base + n*row + k*step, its own
// rows (or pairs) `stride` bytes apart. The last group of rows begins with row `last`: where a matrix is not padded, that group
// overlaps the one before it, and its results are written twice, the same.
struct Tiles {
  const char* base;
  int64_t row, step, stride, last;
  int64_t last_step = INT64_MAX;  // where the last K tile is, at most
  SK_NO_SYMBOL int64_t start(int64_t group) const { return group * kTile < last ? group * kTile : last; }
  SK_NO_SYMBOL const char* at(int64_t n, int64_t k) const { return base + n * row + (k * step < last_step ? k * step : last_step); }
};

// Element (n, k) of a matrix lies at data[n*row + k*col]; one of the strides is 1. Where its depth is no multiple of kTileDepth,
// the last K tile is padded with zeros, or, `overlap`, it ends where the row ends, and begins before the end of the one before.
struct Bf16Matrix {
  const uint16_t* data;
  int64_t count, depth, row, col;
  bool overlap = false;
};

// Output block b sums the kept blocks entries[ptr[b]..ptr[b+1]) = (input block, position of the weight block).
struct Bf16Blocks {
  const int32_t *ptr, *entries;
  int64_t rows, depth;  // of a block: outputs, inputs; multiples of 16
  const uint16_t* weight;
  bool pairs;  // each weight block as [rows/16][depth/2][16][2]; else natural, [rows][depth]
  SK_NO_SYMBOL int64_t tile_depth() const { return depth % kTileDepth ? kTile : kTileDepth; }
};

// One row per output; connections are the set bits of `mask`, in rising order, and their weights follow each other.
struct Bf16Rows {
  // where the bit of input i stands: K tiles as for x, which overlap
  static SK_NO_SYMBOL int64_t position(int64_t i, int64_t inputs) {
    const int64_t padding = (kTileDepth - inputs % kTileDepth) % kTileDepth;
    return inputs > kTileDepth && i >= inputs / kTileDepth * kTileDepth ? i + padding : i;
  }
  const uint32_t* mask;    // natural: [rows][k tiles]; packed: [rows/16][k tiles][16], a bit per element of a `pairs` tile
  const uint16_t* weight;  // natural: [rows][fan_in]; packed: as the bits come
  const int32_t* ptr;      // packed: first weight of each 16 rows; null: natural
  int64_t rows, fan_in, k_tiles;
  uint16_t* grad_weight = nullptr;  // [rows][fan_in], for that product
};

// y[n*row + o*col] = product + bias[o]; one of the strides is 1.
struct Bf16Out {
  uint16_t* y;
  int64_t row, col;
  const uint16_t* bias;  // may be null
  int64_t count;         // rows n of y
};

// Rows of x that come next: fetched into the second-level cache while the tiles work.
struct Bf16Ahead {
  const uint16_t* data = nullptr;
  int64_t rows = 0, row = 0, depth = 0;  // [rows][depth], `row` apart
};

struct TileKernels {
  // Row groups [begin, end) of m as tiles of `tile_depth`, [groups][k tiles][...], zero-padded: `pairs` of `columns` (16, or fewer
  // if there are fewer rows) or `rows`.
  void (*prepare)(const Bf16Matrix& m, int64_t tile_depth, bool pairs, int64_t columns, uint16_t* out, int64_t begin, int64_t end);
  // Output blocks [begin, end) for all row groups of x; x is `pairs` where the weight is natural, else `rows`. `columns`: rows of x in a tile.
  void (*blocks)(const Bf16Blocks& w, const Tiles& x, int64_t columns, const Bf16Out& out, const Bf16Ahead& ahead, int64_t begin, int64_t end);
  // Kept blocks [begin, end) of a forward table: grad_weight[e] [rows][depth] = grad^T x, summed over the rows of x. grad^T is `rows`
  // and x^T `pairs`, both with k_tiles tiles of kTileDepth along the rows of x.
  void (*blocks_grad_weight)(const Bf16Blocks& w, int64_t fan_in, const Tiles& grad, const Tiles& x, int64_t k_tiles, uint16_t* grad_weight,
                             int64_t begin, int64_t end);
};

// Unstructured weights (amx_rows.cpp).
struct RowKernels {
  // Output rows of panels [begin, end), 32 rows each: weights are expanded tile by tile. A natural weight is the left factor, and x
  // `pairs`, or its tiles are `transposed` too, and x is `rows`, as for a packed weight.
  void (*expanded)(const Bf16Rows& w, bool transposed, const Tiles& x, int64_t columns, const Bf16Out& out, int64_t begin, int64_t end);
  // grad_x of inputs of panels [begin, end), 32 inputs each; w is natural, `grad` is `rows`. `room`: grad_x_bytes.
  void (*grad_x)(const Bf16Rows& w, int64_t inputs, const Tiles& grad, int64_t columns, const Bf16Out& grad_x, void* room, int64_t begin,
                 int64_t end);
  // grad_weight of outputs of panels [begin, end), 32 outputs each. grad^T is `rows` and x^T `pairs`, both zero-padded to whole panels, with
  // k_tiles tiles along the rows of x; where K tiles of x would overlap, the last 32 rows of x^T do. `places` [outputs] is room.
  void (*grad_weight)(const Bf16Rows& w, const Tiles& grad, const Tiles& x, int64_t k_tiles, uint16_t** places, int64_t begin, int64_t end);
};

constexpr int64_t kInputPanels = 8;  // that grad_x sums at a time
SK_NO_SYMBOL int64_t input_sums(int64_t count) { return kInputPanels * ((count + 2 * kTile - 1) / (2 * kTile)) * 4 * kTile * kTile; }
SK_NO_SYMBOL int64_t grad_x_bytes(const Bf16Rows& w, int64_t count) { return input_sums(count) * 4 + w.rows * int64_t(sizeof(void*)); }

// Blocks one input wide: the outputs of a panel share their inputs.
struct Bf16Panels {
  const int32_t* entries;   // [panels][fan_in][2]: input, and what panels do not ask for
  int64_t fan_in, outputs;  // of a panel; outputs are a multiple of 16
  const uint16_t* weight;   // [panels][fan_in][outputs]; or, forward only, as `left_factors`, [panels][outputs / 16][K tiles][16][32], zero-padded
  bool left_factors;
};
// x feature-major, as `rows` of x^T: [inputs / 16][k_tiles][16 inputs][32 rows of x], zero-padded.
struct Bf16Columns {
  const uint16_t* data;
  int64_t k_tiles;
};

// Panels (amx_panels.cpp). `room`: panel_bytes of the shape.
struct PanelKernels {
  // y of panels [begin, end)
  void (*panels)(const Bf16Panels& w, const Bf16Columns& x, const Bf16Out& out, void* room, int64_t begin, int64_t end);
  // grad_x of rows of x [32 begin, 32 end), through all `count` panels; `grad` is `pairs`, as deep as the outputs of a panel allow, in an even
  // number of groups of 16 rows.
  void (*grad_x)(const Bf16Panels& w, int64_t count, int64_t inputs, const Tiles& grad, const Bf16Out& out, void* room, int64_t begin, int64_t end);
  // grad_weight [panels][fan_in][outputs] of panels [begin, end); grad^T is `pairs` along the rows of x.
  void (*grad_weight)(const Bf16Panels& w, const Bf16Columns& x, const Tiles& grad, uint16_t* grad_weight, void* room, int64_t begin, int64_t end);
};

#ifdef SK_HAVE_amx
namespace amx {
extern const TileKernels tile_kernels;
extern const RowKernels row_kernels;
extern const PanelKernels panel_kernels;
void rows_grad_weight(const Bf16Rows& w, const Tiles& grad, const Tiles& x, int64_t k_tiles, uint16_t** places, int64_t begin, int64_t end);
}  // namespace amx
#endif

}  // namespace sk
