// Launchers of the fixed fan-in products of blocks.
#include <algorithm>

#include "cuda/sparse_linear_blocks.cuh"

namespace sk {
namespace {

int64_t parts(int64_t a, int64_t b) { return (a + b - 1) / b; }

// Whether every run of 16 bytes that begins at a multiple of `block` columns is aligned: columns side by side, blocks of whole pieces.
template <class T>
bool whole_pieces(const T* p, Strides at, int block) {
  constexpr int E = 16 / int(sizeof(T));
  return at.col == 1 && block % E == 0 && at.row % E == 0 && reinterpret_cast<uintptr_t>(p) % 16 == 0;
}

template <class T, Fp32 mode>
const char* launch_blocks(BlockJob job, int64_t target_blocks, const T* source, const T* weight, const T* bias, T* target, Stream stream) {
  const auto run = [&](auto* kernel, int rows, int targets) -> const char* {
    job.chunks = int(parts(job.target_block, targets));
    if (target_blocks * job.chunks > 65535) return "sparse_linear: more block rows than a grid holds";
    const dim3 grid(unsigned(parts(job.N, rows)), unsigned(target_blocks * job.chunks));
    return launch(kernel, grid, dim3(kBlockThreads), size_t(kBlockStages) * (rows + targets) * kStageRow, stream, source, weight, bias, target, job);
  };
  if (job.target_block <= 16) return run(sparse_linear_blocks_kernel<T, mode, 1, 2>, 64, 16);
  if (job.N <= 64) return run(sparse_linear_blocks_kernel<T, mode, 1, 8>, 64, 64);
  return run(sparse_linear_blocks_kernel<T, mode, 2, 8>, 128, 64);
}

template <class T>
const char* launch_blocks(const BlockJob& job, int64_t target_blocks, const T* source, const T* weight, const T* bias, T* target, Fp32 mode,
                          Stream stream) {
  if (!job.N || !target_blocks) return nullptr;
  if constexpr (sizeof(T) == 4)
    if (mode == Fp32::tf32) return launch_blocks<T, Fp32::tf32>(job, target_blocks, source, weight, bias, target, stream);
  return launch_blocks<T, Fp32::strict>(job, target_blocks, source, weight, bias, target, stream);
}

}  // namespace

template <class T>
const char* launch_sparse_linear_blocks_fwd(const SparseLinearShape& s, const T* x, Strides x_stride, const T* weight, const int32_t* index,
                                            const T* bias, T* y, Strides y_stride, Fp32 mode, Stream stream) {
  const int BO = int(s.BO), BI = int(s.BI);
  const BlockJob job{s.N,
                     BO,
                     BI,
                     int(s.F),
                     0,
                     x_stride,
                     y_stride,
                     s.BO * s.BI,
                     s.BI,
                     1,
                     nullptr,
                     index,
                     nullptr,
                     whole_pieces(x, x_stride, BI),
                     whole_pieces(weight, {BI, 1}, BI)};
  return launch_blocks(job, s.OB, x, weight, bias, y, mode, stream);
}

template <class T>
const char* launch_sparse_linear_blocks_grad_x(const SparseLinearShape& s, const T* grad_out, Strides grad_stride, const T* weight,
                                               const LinearColumns& columns, T* grad_x, Strides grad_x_stride, Fp32 mode, Stream stream) {
  const int BO = int(s.BO), BI = int(s.BI);
  const BlockJob job{s.N,
                     BI,
                     BO,
                     0,
                     0,
                     grad_stride,
                     grad_x_stride,
                     s.BO * s.BI,
                     1,
                     s.BI,
                     columns.indptr,
                     columns.output,
                     columns.place,
                     whole_pieces(grad_out, grad_stride, BO),
                     false};
  return launch_blocks(job, s.IB, grad_out, weight, static_cast<const T*>(nullptr), grad_x, mode, stream);
}

template <class T>
const char* launch_sparse_linear_blocks_grad_weight(const SparseLinearShape& s, const T* grad_out, Strides grad_stride, const T* x, Strides x_stride,
                                                    const int32_t* index, T* grad_weight, Fp32 mode, Stream stream) {
  if (!s.kept()) return nullptr;
  using Tile = BlockWeightTile<T>;
  const int BO = int(s.BO), BI = int(s.BI);
  const BlockWeightJob job{s.N,
                           BO,
                           BI,
                           int(s.F),
                           int(parts(BO, Tile::kOutputs)),
                           int(parts(BI, Tile::kInputs)),
                           x_stride,
                           grad_stride,
                           index,
                           whole_pieces(x, x_stride, BI),
                           whole_pieces(grad_out, grad_stride, BO)};
  auto* kernel = sparse_linear_blocks_weight_kernel<T, Fp32::strict>;
  if constexpr (sizeof(T) == 4)
    if (mode == Fp32::tf32) kernel = sparse_linear_blocks_weight_kernel<T, Fp32::tf32>;
  return launch(kernel, dim3(unsigned(s.OB * s.F * job.chunks_o * job.chunks_i)), dim3(kBlockThreads), size_t(Tile::kBytes), stream, grad_out, x,
                grad_weight, job);
}

#define SK_INSTANTIATE(T)                                                                                                                         \
  template const char* launch_sparse_linear_blocks_fwd<T>(const SparseLinearShape&, const T*, Strides, const T*, const int32_t*, const T*, T*,    \
                                                          Strides, Fp32, Stream);                                                                 \
  template const char* launch_sparse_linear_blocks_grad_x<T>(const SparseLinearShape&, const T*, Strides, const T*, const LinearColumns&, T*,     \
                                                             Strides, Fp32, Stream);                                                              \
  template const char* launch_sparse_linear_blocks_grad_weight<T>(const SparseLinearShape&, const T*, Strides, const T*, Strides, const int32_t*, \
                                                                  T*, Fp32, Stream);
SK_INSTANTIATE(float)
SK_INSTANTIATE(bf16)
SK_INSTANTIATE(fp16)
#undef SK_INSTANTIATE

}  // namespace sk
