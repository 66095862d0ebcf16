// What torch's own convolutions cannot be handed: windows (core/conv_window.h), and types that they have no kernels for on this processor.
#pragma once
#include "core/conv_window.h"
#include "torch/glue.h"

namespace sk::glue {

inline bool torch_says(const char* op) {
  std::array<StableIValue, 1> stack{};
  return aoti_torch_call_dispatcher(op, "", stack.data()) == AOTI_TORCH_SUCCESS && torch::stable::detail::to<bool>(stack[0]);
}

// Without oneDNN's kernels (AVX-512 for bfloat16, its 16-bit extension for float16) torch unfolds images and adds the taps' gradients up in
// 16 bits: the inputs' gradient is further off than by its rounding.
inline bool torch_has_convolutions(ConvType type) {
  static const bool bf16 = torch_says("mkldnn::_is_mkldnn_bf16_supported"), fp16 = torch_says("mkldnn::_is_mkldnn_fp16_supported");
  return type == ConvType::fp32 || (type == ConvType::bf16 ? bf16 : fp16);
}

// null, or why not; `channels` of x
inline const char* torch_cannot(ConvType type, bool grad_weight, int64_t channels, const int64_t (&size)[2], const int64_t (&outputs)[2],
                                const int64_t (&taps)[2], const int64_t (&stride)[2], const int64_t (&pad)[2], const int64_t (&dilation)[2]) {
  if (!torch_has_convolutions(type)) return "torch sums 16-bit convolutions in 16 bits on this processor";
  if (grad_weight && torch_misreads_passed_pixels(channels, taps, stride, pad)) return "torch's gradient of few strided channels is wrong";
  if (type == ConvType::fp32)
    return torch_survives(size, outputs, taps, stride, pad, dilation) ? nullptr : "torch's dilated convolutions fail in this window";
  return torch_can_run(size, outputs, taps, stride, pad, dilation) ? nullptr : "torch's 16-bit convolutions fail in this window";
}

inline ConvType conv_type(ScalarType type) {
  return type == ScalarType::BFloat16 ? ConvType::bf16 : type == ScalarType::Half ? ConvType::fp16 : ConvType::fp32;
}

}  // namespace sk::glue
