// The measured roof of this machine: how fast one thread can multiply-add and read, in the instruction set in use.
#pragma once
#include "core/core.h"

namespace sk {

SK_API double roof_fma_gflops(double seconds);                 // fp32 multiply-adds on registers, 2 FLOPs each
SK_API double roof_read_gbytes(size_t bytes, double seconds);  // GB/s of reading a buffer of `bytes` again and again

struct RoofKernels {
  double (*fma)(int64_t steps);                    // returns the FLOPs done
  float (*read)(const float* data, int64_t size);  // size in floats, a multiple of 128
};
SK_DECLARE_KERNELS(RoofKernels, roof_kernels)

}  // namespace sk
