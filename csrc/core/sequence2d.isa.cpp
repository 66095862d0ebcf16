// Stages of sequence2d between sparse convolutions: 1x1 convolutions of planes. Vectors run over the pixels of a block that fits L1, the
// weights of a few filters are broadcast from the lines of the pack, where filters of one input channel lie side by side.
#include "core/sequence2d.h"

#include "core/vec.h"

namespace sk::SK_ISA {
namespace {

constexpr int kVectors = W == 16 ? 3 : 2;  // of pixels
constexpr int kFilters = W == 16 ? 8 : 4;  // kFilters*kVectors sums, kVectors inputs and one weight stay in registers

void relu_in_place(float* x, int64_t count) {
  int64_t i = 0;
  for (; i + W <= count; i += W) store(x + i, relu(load(x + i)));
  for (; i < count; ++i) x[i] = relu(x[i]);
}

void block(const float* planes, int64_t stride, int64_t C, int64_t pixels, bool with_relu, float* out) {
  const int64_t vectors = (pixels + W - 1) / W;
  const int last = int(pixels - (vectors - 1) * W);
  for (int64_t c = 0; c < C; ++c, planes += stride, out += vectors * W) {
    for (int64_t v = 0; v < vectors; ++v) {
      const vf x = v + 1 < vectors || last == W ? load(planes + v * W) : load_first(planes + v * W, last);
      store(out + v * W, with_relu ? relu(x) : x);
    }
  }
}

// N filters from `filter` on, whose weights of channel 0 lie at `w`, x V vectors of pixels.
using Tile = void (*)(const SequencePointwise& a, const float* w, int64_t filter);
template <int N, int V>
__attribute__((noinline)) void tile(const SequencePointwise& a, const float* w, int64_t filter) {
  vf sums[N][V];
  SK_UNROLL for (int j = 0; j < N; ++j) {
    const vf bias = splat(a.bias ? a.bias[filter + j] : 0.0f);
    SK_UNROLL for (int v = 0; v < V; ++v) sums[j][v] = bias;
  }
  const float* x = a.x;
  const int64_t C = a.C, step = a.weight_vectors * W;
  for (int64_t c = 0; c < C; ++c, x += V * W, w += step) {
    vf input[V];
    SK_UNROLL for (int v = 0; v < V; ++v) input[v] = load(x + v * W);
    SK_UNROLL for (int j = 0; j < N; ++j) {
      const vf weight = splat(w[j]);
      SK_UNROLL for (int v = 0; v < V; ++v) sums[j][v] += weight * input[v];
    }
  }
  const int last = a.whole ? W : int(a.pixels - (V - 1) * W);
  float* out = a.out + filter * a.out_stride;
  SK_UNROLL for (int j = 0; j < N; ++j, out += a.out_stride) {
    SK_UNROLL for (int v = 0; v < V; ++v) {
      const vf sum = a.relu ? relu(sums[j][v]) : sums[j][v];
      v == V - 1 && last < W ? store_first(out + v * W, sum, last) : store(out + v * W, sum);
    }
  }
}

template <int N, int V>
constexpr Tile tile_at() {
  if constexpr (N <= kFilters && V <= kVectors) return tile<N, V>;
  return nullptr;
}
#define SK_POINTWISE_ROW(V) \
  {tile_at<1, V>(), tile_at<2, V>(), tile_at<3, V>(), tile_at<4, V>(), tile_at<5, V>(), tile_at<6, V>(), tile_at<7, V>(), tile_at<8, V>()}
constexpr Tile kTiles[3][8] = {SK_POINTWISE_ROW(1), SK_POINTWISE_ROW(2), SK_POINTWISE_ROW(3)};

void pointwise(const SequencePointwise& a) {
  const Tile* tiles = kTiles[(a.pixels + W - 1) / W - 1];
  const int64_t block_floats = a.C * a.weight_vectors * W;
  for (int64_t first = 0; first < a.K; first += W) {  // filters that lie side by side
    const float* w = a.weights + first / W / a.weight_vectors * block_floats + first / W % a.weight_vectors * W;
    const int64_t filters = a.K - first < W ? a.K - first : W, pieces = (filters + kFilters - 1) / kFilters;
    for (int64_t p = 0; p < pieces; ++p) {
      const int64_t begin = filters * p / pieces, end = filters * (p + 1) / pieces;
      tiles[end - begin - 1](a, w + begin, first + begin);
    }
  }
}

}  // namespace

extern const SequenceKernels sequence_kernels = {W, kVectors, relu_in_place, block, pointwise};

}  // namespace sk::SK_ISA
