// grouped_mm on a CUDA device: check, allocate, launch. Who serves a call is decided in sparsekern/ops/cuda.py.
#include "cuda/grouped_mm.h"
#include "torch/launch.h"

namespace sk::glue::cuda {
namespace {

// Of a [G, M, K], or [T, K] with offsets, and matrices b [G, K, N].
GroupedMmShape shape_of(const Tensor& a, int64_t G, int64_t K, int64_t N, const std::optional<Tensor>& offsets) {
  STD_TORCH_CHECK(here(a) && a.dim() == (offsets ? 2 : 3), "grouped_mm: a");
  STD_TORCH_CHECK(offsets || a.size(0) == G, "grouped_mm: a");
  STD_TORCH_CHECK(!offsets || (beside(*offsets, a) && offsets->scalar_type() == ScalarType::Int && offsets->dim() == 1 && offsets->size(0) == G),
                  "grouped_mm: offsets");
  const int64_t T = offsets ? a.size(0) : G * a.size(1);
  for (int64_t size : {T, G, K, N}) STD_TORCH_CHECK(size <= INT32_MAX / 4, "grouped_mm: sizes above 2^29");  // kernels count them in 32 bits
  return {T, G, K, N, nullptr};
}
bool like(const Tensor& t, const Tensor& a, int64_t dim) { return beside(t, a) && t.scalar_type() == a.scalar_type() && t.dim() == dim; }
Tensor rows_like(const Tensor& a, int64_t columns) {
  if (a.dim() == 2) return new_tensor(a, std::array<int64_t, 2>{a.size(0), columns});
  return new_tensor(a, std::array<int64_t, 3>{a.size(0), a.size(1), columns});
}

}  // namespace

Tensor grouped_mm(const Tensor& a, const Tensor& b, const std::optional<Tensor>& offsets, bool tf32) {
  STD_TORCH_CHECK(like(b, a, 3), "grouped_mm: b");
  GroupedMmShape s = shape_of(a, b.size(0), b.size(1), b.size(2), offsets);
  STD_TORCH_CHECK(a.size(a.dim() - 1) == s.K, "grouped_mm: a");
  Launch launch(a);
  const Tensor rows = as_contiguous(a), matrices = as_contiguous(b), out = rows_like(a, s.N);
  const std::optional<Tensor> ends = as_contiguous(offsets);
  s.offsets = launch.input<int32_t>(ends, "offsets");
  by_type(a.scalar_type(), [&](auto type) {
    using T = decltype(type);
    launch.done(launch_grouped_mm<T>(s, launch.input<T>(rows, "a"), launch.input<T>(matrices, "b"), launch.output<T>(out, "out"), fp32_mode(tf32),
                                     launch.stream()));
  });
  return out;
}

Tensor grouped_mm_grad_a(const Tensor& grad_out, const Tensor& b, const std::optional<Tensor>& offsets, bool tf32) {
  STD_TORCH_CHECK(like(b, grad_out, 3), "grouped_mm: b");
  GroupedMmShape s = shape_of(grad_out, b.size(0), b.size(1), b.size(2), offsets);
  STD_TORCH_CHECK(grad_out.size(grad_out.dim() - 1) == s.N, "grouped_mm: grad_out");
  Launch launch(grad_out);
  const Tensor rows = as_contiguous(grad_out), matrices = as_contiguous(b), grad_a = rows_like(grad_out, s.K);
  const std::optional<Tensor> ends = as_contiguous(offsets);
  s.offsets = launch.input<int32_t>(ends, "offsets");
  by_type(b.scalar_type(), [&](auto type) {
    using T = decltype(type);
    launch.done(launch_grouped_mm_grad_a<T>(s, launch.input<T>(rows, "grad_out"), launch.input<T>(matrices, "b"), launch.output<T>(grad_a, "grad_a"),
                                            fp32_mode(tf32), launch.stream()));
  });
  return grad_a;
}

Tensor grouped_mm_grad_b(const Tensor& grad_out, const Tensor& a, const std::optional<Tensor>& offsets, bool tf32) {
  STD_TORCH_CHECK(a.dim() >= 2 && like(grad_out, a, a.dim()) && (offsets ? offsets->dim() == 1 : a.dim() == 3), "grouped_mm: grad_out");
  for (int64_t d = 0; d + 1 < a.dim(); ++d) STD_TORCH_CHECK(grad_out.size(d) == a.size(d), "grouped_mm: grad_out");
  GroupedMmShape s = shape_of(a, offsets ? offsets->size(0) : a.size(0), a.size(a.dim() - 1), grad_out.size(a.dim() - 1), offsets);
  Launch launch(a);
  const Tensor rows = as_contiguous(a), grads = as_contiguous(grad_out), grad_b = new_tensor(a, std::array<int64_t, 3>{s.G, s.K, s.N});
  const std::optional<Tensor> ends = as_contiguous(offsets);
  s.offsets = launch.input<int32_t>(ends, "offsets");
  by_type(a.scalar_type(), [&](auto type) {
    using T = decltype(type);
    launch.done(launch_grouped_mm_grad_b<T>(s, launch.input<T>(grads, "grad_out"), launch.input<T>(rows, "a"), launch.output<T>(grad_b, "grad_b"),
                                            fp32_mode(tf32), launch.stream()));
  });
  return grad_b;
}

}  // namespace sk::glue::cuda

STABLE_TORCH_LIBRARY_FRAGMENT(SK_LIBRARY, m) {
  m.def("grouped_mm(Tensor a, Tensor b, Tensor? offsets, bool tf32) -> Tensor");
  m.def("grouped_mm_grad_a(Tensor grad_out, Tensor b, Tensor? offsets, bool tf32) -> Tensor");
  m.def("grouped_mm_grad_b(Tensor grad_out, Tensor a, Tensor? offsets, bool tf32) -> Tensor");
}
STABLE_TORCH_LIBRARY_IMPL(SK_LIBRARY, SK_DEVICE_KEY, m) {
  m.impl("grouped_mm", TORCH_BOX(&sk::glue::cuda::grouped_mm));
  m.impl("grouped_mm_grad_a", TORCH_BOX(&sk::glue::cuda::grouped_mm_grad_a));
  m.impl("grouped_mm_grad_b", TORCH_BOX(&sk::glue::cuda::grouped_mm_grad_b));
}
