// grouped_conv2d: the three products, who serves them, and the plain double-precision path.
#include "core/grouped_conv2d.h"

#include <algorithm>

#include "core/grouped_conv2d_bf16.h"
#include "core/grouped_conv2d_impl.h"

namespace sk {
namespace {

void forward(const ConvJob& job, const float* x, const float* weight, const float* bias, const float* shortcut, bool relu, float* out,
             const Pool& pool) {
  (job.channels_last ? conv_nhwc : conv_nchw)(job, x, weight, bias, shortcut, relu, out, pool);
}

// [K, C/G, KH, KW] -> contiguous [C, K/G, KH, KW], taps reversed: the weight of grad_x seen as a forward convolution
void flip_weight(const Conv2dShape& s, const float* weight, float* flipped, const Pool& pool) {
  const int64_t in_group = s.C / s.groups, out_group = s.K / s.groups, taps = s.KH * s.KW;
  const int64_t channel = s.weight_channels_last ? 1 : taps, tap = s.weight_channels_last ? in_group : 1;
  parallel(pool, s.C, 1 + 65536 / (out_group * taps + 1), [&](int64_t begin, int64_t end) {
    for (int64_t c = begin; c < end; ++c) {
      const int64_t g = c / in_group, j = c % in_group;
      const float* from = weight + g * out_group * in_group * taps + j * channel;
      float* to = flipped + c * out_group * taps;
      for (int64_t k = 0; k < out_group; ++k, from += in_group * taps, to += taps)
        for (int64_t t = 0; t < taps; ++t) to[t] = from[(taps - 1 - t) * tap];
    }
  });
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
  ConvJob job{s};  // stride s becomes s - 1 zeros between the pixels of grad_out
  job.C = s.K, job.H = s.OH, job.W = s.OW;
  job.K = s.C, job.OH = s.H, job.OW = s.W;
  job.weight_channels_last = false;
  job.stride_h = job.stride_w = 1;
  job.expand_h = s.stride_h, job.expand_w = s.stride_w;
  job.pad_h = s.dilation_h * (s.KH - 1) - s.pad_h;
  job.pad_w = s.dilation_w * (s.KW - 1) - s.pad_w;
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

// ---- who serves. The rules hold what was measured against torch's own convolution in the same layout; a null reason
// means ours. `in` and `out` are the channels per group that the product's kernel reads and writes.
namespace {

constexpr double kSmallMacs = 1 << 19;  // a call of torch's convolution costs 15 to 60 us before it computes

double megabytes_of(const Conv2dShape& s) { return 4e-6 * double(s.N) * double(std::max(s.C * s.H * s.W, s.K * s.OH * s.OW)); }

// Square filters of stride 2 have row kernels for groups; other strided ones read a padded copy: that pays for whole filter rows of
// few channels, or where the weights outweigh the map.
const char* torch_reason_strided_nhwc(const Conv2dShape& s) {
  const int64_t in = s.C / s.groups;
  const bool square = s.KH == s.KW && s.stride_h == 2 && s.stride_w == 2 && s.dilation_h == 1 && s.dilation_w == 1 && s.groups > 1;
  if (has_avx512() && square && (s.N == 1 || in > 1) && (s.KH == 3 || (s.KH == 5 && (s.N == 1 || in <= 4)))) return nullptr;
  const bool few = s.groups == 1 && s.C * s.KW <= 48 && s.dilation_w == 1 && megabytes_of(s) <= 4;
  const bool heavy = s.C / s.groups >= 32 && (s.N * s.OH * s.OW <= 200 || (s.groups == 1 && s.OH * s.OW <= 64));
  return has_avx512() && (few || heavy) ? nullptr : "stride above 1: torch is faster";
}

const char* torch_reason_nhwc(const Conv2dShape& s, int64_t in, int64_t out, bool backward) {
  const bool square = s.KH == s.KW && s.dilation_h == 1 && s.dilation_w == 1;
  const double megabytes = megabytes_of(s);
  if (!has_avx512()) return "channels_last without AVX-512: torch is faster";
  if (in == 1 && out == 1) return square && s.KH == 3 && megabytes < 1 ? nullptr : "depthwise: torch is faster";
  if (s.KH == 1 && s.KW == 1) {
    // strided pixels, or pixels a page apart, are copied; a map that outgrows the caches waits for that, or for its pages
    const bool strided = s.stride_h > 1 || s.stride_w > 1;
    const bool waits =
        (strided && megabytes > 8 && s.OH * s.OW > 400) || (s.C % 1024 == 0 && megabytes > 8 && s.K <= s.C) || (s.K > s.C && megabytes > 48);
    return s.groups == 1 && (backward || waits) ? "dense 1x1 bound by memory: torch is faster" : nullptr;
  }
  if (square && (s.KH == 3 || s.KH == 5))
    return s.groups == 1 && in < 8 && megabytes > 4 ? "few input channels, large maps: torch is faster" : nullptr;
  if (!backward && s.groups > 1 && s.KH == 3 && s.KW == 3 && s.dilation_h == 2 && s.dilation_w == 2) return nullptr;
  // one group: a filter row is one long sum, if the map's rows are whole tiles
  if (!backward && s.groups == 1 && megabytes < 0.5 && (s.OW % 7 == 0 || s.OW <= 8)) return nullptr;
  return in % 4 == 0 ? "kernel size or dilation without a channels_last tile: torch is faster" : nullptr;
}

const char* torch_reason_nchw(const Conv2dShape& s, int64_t in, bool backward) {
  const bool one = s.KH == 1 && s.KW == 1;
  if (isa() == Isa::base) return "no vector instructions beyond the baseline: torch is faster";
  if (isa() == Isa::avx2) return in <= 16 && s.groups > 1 ? nullptr : "wide groups without AVX-512: torch is faster";
  if (one && s.groups == 1 && s.N < 8 && (backward || s.H * s.W >= 512)) return "dense 1x1 on one large image: torch is faster";
  if (!one && s.N >= 8 && s.H * s.W <= 256 && in >= (s.H * s.W <= 64 ? 48 : 96)) return "wide groups on small maps: torch is faster";
  return nullptr;
}

// torch multiplies 4, 8 or a multiple of 16 channels per group well, other widths by im2col or with padding
const char* torch_reason_grad_weight(const Conv2dShape& s, int64_t in) {
  const bool square = s.KH == s.KW && (s.KH == 3 || s.KH == 5) && s.dilation_h == 1 && s.dilation_w == 1;
  const char* wide = "weight gradient of wide groups: torch is faster";
  if (s.channels_last) {
    if (!has_avx512() || !square) return "weight gradient without a channels_last tile: torch is faster";
    if (in == 1 && s.K == s.groups) return megabytes_of(s) < 1 ? nullptr : "depthwise: torch is faster";
    return in < 16 || s.N < 8 || (s.KH == 3 && in % 16 != 0) ? nullptr : wide;
  }
  if (!has_avx512()) return in <= 8 ? nullptr : wide;
  if (in < 16 || (in < 32 && in % 16 != 0)) return nullptr;
  return in == 16 && s.H * s.W >= 784 ? nullptr : wide;
}

// torch multiplies bf16 with AMX, at several times the speed of fp32, except where groups are too narrow for a tile
const char* torch_reason_bf16(const Conv2dShape& s, int64_t in, double macs) {
  const int64_t narrow = s.KH * s.KW > 9 ? 4 : s.channels_last ? 4 : 8;
  return in <= narrow && in > 1 ? nullptr : macs < 8 * kSmallMacs ? nullptr : "bfloat16: torch is faster";
}

// Whether matrix tiles beat torch: groups of some width, one image, or small maps, or narrow groups of several.
bool tiles_win(const Conv2dShape& s, int64_t in) {
  if (!grouped_conv2d_prefers_tiles(s) || s.groups == 1 || in > 128 || s.KH * s.KW == 1) return false;
  if (s.N == 1) return true;
  return s.stride_h == 1 && s.stride_w == 1 && s.KH * s.KW <= 9 && (s.OH * s.OW <= 256 || in <= 16);
}

}  // namespace

ConvChoice grouped_conv2d_choice(const Conv2dShape& s, ConvProduct product, ConvType type) {
  const bool backward = product != ConvProduct::forward, strided = s.stride_h > 1 || s.stride_w > 1;
  const int64_t in_group = s.C / s.groups, out_group = s.K / s.groups;
  const double macs = double(s.N) * s.OH * s.OW * s.K * in_group * s.KH * s.KW;
  const char* reason = nullptr;
  if (dense_policy() != Dense::automatic) return {dense_policy() == Dense::never, "asked for"};
  if (macs < kSmallMacs) return {true, "small: less work than a call of torch's convolution"};
  const bool depthwise = in_group == 1 && out_group == 1;
  if (type == ConvType::bf16 && !backward && tiles_win(s, in_group)) return {true, "own kernel on matrix tiles"};
  if (strided && (backward || !s.channels_last))
    reason = "stride above 1: torch is faster";
  else if (strided && s.KH * s.KW > 1 && type == ConvType::fp32)
    reason = torch_reason_strided_nhwc(s);
  else if (strided && s.KH * s.KW > 1)
    reason = "stride above 1: torch is faster";
  else if (type == ConvType::bf16)
    reason = torch_reason_bf16(s, product == ConvProduct::grad_x ? out_group : in_group, macs);
  else if (type == ConvType::fp16 && has_avx512())  // torch converts it slowly, except where it has no sums
    reason = depthwise && s.channels_last ? "depthwise: torch is faster" : nullptr;
  else if (product == ConvProduct::grad_weight)
    reason = torch_reason_grad_weight(s, in_group);
  else if (s.channels_last)
    reason = torch_reason_nhwc(s, backward ? out_group : in_group, backward ? in_group : out_group, backward);
  else
    reason = torch_reason_nchw(s, backward ? out_group : in_group, backward);
  return reason ? ConvChoice{false, reason} : ConvChoice{true, "own kernel"};
}

}  // namespace sk
