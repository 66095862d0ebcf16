// Drives the block kernels of sparse_linear that take x and y as they lie; what is left to the feature-major ones is in sparse_linear.cpp.
#include <algorithm>

#include "core/sparse_linear_drive.h"

namespace sk {
namespace {

const SparseLinearKernels& kernels() { return SK_PICK_KERNELS(sparse_linear); }

// Rows that go through all blocks before the next ones: what stays of x in the second-level cache.
int64_t rows_at_once(int64_t N, int64_t features, int64_t items, const Pool& pool) {
  constexpr int64_t kBytes = 3 << 19, kFewest = 24;
  int64_t most = std::max(kFewest, kBytes / (4 * features + 1));
  // too few output blocks for all threads: they share the rows
  if (pool.threads > 1) most = std::min(most, std::max(kFewest, N * items / (3 * pool.threads)));
  const int64_t chunks = std::max<int64_t>(1, (N + most - 1) / most);
  return std::max<int64_t>(1, (N + chunks - 1) / chunks);
}

// How many of `most` weight blocks follow the one of entry `first`.
int64_t in_a_row(const Blocks& b, int64_t first, int64_t most) {
  int64_t n = 0;
  while (n < most && b.entries[2 * (first + n) + 1] == b.entries[2 * first + 1] + n) ++n;
  return n;
}

enum class Path { few, dots, rows, transposed_rows, single_rows, feature_major };

Path path_of(int64_t N, const Blocks& b, bool natural_x) {
  const int64_t width = kernels().width;
  const bool whole = b.rows % width == 0, dots = b.k_step == 1 && b.rows % 4 == 0 && b.depth % width == 0;
  if (b.rows == 1 && b.k_step == 1 && b.depth % width == 0 && natural_x) return Path::single_rows;
  if (b.outputs_contiguous()) {
    if (N <= kFewRows) return Path::few;
    return natural_x && whole && b.depth > 1 ? Path::rows : Path::feature_major;
  }
  if (N <= kFewRows && (b.k_step == 1 || b.rows == 1)) return dots ? Path::dots : Path::few;
  if (!natural_x || b.k_step != 1) return Path::feature_major;
  // Dot products sum their lanes once per output and row, the other kernel transposes its weights once.
  const double vectors = double(b.ptr[b.count]) / std::max<int64_t>(1, b.count) * b.depth / width;
  if (dots && N * (50 + vectors) < 100 * vectors) return Path::dots;
  return whole && b.rows >= 2 * width && N > width ? Path::transposed_rows : Path::feature_major;
}

}  // namespace

bool block_natural_product(int64_t N, const Blocks& b, const float* in, Strides in_s, int64_t in_features, const float* weight, const float* bias,
                           float* out, Strides out_s, const Pool& pool) {
  if (out_s.col != 1) return false;
  const Path path = path_of(N, b, in_s.col == 1);
  if (path == Path::feature_major) return false;
  const SparseLinearKernels& k = kernels();
  const Scratch scratch(size_t(in_s.col == 1 ? 0 : N * in_features) * sizeof(float));
  const float* x = natural_rows(in, in_s, N, in_features, scratch);
  if (path == Path::single_rows) {
    parallel(pool, b.count, 64, [&](int64_t begin, int64_t end) {
      k.single_rows({b.ptr, b.entries, b.ptr[b.count], begin, end, b.depth, weight, x, in_s.row, N, bias, out, out_s.row});
    });
    return true;
  }
  const int64_t step = rows_at_once(N, in_features, b.count, pool), chunks = (N + step - 1) / step;
  const int64_t last = b.ptr[b.count];
  constexpr int64_t kPieceFloats = 6 << 10;
  // Turned weights stay in the first-level cache for all rows of x, half of it at a time.
  const auto piece_of = [&](int64_t count) {
    const int64_t pieces = path == Path::transposed_rows ? (count * b.area + kPieceFloats - 1) / kPieceFloats : 1;
    return std::max<int64_t>(1, (count + pieces - 1) / std::max<int64_t>(1, pieces));
  };
  parallel(pool, chunks * b.count, path == Path::few || N <= kFewRows ? 8 : 1, [&](int64_t begin, int64_t end) {
    int64_t most = 0;
    if (path == Path::transposed_rows)
      for (int64_t i = begin; i < end; ++i) most = std::max(most, piece_of(b.ptr[i % b.count + 1] - b.ptr[i % b.count]));
    const Scratch transposed(size_t(most * b.area) * sizeof(float));
    for (int64_t i = begin; i < end; ++i) {
      const int64_t block = i % b.count, n0 = i / b.count * step, rows = std::min(step, N - n0), first = b.ptr[block];
      const float *from = x + n0 * in_s.row, *block_bias = bias ? bias + block * b.rows : nullptr;
      float* to = out + n0 * out_s.row + block * b.rows;
      BlockRowsWork work{
          b.entries + 2 * first, b.ptr[block + 1] - first, b.rows, b.depth, weight, false, from, in_s.row, rows, block_bias, to, out_s.row};
      if (path == Path::few) {
        for (int64_t n = 0; n < rows; ++n, from += in_s.row, to += out_s.row) {
          for (int64_t r = 0; r < b.rows; ++r) to[r] = block_bias ? block_bias[r] : 0.0f;
          (b.outputs_contiguous() && b.rows > 1 ? k.panel_dot : k.block_dot)(b.work(block, weight, from, 1, to, 1));
        }
      } else if (path == Path::dots) {
        k.block_dots(work);
      } else {
        const int64_t count = work.count, piece = piece_of(count);
        int64_t e = 0;
        do {
          const int64_t here = std::min(piece, count - e), next = first + e + here;
          work.entries = b.entries + 2 * (first + e), work.count = here, work.accumulate = e > 0;
          if (path == Path::transposed_rows) {  // and the next ones are fetched meanwhile
            for (int64_t j = 0; j < here; ++j)
              k.block_transpose(weight + work.entries[2 * j + 1] * b.area, b.rows, b.depth, transposed.as<float>() + j * b.area);
            work.weight = transposed.as<float>(), work.in_order = true;
            work.ahead_floats = in_a_row(b, next, std::min(piece, last - next)) * b.area;
            if (work.ahead_floats) work.ahead = weight + b.entries[2 * next + 1] * b.area;
          }
          k.block_rows(work);
          e += here;
        } while (e < count);
      }
    }
  });
  return true;
}

bool block_natural_grad_weight(int64_t N, const Blocks& b, const float* grad, Strides g_s, const float* x, Strides x_s, int64_t in_features,
                               float* grad_weight, const Pool& pool) {
  if (g_s.col != 1 || x_s.col != 1 || b.depth % kernels().width || b.rows < 4) return false;
  const int64_t step = rows_at_once(N, in_features, 1, kSerial);
  for (int64_t n = 0; n < N; n += step) {  // in a fixed order: the sum does not depend on the threads
    const int64_t rows = std::min(step, N - n);
    parallel(pool, b.count, 1, [&](int64_t begin, int64_t end) {
      for (int64_t block = begin; block < end; ++block)
        for (int64_t e = b.ptr[block]; e < b.ptr[block + 1]; ++e)
          kernels().block_outer({grad + n * g_s.row + block * b.rows, g_s.row, x + n * x_s.row + b.entries[2 * e] * b.depth, x_s.row, rows, b.rows,
                                 b.depth, n > 0, grad_weight + b.entries[2 * e + 1] * b.area});
    });
  }
  return true;
}

}  // namespace sk
