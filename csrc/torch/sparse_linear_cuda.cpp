// sparse_linear on a CUDA device: check, allocate, launch. Who serves a call is decided in sparsekern/ops/cuda.py, where index tables
// are checked and planned too: a wrong index would read outside of x.
#include "cuda/sparse_linear.h"
#include "torch/launch.h"
#include "torch/sparse_linear.h"

namespace sk::glue::cuda {
namespace {

constexpr int64_t kHeader = 8;  // of a plan: then indptr [IB + 1], output [OB * F], place [OB * F], see sparsekern/ops/cuda.py

void check_counts(const SparseLinearShape& s) {
  STD_TORCH_CHECK(s.in() <= INT32_MAX / 64 && s.out() <= INT32_MAX / 64 && s.OB * s.F <= INT32_MAX, "sparse_linear: weight");
}
bool condensed(const SparseLinearShape& s) { return s.BO == 1 && s.BI == 1; }
Strides strides_of(const Rows& like, int64_t features) { return like.feature_major ? Strides{1, like.N} : Strides{features, 1}; }

bool aligned(const Tensor& t) { return reinterpret_cast<uintptr_t>(t.const_data_ptr()) % 16 == 0; }

// As panels take them: a line of rows for each feature; `whole`: lines begin at multiples of 8 numbers, which are 16 bytes.
Tensor feature_major(const Rows& rows, int64_t features, bool whole = false) {
  if (rows.feature_major && !(whole && (rows.N % 8 || !aligned(rows.tensor)))) return rows.tensor;
  const int64_t sizes[] = {rows.N, features}, strides[] = {1, whole ? (rows.N + 7) / 8 * 8 : rows.N};
  Tensor turned = empty_strided(rows.tensor, rows.tensor.scalar_type(), sizes, strides, 2);
  const Tensor flat = rows.tensor.dim() == 2 ? rows.tensor : torch::stable::reshape(rows.tensor, {rows.N, features});
  return torch::stable::copy_(turned, flat);
}

// Whether wgmma takes these sizes, this type and these tensors here.
bool by_wgmma(const SparseLinearShape& s, ScalarType type, std::initializer_list<const Tensor*> tensors) {
  for (const Tensor* t : tensors)
    if (!aligned(*t)) return false;
  return is_half(type) && (sparse_linear_wide_panels(s) || sparse_linear_wide_blocks(s)) && has_sparse_linear_wgmma();
}
bool whole_rows(const Rows& rows) { return !rows.feature_major && aligned(rows.tensor); }  // their length is a multiple of 64

}  // namespace

Tensor sparse_linear(const Tensor& x, const Tensor& weight, const std::optional<Tensor>& bias, const Tensor& index, bool tf32, bool wgmma) {
  STD_TORCH_CHECK(x.dim() >= 1, "sparse_linear: x");
  SparseLinearShape s = shape_of(weight, index, x.size(x.dim() - 1));
  STD_TORCH_CHECK(beside(x, weight), "sparse_linear: weight");
  STD_TORCH_CHECK(!bias || (beside(*bias, x) && bias->scalar_type() == x.scalar_type() && bias->dim() == 1 && bias->size(0) == s.out()),
                  "sparse_linear: bias");
  check_counts(s);
  Launch launch(x);
  const Rows in = rows_of(x, weight.scalar_type(), "sparse_linear: x");
  s.N = in.N;
  const Tensor out = output_like(x, in.feature_major, s.out()), w = as_contiguous(weight), table = as_contiguous(index);
  const std::optional<Tensor> b = as_contiguous(bias);
  const bool panels = sparse_linear_panels(s), fast = wgmma && by_wgmma(s, x.scalar_type(), {&w});
  const bool wide_blocks = fast && !panels && whole_rows(in), wide_panels = fast && panels;
  const Tensor source = panels ? feature_major(in, s.in(), wide_panels) : in.tensor;
  by_type(x.scalar_type(), [&](auto type) {
    using T = decltype(type);
    const T *rows = launch.input<T>(source, "x"), *weights = launch.input<T>(w, "weight"), *added = launch.input<T>(b, "bias");
    const int32_t* connections = launch.input<int32_t>(table, "index");
    T* to = launch.output<T>(out, "out");
    if constexpr (sizeof(T) == 2) {
      if (wide_panels)
        return launch.done(launch_sparse_linear_panels_wgmma_fwd<T>(s, rows, source.stride(1), weights, connections, added, to,
                                                                    strides_of(in, s.out()), launch.stream()));
      if (wide_blocks)
        return launch.done(
            launch_sparse_linear_blocks_wgmma_fwd<T>(s, rows, weights, connections, added, to, strides_of(in, s.out()), launch.stream()));
    }
    if (panels)
      return launch.done(
          launch_sparse_linear_panels_fwd<T>(s, rows, weights, connections, added, to, strides_of(in, s.out()), fp32_mode(tf32), launch.stream()));
    launch.done(condensed(s)
                    ? launch_sparse_linear_fwd<T>(s, rows, in.strides, weights, connections, added, to, strides_of(in, s.out()), launch.stream())
                    : launch_sparse_linear_blocks_fwd<T>(s, rows, in.strides, weights, connections, added, to, strides_of(in, s.out()),
                                                         fp32_mode(tf32), launch.stream()));
  });
  return out;
}

Tensor sparse_linear_grad_x(const Tensor& grad_out, const Tensor& weight, const Tensor& index, const Tensor& plan, int64_t in_features, bool tf32,
                            bool wgmma) {
  SparseLinearShape s = shape_of(weight, index, in_features);
  STD_TORCH_CHECK(beside(grad_out, weight) && grad_out.dim() >= 1 && grad_out.size(grad_out.dim() - 1) == s.out(), "sparse_linear: grad_out");
  STD_TORCH_CHECK(beside(plan, weight) && plan.scalar_type() == ScalarType::Int && plan.dim() == 1 && plan.is_contiguous() &&
                      plan.size(0) == kHeader + s.IB + 1 + 2 * s.OB * s.F,
                  "sparse_linear: plan");
  check_counts(s);
  Launch launch(grad_out);
  const Rows g = rows_of(grad_out, weight.scalar_type(), "sparse_linear: grad_out");
  s.N = g.N;
  const Tensor grad_x = output_like(grad_out, g.feature_major, in_features), w = as_contiguous(weight), table = as_contiguous(index);
  const bool panels = sparse_linear_panels(s);
  const Tensor cotangents = panels && g.feature_major ? as_contiguous(g.tensor) : g.tensor;
  const bool wide = wgmma && !panels && by_wgmma(s, weight.scalar_type(), {&w}) && whole_rows(g);
  by_type(weight.scalar_type(), [&](auto type) {
    using T = decltype(type);
    const T *rows = launch.input<T>(cotangents, "grad_out"), *weights = launch.input<T>(w, "weight");
    const int32_t* connections = launch.input<int32_t>(table, "index");
    const int32_t* indptr = launch.input<int32_t>(plan, "plan") + kHeader;
    const LinearColumns columns{indptr, indptr + s.IB + 1, indptr + s.IB + 1 + s.OB * s.F};
    T* to = launch.output<T>(grad_x, "grad_x");
    if constexpr (sizeof(T) == 2)
      if (wide)
        return launch.done(launch_sparse_linear_blocks_wgmma_grad_x<T>(s, rows, weights, columns, to, strides_of(g, s.in()), launch.stream()));
    if (panels)
      return launch.done(
          launch_sparse_linear_panels_grad_x<T>(s, rows, weights, connections, to, strides_of(g, s.in()), fp32_mode(tf32), launch.stream()));
    launch.done(condensed(s) ? launch_sparse_linear_grad_x<T>(s, rows, g.strides, weights, columns, to, strides_of(g, s.in()), launch.stream())
                             : launch_sparse_linear_blocks_grad_x<T>(s, rows, g.strides, weights, columns, to, strides_of(g, s.in()), fp32_mode(tf32),
                                                                     launch.stream()));
  });
  return grad_x;
}

Tensor sparse_linear_grad_weight(const Tensor& grad_out, const Tensor& x, const Tensor& index, int64_t block_out, int64_t block_in,
                                 bool two_dimensional, bool tf32, bool wgmma) {
  STD_TORCH_CHECK(beside(index, x) && index.scalar_type() == ScalarType::Int && index.dim() == 2 && index.size(1) > 0, "sparse_linear: index");
  STD_TORCH_CHECK(x.dim() >= 1 && grad_out.dim() == x.dim() && beside(grad_out, x), "sparse_linear: x");
  STD_TORCH_CHECK(block_out > 0 && block_in > 0 && x.size(x.dim() - 1) % block_in == 0, "sparse_linear: block_size");
  Launch launch(x);
  const Rows in = rows_of(x, grad_out.scalar_type(), "sparse_linear: x"), g = rows_of(grad_out, x.scalar_type(), "sparse_linear: grad_out");
  const SparseLinearShape s{in.N, index.size(0), index.size(1), block_out, block_in, x.size(x.dim() - 1) / block_in};
  STD_TORCH_CHECK(grad_out.size(x.dim() - 1) == s.out() && (g.N == in.N || s.out() == 0 || s.in() == 0), "sparse_linear: grad_out");
  check_counts(s);
  const Tensor grad_weight =
      two_dimensional ? new_tensor(x, std::array<int64_t, 2>{s.OB, s.F}) : new_tensor(x, std::array<int64_t, 4>{s.OB, s.F, s.BO, s.BI});
  const Tensor table = as_contiguous(index);
  const bool panels = sparse_linear_panels(s), fast = wgmma && by_wgmma(s, x.scalar_type(), {});
  const bool wide_panels = fast && panels && whole_rows(g), wide_blocks = fast && !panels && whole_rows(in) && whole_rows(g);
  const Tensor source = panels ? feature_major(in, s.in(), wide_panels) : in.tensor,
               cotangents = panels && !wide_panels ? feature_major(g, s.out()) : g.tensor;
  by_type(x.scalar_type(), [&](auto type) {
    using T = decltype(type);
    const T *grads = launch.input<T>(cotangents, "grad_out"), *rows = launch.input<T>(source, "x");
    const int32_t* connections = launch.input<int32_t>(table, "index");
    T* to = launch.output<T>(grad_weight, "grad_weight");
    if constexpr (sizeof(T) == 2) {
      if (wide_panels)
        return launch.done(launch_sparse_linear_panels_wgmma_grad_weight<T>(s, grads, rows, source.stride(1), connections, to, launch.stream()));
      if (wide_blocks) return launch.done(launch_sparse_linear_blocks_wgmma_grad_weight<T>(s, grads, rows, connections, to, launch.stream()));
    }
    if (panels) return launch.done(launch_sparse_linear_panels_grad_weight<T>(s, grads, rows, connections, to, fp32_mode(tf32), launch.stream()));
    launch.done(condensed(s) ? launch_sparse_linear_grad_weight<T>(s, grads, g.strides, rows, in.strides, connections, to, launch.stream())
                             : launch_sparse_linear_blocks_grad_weight<T>(s, grads, g.strides, rows, in.strides, connections, to, fp32_mode(tf32),
                                                                          launch.stream()));
  });
  return grad_weight;
}

}  // namespace sk::glue::cuda

STABLE_TORCH_LIBRARY_FRAGMENT(SK_LIBRARY, m) {
  m.def("sparse_linear(Tensor x, Tensor weight, Tensor? bias, Tensor index, bool tf32, bool wgmma=False) -> Tensor");
  m.def("sparse_linear_grad_x(Tensor grad_out, Tensor weight, Tensor index, Tensor plan, int in_features, bool tf32, bool wgmma=False) -> Tensor");
  m.def(
      "sparse_linear_grad_weight(Tensor grad_out, Tensor x, Tensor index, int block_out, int block_in, bool condensed, bool tf32, "
      "bool wgmma=False) -> Tensor");
}
STABLE_TORCH_LIBRARY_IMPL(SK_LIBRARY, SK_DEVICE_KEY, m) {
  m.impl("sparse_linear", TORCH_BOX(&sk::glue::cuda::sparse_linear));
  m.impl("sparse_linear_grad_x", TORCH_BOX(&sk::glue::cuda::sparse_linear_grad_x));
  m.impl("sparse_linear_grad_weight", TORCH_BOX(&sk::glue::cuda::sparse_linear_grad_weight));
}
