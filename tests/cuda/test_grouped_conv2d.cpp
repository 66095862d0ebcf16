// grouped_conv2d on the emulated device against plain double loops: every product, type and layout, odd sizes.
#include <string>
#include <vector>

#include "check.h"
#include "cuda/grouped_conv2d.h"

namespace {

using check::Sum;
using sk::bf16;
using sk::Conv2dShape;
using sk::fp16;
using sk::Fp32;

int cases = 0;

struct Size {  // of a test case
  int N, C, H, W, K, KH, KW, stride, pad, dilation, groups;
};
Conv2dShape shape_of(const Size& s, bool channels_last, bool weight_channels_last) {
  const auto out = [&](int size, int kernel) { return (size + 2 * s.pad - s.dilation * (kernel - 1) - 1) / s.stride + 1; };
  return {s.N,   s.C,   s.H,        s.W,        s.K,      s.KH,           s.KW,           s.stride,      s.stride,
          s.pad, s.pad, s.dilation, s.dilation, s.groups, out(s.H, s.KH), out(s.W, s.KW), channels_last, weight_channels_last};
}

size_t at(bool channels_last, int64_t channels, int64_t h, int64_t w, int64_t n, int64_t c, int64_t y, int64_t x) {
  return size_t(channels_last ? ((n * h + y) * w + x) * channels + c : ((n * channels + c) * h + y) * w + x);
}

// Calls f(index in x, in weight, in out) for every product of the convolution.
template <class F>
void each_product(const Conv2dShape& s, const F& f) {
  const int64_t in_group = s.C / s.groups, out_group = s.K / s.groups;
  for (int64_t n = 0; n < s.N; ++n)
    for (int64_t k = 0; k < s.K; ++k)
      for (int64_t oy = 0; oy < s.OH; ++oy)
        for (int64_t ox = 0; ox < s.OW; ++ox)
          for (int64_t j = 0; j < in_group; ++j)
            for (int64_t ky = 0; ky < s.KH; ++ky)
              for (int64_t kx = 0; kx < s.KW; ++kx) {
                const int64_t y = oy * s.stride_h + ky * s.dilation_h - s.pad_h, x = ox * s.stride_w + kx * s.dilation_w - s.pad_w;
                if (y < 0 || y >= s.H || x < 0 || x >= s.W) continue;
                const size_t w = s.weight_channels_last ? ((k * s.KH + ky) * s.KW + kx) * in_group + j : ((k * in_group + j) * s.KH + ky) * s.KW + kx;
                f(at(s.channels_last, s.C, s.H, s.W, n, k / out_group * in_group + j, y, x), w, at(s.channels_last, s.K, s.OH, s.OW, n, k, oy, ox));
              }
}

template <class T>
void run(const Size& size, bool channels_last, Fp32 mode, const char* way) {
  ++cases;
  const Conv2dShape s = shape_of(size, channels_last, cases % 3 == 0);
  const bool relu = cases % 2 == 0, with_bias = cases % 4 < 2;
  const size_t offset = cases % 5 == 0 ? 1 : 0;  // tensors that begin anywhere
  const std::string name =
      emu::format("%s %s N%d C%d %dx%d K%d k%dx%d s%d p%d d%d g%d offset %zu, %s", check::type_name<T>(mode), channels_last ? "nhwc" : "nchw", size.N,
                  size.C, size.H, size.W, size.K, size.KH, size.KW, size.stride, size.pad, size.dilation, size.groups, offset, way);
  emu::Buffer<T> x("x", s.N * s.C * s.H * s.W, emu::Role::input, offset),
      weight("weight", s.K * (s.C / s.groups) * s.KH * s.KW, emu::Role::input, offset);
  emu::Buffer<T> bias("bias", s.K, emu::Role::input), grad_out("grad_out", s.N * s.K * s.OH * s.OW, emu::Role::input, offset);
  emu::Buffer<T> out("out", grad_out.size(), emu::Role::output, offset), grad_x("grad_x", x.size(), emu::Role::output, offset);
  check::fill(x, 1), check::fill(weight, 2), check::fill(bias, 3), check::fill(grad_out, 4);
  emu::Buffer<T> grad_weight("grad_weight", weight.size(), emu::Role::output, offset);
  std::vector<Sum> wanted_out(out.size()), wanted_grad_x(x.size()), wanted_grad_weight(weight.size());
  for (size_t i = 0; with_bias && i < out.size(); ++i) wanted_out[i].add(sk::to_float(bias[channels_last ? i % s.K : i / (s.OH * s.OW) % s.K]), 1);
  each_product(s, [&](size_t ix, size_t iw, size_t io) {
    const double w = sk::to_float(weight[iw]);
    wanted_out[io].add(sk::to_float(x[ix]), w);
    wanted_grad_x[ix].add(sk::to_float(grad_out[io]), w);
    const size_t taps = s.KH * s.KW, in_group = s.C / s.groups;  // grad_weight is contiguous, however the weight lies
    const size_t of_grad = s.weight_channels_last ? iw / (in_group * taps) * in_group * taps + iw % in_group * taps + iw / in_group % taps : iw;
    wanted_grad_weight[of_grad].add(sk::to_float(grad_out[io]), sk::to_float(x[ix]));
  });
  for (Sum& sum : wanted_out)
    if (relu && sum.value < 0) sum.value = 0;
  const auto allowed = [&](const Sum& sum) { return check::allowed_on_tensor_cores<T>(sum, mode); };
  try {
    const char* error =
        sk::launch_grouped_conv2d_fwd<T>(s, x.data(), weight.data(), with_bias ? bias.data() : nullptr, relu, out.data(), mode, nullptr);
    if (error) return check::fail("%s: %s", name.c_str(), error);
    check::compare(name + ", forward", wanted_out, out, allowed);
    error = sk::launch_grouped_conv2d_grad_x<T>(s, grad_out.data(), weight.data(), grad_x.data(), mode, nullptr);
    if (error) return check::fail("%s: %s", name.c_str(), error);
    check::compare(name + ", grad_x", wanted_grad_x, grad_x, allowed);
    if (emu::options.shared_limit < 24 * 1024) return;  // no device has so little; above it only drives the forward kernel into its corners
    emu::Buffer<float> scratch("scratch", sk::grouped_conv2d_grad_weight_scratch<T>(s, grad_out.data(), x.data()), emu::Role::output);
    error = sk::launch_grouped_conv2d_grad_weight<T>(s, grad_out.data(), x.data(), grad_weight.data(), scratch.data(), mode, nullptr);
    if (error) return check::fail("%s: %s", name.c_str(), error);
    check::compare(name + ", grad_weight", wanted_grad_weight, grad_weight, allowed);
  } catch (const emu::Fault& fault) {
    check::fail("%s: %s", name.c_str(), fault.what());
  }
}

void run_all_types(const Size& size, const char* way) {
  for (bool channels_last : {true, false}) {
    run<bf16>(size, channels_last, Fp32::strict, way);
    run<fp16>(size, channels_last, Fp32::strict, way);
    run<float>(size, channels_last, Fp32::strict, way);
    run<float>(size, channels_last, Fp32::tf32, way);
  }
}

// N C H W K KH KW stride pad dilation groups
const Size kSizes[] = {
    {1, 8, 7, 9, 8, 3, 3, 1, 1, 1, 1},    {2, 16, 6, 5, 16, 3, 3, 1, 1, 1, 4}, {1, 24, 9, 17, 48, 5, 5, 1, 2, 1, 8},
    {3, 12, 5, 5, 24, 3, 3, 1, 1, 1, 4},  {1, 20, 8, 8, 20, 3, 3, 1, 1, 1, 1}, {2, 21, 7, 6, 35, 3, 3, 1, 0, 1, 7},
    {1, 64, 6, 7, 64, 3, 3, 1, 1, 1, 64}, {1, 32, 9, 9, 64, 3, 3, 2, 1, 1, 8}, {2, 6, 11, 10, 9, 3, 2, 2, 1, 1, 3},
    {1, 8, 12, 12, 16, 3, 3, 1, 2, 2, 2}, {1, 8, 13, 11, 8, 3, 3, 3, 2, 2, 2}, {5, 16, 1, 1, 16, 1, 1, 1, 0, 1, 2},
    {2, 40, 5, 6, 72, 1, 1, 1, 0, 1, 8},  {1, 16, 7, 7, 16, 1, 1, 2, 0, 1, 2}, {1, 3, 23, 19, 5, 11, 11, 4, 2, 1, 1},
    {130, 4, 2, 2, 4, 1, 1, 1, 0, 1, 1},  {1, 96, 5, 5, 80, 3, 3, 1, 1, 1, 1}, {1, 4, 4, 4, 2, 3, 3, 1, 3, 1, 2},
    {2, 1, 5, 40, 1, 3, 3, 1, 1, 1, 1},   {1, 10, 6, 6, 10, 4, 3, 2, 3, 1, 5},
};

}  // namespace

int main() {
  for (const Size& size : kSizes) run_all_types(size, "in order");
  const Size few[] = {{1, 24, 9, 17, 48, 5, 5, 1, 2, 1, 8}, {2, 12, 9, 9, 20, 3, 3, 2, 1, 1, 4}};
  check::in_every_way([&](const char* way) {
    for (const Size& size : few) run<bf16>(size, true, Fp32::strict, way), run<float>(size, false, Fp32::tf32, way);
  });
  emu::options.hardware_sums = true;
  for (const Size& size : few) run_all_types(size, "sums as a tensor core makes them");
  emu::options.hardware_sums = false;
  // little shared memory: several rounds of channels, and weights that do not stay
  for (size_t limit : {48 * 1024, 24 * 1024, 12 * 1024}) {
    emu::options.shared_limit = limit;
    run_all_types({1, 96, 6, 5, 40, 3, 3, 1, 1, 1, 1}, "little shared memory");
  }
  return check::result("grouped_conv2d", cases);
}
