// Driver of root_conv2d: cuts the output into chunks and runs the kernels of grouped_conv2d on each.
#include "core/root_conv2d.h"

#include <algorithm>
#include <atomic>

namespace sk {
namespace {

constexpr int64_t kLeast = 128 << 10;           // floats between the stages of a chunk: fewer do not pay for its calls ...
constexpr int64_t kMost = 256 << 10;            // ... more leave no room in L2 for what comes in, goes out, and the weights
constexpr int64_t kLeastRows = 4;               // of a band: tiles are up to three rows high
constexpr int64_t kLeastPixels = 196;           // each chunk reads the weights again
constexpr int64_t kLeastPixelsUnpacked = 1024;  // ... and packs them

int64_t weight_floats(const Conv2dShape& s) { return s.K * (s.C / s.groups) * s.KH * s.KW; }

// `shape` for output rows [row, row + rows) of one image: the image's rows under them, and the padding outside.
struct Band {
  Conv2dShape shape;
  int64_t first_row;  // of x
};
Band band_of(const Conv2dShape& shape, int64_t row, int64_t rows) {
  const int64_t begin = row * shape.stride_h - shape.pad_h, end = begin + (rows - 1) * shape.stride_h + (shape.KH - 1) * shape.dilation_h + 1;
  Band band{shape, std::max<int64_t>(begin, 0)};
  band.shape.N = 1;
  band.shape.H = std::min(end, shape.H) - band.first_row;
  band.shape.pad_h = band.first_row - begin;
  band.shape.OH = rows;
  return band;
}

bool run(const RootStage& stage, const Conv2dShape& shape, const float* x, const float* shortcut, float* out, const Pool& pool) {
  if (stage.pack) return grouped_conv2d_packed_fwd(shape, x, stage.pack, stage.bias, shortcut, stage.relu, out, pool);
  grouped_conv2d_fwd(shape, x, stage.weight, stage.bias, shortcut, stage.relu, out, pool);
  return true;
}

}  // namespace

RootChunk root_conv2d_chunk(const RootStage* stages, int count) {
  const Conv2dShape& first = stages[0].shape;
  int64_t per_pixel = 0, weights = 0;
  bool packed = true;
  for (int i = 0; i < count; ++i) {
    if (i + 1 < count) per_pixel += stages[i].shape.K;
    weights += weight_floats(stages[i].shape);
    packed = packed && stages[i].pack;
  }
  const int64_t between = std::min(kMost, std::max(kLeast, weights));
  const int64_t pixels = std::max(between / per_pixel, packed ? kLeastPixels : kLeastPixelsUnpacked), image = first.OH * first.OW;
  if (pixels >= image) return {std::max<int64_t>(1, std::min(first.N, pixels / image)), 1};
  // a band must see a row of the image, whatever its padding
  const bool bands = first.pad_h < (first.KH - 1) * first.dilation_h + 1 && first.H > first.pad_h;
  return {1, bands ? std::max<int64_t>(1, std::min((image + pixels - 1) / pixels, first.OH / kLeastRows)) : 1};
}

bool root_conv2d_fwd(const RootStage* stages, int count, const float* x, const float* shortcut, float* out, const Pool& pool) {
  const Conv2dShape &first = stages[0].shape, &last = stages[count - 1].shape;
  if (first.N * first.OH * first.OW * last.K == 0) return true;
  const RootChunk chunk = root_conv2d_chunk(stages, count);
  const int64_t bands = chunk.bands, chunks = (first.N + chunk.images - 1) / chunk.images * bands;
  const int64_t pixels = chunk.images * ((first.OH + bands - 1) / bands) * first.OW;
  std::atomic<bool> served{true};
  const auto compute = [&](int64_t c, float* const* between, const Pool& inner) {
    const int64_t n = c / bands * chunk.images, images = std::min(chunk.images, first.N - n);
    const int64_t band = c % bands, row = first.OH * band / bands, rows = first.OH * (band + 1) / bands - row;
    const float* in = x + n * first.H * first.W * first.C;
    const int64_t begin = (n * first.OH + row) * first.OW;  // output pixel
    for (int i = 0; i < count; ++i) {
      Conv2dShape shape = stages[i].shape;
      shape.N = images;
      if (i == 0 && bands > 1) {
        const Band under = band_of(shape, row, rows);
        shape = under.shape;
        in += under.first_row * first.W * first.C;
      } else if (i > 0) {
        shape.H = shape.OH = rows;
      }
      const bool end = i == count - 1;
      float* to = end ? out + begin * last.K : between[i];
      if (!run(stages[i], shape, in, end && shortcut ? shortcut + begin * last.K : nullptr, to, inner)) {
        served = false;
        return;
      }
      in = to;
    }
  };
  const auto with_scratch = [&](const auto& f) {
    Scratch one(size_t(pixels * stages[0].shape.K) * sizeof(float)), two(count > 2 ? size_t(pixels * stages[1].shape.K) * sizeof(float) : 64);
    float* const between[] = {one.as<float>(), two.as<float>()};
    f(between);
  };
  if (chunks == 1) {
    with_scratch([&](float* const* between) { compute(0, between, pool); });
  } else {
    parallel(pool, chunks, 1, [&](int64_t from, int64_t to) {
      with_scratch([&](float* const* between) {
        for (int64_t c = from; c < to && served; ++c) compute(c, between, kSerial);
      });
    });
  }
  return served;
}

}  // namespace sk
