// Driver of the pooling kernels: the pixels under each window, one output row after the other.
#include "core/pool2d.h"

#include <algorithm>

namespace sk {
namespace {

constexpr int64_t kNear = 6 << 10;    // floats
constexpr int64_t kVectors = 8 * 16;  // channels that the kernels take at once

struct Range {
  int64_t begin, end, padded;  // inside the image; `padded`: also counting the padding around it
};
Range taps_of(int64_t o, int64_t stride, int64_t pad, int64_t kernel, int64_t size) {
  const int64_t begin = o * stride - pad, end = std::min(begin + kernel, size + pad);
  return {std::max<int64_t>(begin, 0), std::min(end, size), end - begin};
}

}  // namespace

void pool2d_fwd(const Pool2dShape& s, Pooling pooling, const float* x, float* out, const Pool& pool) {
  if (s.N * s.C * s.OH * s.OW == 0) return;
  const Pool2dKernels& kernels = SK_PICK_KERNELS(pool2d_kernels);
  // neighbouring windows share pixels: of the rows under them so many channels together as stay in L1
  const int64_t together = s.KH * s.W * s.C <= kNear ? s.C : std::max<int64_t>(kVectors, kNear / (s.KH * s.W) / kVectors * kVectors);
  const int64_t row_work = s.OW * s.C * std::min(s.KH, s.H) * std::min(s.KW, s.W);
  parallel(pool, s.N * s.OH, 1 + 65536 / row_work, [&](int64_t begin, int64_t end) {
    Scratch list(size_t(std::min(s.KH, s.H) * std::min(s.KW, s.W)) * sizeof(const float*));
    const float** taps = list.as<const float*>();
    for (int64_t unit = begin; unit < end; ++unit) {
      const float* image = x + unit / s.OH * s.H * s.W * s.C;
      const Range rows = taps_of(unit % s.OH, s.stride_h, s.pad_h, s.KH, s.H);
      for (int64_t c = 0; c < s.C; c += together) {
        const int64_t channels = std::min(together, s.C - c);
        for (int64_t ox = 0; ox < s.OW; ++ox) {
          const Range columns = taps_of(ox, s.stride_w, s.pad_w, s.KW, s.W);
          int64_t count = 0;
          for (int64_t v = rows.begin; v < rows.end; ++v)
            for (int64_t u = columns.begin; u < columns.end; ++u) taps[count++] = image + (v * s.W + u) * s.C + c;
          float* to = out + (unit * s.OW + ox) * s.C + c;
          if (pooling == Pooling::max)
            kernels.max(taps, count, channels, to);
          else
            kernels.average(taps, count, channels, float(pooling == Pooling::average ? count : rows.padded * columns.padded), to);
        }
      }
    }
  });
}

}  // namespace sk
