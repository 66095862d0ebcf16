// Packing of NHWC convolution weights: squares of W output channels x W columns through registers, so that every cache
// line of the natural weight is read once.
#include "core/grouped_conv2d_impl.h"
#include "core/transpose.h"

namespace sk::SK_ISA {
namespace {

void pack(const float* weight, int64_t rows, int64_t columns, const int32_t* position, int64_t step, float* packed) {
  for (int64_t first = 0; first < columns; first += W) {
    const int count = int(columns - first < W ? columns - first : W);
    vf square[W];
    SK_UNROLL for (int r = 0; r < W; ++r) {
      const float* from = weight + r * columns + first;
      square[r] = r >= rows ? zero() : count == W ? load(from) : load_first(from, count);
    }
    transpose(square);
    if (count == W) {
      SK_UNROLL for (int i = 0; i < W; ++i) store(packed + position[first + i] * step, square[i]);
    } else {
      for (int i = 0; i < count; ++i) store(packed + position[first + i] * step, square[i]);
    }
  }
}

}  // namespace

extern const ConvPackKernels conv_pack_kernels = {pack};

}  // namespace sk::SK_ISA
