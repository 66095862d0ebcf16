// The ReLU behind a sparse convolution, while its results are in a cache.
#include "core/sequence2d.h"

#include "core/vec.h"

namespace sk::SK_ISA {
namespace {

void relu_in_place(float* x, int64_t count) {
  int64_t i = 0;
  for (; i + W <= count; i += W) store(x + i, relu(load(x + i)));
  for (; i < count; ++i) x[i] = relu(x[i]);
}

}  // namespace

extern const SequenceKernels sequence_kernels = {relu_in_place};

}  // namespace sk::SK_ISA
