// Output channels -> blocks of vectors, for the NHWC kernels of grouped_conv2d, and the weights of each block.
#include <algorithm>

#include "core/grouped_conv2d_impl.h"

namespace sk {

std::vector<LaneMap> spanning_blocks(const ConvJob& job, int lanes) {
  const int64_t in_group = job.C / job.groups, out_group = job.K / job.groups;
  std::vector<LaneMap> blocks;
  for (int64_t first = 0; first < job.K; first += lanes) {
    LaneMap b{};
    b.first_channel = first;
    b.channels = std::min<int64_t>(lanes, job.K - first);
    const int64_t g0 = first / out_group, g1 = (first + b.channels - 1) / out_group;
    const int64_t window = (g1 - g0 + 1) * in_group, width = window <= 16 ? 16 : 32;
    b.window = b.window2 = g0 * in_group;
    if (g0 == g1) {
      b.kind = kOneGroup;
    } else if (window <= 32 && job.C >= width && (g1 > g0 + 1 || window <= 16)) {
      b.kind = width == 16 ? kWindow16 : kWindow32;
      b.window = std::min(b.window, job.C - width);  // the load must end inside the pixel
      for (int64_t l = 0; l < b.channels; ++l) b.index[l] = int32_t((first + l) / out_group * in_group - b.window);
    } else if (g1 == g0 + 1) {
      b.kind = kTwoGroups;
      b.window2 = g1 * in_group;
      for (int64_t l = 0; l < b.channels; ++l)
        if ((first + l) / out_group == g1) b.second |= 1u << l;
    } else {
      return {};
    }
    blocks.push_back(b);
  }
  return blocks;
}

std::vector<LaneMap> aligned_blocks(const ConvJob& job, int block, bool depthwise) {
  const int64_t in_group = job.C / job.groups, out_group = depthwise ? job.K : job.K / job.groups;
  std::vector<LaneMap> blocks;
  for (int64_t g = 0; g < (depthwise ? 1 : job.groups); ++g)
    for (int64_t o = 0; o < out_group; o += block) {
      LaneMap b{};
      b.kind = depthwise ? kDepthwise : kOneGroup;
      b.first_channel = g * out_group + o;
      b.channels = std::min<int64_t>(block, out_group - o);
      b.window = b.window2 = depthwise ? o : g * in_group;
      blocks.push_back(b);
    }
  return blocks;
}

ConvWeights::ConvWeights(const ConvJob& job, const ConvBlockOrder& order, int64_t lanes, const float* ready)
    : ConvWeights(job, order, lanes, ready, order.spanning ? spanning_blocks(job, int(lanes)) : std::vector<LaneMap>()) {}

ConvWeights::ConvWeights(const ConvJob& job, const ConvBlockOrder& order, int64_t lanes, const float* ready, std::vector<LaneMap> spanned)
    : job_(job), order_(order.order), blocks_(std::move(spanned)), lanes_(lanes), natural_(nullptr), ready_(ready) {
  const int64_t in_group = job.C / job.groups, out_group = job.K / job.groups;
  width_ = order.V * lanes;
  columns_ = in_group * job.KH * job.KW;
  if (!order.spanning) blocks_ = aligned_blocks(job, int(width_), in_group == 1 && out_group == 1);
}

ConvWeights::ConvWeights(const ConvJob& job, ConvLanePlan plan, const float* natural, const float* ready)
    : ConvWeights(job, ConvBlockOrder{plan.config->weight_order, plan.config->V, plan.spanning}, SK_PICK_KERNELS(conv_lane_kernels).lanes, ready,
                  std::move(plan.spanned)) {
  natural_ = natural;
  if (ready_) return;
  positions_.reserve(size_t(columns_));
  for_each_weight(job, [&](int64_t j, int64_t ky, int64_t kx) { positions_.push_back(position(j, ky, kx)); });
}

int32_t ConvWeights::position(int64_t j, int64_t ky, int64_t kx) const {
  const int64_t in_group = job_.C / job_.groups;
  return int32_t(order_ == LaneConfig::kTapMajor   ? (ky * job_.KW + kx) * in_group + j
                 : order_ == LaneConfig::kRowMajor ? (ky * in_group + j) * job_.KW + kx
                                                   : (j * job_.KH + ky) * job_.KW + kx);
}

void ConvWeights::pack(int64_t b, float* to) const {
  const LaneMap& map = blocks_[b];
  const ConvPackKernels& kernels = SK_PICK_KERNELS(conv_pack_kernels);
  for (int64_t v = 0; v < width_; v += lanes_) {
    const int64_t rows = std::max<int64_t>(0, std::min(lanes_, map.channels - v));
    kernels.pack(natural_ + (rows ? (map.first_channel + v) * columns_ : 0), rows, columns_, positions_.data(), width_, to + v);
  }
}

void ConvWeights::pack_all(float* to, const Pool& pool) {
  parallel(pool, count(), 1 + 65536 / block_floats(), [&](int64_t begin, int64_t end) {
    for (int64_t b = begin; b < end; ++b) pack(b, to + b * block_floats());
  });
  ready_ = to;
}

const char* ConvWeights::source(int64_t b) const {
  return reinterpret_cast<const char*>(ready_ ? block(b) : natural_ + blocks_[b].first_channel * columns_);
}

}  // namespace sk
