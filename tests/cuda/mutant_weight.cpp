// A small run of the convolution's weight gradient: tests/cuda/test_mutants.py builds it from altered sources.
#include <vector>

#include "check.h"
#include "cuda/conv_plan.h"
#include "cuda/grouped_conv2d_weight.cu"

int main() {
  using sk::bf16;
  // N C H W K KH KW stride pad dilation groups OH OW channels_last
  const sk::Conv2dShape shapes[] = {{7, 16, 9, 19, 40, 3, 3, 1, 1, 1, 1, 1, 1, 2, 9, 19, true},
                                    {1, 10, 9, 9, 15, 3, 3, 2, 2, 1, 1, 1, 1, 5, 5, 5, false}};
  emu::options.multiprocessors = 1;  // blocks walk over several tiles
  check::in_every_way([&](const char* way) {
    for (const sk::Conv2dShape& s : shapes) try {
        const int64_t in_group = s.C / s.groups, out_group = s.K / s.groups;
        emu::Buffer<bf16> x("x", s.N * s.C * s.H * s.W, emu::Role::input), grad_out("grad_out", s.N * s.K * s.OH * s.OW, emu::Role::input);
        emu::Buffer<bf16> grad_weight("grad_weight", s.K * in_group * s.KH * s.KW, emu::Role::output);
        emu::Buffer<float> scratch("scratch", sk::grouped_conv2d_grad_weight_scratch<bf16>(s, grad_out.data(), x.data()), emu::Role::output);
        check::fill(x, 1), check::fill(grad_out, 2);
        sk::launch_grouped_conv2d_grad_weight<bf16>(s, grad_out.data(), x.data(), grad_weight.data(), scratch.data(), sk::Fp32::strict, nullptr);
        const sk::Strides4 x_at = sk::strides_of(s.C, s.H, s.W, s.channels_last), out_at = sk::strides_of(s.K, s.OH, s.OW, s.channels_last);
        for (int64_t w = 0; w < int64_t(grad_weight.size()); ++w) {
          const int64_t kx = w % s.KW, ky = w / s.KW % s.KH, j = w / s.KW / s.KH % in_group, k = w / s.KW / s.KH / in_group;
          double sum = 0, size = 0;
          for (int64_t n = 0; n < s.N; ++n)
            for (int64_t oy = 0; oy < s.OH; ++oy)
              for (int64_t ox = 0; ox < s.OW; ++ox) {
                const int64_t iy = oy * s.stride_h + ky - s.pad_h, ix = ox * s.stride_w + kx - s.pad_w;
                if (iy < 0 || iy >= s.H || ix < 0 || ix >= s.W) continue;
                const double term = double(sk::to_float(x[n * x_at.n + (k / out_group * in_group + j) * x_at.c + iy * x_at.y + ix * x_at.x])) *
                                    sk::to_float(grad_out[n * out_at.n + k * out_at.c + oy * out_at.y + ox * out_at.x]);
                sum += term, size += std::fabs(term);
              }
          if (!(std::fabs(sk::to_float(grad_weight[w]) - sum) <= size / 256 + 1e-6)) {
            check::fail("wrong value at %zu, %s", size_t(w), way);
            break;
          }
        }
      } catch (const emu::Fault& fault) {
        check::fail("fault: %s, %s", fault.what(), way);
      }
  });
  return check::result("mutant", 12);
}
