// Launchers of the fixed fan-in products of panels.
#include "cuda/sparse_linear_panels.cuh"

namespace sk {
namespace {

int64_t tiles_of(int64_t size) { return (size + kMmTile - 1) / kMmTile; }
template <class T>
bool whole(const T* p, int64_t line) {
  return line * sizeof(T) % 16 == 0 && reinterpret_cast<uintptr_t>(p) % 16 == 0;
}

}  // namespace

template <class T>
const char* launch_sparse_linear_panels_fwd(const SparseLinearShape& s, const T* x, const T* weight, const int32_t* index, const T* bias, T* y,
                                            Strides y_stride, Fp32 mode, Stream stream) {
  if (!s.N || !s.OB) return nullptr;
  PanelJob job{};
  job.mm.a_line = s.N, job.mm.b_line = s.BO, job.mm.a_vectors = whole(x, s.N), job.mm.b_vectors = whole(weight, s.BO);
  job.N = s.N, job.width = int(s.BO), job.fan_in = int(s.F), job.tiles = int(tiles_of(s.BO)), job.y_at = y_stride, job.index = index;
  if (s.OB * job.tiles > 65535) return "sparse_linear: more panels than a grid holds";
  auto* kernel = sparse_linear_panels_kernel<T, Fp32::strict>;
  if constexpr (sizeof(T) == 4)
    if (mode == Fp32::tf32) kernel = sparse_linear_panels_kernel<T, Fp32::tf32>;
  const dim3 grid(unsigned(tiles_of(s.N)), unsigned(s.OB * job.tiles));
  return launch(kernel, grid, dim3(kMmThreads), size_t(kMmBytes), stream, x, weight, bias, y, job);
}

template <class T>
const char* launch_sparse_linear_panels_grad_weight(const SparseLinearShape& s, const T* grad_out, const T* x, const int32_t* index, T* grad_weight,
                                                    Fp32 mode, Stream stream) {
  if (!s.kept()) return nullptr;
  PanelJob job{};
  job.mm.a_line = job.mm.b_line = s.N, job.mm.a_vectors = whole(x, s.N), job.mm.b_vectors = whole(grad_out, s.N);
  job.N = s.N, job.width = int(s.BO), job.fan_in = int(s.F), job.tiles = int(tiles_of(s.BO) * tiles_of(s.F)), job.index = index;
  if (s.OB * job.tiles > INT32_MAX) return "sparse_linear: more panels than a grid holds";
  auto* kernel = sparse_linear_panels_weight_kernel<T, Fp32::strict>;
  if constexpr (sizeof(T) == 4)
    if (mode == Fp32::tf32) kernel = sparse_linear_panels_weight_kernel<T, Fp32::tf32>;
  return launch(kernel, dim3(unsigned(s.OB * job.tiles)), dim3(kMmThreads), size_t(kMmBytes), stream, x, grad_out, grad_weight, job);
}

#define SK_INSTANTIATE(T)                                                                                                                            \
  template const char* launch_sparse_linear_panels_fwd<T>(const SparseLinearShape&, const T*, const T*, const int32_t*, const T*, T*, Strides, Fp32, \
                                                          Stream);                                                                                   \
  template const char* launch_sparse_linear_panels_grad_weight<T>(const SparseLinearShape&, const T*, const T*, const int32_t*, T*, Fp32, Stream);
SK_INSTANTIATE(float)
SK_INSTANTIATE(bf16)
SK_INSTANTIATE(fp16)
#undef SK_INSTANTIATE

}  // namespace sk
