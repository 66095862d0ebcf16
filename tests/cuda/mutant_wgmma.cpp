// A small run of wide panels, quick to compile: tests/cuda/test_mutants.py builds it from altered sources.
#include <vector>

#include "check.h"
#include "cuda/sparse_linear_panels_wgmma.cuh"

namespace {

using T = sk::bf16;
constexpr int kIn = 300, OB = 2, F = 260;

void compare(const char* what, const std::vector<check::Sum>& wanted, const emu::Buffer<T>& got) {
  for (size_t i = 0; i < got.size(); ++i)
    if (!(std::fabs(sk::to_float(got[i]) - wanted[i].value) <= check::allowed_on_tensor_cores<T>(wanted[i], sk::Fp32::strict)))
      return check::fail("wrong value of %s at %zu of %zu", what, i, got.size());
}

template <int V, int Rows>
void run(int N, bool by_row) {
  using Tile = sk::WgmmaTile<T, V, Rows, true, true>;
  const int line = (N + 7) / 8 * 8;
  check::Table table{OB, F, kIn};
  emu::Buffer<T> x("x", kIn * line, emu::Role::input), weight("weight", OB * F * V, emu::Role::input), bias("bias", OB * V, emu::Role::input);
  emu::Buffer<T> y("y", OB * V * N, emu::Role::output);
  check::fill(x, 1), check::fill(weight, 2), check::fill(bias, 3);
  const sk::Strides y_at = by_row ? sk::Strides{OB * V, 1} : sk::Strides{1, N};
  const sk::WidePanelJob job{N, line, V, F, 1, y_at, (by_row ? OB * V : N) % 8 == 0, table.index.data()};
  emu::launch(dim3((N + Rows - 1) / Rows, OB), dim3(sk::kWgmmaThreads), Tile::kBytes, sk::sparse_linear_panels_wgmma_kernel<T, V, Rows>, x.data(),
              weight.data(), bias.data(), y.data(), job);
  std::vector<check::Sum> wanted(y.size());
  for (int t = 0; t < OB * V; ++t)
    for (int n = 0; n < N; ++n) {
      check::Sum& sum = wanted[n * y_at.row + t * y_at.col];
      sum.add(sk::to_float(bias[t]), 1);
      for (int f = 0; f < F; ++f) {
        const int w = t / V * F + f;
        sum.add(sk::to_float(x[table.index[w] * line + n]), sk::to_float(weight[w * V + t % V]));
      }
    }
  compare("y", wanted, y);
}

// One tile of 64 outputs by 256 connections and a second that is not full, over two stages of rows.
void run_weight(int N) {
  constexpr int V = 64;
  using Tile = sk::WgmmaTile<T, V, 256, true, false>;
  const int line = (N + 7) / 8 * 8;
  check::Table table{OB, F, kIn};
  emu::Buffer<T> x("x", kIn * line, emu::Role::input), grad("grad_out", N * OB * V, emu::Role::input);
  emu::Buffer<T> grad_weight("grad_weight", OB * F * V, emu::Role::output);
  check::fill(x, 4), check::fill(grad, 5);
  for (int i = 0; i < kIn; ++i)
    for (int n = N; n < line; ++n) x[i * line + n] = sk::from_float<T>(NAN);  // no rows
  const sk::WidePanelJob job{N, line, V, F, 2, {}, true, table.index.data()};
  emu::launch(dim3(OB * 2), dim3(sk::kWgmmaThreads), Tile::kBytes, sk::sparse_linear_panels_weight_wgmma_kernel<T, V, 256>, grad.data(), x.data(),
              grad_weight.data(), int64_t(OB * V), job);
  std::vector<check::Sum> wanted(grad_weight.size());
  for (int w = 0; w < OB * F * V; ++w)
    for (int n = 0; n < N; ++n) wanted[w].add(sk::to_float(grad[n * OB * V + w / V / F * V + w % V]), sk::to_float(x[table.index[w / V] * line + n]));
  compare("grad_weight", wanted, grad_weight);
}

}  // namespace

int main() {
  check::in_every_way([](const char* way) {
    try {
      run<64, 256>(139, true), run<128, 128>(131, false), run_weight(85);
    } catch (const emu::Fault& fault) {
      check::fail("fault: %s, %s", fault.what(), way);
    }
  });
  return check::result("mutant", 18);
}
