// One description for the forward sparse convolution and grad_x: which kept weights take which source pixels to a target channel.
#pragma once
#include "cuda/conv_job.h"

namespace sk {

// Where the tap `k` of an axis finds the source of a phase's target pixels, from the phase's lowest tap on.
struct Reach {
  bool reaches;
  int at;
};
SK_HD Reach reach(const Axis& axis, int phase, int k, int low) {
  if (!axis.backwards) return {true, k * axis.dilation - axis.pad - low};
  const int v = phase + axis.pad - k * axis.dilation;
  return v % axis.stride ? Reach{false, 0} : Reach{true, v / axis.stride - low};
}

struct KeptJob {
  ConvJob conv;                                      // its groups are 1
  int target_block, source_block, taps, tap_blocks;  // widths of a kept block; taps of one; such runs of taps of a filter
  int64_t weight_entry, weight_target, weight_source;
  // Target block tb has the list entries [begin[tb], begin[tb + 1]), in the order of their source blocks. Forward: the entries are the
  // places in `index`. grad_x: `source` and `place` say them.
  const int32_t *begin, *index, *source, *place;
  // Source channels go through shared memory in rounds: of some whole blocks, or of a part of one block.
  int round_blocks, round_channels, rounds;
  int chunk;  // target channels of a thread block
  uint32_t pitch, sums_at, tables_at, shared_bytes;
};

struct Entry {
  int source, place, tap_block;
};
SK_DEVICE int source_of(const KeptJob& job, int k) { return job.source ? load(job.source + k) : load(job.index + k) / job.tap_blocks; }
SK_DEVICE Entry entry_of(const KeptJob& job, int k) {
  const int place = job.place ? load(job.place + k) : k, code = load(job.index + place);
  return {job.source ? load(job.source + k) : code / job.tap_blocks, place, code % job.tap_blocks};
}

// The source blocks [blocks.first, blocks.end) of a round, and the channels of each that take part.
struct Round {
  Span blocks, channels;
};
SK_HD Round round_of(const KeptJob& job, int round) {
  const int source_blocks = job.conv.groups * job.conv.source_group / job.source_block;
  if (job.round_blocks) {
    const int first = round * job.round_blocks, end = first + job.round_blocks;
    return {{first, end < source_blocks ? end : source_blocks}, {0, job.source_block}};
  }
  const int parts = (job.source_block + job.round_channels - 1) / job.round_channels, first = round % parts * job.round_channels;
  const int end = first + job.round_channels;
  return {{round / parts, round / parts + 1}, {first, end < job.source_block ? end : job.source_block}};
}
// The first and the last source channel + 1 that a round stages.
SK_HD Span staged_channels(const KeptJob& job, const Round& r) {
  return {r.blocks.first * job.source_block + r.channels.first, (r.blocks.end - 1) * job.source_block + r.channels.end};
}

// The first of a sorted list's entries whose source block is `block` or behind it.
SK_DEVICE int first_entry(const KeptJob& job, int begin, int end, int block) {
  while (begin < end) {
    const int middle = begin + (end - begin) / 2;
    if (source_of(job, middle) < block)
      begin = middle + 1;
    else
      end = middle;
  }
  return begin;
}
// The list entries of target block `tb` that read the round's source blocks.
SK_DEVICE Span entries_of(const KeptJob& job, int tb, const Round& r) {
  const int begin = load(job.begin + tb), end = load(job.begin + tb + 1);
  if (job.rounds == 1) return {begin, end};
  const int first = first_entry(job, begin, end, r.blocks.first);
  return {first, first_entry(job, first, end, r.blocks.end)};
}

}  // namespace sk
