// Fixed fan-in products of blocks on tensor cores; the weight is [OB, F, BO, BI] as it lies.
//
// Forward and grad_x: target[n, t] = bias[t] + sum over the blocks of t's block row. What a row of the source gives to a target block
// is a list of pieces of 16 bytes: the columns of one source block after the other. Eight pieces make a stage; every block size goes
// through the same steps, with zeros where its width is no multiple of a piece. Three stages are in flight.
#pragma once
#include "cuda/grouped_conv2d_weight.cuh"
#include "cuda/matrix_step.cuh"
#include "cuda/piece.cuh"
#include "cuda/sparse_linear.h"

namespace sk {

constexpr int kBlockThreads = 128, kStagePieces = 8, kStageRow = (kStagePieces + 1) * 16, kBlockStages = 3;

struct BlockJob {
  int64_t N;
  int target_block, source_block, fan_in;  // widths; blocks of one block row
  int chunks;                              // thread blocks that share a target block
  Strides source_at, target_at;
  int64_t weight_block, weight_target, weight_source;  // strides of the weight
  const int32_t* indptr;                               // as in LinearJob, in blocks
  const int32_t* index;
  const int32_t* place;
  bool source_vectors, weight_vectors;  // whole pieces are aligned
};

// A block makes 64 * RowTiles rows of 8 * Tiles targets of one target block; a warp has 16 * RowTiles of the rows.
template <class T, Fp32 mode, int RowTiles, int Tiles>
__global__ void __launch_bounds__(kBlockThreads, 3) sparse_linear_blocks_kernel(const T* __restrict__ source, const T* __restrict__ weight,
                                                                                const T* __restrict__ bias, T* __restrict__ target, BlockJob job) {
  constexpr int E = 16 / int(sizeof(T)), kRows = 64 * RowTiles, kStageBytes = (kRows + Tiles * 8) * kStageRow;
  using Step = MatrixStep<T, mode>;
  const int lane = threadIdx.x % 32, warp = threadIdx.x / 32;
  const int target_block = int(blockIdx.y) / job.chunks, first_target = int(blockIdx.y) % job.chunks * Tiles * 8;  // within the block
  const int64_t first_row = int64_t(blockIdx.x) * kRows;
  const int64_t begin = job.indptr ? load(job.indptr + target_block) : int64_t(target_block) * job.fan_in;
  const int64_t end = job.indptr ? load(job.indptr + target_block + 1) : begin + job.fan_in;
  const int per_block = (job.source_block + E - 1) / E, pieces = int(end - begin) * per_block, stages = (pieces + kStagePieces - 1) / kStagePieces;

  const auto fetch = [&](int stage) {
    if (stage < stages) {
      // this thread brings one piece of every 16th row and target
      const uint32_t to = stage % kBlockStages * kStageBytes + threadIdx.x % kStagePieces * 16;
      const int piece = stage * kStagePieces + int(threadIdx.x) % kStagePieces, entry = piece / per_block, first = (piece - entry * per_block) * E;
      const bool inside = piece < pieces;
      const int width = inside ? job.source_block - first : 0;
      const int64_t column = inside ? int64_t(load(job.index + begin + entry)) * job.source_block + first : 0;
      const int64_t number = inside ? (job.place ? load(job.place + begin + entry) : begin + entry) : 0;
      for (int row = threadIdx.x / kStagePieces; row < kRows; row += kBlockThreads / kStagePieces) {
        const bool there = inside && first_row + row < job.N;
        load_piece(to + row * kStageRow, there ? source + (first_row + row) * job.source_at.row + column * job.source_at.col : source,
                   job.source_at.col, there ? width : 0, job.source_vectors);
      }
      for (int t = threadIdx.x / kStagePieces; t < Tiles * 8; t += kBlockThreads / kStagePieces) {
        const bool there = inside && first_target + t < job.target_block;
        load_piece(to + (kRows + t) * kStageRow,
                   there ? weight + number * job.weight_block + (first_target + t) * job.weight_target + first * job.weight_source : weight,
                   job.weight_source, there ? width : 0, job.weight_vectors);
      }
    }
    copy_async_commit();
  };

  float sum[RowTiles][Tiles][4];
  SK_UNROLL
  for (int m = 0; m < RowTiles; ++m) SK_UNROLL
  for (int j = 0; j < Tiles; ++j) SK_UNROLL
  for (int q = 0; q < 4; ++q) sum[m][j][q] = 0;
  fetch(0);
  fetch(1);
  for (int stage = 0; stage < stages; ++stage) {
    copy_async_wait<1>();
    __syncthreads();   // everybody's copies are there, and the stage before this one is read
    fetch(stage + 2);  // takes its place
    const uint32_t rows = stage % kBlockStages * kStageBytes, targets = rows + kRows * kStageRow;
    SK_UNROLL
    for (int step = 0; step < kStagePieces / 2; ++step) {
      typename Step::Left left[RowTiles];
      SK_UNROLL
      for (int m = 0; m < RowTiles; ++m) {
        uint32_t raw[4];
        ldmatrix_x4<false>(raw, rows + ((warp * RowTiles + m) * 16 + lane % 16) * kStageRow + (step * 2 + lane / 16) * 16);
        Step::prepare(raw, left[m]);
      }
      SK_UNROLL
      for (int j = 0; j < Tiles; j += 2) {
        uint32_t raw[4];  // two tiles of 8 targets, two pieces each
        ldmatrix_x4<false>(raw, targets + (j * 8 + lane / 16 * 8 + lane % 8) * kStageRow + (step * 2 + lane / 8 % 2) * 16);
        SK_UNROLL
        for (int k = 0; k < 2; ++k) {
          const Two<uint32_t> right{{raw[2 * k], raw[2 * k + 1]}};
          SK_UNROLL
          for (int m = 0; m < RowTiles; ++m) Step::add(sum[m][j + k], left[m], right);
        }
      }
    }
  }
  copy_async_wait<0>();

  SK_UNROLL
  for (int m = 0; m < RowTiles; ++m) SK_UNROLL
  for (int j = 0; j < Tiles; ++j) SK_UNROLL
  for (int q = 0; q < 4; ++q) {
    const int64_t row = first_row + (warp * RowTiles + m) * 16 + q / 2 * 8 + lane / 4;
    const int local = first_target + j * 8 + lane % 4 * 2 + q % 2;
    if (row >= job.N || local >= job.target_block) continue;
    const int64_t t = int64_t(target_block) * job.target_block + local;
    store(target + row * job.target_at.row + t * job.target_at.col, from_float<T>(sum[m][j][q] + (bias ? to_float(load(bias + t)) : 0.0f)));
  }
}

// grad_weight[ob, f, o, i] = sum over n of grad_out[n, ob*BO + o] * x[n, index[ob, f]*BI + i]. A thread block makes 64 inputs by 32
// outputs of one block, a warp 16 of the inputs, over all rows, 128 at a time.
struct BlockWeightJob {
  int64_t N;
  int BO, BI, fan_in, chunks_o, chunks_i;
  Strides x_at, grad_at;
  const int32_t* index;
  bool x_vectors, grad_vectors;
};
template <class T>
struct BlockWeightTile {
  static constexpr int E = 16 / int(sizeof(T)), kInputs = 64, kOutputs = 32, kRows = 128;
  // as in the convolution: odd for ldmatrix, an odd number of pairs for words
  static constexpr int kXRow = (sizeof(T) == 2 ? kInputs / E + 1 : kInputs / E + 2) * 16,
                       kGradRow = (sizeof(T) == 2 ? kOutputs / E + 1 : kOutputs / E + 2) * 16;
  static constexpr int kBytes = kRows * (kXRow + kGradRow);
};

template <class T, Fp32 mode>
__global__ void __launch_bounds__(kBlockThreads, 3)
    sparse_linear_blocks_weight_kernel(const T* __restrict__ grad_out, const T* __restrict__ x, T* __restrict__ grad_weight, BlockWeightJob job) {
  using Tile = BlockWeightTile<T>;
  using Step = WeightStep<T, mode>;
  constexpr int E = Tile::E, kGradAt = Tile::kRows * Tile::kXRow;
  const int lane = threadIdx.x % 32, warp = threadIdx.x / 32;
  const int chunks = job.chunks_o * job.chunks_i, block = int(blockIdx.x) / chunks, chunk = int(blockIdx.x) % chunks;
  const int first_o = chunk / job.chunks_i * Tile::kOutputs, first_i = chunk % job.chunks_i * Tile::kInputs;  // within the block
  const int64_t x_column = int64_t(load(job.index + block)) * job.BI + first_i, grad_column = int64_t(block / job.fan_in) * job.BO + first_o;
  const uint32_t piece[2] = {uint32_t(warp * 16 * sizeof(T)), uint32_t((warp * 16 + 8) * sizeof(T))};
  float sum[4][4] = {};
  for (int64_t first_row = 0; first_row < job.N; first_row += Tile::kRows) {
    const auto stage = [&](const T* from, Strides at, int64_t column, int width, int columns, int row_bytes, uint32_t to, bool vectors) {
      const int pieces = columns / E;
      for (int i = threadIdx.x; i < Tile::kRows * pieces; i += kBlockThreads) {
        const int row = i / pieces, p = i % pieces, left = width - p * E;
        const bool there = first_row + row < job.N && left > 0;
        load_piece(to + row * row_bytes + p * 16, there ? from + (first_row + row) * at.row + (column + p * E) * at.col : from, at.col,
                   there ? left : 0, vectors);
      }
    };
    stage(x, job.x_at, x_column, job.BI - first_i, Tile::kInputs, Tile::kXRow, 0, job.x_vectors);
    stage(grad_out, job.grad_at, grad_column, job.BO - first_o, Tile::kOutputs, Tile::kGradRow, kGradAt, job.grad_vectors);
    copy_async_commit();
    copy_async_wait<0>();
    __syncthreads();
    for (int n = 0; n < Tile::kRows; n += Step::kPixels) {
      uint32_t row[2];
      SK_UNROLL
      for (int k = 0; k < 2; ++k) row[k] = (n + Step::pixel(k)) * Tile::kXRow;
      SK_UNROLL
      for (int j = 0; j < 4; ++j) {
        typename Step::Right right;
        Step::right(right, kGradAt + n * Tile::kGradRow + j * 8 * sizeof(T), Tile::kGradRow);
        Step::add(sum[j], row, piece, right);
      }
    }
    __syncthreads();  // nobody stages over rows that are still read
  }
  SK_UNROLL
  for (int j = 0; j < 4; ++j) SK_UNROLL
  for (int q = 0; q < 4; ++q) {
    const int i = first_i + warp * 16 + q / 2 * 8 + lane / 4, o = first_o + j * 8 + lane % 4 * 2 + q % 2;
    if (i < job.BI && o < job.BO) store(grad_weight + (int64_t(block) * job.BO + o) * job.BI + i, from_float<T>(sum[j][q]));
  }
}

}  // namespace sk
