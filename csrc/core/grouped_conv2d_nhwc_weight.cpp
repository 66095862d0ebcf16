// Driver of the NHWC weight gradient: one block of 16 output channels at a time, image after image in strips of rows
// that stay in L1, so the order of the sums depends on the sizes alone.
#include <algorithm>
#include <cstring>

#include "core/grouped_conv2d_impl.h"

namespace sk {
namespace {

constexpr int64_t kStripBytes = 16 << 10;  // grad_out of one strip
constexpr int kChannelsAtOnce[] = {8, 4, 2, 1};

}  // namespace

bool conv_nhwc_grad_weight(const ConvJob& job, const float* grad_out, const float* x, float* grad_weight, const Pool& pool) {
  const ConvLaneWeightKernels& kernels = SK_PICK_KERNELS(conv_lane_weight_kernels);
  const int64_t K = job.KH, in_group = job.C / job.groups, out_group = job.K / job.groups;
  const bool square = job.KH == job.KW && (K == 3 || K == 5) && job.stride_h == 1 && job.stride_w == 1 && job.dilation_h == 1 && job.dilation_w == 1;
  if (!kernels.unpack || !square) return false;
  const bool depthwise = in_group == 1 && out_group == 1;
  std::vector<LaneMap> blocks;
  if (!depthwise && out_group % 16 != 0 && job.groups > 1) blocks = spanning_blocks(job, 16);
  if (blocks.empty()) blocks = aligned_blocks(job, 16, depthwise);

  const int64_t columns = in_group * K * K;
  std::vector<int32_t> position;  // packed as [ky][channel][kx]
  for (int64_t j = 0; j < in_group; ++j)
    for (int64_t ky = 0; ky < K; ++ky)
      for (int64_t kx = 0; kx < K; ++kx) position.push_back(int32_t((ky * in_group + j) * K + kx));
  const int64_t strip = std::max<int64_t>(1, kStripBytes / (64 * job.OW));
  const double macs = 16.0 * double(columns) * double(job.N) * double(job.OH * job.OW);
  parallel(pool, int64_t(blocks.size()), conv_grain(macs), [&](int64_t begin, int64_t end) {
    Scratch scratch(size_t(columns) * 16 * sizeof(float));
    float* sums = scratch.as<float>();
    for (int64_t b = begin; b < end; ++b) {
      const LaneMap& map = blocks[b];
      std::memset(sums, 0, size_t(columns) * 16 * sizeof(float));
      LaneWeightRows t{};
      t.x_pixel = job.C, t.x_row = job.W * job.C;
      t.grad_pixel = job.K, t.grad_row = job.OW * job.K;
      t.columns = job.W, t.grad_columns = job.OW, t.pad = job.pad_w;
      t.second = map.second;
      t.lanes = (1u << map.channels) - 1;
      for (int64_t n = 0; n < job.N; ++n)
        for (int64_t oy0 = 0; oy0 < job.OH; oy0 += strip)
          for (int64_t ky = 0; ky < K; ++ky) {
            // rows of grad_out whose input row oy + ky - pad exists
            const int64_t first = std::max(oy0, job.pad_h - ky);
            const int64_t last = std::min({oy0 + strip, job.OH, job.H + job.pad_h - ky});
            if (first >= last) continue;
            t.rows = last - first;
            t.grad_out = grad_out + (n * job.OH + first) * t.grad_row + map.first_channel;
            const float* row = x + (n * job.H + first + ky - job.pad_h) * t.x_row;
            for (int64_t j = 0; j < in_group;) {
              int choice = 0;
              while (!kernels.rows[K == 5][map.kind][choice] || kChannelsAtOnce[choice] > in_group - j) ++choice;
              const bool window = map.kind == kWindow16 || map.kind == kWindow32;
              int32_t index[16];
              for (int l = 0; l < 16; ++l) index[l] = map.index[l] + int32_t(j);
              t.index = index;
              t.x = row + map.window + (window ? 0 : j);
              t.x2 = row + map.window2 + (window ? 0 : j);
              t.sums = sums + (ky * in_group + j) * K * 16;
              kernels.rows[K == 5][map.kind][choice](t);
              j += kChannelsAtOnce[choice];
            }
          }
      kernels.unpack(sums, position.data(), map.channels, columns, grad_weight + map.first_channel * columns);
    }
  });
  return true;
}

}  // namespace sk
