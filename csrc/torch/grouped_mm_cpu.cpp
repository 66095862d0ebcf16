// grouped_mm on the CPU: torch's own products, one batched call for equal groups, one product per group for ragged ones.
#include "torch/glue.h"

namespace sk::glue {
namespace {

// fp16 and bf16 products of a few rows are summed in their own type by some of torch's kernels: compute in fp32 instead.
Tensor wide(const Tensor& t) { return is_half(t.scalar_type()) ? torch::stable::to(t, ScalarType::Float) : t; }
Tensor stored(const Tensor& t, ScalarType type) { return t.scalar_type() == type ? t : torch::stable::to(t, type); }
Tensor transposed(const Tensor& t) { return torch::stable::transpose(t, -2, -1); }

void check(const Tensor& rows, const Tensor& other, const std::optional<Tensor>& offsets, bool other_has_groups) {
  STD_TORCH_CHECK(rows.is_cpu() && other.is_cpu() && floating(rows.scalar_type()) && rows.scalar_type() == other.scalar_type(), "grouped_mm: b");
  STD_TORCH_CHECK(rows.dim() == (offsets ? 2 : 3) && other.dim() == (offsets && !other_has_groups ? 2 : 3), "grouped_mm: a");
  STD_TORCH_CHECK(offsets || rows.size(0) == other.size(0), "grouped_mm: a");
  STD_TORCH_CHECK(!offsets || (offsets->is_cpu() && offsets->scalar_type() == ScalarType::Int && offsets->dim() == 1), "grouped_mm: offsets");
}

// The rows of each group, as f(group, begin, end); the ends must rise to the number of rows.
template <class F>
void each_group(const Tensor& offsets, int64_t rows, const F& f) {
  const Tensor held = as_contiguous(offsets);
  const int32_t* ends = static_cast<const int32_t*>(held.const_data_ptr());
  const int64_t groups = offsets.size(0);
  for (int64_t g = 0, begin = 0; g < groups; begin = ends[g++])
    STD_TORCH_CHECK(ends[g] >= begin && (g + 1 < groups || ends[g] == rows), "grouped_mm: offsets");
  for (int64_t g = 0, begin = 0; g < groups; begin = ends[g++])
    if (ends[g] > begin) f(g, begin, int64_t(ends[g]));
}
Tensor rows_of(const Tensor& t, int64_t begin, int64_t end) {
  Tensor held = t;
  return torch::stable::narrow(held, 0, begin, end - begin);
}

// rows @ other[g]
Tensor product(const Tensor& rows, const Tensor& other, const std::optional<Tensor>& offsets) {
  check(rows, other, offsets, true);
  STD_TORCH_CHECK(rows.size(rows.dim() - 1) == other.size(1), "grouped_mm: a");
  const ScalarType type = rows.scalar_type();
  const Tensor a = wide(rows), b = wide(other);
  if (!offsets) return stored(call<2>("aten::bmm", "", a, b), type);
  STD_TORCH_CHECK(offsets->size(0) == b.size(0), "grouped_mm: offsets");
  const Tensor out = new_tensor(a, std::array<int64_t, 2>{a.size(0), b.size(2)});
  each_group(*offsets, a.size(0), [&](int64_t g, int64_t begin, int64_t end) {
    call<3>("aten::mm", "out", rows_of(a, begin, end), torch::stable::select(b, 0, g), rows_of(out, begin, end));
  });
  if (offsets->size(0) == 0) STD_TORCH_CHECK(a.size(0) == 0, "grouped_mm: offsets");
  return stored(out, type);
}

}  // namespace

Tensor grouped_mm(const Tensor& a, const Tensor& b, const std::optional<Tensor>& offsets) { return product(a, b, offsets); }

Tensor grouped_mm_grad_a(const Tensor& grad_out, const Tensor& b, const std::optional<Tensor>& offsets) {
  STD_TORCH_CHECK(b.dim() == 3, "grouped_mm: b");
  return product(grad_out, transposed(b), offsets);
}

Tensor grouped_mm_grad_b(const Tensor& grad_out, const Tensor& a, const std::optional<Tensor>& offsets) {
  check(a, grad_out, offsets, false);
  STD_TORCH_CHECK(a.size(a.dim() - 2) == grad_out.size(a.dim() - 2), "grouped_mm: grad_out");
  const ScalarType type = a.scalar_type();
  const Tensor g = wide(grad_out), rows = wide(a);
  if (!offsets) return stored(call<2>("aten::bmm", "", transposed(rows), g), type);
  const Tensor out = torch::stable::new_zeros(a, {offsets->size(0), a.size(1), g.size(1)}, std::make_optional(rows.scalar_type()));
  each_group(*offsets, a.size(0), [&](int64_t group, int64_t begin, int64_t end) {
    call<3>("aten::mm", "out", transposed(rows_of(rows, begin, end)), rows_of(g, begin, end), torch::stable::select(out, 0, group));
  });
  return stored(out, type);
}

}  // namespace sk::glue

STABLE_TORCH_LIBRARY_IMPL(sparsekern, CPU, m) {
  m.impl("_grouped_mm", SK_BOX(&sk::glue::grouped_mm));
  m.impl("grouped_mm", SK_BOX(&sk::glue::grouped_mm));
  m.impl("_grouped_mm_grad_a", SK_BOX(&sk::glue::grouped_mm_grad_a));
  m.impl("grouped_mm_grad_a", SK_BOX(&sk::glue::grouped_mm_grad_a));
  m.impl("_grouped_mm_grad_b", SK_BOX(&sk::glue::grouped_mm_grad_b));
  m.impl("grouped_mm_grad_b", SK_BOX(&sk::glue::grouped_mm_grad_b));
}
