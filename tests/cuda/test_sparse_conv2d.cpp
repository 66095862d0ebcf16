// sparse_conv2d on the emulated device against plain double loops: every product, type, layout and kind of mask, odd sizes.
#include <string>
#include <vector>

#include "check.h"
#include "cuda/sparse_conv2d.h"
#include "kept.h"

namespace {

using check::Sum;
using sk::bf16;
using sk::fp16;
using sk::Fp32;
using sk::SparseConv2dProduct;
using sk::SparseConv2dShape;
using sk::SparseConv2dWay;

int cases = 0;

template <class T>
void run(SparseConv2dShape s, double density, bool channels_last, Fp32 mode, const char* way) {
  ++cases;
  s.channels_last = channels_last;
  const check::Mask mask(s, density);
  const bool with_bias = cases % 2;
  const size_t offset = cases % 5 == 0;  // tensors that begin anywhere
  const std::string name = emu::format("%s %s N%ld C%ld %ldx%ld K%ld k%ldx%ld s%ld d%ld block %ldx%ldx%ld, %ld kept, %s", check::type_name<T>(mode),
                                       channels_last ? "nhwc" : "nchw", long(s.N), long(s.C), long(s.H), long(s.W), long(s.K), long(s.KH), long(s.KW),
                                       long(s.stride_h), long(s.dilation_h), long(s.BO), long(s.BI), long(s.BT), long(s.nnz), way);
  emu::Buffer<T> x("x", s.N * s.C * s.H * s.W, emu::Role::input, offset), grad_out("grad_out", s.N * s.K * s.OH() * s.OW(), emu::Role::input, offset);
  emu::Buffer<T> weight("weight", s.nnz * s.BO * s.BI * s.BT, emu::Role::input, offset), bias("bias", s.K, emu::Role::input);
  emu::Buffer<T> out("out", grad_out.size(), emu::Role::output, offset), grad_x("grad_x", x.size(), emu::Role::output, offset);
  emu::Buffer<T> grad_weight("grad_weight", weight.size(), emu::Role::output, offset);
  check::fill(x, 1), check::fill(weight, 2), check::fill(bias, 3), check::fill(grad_out, 4);
  std::vector<Sum> wanted_out(out.size()), wanted_grad_x(x.size()), wanted_grad_weight(weight.size());
  for (size_t i = 0; with_bias && i < out.size(); ++i)
    wanted_out[i].add(sk::to_float(bias[channels_last ? i % s.K : i / (s.OH() * s.OW()) % s.K]), 1);
  mask.each_product(s, [&](size_t ix, size_t iw, size_t io) {
    const double w = sk::to_float(weight[iw]), v = sk::to_float(x[ix]), g = sk::to_float(grad_out[io]);
    wanted_out[io].add(v, w), wanted_grad_x[ix].add(g, w), wanted_grad_weight[iw].add(g, v);
  });
  const auto hold = [&](const char* what, SparseConv2dProduct product, const std::vector<Sum>& wanted, const emu::Buffer<T>& got) {
    const bool plain = sk::sparse_conv2d_way(s, product) == SparseConv2dWay::list;
    check::compare(name + ", " + what, wanted, got,
                   [&](const Sum& sum) { return plain ? check::allowed_on_plain_cores<T>(sum) : check::allowed_on_tensor_cores<T>(sum, mode); });
  };
  try {
    const char* error =
        sk::launch_sparse_conv2d_fwd<T>(s, x.data(), weight.data(), mask.tables(), with_bias ? bias.data() : nullptr, out.data(), mode, nullptr);
    if (error) return check::fail("%s: forward: %s", name.c_str(), error);
    hold("forward", SparseConv2dProduct::out, wanted_out, out);
    error = sk::launch_sparse_conv2d_grad_x<T>(s, grad_out.data(), weight.data(), mask.tables(), grad_x.data(), mode, nullptr);
    if (error) return check::fail("%s: grad_x: %s", name.c_str(), error);
    hold("grad_x", SparseConv2dProduct::grad_x, wanted_grad_x, grad_x);
    emu::Buffer<float> scratch("scratch", sk::sparse_conv2d_grad_weight_scratch<T>(s), emu::Role::output);
    error = sk::launch_sparse_conv2d_grad_weight<T>(s, grad_out.data(), x.data(), mask.tables(), grad_weight.data(), scratch.data(), mode, nullptr);
    if (error) return check::fail("%s: grad_weight: %s", name.c_str(), error);
    hold("grad_weight", SparseConv2dProduct::grad_weight, wanted_grad_weight, grad_weight);
  } catch (const emu::Fault& fault) {
    check::fail("%s: %s", name.c_str(), fault.what());
  }
}

// Every type in one layout, and every second time the other way round.
void run_all(const SparseConv2dShape& s, double density, const char* way) {
  static bool last = false;
  last = !last;
  run<bf16>(s, density, last, Fp32::strict, way), run<float>(s, density, last, Fp32::tf32, way);
  run<fp16>(s, density, !last, Fp32::strict, way), run<float>(s, density, !last, Fp32::strict, way);
}

// N C H W K KH KW stride pad dilation BO BI BT
const SparseConv2dShape kSynapse{3, 4, 5, 6, 6, 3, 3, 1, 1, 1, 1, 1, 1, 1, 1, 1, 0, false},
    kSpatial{2, 20, 9, 7, 10, 3, 3, 1, 1, 1, 1, 1, 1, 1, 20, 1, 0, false}, kStrided{1, 18, 9, 10, 5, 3, 3, 2, 2, 1, 1, 1, 1, 1, 18, 1, 0, false},
    kDilated{1, 4, 11, 9, 6, 3, 2, 1, 2, 2, 0, 2, 3, 1, 1, 1, 0, false}, kKernel{2, 5, 7, 7, 6, 3, 3, 1, 1, 1, 1, 1, 1, 1, 1, 9, 0, false},
    kShared{2, 5, 8, 8, 12, 3, 3, 1, 1, 1, 1, 1, 1, 4, 1, 1, 0, false}, kSharedSpatial{1, 16, 6, 6, 9, 3, 3, 1, 1, 1, 1, 1, 1, 3, 16, 1, 0, false},
    kBlock{1, 32, 6, 5, 32, 3, 3, 1, 1, 1, 1, 1, 1, 16, 16, 9, 0, false}, kPanel{3, 7, 4, 5, 48, 3, 3, 3, 1, 1, 2, 2, 1, 24, 1, 1, 0, false},
    kThirds{1, 36, 5, 6, 40, 3, 3, 1, 1, 1, 1, 1, 1, 1, 12, 1, 0, false}, kPointwise{2, 17, 5, 4, 7, 1, 1, 1, 1, 0, 0, 1, 1, 1, 1, 1, 0, false},
    kDeep{1, 72, 5, 6, 9, 3, 3, 1, 1, 1, 1, 1, 1, 1, 72, 1, 0, false}, kItems{2, 9, 6, 5, 16, 3, 3, 1, 2, 1, 1, 1, 1, 8, 3, 9, 0, false},
    kWide{1, 24, 5, 6, 72, 3, 3, 1, 1, 1, 1, 1, 1, 72, 24, 1, 0, false};

}  // namespace

int main() {
  run_all(kSynapse, 0.3, "in order"), run_all(kSpatial, 0.3, "in order"), run_all(kStrided, 0.4, "in order"), run_all(kDilated, 0.3, "in order");
  run_all(kKernel, 0.4, "in order"), run_all(kShared, 0.3, "in order"), run_all(kSharedSpatial, 0.4, "in order"), run_all(kBlock, 0.4, "in order");
  run_all(kPanel, 0.2, "in order"), run_all(kPointwise, 0.3, "in order"), run_all(kWide, 0.5, "in order");
  run_all(kThirds, 0.3, "in order"), run_all(kDeep, 0.3, "in order"), run_all(kItems, 0.6, "in order");
  run_all(kSynapse, 0, "nothing kept"), run_all(kKernel, 1, "all kept");
  check::in_every_way(
      [](const char* way) { run<bf16>(kSharedSpatial, 0.3, true, Fp32::strict, way), run<float>(kPanel, 0.2, false, Fp32::tf32, way); });
  emu::options.hardware_sums = true;
  run_all(kSpatial, 0.3, "sums as a tensor core makes them");
  emu::options.hardware_sums = false;
  for (size_t limit : {96 * 1024, 72 * 1024}) {  // rounds of channels and batches of weights
    emu::options.shared_limit = limit;
    run<bf16>(kWide, 0.3, true, Fp32::strict, "little shared memory"), run<float>(kSpatial, 0.3, false, Fp32::strict, "little shared memory");
    run<float>(kBlock, 0.7, true, Fp32::tf32, "little shared memory"), run<fp16>(kShared, 0.5, false, Fp32::strict, "little shared memory");
    run<float>({1, 70, 6, 5, 9, 3, 3, 1, 1, 1, 1, 1, 1, 1, 1, 1, 0, false}, 0.2, true, Fp32::strict, "little shared memory");
  }
  return check::result("sparse_conv2d", cases);
}
