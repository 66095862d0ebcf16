// sparse_linear on a packed weight: forward only, see core/sparse_linear_pack.cpp.
#include "torch/sparse_linear.h"

namespace sk::glue {

Tensor pack_sparse_linear(const Tensor& weight, const Tensor& index, int64_t in_features) {
  const SparseLinearShape s = shape_of(weight, index, in_features);
  STD_TORCH_CHECK(weight.scalar_type() != ScalarType::Double, "sparse_linear_packed: weight");
  const PlanHolder plan(s, index, std::nullopt);
  const Tensor w = as_contiguous(weight);
  const FloatInput wf(w, s.kept(), pool());
  std::vector<int32_t> pack;
  const bool bf16 = w.scalar_type() == ScalarType::BFloat16;
  sparse_linear_pack(s, plan.data, wf.data(), bf16 ? static_cast<const uint16_t*>(w.const_data_ptr()) : nullptr, pack);
  return int32_tensor(index, pack);
}

Tensor sparse_linear_packed(const Tensor& x, const Tensor& packed, const std::optional<Tensor>& bias, int64_t out_features, int64_t kept) {
  STD_TORCH_CHECK(floating(x.scalar_type()) && x.scalar_type() != ScalarType::Double, "sparse_linear_packed: x");
  const Rows in = rows_of(x, x.scalar_type(), "sparse_linear_packed: x");
  STD_TORCH_CHECK(packed.is_cpu() && packed.scalar_type() == ScalarType::Int && packed.dim() == 1 && packed.is_contiguous(),
                  "sparse_linear_packed: packed");
  const int32_t* pack = static_cast<const int32_t*>(packed.const_data_ptr());
  SparseLinearShape s = sparse_linear_pack_shape(pack, packed.size(0));
  s.N = in.N;
  STD_TORCH_CHECK(s.OB > 0 && s.out() == out_features && s.kept() == kept, "sparse_linear_packed: packed");
  STD_TORCH_CHECK(x.size(x.dim() - 1) == s.in(), "sparse_linear_packed: x");
  STD_TORCH_CHECK(!bias || (bias->is_cpu() && bias->scalar_type() == x.scalar_type() && bias->dim() == 1 && bias->size(0) == s.out()),
                  "sparse_linear_packed: bias");
  const Pool threads = pool();
  const Tensor out = output_like(x, in.feature_major, s.out());
  const std::optional<Tensor> b = as_contiguous(bias);
  const Strides out_strides = in.feature_major ? Strides{1, s.N} : Strides{s.out(), 1};
  if (x.scalar_type() == ScalarType::BFloat16 && sparse_linear_packed_tiles(s, pack)) {
    sparse_linear_packed_fwd(s, pack, static_cast<const uint16_t*>(in.tensor.const_data_ptr()), in.strides,
                             b ? static_cast<const uint16_t*>(b->const_data_ptr()) : nullptr, static_cast<uint16_t*>(out.mutable_data_ptr()),
                             out_strides, threads);
    return out;
  }
  const FloatInput xf(in.tensor, s.N * s.in(), threads), bf(b, threads);
  const FloatOutput y(out, threads);
  sparse_linear_packed_fwd(s, pack, xf.data(), in.strides, bf.data(), y.data(), out_strides, threads);
  y.finish();
  return out;
}

}  // namespace sk::glue

STABLE_TORCH_LIBRARY_IMPL(sparsekern, CPU, m) {
  m.impl("sparse_linear_packed", SK_BOX(&sk::glue::sparse_linear_packed));
  m.impl("pack_sparse_linear", SK_BOX(&sk::glue::pack_sparse_linear));
}
