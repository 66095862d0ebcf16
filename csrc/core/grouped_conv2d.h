// Grouped 2-D convolution (fp32, and a plain fp64 path), with the exact meaning of nn.Conv2d.
//
//   out[n, k, oy, ox] = bias[k] + sum_{j, ky, kx} weight[k, j, ky, kx] *
//                       x[n, g*C/G + j, oy*stride_h + ky*dilation_h - pad_h, ox*stride_w + kx*dilation_w - pad_w]
//   with g = k / (K/G); pixels outside the image count as zeros. A shortcut [N, K, OH, OW], in the layout of out and never
//   out itself, is added to the sum; then relu = true applies max(0, .) and keeps NaN.
//
// Layouts: x [N, C, H, W] and out [N, K, OH, OW], both NCHW or both channels_last (NHWC in memory); weight
// [K, C/G, KH, KW] contiguous or channels_last, whatever x is; grad_weight always contiguous. Nothing is read or
// written outside these ranges.
// Every function gives the same bits for any number of threads and any way the pool cuts its ranges.
//
// Padding is either skipped or multiplied as a zero pixel, whatever the kernel finds faster: with an infinite weight
// a border output may be NaN where the other way would be finite (torch's own convolutions differ in the same way).
#pragma once
#include <vector>

#include "core/core.h"

namespace sk {

struct Conv2dShape {
  int64_t N, C, H, W;              // input images, channels, rows, columns
  int64_t K, KH, KW;               // output channels, filter rows and columns
  int64_t stride_h, stride_w;      // >= 1
  int64_t pad_h, pad_w;            // >= 0, the same on both sides
  int64_t dilation_h, dilation_w;  // >= 1
  int64_t groups;                  // divides C and K
  int64_t OH, OW;                  // floor((H + 2*pad_h - dilation_h*(KH-1) - 1) / stride_h) + 1, ...
  bool channels_last;
  bool weight_channels_last = false;  // weight [K, KH, KW, C/G] in memory, as a channels_last model has it (fp32 only)
  int64_t out_pixel = 0;  // floats between output pixels where out is some channels of a wider image (fp32 channels_last, no shortcut); 0: K
};

SK_API void grouped_conv2d_fwd(const Conv2dShape& shape,
                               const float* x,         // [N, C, H, W]
                               const float* weight,    // [K, C/G, KH, KW]
                               const float* bias,      // [K] or null
                               const float* shortcut,  // [N, K, OH, OW] or null
                               bool relu,
                               float* out,  // [N, K, OH, OW]
                               const Pool& pool);
SK_API void grouped_conv2d_grad_x(const Conv2dShape& shape,
                                  const float* grad_out,  // [N, K, OH, OW]
                                  const float* weight,    // [K, C/G, KH, KW]
                                  float* grad_x,          // [N, C, H, W]
                                  const Pool& pool);
SK_API void grouped_conv2d_grad_weight(const Conv2dShape& shape,
                                       const float* grad_out,  // [N, K, OH, OW]
                                       const float* x,         // [N, C, H, W]
                                       float* grad_weight,     // [K, C/G, KH, KW]
                                       const Pool& pool);

// The same three products in double precision: plain loops, right for everything, not fast.
SK_API void grouped_conv2d_fwd(const Conv2dShape& shape, const double* x, const double* weight, const double* bias, const double* shortcut, bool relu,
                               double* out, const Pool& pool);
SK_API void grouped_conv2d_grad_x(const Conv2dShape& shape, const double* grad_out, const double* weight, double* grad_x, const Pool& pool);
SK_API void grouped_conv2d_grad_weight(const Conv2dShape& shape, const double* grad_out, const double* x, double* grad_weight, const Pool& pool);

// out = out + shortcut, then relu: the end of a residual block behind a convolution that torch computed. Both [count].
SK_API void add_shortcut(const float* shortcut, bool relu, float* out, int64_t count, const Pool& pool);

// ---- weights packed on request (grouped_conv2d_pack.cpp), forward only, for channels_last images
// `shape` is the convolution that the pack is made for; it serves other images too. The weight lies as the shape says, and is kept as it is
// where torch will serve.
SK_API void grouped_conv2d_pack(const Conv2dShape& shape, const float* weight, bool torch_serves, std::vector<int32_t>& pack);
// False if this is no pack; else K, C, KH, KW and groups of its weight.
SK_API bool grouped_conv2d_pack_shape(const int32_t* pack, int64_t length, Conv2dShape* shape);
// The blocks [blocks, C, *vectors * lanes] of a 1x1 convolution without groups, made for this processor; null for other packs.
SK_API const float* grouped_conv2d_pointwise_blocks(const int32_t* pack, int64_t* vectors);
SK_API void grouped_conv2d_unpack(const int32_t* pack, float* weight);  // -> [K, C/G, KH, KW], contiguous
SK_API const float* grouped_conv2d_pack_natural(const int32_t* pack);   // the weight [K, C/G, KH, KW], if the pack keeps it as it is; else null
SK_API bool grouped_conv2d_pack_has_blocks(const int32_t* pack);        // that are read on this processor
// False, and nothing done, where the pack keeps the natural weight, was made for another processor, or fits no such image.
SK_API bool grouped_conv2d_packed_fwd(const Conv2dShape& shape, const float* x, const int32_t* pack, const float* bias, const float* shortcut,
                                      bool relu, float* out, const Pool& pool);

// Who should serve a product: our kernel, or torch's own convolution where that is the faster one. Decided from the
// sizes and the instruction set only, never from values.
enum class ConvProduct : int { forward = 0, grad_x = 1, grad_weight = 2 };
enum class ConvType : int { fp32 = 0, bf16 = 1, fp16 = 2 };  // of the tensors; our kernels compute in fp32
struct ConvChoice {
  bool ours;
  const char* reason;  // constant text, e.g. "stride above 1: torch is faster"
};
SK_API ConvChoice grouped_conv2d_choice(const Conv2dShape& shape, ConvProduct product, ConvType type);

}  // namespace sk
