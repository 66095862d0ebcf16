// Drives the tile kernels of sparse_linear_bf16.h: operands prepared, rows of x cut into chunks, outputs shared among threads.
#pragma once
#include "core/sparse_linear.h"
#include "core/sparse_linear_bf16.h"

namespace sk {

// Blocks that are whole tiles.
inline bool tile_blocks(const SparseLinearShape& s) { return s.BO % kTile == 0 && s.BI % kTile == 0; }

// Panels: blocks one input wide, of whole tiles of outputs.
inline bool tile_panels(const SparseLinearShape& s) { return s.BI == 1 && s.BO % kTile == 0; }

// y = x times `count` panels.
void panels_on_tiles(const Bf16Panels& w, int64_t count, const Bf16Matrix& x, const Bf16Out& out, const Pool& pool);
// y = x times `count` output blocks; x [N][in], y [N][count * w.rows].
void blocks_on_tiles(Bf16Blocks w, int64_t count, const Bf16Matrix& x, const Bf16Out& out, const Pool& pool);
// Rows of x go through the kernels in chunks that stay in the second-level cache.
inline int64_t chunk_rows(int64_t rows, int64_t depth, int64_t chunk_bytes = 1 << 20) {
  constexpr int64_t kMostRows = 512, kFewestRows = 64;
  int64_t most = chunk_bytes / (2 * depth + 1);
  most = most < kFewestRows ? kFewestRows : most > kMostRows ? kMostRows : most;
  const int64_t chunks = rows ? (rows + most - 1) / most : 1;
  return ((rows + chunks - 1) / chunks + 2 * kTile - 1) / (2 * kTile) * 2 * kTile;
}
// The same for unstructured weights: where y is the wider one, fewer rows, so that its pages stay at hand.
inline int64_t chunk_rows(const SparseLinearShape& s) {
  constexpr int64_t kRowsOfWideOutputs = 256;
  const int64_t rows = chunk_rows(s.N, s.in());
  return s.out() > s.in() && rows > kRowsOfWideOutputs ? kRowsOfWideOutputs : rows;
}
// Unstructured and natural: is the weight, rather than x and y, to be transposed, tile by tile, for each chunk?
inline bool transpose_rows(const SparseLinearShape& s) {
  const int64_t rows = s.N < kTile ? 0 : chunk_rows(s);
  return (s.N < rows ? s.N : rows) * (s.in() + 2 * s.out()) > s.in() * s.out();
}
// Packs keep a mask for tiles where that is at most 16 bytes per weight.
inline bool pack_rows(const SparseLinearShape& s) { return s.BO * s.BI == 1 && s.F * 128 >= s.IB; }
// y = x times w.rows unstructured rows.
void rows_on_tiles(const SparseLinearShape& s, const Bf16Rows& w, Bf16Matrix x, const Bf16Out& out, const Pool& pool);

}  // namespace sk
