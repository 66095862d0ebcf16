// root_conv2d on a CUDA device: a grouped convolution with the 1x1 behind it. Who serves a call is decided in sparsekern/ops/cuda.py.
#include "cuda/root_conv2d.h"
#include "torch/grouped_conv2d.h"
#include "torch/launch.h"

namespace sk::glue::cuda {

Tensor root_conv2d(const Tensor& x, const Tensor& weight1, const std::optional<Tensor>& bias1, const Tensor& weight2,
                   const std::optional<Tensor>& bias2, int64_t stride_h, int64_t stride_w, int64_t pad_h, int64_t pad_w, int64_t dilation_h,
                   int64_t dilation_w, int64_t groups, bool relu, bool last_relu, bool tf32) {
  const Window window{stride_h, stride_w, pad_h, pad_w, dilation_h, dilation_w, groups};
  check_image(x, "root_conv2d: x");
  for (const Tensor* w : {&weight1, &weight2})
    STD_TORCH_CHECK(beside(*w, x) && w->scalar_type() == x.scalar_type() && w->dim() == 4, "root_conv2d: weight");
  STD_TORCH_CHECK(groups > 0 && x.size(1) == weight1.size(1) * groups, "root_conv2d: x");
  const Conv2dShape s = shape_of(x.size(0), x.size(1), x.size(2), x.size(3), weight1.size(0), weight1.size(2), weight1.size(3), window,
                                 channels_last(x), channels_last(weight1));
  STD_TORCH_CHECK(weight2.size(1) == s.K && weight2.size(2) == 1 && weight2.size(3) == 1, "root_conv2d: weight2");
  const int64_t outs = weight2.size(0);
  STD_TORCH_CHECK(fits_bias(bias1, x, s.K) && fits_bias(bias2, x, outs), "root_conv2d: bias");
  for (int64_t size : {s.N, s.C, s.H, s.W, s.K, s.OH, s.OW, s.pad_h, s.pad_w, s.stride_h, s.stride_w, s.dilation_h, s.dilation_w, outs})
    STD_TORCH_CHECK(size <= INT32_MAX / 4, "root_conv2d: sizes above 2^29");  // kernels count them in 32 bits
  Launch launch(x);
  const Tensor xs = in_layout(x, s.channels_last), w1 = in_layout(weight1, s.weight_channels_last), w2 = in_layout(weight2, false);
  const Tensor out = new_image(x, s.N, outs, s.OH, s.OW, s.channels_last);
  const std::optional<Tensor> b1 = as_contiguous(bias1), b2 = as_contiguous(bias2);
  by_type(x.scalar_type(), [&](auto type) {
    using T = decltype(type);
    launch.done(launch_root_conv2d<T>(s, launch.input<T>(xs, "x"), launch.input<T>(w1, "weight1"), launch.input<T>(b1, "bias1"), outs,
                                      launch.input<T>(w2, "weight2"), launch.input<T>(b2, "bias2"), relu, last_relu, launch.output<T>(out, "out"),
                                      fp32_mode(tf32), launch.stream()));
  });
  return out;
}

}  // namespace sk::glue::cuda

STABLE_TORCH_LIBRARY_FRAGMENT(SK_LIBRARY, m) {
  m.def(
      "root_conv2d(Tensor x, Tensor weight1, Tensor? bias1, Tensor weight2, Tensor? bias2, int stride_h, int stride_w, int pad_h, int pad_w, "
      "int dilation_h, int dilation_w, int groups, bool relu, bool last_relu, bool tf32) -> Tensor");
}
STABLE_TORCH_LIBRARY_IMPL(SK_LIBRARY, SK_DEVICE_KEY, m) { m.impl("root_conv2d", TORCH_BOX(&sk::glue::cuda::root_conv2d)); }
