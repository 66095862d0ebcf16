// The right kernels of planted.cuh for the device: every primitive that the emulator knows is an instruction that nvcc takes.
#include "cuda/device.h"
#include "planted.cuh"

template __global__ void planted::product_kernel<planted::Bug::none>(const sk::bf16*, const sk::bf16*, float*, int);
template __global__ void planted::neighbours_kernel<planted::Bug::none>(const float*, float*, int);
template __global__ void planted::sum_kernel<planted::Bug::none>(const float*, float*);
template __global__ void planted::tail_kernel<planted::Bug::none>(const sk::bf16*, sk::bf16*, int);
template __global__ void planted::warpgroup_kernel<planted::Bug::none>(const sk::bf16*, const sk::bf16*, float*, int);
