// The seal of a plan or a pack: one word of its header made from all the others. Kernels follow the offsets, lengths and indices in such an
// array without looking at them again, so an array that is not as it was made is refused before they do.
#pragma once
#include <cstdint>

namespace sk {

// The seal of `length` words, whatever the word at `place` holds.
uint32_t seal_of(const int32_t* words, int64_t length, int64_t place);

// Does the array bear its own seal? Read from end to end once, then known by its address, length and seal; what is written into it later
// is not seen.
bool sealed(const int32_t* words, int64_t length, int64_t place);

}  // namespace sk
