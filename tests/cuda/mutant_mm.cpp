// A small run of the grouped products of matrices, quick to compile: tests/cuda/test_mutants.py builds it from altered sources.
#include <vector>

#include "check.h"
#include "cuda/grouped_mm.cuh"

namespace {

using sk::bf16;
constexpr int K = 72, N = 72, kRows[] = {3, 0, 70, 1};

template <class T>
void compare(const char* what, const std::vector<check::Sum>& wanted, const emu::Buffer<T>& got) {
  for (size_t i = 0; i < got.size(); ++i)
    if (!(std::fabs(sk::to_float(got[i]) - wanted[i].value) <= wanted[i].magnitude / 256 + 1e-6))
      return check::fail("wrong value of %s at %zu of %zu", what, i, got.size());
}

// Forward by tiles and directly, grad_b by tiles, all of ragged groups.
template <class T>
void run() {
  emu::Buffer<int32_t> ends("offsets", 4, emu::Role::input);
  int64_t rows = 0;
  for (int g = 0; g < 4; ++g) ends[g] = int(rows += kRows[g]);
  emu::Buffer<T> a("a", rows * K, emu::Role::input), b("b", 4 * K * N, emu::Role::input), grad("grad_out", rows * N, emu::Role::input);
  emu::Buffer<T> out("out", rows * N, emu::Role::output), direct("direct", rows * N, emu::Role::output),
      grad_b("grad_b", 4 * K * N, emu::Role::output);
  check::fill(a, 1), check::fill(b, 2), check::fill(grad, 3);
  std::vector<check::Sum> wanted_out(out.size()), wanted_grad(grad_b.size());
  for (int64_t r = 0, g = 0; r < rows; ++r) {
    while (r >= ends[g]) ++g;
    for (int k = 0; k < K; ++k)
      for (int n = 0; n < N; ++n) {
        const double v = sk::to_float(a[r * K + k]);
        wanted_out[r * N + n].add(v, sk::to_float(b[(g * K + k) * N + n])), wanted_grad[(g * K + k) * N + n].add(v, sk::to_float(grad[r * N + n]));
      }
  }
  sk::MmJob job{};
  job.offsets = ends.data(), job.rows = rows, job.groups = 4, job.inner = K, job.columns = N, job.a_line = K, job.b_line = N, job.b_group = K * N;
  job.a_vectors = job.b_vectors = true, job.row_tiles = 2, job.column_tiles = 2;
  emu::launch(dim3(4), dim3(sk::kMmThreads), sk::kMmBytes, sk::grouped_mm_tile_kernel<T, sk::Fp32::tf32, false, true>, a.data(), b.data(), out.data(),
              job);
  compare("out", wanted_out, out);
  job.row_tiles = 5, job.column_tiles = 3;
  emu::launch(dim3(4), dim3(sk::kMmThreads), 0, sk::grouped_mm_direct_kernel<T, sk::Fp32::tf32, false, true>, a.data(), b.data(), direct.data(), job);
  compare("out, directly", wanted_out, direct);
  job.result_rows = K, job.row_tiles = job.column_tiles = 2;
  emu::launch(dim3(16), dim3(sk::kMmThreads), sk::kMmBytes, sk::grouped_mm_tile_kernel<T, sk::Fp32::tf32, true, true>, a.data(), grad.data(),
              grad_b.data(), job);
  compare("grad_b", wanted_grad, grad_b);
}

}  // namespace

int main() {
  check::in_every_way([](const char* way) {
    try {
      run<bf16>(), run<float>();
    } catch (const emu::Fault& fault) {
      check::fail("fault: %s, %s", fault.what(), way);
    }
  });
  return check::result("mutant", 36);
}
