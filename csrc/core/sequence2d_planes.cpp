// Stages of sequence2d whose images are planes: sparse convolutions, and the 1x1 convolutions and poolings behind them.
#include <algorithm>

#include "core/sequence2d.h"
#include "core/sparse_conv2d_kernels.h"

namespace sk {
namespace {

using Kind = SequenceStage::Kind;

constexpr int64_t kReluPiece = 16384;       // floats that are worth a thread
constexpr int64_t kPoolPiece = 65536;       // taps that are
constexpr int64_t kProductPiece = 1 << 18;  // multiply-adds that are
constexpr int64_t kLeastRow = 4;            // pixels of a row of pooled planes; fewer leave vectors empty
constexpr int64_t kLanes = 16;

// Whether most lanes of vectors that run over so many pixels are taken.
bool fill_vectors(int64_t pixels) { return 4 * pixels >= 3 * ((pixels + kLanes - 1) / kLanes * kLanes); }

bool is_pointwise(const SequenceStage& stage) {
  const Conv2dShape& c = stage.conv;
  int64_t vectors;
  return stage.kind == Kind::packed_conv && c.stride_h == 1 && c.stride_w == 1 && c.pad_h == 0 && c.pad_w == 0 && fill_vectors(c.OH * c.OW) &&
         grouped_conv2d_pointwise_blocks(stage.pack, &vectors) != nullptr;
}

bool takes_planes(const SequenceStage& stage) {
  if (stage.kind == Kind::pool) return stage.pooled.stride_w <= 2 && stage.pooled.OW >= kLeastRow;
  return stage.kind == Kind::sparse_conv || is_pointwise(stage);
}

// [rows, cols] -> [cols, rows], a few of the longer side at a time: its lines follow each other in memory
void turn(const float* x, int64_t rows, int64_t cols, float* out) {
  constexpr int64_t kPiece = 64;
  const SparseConvCopyKernels& kernels = SK_PICK_KERNELS(sparse_conv_copy_kernels);
  for (int64_t r = 0; r < rows; r += kPiece) kernels.transpose(x + r * cols, cols, std::min(kPiece, rows - r), cols, out + r, rows);
}

// 1x1 convolutions one after the other, block of pixels by block of pixels: planes [C, pixels] -> out [K, pixels], or [pixels, K].
void run_pointwise(const SequenceStage* stages, int count, const float* planes, bool relu, bool to_pixels, float* out, const Pool& pool) {
  const SequenceKernels& kernels = SK_PICK_KERNELS(sequence_kernels);
  const SparseConvCopyKernels& copies = SK_PICK_KERNELS(sparse_conv_copy_kernels);
  const int64_t pixels = stages[0].conv.OH * stages[0].conv.OW, lanes = kernels.lanes, vectors = (pixels + lanes - 1) / lanes;
  const int64_t blocks = (vectors + kernels.vectors - 1) / kernels.vectors;
  int64_t most = stages[0].conv.C, products = 0;
  for (int i = 0; i < count; ++i) most = std::max(most, stages[i].conv.K), products += stages[i].conv.K * stages[i].conv.C;
  parallel(pool, blocks, 1 + kProductPiece / std::max<int64_t>(1, products * lanes * kernels.vectors), [&](int64_t begin, int64_t end) {
    const size_t bytes = size_t(most * lanes * kernels.vectors) * sizeof(float);
    const Scratch one(bytes), two(bytes);
    for (; begin < end; ++begin) {
      const int64_t first = begin * vectors / blocks * lanes, last = std::min(pixels, (begin + 1) * vectors / blocks * lanes);
      const int64_t width = (last - first + lanes - 1) / lanes * lanes;
      float *from = one.as<float>(), *to = two.as<float>();
      kernels.block(planes + first, pixels, stages[0].conv.C, last - first, relu, from);
      for (int i = 0; i < count; ++i, std::swap(from, to)) {
        const SequenceStage& stage = stages[i];
        const bool inside = to_pixels || i + 1 < count;  // what comes out is a block too
        SequencePointwise a{from, stage.conv.C, stage.conv.K, last - first, nullptr, 0, stage.bias, stage.relu, to, width, true};
        if (!inside) a.out = out + first, a.out_stride = pixels, a.whole = false;
        a.weights = grouped_conv2d_pointwise_blocks(stage.pack, &a.weight_vectors);
        kernels.pointwise(a);
      }
      const int64_t K = stages[count - 1].conv.K;
      if (to_pixels) copies.transpose(from, width, K, last - first, out + first * K, K);
    }
  });
}

void run_pool(const SequenceStage& stage, const float* planes, float* out, const Pool& pool) {
  const Pool2dShape& s = stage.pooled;
  const SequencePoolKernels& kernels = SK_PICK_KERNELS(sequence_pool_kernels);
  parallel(pool, s.C, 1 + kPoolPiece / std::max<int64_t>(1, s.OH * s.OW * s.KH * s.KW), [&](int64_t begin, int64_t end) {
    const Scratch room(size_t(kernels.room(s)) * sizeof(float));
    kernels.pool({s, stage.pooling, planes, out, room.as<float>()}, begin, end);
  });
}

struct Size {
  int64_t channels, pixels;
  int64_t floats() const { return channels * pixels; }
};
Size in_size(const SequenceStage& stage) {
  if (stage.kind == Kind::sparse_conv) return {stage.sparse.C, stage.sparse.H * stage.sparse.W};
  return stage.kind == Kind::pool ? Size{stage.pooled.C, stage.pooled.H * stage.pooled.W} : Size{stage.conv.C, stage.conv.H * stage.conv.W};
}
Size out_size(const SequenceStage& stage) {
  const int64_t channels = stage.kind == Kind::sparse_conv ? stage.sparse.K : stage.kind == Kind::pool ? stage.pooled.C : stage.conv.K;
  return {channels, stage.out_floats / channels};
}

// planes of one image -> pixels
void run_image(const SequenceStage* stages, int count, const float* planes, float* const* between, float* out, const Pool& pool) {
  int side = 0;
  bool relu = false;  // is still to be computed
  for (int i = 0, done; i < count; i += done) {
    const SequenceStage& stage = stages[i];
    float* const to = between[side];
    done = 1;
    if (stage.kind == Kind::sparse_conv) {
      SparseConv2dShape shape = stage.sparse;
      shape.N = 1, shape.channels_last = false;
      sparse_conv2d(shape, planes, stage.weight, stage.plan, stage.bias, to, pool);
      relu = stage.relu && i + 1 < count && stages[i + 1].kind == Kind::packed_conv;
      if (stage.relu && !relu) sequence2d_relu(to, stage.out_floats, pool);
    } else if (stage.kind == Kind::pool) {
      run_pool(stage, planes, to, pool);
    } else {
      while (i + done < count && stages[i + done].kind == Kind::packed_conv) ++done;
      const bool last = i + done == count;
      run_pointwise(&stage, done, planes, relu, last, last ? out : to, pool);
      if (last) return;
      relu = false;
    }
    planes = to, side = 1 - side;
  }
  const Size size = out_size(stages[count - 1]);
  turn(planes, size.channels, size.pixels, out);
}

}  // namespace

void sequence2d_relu(float* x, int64_t count, const Pool& pool) {
  const SequenceKernels& kernels = SK_PICK_KERNELS(sequence_kernels);
  parallel(pool, count, kReluPiece, [&](int64_t begin, int64_t end) { kernels.relu(x + begin, end - begin); });
}

int sequence2d_in_planes(const SequenceStage* stages, int count) {
  if (stages[0].kind != Kind::sparse_conv) return 0;
  int run = 1;
  while (run < count && takes_planes(stages[run])) ++run;
  return run > 1 ? run : 0;
}

void sequence2d_planes_fwd(const SequenceStage* stages, int count, int64_t images, const float* x, bool x_planes, float* out, const Pool& pool) {
  const Size in = in_size(stages[0]);
  int64_t largest = x_planes ? 0 : in.floats();
  for (int i = 0; i < count; ++i) largest = std::max(largest, stages[i].out_floats);
  const auto compute = [&](int64_t begin, int64_t end, const Pool& inner) {
    const Scratch one(size_t(largest) * sizeof(float)), two(size_t(largest) * sizeof(float));
    float* const between[] = {one.as<float>(), two.as<float>()};
    for (int64_t n = begin; n < end; ++n) {
      const float* planes = x + n * in.floats();
      if (!x_planes) turn(planes, in.pixels, in.channels, between[1]), planes = between[1];
      run_image(stages, count, planes, between, out + n * stages[count - 1].out_floats, inner);
    }
  };
  if (pool.threads > 1 && images >= pool.threads)
    parallel(pool, images, 1, [&](int64_t begin, int64_t end) { compute(begin, end, kSerial); });
  else
    compute(0, images, pool);
}

}  // namespace sk
