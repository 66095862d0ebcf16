// Where a processor is simulated (valgrind, qemu) every case takes fifty times as long: SPARSEKERN_EVERY=11 runs each eleventh.
#pragma once
#include <sys/mman.h>

#include <cstdlib>

namespace thin {

inline int every() {
  const char* asked = std::getenv("SPARSEKERN_EVERY");
  return asked && std::atoi(asked) > 1 ? std::atoi(asked) : 1;
}

// What may be done with the pages around a tensor. qemu 7 also reads what a masked load leaves out, where a processor does not.
inline int guarded() { return std::getenv("QEMU_CPU") ? PROT_READ | PROT_WRITE : PROT_NONE; }

// Of the case that comes now.
inline bool left_out() {
  static int cases = 0;
  return cases++ % every() != 0;
}

}  // namespace thin
