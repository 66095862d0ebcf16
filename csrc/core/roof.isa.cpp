// The two loops whose speed is the roof: multiply-adds that touch no memory, and loads that do nothing else.
#include "core/roof.h"

#include "core/vec.h"

namespace sk::SK_ISA {
namespace {

// Independent chains: latency 4 times 2 units needs 8; more than the registers hold would measure spills.
constexpr int kChains = SK_VEC_BYTES == 64 ? 24 : 12;

volatile float sink;                                          // what is never read would never be computed
volatile float start = 1.0f, factor = 0.999f, term = 0.001f;  // ... and what is known in advance neither

double fma(int64_t steps) {
  const vf a = splat(factor), b = splat(term);
  vf chain[kChains];
  SK_UNROLL for (int c = 0; c < kChains; ++c) chain[c] = splat(start + float(c));
  for (int64_t s = 0; s < steps; ++s) SK_UNROLL for (int c = 0; c < kChains; ++c) chain[c] = chain[c] * a + b;
  vf total = zero();
  SK_UNROLL for (int c = 0; c < kChains; ++c) total += chain[c];
  sink = sum(total);
  return 2.0 * W * kChains * double(steps);
}

float read(const float* data, int64_t size) {
  constexpr int kStreams = 8;
  vf total[kStreams] = {};
  for (int64_t i = 0; i < size; i += kStreams * W) SK_UNROLL for (int s = 0; s < kStreams; ++s) total[s] += load(data + i + s * W);
  SK_UNROLL for (int s = 1; s < kStreams; ++s) total[0] += total[s];
  return sum(total[0]);
}

}  // namespace

const RoofKernels roof_kernels = {fma, read};

}  // namespace sk::SK_ISA
