// Output channels -> blocks of vectors, for the NHWC kernels of grouped_conv2d.
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

}  // namespace sk
