// The device's primitives. cuda/emu/device.h gives the same names on the host.
#pragma once
#include <cuda_runtime.h>

#include "cuda/numbers.h"
#include "cuda/stream.h"

#define SK_UNROLL _Pragma("unroll")
#define SK_UNROLL_2 _Pragma("unroll 2")
#define SK_DEVICE __device__ __forceinline__

namespace sk {

extern __shared__ __align__(1024) unsigned char dynamic_shared[];

template <class T>
SK_DEVICE T load(const T* p) {
  return *p;
}
template <class T>
SK_DEVICE void store(T* p, T value) {
  *p = value;
}
template <class T>
SK_DEVICE T load_shared(uint32_t address) {
  return *reinterpret_cast<const T*>(dynamic_shared + address);
}
template <class T>
SK_DEVICE void store_shared(uint32_t address, T value) {
  *reinterpret_cast<T*>(dynamic_shared + address) = value;
}
SK_DEVICE uint32_t shared_pointer(uint32_t address) { return uint32_t(__cvta_generic_to_shared(dynamic_shared)) + address; }

SK_DEVICE void named_barrier(int id, int threads) { asm volatile("bar.sync %0, %1;" ::"r"(id), "r"(threads) : "memory"); }

// Copies `valid` of 16 bytes and fills up with zeros.
SK_DEVICE void copy_async_16(uint32_t to, const void* from, int valid) {
  asm volatile("cp.async.cg.shared.global [%0], [%1], 16, %2;" ::"r"(shared_pointer(to)), "l"(__cvta_generic_to_global(from)), "r"(valid) : "memory");
}
SK_DEVICE void copy_async_commit() { asm volatile("cp.async.commit_group;" ::: "memory"); }
template <int Left>
SK_DEVICE void copy_async_wait() {
  asm volatile("cp.async.wait_group %0;" ::"n"(Left) : "memory");
}

template <bool Transposed>
SK_DEVICE void ldmatrix_x4(uint32_t (&to)[4], uint32_t row) {
  if constexpr (Transposed)
    asm volatile("ldmatrix.sync.aligned.m8n8.x4.trans.shared.b16 {%0, %1, %2, %3}, [%4];"
                 : "=r"(to[0]), "=r"(to[1]), "=r"(to[2]), "=r"(to[3])
                 : "r"(shared_pointer(row))
                 : "memory");
  else
    asm volatile("ldmatrix.sync.aligned.m8n8.x4.shared.b16 {%0, %1, %2, %3}, [%4];"
                 : "=r"(to[0]), "=r"(to[1]), "=r"(to[2]), "=r"(to[3])
                 : "r"(shared_pointer(row))
                 : "memory");
}

#define SK_MMA(shape_and_types)                                                                              \
  asm("mma.sync.aligned." shape_and_types " {%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, {%0, %1, %2, %3};" \
      : "+f"(d[0]), "+f"(d[1]), "+f"(d[2]), "+f"(d[3])                                                       \
      : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b[0]), "r"(b[1]))
template <class T>
SK_DEVICE void mma_16x8x16(float (&d)[4], const uint32_t (&a)[4], const uint32_t (&b)[2]);
template <>
__device__ __forceinline__ void mma_16x8x16<bf16>(float (&d)[4], const uint32_t (&a)[4], const uint32_t (&b)[2]) {
  SK_MMA("m16n8k16.row.col.f32.bf16.bf16.f32");
}
template <>
__device__ __forceinline__ void mma_16x8x16<fp16>(float (&d)[4], const uint32_t (&a)[4], const uint32_t (&b)[2]) {
  SK_MMA("m16n8k16.row.col.f32.f16.f16.f32");
}
SK_DEVICE void mma_16x8x8_tf32(float (&d)[4], const uint32_t (&a)[4], const uint32_t (&b)[2]) { SK_MMA("m16n8k8.row.col.f32.tf32.tf32.f32"); }
#undef SK_MMA

// ---- for launchers: facts of the current device, and a launch that does not wait
inline int device_attribute(cudaDeviceAttr which) {
  int device = 0, value = 0;
  cudaGetDevice(&device);
  cudaDeviceGetAttribute(&value, which, device);
  return value;
}
inline int compute_capability() { return device_attribute(cudaDevAttrComputeCapabilityMajor); }
inline int multiprocessors() { return device_attribute(cudaDevAttrMultiProcessorCount); }
inline size_t shared_bytes_per_block() { return size_t(device_attribute(cudaDevAttrMaxSharedMemoryPerBlockOptin)); }

// Null, or what went wrong.
template <class... Parameters, class... Arguments>
const char* launch(void (*kernel)(Parameters...), dim3 grid, dim3 threads, size_t shared_bytes, Stream stream, const Arguments&... arguments) {
  if (shared_bytes > 48 * 1024) {
    const cudaError_t error = cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, int(shared_bytes));
    if (error != cudaSuccess) return cudaGetErrorString(error);
  }
  kernel<<<grid, threads, shared_bytes, stream>>>(arguments...);
  const cudaError_t error = cudaGetLastError();
  return error == cudaSuccess ? nullptr : cudaGetErrorString(error);
}

}  // namespace sk
