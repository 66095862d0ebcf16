// Products of wide panels by wgmma (compute capability 9.x only): V, a multiple of 64, outputs share a list of single inputs.
//
//   y[n, ob*V + v]         = bias + sum over f of x[n, index[ob, f]] * weight[ob, f, v]
//   grad_weight[ob, f, v]  = sum over n of grad_out[n, ob*V + v] * x[n, index[ob, f]]
//
// Lines of a feature-major x are picked as they lie. Forward they are lines of the sum, as are those of the weight [F, V]; for the
// weight's gradient they are lines of the result, beside rows of grad_out, which are lines of the sum.
#pragma once
#include "cuda/sparse_linear.h"
#include "cuda/wgmma_tile.cuh"

namespace sk {

struct WidePanelJob {
  int64_t N, x_line;         // rows; elements from one input's line to the next, a multiple of 8
  int width, fan_in, tiles;  // V, F, tiles of a panel
  Strides y_at;
  bool y_vectors;  // lines of y are whole, aligned pieces
  const int32_t* index;
};

// How much of a piece of 8 numbers is there.
SK_DEVICE int bytes_of_piece(int64_t left) { return left >= 8 ? 16 : left > 0 ? int(left) * 2 : 0; }

template <class T, int Outputs, int Rows>
__global__ void __launch_bounds__(kWgmmaThreads, 1)
    sparse_linear_panels_wgmma_kernel(const T* __restrict__ x, const T* __restrict__ weight, const T* __restrict__ bias, T* __restrict__ y,
                                      WidePanelJob job) {
  using Tile = WgmmaTile<T, Outputs, Rows, true, true>;
  using L = typename Tile::L;
  using R = typename Tile::R;
  const int ob = int(blockIdx.y) / job.tiles, column = int(blockIdx.y) % job.tiles * Outputs;
  const int64_t first_row = int64_t(blockIdx.x) * Rows;
  const T* const weights = weight + (int64_t(ob) * job.fan_in + L::line()) * job.width + column + L::piece() * 8;
  const T* const rows_from = x + first_row + R::piece() * 8;
  const int32_t* const list = job.index + int64_t(ob) * job.fan_in;
  const int row_bytes = bytes_of_piece(job.N - first_row - R::piece() * 8);

  int32_t picked[R::kEach];  // of the next stage to be fetched
  const auto pick = [&](int stage) {
    SK_UNROLL
    for (int p = 0; p < R::kEach; ++p) {
      const int connection = stage * kWgmmaDepth + R::line() + p * R::kStep;
      picked[p] = connection < job.fan_in ? load(list + connection) : -1;
    }
  };
  pick(0);
  float sum[Tile::kSums];
  Tile::multiply(sum, (job.fan_in + kWgmmaDepth - 1) / kWgmmaDepth, [&](int stage, uint32_t left, uint32_t right) {
    const int first = stage * kWgmmaDepth;
    L::bring(left, [&](int p) -> WgmmaPiece<T> {
      return {weights + int64_t(first + p * L::kStep) * job.width, first + L::line() + p * L::kStep < job.fan_in ? 16 : 0};
    });
    R::bring(right, [&](int p) -> WgmmaPiece<T> { return {rows_from + picked[p] * job.x_line, picked[p] < 0 ? 0 : row_bytes}; });
    pick(stage + 1);
  });

  const bool by_row = job.y_at.col == 1;
  const int64_t t = int64_t(ob) * job.width + column;
  T* const to = y + first_row * job.y_at.row + t * job.y_at.col;
  Tile::write(
      sum, by_row, Outputs, job.N - first_row < Rows ? int(job.N - first_row) : Rows, job.y_vectors,
      [&](int m) { return bias ? to_float(load(bias + t + m)) : 0.0f; },
      [&](int line, int i) { return to + line * (by_row ? job.y_at.row : job.y_at.col) + i; });
}

template <class T, int Outputs, int Lines>
__global__ void __launch_bounds__(kWgmmaThreads, 1)
    sparse_linear_panels_weight_wgmma_kernel(const T* __restrict__ grad_out,  // [N, OB*V], by row
                                             const T* __restrict__ x, T* __restrict__ grad_weight, int64_t grad_line, WidePanelJob job) {
  using Tile = WgmmaTile<T, Outputs, Lines, true, false>;
  using L = typename Tile::L;
  using R = typename Tile::R;
  const int tiles_of_lines = (job.fan_in + Lines - 1) / Lines, tile = int(blockIdx.x) % job.tiles, ob = int(blockIdx.x) / job.tiles;
  const int column = tile / tiles_of_lines * Outputs, first_line = tile % tiles_of_lines * Lines;
  const T* const grads = grad_out + L::line() * grad_line + int64_t(ob) * job.width + column + L::piece() * 8;
  const int32_t* const list = job.index + int64_t(ob) * job.fan_in;
  int32_t picked[R::kEach];
  SK_UNROLL
  for (int p = 0; p < R::kEach; ++p) {
    const int connection = first_line + R::line() + p * R::kStep;
    picked[p] = connection < job.fan_in ? load(list + connection) : -1;
  }
  float sum[Tile::kSums];
  Tile::multiply(sum, int((job.N + kWgmmaDepth - 1) / kWgmmaDepth), [&](int stage, uint32_t left, uint32_t right) {
    const int64_t first = int64_t(stage) * kWgmmaDepth;
    L::bring(left,
             [&](int p) -> WgmmaPiece<T> { return {grads + (first + p * L::kStep) * grad_line, first + L::line() + p * L::kStep < job.N ? 16 : 0}; });
    const int bytes = bytes_of_piece(job.N - first - R::piece() * 8);
    R::bring(right, [&](int p) -> WgmmaPiece<T> { return {x + picked[p] * job.x_line + first + R::piece() * 8, picked[p] < 0 ? 0 : bytes}; });
  });
  T* const to = grad_weight + (int64_t(ob) * job.fan_in + first_line) * job.width + column;
  Tile::write(
      sum, true, Outputs, job.fan_in - first_line < Lines ? job.fan_in - first_line : Lines, job.y_vectors, [](int) { return 0.0f; },
      [&](int line, int i) { return to + int64_t(line) * job.width + i; });
}

}  // namespace sk
