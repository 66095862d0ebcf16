// What the glue of grouped_conv2d shares between devices and with the ops that are made of it: its arguments and the rules for sizes.
#pragma once
#include "core/grouped_conv2d.h"
#include "core/window_range.h"
#include "torch/image.h"

namespace sk::glue {

// The arguments of a convolution behind its tensors, in the order of the schema.
struct Window {
  int64_t stride_h, stride_w, pad_h, pad_w, dilation_h, dilation_w, groups;
};

// ---- checks: the same rules as the card's `check`, before any memory is touched; the card says them in words
inline void check_image(const Tensor& t, const char* message) { STD_TORCH_CHECK(here(t) && floating(t.scalar_type()) && t.dim() == 4, message); }

inline Conv2dShape shape_of(int64_t N, int64_t C, int64_t H, int64_t W, int64_t K, int64_t KH, int64_t KW, const Window& w, bool cl, bool weight_cl) {
  STD_TORCH_CHECK(within(1, {w.stride_h, w.stride_w}), "grouped_conv2d: stride");
  STD_TORCH_CHECK(within(0, {w.pad_h, w.pad_w}), "grouped_conv2d: padding");
  STD_TORCH_CHECK(within(1, {w.dilation_h, w.dilation_w}), "grouped_conv2d: dilation");
  STD_TORCH_CHECK(w.groups > 0 && K % w.groups == 0 && C % w.groups == 0, "grouped_conv2d: groups");
  STD_TORCH_CHECK(within(1, {KH, KW}) && K > 0 && C > 0, "grouped_conv2d: weight");
  const int64_t room_h = H + 2 * w.pad_h - w.dilation_h * (KH - 1) - 1, room_w = W + 2 * w.pad_w - w.dilation_w * (KW - 1) - 1;
  STD_TORCH_CHECK(room_h >= 0 && room_w >= 0, "grouped_conv2d: x");
  return {N,
          C,
          H,
          W,
          K,
          KH,
          KW,
          useful_stride(w.stride_h, H, w.pad_h),
          useful_stride(w.stride_w, W, w.pad_w),
          w.pad_h,
          w.pad_w,
          w.dilation_h,
          w.dilation_w,
          w.groups,
          room_h / w.stride_h + 1,
          room_w / w.stride_w + 1,
          cl,
          weight_cl,
          0};
}

inline bool fits_bias(const std::optional<Tensor>& bias, const Tensor& x, int64_t K) {
  return !bias || (beside(*bias, x) && bias->scalar_type() == x.scalar_type() && bias->dim() == 1 && bias->size(0) == K);
}
inline bool has_sizes(const Tensor& t, int64_t N, int64_t C, int64_t H, int64_t W) {
  return t.dim() == 4 && t.size(0) == N && t.size(1) == C && t.size(2) == H && t.size(3) == W;
}

// The forward on CPU tensors.
Tensor grouped_conv2d(const Tensor& x, const Tensor& weight, const std::optional<Tensor>& bias, const std::optional<Tensor>& shortcut,
                      int64_t stride_h, int64_t stride_w, int64_t pad_h, int64_t pad_w, int64_t dilation_h, int64_t dilation_w, int64_t groups,
                      bool relu);
Tensor grouped_conv2d_packed(const Tensor& x, const Tensor& packed, const std::optional<Tensor>& bias, const std::optional<Tensor>& shortcut,
                             int64_t out_channels, int64_t kernel_h, int64_t kernel_w, int64_t stride_h, int64_t stride_w, int64_t pad_h,
                             int64_t pad_w, int64_t dilation_h, int64_t dilation_w, int64_t groups, bool relu);

}  // namespace sk::glue
