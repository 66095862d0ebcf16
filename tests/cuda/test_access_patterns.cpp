// How the convolutions touch memory, counted by the emulator: a change that costs bank conflicts or sectors is seen without a GPU.
// The limits are what the kernels reach. What is left over least: weights are gathered, and their gradient is scattered, with the
// stride of their natural layout (once per block; caches take it), and 16-bit results are written 16 bytes per pixel.
#include "check.h"
#include "cuda/grouped_conv2d.h"
#include "kept.h"

namespace {

int cases = 0;

enum class Which { forward, grad_x, grad_weight };

// Sectors and bank passes per the least possible must not exceed these.
template <class Launch>
void count(const char* name, double waste, double conflicts, const Launch& launch) {
  ++cases;
  emu::options.count = true, emu::counters = {};
  const char* error = launch();
  emu::options.count = false;
  const double w = emu::counters.all().global_waste(), c = emu::counters.all().bank_conflicts();
  std::printf("%-36s sectors %.2f (limit %.2f), bank passes %.2f (limit %.2f)\n", name, w, waste, c, conflicts);
  if (error || w > waste || c > conflicts) check::fail("%s: %s", name, error ? error : "more than its limit");
}

template <class T>
void limits(const char* name, sk::Conv2dShape s, Which which, double waste, double conflicts) {
  emu::Buffer<T> x("x", s.N * s.C * s.H * s.W, emu::Role::output), weight("weight", s.K * (s.C / s.groups) * s.KH * s.KW, emu::Role::output);
  emu::Buffer<T> out("out", s.N * s.K * s.OH * s.OW, emu::Role::output);
  check::fill(x, 1), check::fill(weight, 2), check::fill(out, 3);
  emu::Buffer<float> scratch("scratch", sk::grouped_conv2d_grad_weight_scratch<T>(s, out.data(), x.data()), emu::Role::output);
  const T* none = nullptr;
  count(name, waste, conflicts, [&] {
    return which == Which::forward ? sk::launch_grouped_conv2d_fwd<T>(s, x.data(), weight.data(), none, true, out.data(), sk::Fp32::tf32, nullptr)
           : which == Which::grad_x
               ? sk::launch_grouped_conv2d_grad_x<T>(s, out.data(), weight.data(), x.data(), sk::Fp32::tf32, nullptr)
               : sk::launch_grouped_conv2d_grad_weight<T>(s, out.data(), x.data(), weight.data(), scratch.data(), sk::Fp32::tf32, nullptr);
  });
}

// The weight's gradient of a masked convolution.
template <class T>
void masked_limits(const char* name, sk::SparseConv2dShape s, double density, double waste, double conflicts) {
  const check::Mask mask(s, density);
  emu::Buffer<T> x("x", s.N * s.C * s.H * s.W, emu::Role::input), grad_out("grad_out", s.N * s.K * s.OH() * s.OW(), emu::Role::input);
  emu::Buffer<T> grad_weight("grad_weight", s.nnz * s.BO * s.BI * s.BT, emu::Role::output);
  check::fill(x, 1), check::fill(grad_out, 2);
  emu::Buffer<float> scratch("scratch", sk::sparse_conv2d_grad_weight_scratch<T>(s), emu::Role::output);
  count(name, waste, conflicts, [&] {
    return sk::launch_sparse_conv2d_grad_weight<T>(s, grad_out.data(), x.data(), mask.tables(), grad_weight.data(), scratch.data(), sk::Fp32::tf32,
                                                   nullptr);
  });
}

}  // namespace

int main() {
  // N C H W K KH KW stride pad dilation groups OH OW channels_last
  const sk::Conv2dShape narrow{1, 64, 16, 16, 64, 3, 3, 1, 1, 1, 1, 1, 1, 8, 16, 16, true},
      odd{1, 48, 16, 16, 96, 5, 5, 1, 1, 2, 2, 1, 1, 8, 16, 16, true};
  const sk::Conv2dShape planes{1, 32, 16, 32, 32, 3, 3, 1, 1, 1, 1, 1, 1, 8, 16, 32, false};
  limits<sk::bf16>("forward bf16 nhwc 8 -> 8", narrow, Which::forward, 3.4, 1.01);
  limits<sk::bf16>("forward bf16 nhwc 6 -> 12", odd, Which::forward, 5.4, 1.01);
  limits<float>("forward tf32 nhwc 8 -> 8", narrow, Which::forward, 2.5, 1.01);
  limits<sk::bf16>("forward bf16 nchw 4 -> 4", planes, Which::forward, 3.6, 1.01);
  limits<sk::bf16>("grad_x bf16 nhwc 12 -> 6", odd, Which::grad_x, 5.5, 1.01);
  limits<sk::bf16>("grad_weight bf16 nhwc 8 -> 8", narrow, Which::grad_weight, 2.7, 1.01);
  limits<float>("grad_weight tf32 nhwc 8 -> 8", narrow, Which::grad_weight, 2.2, 1.01);
  // N C H W K KH KW stride pad dilation BO BI BT
  const sk::SparseConv2dShape spatial{1, 64, 16, 16, 64, 3, 3, 1, 1, 1, 1, 1, 1, 1, 64, 1, 0, true},
      shared{1, 32, 16, 16, 64, 3, 3, 1, 1, 1, 1, 1, 1, 16, 1, 1, 0, true};
  sk::SparseConv2dShape spatial_planes = spatial, shared_planes = shared;
  spatial_planes.channels_last = shared_planes.channels_last = false;
  masked_limits<sk::bf16>("masked grad_weight bf16 nhwc spatial", spatial, 0.4, 1.35, 1.2);
  masked_limits<sk::bf16>("masked grad_weight bf16 nchw spatial", spatial_planes, 0.4, 2.85, 1.3);
  masked_limits<float>("masked grad_weight tf32 nhwc spatial", spatial, 0.4, 1.7, 1.35);
  masked_limits<sk::bf16>("masked grad_weight bf16 nhwc shared", shared, 0.3, 1.25, 1.65);
  masked_limits<sk::bf16>("masked grad_weight bf16 nchw shared", shared_planes, 0.3, 2.8, 1.7);
  return check::result("access patterns", cases);
}
