// Many products of matrices at once on a CUDA device, of equal or of ragged height; what they mean is in sparsekern/ops/grouped_mm.py.
//
//   out[r] = a[r] @ b[g] for the rows r of group g      a [T, K]   b [G, K, N]   out [T, N]
//
// T is float, bf16 or fp16; sums are in fp32, in one order, without atomics. Everything is contiguous. Ends of groups that are out of
// order or out of range make wrong results, and touch no memory that is not the tensors'. Launchers are asynchronous, can be captured,
// and return null or what went wrong.
#pragma once
#include <cstdint>

#include "cuda/fp32.h"
#include "cuda/numbers.h"
#include "cuda/stream.h"

namespace sk {

struct GroupedMmShape {
  int64_t T, G, K, N;      // rows of all groups; groups; inner size and columns of the forward product
  const int32_t* offsets;  // [G]: where each group's rows end; null: all are T / G high
};

template <class T>
const char* launch_grouped_mm(const GroupedMmShape& shape, const T* a, const T* b, T* out, Fp32 mode, Stream stream);
template <class T>
const char* launch_grouped_mm_grad_a(const GroupedMmShape& shape, const T* grad_out, const T* b, T* grad_a, Fp32 mode, Stream stream);
template <class T>
const char* launch_grouped_mm_grad_b(const GroupedMmShape& shape, const T* grad_out, const T* a, T* grad_b, Fp32 mode, Stream stream);

}  // namespace sk
