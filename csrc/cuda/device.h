// The one header that kernels include: the device's primitives, or (SK_EMU) the emulated machine that runs the same source on the
// host. Kernels touch global memory through load and store and shared memory through byte addresses, so that the emulator
// sees every access; on the device these are plain loads and stores.
#pragma once
#include "cuda/numbers.h"
#ifdef SK_EMU
#include "cuda/emu/device.h"
#else
#include "cuda/ptx.h"
#include "cuda/ptx_wgmma.h"
#endif

namespace sk {

template <class T>
struct alignas(4 * sizeof(T)) Four {
  T v[4];
};
template <class T>
struct alignas(2 * sizeof(T)) Two {
  T v[2];
};

// What wgmma takes for an operand with the 128-byte swizzle: its first shared byte, and the two distances between its atoms in bytes.
SK_HD uint64_t wgmma_descriptor(uint32_t shared_pointer, uint32_t leading_bytes, uint32_t stride_bytes) {
  return uint64_t((shared_pointer & 0x3ffff) >> 4) | uint64_t(leading_bytes >> 4) << 16 | uint64_t(stride_bytes >> 4) << 32 | uint64_t(1) << 62;
}

}  // namespace sk
