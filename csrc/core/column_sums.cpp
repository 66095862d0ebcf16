#include "core/column_sums.h"

#include <algorithm>

namespace sk {
namespace {

// Rows side by side: 64 columns at a time stay in registers or L1; four sums per column, so that errors grow with a quarter of the rows.
void sum_columns(int64_t rows, const float* x, int64_t row_stride, int64_t count, float* sums) {
  constexpr int64_t kColumns = 64, kParts = 4;
  float parts[kParts][kColumns] = {};
  for (int64_t n = 0; n < rows; ++n) {
    const float* row = x + n * row_stride;
    float* part = parts[n % kParts];
    for (int64_t c = 0; c < count; ++c) part[c] += row[c];
  }
  for (int64_t c = 0; c < count; ++c) sums[c] = (parts[0][c] + parts[1][c]) + (parts[2][c] + parts[3][c]);
}

float sum_line(int64_t count, const float* x) {
  constexpr int64_t kParts = 16;
  float parts[kParts] = {};
  int64_t n = 0;
  for (; n + kParts <= count; n += kParts)
    for (int64_t p = 0; p < kParts; ++p) parts[p] += x[n + p];
  for (; n < count; ++n) parts[n % kParts] += x[n];
  for (int64_t step = kParts / 2; step > 0; step /= 2)
    for (int64_t p = 0; p < step; ++p) parts[p] += parts[p + step];
  return parts[0];
}

}  // namespace

void column_sums(int64_t rows, int64_t columns, const float* x, int64_t row_stride, int64_t column_stride, float* sums, const Pool& pool) {
  const bool lines = row_stride == 1 && column_stride != 1;
  parallel(pool, (columns + 63) / 64, 1 + 1024 / (1 + rows), [&](int64_t begin, int64_t end) {
    for (int64_t first = begin * 64; first < std::min(columns, end * 64); first += 64) {
      const int64_t count = std::min<int64_t>(64, columns - first);
      if (!lines) {
        sum_columns(rows, x + first, row_stride, count, sums + first);
        continue;
      }
      for (int64_t c = first; c < first + count; ++c) sums[c] = sum_line(rows, x + c * column_stride);
    }
  });
}

}  // namespace sk
