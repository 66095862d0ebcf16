// A grouped convolution and the one or two 1x1 convolutions behind it, chunk by chunk, so that what is between them stays in L2.
//
//   y1 = act(conv1(x) + bias1),  y2 = act(conv2(y1) + bias2),  [out = act(conv3(y2) + bias3 + shortcut)]
//
// A chunk is a band of rows of one image, or several images where those are small or the weights heavy. Everything is
// channels_last; conv1 as in grouped_conv2d.h, conv2 and conv3 1x1 with stride 1 and without padding, in any groups.
// The result has the same bits for any number of threads: how chunks are cut follows from the sizes alone.
#pragma once
#include "core/grouped_conv2d.h"

namespace sk {

struct RootStage {
  Conv2dShape shape;    // channels_last, of all images
  const float* weight;  // [K, C/G, KH, KW] as the shape says it lies; null with a pack
  const int32_t* pack;  // of grouped_conv2d_pack, or null
  const float* bias;    // [K] or null
  bool relu;
};
constexpr int kRootStages = 3;

// False, and out as it may be, where a pack cannot serve (see grouped_conv2d_packed_fwd).
SK_API bool root_conv2d_fwd(const RootStage* stages, int count,
                            const float* x,         // [N, H, W, C] of the first stage
                            const float* shortcut,  // like out, or null: added before the last ReLU
                            float* out,             // [N, OH, OW, K] of the last stage
                            const Pool& pool);

// How the output is cut: so many images together, or each image into so many bands of rows.
struct RootChunk {
  int64_t images, bands;
};
SK_API RootChunk root_conv2d_chunk(const RootStage* stages, int count);

}  // namespace sk
