// Grouped convolution, forward and grad_x (conv_job.h): target[n, t, y, x] = bias[t] + sum over taps and source channels of t's group.
//
// A block owns 8 * Tiles target channels and walks over tiles of 128 target pixels (a warp: 32 of them). Its channels are cut into
// sets of 8 * Shared; a set's source pieces are read once for its `Shared` matrix tiles. Weights are gathered, once per block, from
// their natural layout into the order in which the lanes of a warp hold the right side of a matrix step; pairs of channels of
// different groups are zero there.
//
// Shared memory: `stages` tiles of source pixels, then per step the two offsets of its pieces, then 256 * Shared bytes of weights
// per step. The next tile is copied while one is multiplied.
#pragma once
#include "cuda/conv_stage.cuh"
#include "cuda/matrix_step.cuh"

namespace sk {

template <class T, Fp32 mode, int Tiles, int Shared>
struct ConvKernel {
  static constexpr int kSets = Tiles / Shared, kPixelTiles = 2, E = kPerPiece<T>;
  using Step = MatrixStep<T, mode>;

  const ConvJob& job;
  TapPlane taps;
  int first_channel;  // of this block

  SK_DEVICE Span set_pieces(int set) const {
    const int first = first_channel + set * Shared * 8;
    return pieces_of(job, first, first + Shared * 8, E);
  }
  SK_DEVICE Span round_pieces(Span all, int round) const {
    const int first = all.first + round * job.round_pieces;
    return overlap(all, {first, first + job.round_pieces});
  }
  SK_DEVICE int steps(Span pieces) const { return (taps.count() * pieces.size() + 1) / 2; }

  // Offsets and weights of one round's steps, from step `at` on. Returns the step behind them.
  SK_DEVICE int prepare(const T* weight, Span round, int at) const {
    for (int set = 0; set < kSets; ++set) {
      const Span pieces = overlap(set_pieces(set), round);
      const int count = steps(pieces), width = pieces.size(), entries = taps.count() * width;
      for (int i = threadIdx.x; i < count * 2; i += kConvThreads) {
        const int entry = i < entries ? i : i - 1;  // an odd last half repeats its neighbour, with zero weights
        const int tap = entry / width, piece = pieces.first + entry - tap * width;
        store_shared(job.table_at + (at * 2 + i) * 4, uint32_t(taps.pixel(job, tap) * job.pixel_bytes + (piece - round.first) * 16));
      }
      for (int i = threadIdx.x; i < count * Shared * 64; i += kConvThreads) {
        const int half = i % 2, lane = i / 2 % 32, tile = i / 64 % Shared, step = i / 64 / Shared, entry = step * 2 + half;
        alignas(4) T values[4 / sizeof(T)];
        const int target = first_channel + (set * Shared + tile) * 8 + lane / 4, group = target / job.target_group;
        SK_UNROLL
        for (int q = 0; q < int(4 / sizeof(T)); ++q) {
          values[q] = T{};
          if (entry >= entries || group >= job.groups) continue;
          const int tap = entry / width,
                    source = (pieces.first + entry - tap * width) * E + lane % 4 * int(4 / sizeof(T)) + q - group * job.source_group;
          if (source < 0 || source >= job.source_group) continue;
          values[q] = load(weight + group * job.weight_group + (target - group * job.target_group) * job.weight_target + source * job.weight_source +
                           taps.weight(job, tap));
        }
        store_shared(job.fragments_at + ((at + step) * Shared * 64 + i % (Shared * 64)) * 4, bit_cast<uint32_t>(values));
      }
      at += count;
    }
    return at;
  }

  // Adds one round's products of a staged tile. Returns the step behind them.
  SK_DEVICE int multiply(float (&sum)[kPixelTiles][Tiles][4], const uint32_t (&row)[kPixelTiles], Span round, int at) const {
    const int lane = threadIdx.x % 32, half = lane / 16;
    SK_UNROLL
    for (int set = 0; set < kSets; ++set) {
      const int end = at + steps(overlap(set_pieces(set), round));
      SK_UNROLL_2
      for (; at < end; ++at) {
        const uint32_t offset = load_shared<uint32_t>(job.table_at + (at * 2 + half) * 4);
        typename Step::Left left[kPixelTiles];
        SK_UNROLL
        for (int m = 0; m < kPixelTiles; ++m) {
          uint32_t raw[4];
          ldmatrix_x4<false>(raw, row[m] + offset);
          Step::prepare(raw, left[m]);
        }
        SK_UNROLL
        for (int j = 0; j < Shared; ++j) {
          const Two<uint32_t> right = load_shared<Two<uint32_t>>(job.fragments_at + ((at * Shared + j) * 32 + lane) * 8);
          SK_UNROLL
          for (int m = 0; m < kPixelTiles; ++m) Step::add(sum[m][set * Shared + j], left[m], right);
        }
      }
    }
    return at;
  }

  SK_DEVICE void write(const float (&sum)[kPixelTiles][Tiles][4], const T* bias, T* target, int tile, int phase_y, int phase_x) const {
    const int lane = threadIdx.x % 32, warp = threadIdx.x / 32, channels = job.groups * job.target_group;
    SK_UNROLL
    for (int m = 0; m < kPixelTiles; ++m) SK_UNROLL
    for (int half = 0; half < 2; ++half) {
      const TargetPixel p = target_pixel(job, tile, (warp * kPixelTiles + m) * 16 + half * 8 + lane / 4, phase_y, phase_x);
      if (!p.inside) continue;
      T* at = target + p.n * job.target_at.n + p.y * job.target_at.y + p.x * job.target_at.x;
      SK_UNROLL
      for (int j = 0; j < Tiles; ++j) {
        const int channel = first_channel + j * 8 + lane % 4 * 2;
        alignas(8) T values[2];
        SK_UNROLL
        for (int q = 0; q < 2; ++q) {
          float v = sum[m][j][half * 2 + q];
          if (bias && channel + q < channels) v += to_float(load(bias + channel + q));
          values[q] = from_float<T>(job.relu && v < 0 ? 0.0f : v);  // keeps NaN
        }
        if (job.pairs) {
          if (channel < channels) store(reinterpret_cast<Two<T>*>(at + channel), bit_cast<Two<T>>(values));
        } else {
          SK_UNROLL
          for (int q = 0; q < 2; ++q)
            if (channel + q < channels) store(at + (channel + q) * job.target_at.c, values[q]);
        }
      }
    }
  }
};

template <class T, Fp32 mode, int Tiles, int Shared>
__global__ void __launch_bounds__(kConvThreads) grouped_conv2d_kernel(const T* __restrict__ source, const T* __restrict__ weight,
                                                                      const T* __restrict__ bias, T* __restrict__ target, ConvJob job) {
  using Kernel = ConvKernel<T, mode, Tiles, Shared>;
  const int phases_x = job.x.target_step(), phase_y = blockIdx.z / phases_x, phase_x = blockIdx.z % phases_x;
  const Kernel k{job, {job.y.taps(phase_y), job.x.taps(phase_x)}, int(blockIdx.y) * Tiles * 8};
  const Span all = pieces_of(job, k.first_channel, k.first_channel + Tiles * 8, kPerPiece<T>);
  const int lane = threadIdx.x % 32, warp = threadIdx.x / 32;

  uint32_t row[Kernel::kPixelTiles];  // where ldmatrix finds this lane's target pixels, in a stage
  SK_UNROLL
  for (int m = 0; m < Kernel::kPixelTiles; ++m) row[m] = halo_pixel(job, (warp * Kernel::kPixelTiles + m) * 16 + lane % 16) * job.pixel_bytes;

  if (job.keeps_weights)
    for (int round = 0, at = 0; round < job.rounds; ++round) at = k.prepare(weight, k.round_pieces(all, round), at);

  // the sequence of (tile, round) pairs: `fetched` runs ahead of the one that is multiplied
  struct Item {
    int tile, round;
  };
  const auto next = [&](Item i) { return i.round + 1 < job.rounds ? Item{i.tile, i.round + 1} : Item{i.tile + int(gridDim.x), 0}; };
  Item fetched{int(blockIdx.x), 0};
  int stage_in = 0, stage = 0;
  const auto fetch = [&] {
    if (fetched.tile < job.tiles) load_source(job, source, fetched.tile, k.taps, k.round_pieces(all, fetched.round), stage_in * job.stage_bytes);
    copy_async_commit();
    fetched = next(fetched);
    stage_in = job.stages - 1 - stage_in;
  };
  if (job.stages == 2) fetch();

  float sum[Kernel::kPixelTiles][Tiles][4];
  int at = 0;
  for (Item item{int(blockIdx.x), 0}; item.tile < job.tiles; item = next(item)) {
    fetch();
    if (job.stages == 2)
      copy_async_wait<1>();
    else
      copy_async_wait<0>();
    const Span round = k.round_pieces(all, item.round);
    if (!job.keeps_weights) k.prepare(weight, round, 0);
    __syncthreads();
    if (item.round == 0) {
      at = 0;
      SK_UNROLL
      for (int m = 0; m < Kernel::kPixelTiles; ++m) SK_UNROLL
      for (int j = 0; j < Tiles; ++j) SK_UNROLL
      for (int q = 0; q < 4; ++q) sum[m][j][q] = 0;
    }
    uint32_t staged[Kernel::kPixelTiles];
    SK_UNROLL
    for (int m = 0; m < Kernel::kPixelTiles; ++m) staged[m] = stage * job.stage_bytes + row[m];
    at = k.multiply(sum, staged, round, job.keeps_weights ? at : 0);
    if (item.round + 1 == job.rounds) k.write(sum, bias, target, item.tile, phase_y, phase_x);
    stage = job.stages - 1 - stage;
    __syncthreads();  // nobody refills a stage that is still read
  }
  copy_async_wait<0>();
}

}  // namespace sk
