// Forward product of wide panels by wgmma (compute capability 9.x only): V, a multiple of 64, outputs share a list of single inputs.
//
//   y[n, ob*V + v] = bias + sum over f of x[n, index[ob, f]] * weight[ob, f, v]
//
// The weight [F, V] of a panel is the left operand as it lies, the lines of a feature-major x that the panel picks are the right one, so
// that both stand in shared memory with the neighbours of the result side by side, in the 128-byte swizzle. Two warpgroups, each with 64
// outputs of `Rows` rows, share a tile; cp.async brings 64 connections a stage, while the products of two stages are under way.
#pragma once
#include "cuda/device.h"
#include "cuda/sparse_linear.h"

namespace sk {

struct WidePanelJob {
  int64_t N, x_line;         // rows; elements from one input's line to the next, a multiple of 8
  int width, fan_in, tiles;  // V, F, tiles of V
  Strides y_at;
  bool y_vectors;  // lines of y are whole, aligned pieces
  const int32_t* index;
};

template <int Outputs, int Rows>
struct WidePanelTile {
  static constexpr int kThreads = 256, kDepth = 64, kStages = 4;  // kDepth: connections of a stage
  static constexpr int kRows = Rows * 2 * 64 / Outputs;           // of the tile
  static constexpr int kAtoms = kDepth * 128;                     // bytes of 64 neighbours of all connections of a stage
  static constexpr uint32_t kRowsAt = Outputs / 64 * kAtoms, kStageBytes = kRowsAt + kRows / 64 * kAtoms;
  static constexpr int kBytes = kStages * int(kStageBytes);

  // Where 8 neighbours of a line, which is a connection, stand in a stage.
  SK_DEVICE static uint32_t at(int line, int piece) { return piece / 8 * kAtoms + line * 128 + ((piece ^ line) & 7) * 16; }
};

template <class T, int Outputs, int Rows>
__global__ void __launch_bounds__(256, 1) sparse_linear_panels_wgmma_kernel(const T* __restrict__ x, const T* __restrict__ weight,
                                                                            const T* __restrict__ bias, T* __restrict__ y, WidePanelJob job) {
  using Tile = WidePanelTile<Outputs, Rows>;
  constexpr int kWeightPieces = Outputs / 8, kRowPieces = Tile::kRows / 8;  // of a line
  // Every thread brings one piece of every so-manieth line: a multiple of 8, so that it has one place in the swizzle.
  constexpr int kWeightStep = Tile::kThreads / kWeightPieces, kRowStep = Tile::kThreads / kRowPieces, kPicks = Tile::kDepth / kRowStep;
  static_assert(kWeightStep % 8 == 0 && kRowStep % 8 == 0 && Tile::kBytes <= 227 * 1024, "WidePanelTile");
  const int thread = threadIdx.x, ob = int(blockIdx.y) / job.tiles, column = int(blockIdx.y) % job.tiles * Outputs;
  const int stages = (job.fan_in + Tile::kDepth - 1) / Tile::kDepth;
  const int64_t first_row = int64_t(blockIdx.x) * Tile::kRows;

  const int weight_line = thread / kWeightPieces, row_line = thread / kRowPieces;
  const T* const weights = weight + (int64_t(ob) * job.fan_in + weight_line) * job.width + column + thread % kWeightPieces * 8;
  const T* const rows_from = x + first_row + thread % kRowPieces * 8;
  const int32_t* const list = job.index + int64_t(ob) * job.fan_in;
  const uint32_t weight_to = Tile::at(weight_line, thread % kWeightPieces), row_to = Tile::kRowsAt + Tile::at(row_line, thread % kRowPieces);
  const int64_t rows_left = job.N - first_row - thread % kRowPieces * 8;
  const int row_bytes = rows_left >= 8 ? 16 : rows_left > 0 ? int(rows_left) * 2 : 0;

  int32_t picked[kPicks];  // of the next stage to be fetched
  const auto pick = [&](int stage) {
    SK_UNROLL
    for (int p = 0; p < kPicks; ++p) {
      const int connection = stage * Tile::kDepth + row_line + p * kRowStep;
      picked[p] = connection < job.fan_in ? load(list + connection) : -1;
    }
  };
  const auto fetch = [&](int stage) {
    if (stage < stages) {
      const uint32_t to = stage % Tile::kStages * Tile::kStageBytes;
      const int first = stage * Tile::kDepth + weight_line;
      const T* const from = weights + int64_t(stage) * Tile::kDepth * job.width;
      SK_UNROLL
      for (int p = 0; p < Tile::kDepth / kWeightStep; ++p)
        copy_async_16(to + weight_to + p * kWeightStep * 128, from + p * kWeightStep * int64_t(job.width),
                      first + p * kWeightStep < job.fan_in ? 16 : 0);
      SK_UNROLL
      for (int p = 0; p < kPicks; ++p)
        copy_async_16(to + row_to + p * kRowStep * 128, rows_from + picked[p] * job.x_line, picked[p] < 0 ? 0 : row_bytes);
    }
    copy_async_commit();
  };

  const int group = thread / 128, group_outputs = group % (Outputs / 64) * 64, group_rows = group / (Outputs / 64) * Rows;
  float sum[Rows / 2];
  SK_UNROLL
  for (int i = 0; i < Rows / 2; ++i) sum[i] = 0;
  pick(0);
  fetch(0);
  pick(1);
  fetch(1);
  pick(2);
  for (int stage = 0; stage < stages; ++stage) {
    copy_async_wait<1>();
    fence_async_proxy();
    __syncthreads();  // everybody's copies are there, and everybody has waited for the products of the stage before the last
    wgmma_fence();
    const uint32_t left = stage % Tile::kStages * Tile::kStageBytes + group_outputs / 64 * Tile::kAtoms;
    const uint32_t right = stage % Tile::kStages * Tile::kStageBytes + Tile::kRowsAt + group_rows / 64 * Tile::kAtoms;
    SK_UNROLL
    for (int step = 0; step < Tile::kDepth / 16; ++step)
      wgmma_turned<T, Rows>(sum, wgmma_descriptor(shared_pointer(left + step * 2048), Tile::kAtoms, 1024),
                            wgmma_descriptor(shared_pointer(right + step * 2048), Tile::kAtoms, 1024));
    wgmma_commit();
    fetch(stage + 2);  // takes the place of the stage before the last
    pick(stage + 3);
    wgmma_wait<1>();
  }
  wgmma_wait<0>();
  copy_async_wait<0>();
  __syncthreads();  // the tile takes the place of the stages

  // As y lies: lines of rows, or lines of outputs. The gap between lines spreads them over the banks.
  const bool by_row = job.y_at.col == 1;
  const int lane = thread % 32, output = group_outputs + thread / 32 % 4 * 16 + lane / 4, row = group_rows + lane % 4 * 2;
  const int pitch = (by_row ? Outputs : Tile::kRows) * 2 + 16;
  SK_UNROLL
  for (int half = 0; half < 2; ++half) {
    const int local = output + half * 8;
    const float added = bias ? to_float(load(bias + int64_t(ob) * job.width + column + local)) : 0.0f;
    SK_UNROLL
    for (int j = 0; j < Rows / 8; ++j) {
      const Two<T> pair{{from_float<T>(sum[j * 4 + half * 2] + added), from_float<T>(sum[j * 4 + half * 2 + 1] + added)}};
      if (by_row) {
        store_shared((row + j * 8) * pitch + local * 2, pair.v[0]);
        store_shared((row + j * 8 + 1) * pitch + local * 2, pair.v[1]);
      } else {
        store_shared(local * pitch + (row + j * 8) * 2, pair);
      }
    }
  }
  __syncthreads();  // the tile is there

  const int rows = job.N - first_row < Tile::kRows ? int(job.N - first_row) : Tile::kRows;
  const int lines = by_row ? rows : Outputs, length = by_row ? Outputs : rows;
  T* const to = y + first_row * job.y_at.row + (int64_t(ob) * job.width + column) * job.y_at.col;
  const int64_t line_step = by_row ? job.y_at.row : job.y_at.col;
  if (job.y_vectors) {
    const int pieces = length / 8;
    for (int i = thread; i < lines * pieces; i += Tile::kThreads)
      store(reinterpret_cast<Four<uint32_t>*>(to + i / pieces * line_step + i % pieces * 8),
            load_shared<Four<uint32_t>>(i / pieces * pitch + i % pieces * 16));
  } else {
    for (int i = thread; i < lines * length; i += Tile::kThreads)
      store(to + i / length * line_step + i % length, load_shared<T>(i / length * pitch + i % length * 2));
  }
}

}  // namespace sk
