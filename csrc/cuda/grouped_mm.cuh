// Many products of matrices at once, on tensor cores. Two kernels, each for all three products:
//
// tile    A block makes 64 x 64 of the result, its four warps 32 x 32 each, from three stages of shared memory.
// direct  For small matrices: a warp makes 16 x 32 of the result from global memory, without a barrier.
//
// An operand is `turned` if in memory its neighbours are those along the result and not along the sum: b in the forward product, both
// operands of grad_b. Matrix steps then take it from shared memory turned.
//
// Ragged rows: tiles cut all rows as they lie, and a tile goes through the groups it meets one after the other.
#pragma once
#include "cuda/grouped_mm.h"
#include "cuda/matrix_step.cuh"
#include "cuda/piece.cuh"

namespace sk {

constexpr int kMmThreads = 128, kMmTile = 64, kMmStages = 3, kMmPieces = 8;
constexpr int kMmOperandBytes = 9216;  // of a stage: 64 lines of 8 pieces, or as many numbers the other way round, with gaps
constexpr int kMmBytes = kMmStages * 2 * kMmOperandBytes;

struct MmJob {
  const int32_t* offsets;
  int64_t rows, group_rows;                  // of all groups; of each, where they are equal
  int groups, row_tiles, column_tiles;       // row tiles of a group (ragged: of all rows)
  int result_rows, columns, inner;           // of a group; result_rows, inner: 0 where it is a group's own number of rows
  int64_t a_line, b_line, a_group, b_group;  // elements from line to line, and from group to group where that does not follow the rows
  bool a_vectors, b_vectors;                 // lines are whole, aligned pieces
};

struct Rows {
  int64_t first, end;
};
SK_DEVICE Rows rows_of_group(const MmJob& job, int g) {
  if (!job.offsets) return {g * job.group_rows, (g + 1) * job.group_rows};
  const auto within = [&](int64_t row) { return row < 0 ? 0 : row > job.rows ? job.rows : row; };
  const int64_t first = g ? within(load(job.offsets + g - 1)) : 0, end = within(load(job.offsets + g));
  return {first, end > first ? end : first};
}
// The group of a row that is below the last end (ragged).
SK_DEVICE int group_at(const MmJob& job, int64_t row) {
  int first = 0, end = job.groups - 1;
  while (first < end) {
    const int middle = (first + end) / 2;
    if (load(job.offsets + middle) > row)
      end = middle;
    else
      first = middle + 1;
  }
  return first;
}

// What one pass multiplies: `height` rows of the result from `a`'s line (or, turned, column) 0 on, of which those below `skip` are not
// its own.
template <class T>
struct MmPass {
  const T *a, *b;
  int skip, height, width, inner;
  const int32_t* picks = nullptr;  // which line of `a` is taken for each of its lines, where a tile picks them
};

template <class T, Fp32 mode, bool ATurned, bool BTurned, bool APicked = false>
struct MmTile {
  static constexpr int E = 16 / int(sizeof(T)), kInner = kMmPieces * E;  // of a stage
  static constexpr int kPlain = (kMmPieces + 1) * 16;                    // bytes of a line, odd in pieces
  static constexpr int kTurned = sizeof(T) == 2 ? kPlain : (kMmTile / E + 2) * 16;
  using Step = MatrixStep<T, mode>;

  const MmJob& job;

  template <bool turned, bool picked>
  SK_DEVICE static void fetch(uint32_t to, const T* from, const int32_t* picks, int64_t line, int skip, int lines, int inner_left, bool vectors) {
    constexpr int kLines = turned ? kInner : kMmTile, kAcross = turned ? kMmTile / E : kMmPieces;
    SK_UNROLL
    for (int i = threadIdx.x; i < kLines * kAcross; i += kMmThreads) {
      const int at = i / kAcross, piece = i % kAcross * E;
      // across the lines, and along them
      const bool there = turned ? at < inner_left : at >= skip && at < lines;
      const int count = there ? (turned ? lines : inner_left) - piece : 0;
      int64_t number = at;
      if constexpr (picked)
        if (count > 0) number = load(picks + at);
      load_piece(to + at * (turned ? kTurned : kPlain) + piece * int(sizeof(T)), count > 0 ? from + number * line + piece : from, 1, count, vectors);
    }
  }

  SK_DEVICE static void left(uint32_t (&raw)[4], uint32_t a, int row, int step) {
    const int lane = threadIdx.x % 32;
    if constexpr (!ATurned) {
      ldmatrix_x4<false>(raw, a + (row + lane % 16) * kPlain + (step * 2 + lane / 16) * 16);
    } else if constexpr (sizeof(T) == 2) {
      ldmatrix_x4<true>(raw, a + (step * 16 + lane / 16 * 8 + lane % 8) * kTurned + (row + lane / 8 % 2 * 8) * 2);
    } else {
      SK_UNROLL
      for (int q = 0; q < 4; ++q) raw[q] = load_shared<uint32_t>(a + (step * 8 + q / 2 * 4 + lane % 4) * kTurned + (row + q % 2 * 8 + lane / 4) * 4);
    }
  }
  // Of two neighbouring tiles of 8 columns.
  SK_DEVICE static void right(uint32_t (&raw)[4], uint32_t b, int column, int step) {
    const int lane = threadIdx.x % 32;
    if constexpr (!BTurned) {
      ldmatrix_x4<false>(raw, b + (column + lane / 16 * 8 + lane % 8) * kPlain + (step * 2 + lane / 8 % 2) * 16);
    } else if constexpr (sizeof(T) == 2) {
      ldmatrix_x4<true>(raw, b + (step * 16 + lane / 8 % 2 * 8 + lane % 8) * kTurned + (column + lane / 16 * 8) * 2);
    } else {
      SK_UNROLL
      for (int q = 0; q < 4; ++q)
        raw[q] = load_shared<uint32_t>(b + (step * 8 + q % 2 * 4 + lane % 4) * kTurned + (column + q / 2 * 8 + lane / 4) * 4);
    }
  }

  SK_DEVICE void multiply(float (&sum)[2][4][4], const MmPass<T>& pass) const {
    const int warp = threadIdx.x / 32, stages = (pass.inner + kInner - 1) / kInner;
    const auto bring = [&](int stage) {
      if (stage < stages) {
        const uint32_t to = stage % kMmStages * 2 * kMmOperandBytes;
        const int64_t done = int64_t(stage) * kInner;
        const int64_t lines = APicked ? 0 : done * job.a_line;  // picked lines are counted where they are picked
        fetch<ATurned, APicked>(to, pass.a + (ATurned ? lines : done), pass.picks + (APicked && ATurned ? done : 0), job.a_line, pass.skip,
                                pass.height, pass.inner - int(done), job.a_vectors);
        fetch<BTurned, false>(to + kMmOperandBytes, pass.b + done * (BTurned ? job.b_line : 1), nullptr, job.b_line, 0, pass.width,
                              pass.inner - int(done), job.b_vectors);
      }
      copy_async_commit();
    };
    bring(0);
    bring(1);
    for (int stage = 0; stage < stages; ++stage) {
      copy_async_wait<1>();
      __syncthreads();   // everybody's copies are there, and the stage before this one is read
      bring(stage + 2);  // takes its place
      const uint32_t a = stage % kMmStages * 2 * kMmOperandBytes, b = a + kMmOperandBytes;
      SK_UNROLL
      for (int step = 0; step < kMmPieces / 2; ++step) {
        typename Step::Left rows[2];
        SK_UNROLL
        for (int m = 0; m < 2; ++m) {
          uint32_t raw[4];
          left(raw, a, warp / 2 * 32 + m * 16, step);
          Step::prepare(raw, rows[m]);
        }
        SK_UNROLL
        for (int j = 0; j < 4; j += 2) {
          uint32_t raw[4];
          right(raw, b, warp % 2 * 32 + j * 8, step);
          SK_UNROLL
          for (int k = 0; k < 2; ++k) {
            const Two<uint32_t> columns{{raw[2 * k], raw[2 * k + 1]}};
            SK_UNROLL
            for (int m = 0; m < 2; ++m) Step::add(sum[m][j + k], rows[m], columns);
          }
        }
      }
    }
    copy_async_wait<0>();
    __syncthreads();  // the next pass fetches over what was read
  }

  // `out`: the result at the pass's first row and column.
  SK_DEVICE static void write(const float (&sum)[2][4][4], const MmPass<T>& pass, T* out, int64_t line) {
    const int lane = threadIdx.x % 32, warp = threadIdx.x / 32;
    SK_UNROLL
    for (int m = 0; m < 2; ++m) SK_UNROLL
    for (int j = 0; j < 4; ++j) SK_UNROLL
    for (int q = 0; q < 4; ++q) {
      const int row = warp / 2 * 32 + m * 16 + q / 2 * 8 + lane / 4, column = warp % 2 * 32 + j * 8 + lane % 4 * 2 + q % 2;
      if (row >= pass.skip && row < pass.height && column < pass.width) store(out + row * line + column, from_float<T>(sum[m][j][q]));
    }
  }
};

SK_HD int at_most(int64_t size, int most) { return int(size < most ? size : most); }

template <class T, Fp32 mode, bool ATurned, bool BTurned>
__global__ void __launch_bounds__(kMmThreads, 3)
    grouped_mm_tile_kernel(const T* __restrict__ a, const T* __restrict__ b, T* __restrict__ out, MmJob job) {
  const MmTile<T, mode, ATurned, BTurned> tile{job};
  const int column = int(blockIdx.x % job.column_tiles) * kMmTile, width = at_most(job.columns - column, kMmTile);
  const int64_t rest = blockIdx.x / job.column_tiles;
  const auto pass = [&](const MmPass<T>& p, T* to) {
    float sum[2][4][4];
    SK_UNROLL
    for (int m = 0; m < 2; ++m) SK_UNROLL
    for (int j = 0; j < 4; ++j) SK_UNROLL
    for (int q = 0; q < 4; ++q) sum[m][j][q] = 0;
    tile.multiply(sum, p);
    tile.write(sum, p, to, job.columns);
  };
  if constexpr (ATurned) {  // grad_b: the group's rows are summed over
    const int g = int(rest / job.row_tiles), row = int(rest % job.row_tiles) * kMmTile;
    const Rows r = rows_of_group(job, g);
    pass({a + r.first * job.a_line + row, b + r.first * job.b_line + column, 0, at_most(job.result_rows - row, kMmTile), width, int(r.end - r.first)},
         out + (int64_t(g) * job.result_rows + row) * job.columns + column);
  } else {
    int g = job.offsets ? 0 : int(rest / job.row_tiles);
    const int64_t first = job.offsets ? rest * kMmTile : g * job.group_rows + rest % job.row_tiles * kMmTile;
    if (job.offsets) g = group_at(job, first);
    for (; g < job.groups; ++g) {
      const Rows r = rows_of_group(job, g);
      if (r.first >= first + kMmTile || (!job.offsets && r.first > first)) break;
      const int skip = r.first > first ? int(r.first - first) : 0, height = at_most(r.end - first, kMmTile);
      if (height > skip)
        pass({a + first * job.a_line, b + g * job.b_group + int64_t(column) * (BTurned ? 1 : job.b_line), skip, height, width, job.inner},
             out + first * job.columns + column);
    }
  }
}

// ---- direct: a warp's 16 x 32 of the result

template <class T, Fp32 mode, bool ATurned, bool BTurned>
SK_DEVICE void direct_product(const MmJob& job, const MmPass<T>& pass, T* out) {
  constexpr int E = 16 / int(sizeof(T)), kWord = 4 / int(sizeof(T));
  using Step = MatrixStep<T, mode>;
  const int lane = threadIdx.x % 32;
  float sum[4][4] = {};
  for (int k = 0; k < pass.inner; k += 2 * E) {
    const auto words = [&](const T* from, int64_t line, bool turned, int at, bool there, int half) {
      alignas(4) T values[kWord];
      SK_UNROLL
      for (int q = 0; q < kWord; ++q) {
        const int inner = k + half * E + lane % 4 * kWord + q;
        values[q] = there && inner < pass.inner ? load(from + (turned ? inner * line + at : at * line + inner)) : T{};
      }
      return bit_cast<uint32_t>(values);
    };
    uint32_t raw[4];
    SK_UNROLL
    for (int q = 0; q < 4; ++q) {
      const int row = q % 2 * 8 + lane / 4;
      raw[q] = words(pass.a, job.a_line, ATurned, row, row >= pass.skip && row < pass.height, q / 2);
    }
    typename Step::Left left;
    Step::prepare(raw, left);
    SK_UNROLL
    for (int j = 0; j < 4; ++j) {
      const int column = j * 8 + lane / 4;
      const bool there = column < pass.width;
      Step::add(sum[j], left, {{words(pass.b, job.b_line, BTurned, column, there, 0), words(pass.b, job.b_line, BTurned, column, there, 1)}});
    }
  }
  SK_UNROLL
  for (int j = 0; j < 4; ++j) SK_UNROLL
  for (int q = 0; q < 4; ++q) {
    const int row = q / 2 * 8 + lane / 4, column = j * 8 + lane % 4 * 2 + q % 2;
    if (row >= pass.skip && row < pass.height && column < pass.width) store(out + int64_t(row) * job.columns + column, from_float<T>(sum[j][q]));
  }
}

template <class T, Fp32 mode, bool ATurned, bool BTurned>
__global__ void __launch_bounds__(kMmThreads, 4)
    grouped_mm_direct_kernel(const T* __restrict__ a, const T* __restrict__ b, T* __restrict__ out, MmJob job) {
  const int64_t number = int64_t(blockIdx.x) * (kMmThreads / 32) + threadIdx.x / 32, rest = number / job.column_tiles;
  const int column = int(number % job.column_tiles) * 32, width = at_most(job.columns - column, 32);
  if (rest >= int64_t(job.row_tiles) * (job.offsets && !ATurned ? 1 : job.groups)) return;
  if constexpr (ATurned) {
    const int g = int(rest / job.row_tiles), row = int(rest % job.row_tiles) * 16;
    const Rows r = rows_of_group(job, g);
    direct_product<T, mode, ATurned, BTurned>(
        job, {a + r.first * job.a_line + row, b + r.first * job.b_line + column, 0, at_most(job.result_rows - row, 16), width, int(r.end - r.first)},
        out + (int64_t(g) * job.result_rows + row) * job.columns + column);
  } else {
    int g = job.offsets ? 0 : int(rest / job.row_tiles);
    const int64_t first = job.offsets ? rest * 16 : g * job.group_rows + rest % job.row_tiles * 16;
    if (job.offsets) g = group_at(job, first);
    for (; g < job.groups; ++g) {
      const Rows r = rows_of_group(job, g);
      if (r.first >= first + 16 || (!job.offsets && r.first > first)) break;
      const int skip = r.first > first ? int(r.first - first) : 0, height = at_most(r.end - first, 16);
      if (height > skip)
        direct_product<T, mode, ATurned, BTurned>(
            job, {a + first * job.a_line, b + g * job.b_group + int64_t(column) * (BTurned ? 1 : job.b_line), skip, height, width, job.inner},
            out + first * job.columns + column);
    }
  }
}

}  // namespace sk
