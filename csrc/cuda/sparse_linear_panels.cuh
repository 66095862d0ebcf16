// Fixed fan-in products of panels: V outputs share a list of single inputs; the weight is [OB, F, V] as it lies.
//
//   y[n, ob*V + v] = bias + sum over f of x[n, index[ob, f]] * weight[ob, f, v]
//
// x is feature-major, so that an input is a line of rows: the tiles of grouped_mm.cuh, whose left lines are picked from a table. The
// weight's gradient sums over rows: there the picked lines are the rows of the result.
#pragma once
#include "cuda/grouped_mm.cuh"
#include "cuda/sparse_linear.h"

namespace sk {

struct PanelJob {
  MmJob mm;  // lines and vectors of both operands
  int64_t N;
  int width, fan_in, tiles;  // V, F, tiles of V (of F and V: of the weight's gradient)
  Strides y_at;
  const int32_t* index;
};

template <class T, Fp32 mode>
__global__ void __launch_bounds__(kMmThreads, 3)
    sparse_linear_panels_kernel(const T* __restrict__ x, const T* __restrict__ weight, const T* __restrict__ bias, T* __restrict__ y, PanelJob job) {
  using Tile = MmTile<T, mode, true, true, true>;
  const int lane = threadIdx.x % 32, warp = threadIdx.x / 32, ob = int(blockIdx.y) / job.tiles, column = int(blockIdx.y) % job.tiles * kMmTile;
  const int64_t first = int64_t(blockIdx.x) * kMmTile;
  const MmPass<T> pass{x + first,
                       weight + int64_t(ob) * job.fan_in * job.width + column,
                       0,
                       at_most(job.N - first, kMmTile),
                       at_most(job.width - column, kMmTile),
                       job.fan_in,
                       job.index + int64_t(ob) * job.fan_in};
  float sum[2][4][4] = {};
  Tile{job.mm}.multiply(sum, pass);
  SK_UNROLL
  for (int m = 0; m < 2; ++m) SK_UNROLL
  for (int j = 0; j < 4; ++j) SK_UNROLL
  for (int q = 0; q < 4; ++q) {
    const int row = warp / 2 * 32 + m * 16 + q / 2 * 8 + lane / 4, local = warp % 2 * 32 + j * 8 + lane % 4 * 2 + q % 2;
    if (row >= pass.height || local >= pass.width) continue;
    const int64_t t = int64_t(ob) * job.width + column + local;
    store(y + (first + row) * job.y_at.row + t * job.y_at.col, from_float<T>(sum[m][j][q] + (bias ? to_float(load(bias + t)) : 0.0f)));
  }
}

template <class T, Fp32 mode>
__global__ void __launch_bounds__(kMmThreads, 3)
    sparse_linear_panels_weight_kernel(const T* __restrict__ x, const T* __restrict__ grad_out, T* __restrict__ grad_weight, PanelJob job) {
  using Tile = MmTile<T, mode, false, false, true>;
  const int across = (job.width + kMmTile - 1) / kMmTile, ob = int(blockIdx.x) / job.tiles, tile = int(blockIdx.x) % job.tiles;
  const int row = tile / across * kMmTile, column = tile % across * kMmTile;
  const MmPass<T> pass{x,
                       grad_out + (int64_t(ob) * job.width + column) * job.mm.b_line,
                       0,
                       at_most(job.fan_in - row, kMmTile),
                       at_most(job.width - column, kMmTile),
                       int(job.N),
                       job.index + int64_t(ob) * job.fan_in + row};
  float sum[2][4][4] = {};
  Tile{job.mm}.multiply(sum, pass);
  Tile::write(sum, pass, grad_weight + (int64_t(ob) * job.fan_in + row) * job.width + column, job.width);
}

}  // namespace sk
