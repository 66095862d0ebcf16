// root_conv2d on the emulated device against plain double loops: types, layouts, odd sizes.
#include <string>
#include <vector>

#include "check.h"
#include "cuda/root_conv2d.h"

namespace {

using sk::bf16;
using sk::fp16;
using sk::Fp32;
int cases = 0;

template <class T>
void run(sk::Conv2dShape s, int64_t outs, bool channels_last, Fp32 mode, const char* way) {
  ++cases;
  s.channels_last = channels_last;
  const bool relu = cases % 2, last_relu = cases % 3 == 0, with_bias = cases % 4 != 0;
  const size_t offset = cases % 5 == 0;
  const int64_t in_group = s.C / s.groups, out_group = s.K / s.groups;
  const std::string name =
      emu::format("%s %s N%ld C%ld %ldx%ld %ld -> %ld, k%ld s%ld g%ld, %s", check::type_name<T>(mode), channels_last ? "nhwc" : "nchw", long(s.N),
                  long(s.C), long(s.H), long(s.W), long(s.K), long(outs), long(s.KH), long(s.stride_h), long(s.groups), way);
  emu::Buffer<T> x("x", s.N * s.C * s.H * s.W, emu::Role::input, offset), weight1("weight1", s.K * in_group * s.KH * s.KW, emu::Role::input, offset);
  emu::Buffer<T> weight2("weight2", outs * s.K, emu::Role::input, offset), bias1("bias1", s.K, emu::Role::input),
      bias2("bias2", outs, emu::Role::input);
  emu::Buffer<T> out("out", s.N * outs * s.OH * s.OW, emu::Role::output, offset);
  check::fill(x, 1), check::fill(weight1, 2), check::fill(weight2, 3), check::fill(bias1, 4), check::fill(bias2, 5);
  const auto at = [&](int64_t channels, int64_t h, int64_t w, int64_t n, int64_t c, int64_t i, int64_t j) {
    return channels_last ? ((n * h + i) * w + j) * channels + c : ((n * channels + c) * h + i) * w + j;
  };
  try {
    const char* error = sk::launch_root_conv2d<T>(s, x.data(), weight1.data(), with_bias ? bias1.data() : nullptr, outs, weight2.data(),
                                                  with_bias ? bias2.data() : nullptr, relu, last_relu, out.data(), mode, nullptr);
    if (error) return check::fail("%s: %s", name.c_str(), error);
  } catch (const emu::Fault& fault) {
    return check::fail("%s: %s", name.c_str(), fault.what());
  }
  for (int64_t n = 0; n < s.N; ++n)
    for (int64_t oy = 0; oy < s.OH; ++oy)
      for (int64_t ox = 0; ox < s.OW; ++ox) {
        // each channel between, and how far off the kernel's may be
        std::vector<double> between(s.K), off(s.K);
        for (int64_t k = 0; k < s.K; ++k) {
          check::Sum sum;
          if (with_bias) sum.add(sk::to_float(bias1[k]), 1);
          for (int64_t w = 0; w < in_group * s.KH * s.KW; ++w) {
            const int64_t iy = oy * s.stride_h + w / s.KW % s.KH - s.pad_h, ix = ox * s.stride_w + w % s.KW - s.pad_w;
            if (iy < 0 || iy >= s.H || ix < 0 || ix >= s.W) continue;
            sum.add(sk::to_float(x[at(s.C, s.H, s.W, n, k / out_group * in_group + w / s.KW / s.KH, iy, ix)]),
                    sk::to_float(weight1[k * in_group * s.KH * s.KW + w]));
          }
          between[k] = relu && sum.value < 0 ? 0 : sum.value, off[k] = check::allowed_on_tensor_cores<T>(sum, mode);
        }
        for (int64_t o = 0; o < outs; ++o) {
          check::Sum sum;
          double limit = 0;
          if (with_bias) sum.add(sk::to_float(bias2[o]), 1);
          for (int64_t k = 0; k < s.K; ++k) {
            const double w = sk::to_float(weight2[o * s.K + k]);
            sum.add(between[k], w), limit += off[k] * std::fabs(w) * 1.01;
          }
          const double wanted = last_relu && sum.value < 0 ? 0 : sum.value;
          limit += check::allowed_on_tensor_cores<T>(sum, mode) + check::stored<T>(limit);
          const double got = sk::to_float(out[at(outs, s.OH, s.OW, n, o, oy, ox)]);
          if (!(std::fabs(got - wanted) <= limit)) return check::fail("%s: %g, wanted %g within %g", name.c_str(), got, wanted, limit);
        }
      }
}

void run_all(const sk::Conv2dShape& s, int64_t outs, const char* way) {
  static bool last = false;
  last = !last;
  run<bf16>(s, outs, last, Fp32::strict, way), run<float>(s, outs, last, Fp32::tf32, way);
  run<fp16>(s, outs, !last, Fp32::strict, way), run<float>(s, outs, !last, Fp32::strict, way);
}

}  // namespace

int main() {
  // N C H W K KH KW stride pad dilation groups OH OW
  run_all({2, 16, 6, 5, 24, 3, 3, 1, 1, 1, 1, 1, 1, 4, 6, 5, false}, 20, "in order");
  run_all({1, 24, 9, 9, 72, 3, 3, 2, 2, 1, 1, 1, 1, 8, 5, 5, false}, 70, "in order");
  run_all({3, 5, 4, 7, 7, 3, 3, 1, 1, 1, 1, 1, 1, 1, 4, 7, false}, 3, "in order");
  check::in_every_way([](const char* way) { run<bf16>({2, 16, 9, 9, 72, 3, 3, 1, 1, 1, 1, 1, 1, 4, 9, 9, false}, 66, true, Fp32::strict, way); });
  return check::result("root_conv2d", cases);
}
