// Launchers of the products of wide panels. Compiled for compute capability 9.0a alone; whoever calls them has asked the device.
#include "cuda/sparse_linear_panels_wgmma.cuh"

namespace sk {
namespace {

template <class T, int Outputs, int Rows>
const char* run(const SparseLinearShape& s, const T* x, int64_t x_line, const T* weight, const int32_t* index, const T* bias, T* y, Strides y_stride,
                Stream stream) {
  const bool vectors = whole_pieces_of(y, y_stride.col == 1 ? y_stride.row : y_stride.col);
  const WidePanelJob job{s.N, x_line, int(s.BO), int(s.F), int(s.BO / Outputs), y_stride, vectors, index};
  const dim3 grid(unsigned((s.N + Rows - 1) / Rows), unsigned(s.OB * job.tiles));
  constexpr int kBytes = WgmmaTile<T, Outputs, Rows, true, true>::kBytes;
  return launch(sparse_linear_panels_wgmma_kernel<T, Outputs, Rows>, grid, dim3(kWgmmaThreads), size_t(kBytes), stream, x, weight, bias, y, job);
}

template <class T, int Outputs, int Lines>
const char* run_weight(const SparseLinearShape& s, const T* grad_out, const T* x, int64_t x_line, const int32_t* index, T* grad_weight,
                       Stream stream) {
  const int64_t tiles = s.BO / Outputs * ((s.F + Lines - 1) / Lines);
  if (s.OB * tiles > INT32_MAX) return "sparse_linear: more panels than a grid holds";
  const WidePanelJob job{s.N, x_line, int(s.BO), int(s.F), int(tiles), {}, whole_pieces_of(grad_weight, 0), index};
  constexpr int kBytes = WgmmaTile<T, Outputs, Lines, true, false>::kBytes;
  return launch(sparse_linear_panels_weight_wgmma_kernel<T, Outputs, Lines>, dim3(unsigned(s.OB * tiles)), dim3(kWgmmaThreads), size_t(kBytes),
                stream, grad_out, x, grad_weight, s.out(), job);
}

}  // namespace

template <class T>
const char* launch_sparse_linear_panels_wgmma_fwd(const SparseLinearShape& s, const T* x, int64_t x_line, const T* weight, const int32_t* index,
                                                  const T* bias, T* y, Strides y_stride, Stream stream) {
  if (!s.N || !s.OB) return nullptr;
  if (!whole_pieces_of(x, x_line) || !whole_pieces_of(weight, s.BO)) return "sparse_linear: lines of x and of the weight must be aligned to 16 bytes";
  if (s.OB * (s.BO / 64) > 65535) return "sparse_linear: more panels than a grid holds";
  switch (wide_tile(s.N, s.OB, s.BO, multiprocessors())) {
    case WideTile::by_64x256: return run<T, 64, 256>(s, x, x_line, weight, index, bias, y, y_stride, stream);
    case WideTile::by_128x128: return run<T, 128, 128>(s, x, x_line, weight, index, bias, y, y_stride, stream);
    default: return run<T, 128, 256>(s, x, x_line, weight, index, bias, y, y_stride, stream);
  }
}

template <class T>
const char* launch_sparse_linear_panels_wgmma_grad_weight(const SparseLinearShape& s, const T* grad_out, const T* x, int64_t x_line,
                                                          const int32_t* index, T* grad_weight, Stream stream) {
  if (!s.kept()) return nullptr;
  if (!whole_pieces_of(x, x_line) || !whole_pieces_of(grad_out, s.out()))
    return "sparse_linear: lines of x and of grad_out must be aligned to 16 bytes";
  switch (wide_tile(s.F, s.OB, s.BO, multiprocessors())) {
    case WideTile::by_64x256: return run_weight<T, 64, 256>(s, grad_out, x, x_line, index, grad_weight, stream);
    case WideTile::by_128x128: return run_weight<T, 128, 128>(s, grad_out, x, x_line, index, grad_weight, stream);
    default: return run_weight<T, 128, 256>(s, grad_out, x, x_line, index, grad_weight, stream);
  }
}

#define SK_INSTANTIATE(T)                                                                                                                            \
  template const char* launch_sparse_linear_panels_wgmma_fwd<T>(const SparseLinearShape&, const T*, int64_t, const T*, const int32_t*, const T*, T*, \
                                                                Strides, Stream);                                                                    \
  template const char* launch_sparse_linear_panels_wgmma_grad_weight<T>(const SparseLinearShape&, const T*, const T*, int64_t, const int32_t*, T*,   \
                                                                        Stream);
SK_INSTANTIATE(bf16)
SK_INSTANTIATE(fp16)
#undef SK_INSTANTIATE

}  // namespace sk
