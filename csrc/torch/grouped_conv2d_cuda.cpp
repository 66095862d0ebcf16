// grouped_conv2d on a CUDA device: check, allocate, launch. Who serves a call is decided in sparsekern/ops/cuda.py.
#include "cuda/grouped_conv2d.h"
#include "torch/grouped_conv2d.h"
#include "torch/launch.h"

namespace sk::glue::cuda {
namespace {

// Kernels count channels, rows, columns and images in 32 bits.
void check_sizes(const Conv2dShape& s) {
  for (int64_t size : {s.N, s.C, s.H, s.W, s.K, s.OH, s.OW, s.pad_h, s.pad_w, s.stride_h, s.stride_w, s.dilation_h, s.dilation_w})
    STD_TORCH_CHECK(size <= INT32_MAX / 4, "grouped_conv2d: sizes above 2^29");
}

}  // namespace

Tensor grouped_conv2d(const Tensor& x, const Tensor& weight, const std::optional<Tensor>& bias, int64_t stride_h, int64_t stride_w, int64_t pad_h,
                      int64_t pad_w, int64_t dilation_h, int64_t dilation_w, int64_t groups, bool relu, bool tf32) {
  const Window window{stride_h, stride_w, pad_h, pad_w, dilation_h, dilation_w, groups};
  check_image(x, "grouped_conv2d: x");
  STD_TORCH_CHECK(beside(weight, x) && weight.scalar_type() == x.scalar_type() && weight.dim() == 4, "grouped_conv2d: weight");
  STD_TORCH_CHECK(groups > 0 && x.size(1) == weight.size(1) * groups, "grouped_conv2d: x");
  const Conv2dShape s = shape_of(x.size(0), x.size(1), x.size(2), x.size(3), weight.size(0), weight.size(2), weight.size(3), window, channels_last(x),
                                 channels_last(weight));
  STD_TORCH_CHECK(fits_bias(bias, x, s.K), "grouped_conv2d: bias");
  check_sizes(s);
  Launch launch(x);
  const Tensor xs = in_layout(x, s.channels_last), w = in_layout(weight, s.weight_channels_last);
  const Tensor out = new_image(x, s.N, s.K, s.OH, s.OW, s.channels_last);
  const std::optional<Tensor> b = as_contiguous(bias);
  by_type(x.scalar_type(), [&](auto type) {
    using T = decltype(type);
    launch.done(launch_grouped_conv2d_fwd<T>(s, launch.input<T>(xs, "x"), launch.input<T>(w, "weight"), launch.input<T>(b, "bias"), relu,
                                             launch.output<T>(out, "out"), fp32_mode(tf32), launch.stream()));
  });
  return out;
}

Tensor grouped_conv2d_grad_x(const Tensor& grad_out, const Tensor& weight, int64_t height, int64_t width, int64_t stride_h, int64_t stride_w,
                             int64_t pad_h, int64_t pad_w, int64_t dilation_h, int64_t dilation_w, int64_t groups, bool tf32) {
  const Window window{stride_h, stride_w, pad_h, pad_w, dilation_h, dilation_w, groups};
  check_image(grad_out, "grouped_conv2d: grad_out");
  STD_TORCH_CHECK(beside(weight, grad_out) && weight.scalar_type() == grad_out.scalar_type() && weight.dim() == 4 && groups > 0,
                  "grouped_conv2d: weight");
  const Conv2dShape s = shape_of(grad_out.size(0), weight.size(1) * groups, height, width, weight.size(0), weight.size(2), weight.size(3), window,
                                 channels_last(grad_out), channels_last(weight));
  STD_TORCH_CHECK(has_sizes(grad_out, s.N, s.K, s.OH, s.OW), "grouped_conv2d: grad_out");
  check_sizes(s);
  Launch launch(grad_out);
  const Tensor g = in_layout(grad_out, s.channels_last), w = in_layout(weight, s.weight_channels_last);
  const Tensor grad_x = new_image(grad_out, s.N, s.C, s.H, s.W, s.channels_last);
  by_type(grad_out.scalar_type(), [&](auto type) {
    using T = decltype(type);
    launch.done(launch_grouped_conv2d_grad_x<T>(s, launch.input<T>(g, "grad_out"), launch.input<T>(w, "weight"), launch.output<T>(grad_x, "grad_x"),
                                                fp32_mode(tf32), launch.stream()));
  });
  return grad_x;
}

Tensor grouped_conv2d_grad_weight(const Tensor& grad_out, const Tensor& x, int64_t kernel_h, int64_t kernel_w, int64_t stride_h, int64_t stride_w,
                                  int64_t pad_h, int64_t pad_w, int64_t dilation_h, int64_t dilation_w, int64_t groups, bool tf32) {
  const Window window{stride_h, stride_w, pad_h, pad_w, dilation_h, dilation_w, groups};
  check_image(x, "grouped_conv2d: x");
  STD_TORCH_CHECK(beside(grad_out, x) && grad_out.scalar_type() == x.scalar_type() && grad_out.dim() == 4, "grouped_conv2d: grad_out");
  const Conv2dShape s = shape_of(x.size(0), x.size(1), x.size(2), x.size(3), grad_out.size(1), kernel_h, kernel_w, window, channels_last(x), false);
  STD_TORCH_CHECK(has_sizes(grad_out, s.N, s.K, s.OH, s.OW), "grouped_conv2d: grad_out");
  check_sizes(s);
  Launch launch(x);
  Tensor grad_weight = new_tensor(x, std::array<int64_t, 4>{s.K, s.C / groups, kernel_h, kernel_w});
  if (!s.N) return torch::stable::zero_(grad_weight);
  const Tensor g = in_layout(grad_out, s.channels_last), xs = in_layout(x, s.channels_last);
  by_type(x.scalar_type(), [&](auto type) {
    using T = decltype(type);
    const T *from = launch.input<T>(g, "grad_out"), *images = launch.input<T>(xs, "x");
    const int64_t size = grouped_conv2d_grad_weight_scratch<T>(s, from, images), step = 1;
    const Tensor scratch = empty_strided(x, ScalarType::Float, &size, &step, 1);
    launch.done(launch_grouped_conv2d_grad_weight<T>(s, from, images, launch.output<T>(grad_weight, "grad_weight"),
                                                     launch.output<float>(scratch, "scratch"), fp32_mode(tf32), launch.stream()));
  });
  return grad_weight;
}

}  // namespace sk::glue::cuda

#define SK_WINDOW "int stride_h, int stride_w, int pad_h, int pad_w, int dilation_h, int dilation_w, int groups"
STABLE_TORCH_LIBRARY_FRAGMENT(SK_LIBRARY, m) {
  m.def("grouped_conv2d(Tensor x, Tensor weight, Tensor? bias, " SK_WINDOW ", bool relu, bool tf32) -> Tensor");
  m.def("grouped_conv2d_grad_x(Tensor grad_out, Tensor weight, int height, int width, " SK_WINDOW ", bool tf32) -> Tensor");
  m.def("grouped_conv2d_grad_weight(Tensor grad_out, Tensor x, int kernel_h, int kernel_w, " SK_WINDOW ", bool tf32) -> Tensor");
}
STABLE_TORCH_LIBRARY_IMPL(SK_LIBRARY, SK_DEVICE_KEY, m) {
  m.impl("grouped_conv2d", TORCH_BOX(&sk::glue::cuda::grouped_conv2d));
  m.impl("grouped_conv2d_grad_x", TORCH_BOX(&sk::glue::cuda::grouped_conv2d_grad_x));
  m.impl("grouped_conv2d_grad_weight", TORCH_BOX(&sk::glue::cuda::grouped_conv2d_grad_weight));
}
