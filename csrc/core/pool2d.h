// Max and average pooling of channels_last images (fp32), with the exact meaning of nn.MaxPool2d and nn.AvgPool2d.
//
//   out[n, c, oy, ox] = max, or sum / divisor, of x[n, c, oy*stride_h - pad_h + ky, ox*stride_w - pad_w + kx] over the
//   taps (ky, kx) inside the image
//
// The divisor is the number of those taps, or (count_padding) of the taps inside the image and its padding. A window
// that hangs over the padding (ceil_mode) is cut there. A NaN in the window makes the maximum NaN.
// The results have the same bits for any number of threads.
#pragma once
#include "core/core.h"

namespace sk {

struct Pool2dShape {
  int64_t N, C, H, W;          // input images, channels, rows, columns
  int64_t KH, KW;              // window
  int64_t stride_h, stride_w;  // >= 1
  int64_t pad_h, pad_w;        // 0 .. K/2
  int64_t OH, OW;              // every window begins inside the image or its first padding
};
enum class Pooling : int { max = 0, average = 1, average_counting_padding = 2 };

SK_API void pool2d_fwd(const Pool2dShape& shape, Pooling pooling,
                       const float* x,  // [N, H, W, C] in memory
                       float* out,      // [N, OH, OW, C] in memory
                       const Pool& pool);

// ---- for pool2d.cpp and pool2d.isa.cpp
struct Pool2dKernels {
  // one output pixel: the maximum, or the sum over `divisor`, of the pixels at `taps`, each [channels]
  void (*max)(const float* const* taps, int64_t count, int64_t channels, float* out);
  void (*average)(const float* const* taps, int64_t count, int64_t channels, float divisor, float* out);
};
SK_DECLARE_KERNELS(Pool2dKernels, pool2d_kernels)

}  // namespace sk
