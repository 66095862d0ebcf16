// The host's part of a sparse convolution: its job, and what fits into shared memory.
#pragma once
#include "cuda/conv_plan.h"
#include "cuda/sparse_conv2d.h"
#include "cuda/sparse_conv2d_job.h"

namespace sk {

inline Conv2dShape dense_shape(const SparseConv2dShape& s) {
  return {s.N,     s.C,     s.H,          s.W,          s.K, s.KH,   s.KW,   s.stride_h,     s.stride_w,
          s.pad_h, s.pad_w, s.dilation_h, s.dilation_w, 1,   s.OH(), s.OW(), s.channels_last};
}

template <class T>
KeptJob kept_job(const SparseConv2dShape& s, Direction direction, const KeptTables& tables, const void* source, const void* target) {
  const bool backwards = direction == Direction::grad_x;
  const int64_t of_out = s.BI * s.BT, of_in = s.BT;
  KeptJob job{};
  job.conv = conv_job<T>(dense_shape(s), direction, source, target, false);
  job.target_block = int(backwards ? s.BI : s.BO), job.source_block = int(backwards ? s.BO : s.BI);
  job.taps = int(s.BT), job.tap_blocks = int(s.TB());
  job.weight_entry = s.BO * s.BI * s.BT, job.weight_target = backwards ? of_in : of_out, job.weight_source = backwards ? of_out : of_in;
  job.begin = backwards ? tables.columns : tables.indptr, job.index = tables.index;
  job.source = backwards ? tables.column_row : nullptr, job.place = backwards ? tables.column_place : nullptr;
  return job;
}

// The most source channels that may be staged at once, as rounds of whole blocks or of parts of one.
inline void choose_rounds(KeptJob& job, int64_t channels) {
  const int blocks = job.conv.groups * job.conv.source_group / job.source_block;
  job.round_blocks = int(std::min<int64_t>(channels / job.source_block, blocks));
  job.round_channels = int(job.round_blocks ? job.source_block : channels);
  job.rounds = int(job.round_blocks ? pieces_up(blocks, job.round_blocks) : blocks * pieces_up(job.source_block, job.round_channels));
}

// A tile and rounds of staged fp32 channels beside `other` bytes; two blocks per multiprocessor where enough channels fit then.
inline bool choose_lists(KeptJob& job, uint32_t other) {
  const int64_t all = int64_t(job.conv.groups) * job.conv.source_group, most = int64_t(shared_bytes_per_block());
  const struct {
    int64_t limit, least;
  } tries[] = {{most / 2 - 1024, 32}, {most, 8}, {most, 1}};
  for (const auto& t : tries)
    for (int pixels = 65535; pixels >= 128; pixels /= 4) {
      if (!choose_tile(job.conv, 7, pixels)) continue;
      job.pitch = uint32_t(job.conv.pixels) | 1;
      const int64_t fit = (t.limit - other - 16) / (int64_t(job.pitch) * 4);
      if (fit < std::min(all, t.least)) continue;
      choose_rounds(job, std::min<int64_t>({fit, all, 65535 / job.conv.pixels}));  // a Divider takes so many
      const int64_t staged = job.round_blocks ? int64_t(job.round_blocks) * job.source_block : job.round_channels;
      job.sums_at = up_to_16(staged * job.pitch * 4);
      return true;
    }
  return false;
}

}  // namespace sk
