// Where a processor is simulated (valgrind, qemu) every case takes fifty times as long: SPARSEKERN_EVERY=11 runs each eleventh.
#pragma once
#include <sys/mman.h>

#include <cstdint>
#include <cstdlib>
#include <cstring>

namespace thin {

inline int every() {
  const char* asked = std::getenv("SPARSEKERN_EVERY");
  return asked && std::atoi(asked) > 1 ? std::atoi(asked) : 1;
}

// What may be done with the pages around a tensor. qemu 7 also reads what a masked load leaves out, where a processor does not.
inline int guarded() { return std::getenv("QEMU_CPU") ? PROT_READ | PROT_WRITE : PROT_NONE; }

// Whether an AVX2 gather of the simulated processor reads where its indices say if they lie in vector register 4. For qemu before 9.1
// (9.0.3, 8.2.7) that number means "no index", as it does where an index is a whole register, and other indices are used: its issue 2474,
// commit ac63755b2001. Which of our gathers use that register is the compiler's choice. Values that they made are not compared there; with
// a qemu that is right, and on a processor, all are.
inline bool gathers_right() {
#if defined(__x86_64__)
  static const bool right = [] {
    if (!std::getenv("QEMU_CPU") || !__builtin_cpu_supports("avx2")) return true;
    alignas(32) const int32_t from[8] = {0, 1, 2, 3, 4, 5, 6, 7}, index[8] = {7, 6, 5, 4, 3, 2, 1, 0};
    alignas(32) int32_t to[8] = {};
    asm volatile(
        "vmovdqa %1, %%ymm4\n"
        "vpcmpeqd %%ymm5, %%ymm5, %%ymm5\n"
        "vpgatherdd %%ymm5, (%2, %%ymm4, 4), %%ymm6\n"
        "vmovdqa %%ymm6, %0\n"
        "vzeroupper"
        : "=m"(to)
        : "m"(index), "r"(from), "m"(from)
        : "xmm4", "xmm5", "xmm6");
    return std::memcmp(index, to, sizeof to) == 0;
  }();
  return right;
#else
  return true;
#endif
}

// Of the case that comes now.
inline bool left_out() {
  static int cases = 0;
  return cases++ % every() != 0;
}

}  // namespace thin
