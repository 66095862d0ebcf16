// A small run of the products of panels, quick to compile: tests/cuda/test_mutants.py builds it from altered sources.
#include <vector>

#include "check.h"
#include "cuda/sparse_linear_panels.cuh"
#include "cuda/sparse_linear_panels_input.cuh"

namespace {

constexpr int N = 72, kIn = 90, OB = 2, F = 68, V = 16;

template <class T>
void run() {
  check::Table table{OB, F, kIn};
  emu::Buffer<T> x("x", kIn * N, emu::Role::input), weight("weight", OB * F * V, emu::Role::input), grad("grad_out", OB * V * N, emu::Role::input);
  emu::Buffer<T> y("y", OB * V * N, emu::Role::output), grad_weight("grad_weight", OB * F * V, emu::Role::output);
  check::fill(x, 1), check::fill(weight, 2), check::fill(grad, 3);
  std::vector<check::Sum> wanted_y(y.size()), wanted_grad(grad_weight.size());
  for (int n = 0; n < N; ++n)
    for (int w = 0; w < OB * F * V; ++w) {
      const int t = w / V / F * V + w % V;
      const double v = sk::to_float(x[table.index[w / V] * N + n]);
      wanted_y[t * N + n].add(v, sk::to_float(weight[w])), wanted_grad[w].add(v, sk::to_float(grad[t * N + n]));
    }
  const auto compare = [](const char* what, const std::vector<check::Sum>& wanted, const emu::Buffer<T>& got) {
    for (size_t i = 0; i < got.size(); ++i)
      if (!(std::fabs(sk::to_float(got[i]) - wanted[i].value) <= wanted[i].magnitude / 256 + 1e-6))
        return check::fail("wrong value of %s at %zu of %zu", what, i, got.size());
  };
  sk::PanelJob job{};
  job.mm.a_line = N, job.mm.b_line = V, job.mm.a_vectors = job.mm.b_vectors = true;
  job.N = N, job.width = V, job.fan_in = F, job.tiles = 1, job.y_at = {1, N}, job.index = table.index.data();
  const T* none = nullptr;
  emu::launch(dim3(2, OB), dim3(sk::kMmThreads), sk::kMmBytes, sk::sparse_linear_panels_kernel<T, sk::Fp32::tf32>, x.data(), weight.data(), none,
              y.data(), job);
  compare("y", wanted_y, y);
  job.mm.b_line = N, job.tiles = 2;
  emu::launch(dim3(2 * OB), dim3(sk::kMmThreads), sk::kMmBytes, sk::sparse_linear_panels_weight_kernel<T, sk::Fp32::tf32>, x.data(), grad.data(),
              grad_weight.data(), job);
  compare("grad_weight", wanted_grad, grad_weight);

  emu::Buffer<T> by_row("grad_out", N * OB * V, emu::Role::input), grad_x("grad_x", N * kIn, emu::Role::output);
  check::fill(by_row, 4);
  std::vector<check::Sum> wanted_x(grad_x.size());
  for (int n = 0; n < N; ++n)
    for (int w = 0; w < OB * F * V; ++w)
      wanted_x[n * kIn + table.index[w / V]].add(sk::to_float(by_row[n * OB * V + w / V / F * V + w % V]), sk::to_float(weight[w]));
  sk::PanelInputJob inputs{};
  inputs.mm.a_line = V, inputs.mm.b_line = OB * V, inputs.mm.a_vectors = inputs.mm.b_vectors = true;
  inputs.N = N, inputs.panels = OB, inputs.width = V, inputs.fan_in = F, inputs.inputs = 88, inputs.all_inputs = kIn, inputs.grad_x_at = {kIn, 1};
  inputs.index = table.index.data();
  emu::launch(dim3(2, 2), dim3(sk::kMmThreads), sk::kPanelSumsAt + inputs.inputs * sk::kPanelPitch,
              sk::sparse_linear_panels_input_kernel<T, sk::Fp32::tf32>, by_row.data(), weight.data(), grad_x.data(), inputs);
  compare("grad_x", wanted_x, grad_x);
}

}  // namespace

int main() {
  check::in_every_way([](const char* way) {
    try {
      run<sk::bf16>(), run<float>();
    } catch (const emu::Fault& fault) {
      check::fail("fault: %s, %s", fault.what(), way);
    }
  });
  return check::result("mutant", 24);
}
