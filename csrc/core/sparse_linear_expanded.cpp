// Drives the kernels that expand rows of a condensed weight: in registers for few rows of x; for many, a strip of outputs at a time
// into the caches, where it is a dense left factor. Either costs by positions, kept or not.
#include <algorithm>

#include "core/sparse_linear_drive.h"

namespace sk {
namespace {

const SparseLinearKernels& kernels() { return SK_PICK_KERNELS(sparse_linear); }

}  // namespace

void expanded_product(int64_t N, const ExpandedRows& w, int64_t out_features, const float* x, Strides x_s, const float* bias, float* y, Strides y_s,
                      const Pool& pool) {
  const Scratch scratch(size_t(x_s.col == 1 ? 0 : N * w.inputs) * sizeof(float));
  const float* rows = natural_rows(x, x_s, N, w.inputs, scratch);
  parallel(pool, out_features, std::max<int64_t>(8, 65536 / std::max<int64_t>(1, w.inputs)),
           [&](int64_t begin, int64_t end) { kernels().expanded(w, rows, x_s.row, N, bias, y, y_s.row, y_s.col, begin, end); });
}

// A wave of columns is as much of x, feature-major, as stays in the second-level cache; a strip that was expanded serves all of it. A
// block of inputs of 64 columns stays in the first-level cache for the whole strip; its sums are added to those before.
void expanded_strips(int64_t N, const ExpandedRows& w, int64_t out_features, const float* x, Strides x_s, const float* bias, float* y, Strides y_s,
                     const Pool& pool) {
  constexpr int64_t kBlock = 256;
  const SparseLinearKernels& k = kernels();
  const int64_t full = 4 * k.width, in = w.inputs, strip_rows = in <= 1536 ? 48 : 24, chunks = (N + full - 1) / full;
  const int64_t wave = std::clamp<int64_t>(kStripWaveBytes / (in * full * 4), 1, chunks);
  const Scratch buffer(size_t(wave * in * full) * sizeof(float));
  std::vector<Chunk> inputs(wave);
  const int32_t entry[2] = {0, 0};
  for (int64_t c0 = 0; c0 < chunks; c0 += wave) {
    const int64_t here = std::min(wave, chunks - c0);
    const auto columns = [&](int64_t c) { return std::min(full, N - (c0 + c) * full); };
    const auto width = [&](int64_t c) { return (columns(c) + k.width - 1) / k.width * k.width; };
    for (int64_t c = 0; c < here; ++c)
      inputs[c] = chunk_of(x, x_s, (c0 + c) * full, columns(c), in, width(c), buffer.as<float>() + c * in * full, pool);
    parallel(pool, (out_features + strip_rows - 1) / strip_rows, 2, [&](int64_t begin, int64_t end) {
      const Scratch strip(size_t(strip_rows * in) * sizeof(float)), sums(size_t(strip_rows * full) * sizeof(float));
      for (int64_t s = begin; s < end; ++s) {
        const int64_t first = s * strip_rows, rows = std::min(strip_rows, out_features - first);
        k.expand_to_dense({w.mask + first * w.words, w.words, in, w.weight + first * w.fan_in, w.fan_in}, strip.as<float>(), 0, rows);
        for (int64_t c = 0; c < here; ++c) {
          const int64_t n0 = (c0 + c) * full, wide = width(c);
          const bool in_place = y_s.row == 1 && columns(c) == wide;
          float* out = in_place ? y + first * y_s.col + n0 : sums.as<float>();
          const int64_t out_stride = in_place ? y_s.col : wide;
          for (int64_t r = 0; r < rows; ++r) std::fill(out + r * out_stride, out + r * out_stride + wide, bias ? bias[first + r] : 0.0f);
          for (int64_t i = 0; i < in; i += kBlock)
            k.block_tile[wide / k.width - 1]({entry, 1, rows, std::min(kBlock, in - i), in, 1, 0, strip.as<float>() + i,
                                              inputs[c].data + i * inputs[c].stride, inputs[c].stride, out, out_stride});
          if (in_place) continue;
          if (y_s.col == 1) {
            k.from_feature_major(out, wide, columns(c), rows, y + n0 * y_s.row + first, y_s.row);
          } else {
            for (int64_t r = 0; r < rows; ++r)
              for (int64_t n = 0; n < columns(c); ++n) y[(n0 + n) * y_s.row + (first + r) * y_s.col] = out[r * wide + n];
          }
        }
      }
    });
  }
}

}  // namespace sk
