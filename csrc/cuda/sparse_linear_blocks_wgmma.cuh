// Products of wide blocks by wgmma (compute capability 9.x only): BO and BI are multiples of 64.
//
// Forward and grad_x: target[n, t] = bias[t] + sum over the blocks of t's block row, 64 of their columns a stage. Rows of the source lie
// as wgmma takes them. The weight [OB, F, BO, BI] does so forward; for grad_x its neighbours are those of the result: turned.
//
// The weight's gradient sums over rows, so that both operands are turned. The blocks of a block row share grad_out's columns: a tile
// takes several, 64 inputs of a block being an atom.
#pragma once
#include "cuda/sparse_linear.h"
#include "cuda/wgmma_tile.cuh"

namespace sk {

struct WideBlockJob {
  int64_t N, source_line;                         // rows; elements from one to the next
  int target_block, source_block, fan_in, tiles;  // widths; blocks of one block row; tiles of a target block
  Strides target_at;
  bool target_vectors;    // lines of the target are whole, aligned pieces
  const int32_t* indptr;  // as in LinearJob, in blocks
  const int32_t* index;
  const int32_t* place;
};

template <class T, int Targets, int Rows, bool WeightTurned>
__global__ void __launch_bounds__(kWgmmaThreads, 1)
    sparse_linear_blocks_wgmma_kernel(const T* __restrict__ source, const T* __restrict__ weight, const T* __restrict__ bias, T* __restrict__ target,
                                      WideBlockJob job) {
  using Tile = WgmmaTile<T, Targets, Rows, WeightTurned, false>;
  using L = typename Tile::L;
  using R = typename Tile::R;
  const int target_block = int(blockIdx.y) / job.tiles, first_target = int(blockIdx.y) % job.tiles * Targets;  // within the block
  const int64_t first_row = int64_t(blockIdx.x) * Rows;
  const int64_t begin = job.indptr ? load(job.indptr + target_block) : int64_t(target_block) * job.fan_in;
  const int64_t end = job.indptr ? load(job.indptr + target_block + 1) : begin + job.fan_in;
  const int per_block = job.source_block / kWgmmaDepth, stages = int(end - begin) * per_block;
  const int64_t weight_line = WeightTurned ? job.target_block : job.source_block, weight_block = int64_t(job.target_block) * job.source_block;

  const T* const rows_from = source + (first_row + R::line()) * job.source_line + R::piece() * 8;
  const T* const weights =
      weight + (WeightTurned ? 0 : first_target * weight_line) + L::line() * weight_line + (WeightTurned ? first_target : 0) + L::piece() * 8;
  int64_t column = 0, number = 0;  // of the next stage to be fetched: its block in the source and in the weight
  const auto pick = [&](int stage) {
    const int64_t entry = begin + stage / per_block;
    if (entry >= end) return;
    column = int64_t(load(job.index + entry)) * job.source_block, number = job.place ? load(job.place + entry) : entry;
  };
  pick(0);
  float sum[Tile::kSums];
  Tile::multiply(sum, stages, [&](int stage, uint32_t left, uint32_t right) {
    const int first = stage % per_block * kWgmmaDepth;  // within the block
    const T* const block = weights + number * weight_block + first * (WeightTurned ? weight_line : 1);
    L::bring(left, [&](int p) -> WgmmaPiece<T> { return {block + p * L::kStep * weight_line, 16}; });
    R::bring(right, [&](int p) -> WgmmaPiece<T> {
      return {rows_from + p * R::kStep * job.source_line + column + first, first_row + R::line() + p * R::kStep < job.N ? 16 : 0};
    });
    pick(stage + 1);
  });

  const bool by_row = job.target_at.col == 1;
  const int64_t t = int64_t(target_block) * job.target_block + first_target;
  T* const to = target + first_row * job.target_at.row + t * job.target_at.col;
  Tile::write(
      sum, by_row, Targets, job.N - first_row < Rows ? int(job.N - first_row) : Rows, job.target_vectors,
      [&](int m) { return bias ? to_float(load(bias + t + m)) : 0.0f; },
      [&](int line, int i) { return to + line * (by_row ? job.target_at.row : job.target_at.col) + i; });
}

struct WideBlockWeightJob {
  int64_t N, x_line, grad_line;
  int BO, BI, fan_in, tiles, tiles_of_inputs;  // tiles of a block row, and of its inputs
  bool vectors;                                // grad_weight is aligned
  const int32_t* index;
};

template <class T, int Outputs, int Inputs>
__global__ void __launch_bounds__(kWgmmaThreads, 1) sparse_linear_blocks_weight_wgmma_kernel(const T* __restrict__ grad_out, const T* __restrict__ x,
                                                                                             T* __restrict__ grad_weight, WideBlockWeightJob job) {
  using Tile = WgmmaTile<T, Outputs, Inputs, true, true>;
  using L = typename Tile::L;
  using R = typename Tile::R;
  const int tile = int(blockIdx.x) % job.tiles, per_block = job.BI / 64;
  const int64_t ob = blockIdx.x / job.tiles;
  const int first_output = tile / job.tiles_of_inputs * Outputs, first_atom = tile % job.tiles_of_inputs * (Inputs / 64);
  const int atoms = job.fan_in * per_block - first_atom < Inputs / 64 ? job.fan_in * per_block - first_atom : Inputs / 64;

  const int atom = first_atom + R::piece() / 8;  // of the block row: this thread's inputs
  const bool there = R::piece() / 8 < atoms;
  const int64_t column = there ? int64_t(load(job.index + ob * job.fan_in + atom / per_block)) * job.BI + atom % per_block * 64 : 0;
  const T* const rows_from = x + R::line() * job.x_line + column + R::piece() % 8 * 8;
  const T* const grads = grad_out + L::line() * job.grad_line + ob * job.BO + first_output + L::piece() * 8;
  float sum[Tile::kSums];
  Tile::multiply(sum, int((job.N + kWgmmaDepth - 1) / kWgmmaDepth), [&](int stage, uint32_t left, uint32_t right) {
    const int64_t first = int64_t(stage) * kWgmmaDepth;
    L::bring(left, [&](int p) -> WgmmaPiece<T> {
      return {grads + (first + p * L::kStep) * job.grad_line, first + L::line() + p * L::kStep < job.N ? 16 : 0};
    });
    R::bring(right, [&](int p) -> WgmmaPiece<T> {
      return {rows_from + (first + p * R::kStep) * job.x_line, there && first + R::line() + p * R::kStep < job.N ? 16 : 0};
    });
  });

  T* const to = grad_weight + ob * job.fan_in * job.BO * job.BI + int64_t(first_output) * job.BI;
  Tile::write(
      sum, false, Outputs, atoms * 64, job.vectors, [](int) { return 0.0f; },
      [&](int line, int i) {
        const int at = first_atom + i / 64;
        return to + int64_t(at / per_block) * job.BO * job.BI + int64_t(line) * job.BI + at % per_block * 64 + i % 64;
      });
}

}  // namespace sk
