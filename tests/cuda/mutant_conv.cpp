// A small run of the convolution kernels, quick to compile: tests/cuda/test_mutants.py builds it from altered sources.
#include <string>
#include <vector>

#include "check.h"
#include "cuda/conv_plan.h"
#include "cuda/grouped_conv2d.cuh"

namespace {

using sk::bf16;

void run(sk::Conv2dShape s, sk::Direction direction, const char* way) {
  const bool forward = direction == sk::Direction::forward;
  emu::Buffer<bf16> x("x", s.N * s.C * s.H * s.W, forward ? emu::Role::input : emu::Role::output);
  emu::Buffer<bf16> out("out", s.N * s.K * s.OH * s.OW, forward ? emu::Role::output : emu::Role::input);
  emu::Buffer<bf16> weight("weight", s.K * (s.C / s.groups) * s.KH * s.KW, emu::Role::input);
  emu::Buffer<bf16>&source = forward ? x : out, &target = forward ? out : x;
  check::fill(source, 1), check::fill(weight, 2);
  sk::ConvJob job = sk::conv_job<bf16>(s, direction, source.data(), target.data(), false);
  constexpr int kTiles = 2;
  if (!sk::choose_tile(job, 7, 1024) || !sk::choose_stages(job, sk::widths(job, kTiles, 1, 8), kTiles, 8 + 256, 64 * 1024))
    return check::fail("no plan");
  const unsigned blocks = unsigned(sk::pieces_up(job.groups * job.target_group, 8 * kTiles)),
                 phases = unsigned(job.y.target_step() * job.x.target_step());
  emu::launch(dim3(2, blocks, phases), dim3(sk::kConvThreads), job.shared_bytes, sk::grouped_conv2d_kernel<bf16, sk::Fp32::strict, kTiles, 1>,
              source.data(), weight.data(), static_cast<const bf16*>(nullptr), target.data(), job);

  std::vector<double> wanted(target.size()), size(target.size());
  const int64_t in_group = s.C / s.groups, out_group = s.K / s.groups;
  const auto at = [&](int64_t channels, int64_t h, int64_t w, int64_t n, int64_t c, int64_t i, int64_t j) {
    return s.channels_last ? ((n * h + i) * w + j) * channels + c : ((n * channels + c) * h + i) * w + j;
  };
  for (int64_t n = 0; n < s.N; ++n)
    for (int64_t k = 0; k < s.K; ++k)
      for (int64_t oy = 0; oy < s.OH; ++oy)
        for (int64_t ox = 0; ox < s.OW; ++ox)
          for (int64_t w = 0; w < in_group * s.KH * s.KW; ++w) {
            const int64_t j = w / s.KW / s.KH, iy = oy * s.stride_h + w / s.KW % s.KH - s.pad_h, ix = ox * s.stride_w + w % s.KW - s.pad_w;
            if (iy < 0 || iy >= s.H || ix < 0 || ix >= s.W) continue;
            const int64_t in = at(s.C, s.H, s.W, n, k / out_group * in_group + j, iy, ix), to = at(s.K, s.OH, s.OW, n, k, oy, ox);
            const double term = double(sk::to_float(weight[k * in_group * s.KH * s.KW + w])) * sk::to_float(source[forward ? in : to]);
            wanted[forward ? to : in] += term, size[forward ? to : in] += std::fabs(term);
          }
  for (size_t i = 0; i < wanted.size(); ++i)
    if (!(std::fabs(sk::to_float(target[i]) - wanted[i]) <= size[i] / 256 + 1e-6))
      return check::fail("wrong value at %zu of %zu, %s", i, wanted.size(), way);
}

}  // namespace

int main() {
  // N C H W K KH KW stride pad dilation groups OH OW
  const sk::Conv2dShape last{3, 8, 9, 19, 12, 3, 3, 1, 1, 1, 1, 1, 1, 2, 9, 19, true}, first{1, 10, 9, 9, 15, 3, 3, 2, 2, 1, 1, 1, 1, 5, 5, 5, false};
  check::in_every_way([&](const char* way) {
    try {
      run(last, sk::Direction::forward, way);
      run(last, sk::Direction::grad_x, way);
      run(first, sk::Direction::forward, way);
      run(first, sk::Direction::grad_x, way);
    } catch (const emu::Fault& fault) {
      check::fail("fault: %s, %s", fault.what(), way);
    }
  });
  return check::result("mutant", 24);
}
