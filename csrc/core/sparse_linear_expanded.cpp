// Drives the kernels that expand rows of a condensed weight: in registers for few rows of x; for many, a strip of outputs at a time
// into the caches, where it is a dense left factor. Either costs by positions, kept or not.
#include <algorithm>

#include "core/sparse_linear_drive.h"

namespace sk {
namespace {

const SparseLinearKernels& kernels() { return SK_PICK_KERNELS(sparse_linear); }

}  // namespace

// More rows than are expanded for at a time: 16 outputs are expanded into the caches, once, and multiplied as a block of natural weights.
static void expanded_dots(int64_t N, const ExpandedRows& w, int64_t out_features, const float* x, int64_t x_row, const float* bias, float* y,
                          Strides y_s, const Pool& pool) {
  constexpr int64_t kOutputs = 16;
  const SparseLinearKernels& k = kernels();
  const int64_t in = w.inputs, depth = (in + k.width - 1) / k.width * k.width;
  const Scratch padded(size_t(depth == in ? 0 : N * depth) * sizeof(float));
  if (depth != in) {
    float* copy = padded.as<float>();
    for (int64_t n = 0; n < N; ++n) {
      std::copy(x + n * x_row, x + n * x_row + in, copy + n * depth);
      std::fill(copy + n * depth + in, copy + (n + 1) * depth, 0.0f);
    }
    x = copy, x_row = depth;
  }
  const int32_t entry[2] = {0, 0};
  parallel(pool, (out_features + kOutputs - 1) / kOutputs, 1, [&](int64_t begin, int64_t end) {
    const Scratch scratch(size_t(kOutputs * depth) * sizeof(float));
    float* const weight = scratch.as<float>();
    std::fill(weight, weight + kOutputs * depth, 0.0f);
    float last[kOutputs * kMostExpandedDots], last_bias[kOutputs] = {};
    for (int64_t g = begin; g < end; ++g) {
      const int64_t first = g * kOutputs, rows = std::min(kOutputs, out_features - first);
      k.expand_block({w.mask + first * w.words, w.words, in, w.weight + first * w.fan_in, w.fan_in}, 0, w.words, nullptr, weight, depth, 0, rows);
      BlockRowsWork work{entry, 1, kOutputs, depth, weight, false, x, x_row, N, bias ? bias + first : nullptr, y + first, y_s.row};
      if (rows == kOutputs && y_s.col == 1) {
        k.block_dots(work);
        continue;
      }
      // of outputs that are not there, whatever their weights are
      if (bias) std::copy(bias + first, bias + first + rows, last_bias), work.bias = last_bias;
      work.y = last, work.y_row = kOutputs;
      k.block_dots(work);
      for (int64_t n = 0; n < N; ++n)
        for (int64_t r = 0; r < rows; ++r) y[n * y_s.row + (first + r) * y_s.col] = last[n * kOutputs + r];
    }
  });
}

void expanded_product(int64_t N, const ExpandedRows& w, int64_t out_features, const float* x, Strides x_s, const float* bias, float* y, Strides y_s,
                      const Pool& pool) {
  const Scratch scratch(size_t(x_s.col == 1 ? 0 : N * w.inputs) * sizeof(float));
  const float* rows = natural_rows(x, x_s, N, w.inputs, scratch);
  if (expands_for_dots(N, out_features)) return expanded_dots(N, w, out_features, rows, x_s.row, bias, y, y_s, pool);
  parallel(pool, out_features, std::max<int64_t>(8, 65536 / std::max<int64_t>(1, w.inputs)),
           [&](int64_t begin, int64_t end) { kernels().expanded(w, rows, x_s.row, N, bias, y, y_s.row, y_s.col, begin, end); });
}

// A wave of columns is up to 256 rows of x. Inputs come in blocks: a block of x, feature-major, stays in the second-level cache while it is
// multiplied by each strip of the weight, expanded as far as the block; tiles take a part of it that stays in the first-level cache. The sums
// of all outputs (of a panel of them) wait in the second-level cache too.
void expanded_strips(int64_t N, const ExpandedRows& w, int64_t out_features, const float* x, Strides x_s, const float* bias, float* y, Strides y_s,
                     const Pool& pool) {
  constexpr int64_t kWord = 32, kBlock = 384, kDepth = 128, kWaveChunks = 4, kMostRows = 192, kFewestRows = 48, kPanelFloats = 200 << 10;
  const SparseLinearKernels& k = kernels();
  const int64_t full = 4 * k.width, in = w.inputs, chunks = (N + full - 1) / full, wave = std::min(chunks, kWaveChunks);
  // Long strips, but some for each thread.
  const int64_t strip_rows = pool.threads > 1 ? std::clamp(out_features / (2 * pool.threads) / 6 * 6, kFewestRows, kMostRows) : kMostRows;
  const int64_t strips = (out_features + strip_rows - 1) / strip_rows;
  const int64_t panel_strips = std::clamp<int64_t>(kPanelFloats / (strip_rows * wave * full), 1, strips);
  const Scratch buffer(size_t(wave * std::min(kBlock, in) * full) * sizeof(float));
  const Scratch sums_scratch(size_t(panel_strips * strip_rows * wave * full) * sizeof(float));
  float* const sums = sums_scratch.as<float>();
  std::vector<int32_t> used(panel_strips * strip_rows);
  Chunk inputs[kWaveChunks];
  const int32_t entry[2] = {0, 0};
  for (int64_t c0 = 0; c0 < chunks; c0 += wave) {
    const int64_t here = std::min(wave, chunks - c0);
    const auto columns = [&](int64_t c) { return std::min(full, N - (c0 + c) * full); };
    const auto width = [&](int64_t c) { return (columns(c) + k.width - 1) / k.width * k.width; };
    for (int64_t s0 = 0; s0 < strips; s0 += panel_strips) {
      const int64_t panel = std::min(panel_strips, strips - s0);
      std::fill(used.begin(), used.end(), 0);
      for (int64_t i0 = 0; i0 < in; i0 += kBlock) {
        const int64_t block = std::min(kBlock, in - i0), first_word = i0 / kWord, end_word = (i0 + block + kWord - 1) / kWord;
        for (int64_t c = 0; c < here; ++c)
          inputs[c] = chunk_of(x + i0 * x_s.col, x_s, (c0 + c) * full, columns(c), block, width(c), buffer.as<float>() + c * block * full, pool);
        parallel(pool, panel, 1, [&](int64_t begin, int64_t end) {
          const Scratch strip_scratch(size_t(strip_rows * kBlock) * sizeof(float));
          float* const strip = strip_scratch.as<float>();
          for (int64_t s = begin; s < end; ++s) {
            const int64_t first = (s0 + s) * strip_rows, rows = std::min(strip_rows, out_features - first);
            const ExpandedRows own{w.mask + first * w.words, w.words, in, w.weight + first * w.fan_in, w.fan_in};
            k.expand_block(own, first_word, end_word, used.data() + s * strip_rows, strip, kBlock, 0, rows);
            for (int64_t c = 0; c < here; ++c) {
              const int64_t wide = width(c), n0 = (c0 + c) * full;
              const bool in_place = y_s.row == 1 && columns(c) == wide;
              float* out = in_place ? y + first * y_s.col + n0 : sums + (s * wave + c) * strip_rows * full;
              const int64_t out_stride = in_place ? y_s.col : wide;
              if (i0 == 0)
                for (int64_t r = 0; r < rows; ++r) std::fill(out + r * out_stride, out + r * out_stride + wide, bias ? bias[first + r] : 0.0f);
              for (int64_t i = 0; i < block; i += kDepth)
                k.block_tile[wide / k.width - 1]({entry, 1, rows, std::min(kDepth, block - i), kBlock, 1, 0, strip + i,
                                                  inputs[c].data + i * inputs[c].stride, inputs[c].stride, out, out_stride});
              if (in_place || i0 + block < in) continue;
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
  }
}

}  // namespace sk
