// Is a table still the one that a plan was made from? Torch counts what is written through it; what is written past it (by a broadcast of
// another library, through numpy) is written as a whole, so a few places tell.
#pragma once
#include <cstdint>

namespace sk {

constexpr int64_t kPlacesCompared = 8;

inline bool alike(const int32_t* table, int64_t count, auto&& planned) {  // planned: place -> number
  for (int64_t i = 0; i < kPlacesCompared && count > 0; ++i) {
    const int64_t place = i * (count - 1) / (kPlacesCompared - 1);
    if (table[place] != planned(place)) return false;
  }
  return true;
}

}  // namespace sk
