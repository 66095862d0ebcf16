// Packs of grouped_conv2d: the weight in the blocks that the NHWC tiles read, chosen for images of one size and good for others.
// Where torch serves that size, or no tile can, a pack keeps the natural weight. A bf16 weight becomes matrix tiles, where there are any.
//
// A pack is int32 words: a header, then floats by their bits from the word kHeader on (64-byte aligned if the pack is), or tiles
// as in grouped_conv2d_tiles.h.
#include <cstdint>
#include <cstring>

#include "core/grouped_conv2d_bf16.h"
#include "core/grouped_conv2d_impl.h"
#include "core/grouped_conv2d_tiles.h"
#include "core/seal.h"

namespace sk {
namespace {

enum Word : int {
  kMagic,
  kVersion,
  kOutChannels,
  kChannels,
  kRows,
  kColumns,
  kGroups,
  kLength,
  kBlocked,
  kOrder,
  kVectors,
  kSpanning,
  kLanes,
  kBundle,  // of tiles: groups in a bundle, its steps, stride and dilation of the columns, pixels of a position
  kSteps,
  kStride,
  kDilation,
  kPixels,
  kSeal = 31,
  kHeader
};
constexpr int32_t kMagicValue = 0x534b4331, kVersionValue = 2;
enum Content : int32_t { kNatural = 0, kBlocks = 1, kTiles = 2 };  // kBlocked
constexpr int64_t kTail = 16;                                      // words after the last block

const float* floats(const int32_t* pack) { return reinterpret_cast<const float*>(pack + kHeader); }

ConvJob job_of(const int32_t* pack) {
  ConvJob job{};
  job.K = pack[kOutChannels], job.KH = pack[kRows], job.KW = pack[kColumns], job.groups = pack[kGroups];
  job.C = int64_t(pack[kChannels]) * pack[kGroups];
  job.channels_last = true;
  job.stride_h = job.stride_w = job.dilation_h = job.dilation_w = 1;
  if (pack[kBlocked] == kTiles) job.stride_w = pack[kStride], job.dilation_w = pack[kDilation];
  return job;
}

ConvBlockOrder order_of(const int32_t* pack) { return {LaneConfig::Order(pack[kOrder]), pack[kVectors], pack[kSpanning] != 0}; }

ConvTilePackSizes tiles_of(const int32_t* pack) { return {pack[kBundle], pack[kSteps], pack[kPixels]}; }

// blocks need the vectors that they were made of
bool readable_here(const int32_t* pack) { return pack[kBlocked] == kBlocks && pack[kLanes] == SK_PICK_KERNELS(conv_lane_kernels).lanes; }

// Words behind the header that it promises; -1 if it makes no sense.
int64_t promised_words(const int32_t* pack) {
  for (int i = kOutChannels; i <= kGroups; ++i)
    if (pack[i] < 1) return -1;
  const ConvJob job = job_of(pack);
  const int64_t columns = int64_t(pack[kChannels]) * job.KH * job.KW, lanes = pack[kLanes], width = pack[kVectors] * lanes;
  if (job.K % job.groups || job.C >= INT32_MAX || columns >= INT32_MAX) return -1;
  if (pack[kBlocked] == kNatural) return job.K * columns;
  if (pack[kBlocked] == kTiles) {
    if (pack[kBundle] < 1 || pack[kBundle] > job.groups || pack[kSteps] < 1 || pack[kStride] < 1 || pack[kDilation] < 1) return -1;
    return conv_tile_pack_words(job, tiles_of(pack));
  }
  if (pack[kBlocked] != kBlocks) return -1;
  if (pack[kOrder] < LaneConfig::kTapMajor || pack[kOrder] > LaneConfig::kNatural || (lanes != 4 && lanes != 8 && lanes != 16)) return -1;
  if (pack[kVectors] < 1 || pack[kVectors] > 4 || (pack[kSpanning] && pack[kVectors] != 1)) return -1;
  const bool one_line = pack[kSpanning] || (pack[kChannels] == 1 && job.K == job.groups);
  const int64_t runs = one_line ? 1 : job.groups, run = job.K / runs;
  return runs * ((run + width - 1) / width) * columns * width;
}

void add_seal(std::vector<int32_t>& pack) { pack[kSeal] = int32_t(seal_of(pack.data(), int64_t(pack.size()), kSeal)); }

// f(weight in natural order, weight in the blocks) for every kept weight, as indices
template <class F>
void for_each_kept(const ConvJob& job, const ConvWeights& weights, const F& f) {
  for (int64_t b = 0; b < weights.count(); ++b) {
    const LaneMap& map = weights.blocks()[b];
    int64_t i = 0;
    for_each_weight(job, [&](int64_t j, int64_t ky, int64_t kx) {
      const int64_t at = b * weights.block_floats() + weights.position(j, ky, kx) * weights.width();
      for (int64_t l = 0; l < map.channels; ++l) f((map.first_channel + l) * weights.columns() + i, at + l);
      ++i;
    });
  }
}

}  // namespace

static void fill_pack(const Conv2dShape& shape, const float* weight, bool torch_serves, std::vector<int32_t>& pack) {
  const ConvJob job{shape};
  const bool ours = !torch_serves && shape.N * shape.OH * shape.OW > 0;
  const int64_t natural = job.K * (job.C / job.groups) * job.KH * job.KW;
  ConvLanePlan plan;
  if (ours) plan = conv_nhwc_plan(job, nullptr);
  const bool blocked = plan.config != nullptr;
  int64_t size = natural;
  if (blocked) {
    const ConvWeights weights(job, plan, weight, nullptr);
    size = weights.count() * weights.block_floats();
  }
  pack.assign(size_t(kHeader + size + kTail), 0);
  const int64_t words[] = {kMagicValue, kVersionValue, job.K, job.C / job.groups, job.KH, job.KW, job.groups, int64_t(pack.size()), blocked};
  for (int i = 0; i <= kBlocked; ++i) pack[i] = int32_t(words[i]);
  if (blocked) {
    const ConvLaneKernels& kernels = SK_PICK_KERNELS(conv_lane_kernels);
    pack[kOrder] = plan.config->weight_order, pack[kVectors] = plan.config->V, pack[kSpanning] = plan.spanning, pack[kLanes] = kernels.lanes;
  }
  float* to = reinterpret_cast<float*>(pack.data() + kHeader);
  if (!blocked) {
    int64_t i = 0;  // contiguous, however the weight lies
    const int64_t columns = natural / job.K;
    for_each_weight(job, [&](int64_t j, int64_t ky, int64_t kx) {
      for (int64_t k = 0; k < job.K; ++k) to[k * columns + (j * job.KH + ky) * job.KW + kx] = weight[k * columns + i];
      ++i;
    });
    return;
  }
  const ConvWeights weights(job, plan, weight, nullptr);
  for (int64_t b = 0; b < weights.count(); ++b) {
    Scratch block(size_t(weights.block_floats()) * sizeof(float));  // aligned, which the vector's memory need not be
    weights.pack(b, block.as<float>());
    std::memcpy(to + b * weights.block_floats(), block.as<float>(), size_t(weights.block_floats()) * sizeof(float));
  }
}

void grouped_conv2d_pack(const Conv2dShape& shape, const float* weight, bool torch_serves, std::vector<int32_t>& pack) {
  fill_pack(shape, weight, torch_serves, pack);
  add_seal(pack);
}

void grouped_conv2d_tiles_pack(const Conv2dShape& shape, const uint16_t* weight, std::vector<int32_t>& pack) {
  const ConvTilePackSizes sizes = conv_tile_pack_sizes(shape);
  pack.assign(size_t(kHeader + conv_tile_pack_words(shape, sizes) + kTail), 0);
  const int64_t words[] = {kMagicValue,  kVersionValue,        shape.K, shape.C / shape.groups, shape.KH, shape.KW,
                           shape.groups, int64_t(pack.size()), kTiles};
  for (int i = 0; i <= kBlocked; ++i) pack[i] = int32_t(words[i]);
  pack[kBundle] = int32_t(sizes.groups), pack[kSteps] = int32_t(sizes.steps), pack[kPixels] = int32_t(sizes.pixels);
  pack[kStride] = int32_t(shape.stride_w), pack[kDilation] = int32_t(shape.dilation_w);
  conv_tile_pack(shape, weight, pack.data() + kHeader);
  add_seal(pack);
}

bool grouped_conv2d_pack_shape(const int32_t* pack, int64_t length, Conv2dShape* shape) {
  if (length < kHeader || pack[kMagic] != kMagicValue || pack[kVersion] != kVersionValue || pack[kLength] != length) return false;
  const int64_t size = promised_words(pack);
  if (size < 0 || kHeader + size + kTail != length || !sealed(pack, length, kSeal)) return false;
  *shape = job_of(pack);
  return true;
}

const float* grouped_conv2d_pointwise_blocks(const int32_t* pack, int64_t* vectors) {
  *vectors = pack[kVectors];
  const bool pointwise = pack[kRows] == 1 && pack[kColumns] == 1 && pack[kGroups] == 1;
  return pointwise && readable_here(pack) ? floats(pack) : nullptr;
}

void grouped_conv2d_unpack(const int32_t* pack, float* weight) {
  const ConvJob job = job_of(pack);
  if (pack[kBlocked] == kTiles) return conv_tile_unpack(job, tiles_of(pack), pack + kHeader, weight);
  if (pack[kBlocked] == kNatural) {
    std::memcpy(weight, floats(pack), size_t(job.K * (job.C / job.groups) * job.KH * job.KW) * sizeof(float));
    return;
  }
  const ConvBlockOrder order = order_of(pack);
  const ConvWeights weights(job, order, pack[kLanes], floats(pack));
  for_each_kept(job, weights, [&](int64_t natural, int64_t blocked) { weight[natural] = floats(pack)[blocked]; });
}

const float* grouped_conv2d_pack_natural(const int32_t* pack) { return pack[kBlocked] == kNatural ? floats(pack) : nullptr; }

bool grouped_conv2d_pack_has_blocks(const int32_t* pack) { return readable_here(pack); }

bool grouped_conv2d_packed_fwd(const Conv2dShape& shape, const float* x, const int32_t* pack, const float* bias, const float* shortcut, bool relu,
                               float* out, const Pool& pool) {
  if (!shape.channels_last || !readable_here(pack)) return false;
  return conv_nhwc_packed(ConvJob{shape}, order_of(pack), x, floats(pack), bias, shortcut, relu, out, pool);
}

bool grouped_conv2d_tiles_packed_fwd(const Conv2dShape& shape, const uint16_t* x, const int32_t* pack, const uint16_t* bias, const uint16_t* shortcut,
                                     bool relu, uint16_t* out, const Pool& pool) {
  if (pack[kBlocked] != kTiles || pack[kStride] != shape.stride_w || pack[kDilation] != shape.dilation_w || !grouped_conv2d_on_tiles(shape))
    return false;
  return conv_tile_packed_fwd(shape, tiles_of(pack), x, pack + kHeader, bias, shortcut, relu, out, pool);
}

}  // namespace sk
