// The emulator's own test: right kernels give right values however they are scheduled, and every planted bug is caught, each
// under every schedule and by the rule that it breaks.
#include <cstring>

#include "check.h"
#include "planted.cuh"

namespace {

using planted::Bug;
using sk::bf16;
int cases = 0;

// ---- one run of each kernel against plain loops
template <Bug bug>
void product() {
  constexpr int kSteps = 5, K = 32 * kSteps;
  emu::Buffer<bf16> a("a", 16 * K, emu::Role::input), bt("bt", 16 * K, emu::Role::input);
  emu::Buffer<float> out("out", 16 * 16, emu::Role::output);
  check::fill(a, 1), check::fill(bt, 2);
  emu::launch(dim3(1), dim3(64), 2 * 32 * 80, planted::product_kernel<bug>, a.data(), bt.data(), out.data(), kSteps);
  for (int r = 0; r < 16; ++r)
    for (int c = 0; c < 16; ++c) {
      double sum = 0, size = 0;
      for (int k = 0; k < K; ++k) {
        const double term = double(sk::to_float(a[r * K + k])) * sk::to_float(bt[c * K + k]);
        sum += term, size += std::fabs(term);
      }
      if (!(std::fabs(out[r * 16 + c] - sum) <= K * 1.2e-7 * size)) check::fail("product wrong at %d, %d: %g for %g", r, c, out[r * 16 + c], sum);
    }
}
template <Bug bug>
void neighbours() {
  constexpr int kSize = 131;
  emu::Buffer<float> x("x", kSize, emu::Role::input), out("out", kSize, emu::Role::output);
  check::fill(x, 3);
  emu::launch(dim3(3), dim3(64), 0, planted::neighbours_kernel<bug>, x.data(), out.data(), kSize);
  for (int i = 0; i < kSize; ++i) {
    const float want = (i ? x[i - 1] : 0) + x[i] + (i + 1 < kSize ? x[i + 1] : 0);
    if (!(std::fabs(out[i] - want) <= 1e-6)) check::fail("neighbours wrong at %d", i);
  }
}
template <Bug bug>
void sum() {
  emu::Buffer<float> x("x", 64, emu::Role::input), out("out", 1, emu::Role::output);
  check::fill(x, 4);
  emu::launch(dim3(1), dim3(64), 264, planted::sum_kernel<bug>, x.data(), out.data());
  double want = 0;
  for (int i = 0; i < 64; ++i) want += x[i];
  if (!(std::fabs(out[0] - want) <= 64 * 1.2e-7 * 64)) check::fail("sum wrong: %g for %g", out[0], want);
}
template <Bug bug>
void tail() {
  constexpr int kSize = 203;
  emu::Buffer<bf16> x("x", kSize, emu::Role::input), out("out", 256, emu::Role::output);
  check::fill(x, 5);
  emu::launch(dim3(1), dim3(32), 512, planted::tail_kernel<bug>, x.data(), out.data(), kSize);
  for (int i = 0; i < 256; ++i)
    if (out[i].bits != (i < kSize ? x[i].bits : 0)) check::fail("tail wrong at %d", i);
}
template <Bug bug>
void warpgroup() {
  constexpr int kRounds = 3, K = 64 * kRounds;
  emu::Buffer<bf16> a("a", 64 * K, emu::Role::input), b("b", K * 64, emu::Role::input);
  emu::Buffer<float> out("out", 64 * 64, emu::Role::output);
  check::fill(a, 6), check::fill(b, 7);
  emu::launch(dim3(1), dim3(128), 2 * 64 * 128, planted::warpgroup_kernel<bug>, a.data(), b.data(), out.data(), kRounds);
  for (int r = 0; r < 64; ++r)
    for (int c = 0; c < 64; ++c) {
      double sum = 0;
      for (int k = 0; k < K; ++k) sum += double(sk::to_float(a[r * K + k])) * sk::to_float(b[k * 64 + c]);
      if (!(std::fabs(out[r * 64 + c] - sum) <= K * K * 1.2e-7)) check::fail("warpgroup wrong at %d, %d: %g for %g", r, c, out[r * 64 + c], sum);
    }
}

// f must end in a Fault whose text holds one of the rules, in every way to run it.
void caught(const char* bug, void (*f)(), const std::vector<const char*>& rules) {
  check::in_every_way([&](const char* way) {
    ++cases;
    const int before = check::failures;
    try {
      f();
      check::failures = before;
      check::fail("%s, %s: not caught", bug, way);
    } catch (const emu::Fault& fault) {
      if (std::none_of(rules.begin(), rules.end(), [&](const char* r) { return std::strstr(fault.what(), r); }))
        check::fail("%s, %s: caught as: %s", bug, way, fault.what());
    }
  });
}
#define CAUGHT(kernel, bug, ...) caught(#kernel ": " #bug, kernel<Bug::bug>, {__VA_ARGS__})

// f must give wrong values.
void wrong(const char* name, void (*f)()) {
  check::in_every_way([&](const char* way) {
    ++cases;
    const int before = check::failures;
    check::failures = 20;  // nothing is printed
    f();
    const bool found = check::failures > 20;
    check::failures = before;
    if (!found) check::fail("%s, %s: not noticed", name, way);
  });
}

void right(const char* name, void (*f)()) {
  check::in_every_way([&](const char* way) {
    ++cases;
    try {
      f();
    } catch (const emu::Fault& fault) {
      check::fail("%s, %s: %s", name, way, fault.what());
    }
  });
}

// ---- numbers: conversions against the definition, at every 16-bit value and at ties
void conversions() {
  ++cases;
  for (uint32_t bits = 0; bits < 65536; ++bits) {
    const float b = sk::to_float(bf16{uint16_t(bits)}), h = sk::to_float(sk::fp16{uint16_t(bits)});
    if (!std::isnan(b) && sk::from_float<bf16>(b).bits != bits) check::fail("bf16 %04x does not come back", bits);
    if (!std::isnan(h) && sk::from_float<sk::fp16>(h).bits != bits) check::fail("fp16 %04x does not come back", bits);
    const float next = sk::to_float(sk::fp16{uint16_t(bits + 1)});
    if ((bits & 0x7fff) >= 0x7bff) continue;
    const uint16_t even = uint16_t(bits & 1 ? bits + 1 : bits);  // halfway between two neighbours goes to the even one
    if (sk::from_float<sk::fp16>((h + next) / 2).bits != even) check::fail("fp16 tie above %04x", bits);
    if (sk::from_float<sk::fp16>(std::nextafter((h + next) / 2, h)).bits != bits) check::fail("fp16 below the tie above %04x", bits);
    if (sk::from_float<sk::fp16>(std::nextafter((h + next) / 2, next)).bits != bits + 1) check::fail("fp16 above the tie above %04x", bits);
  }
  if (sk::from_float<sk::fp16>(65519.9f).bits != 0x7bff || sk::from_float<sk::fp16>(65520.f).bits != 0x7c00) check::fail("fp16 overflow");
  if (sk::from_float<bf16>(1 + 1 / 256.f).bits != 0x3f80 || sk::from_float<bf16>(1 + 3 / 256.f).bits != 0x3f82) check::fail("bf16 ties go to even");
  if (sk::to_tf32(1 + 1 / 2048.f) != 1 + 1 / 1024.f || sk::to_tf32(-1 - 1 / 2048.f) != -1 - 1 / 1024.f) check::fail("tf32 ties go away from zero");
  if (!std::isnan(sk::to_tf32(NAN)) || !std::isinf(sk::to_tf32(INFINITY)) || !std::isinf(sk::to_tf32(3.4028235e38f))) check::fail("tf32 specials");
  const double ones[4] = {1, 1, 1, std::ldexp(1.0, -30)};
  if (emu::hardware_sum(16777216.f, ones, 4) != 16777218.f) check::fail("a tensor core cuts what lies below 25 bits");  // 2^24 + 3 is no float
}

// ---- counters: known access patterns
template <int Stride>
__global__ void strided_kernel(const float* x, float* out) {
  sk::store_shared(threadIdx.x * 4 * Stride, sk::load(x + threadIdx.x * Stride));
  __syncthreads();
  sk::store(out + threadIdx.x, sk::load_shared<float>(threadIdx.x * 4 * Stride));
}
template <int Stride>
void count(double waste, double conflicts) {
  ++cases;
  emu::Buffer<float> x("x", 32 * Stride, emu::Role::input), out("out", 32, emu::Role::output);
  emu::options.count = true, emu::counters = {};
  emu::launch(dim3(1), dim3(32), 128 * Stride, strided_kernel<Stride>, x.data(), out.data());
  emu::options.count = false;
  const emu::Cost cost = emu::counters.all();
  if (cost.global_waste() != waste || cost.bank_conflicts() != conflicts)
    check::fail("stride %d: %g of the sectors and %g of the passes needed", Stride, cost.global_waste(), cost.bank_conflicts());
}

}  // namespace

int main() {
  conversions();
  count<1>(1, 1);
  count<2>((8 + 4) / 8.0, 2);  // 8 sectors where 4 would do, beside 4 of the store
  count<8>((32 + 4) / 8.0, 8);
  right("product", product<Bug::none>);
  right("neighbours", neighbours<Bug::none>);
  right("sum", sum<Bug::none>);
  right("tail", tail<Bug::none>);
  right("warpgroup", warpgroup<Bug::none>);
  CAUGHT(product, no_barrier_after_wait, "race");
  CAUGHT(product, no_barrier_before_refill, "race", "is being copied to");
  CAUGHT(product, wait_one_too_few, "is being copied to");
  CAUGHT(product, no_wait, "is being copied to");
  CAUGHT(product, no_commit_at_end, "is being copied to");
  CAUGHT(product, barrier_in_a_branch, "deadlock", "race", "divergent");
  CAUGHT(product, two_barriers, "divergent barrier");
  CAUGHT(product, exit_before_barrier, "deadlock");
  CAUGHT(product, collective_in_a_branch, "deadlock", "divergent", "race");
  CAUGHT(product, past_shared_memory, "are outside");
  CAUGHT(product, unaligned_copy, "the source is not a multiple of 16");
  CAUGHT(sum, no_warp_sync, "race");
  CAUGHT(sum, shuffle_of_half_a_warp, "deadlock", "divergent");
  CAUGHT(neighbours, left_of_the_row, "bytes [-4, 0) are outside x");
  CAUGHT(neighbours, right_of_the_row, "bytes [524, 528) are outside x");
  CAUGHT(neighbours, tail_is_written, "are outside out");
  CAUGHT(neighbours, misaligned_vector, "is not a multiple of 8");
  CAUGHT(neighbours, written_twice, "is written twice");
  CAUGHT(neighbours, read_back, "was written in the same launch", "race");
  CAUGHT(tail, copies_past_the_end, "are outside x");
  CAUGHT(warpgroup, no_proxy_fence, "did not fence the asynchronous proxy");
  CAUGHT(warpgroup, proxy_fence_after_barrier, "did not fence the asynchronous proxy before");
  CAUGHT(warpgroup, no_barrier_before_wgmma, "race");  // though the wgmma of a warpgroup begins where its warps meet
  CAUGHT(warpgroup, no_barrier_after_wgmma, "race");
  CAUGHT(warpgroup, sums_written_under_wgmma, "were written while a wgmma add");
  wrong("warpgroup: sums_read_under_wgmma", warpgroup<Bug::sums_read_under_wgmma>);
  CAUGHT(warpgroup, no_wgmma_fence, "no wgmma.fence");
  CAUGHT(warpgroup, wgmma_not_waited_for, "a wgmma of its own is not waited for");
  CAUGHT(warpgroup, refill_under_wgmma, "is still read by a wgmma");
#if !defined(__SANITIZE_ADDRESS__)  // under ASan these end the process, with its own report
  CAUGHT(neighbours, plain_read_far_outside, "plain access");
  CAUGHT(neighbours, plain_write_past_the_end, "past the end of out");
#endif
  return check::result("emulator", cases);
}
