// grouped_conv2d: the three products, who serves them, and the plain double-precision path.
#include "core/grouped_conv2d.h"

#include "core/grouped_conv2d_impl.h"

namespace sk {
namespace {

void forward(const ConvJob& job, const float* x, const float* weight, const float* bias, const float* shortcut, bool relu, float* out,
             const Pool& pool) {
  (job.channels_last ? conv_nhwc : conv_nchw)(job, x, weight, bias, shortcut, relu, out, pool);
}

// Calls f(offset into the image plane, tap) for each tap of output pixel (oy, ox) that falls on a pixel.
template <class F>
void for_each_tap(const Conv2dShape& s, int64_t oy, int64_t ox, const F& f) {
  for (int64_t ky = 0; ky < s.KH; ++ky) {
    const int64_t y = oy * s.stride_h + ky * s.dilation_h - s.pad_h;
    if (y < 0 || y >= s.H) continue;
    for (int64_t kx = 0; kx < s.KW; ++kx) {
      const int64_t x = ox * s.stride_w + kx * s.dilation_w - s.pad_w;
      if (x >= 0 && x < s.W) f(y * s.W + x, ky * s.KW + kx);
    }
  }
}

// Offsets of channels and pixels in either layout.
struct Strides {
  int64_t channel, pixel;
  Strides(bool channels_last, int64_t channels, int64_t pixels) : channel(channels_last ? 1 : pixels), pixel(channels_last ? channels : 1) {}
};

}  // namespace

void grouped_conv2d_fwd(const Conv2dShape& shape, const float* x, const float* weight, const float* bias, const float* shortcut, bool relu,
                        float* out, const Pool& pool) {
  forward(ConvJob{shape}, x, weight, bias, shortcut, relu, out, pool);
}

void grouped_conv2d_grad_x(const Conv2dShape& s, const float* grad_out, const float* weight, float* grad_x, const Pool& pool) {
  if (s.N * s.C * s.H * s.W == 0) return;
  const ConvJob job = grad_x_job(s);
  Scratch flipped(size_t(s.C * (s.K / s.groups) * s.KH * s.KW) * sizeof(float));
  flip_weight(s, weight, flipped.as<float>(), pool);
  forward(job, grad_out, flipped.as<float>(), nullptr, nullptr, false, grad_x, pool);
}

void grouped_conv2d_fwd(const Conv2dShape& s, const double* x, const double* weight, const double* bias, const double* shortcut, bool relu,
                        double* out, const Pool& pool) {
  const int64_t in_group = s.C / s.groups, out_group = s.K / s.groups, taps = s.KH * s.KW;
  const Strides xs(s.channels_last, s.C, s.H * s.W), os(s.channels_last, s.K, s.OH * s.OW);
  parallel(pool, s.N * s.K, 1, [&](int64_t begin, int64_t end) {
    for (int64_t i = begin; i < end; ++i) {
      const int64_t n = i / s.K, k = i % s.K;
      const double* image = x + n * s.C * s.H * s.W + k / out_group * in_group * xs.channel;
      const double* w = weight + k * in_group * taps;
      const int64_t first = n * s.K * s.OH * s.OW + k * os.channel;
      for (int64_t oy = 0; oy < s.OH; ++oy)
        for (int64_t ox = 0; ox < s.OW; ++ox) {
          double sum = bias ? bias[k] : 0.0;
          for_each_tap(s, oy, ox, [&](int64_t pixel, int64_t tap) {
            for (int64_t j = 0; j < in_group; ++j) sum += image[j * xs.channel + pixel * xs.pixel] * w[j * taps + tap];
          });
          const int64_t at = first + (oy * s.OW + ox) * os.pixel;
          if (shortcut) sum += shortcut[at];
          out[at] = relu && sum < 0.0 ? 0.0 : sum;
        }
    }
  });
}

void grouped_conv2d_grad_x(const Conv2dShape& s, const double* grad_out, const double* weight, double* grad_x, const Pool& pool) {
  const int64_t in_group = s.C / s.groups, out_group = s.K / s.groups, taps = s.KH * s.KW;
  const Strides xs(s.channels_last, s.C, s.H * s.W), os(s.channels_last, s.K, s.OH * s.OW);
  parallel(pool, s.N * s.C, 1, [&](int64_t begin, int64_t end) {
    for (int64_t i = begin; i < end; ++i) {
      const int64_t n = i / s.C, c = i % s.C, g = c / in_group;
      double* plane = grad_x + n * s.C * s.H * s.W + c * xs.channel;
      const double* grad = grad_out + n * s.K * s.OH * s.OW + g * out_group * os.channel;
      const double* w = weight + (g * out_group * in_group + c % in_group) * taps;
      for (int64_t p = 0; p < s.H * s.W; ++p) plane[p * xs.pixel] = 0.0;
      for (int64_t oy = 0; oy < s.OH; ++oy)
        for (int64_t ox = 0; ox < s.OW; ++ox)
          for_each_tap(s, oy, ox, [&](int64_t pixel, int64_t tap) {
            for (int64_t k = 0; k < out_group; ++k)
              plane[pixel * xs.pixel] += grad[k * os.channel + (oy * s.OW + ox) * os.pixel] * w[k * in_group * taps + tap];
          });
    }
  });
}

void grouped_conv2d_grad_weight(const Conv2dShape& s, const double* grad_out, const double* x, double* grad_weight, const Pool& pool) {
  const int64_t in_group = s.C / s.groups, out_group = s.K / s.groups, taps = s.KH * s.KW;
  const Strides xs(s.channels_last, s.C, s.H * s.W), os(s.channels_last, s.K, s.OH * s.OW);
  parallel(pool, s.K, 1, [&](int64_t begin, int64_t end) {
    for (int64_t k = begin; k < end; ++k) {
      double* w = grad_weight + k * in_group * taps;
      for (int64_t i = 0; i < in_group * taps; ++i) w[i] = 0.0;
      for (int64_t n = 0; n < s.N; ++n) {
        const double* image = x + n * s.C * s.H * s.W + k / out_group * in_group * xs.channel;
        const double* grad = grad_out + n * s.K * s.OH * s.OW + k * os.channel;
        for (int64_t oy = 0; oy < s.OH; ++oy)
          for (int64_t ox = 0; ox < s.OW; ++ox)
            for_each_tap(s, oy, ox, [&](int64_t pixel, int64_t tap) {
              const double g = grad[(oy * s.OW + ox) * os.pixel];
              for (int64_t j = 0; j < in_group; ++j) w[j * taps + tap] += g * image[j * xs.channel + pixel * xs.pixel];
            });
      }
    }
  });
}

void add_shortcut(const float* shortcut, bool relu, float* out, int64_t count, const Pool& pool) {
  const ConvPlaneKernels& kernels = SK_PICK_KERNELS(conv_plane_kernels);
  parallel(pool, count, 1 << 15, [&](int64_t begin, int64_t end) { kernels.add_shortcut(shortcut + begin, relu, out + begin, end - begin); });
}

}  // namespace sk
