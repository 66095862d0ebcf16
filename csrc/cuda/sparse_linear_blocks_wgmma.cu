// Launchers of the products of wide blocks. Compiled for compute capability 9.0a alone; whoever calls them has asked the device.
#include "cuda/sparse_linear_blocks_wgmma.cuh"

namespace sk {
namespace {

template <class T, bool WeightTurned, int Targets, int Rows>
const char* run(WideBlockJob job, int64_t target_blocks, const T* source, const T* weight, const T* bias, T* target, Stream stream) {
  job.tiles = job.target_block / Targets;
  const dim3 grid(unsigned((job.N + Rows - 1) / Rows), unsigned(target_blocks * job.tiles));
  constexpr int kBytes = WgmmaTile<T, Targets, Rows, WeightTurned, false>::kBytes;
  return launch(sparse_linear_blocks_wgmma_kernel<T, Targets, Rows, WeightTurned>, grid, dim3(kWgmmaThreads), size_t(kBytes), stream, source, weight,
                bias, target, job);
}

template <bool WeightTurned, class T>
const char* run(WideBlockJob job, int64_t target_blocks, const T* source, const T* weight, const T* bias, T* target, Stream stream) {
  if (!job.N || !target_blocks) return nullptr;
  if (!whole_pieces_of(source, job.source_line) || !whole_pieces_of(weight, 0))
    return "sparse_linear: rows and the weight must be aligned to 16 bytes";
  if (target_blocks * (job.target_block / 64) > 65535) return "sparse_linear: more block rows than a grid holds";
  job.target_vectors = whole_pieces_of(target, job.target_at.col == 1 ? job.target_at.row : job.target_at.col);
  switch (wide_tile(job.N, target_blocks, job.target_block, multiprocessors())) {
    case WideTile::by_64x256: return run<T, WeightTurned, 64, 256>(job, target_blocks, source, weight, bias, target, stream);
    case WideTile::by_128x128: return run<T, WeightTurned, 128, 128>(job, target_blocks, source, weight, bias, target, stream);
    default: return run<T, WeightTurned, 128, 256>(job, target_blocks, source, weight, bias, target, stream);
  }
}

template <class T, int Outputs, int Inputs>
const char* run_weight(const SparseLinearShape& s, const T* grad_out, const T* x, const int32_t* index, T* grad_weight, Stream stream) {
  const int64_t of_inputs = (s.F * s.BI + Inputs - 1) / Inputs, tiles = s.BO / Outputs * of_inputs;
  if (s.OB * tiles > INT32_MAX) return "sparse_linear: more blocks than a grid holds";
  const bool vectors = whole_pieces_of(grad_weight, 0);
  const WideBlockWeightJob job{s.N, s.in(), s.out(), int(s.BO), int(s.BI), int(s.F), int(tiles), int(of_inputs), vectors, index};
  constexpr int kBytes = WgmmaTile<T, Outputs, Inputs, true, true>::kBytes;
  return launch(sparse_linear_blocks_weight_wgmma_kernel<T, Outputs, Inputs>, dim3(unsigned(s.OB * tiles)), dim3(kWgmmaThreads), size_t(kBytes),
                stream, grad_out, x, grad_weight, job);
}

}  // namespace

template <class T>
const char* launch_sparse_linear_blocks_wgmma_fwd(const SparseLinearShape& s, const T* x, const T* weight, const int32_t* index, const T* bias, T* y,
                                                  Strides y_stride, Stream stream) {
  const WideBlockJob job{s.N, s.in(), int(s.BO), int(s.BI), int(s.F), 0, y_stride, false, nullptr, index, nullptr};
  return run<false>(job, s.OB, x, weight, bias, y, stream);
}

template <class T>
const char* launch_sparse_linear_blocks_wgmma_grad_x(const SparseLinearShape& s, const T* grad_out, const T* weight, const LinearColumns& columns,
                                                     T* grad_x, Strides grad_x_stride, Stream stream) {
  const WideBlockJob job{s.N, s.out(), int(s.BI), int(s.BO), 0, 0, grad_x_stride, false, columns.indptr, columns.output, columns.place};
  return run<true>(job, s.IB, grad_out, weight, static_cast<const T*>(nullptr), grad_x, stream);
}

template <class T>
const char* launch_sparse_linear_blocks_wgmma_grad_weight(const SparseLinearShape& s, const T* grad_out, const T* x, const int32_t* index,
                                                          T* grad_weight, Stream stream) {
  if (!s.kept()) return nullptr;
  if (!whole_pieces_of(x, s.in()) || !whole_pieces_of(grad_out, s.out())) return "sparse_linear: rows must be aligned to 16 bytes";
  switch (wide_tile(s.F * s.BI, s.OB, s.BO, multiprocessors())) {
    case WideTile::by_64x256: return run_weight<T, 64, 256>(s, grad_out, x, index, grad_weight, stream);
    case WideTile::by_128x128: return run_weight<T, 128, 128>(s, grad_out, x, index, grad_weight, stream);
    default: return run_weight<T, 128, 256>(s, grad_out, x, index, grad_weight, stream);
  }
}

#define SK_INSTANTIATE(T)                                                                                                                            \
  template const char* launch_sparse_linear_blocks_wgmma_fwd<T>(const SparseLinearShape&, const T*, const T*, const int32_t*, const T*, T*, Strides, \
                                                                Stream);                                                                             \
  template const char* launch_sparse_linear_blocks_wgmma_grad_x<T>(const SparseLinearShape&, const T*, const T*, const LinearColumns&, T*, Strides,  \
                                                                   Stream);                                                                          \
  template const char* launch_sparse_linear_blocks_wgmma_grad_weight<T>(const SparseLinearShape&, const T*, const T*, const int32_t*, T*, Stream);
SK_INSTANTIATE(bf16)
SK_INSTANTIATE(fp16)
#undef SK_INSTANTIATE

}  // namespace sk
