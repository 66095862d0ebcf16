// Driver of sequence2d: which stage reads and writes which buffer, and who takes which images.
#include "core/sequence2d.h"

#include <algorithm>
#include <atomic>

#include "core/sparse_conv2d_kernels.h"

namespace sk {
namespace {

constexpr int64_t kReluPiece = 16384;  // floats that are worth a thread

int stages_together(const SequenceStage* stage) {
  int together = 1;
  while (together < kRootStages && stage[together - 1].with_next) ++together;
  return together;
}

bool run_convolutions(const SequenceStage* stages, int count, int64_t images, const float* x, float* out, const Pool& pool) {
  RootStage chain[kRootStages]{};
  for (int i = 0; i < count; ++i) {
    chain[i] = {stages[i].conv, nullptr, stages[i].pack, stages[i].bias, stages[i].relu};
    chain[i].shape.N = images;
  }
  if (count > 1) return root_conv2d_fwd(chain, count, x, nullptr, out, pool);
  return grouped_conv2d_packed_fwd(chain[0].shape, x, chain[0].pack, chain[0].bias, nullptr, chain[0].relu, out, pool);
}

constexpr int64_t kPixelPiece = 256;        // pixels that are worth a thread
constexpr int64_t kLeastPlanes = 32 << 10;  // floats of an image: turning fewer into pixels costs less than another kernel

// [pixels, channels] -> [channels, pixels], a few pixels at a time
void pixels_to_planes(const float* x, int64_t channels, int64_t pixels, float* out) {
  constexpr int64_t kPiece = 64;
  const SparseConvCopyKernels& kernels = SK_PICK_KERNELS(sparse_conv_copy_kernels);
  for (int64_t p = 0; p < pixels; p += kPiece) kernels.transpose(x + p * channels, channels, std::min(kPiece, pixels - p), channels, out + p, pixels);
}

void relu_of(const SequenceStage& stage, int64_t images, float* out, const SequenceKernels& kernels, const Pool& pool) {
  if (!stage.relu) return;
  parallel(pool, images * stage.out_floats, kReluPiece, [&](int64_t begin, int64_t end) { kernels.relu(out + begin, end - begin); });
}

void run_sparse(const SequenceStage& stage, int64_t images, const float* x, float* out, const Pool& pool) {
  SparseConv2dShape shape = stage.sparse;
  shape.N = images;
  sparse_conv2d(shape, x, stage.weight, stage.plan, stage.bias, out, pool);
  relu_of(stage, images, out, SK_PICK_KERNELS(sequence_kernels), pool);
}

// Whether the stage, a sparse convolution, may leave planes to the next one: kernels of sparse convolutions make planes, and turning a
// large map of them into pixels, which a 1x1 does not need, takes as long as a third of its products.
bool leaves_planes(const SequenceStage* stage, int left) {
  int64_t vectors;
  const bool pointwise = left > 1 && stage[1].kind == SequenceStage::Kind::packed_conv && !stage[1].with_next && stage[1].conv.stride_h == 1 &&
                         stage[1].conv.stride_w == 1 && stage[1].conv.pad_h == 0 && stage[1].conv.pad_w == 0;
  return pointwise && stage->out_floats >= kLeastPlanes && grouped_conv2d_pointwise_blocks(stage[1].pack, &vectors);
}

// Both of them, image by image: a sparse convolution into planes and the 1x1 that reads them.
void run_through_planes(const SequenceStage* stages, int64_t images, const float* x, float* out, const Pool& pool) {
  const SequenceKernels& kernels = SK_PICK_KERNELS(sequence_kernels);
  const SequenceStage &sparse = stages[0], &next = stages[1];
  SparseConv2dShape shape = sparse.sparse;
  const int64_t in_pixels = shape.H * shape.W, pixels = next.conv.OH * next.conv.OW;
  shape.N = 1, shape.channels_last = false;
  const Scratch turned(size_t(shape.C * in_pixels) * sizeof(float)), planes(size_t(sparse.out_floats) * sizeof(float));
  SequencePointwise a{planes.as<float>(), next.conv.C, next.conv.K, pixels, nullptr, 0, 0, next.bias, next.relu, nullptr};
  a.weights = grouped_conv2d_pointwise_blocks(next.pack, &a.vectors);
  a.weight_step = a.vectors * kernels.lanes;
  for (int64_t n = 0; n < images; ++n) {
    pixels_to_planes(x + n * shape.C * in_pixels, shape.C, in_pixels, turned.as<float>());
    sparse_conv2d(shape, turned.as<float>(), sparse.weight, sparse.plan, sparse.bias, planes.as<float>(), pool);
    relu_of(sparse, 1, planes.as<float>(), kernels, pool);
    a.out = out + n * next.out_floats;
    parallel(pool, pixels, kPixelPiece, [&](int64_t begin, int64_t end) { kernels.pointwise(a, begin, end); });
  }
}

bool run(const SequenceStage* stages, int count, int64_t images, const float* x, float* const* between, float* out, const Pool& pool) {
  int side = 0;
  for (int i = 0; i < count;) {
    const SequenceStage& stage = stages[i];
    const bool planes = stage.kind == SequenceStage::Kind::sparse_conv && leaves_planes(&stage, count - i);
    const int together = planes ? 2 : stages_together(&stage);
    float* const to = i + together == count ? out : between[side];
    if (stage.kind == SequenceStage::Kind::packed_conv) {
      if (!run_convolutions(&stage, together, images, x, to, pool)) return false;
    } else if (planes) {
      run_through_planes(&stage, images, x, to, pool);
    } else if (stage.kind == SequenceStage::Kind::sparse_conv) {
      run_sparse(stage, images, x, to, pool);
    } else {
      Pool2dShape shape = stage.pooled;
      shape.N = images;
      pool2d_fwd(shape, stage.pooling, x, to, pool);
    }
    x = to;
    side = 1 - side;
    i += together;
  }
  return true;
}

}  // namespace

bool sequence2d_fwd(const SequenceStage* stages, int count, int64_t images, int64_t together, const float* x, float* out, const Pool& pool) {
  const SequenceStage& first = stages[0];
  const int64_t in_floats = first.kind == SequenceStage::Kind::packed_conv   ? first.conv.C * first.conv.H * first.conv.W
                            : first.kind == SequenceStage::Kind::sparse_conv ? first.sparse.C * first.sparse.H * first.sparse.W
                                                                             : first.pooled.C * first.pooled.H * first.pooled.W;
  const int64_t out_floats = stages[count - 1].out_floats;
  int64_t largest = 0;
  for (int i = 0; i + 1 < count; ++i) largest = std::max(largest, stages[i].out_floats);
  const int64_t chunks = (images + together - 1) / together;
  std::atomic<bool> served{true};
  const auto compute = [&](int64_t begin, int64_t end, const Pool& inner) {
    const Scratch one(size_t(std::min(together, images) * largest) * sizeof(float)),
        two(size_t(std::min(together, images) * largest) * sizeof(float));
    float* const between[] = {one.as<float>(), two.as<float>()};
    for (int64_t c = begin; c < end && served; ++c) {
      const int64_t n = c * together, here = std::min(together, images - n);
      if (!run(stages, count, here, x + n * in_floats, between, out + n * out_floats, inner)) served = false;
    }
  };
  if (pool.threads > 1 && chunks >= pool.threads)
    parallel(pool, chunks, 1, [&](int64_t begin, int64_t end) { compute(begin, end, kSerial); });
  else
    compute(0, chunks, pool);
  return served;
}

}  // namespace sk
