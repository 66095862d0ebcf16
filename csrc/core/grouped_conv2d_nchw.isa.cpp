// NCHW kernels of grouped_conv2d: vectors of pixels, register tile of `Rows` output channels x `Vectors` vectors.
// Weights are broadcast straight from their natural layout: Rows streams, each read front to back.
#pragma GCC diagnostic ignored "-Wuninitialized"  // GCC 12 about its own intrinsics
#include "core/grouped_conv2d_impl.h"
#include "core/vec.h"

namespace sk::SK_ISA {
namespace {

constexpr int kAccumulators = W == 16 ? 24 : 12;  // of 32 or 16 registers

// out[pixels of v] = v + shortcut, then relu
#if defined(__AVX512F__)
SK_INLINE void store_pixels(float* plane, const float* shortcut, bool with_relu, const PlaneVector& at, vf v) {
  const __mmask16 pixels = __mmask16((1u << at.count) - 1);
  vf packed = reinterpret_cast<vf>(_mm512_maskz_compress_ps(__mmask16(at.mask), reinterpret_cast<__m512>(v)));
  if (shortcut) packed += reinterpret_cast<vf>(_mm512_maskz_loadu_ps(pixels, shortcut + at.first));
  if (with_relu) packed = relu(packed);
  _mm512_mask_storeu_ps(plane + at.first, pixels, reinterpret_cast<__m512>(packed));
}
#else
SK_INLINE void store_pixels(float* plane, const float* shortcut, bool with_relu, const PlaneVector& at, vf v) {
  if (at.count == W) {
    if (shortcut) v += load(shortcut + at.first);
    return store(plane + at.first, with_relu ? relu(v) : v);
  }
  int64_t pixel = at.first;
  SK_UNROLL for (int l = 0; l < W; ++l) {
    if (!(at.mask >> l & 1)) continue;
    const float sum = shortcut ? v[l] + shortcut[pixel] : v[l];
    plane[pixel++] = with_relu ? relu(sum) : sum;
  }
}
#endif

// out[row][pixel] = bias[row] + sum over channels and taps
template <int Rows, int Vectors>
void tile(const PlaneTile& t) {
  vf acc[Rows][Vectors];
  SK_UNROLL for (int r = 0; r < Rows; ++r) {
    const vf start = t.bias ? splat(t.bias[r]) : zero();
    SK_UNROLL for (int v = 0; v < Vectors; ++v) acc[r][v] = start;
  }
  const float* weight = t.weight;
  for (const int64_t *offset = t.offset, *end = offset + t.terms; offset != end; ++offset, ++weight) {
    const float* pixels = t.x + *offset;
    vf source[Vectors];
    SK_UNROLL for (int v = 0; v < Vectors; ++v) source[v] = load(pixels + v * W);
    SK_UNROLL for (int r = 0; r < Rows; ++r) {
      const vf w = splat(weight[r * t.terms]);
      SK_UNROLL for (int v = 0; v < Vectors; ++v) acc[r][v] += source[v] * w;
    }
  }
  SK_UNROLL for (int r = 0; r < Rows; ++r) SK_UNROLL for (int v = 0; v < Vectors; ++v)
      store_pixels(t.out + r * t.out_plane, t.shortcut ? t.shortcut + r * t.out_plane : nullptr, t.relu, t.vectors[v], acc[r][v]);
}

void add_shortcut(const float* shortcut, bool with_relu, float* out, int64_t count) {
  const auto sum_of = [&](vf a, vf b) { return with_relu ? relu(a + b) : a + b; };
  int64_t i = 0;
  for (; i + W <= count; i += W) store(out + i, sum_of(load(out + i), load(shortcut + i)));
  const int rest = int(count - i);
  if (rest) store_first(out + i, sum_of(load_first(out + i, rest), load_first(shortcut + i, rest)), rest);
}

// sums[row][pair] = sum over images and pixels of grad_out * x
template <int Rows>
void weight_tile(PlaneWeightTile& t) {
  constexpr int kPairs = W == 16 ? kWeightTileX : 3;  // registers: two passes without AVX-512
  for (int first = 0; first < kWeightTileX; first += kPairs) {
    vf acc[Rows][kPairs];
    SK_UNROLL for (int r = 0; r < Rows; ++r) SK_UNROLL for (int i = 0; i < kPairs; ++i) acc[r][i] = zero();
    for (int64_t n = 0; n < t.images; ++n) {
      const float* grad = t.grad_out + n * t.grad_out_image;
      const float* x[kPairs];
      SK_UNROLL for (int i = 0; i < kPairs; ++i) x[i] = t.x[first + i] + n * t.x_image;
      for (int64_t p = 0; p < t.vectors * W; p += W) {
        vf g[Rows];
        SK_UNROLL for (int r = 0; r < Rows; ++r) g[r] = load(grad + r * t.grad_out_plane + p);
        SK_UNROLL for (int i = 0; i < kPairs; ++i) {
          const vf source = load(x[i] + p);
          SK_UNROLL for (int r = 0; r < Rows; ++r) acc[r][i] += g[r] * source;
        }
      }
    }
    SK_UNROLL for (int r = 0; r < Rows; ++r) SK_UNROLL for (int i = 0; i < kPairs; ++i) t.sums[r][first + i] = sum(acc[r][i]);
  }
}

void copy_rows(const float* src, int64_t src_row, int64_t rows, int64_t columns, float* dst, int64_t dst_row) {
  const int64_t full = columns / W * W;
  const int rest = int(columns - full);
  for (int64_t y = 0; y < rows; ++y, src += src_row, dst += dst_row) {
    for (int64_t i = 0; i < full; i += W) store(dst + i, load(src + i));
    if (rest) store_first(dst + full, load_first(src + full, rest), rest);
  }
}

void copy_rows_nhwc(const float* src, int64_t src_pixel, int64_t src_row, int64_t rows, int64_t columns, int64_t channels, float* dst,
                    int64_t dst_row, int64_t dst_plane) {
  for (int64_t y = 0; y < rows; ++y, src += src_row, dst += dst_row) {
    int64_t c = 0;
    for (; c + 4 <= channels; c += 4) {  // four planes at once: one cache line of a pixel serves them all
      const float* in = src + c;
      float *d0 = dst + c * dst_plane, *d1 = d0 + dst_plane, *d2 = d1 + dst_plane, *d3 = d2 + dst_plane;
      for (int64_t i = 0; i < columns; ++i, in += src_pixel) {
        d0[i] = in[0];
        d1[i] = in[1];
        d2[i] = in[2];
        d3[i] = in[3];
      }
    }
    for (; c < channels; ++c)
      for (int64_t i = 0; i < columns; ++i) dst[c * dst_plane + i] = src[i * src_pixel + c];
  }
}

template <int Rows, int Vectors>
constexpr PlaneTileFn pick() {
  if constexpr (Rows * Vectors <= kAccumulators)
    return tile<Rows, Vectors>;
  else
    return nullptr;
}
// clang-format off
#define SK_TILES(R) \
  { nullptr, pick<R, 1>(), pick<R, 2>(), pick<R, 3>(), pick<R, 4>(), pick<R, 5>(), pick<R, 6>(), pick<R, 7>(), pick<R, 8>() }
// clang-format on

}  // namespace

extern const ConvPlaneKernels conv_plane_kernels = {
    W,
    {{}, SK_TILES(1), SK_TILES(2), SK_TILES(3), SK_TILES(4), SK_TILES(5), SK_TILES(6), SK_TILES(7), SK_TILES(8)},
    {nullptr, weight_tile<1>, weight_tile<2>, weight_tile<3>, weight_tile<4>},
    add_shortcut,
    copy_rows,
    copy_rows_nhwc,
};
#undef SK_TILES

}  // namespace sk::SK_ISA
