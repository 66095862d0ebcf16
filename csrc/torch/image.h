// Images [N, C, H, W] in one of two layouts. channels_last stays so, everything else comes out contiguous.
// Strides decide (sizes of 1 make both true).
#pragma once
#include "torch/glue.h"

namespace sk::glue {

inline bool channels_last(const Tensor& t) {
  const int64_t C = t.size(1), H = t.size(2), W = t.size(3);
  return C * H * W > 1 && t.stride(1) == 1 && t.stride(3) == C && t.stride(2) == C * W && t.stride(0) == C * W * H;
}
inline Tensor new_image(const Tensor& like, int64_t N, int64_t C, int64_t H, int64_t W, bool channels_last) {
  const int64_t sizes[] = {N, C, H, W}, nchw[] = {C * H * W, H * W, W, 1}, nhwc[] = {C * H * W, 1, C * W, C};
  return empty_strided(like, like.scalar_type(), sizes, channels_last ? nhwc : nchw, 4);
}
// `t` in one of the two layouts, copied only if it is in the other
inline Tensor in_layout(const Tensor& t, bool wanted_channels_last) {
  if (channels_last(t) ? wanted_channels_last : !wanted_channels_last && t.is_contiguous()) return t;
  Tensor copy = new_image(t, t.size(0), t.size(1), t.size(2), t.size(3), wanted_channels_last);
  return torch::stable::copy_(copy, t);
}
inline Tensor in_own_layout(const Tensor& t) { return channels_last(t) ? t : in_layout(t, false); }

}  // namespace sk::glue
