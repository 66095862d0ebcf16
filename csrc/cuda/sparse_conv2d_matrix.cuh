// The sparse convolution on tensor cores, where a block of target channels shares its list of kept weights: forward with blocks of many
// filters, grad_x with blocks of many input channels (a spatial mask's: all of them).
//
//   target[pixel, t] = sum over items k of source[pixel + tap of k, channel of k] * weight[k, t]
//
// Items are the list's entries times the channels and taps of a block. A thread block makes 8 * Tiles targets of one target block and
// walks over tiles of 128 target pixels (a warp: 32 of them). A round of source channels of a tile's halo lies in shared memory, pixel
// by pixel. Items go by in batches: where each one's pixel stands, and its weights in the order in which a warp's lanes hold the
// right side of a matrix step. The left side is gathered: each lane picks its numbers, so that no two items need to be neighbours.
// Where one batch holds all items it is made once for all tiles.
#pragma once
#include "cuda/conv_stage.cuh"
#include "cuda/matrix_step.cuh"
#include "cuda/sparse_conv2d_job.h"

namespace sk {

template <class T>
constexpr int kStepItems = 2 * kPerPiece<T>;
template <class T, int Tiles>
constexpr int kStepBytes = kStepItems<T> * 12 + Tiles * 256;  // offsets, places, weights

struct KeptMatrixJob {
  KeptJob kept;
  int chunks;    // thread blocks of a target block
  int capacity;  // steps of a batch
  uint32_t places_at, fragments_at;
};

template <class T, Fp32 mode, int Tiles>
struct KeptMatrix {
  static constexpr int kPixelTiles = 2, E = kPerPiece<T>, kItems = kStepItems<T>, kWord = 4 / int(sizeof(T));
  using Step = MatrixStep<T, mode>;

  const KeptMatrixJob& job;
  int tb, first_target;  // block, and this thread block's first target within it
  int phase_y, phase_x, low_y, low_x;

  // Offset and place of `count` items from `first` on; behind the last one, and where a tap belongs to another phase, there is no weight.
  SK_DEVICE void prepare_items(const Round& round, Span entries, int first_piece, int64_t first, int count, int all) const {
    const KeptJob& kept = job.kept;
    const ConvJob& c = kept.conv;
    const int per_entry = round.channels.size() * kept.taps;
    for (int m = threadIdx.x; m < all; m += kConvThreads) {
      uint32_t offset = 0;
      int64_t place = -1;
      if (m < count) {
        const Entry e = entry_of(kept, entries.first + int((first + m) / per_entry));
        const int rest = int((first + m) % per_entry), i = round.channels.first + rest / kept.taps, t = rest % kept.taps;
        const int tap = e.tap_block * kept.taps + t, ky = tap / c.x.kernel;
        const Reach y = reach(c.y, phase_y, ky, low_y), x = reach(c.x, phase_x, tap - ky * c.x.kernel, low_x);
        if (y.reaches && x.reaches) {
          offset = (y.at * c.halo_w + x.at) * c.pixel_bytes + (e.source * kept.source_block + i - first_piece * E) * int(sizeof(T));
          place = e.place * kept.weight_entry + i * kept.weight_source + t;
        }
      }
      store_shared(kept.tables_at + m * 4, offset);
      store_shared(job.places_at + m * 8, place);
    }
  }
  SK_DEVICE void prepare_weights(const T* weight, int steps) const {
    for (int i = threadIdx.x; i < steps * Tiles * 64; i += kConvThreads) {
      const int half = i % 2, lane = i / 2 % 32, tile = i / 64 % Tiles, step = i / 64 / Tiles, t = first_target + tile * 8 + lane / 4;
      alignas(4) T values[kWord];
      SK_UNROLL
      for (int q = 0; q < kWord; ++q) {
        const int64_t place = load_shared<int64_t>(job.places_at + (step * kItems + half * E + lane % 4 * kWord + q) * 8);
        values[q] = place >= 0 && t < job.kept.target_block ? load(weight + place + t * job.kept.weight_target) : T{};
      }
      store_shared(job.fragments_at + i * 4, bit_cast<uint32_t>(values));
    }
  }

  SK_DEVICE void multiply(float (&sum)[kPixelTiles][Tiles][4], const uint32_t (&row)[kPixelTiles][2], int steps) const {
    const int lane = threadIdx.x % 32;
    for (int step = 0; step < steps; ++step) {
      uint32_t at[2][kWord];
      SK_UNROLL
      for (int half = 0; half < 2; ++half) SK_UNROLL
      for (int q = 0; q < kWord; ++q) at[half][q] = load_shared<uint32_t>(job.kept.tables_at + (step * kItems + half * E + lane % 4 * kWord + q) * 4);
      typename Step::Left left[kPixelTiles];
      SK_UNROLL
      for (int m = 0; m < kPixelTiles; ++m) {
        uint32_t raw[4];
        SK_UNROLL
        for (int r = 0; r < 4; ++r) {
          alignas(4) T values[kWord];
          SK_UNROLL
          for (int q = 0; q < kWord; ++q) values[q] = load_shared<T>(row[m][r % 2] + at[r / 2][q]);
          raw[r] = bit_cast<uint32_t>(values);
        }
        Step::prepare(raw, left[m]);
      }
      SK_UNROLL
      for (int j = 0; j < Tiles; ++j) {
        const Two<uint32_t> right = load_shared<Two<uint32_t>>(job.fragments_at + ((step * Tiles + j) * 32 + lane) * 8);
        SK_UNROLL
        for (int m = 0; m < kPixelTiles; ++m) Step::add(sum[m][j], left[m], right);
      }
    }
  }

  SK_DEVICE void write(const float (&sum)[kPixelTiles][Tiles][4], const T* bias, T* target, int tile) const {
    const ConvJob& c = job.kept.conv;
    const int lane = threadIdx.x % 32, warp = threadIdx.x / 32, width = job.kept.target_block;
    const bool pairs = c.pairs && width % 2 == 0;
    SK_UNROLL
    for (int m = 0; m < kPixelTiles; ++m) SK_UNROLL
    for (int half = 0; half < 2; ++half) {
      const TargetPixel p = target_pixel(c, tile, (warp * kPixelTiles + m) * 16 + half * 8 + lane / 4, phase_y, phase_x);
      if (!p.inside) continue;
      T* at = target + p.n * c.target_at.n + p.y * c.target_at.y + p.x * c.target_at.x;
      SK_UNROLL
      for (int j = 0; j < Tiles; ++j) {
        const int local = first_target + j * 8 + lane % 4 * 2, channel = tb * width + local;
        alignas(8) T values[2];
        SK_UNROLL
        for (int q = 0; q < 2; ++q)
          values[q] = from_float<T>(sum[m][j][half * 2 + q] + (bias && local + q < width ? to_float(load(bias + channel + q)) : 0.0f));
        if (pairs) {
          if (local < width) store(reinterpret_cast<Two<T>*>(at + channel), bit_cast<Two<T>>(values));
        } else {
          SK_UNROLL
          for (int q = 0; q < 2; ++q)
            if (local + q < width) store(at + (channel + q) * c.target_at.c, values[q]);
        }
      }
    }
  }
};

template <class T, Fp32 mode, int Tiles>
__global__ void __launch_bounds__(kConvThreads, Tiles == 8 ? 2 : 4)
    sparse_conv2d_matrix_kernel(const T* __restrict__ source, const T* __restrict__ weight, const T* __restrict__ bias, T* __restrict__ target,
                                KeptMatrixJob job) {
  using Kernel = KeptMatrix<T, mode, Tiles>;
  const KeptJob& kept = job.kept;
  const ConvJob& c = kept.conv;
  const int phases_x = c.x.target_step(), phase_y = int(blockIdx.z) / phases_x, phase_x = int(blockIdx.z) % phases_x;
  const TapPlane taps{c.y.taps(phase_y), c.x.taps(phase_x)};
  const Kernel k{job, int(blockIdx.y) / job.chunks, int(blockIdx.y) % job.chunks * Tiles * 8, phase_y, phase_x, taps.y.low(), taps.x.low()};
  const int lane = threadIdx.x % 32, warp = threadIdx.x / 32, capacity = job.capacity * Kernel::kItems;
  uint32_t row[Kernel::kPixelTiles][2];  // this lane's target pixels, in the stage
  SK_UNROLL
  for (int m = 0; m < Kernel::kPixelTiles; ++m) SK_UNROLL
  for (int r = 0; r < 2; ++r) row[m][r] = halo_pixel(c, (warp * Kernel::kPixelTiles + m) * 16 + r * 8 + lane / 4) * c.pixel_bytes;

  bool prepared = false;
  for (int tile = int(blockIdx.x); tile < c.tiles; tile += int(gridDim.x)) {
    float sum[Kernel::kPixelTiles][Tiles][4];
    SK_UNROLL
    for (int m = 0; m < Kernel::kPixelTiles; ++m) SK_UNROLL
    for (int j = 0; j < Tiles; ++j) SK_UNROLL
    for (int q = 0; q < 4; ++q) sum[m][j][q] = 0;
    for (int number = 0; number < kept.rounds; ++number) {
      const Round round = round_of(kept, number);
      const Span entries = entries_of(kept, k.tb, round), channels = staged_channels(kept, round);
      const int64_t items = taps.count() ? int64_t(entries.size()) * round.channels.size() * kept.taps : 0;
      if (!items) continue;
      const Span pieces{channels.first / Kernel::E, (channels.end + Kernel::E - 1) / Kernel::E};
      load_source(c, source, tile, taps, pieces, 0);
      copy_async_commit();
      copy_async_wait<0>();
      for (int64_t first = 0; first < items; first += capacity) {
        const int count = int(items - first < capacity ? items - first : capacity), steps = (count + Kernel::kItems - 1) / Kernel::kItems;
        if (!prepared) {
          k.prepare_items(round, entries, pieces.first, first, count, steps * Kernel::kItems);
          __syncthreads();
          k.prepare_weights(weight, steps);
        }
        __syncthreads();
        k.multiply(sum, row, steps);
        __syncthreads();  // nobody refills what is still read
      }
      prepared = kept.rounds == 1 && items <= capacity;
    }
    k.write(sum, bias, target, tile);
  }
}

}  // namespace sk
