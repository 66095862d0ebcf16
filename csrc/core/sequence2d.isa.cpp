// What stands between a sparse convolution, whose results are planes, and the packed 1x1 behind it, whose results are pixels.
#include "core/sequence2d.h"

#include "core/vec.h"

namespace sk::SK_ISA {
namespace {

void relu_in_place(float* x, int64_t count) {
  int64_t i = 0;
  for (; i + W <= count; i += W) store(x + i, relu(load(x + i)));
  for (; i < count; ++i) x[i] = relu(x[i]);
}

// P pixels x V vectors of output channels; each input channel is one broadcast per pixel.
template <int V, int P>
SK_INLINE void tile(const SequencePointwise& a, const float* const* weights, int64_t pixel, int64_t channel) {
  vf sums[P][V];
  const float* const x = a.planes + pixel;
  const int last = int(a.K - channel - (V - 1) * W);  // channels of the last vector, if fewer than it has lanes
  SK_UNROLL for (int v = 0; v < V; ++v) {
    const float* b = a.bias + channel + v * W;
    const vf bias = !a.bias ? zero() : v == V - 1 && last < W ? load_first(b, last) : load(b);
    SK_UNROLL for (int p = 0; p < P; ++p) sums[p][v] = bias;
  }
  const int64_t plane = a.pixels, step = a.weight_step;
  for (int64_t c = 0; c < a.C; ++c) {
    vf w[V];
    SK_UNROLL for (int v = 0; v < V; ++v) w[v] = load(weights[v] + c * step);
    SK_UNROLL for (int p = 0; p < P; ++p) {
      const vf value = splat(x[c * plane + p]);
      SK_UNROLL for (int v = 0; v < V; ++v) sums[p][v] += value * w[v];
    }
  }
  SK_UNROLL for (int p = 0; p < P; ++p) {
    float* const to = a.out + (pixel + p) * a.K + channel;
    SK_UNROLL for (int v = 0; v < V; ++v) {
      const vf sum = a.relu ? relu(sums[p][v]) : sums[p][v];
      v == V - 1 && last < W ? store_first(to + v * W, sum, last) : store(to + v * W, sum);
    }
  }
}

template <int V, int P>
void tiles(const SequencePointwise& a, int64_t channel, int64_t begin, int64_t end) {
  const float* weights[V];
  for (int v = 0; v < V; ++v) {
    const int64_t vector = channel / W + v;
    weights[v] = a.weights + vector / a.vectors * a.C * a.weight_step + vector % a.vectors * W;
  }
  for (; begin + P <= end; begin += P) tile<V, P>(a, weights, begin, channel);
  for (; begin < end; ++begin) tile<V, 1>(a, weights, begin, channel);
}

// Pixels in strips whose planes stay in L1 while the vectors of channels go by.
void pointwise(const SequencePointwise& a, int64_t begin, int64_t end) {
  constexpr int64_t kStrip = 32;
  for (; begin < end; begin += kStrip) {
    const int64_t stop = begin + kStrip < end ? begin + kStrip : end;
    for (int64_t channel = 0; channel < a.K;) {
      const int64_t vectors = (a.K - channel + W - 1) / W;
      if (vectors == 1)
        tiles<1, 16>(a, channel, begin, stop), channel += W;
      else if (vectors == 2 || vectors == 4)
        tiles<2, 8>(a, channel, begin, stop), channel += 2 * W;
      else
        tiles<3, 8>(a, channel, begin, stop), channel += 3 * W;
    }
  }
}

}  // namespace

extern const SequenceKernels sequence_kernels = {W, relu_in_place, pointwise};

}  // namespace sk::SK_ISA
