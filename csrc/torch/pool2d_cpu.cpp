// pool2d on the CPU: check, allocate, hand over to core/pool2d.cpp, or to torch's pooling in other types than float32.
#include <vector>

#include "core/pool2d.h"
#include "core/window_range.h"
#include "torch/glue.h"
#include "torch/image.h"

namespace sk::glue {
namespace {

using Ints = std::vector<int64_t>;

// torch's rule: with ceil_mode the last window may hang over, but begins inside the image or the padding before it
int64_t pooled(int64_t size, int64_t kernel, int64_t stride, int64_t pad, bool ceil_mode) {
  const int64_t out = (size + 2 * pad - kernel + (ceil_mode ? stride - 1 : 0)) / stride + 1;
  return ceil_mode && (out - 1) * stride >= size + pad ? out - 1 : out;
}

Tensor by_torch(const Tensor& x, const Pool2dShape& s, bool ceil_mode, Pooling pooling) {
  const Ints kernel{s.KH, s.KW}, stride{s.stride_h, s.stride_w}, pad{s.pad_h, s.pad_w};
  if (pooling == Pooling::max) return call<6>("aten::max_pool2d", "", x, kernel, stride, pad, Ints{1, 1}, ceil_mode);
  return call<7>("aten::avg_pool2d", "", x, kernel, stride, pad, ceil_mode, pooling == Pooling::average_counting_padding, std::optional<int64_t>());
}

}  // namespace

Tensor pool2d(const Tensor& x, int64_t kernel_h, int64_t kernel_w, int64_t stride_h, int64_t stride_w, int64_t pad_h, int64_t pad_w, bool ceil_mode,
              int64_t pooling) {
  STD_TORCH_CHECK(x.is_cpu() && floating(x.scalar_type()) && x.dim() == 4, "pool2d: x");
  STD_TORCH_CHECK(within(1, {kernel_h, kernel_w}), "pool2d: kernel_size");
  STD_TORCH_CHECK(within(1, {stride_h, stride_w}), "pool2d: stride");
  STD_TORCH_CHECK(within(0, {pad_h, pad_w}) && 2 * pad_h <= kernel_h && 2 * pad_w <= kernel_w, "pool2d: padding");
  STD_TORCH_CHECK(pooling >= 0 && pooling <= 2, "pool2d: pooling");
  const int64_t N = x.size(0), C = x.size(1), H = x.size(2), W = x.size(3);
  STD_TORCH_CHECK(C > 0 && H > 0 && W > 0 && H + 2 * pad_h >= kernel_h && W + 2 * pad_w >= kernel_w, "pool2d: x");
  const Pool2dShape s{N,
                      C,
                      H,
                      W,
                      kernel_h,
                      kernel_w,
                      stride_h,
                      stride_w,
                      pad_h,
                      pad_w,
                      pooled(H, kernel_h, stride_h, pad_h, ceil_mode),
                      pooled(W, kernel_w, stride_w, pad_w, ceil_mode)};
  const bool cl = channels_last(x), single = x.scalar_type() == ScalarType::Float;
  // torch pools planes one number at a time: two copies are cheaper, unless channels are too few for vectors
  if (x.scalar_type() == ScalarType::Double || use_dense(!single || (!cl && C < 8)))
    return in_layout(by_torch(x, s, ceil_mode, Pooling(pooling)), cl);
  const Pool threads = pool();
  const Tensor xs = in_layout(x, true), out = new_image(x, N, C, s.OH, s.OW, true);
  const FloatInput xf(xs, xs.numel(), threads);
  const FloatOutput y(out, threads);
  pool2d_fwd(s, Pooling(pooling), xf.data(), y.data(), threads);
  y.finish();
  return in_layout(out, cl);
}

}  // namespace sk::glue

STABLE_TORCH_LIBRARY_IMPL(sparsekern, CPU, m) { m.impl("pool2d", SK_BOX(&sk::glue::pool2d)); }
