// Whether wide panels and blocks are multiplied by wgmma here; in a build without compute capability 9.0a, what its launchers say.
#include "cuda/device.h"
#include "cuda/sparse_linear.h"

namespace sk {

#ifndef SK_WITHOUT_WGMMA
bool has_sparse_linear_wgmma() { return compute_capability() == 9; }
#else
bool has_sparse_linear_wgmma() { return false; }

constexpr const char* kMissing = "sparse_linear: this build has no kernels for compute capability 9.0a";

template <class T>
const char* launch_sparse_linear_panels_wgmma_fwd(const SparseLinearShape&, const T*, int64_t, const T*, const int32_t*, const T*, T*, Strides,
                                                  Stream) {
  return kMissing;
}
template <class T>
const char* launch_sparse_linear_panels_wgmma_grad_weight(const SparseLinearShape&, const T*, const T*, int64_t, const int32_t*, T*, Stream) {
  return kMissing;
}
template <class T>
const char* launch_sparse_linear_blocks_wgmma_fwd(const SparseLinearShape&, const T*, const T*, const int32_t*, const T*, T*, Strides, Stream) {
  return kMissing;
}
template <class T>
const char* launch_sparse_linear_blocks_wgmma_grad_x(const SparseLinearShape&, const T*, const T*, const LinearColumns&, T*, Strides, Stream) {
  return kMissing;
}
template <class T>
const char* launch_sparse_linear_blocks_wgmma_grad_weight(const SparseLinearShape&, const T*, const T*, const int32_t*, T*, Stream) {
  return kMissing;
}

#define SK_INSTANTIATE(T)                                                                                                                            \
  template const char* launch_sparse_linear_panels_wgmma_fwd<T>(const SparseLinearShape&, const T*, int64_t, const T*, const int32_t*, const T*, T*, \
                                                                Strides, Stream);                                                                    \
  template const char* launch_sparse_linear_panels_wgmma_grad_weight<T>(const SparseLinearShape&, const T*, const T*, int64_t, const int32_t*, T*,   \
                                                                        Stream);                                                                     \
  template const char* launch_sparse_linear_blocks_wgmma_fwd<T>(const SparseLinearShape&, const T*, const T*, const int32_t*, const T*, T*, Strides, \
                                                                Stream);                                                                             \
  template const char* launch_sparse_linear_blocks_wgmma_grad_x<T>(const SparseLinearShape&, const T*, const T*, const LinearColumns&, T*, Strides,  \
                                                                   Stream);                                                                          \
  template const char* launch_sparse_linear_blocks_wgmma_grad_weight<T>(const SparseLinearShape&, const T*, const T*, const int32_t*, T*, Stream);
SK_INSTANTIATE(bf16)
SK_INSTANTIATE(fp16)
#undef SK_INSTANTIATE
#endif

}  // namespace sk
