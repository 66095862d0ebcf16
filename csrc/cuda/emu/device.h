// The names that kernels use, on the emulated machine. The same names for the device are in cuda/ptx.h.
#pragma once
#include "cuda/emu/launch.h"
#include "cuda/emu/matrix.h"
#include "cuda/emu/wgmma.h"
#include "cuda/stream.h"

#define __global__
#define __device__
#define __host__
#define __forceinline__ inline
#define __restrict__
#define __launch_bounds__(...)
#define SK_UNROLL
#define SK_UNROLL_2
#define SK_DEVICE inline

inline void __syncthreads(emu::Site at = emu::Site::here()) { emu::barrier(0, int(emu::block->lanes.size()), at); }
inline void __syncwarp(emu::Site at = emu::Site::here()) {
  emu::warp_meet("__syncwarp", nullptr, at, [](const std::vector<void*>&) {});
}
template <class T>
T __shfl_xor_sync(unsigned mask, T value, int with, emu::Site at = emu::Site::here()) {
  struct Argument {
    T mine, theirs;
    int from;
  } argument{value, value, int(threadIdx.x % 32) ^ with};
  if (mask != ~0u) emu::fault("__shfl_xor_sync: the mask must name the whole warp");
  emu::warp_meet("__shfl_xor_sync", &argument, at, [](const std::vector<void*>& lanes) {
    for (void* l : lanes) static_cast<Argument*>(l)->theirs = static_cast<Argument*>(lanes[static_cast<Argument*>(l)->from % 32])->mine;
  });
  return argument.theirs;
}
template <class T>
T __shfl_sync(unsigned mask, T value, int from, emu::Site at = emu::Site::here()) {
  return __shfl_xor_sync(mask, value, int(threadIdx.x % 32) ^ (from % 32), at);
}
inline unsigned __ballot_sync(unsigned mask, bool vote, emu::Site at = emu::Site::here()) {
  if (mask != ~0u) emu::fault("__ballot_sync: the mask must name the whole warp");
  struct Argument {
    bool vote;
    unsigned all;
  } argument{vote, 0};
  emu::warp_meet("__ballot_sync", &argument, at, [](const std::vector<void*>& lanes) {
    unsigned all = 0;
    for (int i = 0; i < 32; ++i) all |= unsigned(static_cast<Argument*>(lanes[i])->vote) << i;
    for (void* l : lanes) static_cast<Argument*>(l)->all = all;
  });
  return argument.all;
}
inline bool __any_sync(unsigned mask, bool vote, emu::Site at = emu::Site::here()) { return __ballot_sync(mask, vote, at) != 0; }
inline bool __all_sync(unsigned mask, bool vote, emu::Site at = emu::Site::here()) { return __ballot_sync(mask, vote, at) == ~0u; }

namespace sk {

template <class T>
T load(const T* p, emu::Site at = emu::Site::here()) {
  emu::check_load(p, sizeof(T), alignof(T), at);
  emu::count(emu::Space::global, reinterpret_cast<uintptr_t>(p), sizeof(T), at);
  return *p;
}
template <class T>
void store(T* p, T value, emu::Site at = emu::Site::here()) {
  emu::check_store(p, sizeof(T), alignof(T), at);
  emu::count(emu::Space::global, reinterpret_cast<uintptr_t>(p), sizeof(T), at);
  *p = value;
}
template <class T>
T load_shared(uint32_t address, emu::Site at = emu::Site::here()) {
  emu::shared.check("load", address, sizeof(T), alignof(T), at);
  emu::shared.read(emu::lane(), address, sizeof(T), at);
  emu::count(emu::Space::shared, address, sizeof(T), at);
  T value;
  memcpy(&value, emu::shared.at(address), sizeof(T));
  return value;
}
template <class T>
void store_shared(uint32_t address, T value, emu::Site at = emu::Site::here()) {
  emu::shared.check("store", address, sizeof(T), alignof(T), at);
  emu::shared.write(emu::lane(), address, sizeof(T), emu::SharedMemory::Write::plain, at);
  emu::count(emu::Space::shared, address, sizeof(T), at);
  memcpy(emu::shared.at(address), &value, sizeof(T));
}

inline void named_barrier(int id, int threads, emu::Site at = emu::Site::here()) { emu::barrier(id, threads, at); }
inline void copy_async_16(uint32_t to, const void* from, int valid, emu::Site at = emu::Site::here()) { emu::copy_begins(to, from, 16, valid, at); }
inline void copy_async_commit() { emu::copy_commit(); }
template <int Left>
void copy_async_wait(emu::Site at = emu::Site::here()) {
  emu::copy_wait(Left, at);
}
template <bool Transposed>
void ldmatrix_x4(uint32_t (&to)[4], uint32_t row, emu::Site at = emu::Site::here()) {
  emu::ldmatrix(to, row, Transposed, at);
}
template <class T>
void mma_16x8x16(float (&d)[4], const uint32_t (&a)[4], const uint32_t (&b)[2], emu::Site at = emu::Site::here()) {
  emu::mma<16, 2>("mma.m16n8k16", d, a, b, at, emu::unpack_16<T>);
}
inline void mma_16x8x8_tf32(float (&d)[4], const uint32_t (&a)[4], const uint32_t (&b)[2], emu::Site at = emu::Site::here()) {
  emu::mma<8, 1>("mma.m16n8k8.tf32", d, a, b, at, emu::unpack_tf32);
}

// What a launcher may ask and do; cuda/ptx.h has the same for the device.
inline int compute_capability() { return emu::options.compute_capability; }
inline int multiprocessors() { return emu::options.multiprocessors; }
inline size_t shared_bytes_per_block() { return emu::options.shared_limit; }
template <class... Parameters, class... Arguments>
const char* launch(void (*kernel)(Parameters...), dim3 grid, dim3 threads, size_t shared_bytes, Stream, const Arguments&... arguments) {
  emu::launch(grid, threads, shared_bytes, [&] { kernel(arguments...); });
  return nullptr;
}

}  // namespace sk
