// The sum of all words, each mixed with its place by steps that can be undone: one changed word always changes it.
// `sparsekern.ops.define.sealed` computes the same.
#include "core/seal.h"

#include <atomic>

namespace sk {
namespace {

inline uint32_t mixed(uint32_t word, uint32_t at) {
  uint32_t t = word + at * 0x9E3779B1u;
  t = (t ^ (t >> 16)) * 0x85EBCA6Bu;  // MurmurHash3's last steps: less leaves two words that changed places as they were
  t = (t ^ (t >> 13)) * 0xC2B2AE35u;
  return t ^ (t >> 16);
}

// Arrays that were found whole: a number for each, where its bits say or soon behind; 0: free. A lost one is read again.
constexpr uint64_t kPlaces = 1 << 13, kTries = 8;
std::atomic<uint64_t> whole[kPlaces];

uint64_t number_of(const int32_t* words, int64_t length, uint32_t seal) {
  uint64_t t = (reinterpret_cast<uint64_t>(words) ^ (uint64_t(seal) << 32)) * 0x9E3779B97F4A7C15u + uint64_t(length);
  t ^= t >> 29;
  t *= 0xBF58476D1CE4E5B9u;
  return (t ^ (t >> 32)) | 1;
}

}  // namespace

uint32_t seal_of(const int32_t* words, int64_t length, int64_t place) {
  uint32_t sum = uint32_t(length);
  for (int64_t i = 0; i < length; ++i) sum += mixed(uint32_t(words[i]), uint32_t(i));
  return sum - mixed(uint32_t(words[place]), uint32_t(place));
}

bool sealed(const int32_t* words, int64_t length, int64_t place) {
  const uint32_t seal = uint32_t(words[place]);
  const uint64_t number = number_of(words, length, seal);
  uint64_t free = number;
  for (uint64_t i = 0; i < kTries; ++i) {
    const uint64_t found = whole[(number / 2 + i) % kPlaces].load(std::memory_order_relaxed);
    if (found == number) return true;
    if (found == 0 && free == number) free = number / 2 + i;
  }
  if (seal_of(words, length, place) != seal) return false;
  whole[(free == number ? number / 2 : free) % kPlaces].store(number, std::memory_order_relaxed);
  return true;
}

}  // namespace sk
