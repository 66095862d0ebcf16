// Launcher of the forward product of wide panels. Compiled for compute capability 9.0a alone; whoever calls it has asked the device.
#include "cuda/sparse_linear_panels_wgmma.cuh"

namespace sk {
namespace {

template <class T, int Outputs, int Rows>
const char* run(const SparseLinearShape& s, const T* x, int64_t x_line, const T* weight, const int32_t* index, const T* bias, T* y, Strides y_stride,
                Stream stream) {
  using Tile = WidePanelTile<Outputs, Rows>;
  const bool aligned = reinterpret_cast<uintptr_t>(y) % 16 == 0;
  const WidePanelJob job{
      s.N, x_line, int(s.BO), int(s.F), int(s.BO / Outputs), y_stride, aligned && (y_stride.col == 1 ? y_stride.row : y_stride.col) % 8 == 0, index};
  const dim3 grid(unsigned((s.N + Tile::kRows - 1) / Tile::kRows), unsigned(s.OB * job.tiles));
  return launch(sparse_linear_panels_wgmma_kernel<T, Outputs, Rows>, grid, dim3(Tile::kThreads), size_t(Tile::kBytes), stream, x, weight, bias, y,
                job);
}

}  // namespace

template <class T>
const char* launch_sparse_linear_panels_wgmma_fwd(const SparseLinearShape& s, const T* x, int64_t x_line, const T* weight, const int32_t* index,
                                                  const T* bias, T* y, Strides y_stride, Stream stream) {
  if (!s.N || !s.OB) return nullptr;
  const auto aligned = [](const T* p) { return reinterpret_cast<uintptr_t>(p) % 16 == 0; };
  if (!aligned(x) || !aligned(weight) || x_line % 8) return "sparse_linear: lines of x and of the weight must be aligned to 16 bytes";
  if (s.OB * (s.BO / 64) > 65535) return "sparse_linear: more panels than a grid holds";
  switch (wide_panel_tile(s.N, s.OB, s.BO, multiprocessors())) {
    case WidePanel::outputs_64: return run<T, 64, 128>(s, x, x_line, weight, index, bias, y, y_stride, stream);
    case WidePanel::rows_128: return run<T, 128, 128>(s, x, x_line, weight, index, bias, y, y_stride, stream);
    default: return run<T, 128, 256>(s, x, x_line, weight, index, bias, y, y_stride, stream);
  }
}

#define SK_INSTANTIATE(T)                                                                                                                            \
  template const char* launch_sparse_linear_panels_wgmma_fwd<T>(const SparseLinearShape&, const T*, int64_t, const T*, const int32_t*, const T*, T*, \
                                                                Strides, Stream);
SK_INSTANTIATE(bf16)
SK_INSTANTIATE(fp16)
#undef SK_INSTANTIATE

}  // namespace sk
