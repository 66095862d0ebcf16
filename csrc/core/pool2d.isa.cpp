// One pixel of pooled channels: vectors run over the channels, and each tap is read once.
#include "core/pool2d.h"

#include "core/pool2d_lanes.h"

namespace sk::SK_ISA {
namespace {

template <class F>
SK_INLINE void each_vector(int64_t channels, const F& f) {
  int64_t c = 0;
  for (; c + W <= channels; c += W) f(c, W);
  if (c < channels) f(c, int(channels - c));
}
SK_INLINE vf load_some(const float* p, int n) { return n == W ? load(p) : load_first(p, n); }
SK_INLINE void store_some(float* p, vf v, int n) { n == W ? store(p, v) : store_first(p, v, n); }

// V vectors of channels from `c` on: enough of them in flight hide how long one step takes
template <int V, class Combine, class Finish>
SK_INLINE void block_over_taps(const float* const* taps, int64_t count, int64_t c, const Combine& combine, const Finish& finish, float* out) {
  vf acc[V];
  SK_UNROLL for (int v = 0; v < V; ++v) acc[v] = load(taps[0] + c + v * W);
  for (int64_t t = 1; t < count; ++t) SK_UNROLL for (int v = 0; v < V; ++v) acc[v] = combine(acc[v], load(taps[t] + c + v * W));
  SK_UNROLL for (int v = 0; v < V; ++v) store(out + c + v * W, finish(acc[v]));
}

// finish(combine(combine(tap 0, tap 1), tap 2) ...)
template <class Combine, class Finish>
SK_INLINE void over_taps(const float* const* taps, int64_t count, int64_t channels, const Combine& combine, const Finish& finish, float* out) {
  int64_t c = 0;
  for (; c + 8 * W <= channels; c += 8 * W) block_over_taps<8>(taps, count, c, combine, finish, out);
  for (; c + 4 * W <= channels; c += 4 * W) block_over_taps<4>(taps, count, c, combine, finish, out);
  each_vector(channels - c, [&](int64_t at, int n) {
    vf acc = load_some(taps[0] + c + at, n);
    for (int64_t t = 1; t < count; ++t) acc = combine(acc, load_some(taps[t] + c + at, n));
    store_some(out + c + at, finish(acc), n);
  });
}

void max_pixel(const float* const* taps, int64_t count, int64_t channels, float* out) {
  over_taps(taps, count, channels, [](vf a, vf b) { return larger(a, b); }, [](vf a) { return a; }, out);
}
void average_pixel(const float* const* taps, int64_t count, int64_t channels, float divisor, float* out) {
  over_taps(taps, count, channels, [](vf a, vf b) { return a + b; }, [=](vf a) { return a / divisor; }, out);
}

}  // namespace

extern const Pool2dKernels pool2d_kernels = {max_pixel, average_pixel};

}  // namespace sk::SK_ISA
