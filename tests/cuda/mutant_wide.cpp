// A small run of the products of wide blocks, quick to compile: tests/cuda/test_mutants.py builds it from altered sources.
#include <vector>

#include "check.h"
#include "cuda/sparse_linear_blocks_wgmma.cuh"

namespace {

using T = sk::bf16;
constexpr int OB = 2, F = 3, BO = 128, BI = 64, IB = 5, kIn = IB * BI, kOut = OB * BO, N = 131;

void compare(const char* what, const std::vector<check::Sum>& wanted, const emu::Buffer<T>& got) {
  for (size_t i = 0; i < got.size(); ++i)
    if (!(std::fabs(sk::to_float(got[i]) - wanted[i].value) <= check::allowed_on_tensor_cores<T>(wanted[i], sk::Fp32::strict)))
      return check::fail("wrong value of %s at %zu of %zu", what, i, got.size());
}

template <int Targets, int Rows, bool Turned>
void launch(const T* source, const T* weight, const T* bias, T* target, const sk::WideBlockJob& job, int target_blocks) {
  emu::launch(dim3((N + Rows - 1) / Rows, target_blocks * job.tiles), dim3(sk::kWgmmaThreads), sk::WgmmaTile<T, Targets, Rows, Turned, false>::kBytes,
              sk::sparse_linear_blocks_wgmma_kernel<T, Targets, Rows, Turned>, source, weight, bias, target, job);
}

void run() {
  check::Table table{OB, F, IB};
  emu::Buffer<T> x("x", N * kIn, emu::Role::input), weight("weight", OB * F * BO * BI, emu::Role::input), bias("bias", kOut, emu::Role::input);
  emu::Buffer<T> grad("grad_out", N * kOut, emu::Role::input), y("y", N * kOut, emu::Role::output), grad_x("grad_x", N * kIn, emu::Role::output);
  emu::Buffer<T> grad_weight("grad_weight", weight.size(), emu::Role::output);
  check::fill(x, 1), check::fill(weight, 2), check::fill(bias, 3), check::fill(grad, 4);
  std::vector<check::Sum> wanted_y(y.size()), wanted_x(grad_x.size()), wanted_weight(weight.size());
  for (int n = 0; n < N; ++n) {
    for (int t = 0; t < kOut; ++t) wanted_y[n * kOut + t].add(sk::to_float(bias[t]), 1);
    for (int w = 0; w < int(weight.size()); ++w) {
      const int block = w / BO / BI, t = block / F * BO + w / BI % BO, i = table.index[block] * BI + w % BI;
      const double v = sk::to_float(x[n * kIn + i]), g = sk::to_float(grad[n * kOut + t]), kept = sk::to_float(weight[w]);
      wanted_y[n * kOut + t].add(v, kept), wanted_x[n * kIn + i].add(g, kept), wanted_weight[w].add(g, v);
    }
  }
  const sk::WideBlockJob forward{N, kIn, BO, BI, F, 1, {kOut, 1}, true, nullptr, table.index.data(), nullptr};
  launch<128, 128, false>(x.data(), weight.data(), bias.data(), y.data(), forward, OB);
  compare("y", wanted_y, y);
  const sk::WideBlockJob back{N, kOut, BI, BO, 0, 1, {kIn, 1}, true, table.indptr.data(), table.output.data(), table.place.data()};
  launch<64, 256, true>(grad.data(), weight.data(), nullptr, grad_x.data(), back, IB);
  compare("grad_x", wanted_x, grad_x);
  const sk::WideBlockWeightJob both{N, kIn, kOut, BO, BI, F, 2, 2, true, table.index.data()};  // a tile of two blocks, and one of one
  emu::launch(dim3(OB * 2), dim3(sk::kWgmmaThreads), sk::WgmmaTile<T, 128, 128, true, true>::kBytes,
              sk::sparse_linear_blocks_weight_wgmma_kernel<T, 128, 128>, grad.data(), x.data(), grad_weight.data(), both);
  compare("grad_weight", wanted_weight, grad_weight);
}

}  // namespace

int main() {
  check::in_every_way([](const char* way) {
    try {
      run();
    } catch (const emu::Fault& fault) {
      check::fail("fault: %s, %s", fault.what(), way);
    }
  });
  return check::result("mutant", 6);
}
