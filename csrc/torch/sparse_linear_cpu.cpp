// sparse_linear on the CPU: check, allocate, hand over to core/sparse_linear.cpp or, where that is faster, to torch's dense product.
#include "core/sparse_linear_dense.h"
#include "torch/sparse_linear.h"

namespace sk::glue {

PlanHolder::PlanHolder(const SparseLinearShape& s, const Tensor& index_, const std::optional<Tensor>& plan)
    : index(as_contiguous(index_)), given(plan) {
  if (plan) {
    STD_TORCH_CHECK(plan->is_cpu() && plan->scalar_type() == ScalarType::Int && plan->dim() == 1 && plan->is_contiguous(), "sparse_linear: plan");
    data = static_cast<const int32_t*>(plan->const_data_ptr());
    STD_TORCH_CHECK(sparse_linear_plan_fits(s, data, plan->size(0)), "sparse_linear: plan");
  }
  const int32_t* table = static_cast<const int32_t*>(index.const_data_ptr());
  if (!plan || !sparse_linear_plan_complete(s, data) || !sparse_linear_plan_is_of(data, table)) {
    const PlanError error = sparse_linear_plan(s, table, made);
    STD_TORCH_CHECK(!error.rule, "sparse_linear: index must be ", error.rule, "; got ", error.value, " at [", error.row, ", ", error.position, "]");
    data = made.data();
  }
}

Tensor int32_tensor(const Tensor& like, const std::vector<int32_t>& values) {
  const int64_t size = int64_t(values.size()), stride = 1;
  const Tensor out = empty_strided(like, ScalarType::Int, &size, &stride, 1);
  std::copy(values.begin(), values.end(), static_cast<int32_t*>(out.mutable_data_ptr()));
  return out;
}

namespace {

LinearType linear_type(ScalarType t) {
  return t == ScalarType::BFloat16 ? LinearType::bf16 : t == ScalarType::Half ? LinearType::fp16 : LinearType::fp32;
}

enum class Path { dense, tiles, plain };
Path path_of(const SparseLinearShape& s, Product product, const Tensor& like, const Pool& p) {
  if (like.scalar_type() == ScalarType::Double) return Path::plain;
  // torch's bf16 product of rows of an odd length multiplies what lies behind each row by zero: a NaN there, in memory of whoever, spreads
  const int64_t summed = product == Product::forward ? s.in() : product == Product::grad_x ? s.out() : 0;
  const bool reads_behind = like.scalar_type() == ScalarType::BFloat16 && summed % 2;
  switch (sparse_linear_choice(s, product, linear_type(like.scalar_type()), p.threads).kernel) {
    case LinearKernel::dense: return reads_behind ? Path::plain : Path::dense;
    case LinearKernel::block_amx:
    case LinearKernel::expanded_amx: return Path::tiles;
    default: return Path::plain;
  }
}

const uint16_t* halves(const Tensor& t) { return static_cast<const uint16_t*>(t.const_data_ptr()); }
const uint16_t* halves(const std::optional<Tensor>& t) { return t ? halves(*t) : nullptr; }

// Storage types of 2 and 4 bytes are moved, not computed with.
template <class F>
void by_element_size(const Tensor& t, const F& f) {
  if (is_half(t.scalar_type())) return f(uint16_t{});
  f(float{});
}

Tensor dense_weight(const SparseLinearShape& s, const PlanHolder& plan, const Tensor& weight, const Pool& p) {
  const Tensor w = as_contiguous(weight), dense = new_tensor(weight, std::array<int64_t, 2>{s.out(), s.in()});
  if (weight.scalar_type() == ScalarType::Float &&
      sparse_linear_expand_to_dense(s, plan.data, static_cast<const float*>(w.const_data_ptr()), static_cast<float*>(dense.mutable_data_ptr()), p))
    return dense;
  by_element_size(weight, [&](auto element) {
    using T = decltype(element);
    sparse_linear_to_dense(s, plan.data, static_cast<const T*>(w.const_data_ptr()), static_cast<T*>(dense.mutable_data_ptr()), p);
  });
  return dense;
}

Tensor matrix(const Tensor& x, int64_t N) { return x.dim() == 2 ? x : torch::stable::reshape(x, {N, x.size(x.dim() - 1)}); }

}  // namespace

Tensor sparse_linear(const Tensor& x, const Tensor& weight, const std::optional<Tensor>& bias, const Tensor& index,
                     const std::optional<Tensor>& plan) {
  STD_TORCH_CHECK(x.dim() >= 1, "sparse_linear: x");
  SparseLinearShape s = shape_of(weight, index, x.size(x.dim() - 1));
  const Rows in = rows_of(x, weight.scalar_type(), "sparse_linear: x");
  s.N = in.N;
  STD_TORCH_CHECK(!bias || (bias->is_cpu() && bias->scalar_type() == x.scalar_type() && bias->dim() == 1 && bias->size(0) == s.out()),
                  "sparse_linear: bias");
  const PlanHolder p(s, index, plan);
  const Pool threads = pool();
  s.balanced = sparse_linear_plan_balanced(p.data);
  Tensor out = output_like(x, in.feature_major, s.out());
  const Path path = path_of(s, Product::forward, x, threads);
  if (path == Path::dense) {  // a bias with gaps would be added by itself: in bf16 the sum is rounded twice
    const Tensor y = call<3>("aten::linear", "", in.tensor, dense_weight(s, p, weight, threads), as_contiguous(bias));
    if (!in.feature_major && y.is_contiguous()) return y;
    return torch::stable::copy_(out, y);
  }
  const Tensor w = as_contiguous(weight);
  const std::optional<Tensor> b = as_contiguous(bias);
  const Strides out_strides = in.feature_major ? Strides{1, s.N} : Strides{s.out(), 1};
  if (path == Path::tiles) {
    sparse_linear_fwd(s, p.data, halves(in.tensor), in.strides, halves(w), halves(b), static_cast<uint16_t*>(out.mutable_data_ptr()), out_strides,
                      threads);
    return out;
  }
  if (x.scalar_type() == ScalarType::Double) {
    const Tensor rows = as_contiguous(x), y = in.feature_major ? new_tensor(x, std::array<int64_t, 2>{s.N, s.out()}) : out;
    sparse_linear_fwd(s, p.data, static_cast<const double*>(rows.const_data_ptr()), static_cast<const double*>(w.const_data_ptr()),
                      b ? static_cast<const double*>(b->const_data_ptr()) : nullptr, static_cast<double*>(y.mutable_data_ptr()), threads);
    return in.feature_major ? torch::stable::copy_(out, y) : out;
  }
  const FloatInput xf(in.tensor, s.N * s.in(), threads), wf(w, s.kept(), threads), bf(b, threads);
  const FloatOutput y(out, threads);
  sparse_linear_fwd(s, p.data, xf.data(), in.strides, wf.data(), bf.data(), y.data(), out_strides, threads);
  y.finish();
  return out;
}

Tensor sparse_linear_grad_x(const Tensor& grad_out, const Tensor& weight, const Tensor& index, const std::optional<Tensor>& plan,
                            int64_t in_features) {
  SparseLinearShape s = shape_of(weight, index, in_features);
  const Rows g = rows_of(grad_out, weight.scalar_type(), "sparse_linear: grad_out");
  STD_TORCH_CHECK(grad_out.size(grad_out.dim() - 1) == s.out(), "sparse_linear: grad_out");
  s.N = g.N;
  const PlanHolder p(s, index, plan);
  const Pool threads = pool();
  Tensor out = output_like(grad_out, g.feature_major, in_features);
  const Path path = path_of(s, Product::grad_x, weight, threads);
  if (path == Path::dense) {
    const Tensor y = call<2>("aten::matmul", "", g.tensor, dense_weight(s, p, weight, threads));
    if (!g.feature_major && y.is_contiguous()) return y;
    return torch::stable::copy_(out, y);
  }
  const Tensor w = as_contiguous(weight);
  const Strides out_strides = g.feature_major ? Strides{1, s.N} : Strides{s.in(), 1};
  if (path == Path::tiles) {
    sparse_linear_grad_x(s, p.data, halves(g.tensor), g.strides, halves(w), static_cast<uint16_t*>(out.mutable_data_ptr()), out_strides, threads);
    return out;
  }
  if (weight.scalar_type() == ScalarType::Double) {
    const Tensor rows = as_contiguous(grad_out), y = g.feature_major ? new_tensor(grad_out, std::array<int64_t, 2>{s.N, s.in()}) : out;
    sparse_linear_grad_x(s, p.data, static_cast<const double*>(rows.const_data_ptr()), static_cast<const double*>(w.const_data_ptr()),
                         static_cast<double*>(y.mutable_data_ptr()), threads);
    return g.feature_major ? torch::stable::copy_(out, y) : out;
  }
  const FloatInput gf(g.tensor, s.N * s.out(), threads), wf(w, s.kept(), threads);
  const FloatOutput gx(out, threads);
  sparse_linear_grad_x(s, p.data, gf.data(), g.strides, wf.data(), gx.data(), out_strides, threads);
  gx.finish();
  return out;
}

Tensor sparse_linear_grad_weight(const Tensor& grad_out, const Tensor& x, const Tensor& index, const std::optional<Tensor>& plan, int64_t block_out,
                                 int64_t block_in, bool condensed) {
  STD_TORCH_CHECK(index.is_cpu() && index.scalar_type() == ScalarType::Int && index.dim() == 2 && index.size(1) > 0, "sparse_linear: index");
  STD_TORCH_CHECK(x.dim() >= 1 && grad_out.dim() == x.dim() && floating(x.scalar_type()), "sparse_linear: x");
  const Rows in = rows_of(x, grad_out.scalar_type(), "sparse_linear: x"), g = rows_of(grad_out, x.scalar_type(), "sparse_linear: grad_out");
  STD_TORCH_CHECK(block_out > 0 && block_in > 0 && x.size(x.dim() - 1) % block_in == 0, "sparse_linear: block_size");
  SparseLinearShape s{in.N, index.size(0), index.size(1), block_out, block_in, x.size(x.dim() - 1) / block_in};
  STD_TORCH_CHECK(grad_out.size(x.dim() - 1) == s.out() && (g.N == in.N || s.out() == 0 || s.in() == 0), "sparse_linear: grad_out");
  const PlanHolder p(s, index, plan);
  const Pool threads = pool();
  const Tensor gw = condensed ? new_tensor(x, std::array<int64_t, 2>{s.OB, s.F}) : new_tensor(x, std::array<int64_t, 4>{s.OB, s.F, s.BO, s.BI});
  const Path path = path_of(s, Product::grad_weight, x, threads);
  if (path == Path::dense) {
    const Tensor dense = as_contiguous(call<2>("aten::mm", "", torch::stable::transpose(matrix(grad_out, s.N), 0, 1), matrix(x, s.N)));
    by_element_size(x, [&](auto element) {
      using T = decltype(element);
      sparse_linear_from_dense(s, p.data, static_cast<const T*>(dense.const_data_ptr()), static_cast<T*>(gw.mutable_data_ptr()), threads);
    });
    return gw;
  }
  if (path == Path::tiles) {
    sparse_linear_grad_weight(s, p.data, halves(g.tensor), g.strides, halves(in.tensor), in.strides, static_cast<uint16_t*>(gw.mutable_data_ptr()),
                              threads);
    return gw;
  }
  if (x.scalar_type() == ScalarType::Double) {
    const Tensor gc = as_contiguous(grad_out), xc = as_contiguous(x);
    sparse_linear_grad_weight(s, p.data, static_cast<const double*>(gc.const_data_ptr()), static_cast<const double*>(xc.const_data_ptr()),
                              static_cast<double*>(gw.mutable_data_ptr()), threads);
    return gw;
  }
  const FloatInput gf(g.tensor, s.N * s.out(), threads), xf(in.tensor, s.N * s.in(), threads);
  const FloatOutput out(gw, threads);
  sparse_linear_grad_weight(s, p.data, gf.data(), g.strides, xf.data(), in.strides, out.data(), threads);
  out.finish();
  return gw;
}

Tensor plan_sparse_linear(const Tensor& index, int64_t in_features, int64_t block_out, int64_t block_in) {
  STD_TORCH_CHECK(index.is_cpu() && index.scalar_type() == ScalarType::Int && index.dim() == 2 && index.size(1) > 0, "sparse_linear: index");
  STD_TORCH_CHECK(block_out > 0 && block_in > 0 && in_features % block_in == 0, "sparse_linear: block_size");
  const PlanHolder p({0, index.size(0), index.size(1), block_out, block_in, in_features / block_in}, index, std::nullopt);
  return int32_tensor(index, p.made);
}

// [kernel code, estimate of ours in us, estimate of dense in us]; product 3: forward of a packed weight, no estimates
Tensor choose_sparse_linear(const Tensor& like, int64_t N, int64_t in_features, int64_t OB, int64_t F, int64_t BO, int64_t BI, int64_t product,
                            int64_t type, bool balanced, int64_t places, int64_t left_over) {
  const SparseLinearShape s{N, OB, F, BO, BI, in_features / BI, balanced, places, left_over};
  const LinearType t = LinearType(type);
  const bool packed = product == 3;
  const LinearChoice c = packed ? LinearChoice{sparse_linear_packed_choice(s, t), 0.0, 0.0}
                                : sparse_linear_choice(s, Product(product), t, int(torch::stable::get_num_threads()));
  const Tensor out = new_tensor(like, std::array<int64_t, 1>{3});
  double* o = static_cast<double*>(out.mutable_data_ptr());
  o[0] = double(c.kernel), o[1] = c.sparse_us, o[2] = c.dense_us;
  return out;
}

}  // namespace sk::glue

STABLE_TORCH_LIBRARY_IMPL(sparsekern, CPU, m) {
  m.impl("_sparse_linear", SK_BOX(&sk::glue::sparse_linear));
  m.impl("sparse_linear", SK_BOX(&sk::glue::sparse_linear));
  m.impl("_sparse_linear_grad_x", SK_BOX(&sk::glue::sparse_linear_grad_x));
  m.impl("sparse_linear_grad_x", SK_BOX(&sk::glue::sparse_linear_grad_x));
  m.impl("_sparse_linear_grad_weight", SK_BOX(&sk::glue::sparse_linear_grad_weight));
  m.impl("sparse_linear_grad_weight", SK_BOX(&sk::glue::sparse_linear_grad_weight));
  m.impl("plan_sparse_linear", SK_BOX(&sk::glue::plan_sparse_linear));
  m.impl("choose_sparse_linear", SK_BOX(&sk::glue::choose_sparse_linear));
}
