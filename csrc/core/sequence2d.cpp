// Driver of sequence2d: which stage reads and writes which buffer, and who takes which images.
#include "core/sequence2d.h"

#include <algorithm>
#include <atomic>
namespace sk {
namespace {

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

void run_sparse(const SequenceStage& stage, int64_t images, const float* x, float* out, const Pool& pool) {
  SparseConv2dShape shape = stage.sparse;
  shape.N = images;
  sparse_conv2d(shape, x, stage.weight, stage.plan, stage.bias, out, pool);
  if (stage.relu) sequence2d_relu(out, images * stage.out_floats, pool);
}

bool run(const SequenceStage* stages, int count, int64_t images, const float* x, bool x_planes, float* const* between, float* out, const Pool& pool) {
  int side = 0;
  for (int i = 0; i < count;) {
    const SequenceStage& stage = stages[i];
    const int planes = sequence2d_in_planes(&stage, count - i);
    const int together = planes ? planes : stages_together(&stage);
    float* const to = i + together == count ? out : between[side];
    if (planes) {
      sequence2d_planes_fwd(&stage, planes, images, x, i == 0 && x_planes, to, pool);
    } else if (stage.kind == SequenceStage::Kind::packed_conv) {
      if (!run_convolutions(&stage, together, images, x, to, pool)) return false;
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

bool sequence2d_reads_planes(const SequenceStage* stages, int count) { return sequence2d_in_planes(stages, count) > 0; }

bool sequence2d_fwd(const SequenceStage* stages, int count, int64_t images, int64_t together, const float* x, bool x_planes, float* out,
                    const Pool& pool) {
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
      if (!run(stages, count, here, x + n * in_floats, x_planes, between, out + n * out_floats, inner)) served = false;
    }
  };
  if (pool.threads > 1 && chunks >= pool.threads)
    parallel(pool, chunks, 1, [&](int64_t begin, int64_t end) { compute(begin, end, kSerial); });
  else
    compute(0, chunks, pool);
  return served;
}

}  // namespace sk
