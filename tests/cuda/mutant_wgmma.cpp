// A small run of wide panels, quick to compile: tests/cuda/test_mutants.py builds it from altered sources.
#include <vector>

#include "check.h"
#include "cuda/sparse_linear_panels_wgmma.cuh"

namespace {

constexpr int kIn = 300, OB = 2, F = 260;

template <int V>
void run(int N, bool by_row) {
  using T = sk::bf16;
  using Tile = sk::WidePanelTile<V, 128>;
  const int line = (N + 7) / 8 * 8;
  check::Table table{OB, F, kIn};
  emu::Buffer<T> x("x", kIn * line, emu::Role::input), weight("weight", OB * F * V, emu::Role::input), bias("bias", OB * V, emu::Role::input);
  emu::Buffer<T> y("y", OB * V * N, emu::Role::output);
  check::fill(x, 1), check::fill(weight, 2), check::fill(bias, 3);
  const sk::Strides y_at = by_row ? sk::Strides{OB * V, 1} : sk::Strides{1, N};
  const sk::WidePanelJob job{N, line, V, F, 1, y_at, (by_row ? OB * V : N) % 8 == 0, table.index.data()};
  emu::launch(dim3((N + Tile::kRows - 1) / Tile::kRows, OB), dim3(Tile::kThreads), Tile::kBytes, sk::sparse_linear_panels_wgmma_kernel<T, V, 128>,
              x.data(), weight.data(), bias.data(), y.data(), job);
  for (int t = 0; t < OB * V; ++t)
    for (int n = 0; n < N; ++n) {
      check::Sum sum;
      sum.add(sk::to_float(bias[t]), 1);
      for (int f = 0; f < F; ++f) {
        const int w = t / V * F + f;
        sum.add(sk::to_float(x[table.index[w] * line + n]), sk::to_float(weight[w * V + t % V]));
      }
      const double got = sk::to_float(y[n * y_at.row + t * y_at.col]);
      if (!(std::fabs(got - sum.value) <= check::allowed_on_tensor_cores<T>(sum, sk::Fp32::strict)))
        return check::fail("wrong value at row %d, output %d", n, t);
    }
}

}  // namespace

int main() {
  check::in_every_way([](const char* way) {
    try {
      run<64>(139, true), run<128>(131, false);
    } catch (const emu::Fault& fault) {
      check::fail("fault: %s, %s", fault.what(), way);
    }
  });
  return check::result("mutant", 12);
}
