// Layers one after the other on channels_last images (fp32), a few images at a time: convolutions on packed weights, sparse
// convolutions and poolings. What is between them never leaves this call, and for few enough images the caches.
//
// The result has the same bits for any number of threads, as that of each layer.
#pragma once
#include "core/pool2d.h"
#include "core/root_conv2d.h"
#include "core/sparse_conv2d.h"

namespace sk {

struct SequenceStage {
  enum class Kind : int { packed_conv = 0, sparse_conv = 1, pool = 2 } kind;
  const float* bias;  // [K] or null; of convolutions
  bool relu;          // of convolutions
  bool with_next;     // packed_conv: band by band with the next stage, a packed 1x1, as root_conv2d does; at most kRootStages together
  Conv2dShape conv;   // packed_conv
  const int32_t* pack;
  SparseConv2dShape sparse;  // sparse_conv
  const float* weight;       // [nnz, BO, BI, BT]
  const int32_t* plan;
  Pool2dShape pooled;  // pool
  Pooling pooling;
  int64_t out_floats;  // of one image behind this stage
};

// `together` images at a time. False, and out as it may be, where a pack cannot serve (see grouped_conv2d_packed_fwd).
SK_API bool sequence2d_fwd(const SequenceStage* stages, int count, int64_t images, int64_t together,
                           const float* x,  // [N, H, W, C] of the first stage
                           float* out,      // [N, OH, OW, K] of the last stage
                           const Pool& pool);

// ---- for sequence2d.cpp and sequence2d.isa.cpp
// A 1x1 convolution of planes into pixels, on the blocks of a pack.
struct SequencePointwise {
  const float* planes;  // [C, pixels]
  int64_t C, K, pixels;
  const float* weights;  // [blocks, C, vectors*lanes]
  int64_t vectors, weight_step;
  const float* bias;  // [K] or null
  bool relu;
  float* out;  // [pixels, K]
};
struct SequenceKernels {
  int lanes;
  void (*relu)(float* x, int64_t count);
  void (*pointwise)(const SequencePointwise& a, int64_t begin, int64_t end);  // of the pixels
};
SK_DECLARE_KERNELS(SequenceKernels, sequence_kernels)

}  // namespace sk
