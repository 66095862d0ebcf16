// The sparse convolution on tensor cores, where source channels are kept together but every target channel has a list of its own:
// forward with spatial masks, grad_x with masks that many filters share.
//
// A cell is a tap of one source block. Of a thread block's 64 target channels those that keep it are picked out, eight to a matrix
// step's columns: so only what is kept is multiplied. A cell's sums, of 128 pixels, are then added to those in shared memory, where every
// target channel has its own; cells come in their order. A warp makes 32 of the pixels and touches no other sums.
//
// Shared memory: a round of a tile's source channels, pixel by pixel; the sums; who keeps each of 32 cells; a batch of their weights in
// the order in which a warp's lanes hold them. Where one batch holds all it is made once for all tiles.
#pragma once
#include "cuda/conv_stage.cuh"
#include "cuda/matrix_step.cuh"
#include "cuda/sparse_conv2d_job.h"

namespace sk {

constexpr int kScatterTargets = 64, kScatterCells = 32, kScatterPitch = 129;
constexpr uint32_t kScatterSums = kScatterTargets * kScatterPitch * 4;
constexpr uint32_t kScatterTable = kScatterCells * (4 + kScatterTargets * (4 + 8));  // of each cell: how many keep it; who; their weights

struct KeptScatterJob {
  KeptJob kept;
  int capacity;  // matrix steps of a batch
  uint32_t counts_at, ids_at, places_at, fragments_at;
};

// The entry of target block tb for a tap of a source block, or -1. Lists are in the order of source blocks, then taps.
SK_DEVICE int find_entry(const KeptJob& job, int tb, int source, int tap_block) {
  int begin = load(job.begin + tb), end = load(job.begin + tb + 1);
  const int behind = end;
  while (begin < end) {
    const int middle = begin + (end - begin) / 2;
    const Entry e = entry_of(job, middle);
    if (e.source < source || (e.source == source && e.tap_block < tap_block))
      begin = middle + 1;
    else
      end = middle;
  }
  if (begin == behind) return -1;
  const Entry e = entry_of(job, begin);
  return e.source == source && e.tap_block == tap_block ? e.place : -1;
}

template <class T, Fp32 mode>
struct KeptScatter {
  static constexpr int kPixelTiles = 2, kGroups = 4 /* at a time */, E = kPerPiece<T>, kItems = 2 * E, kWord = 4 / int(sizeof(T));
  using Step = MatrixStep<T, mode>;

  const KeptScatterJob& job;
  int first_target, phase_y, phase_x, low_y, low_x;

  struct Cell {
    int source, tap_block, t;
    Reach y, x;
  };
  SK_DEVICE Cell cell(const Round& round, int number) const {
    const KeptJob& kept = job.kept;
    const int taps = kept.tap_blocks * kept.taps, tap = number % taps, ky = tap / kept.conv.x.kernel;
    return {round.blocks.first + number / taps, tap / kept.taps, tap % kept.taps, reach(kept.conv.y, phase_y, ky, low_y),
            reach(kept.conv.x, phase_x, tap - ky * kept.conv.x.kernel, low_x)};
  }

  // Who keeps the cells [first, first + count): a warp takes a cell, a lane every 32nd target channel.
  SK_DEVICE void find(const Round& round, int first, int count) const {
    const KeptJob& kept = job.kept;
    const int lane = threadIdx.x % 32;
    for (int c = threadIdx.x / 32; c < count; c += kConvThreads / 32) {
      const Cell at = cell(round, first + c);
      int kept_by = 0;
      for (int local = lane; local < kScatterTargets; local += 32) {
        const int target = first_target + local;
        int place = -1;
        if (target < kept.conv.groups * kept.conv.target_group && at.y.reaches && at.x.reaches)
          place = find_entry(kept, target / kept.target_block, at.source, at.tap_block);
        const unsigned keeps = __ballot_sync(~0u, place >= 0);
        int slot = kept_by;
        for (int l = 0; l < 32; ++l) slot += l < lane ? keeps >> l & 1 : 0, kept_by += keeps >> l & 1;
        if (place < 0) continue;
        store_shared(job.ids_at + (c * kScatterTargets + slot) * 4, uint32_t(local));
        store_shared(job.places_at + (c * kScatterTargets + slot) * 8,
                     place * kept.weight_entry + target % kept.target_block * kept.weight_target + at.t);
      }
      if (lane == 0) store_shared(job.counts_at + c * 4, uint32_t(kept_by));
    }
  }
  SK_DEVICE int groups(int c) const { return int(load_shared<uint32_t>(job.counts_at + c * 4) + 7) / 8; }

  // The weights of the cells [begin, end) of the table, `steps` matrix steps each group.
  SK_DEVICE void prepare(const T* weight, const Round& round, int begin, int end, int steps) const {
    uint32_t to = job.fragments_at;
    for (int c = begin; c < end; ++c) {
      const int count = int(load_shared<uint32_t>(job.counts_at + c * 4)), words = (count + 7) / 8 * steps * 64;
      for (int i = threadIdx.x; i < words; i += kConvThreads) {
        const int half = i % 2, lane = i / 2 % 32, step = i / 64 % steps, slot = i / 64 / steps * 8 + lane / 4;
        alignas(4) T values[kWord];
        SK_UNROLL
        for (int q = 0; q < kWord; ++q) {
          const int k = step * kItems + half * E + lane % 4 * kWord + q;
          const bool there = slot < count && k < round.channels.size();
          const int64_t place = there ? load_shared<int64_t>(job.places_at + (c * kScatterTargets + slot) * 8) : 0;
          values[q] = there ? load(weight + place + (round.channels.first + k) * job.kept.weight_source) : T{};
        }
        store_shared(to + i * 4, bit_cast<uint32_t>(values));
      }
      to += words * 4;
    }
  }

  // Adds the cell `number`, at `c` of the table, to this warp's sums; its weights begin at `from`. `offset`: its first channel's byte in
  // a pixel. Returns where the next cell's weights begin.
  SK_DEVICE uint32_t multiply(const Round& round, int number, int c, uint32_t from, int offset, int steps) const {
    const ConvJob& conv = job.kept.conv;
    const int lane = threadIdx.x % 32, warp = threadIdx.x / 32, count = int(load_shared<uint32_t>(job.counts_at + c * 4)), groups = (count + 7) / 8;
    if (!groups) return from;
    const Cell at = cell(round, number);
    const uint32_t base = uint32_t((at.y.at * conv.halo_w + at.x.at) * int(conv.pixel_bytes) + offset);
    const int width = round.channels.size(), pieces = (width + E - 1) / E;
    const bool aligned = offset % 16 == 0;
    for (int first = 0; first < groups; first += kGroups) {
      float sum[kPixelTiles][kGroups][4];
      SK_UNROLL
      for (int m = 0; m < kPixelTiles; ++m) SK_UNROLL
      for (int j = 0; j < kGroups; ++j) SK_UNROLL
      for (int q = 0; q < 4; ++q) sum[m][j][q] = 0;
      for (int step = 0; step < steps; ++step) {
        typename Step::Left left[kPixelTiles];
        SK_UNROLL
        for (int m = 0; m < kPixelTiles; ++m) {
          const int o = (warp * kPixelTiles + m) * 16;
          uint32_t raw[4];
          if (aligned) {  // behind the last piece its own again, without weights
            const int piece = step * 2 + lane / 16;
            ldmatrix_x4<false>(raw, base + halo_pixel(conv, o + lane % 16) * conv.pixel_bytes + (piece < pieces ? piece : pieces - 1) * 16);
          } else {
            SK_UNROLL
            for (int r = 0; r < 4; ++r) {
              alignas(4) T values[kWord];
              SK_UNROLL
              for (int q = 0; q < kWord; ++q) {
                const int k = step * kItems + r / 2 * E + lane % 4 * kWord + q;
                values[q] = load_shared<T>(base + halo_pixel(conv, o + r % 2 * 8 + lane / 4) * conv.pixel_bytes +
                                           (k < width ? k : width - 1) * int(sizeof(T)));
              }
              raw[r] = bit_cast<uint32_t>(values);
            }
          }
          Step::prepare(raw, left[m]);
        }
        SK_UNROLL
        for (int j = 0; j < kGroups; ++j) {
          if (first + j >= groups) break;
          const Two<uint32_t> right = load_shared<Two<uint32_t>>(from + (((first + j) * steps + step) * 32 + lane) * 8);
          SK_UNROLL
          for (int m = 0; m < kPixelTiles; ++m) Step::add(sum[m][j], left[m], right);
        }
      }
      SK_UNROLL
      for (int j = 0; j < kGroups; ++j) SK_UNROLL
      for (int q = 0; q < 2; ++q) {
        const int slot = (first + j) * 8 + lane % 4 * 2 + q;
        if (slot >= count) continue;
        const uint32_t to = job.kept.sums_at + load_shared<uint32_t>(job.ids_at + (c * kScatterTargets + slot) * 4) * (kScatterPitch * 4);
        SK_UNROLL
        for (int m = 0; m < kPixelTiles; ++m) SK_UNROLL
        for (int half = 0; half < 2; ++half) {
          const uint32_t sum_at = to + ((warp * kPixelTiles + m) * 16 + half * 8 + lane / 4) * 4;
          store_shared(sum_at, load_shared<float>(sum_at) + sum[m][j][half * 2 + q]);
        }
      }
    }
    __syncwarp();  // the next cell's sums are of other lanes
    return from + groups * steps * 256;
  }

  SK_DEVICE void write(const T* bias, T* target, int tile) const {
    const ConvJob& c = job.kept.conv;
    const int lane = threadIdx.x % 32, warp = threadIdx.x / 32, targets = c.groups * c.target_group;
    const bool last = c.target_at.c == 1;  // neighbouring lanes write neighbours
    for (int i = 0; i < kScatterTargets; ++i) {
      const int o = warp * 32 + (last ? i / 2 : lane), local = last ? i % 2 * 32 + lane : i;
      const TargetPixel p = target_pixel(c, tile, o, phase_y, phase_x);
      const int t = first_target + local;
      if (!p.inside || t >= targets) continue;
      const float v = load_shared<float>(job.kept.sums_at + (local * kScatterPitch + o) * 4) + (bias ? to_float(load(bias + t)) : 0.0f);
      store(target + p.n * c.target_at.n + t * c.target_at.c + p.y * c.target_at.y + p.x * c.target_at.x, from_float<T>(v));
    }
  }
};

template <class T, Fp32 mode>
__global__ void __launch_bounds__(kConvThreads, 3)
    sparse_conv2d_scatter_kernel(const T* __restrict__ source, const T* __restrict__ weight, const T* __restrict__ bias, T* __restrict__ target,
                                 KeptScatterJob job) {
  using Kernel = KeptScatter<T, mode>;
  const KeptJob& kept = job.kept;
  const ConvJob& c = kept.conv;
  const int phases_x = c.x.target_step(), phase_y = int(blockIdx.z) / phases_x, phase_x = int(blockIdx.z) % phases_x;
  const TapPlane taps{c.y.taps(phase_y), c.x.taps(phase_x)};
  const Kernel k{job, int(blockIdx.y) * kScatterTargets, phase_y, phase_x, taps.y.low(), taps.x.low()};

  bool prepared = false;
  for (int tile = int(blockIdx.x); tile < c.tiles; tile += int(gridDim.x)) {
    for (int t = 0; t < kScatterTargets; ++t) store_shared(kept.sums_at + (t * kScatterPitch + threadIdx.x) * 4, 0.0f);
    for (int number = 0; number < kept.rounds && taps.count(); ++number) {
      const Round round = round_of(kept, number);
      const Span channels = staged_channels(kept, round), pieces{channels.first / Kernel::E, (channels.end + Kernel::E - 1) / Kernel::E};
      const int cells = round.blocks.size() * kept.tap_blocks * kept.taps, steps = (round.channels.size() + Kernel::kItems - 1) / Kernel::kItems;
      load_source(c, source, tile, taps, pieces, 0);
      copy_async_commit();
      copy_async_wait<0>();
      for (int first = 0; first < cells; first += kScatterCells) {
        const int count = cells - first < kScatterCells ? cells - first : kScatterCells;
        if (!prepared) k.find(round, first, count);
        __syncthreads();
        for (int begin = 0; begin < count;) {
          int end = begin, units = 0;
          for (; end < count; ++end) {
            const int more = k.groups(end) * steps;
            if (units + more > job.capacity) break;
            units += more;
          }
          if (!prepared) k.prepare(weight, round, begin, end, steps);
          __syncthreads();
          uint32_t from = job.fragments_at;
          for (int at = begin; at < end; ++at) {
            const int source_block = round.blocks.first + (first + at) / (kept.tap_blocks * kept.taps);
            const int offset = (source_block * kept.source_block + round.channels.first - pieces.first * Kernel::E) * int(sizeof(T));
            from = k.multiply(round, first + at, at, from, offset, steps);
          }
          __syncthreads();  // nobody refills what is still read
          prepared = kept.rounds == 1 && cells == count && begin == 0 && end == count;
          begin = end;
        }
      }
    }
    __syncwarp();  // sums are other lanes'
    k.write(bias, target, tile);
    __syncwarp();  // and are read before the next tile begins them anew
  }
}

}  // namespace sk
