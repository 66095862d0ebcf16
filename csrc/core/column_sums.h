// The gradient of a bias: sums over the rows of a matrix.
#pragma once
#include "core/core.h"

namespace sk {

// sums[c] = sum of x[n][c] over n < rows; one of the two strides of x (in floats) is 1. The same bits for any number of threads.
SK_API void column_sums(int64_t rows, int64_t columns, const float* x, int64_t row_stride, int64_t column_stride, float* sums, const Pool& pool);

}  // namespace sk
