// Weights from one layout to the other, faster than torch does it on the way into its own products.
#pragma once
#include "core/core.h"

namespace sk {

// [filters][rows][columns] -> [filters][columns][rows]
template <class T>
void turn_filters(const T* from, int64_t filters, int64_t rows, int64_t columns, T* to, const Pool& threads) {
  const int64_t size = rows * columns;
  parallel(threads, filters, 1 + 65536 / size, [=](int64_t begin, int64_t end) {
    for (int64_t k = begin; k < end; ++k)
      for (int64_t c = 0; c < columns; ++c) {
        const T* in = from + k * size + c;
        T* out = to + k * size + c * rows;
        for (int64_t r = 0; r < rows; ++r, in += columns) out[r] = *in;
      }
  });
}

}  // namespace sk
