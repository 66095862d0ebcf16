// Grouped 2-D convolution on a CUDA device, with the exact meaning of nn.Conv2d; the formula is in core/grouped_conv2d.h.
//
// T is float, bf16 or fp16; products and sums are in fp32. Layouts as on the CPU: x and out both NCHW or both NHWC, the weight
// [K, C/G, KH, KW] contiguous or channels_last. Pointers are aligned to their type; where x is NHWC, aligned to 16 bytes and C a
// multiple of 16 bytes, it is copied in vectors.
//
// Every launch is asynchronous on `stream` and can be captured in a graph, uses no atomics, and gives the same bits every time
// on one kind of device. A launcher returns null, or what went wrong.
//
// NOTE: groups narrower than a matrix tile are multiplied beside each other, with zeros in between: an Inf or NaN in one group may
// give NaN in a neighbouring group, as it would in a dense convolution with a masked weight.
#pragma once
#include "core/grouped_conv2d.h"
#include "cuda/fp32.h"
#include "cuda/numbers.h"
#include "cuda/stream.h"

namespace sk {

template <class T>
const char* launch_grouped_conv2d_fwd(const Conv2dShape& shape,
                                      const T* x,       // [N, C, H, W]
                                      const T* weight,  // [K, C/G, KH, KW]
                                      const T* bias,    // [K] or null
                                      bool relu,
                                      T* out,  // [N, K, OH, OW]
                                      Fp32 mode, Stream stream);

template <class T>
const char* launch_grouped_conv2d_grad_x(const Conv2dShape& shape,
                                         const T* grad_out,  // [N, K, OH, OW]
                                         const T* weight,    // [K, C/G, KH, KW]
                                         T* grad_x,          // [N, C, H, W]
                                         Fp32 mode, Stream stream);

// Floats of scratch memory that grad_weight needs. The pointers count only by their alignment.
template <class T>
int64_t grouped_conv2d_grad_weight_scratch(const Conv2dShape& shape, const T* grad_out, const T* x);
template <class T>
const char* launch_grouped_conv2d_grad_weight(const Conv2dShape& shape,
                                              const T* grad_out,  // [N, K, OH, OW]
                                              const T* x,         // [N, C, H, W]
                                              T* grad_weight,     // [K, C/G, KH, KW] contiguous
                                              float* scratch, Fp32 mode, Stream stream);

}  // namespace sk
