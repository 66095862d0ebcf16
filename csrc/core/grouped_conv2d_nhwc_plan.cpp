// Which tile of the NHWC kernels computes a convolution: chosen by counting the instructions of each.
#include <algorithm>

#include "core/grouped_conv2d_spread.h"

namespace sk {
namespace {

struct Counts {
  int64_t of[kLaneKinds] = {};  // blocks of each kind
};

// Instructions decide: a tile issues two vector operations and about 1.5 loads per cycle, and costs some cycles to
// enter, start and store.
double tile_cycles(const ConvJob& job, const LaneConfig& c, LaneKind kind) {
  const double loads_per_source = kind == kTwoGroups || kind == kWindow32 ? 2 : 1;
  const double shuffles_per_source = kind == kOneGroup || kind == kDepthwise ? 0 : 1;
  const double taps = double(job.KH * job.KW), outputs = c.R * c.P * c.V;
  double sources, steps, overhead = 1;  // per step: one input channel of ...
  if (c.weight_order == LaneConfig::kTapMajor)
    sources = c.P, steps = taps;  // one tap
  else if (c.weight_order == LaneConfig::kRowMajor)
    sources = (c.P - 1) * job.stride_w + (job.KW - 1) * job.dilation_w + 1, steps = job.KH;  // one filter row
  else
    sources = (c.R + 2) * (c.P + 2), steps = 1, overhead = 3.2;  // the whole filter
  const double operations = outputs * taps / steps + sources * shuffles_per_source;
  const double loads = sources * loads_per_source + taps / steps * c.V;
  const double channels = double(job.C / job.groups);
  return 25 + 2 * outputs + channels * steps * (std::max(operations / 2, loads / 1.5) + overhead);
}

class Chooser {
 public:
  Chooser(const ConvJob& job, const ConvBlockOrder* packed) : job_(job), packed_(packed), lanes_(SK_PICK_KERNELS(conv_lane_kernels).lanes) {
    const int64_t in_group = job.C / job.groups, out_group = job.K / job.groups;
    depthwise_ = in_group == 1 && out_group == 1;
    aligned_.of[depthwise_ ? kDepthwise : kOneGroup] = depthwise_ ? (job.K + lanes_ - 1) / lanes_ : 1;
    if (SK_PICK_KERNELS(conv_lane_kernels).spans_groups && !depthwise_ && out_group % lanes_ != 0 && job.groups > 1)
      spanned_ = spanning_blocks(job, int(lanes_));
    for (const LaneMap& b : spanned_) ++spanning_.of[b.kind];
  }

  // `edges`: the padding stays in the kernel, which needs a last tile that starts inside the image
  void consider(const LaneConfig* configs, int count, bool edges) {
    const bool flat = conv_is_flat(job_);
    const int64_t rows = flat ? 1 : job_.OH, columns = flat ? job_.N * job_.OH * job_.OW : job_.OW;
    for (bool spanning : {false, true}) {
      if (spanning && spanned_.empty()) continue;
      for (const LaneConfig* c = configs; c < configs + count; ++c) {
        if (packed_ && (c->weight_order != packed_->order || c->V != packed_->V || spanning != packed_->spanning)) continue;
        if (c->R > rows || c->P > columns || (spanning && c->V > 1)) continue;
        if (edges && columns % c->P != 0 && columns % c->P * job_.stride_w < job_.pad_w) continue;
        const double cycles = cycles_of(*c, rows, columns, spanning);
        if (cycles > 0 && (!best.config || cycles < best.cycles)) best = {c, spanning, edges, cycles, {}};
      }
    }
  }

  ConvLanePlan result() {
    if (best.spanning) best.spanned = std::move(spanned_);
    return std::move(best);
  }
  ConvLanePlan best;

 private:
  double cycles_of(const LaneConfig& c, int64_t rows, int64_t columns, bool spanning) const {  // 0: a kind of block has no such tile
    const Counts& counts = spanning ? spanning_ : aligned_;
    const LaneConfig& last = conv_last_tile(c, columns);
    const double full = double(columns / c.P), rest = columns % c.P ? 1 : 0;
    double cycles = 0;
    for (int kind = 0; kind < kLaneKinds; ++kind) {
      int64_t blocks = counts.of[kind];
      if (kind == kOneGroup && !spanning && blocks) blocks = job_.groups * ((job_.K / job_.groups + c.V * lanes_ - 1) / (c.V * lanes_));
      if (!blocks) continue;
      if (!c.tile[kind][0]) return 0;
      const double row = full * tile_cycles(job_, c, LaneKind(kind)) + rest * tile_cycles(job_, last, LaneKind(kind));
      cycles += double(blocks) * double((rows + c.R - 1) / c.R) * row;
    }
    return cycles;
  }

  const ConvJob& job_;
  const ConvBlockOrder* packed_;
  int64_t lanes_;
  bool depthwise_;
  std::vector<LaneMap> spanned_;
  Counts aligned_, spanning_;
};

}  // namespace

const LaneConfig& conv_last_tile(const LaneConfig& config, int64_t columns) {
  const int64_t rest = columns % config.P;
  if (config.weight_order != LaneConfig::kTapMajor || rest == 0) return config;
  const ConvLaneKernels& kernels = SK_PICK_KERNELS(conv_lane_kernels);
  const LaneConfig* best = &config;
  for (const LaneConfig* c = kernels.taps; c < kernels.taps + kernels.taps_count; ++c)
    if (c->V == config.V && c->P >= rest && c->P < best->P) best = c;
  return *best;
}

namespace {
const ConvRowKernels* row_kernels(const ConvJob& job) {
  if (job.KH != job.KW || (job.KH != 3 && job.KH != 5) || job.stride_h != job.stride_w || job.dilation_h != job.dilation_w) return nullptr;
  if (job.stride_w == 1 && job.dilation_w == 1) return job.KH == 3 ? &SK_PICK_KERNELS(conv_row3_kernels) : &SK_PICK_KERNELS(conv_row5_kernels);
  if (job.stride_w == 2 && job.dilation_w == 1)
    return job.KH == 3 ? &SK_PICK_KERNELS(conv_row3_strided_kernels) : &SK_PICK_KERNELS(conv_row5_strided_kernels);
  return job.stride_w == 1 && job.dilation_w == 2 && job.KH == 3 ? &SK_PICK_KERNELS(conv_row3_dilated_kernels) : nullptr;
}
}  // namespace

ConvLanePlan conv_nhwc_plan(const ConvJob& job, const ConvBlockOrder* packed) {
  Chooser chooser(job, packed);
  // row kernels for square filters, else a loop over taps
  if (const ConvRowKernels* row = row_kernels(job)) {
    const bool edges = job.pad_w == job.KW / 2 * job.dilation_w && (job.stride_w == 1 ? job.OW == job.W : columns_beyond(job) <= 1);
    if (edges && job.expand_h == 1 && job.expand_w == 1) chooser.consider(row->configs, row->count, true);
    if (!chooser.best.config) chooser.consider(row->configs, row->count, false);
  }
  const ConvLaneKernels& kernels = SK_PICK_KERNELS(conv_lane_kernels);
  if (!chooser.best.config) chooser.consider(kernels.taps, kernels.taps_count, false);
  return chooser.result();
}

}  // namespace sk
