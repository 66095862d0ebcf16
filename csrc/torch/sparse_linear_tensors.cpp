// The tensors of sparse_linear as kernels take them, on any device.
#include "torch/sparse_linear.h"

namespace sk::glue {

// ---- checks: the same rules as the card's `check`, before any memory is touched; the card says them in words
SparseLinearShape shape_of(const Tensor& weight, const Tensor& index, int64_t in_features) {
  const int64_t dim = weight.dim();
  STD_TORCH_CHECK(here(weight) && floating(weight.scalar_type()) && (dim == 2 || dim == 4), "sparse_linear: weight");
  STD_TORCH_CHECK(beside(index, weight) && index.scalar_type() == ScalarType::Int && index.dim() == 2, "sparse_linear: index");
  STD_TORCH_CHECK(index.size(0) == weight.size(0) && index.size(1) == weight.size(1), "sparse_linear: index");
  SparseLinearShape s{0, weight.size(0), weight.size(1), dim == 4 ? weight.size(2) : 1, dim == 4 ? weight.size(3) : 1, 0};
  STD_TORCH_CHECK(s.BO > 0 && s.BI > 0 && s.F > 0 && in_features % s.BI == 0, "sparse_linear: weight");
  s.IB = in_features / s.BI;
  return s;
}

static bool feature_major(const Tensor& x) { return x.dim() == 2 && x.stride(0) == 1 && x.size(0) > 1 && x.size(1) > 1 && x.stride(1) == x.size(0); }
Rows rows_of(const Tensor& x, ScalarType type, const char* message) {
  STD_TORCH_CHECK(here(x) && x.dim() >= 1 && x.scalar_type() == type, message);
  const int64_t features = x.size(x.dim() - 1);
  int64_t N = 1;
  for (int64_t d = 0; d + 1 < x.dim(); ++d) N *= x.size(d);
  if (feature_major(x)) return {x, N, {1, N}, true};
  if (x.dim() == 2 && x.stride(1) == 1 && x.stride(0) >= features && !is_half(x.scalar_type())) return {x, N, {x.stride(0), 1}, false};
  return {as_contiguous(x), N, {features, 1}, false};
}

Tensor output_like(const Tensor& x, bool feature_major, int64_t features) {
  const int64_t dim = x.dim();
  if (feature_major) {
    const int64_t sizes[] = {x.size(0), features}, strides[] = {1, x.size(0)};
    return empty_strided(x, x.scalar_type(), sizes, strides, 2);
  }
  std::vector<int64_t> sizes(dim), strides(dim);
  for (int64_t d = 0; d < dim; ++d) sizes[d] = d + 1 < dim ? x.size(d) : features;
  int64_t step = 1;
  for (int64_t d = dim; d-- > 0; step *= std::max<int64_t>(1, sizes[d])) strides[d] = step;
  return empty_strided(x, x.scalar_type(), sizes.data(), strides.data(), dim);
}

}  // namespace sk::glue
