// Repeats the loops of roof.isa.cpp for the time given and keeps the best stretch: a roof is what can be reached.
#include "core/roof.h"

#include <algorithm>
#include <chrono>
#include <cstring>

namespace sk {
namespace {

double now_seconds() { return std::chrono::duration<double>(std::chrono::steady_clock::now().time_since_epoch()).count(); }

// The best rate of work() over stretches of about a millisecond; work() returns how much it did.
template <class F>
double best_rate(double seconds, const F& work) {
  const double deadline = now_seconds() + seconds;
  double best = 0;
  do {
    const double begin = now_seconds();
    double done = 0, elapsed = 0;
    do {
      done += work();
      elapsed = now_seconds() - begin;
    } while (elapsed < 1e-3);
    best = std::max(best, done / elapsed);
  } while (now_seconds() < deadline);
  return best;
}

}  // namespace

double roof_fma_gflops(double seconds) {
  const RoofKernels& kernels = SK_PICK_KERNELS(roof_kernels);
  return best_rate(seconds, [&] { return kernels.fma(1000); }) / 1e9;
}

double roof_read_gbytes(size_t bytes, double seconds) {
  const RoofKernels& kernels = SK_PICK_KERNELS(roof_kernels);
  const int64_t size = std::max<int64_t>(128, int64_t(bytes / sizeof(float)) / 128 * 128);
  Scratch scratch(size_t(size) * sizeof(float));
  float* data = scratch.as<float>();
  std::memset(data, 0, size_t(size) * sizeof(float));
  volatile float sink = 0;
  return best_rate(seconds,
                   [&] {
                     sink = kernels.read(data, size);
                     return double(size) * sizeof(float);
                   }) /
         1e9;
}

}  // namespace sk
