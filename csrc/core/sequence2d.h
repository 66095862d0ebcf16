// Layers one after the other on channels_last images (fp32), a few images at a time: convolutions on packed weights, sparse
// convolutions and poolings. What is between them never leaves this call, and for few enough images the caches. From a sparse convolution
// on, images stay in planes as long as the layers allow it.
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
                           const float* x,  // [N, H, W, C] of the first stage; [N, C, H, W] where x_planes
                           bool x_planes,   // only where sequence2d_reads_planes
                           float* out,      // [N, OH, OW, K] of the last stage
                           const Pool& pool);
// Whether the first stage reads planes, so that an image that has them need not be turned.
SK_API bool sequence2d_reads_planes(const SequenceStage* stages, int count);

// ---- for sequence2d*.cpp
// How many stages from the first on stay in planes; 0 where they are of pixels. Sparse convolutions make planes, and 1x1 convolutions and
// poolings can go on from there: turning every image into pixels and back takes as long as a third of a layer.
int sequence2d_in_planes(const SequenceStage* stages, int count);
// Those stages, image by image: x of pixels or planes -> out [N, OH, OW, K].
void sequence2d_planes_fwd(const SequenceStage* stages, int count, int64_t images, const float* x, bool x_planes, float* out, const Pool& pool);
// relu of the sums of a convolution that computes none itself, [count]
void sequence2d_relu(float* x, int64_t count, const Pool& pool);

// A 1x1 convolution of a block of neighbouring pixels of planes, on the blocks of a pack.
struct SequencePointwise {
  const float* x;        // [C, vectors of pixels], one behind the other
  int64_t C, K, pixels;  // pixels: at most kernels.vectors * lanes
  const float* weights;  // [blocks, C, weight_vectors*lanes]
  int64_t weight_vectors;
  const float* bias;  // [K] or null
  bool relu;
  float* out;  // [K, out_stride]
  int64_t out_stride;
  bool whole;  // whole vectors of pixels may be written
};
// A pooling of planes, by a stride of 1 or 2 along a row.
struct SequencePool {
  const Pool2dShape& shape;
  Pooling pooling;
  const float* x;  // [planes, H, W]
  float* out;      // [planes, OH, OW]
  float* room;     // [pool_room(shape)]
};
struct SequenceKernels {
  int lanes, vectors;
  void (*relu)(float* x, int64_t count);
  // pixels of planes [C, stride] -> [C, vectors*lanes], then relu
  void (*block)(const float* planes, int64_t stride, int64_t C, int64_t pixels, bool relu, float* out);
  void (*pointwise)(const SequencePointwise& a);
};
struct SequencePoolKernels {
  int64_t (*room)(const Pool2dShape& shape);                        // floats
  void (*pool)(const SequencePool& a, int64_t begin, int64_t end);  // of the planes
};
SK_DECLARE_KERNELS(SequenceKernels, sequence_kernels)
SK_DECLARE_KERNELS(SequencePoolKernels, sequence_pool_kernels)

}  // namespace sk
