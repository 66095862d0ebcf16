// What the glue of sparse_linear and of its packed form share.
#pragma once
#include <vector>

#include "core/sparse_linear.h"
#include "torch/glue.h"

namespace sk::glue {

// Activations as the kernels take them: rows of `features`, natural or feature-major ([N, features] with strides (1, N)).
struct Rows {
  Tensor tensor;
  int64_t N;
  Strides strides;
  bool feature_major;
};
Rows rows_of(const Tensor& x, ScalarType type, const char* message);

// The leading dimensions of `x` with `features` behind; feature-major if x is.
Tensor output_like(const Tensor& x, bool feature_major, int64_t features);

// The caller's plan, checked in O(1), or one made and validated now.
struct PlanHolder {
  std::vector<int32_t> made;
  Tensor index;
  std::optional<Tensor> given;
  const int32_t* data;
  PlanHolder(const SparseLinearShape& s, const Tensor& index, const std::optional<Tensor>& plan);
};

// Sizes of a weight [OB, F] or [OB, F, BO, BI] with its index; N is 0.
SparseLinearShape shape_of(const Tensor& weight, const Tensor& index, int64_t in_features);

Tensor sparse_linear_grad_x(const Tensor& grad_out, const Tensor& weight, const Tensor& index, const std::optional<Tensor>& plan,
                            int64_t in_features);
Tensor sparse_linear_grad_weight(const Tensor& grad_out, const Tensor& x, const Tensor& index, const std::optional<Tensor>& plan, int64_t block_out,
                                 int64_t block_in, bool condensed);

Tensor int32_tensor(const Tensor& like, const std::vector<int32_t>& values);

}  // namespace sk::glue
