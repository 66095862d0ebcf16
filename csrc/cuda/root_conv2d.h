// A grouped convolution and the 1x1 convolution behind it on a CUDA device, in one kernel; what they mean is in
// sparsekern/ops/root_conv2d.py. What lies between them never leaves shared memory.
//
// T is float, bf16 or fp16; sums are in fp32, and what lies between is rounded to T, as it is between two calls. Launches are
// asynchronous, can be captured, and return null or what went wrong.
#pragma once
#include "core/grouped_conv2d.h"
#include "cuda/fp32.h"
#include "cuda/numbers.h"
#include "cuda/stream.h"

namespace sk {

template <class T>
const char* launch_root_conv2d(const Conv2dShape& first,  // its K: channels between
                               const T* x,                // [N, C, H, W]
                               const T* weight1,          // [K, C/G, KH, KW]
                               const T* bias1,            // [K] or null
                               int64_t out_channels,
                               const T* weight2,  // [K2, K] contiguous
                               const T* bias2,    // [K2] or null
                               bool relu, bool last_relu,
                               T* out,  // [N, K2, OH, OW]
                               Fp32 mode, Stream stream);

}  // namespace sk
