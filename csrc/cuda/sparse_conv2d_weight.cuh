// The sparse convolution's weight gradient on tensor cores, for masks that keep source or target channels together:
//
//   grad_weight[e, o, i, t] = sum over target pixels of grad_out[pixel, row[e]*BO + o] * x[pixel under (e, t), channel of (e, i)]
//
// A warp makes a patch of up to 64 lines by 32 columns of sums and walks over tiles of 128 target pixels, which are summed over. Its columns
// are target channels, picked out of grad_out into shared memory, [column][pixel]: ldmatrix takes an address per column. Its lines are
//   scatter: the channels of one source block under one tap, in pieces of 8; columns are the filters that keep this cell (a spatial mask)
//   matrix:  kept items (entry, channel, tap) of one target block, gathered number by number; columns are the block's filters
// A piece of the source's halo lies in shared memory pixel by pixel, for all four warps, whose patches are of one source or target block.
//
// Which patch a warp makes is found in the lists: patch `n` of list `l` has the slot begin(l) / units + l + n, where begin(l) counts what
// is listed before l and a patch takes `units` of it. So no two share a slot, few slots are empty, and sizes alone bound their number.
// Block (slots, parts): each part of the tiles has sums of its own, which a second kernel adds in their order.
#pragma once
#include "cuda/grouped_conv2d_weight.cuh"
#include "cuda/sparse_conv2d_job.h"

namespace sk {

constexpr int kPatchWarps = kConvThreads / 32, kPatchColumns = 32, kPatchPixels = 128;
template <class T>
constexpr int kPatchSteps = sizeof(T) == 2 ? 4 : 2;  // of 16 lines
template <class T>
constexpr uint32_t kColumnPitch = kPatchPixels * sizeof(T) + 16;  // an odd number of 16 bytes: eight columns in eight banks
template <class T>
constexpr uint32_t kPatchTable = (kPatchColumns + kPatchSteps<T> * 16) * 16;  // bytes of a warp: columns, then items
constexpr uint32_t kPatchPixelTable = kPatchPixels * 8;

struct PatchJob {
  KeptJob kept;  // of the forward convolution; its round is what is staged at a time, in pieces of 16 bytes
  // Lists: of scatter a (source block, tap) each, of matrix a target block. Blocks of threads stay within `of_group` neighbours.
  int groups, of_group;
  int units;   // of a patch: columns of scatter, items of matrix
  int chunks;  // of scatter the source block's pieces, of matrix its filters are cut into so many, for a block of threads each
  int steps;   // of 16 lines, of a patch
  const int32_t *row, *cells, *cell_place;
  int64_t weights;  // floats of a part
  uint32_t columns_at, tables_at, pixels_at;
};

// One column or item as it stands in shared memory.
struct alignas(16) PatchLine {
  int channel;      // -1: none
  uint32_t offset;  // of an item: bytes to its tap's pixel
  int64_t place;    // its part of the place in grad_weight
};

template <class T, Fp32 mode, bool ByItems>
struct Patch {
  static constexpr int kSteps = kPatchSteps<T>, kGroups = kPatchColumns / 8, E = kPerPiece<T>, kWord = 4 / int(sizeof(T));
  static constexpr bool kTurned = !ByItems && sizeof(T) == 2;  // ldmatrix turns pieces of 16-bit numbers from [pixel][channel]
  static constexpr int kPixels = 4 * E;                        // two matrix steps
  using Step = MatrixStep<T, mode>;

  const PatchJob& job;

  // Units listed before list `l`, and the slot of its first patch.
  SK_DEVICE int64_t begin(int l) const {
    const KeptJob& kept = job.kept;
    if constexpr (ByItems) return int64_t(load(kept.begin + l)) * kept.source_block * kept.taps;
    const int code = l / kept.taps, tap = l % kept.taps;
    const int64_t first = load(job.cells + code), kept_by = tap ? load(job.cells + code + 1) - first : 0;
    return (first * kept.taps + tap * kept_by) * kept.target_block;
  }
  SK_DEVICE int64_t slot(int l) const { return begin(l) / job.units + l; }
  SK_DEVICE int64_t first_block(int group) const { return slot(group * job.of_group) / kPatchWarps + group; }

  // The group of a block of threads, and of its warps the slots; the list, first unit and number of units of one of them.
  SK_DEVICE int group_of(int64_t block) const {
    int low = 0;
    for (int high = job.groups; high - low > 1;) {
      const int middle = low + (high - low) / 2;
      if (first_block(middle) <= block)
        low = middle;
      else
        high = middle;
    }
    return low;
  }
  struct Units {
    int list;
    int64_t first;
    int count;
  };
  SK_DEVICE Units units_of(int group, int64_t mine) const {
    int low = group * job.of_group, high = low + job.of_group;
    if (mine >= slot(high)) return {low, 0, 0};
    while (high - low > 1) {
      const int middle = low + (high - low) / 2;
      if (slot(middle) <= mine)
        low = middle;
      else
        high = middle;
    }
    const int64_t first = (mine - slot(low)) * job.units, left = begin(low + 1) - begin(low) - first;
    return {low, first, int(left < 0 ? 0 : left < job.units ? left : job.units)};
  }

  SK_DEVICE uint32_t offset_of(int tap, int low_y, int low_x) const {
    const ConvJob& c = job.kept.conv;
    const int ky = tap / c.x.kernel;
    return (reach(c.y, 0, ky, low_y).at * c.halo_w + reach(c.x, 0, tap - ky * c.x.kernel, low_x).at) * c.pixel_bytes;
  }
  // This warp's columns and items: each lane describes one column, and an item of each half step.
  SK_DEVICE void describe(const Units& u, int chunk, uint32_t table, int low_y, int low_x) const {
    const KeptJob& kept = job.kept;
    const int lane = threadIdx.x % 32;
    PatchLine column{-1, 0, 0};
    if constexpr (ByItems) {
      const int o = chunk * kPatchColumns + lane;
      if (o < kept.target_block) column = {u.list * kept.target_block + o, 0, o * kept.weight_target};
      for (int r = lane; r < kSteps * 16; r += 32) {
        PatchLine item{-1, 0, 0};
        if (r < u.count) {
          const int per_entry = kept.source_block * kept.taps, rest = int((u.first + r) % per_entry), i = rest / kept.taps, t = rest % kept.taps;
          const int e = load(kept.begin + u.list) + int((u.first + r) / per_entry), code = load(kept.index + e);
          item = {code / kept.tap_blocks * kept.source_block + i, offset_of(code % kept.tap_blocks * kept.taps + t, low_y, low_x),
                  e * kept.weight_entry + i * kept.weight_source + t};
        }
        store_shared(table + (kPatchColumns + r) * 16, item);
      }
    } else if (lane < u.count) {
      const int e = load(job.cell_place + load(job.cells + u.list / kept.taps) + int((u.first + lane) / kept.target_block));
      const int o = int((u.first + lane) % kept.target_block);
      column = {load(job.row + e) * kept.target_block + o, 0, e * kept.weight_entry + o * kept.weight_target + u.list % kept.taps};
    }
    store_shared(table + lane * 16, column);
  }

  // This warp's columns of grad_out, [column][pixel] from `to` on; zero beyond the edges and behind the last column.
  SK_DEVICE void pick(const T* grad_out, uint32_t table, uint32_t to, int columns) const {
    const ConvJob& c = job.kept.conv;
    constexpr int kWords = kPatchPixels / kWord;
    const bool by_pixel = c.target_at.c != 1;  // neighbouring lanes read neighbours in memory
    const int lane = threadIdx.x % 32, all = (columns + 7) / 8 * 8;
    for (int i = lane; i < (by_pixel ? all : kPatchColumns) * kWords; i += 32) {
      const int column = by_pixel ? i / kWords : i % kPatchColumns, word = by_pixel ? i % kWords : i / kPatchColumns;
      if (column >= all) continue;
      const int channel = load_shared<PatchLine>(table + column * 16).channel;
      alignas(4) T values[kWord];
      SK_UNROLL
      for (int q = 0; q < kWord; ++q) {
        const int64_t pixel = load_shared<int64_t>(job.pixels_at + (word * kWord + q) * 8);
        values[q] = channel >= 0 && pixel >= 0 ? load(grad_out + pixel + channel * c.target_at.c) : T{};
      }
      store_shared(to + column * kColumnPitch<T> + word * 4, bit_cast<uint32_t>(values));
    }
  }

  using Sums = float[kSteps][kGroups][4];
  using Lines = uint32_t[kSteps][2];  // of this lane's lines (turned: of a step's pieces): bytes from a pixel; ~0: zero

  // Adds a tile. `steps` and `columns`: what there is of them.
  SK_DEVICE void multiply(Sums& sum, const Lines& line, uint32_t columns_at, int steps, int columns) const {
    const ConvJob& c = job.kept.conv;
    const int lane = threadIdx.x % 32;
    for (int pixel = 0; pixel < kPatchPixels; pixel += kPixels) {
      uint32_t right[kGroups][4];
      SK_UNROLL
      for (int j = 0; j < kGroups; ++j)
        if (j * 8 < columns) ldmatrix_x4<false>(right[j], columns_at + (j * 8 + lane % 8) * kColumnPitch<T> + pixel * int(sizeof(T)) + lane / 8 * 16);
      SK_UNROLL
      for (int k = 0; k < 2; ++k) {
        uint32_t row[2][kWord];  // this lane's pixels
        SK_UNROLL
        for (int half = 0; half < 2; ++half) SK_UNROLL
        for (int q = 0; q < kWord; ++q) {
          const int at = kTurned ? lane % 8 + lane / 16 * 8 : half * E + lane % 4 * kWord + q;
          row[half][q] = halo_pixel(c, pixel + k * 2 * E + at) * c.pixel_bytes;
        }
        SK_UNROLL
        for (int s = 0; s < kSteps; ++s) {
          if (s >= steps) continue;
          uint32_t raw[4];
          if constexpr (kTurned) {
            ldmatrix_x4<true>(raw, row[0][0] + line[s][0]);
          } else {
            SK_UNROLL
            for (int r = 0; r < 4; ++r) {
              alignas(4) T values[kWord];
              SK_UNROLL
              for (int q = 0; q < kWord; ++q) values[q] = line[s][r % 2] == ~0u ? T{} : load_shared<T>(row[r / 2][q] + line[s][r % 2]);
              raw[r] = bit_cast<uint32_t>(values);
            }
          }
          typename Step::Left left;
          Step::prepare(raw, left);
          SK_UNROLL
          for (int j = 0; j < kGroups; ++j)
            if (j * 8 < columns) Step::add(sum[s][j], left, Two<uint32_t>{{right[j][2 * k], right[j][2 * k + 1]}});
        }
      }
    }
  }
};

template <class T, Fp32 mode, bool ByItems>
__global__ void __launch_bounds__(kConvThreads, 2)
    sparse_conv2d_weight_kernel(const T* __restrict__ x, const T* __restrict__ grad_out, float* __restrict__ parts, PatchJob job) {
  using Kernel = Patch<T, mode, ByItems>;
  constexpr int kSteps = Kernel::kSteps, E = Kernel::E;
  const KeptJob& kept = job.kept;
  const ConvJob& c = kept.conv;
  const Kernel k{job};
  const TapPlane taps{c.y.taps(0), c.x.taps(0)};
  const int low_y = taps.y.low(), low_x = taps.x.low(), lane = threadIdx.x % 32, warp = threadIdx.x / 32;
  const int64_t block = blockIdx.x / job.chunks;
  const int chunk = int(blockIdx.x % job.chunks), group = k.group_of(block);
  const int64_t first_slot = k.slot(group * job.of_group) + (block - k.first_block(group)) * kPatchWarps;
  if (first_slot >= k.slot((group + 1) * job.of_group)) return;  // for the whole block
  const typename Kernel::Units units = k.units_of(group, first_slot + warp);
  const uint32_t table = job.tables_at + warp * kPatchTable<T>, columns_at = job.columns_at + warp * kPatchColumns * kColumnPitch<T>;
  k.describe(units, chunk, table, low_y, low_x);

  // pieces of 8 channels of scatter's lines, pieces of 16 bytes of matrix's items
  const int channels = c.groups * c.source_group;
  Span pieces{0, (channels + E - 1) / E};
  if constexpr (!ByItems) {
    const int first = group * kept.source_block / 8 + chunk * job.steps * 2, end = ((group + 1) * kept.source_block + 7) / 8;
    pieces = overlap({first, first + job.steps * 2}, {first, end});
  }
  const int columns =
      ByItems ? (units.count ? overlap({chunk * kPatchColumns, (chunk + 1) * kPatchColumns}, {0, kept.target_block}).size() : 0) : units.count;
  const int lines = units.count ? (ByItems ? units.count : pieces.size() * 8) : 0, steps = (lines + 15) / 16;
  typename Kernel::Sums sum = {};
  typename Kernel::Lines line = {};
  if constexpr (!ByItems) {
    const uint32_t tap = units.count ? k.offset_of(units.list / kept.taps % kept.tap_blocks * kept.taps + units.list % kept.taps, low_y, low_x) : 0;
    SK_UNROLL
    for (int s = 0; s < kSteps; ++s) SK_UNROLL
    for (int r = 0; r < 2; ++r) {
      const int mine = s * 2 + (Kernel::kTurned ? lane / 8 % 2 : r), piece = mine < pieces.size() ? mine : pieces.size() - 1;
      line[s][r] = tap + piece * 8 * int(sizeof(T)) + (Kernel::kTurned ? 0 : lane / 4 * int(sizeof(T)));
    }
  }

  const int staged = ByItems ? c.round_pieces : pieces.size();
  for (int tile = int(blockIdx.y); tile < c.tiles; tile += int(gridDim.y)) {
    const TargetPixel p = target_pixel(c, tile, int(threadIdx.x), 0, 0);
    store_shared(job.pixels_at + threadIdx.x * 8, p.inside ? p.n * c.target_at.n + p.y * c.target_at.y + p.x * c.target_at.x : int64_t(-1));
    for (int first = 0; first < pieces.size(); first += staged) {
      const Span round = ByItems ? overlap(pieces, {first, first + staged}) : Span{pieces.first * 8 / E, pieces.end * 8 / E};
      load_source(c, x, tile, taps, round, 0);
      copy_async_commit();
      __syncthreads();  // where pixels stand is known
      if (first == 0) k.pick(grad_out, table, columns_at, columns);
      copy_async_wait<0>();
      __syncthreads();  // everybody's copies are there
      int used = steps;
      if constexpr (ByItems) {
        SK_UNROLL
        for (int s = 0; s < kSteps; ++s) SK_UNROLL
        for (int r = 0; r < 2; ++r) {
          const PatchLine item = load_shared<PatchLine>(table + (kPatchColumns + s * 16 + r * 8 + lane / 4) * 16);
          const bool here = item.channel >= round.first * E && item.channel < round.end * E;
          line[s][r] = here ? item.offset + (item.channel - round.first * E) * int(sizeof(T)) : ~0u;
        }
        bool any = false;
        SK_UNROLL
        for (int s = 0; s < kSteps; ++s) any |= line[s][0] != ~0u || line[s][1] != ~0u;
        if (!__ballot_sync(~0u, any)) used = 0;  // none of this warp's items reads the round
      }
      k.multiply(sum, line, columns_at, used, columns);
      __syncthreads();  // nobody refills what is still read
    }
  }

  // this lane holds lines lane/4 and 8 behind it of each step, columns lane%4*2 and the next of each group
  float* part = parts + blockIdx.y * job.weights;
  SK_UNROLL
  for (int s = 0; s < kSteps; ++s) SK_UNROLL
  for (int half = 0; half < 2; ++half) {
    const int r = s * 16 + half * 8 + lane / 4;
    int64_t place = -1;
    if constexpr (ByItems) {
      if (r < lines) place = load_shared<PatchLine>(table + (kPatchColumns + r) * 16).place;
    } else {
      const int i = pieces.first * 8 + r - group * kept.source_block;
      if (r < lines && i >= 0 && i < kept.source_block) place = i * kept.weight_source;
    }
    if (place < 0) continue;
    SK_UNROLL
    for (int j = 0; j < Kernel::kGroups; ++j) SK_UNROLL
    for (int q = 0; q < 2; ++q) {
      const int column = j * 8 + lane % 4 * 2 + q;
      if (column < columns) store(part + place + load_shared<PatchLine>(table + column * 16).place, sum[s][j][half * 2 + q]);
    }
  }
}

}  // namespace sk
