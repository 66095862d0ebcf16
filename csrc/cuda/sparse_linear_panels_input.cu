// Launcher of the gradient of panels' inputs.
#include <algorithm>

#include "cuda/sparse_linear_panels_input.cuh"

namespace sk {
namespace {

constexpr int kLeastInputs = 64, kMostInputs = 384;

// So many inputs that a panel is likely to keep up to a tile of them, as shared memory allows.
int inputs_of_block(const SparseLinearShape& s) {
  const int64_t room = (int64_t(shared_bytes_per_block()) - kPanelSumsAt - 1024) / kPanelPitch;
  const int64_t wanted = std::clamp<int64_t>(48 * s.in() / s.F / 16 * 16, kLeastInputs, kMostInputs);
  return int(std::min({wanted, room, s.in()}));
}

}  // namespace

template <class T>
const char* launch_sparse_linear_panels_grad_x(const SparseLinearShape& s, const T* grad_out, const T* weight, const int32_t* index, T* grad_x,
                                               Strides grad_x_stride, Fp32 mode, Stream stream) {
  if (!s.N || !s.in()) return nullptr;
  const auto whole = [](const T* p, int64_t line) { return line * sizeof(T) % 16 == 0 && reinterpret_cast<uintptr_t>(p) % 16 == 0; };
  PanelInputJob job{};
  job.mm.a_line = s.BO, job.mm.b_line = s.out(), job.mm.a_vectors = whole(weight, s.BO), job.mm.b_vectors = whole(grad_out, s.BO);
  job.N = s.N, job.panels = int(s.OB), job.width = int(s.BO), job.fan_in = int(s.F), job.inputs = inputs_of_block(s), job.all_inputs = int(s.in());
  job.grad_x_at = grad_x_stride, job.index = index;
  const int64_t chunks = (s.in() + job.inputs - 1) / job.inputs;
  if (chunks > 65535) return "sparse_linear: more inputs than a grid holds";
  auto* kernel = sparse_linear_panels_input_kernel<T, Fp32::strict>;
  if constexpr (sizeof(T) == 4)
    if (mode == Fp32::tf32) kernel = sparse_linear_panels_input_kernel<T, Fp32::tf32>;
  const dim3 grid(unsigned((s.N + kMmTile - 1) / kMmTile), unsigned(chunks));
  return launch(kernel, grid, dim3(kMmThreads), size_t(kPanelSumsAt) + size_t(job.inputs) * kPanelPitch, stream, grad_out, weight, grad_x, job);
}

#define SK_INSTANTIATE(T) \
  template const char* launch_sparse_linear_panels_grad_x<T>(const SparseLinearShape&, const T*, const T*, const int32_t*, T*, Strides, Fp32, Stream);
SK_INSTANTIATE(float)
SK_INSTANTIATE(bf16)
SK_INSTANTIATE(fp16)
#undef SK_INSTANTIATE

}  // namespace sk
