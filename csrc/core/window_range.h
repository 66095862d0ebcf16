// What a window's numbers may be, so that what is added and multiplied of them stays in 64 bits, and no kernel makes room for a stride.
#pragma once
#include <algorithm>
#include <cstdint>
#include <initializer_list>

namespace sk {

inline bool within(int64_t least, std::initializer_list<int64_t> numbers) {
  return std::all_of(numbers.begin(), numbers.end(), [least](int64_t n) { return n >= least && n <= INT32_MAX; });
}

// A stride beyond the padded image moves no window; one window it is either way. Not 1, which torch takes for another convolution.
inline int64_t useful_stride(int64_t stride, int64_t size, int64_t pad) { return std::min(stride, std::max<int64_t>(2, size + 2 * pad)); }

// Of one tap it means nothing, but oneDNN's channels_last convolutions under torch 2.13 end the process for another one than 1 where a window
// touches no pixel.
inline int64_t useful_dilation(int64_t dilation, int64_t taps) { return taps == 1 ? 1 : dilation; }

}  // namespace sk
