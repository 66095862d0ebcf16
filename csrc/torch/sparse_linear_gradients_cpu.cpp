// All gradients of sparse_linear in one call: a small layer's training step feels every call.
#include "core/column_sums.h"
#include "torch/sparse_linear.h"

namespace sk::glue {
namespace {

Tensor bias_gradient(const Tensor& grad_out) {
  const Rows g = rows_of(grad_out, grad_out.scalar_type(), "sparse_linear: grad_out");
  const int64_t features = grad_out.size(grad_out.dim() - 1);
  const Pool threads = pool();
  const Tensor sums = new_tensor(grad_out, std::array<int64_t, 1>{features});
  const FloatInput in(g.tensor, g.N * features, threads);
  const FloatOutput out(sums, threads);
  column_sums(g.N, features, in.data(), g.strides.row, g.strides.col, out.data(), threads);
  out.finish();
  return sums;
}

// Without `weight` the first of the three is empty.
std::tuple<Tensor, Tensor, Tensor> sparse_linear_gradients(const Tensor& grad_out, const Tensor& x, const std::optional<Tensor>& weight,
                                                           const Tensor& index, const std::optional<Tensor>& plan, int64_t block_out,
                                                           int64_t block_in, bool condensed) {
  STD_TORCH_CHECK(floating(grad_out.scalar_type()) && grad_out.scalar_type() != ScalarType::Double && x.dim() >= 1, "sparse_linear: grad_out");
  const Tensor grad_x =
      weight ? sparse_linear_grad_x(grad_out, *weight, index, plan, x.size(x.dim() - 1)) : new_tensor(grad_out, std::array<int64_t, 1>{0});
  return {grad_x, sparse_linear_grad_weight(grad_out, x, index, plan, block_out, block_in, condensed), bias_gradient(grad_out)};
}

}  // namespace
}  // namespace sk::glue

STABLE_TORCH_LIBRARY_IMPL(sparsekern, CPU, m) { m.impl("_sparse_linear_gradients", SK_BOX(&sk::glue::sparse_linear_gradients)); }
