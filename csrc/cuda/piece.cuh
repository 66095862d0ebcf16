// Pieces of 16 bytes on their way into shared memory.
#pragma once
#include "cuda/device.h"

namespace sk {

// `count` neighbours in one dimension, at a distance of `stride`, as a piece of shared memory, the rest of it zero.
template <class T>
SK_DEVICE void load_piece(uint32_t to, const T* from, int64_t stride, int count, bool vectors) {
  constexpr int E = 16 / int(sizeof(T));
  if (vectors) {
    copy_async_16(to, from, count > 0 ? 16 : 0);
  } else {
    alignas(16) T values[E];
    SK_UNROLL
    for (int e = 0; e < E; ++e) values[e] = e < count ? load(from + e * stride) : T{};
    store_shared(to, bit_cast<Four<uint32_t>>(values));
  }
}

}  // namespace sk
