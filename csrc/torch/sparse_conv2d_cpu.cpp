// sparse_conv2d on the CPU: check, allocate, hand over to core/sparse_conv2d.cpp or, where that is faster, to torch's convolution.
#include "core/sparse_conv2d_plan.h"
#include "core/window_range.h"
#include "torch/glue.h"
#include "torch/torch_convolution.h"

namespace sk::glue {
namespace {

// KH, KW, stride, padding and dilation, as the schema lists them
struct Window {
  int64_t KH, KW, stride_h, stride_w, pad_h, pad_w, dilation_h, dilation_w;
};

// ---- checks: the same rules as the card's `check`, before any memory is touched; the card says them in words
struct Blocks {
  int64_t nnz, BO, BI, BT;
};
Blocks blocks_of(const Tensor& weight) {
  STD_TORCH_CHECK(weight.is_cpu() && floating(weight.scalar_type()) && weight.dim() == 4, "sparse_conv2d: weight");
  return {weight.size(0), weight.size(1), weight.size(2), weight.size(3)};
}

SparseConv2dShape shape_of(const Blocks& b, const Tensor& indptr, const Tensor& index, const Window& w, int64_t N, int64_t C, int64_t H, int64_t W) {
  STD_TORCH_CHECK(indptr.is_cpu() && indptr.scalar_type() == ScalarType::Int && indptr.dim() == 1 && indptr.size(0) > 1, "sparse_conv2d: indptr");
  STD_TORCH_CHECK(index.is_cpu() && index.scalar_type() == ScalarType::Int && index.dim() == 1 && index.size(0) == b.nnz, "sparse_conv2d: index");
  STD_TORCH_CHECK(within(1, {w.KH, w.KW, w.stride_h, w.stride_w, w.dilation_h, w.dilation_w}) && within(0, {w.pad_h, w.pad_w}),
                  "sparse_conv2d: kernel_size, stride, padding or dilation");
  STD_TORCH_CHECK(b.BO > 0 && b.BI > 0 && (b.BT == 1 || b.BT == w.KH * w.KW) && C > 0 && C % b.BI == 0, "sparse_conv2d: weight");
  const SparseConv2dShape s{
      N,    C,    H,     W,    (indptr.size(0) - 1) * b.BO, w.KH, w.KW, w.stride_h, w.stride_w, w.pad_h, w.pad_w, w.dilation_h, w.dilation_w, b.BO,
      b.BI, b.BT, b.nnz, false};
  STD_TORCH_CHECK(H + 2 * w.pad_h > w.dilation_h * (w.KH - 1) && W + 2 * w.pad_w > w.dilation_w * (w.KW - 1), "sparse_conv2d: x");
  STD_TORCH_CHECK(s.IB() * s.TB() <= INT32_MAX && s.OB() * s.TB() <= INT32_MAX && sparse_conv2d_plan_size(s) <= INT32_MAX, "sparse_conv2d: weight");
  return s;
}

// ---- images as the kernels take them: contiguous, or channels_last
bool channels_last(const Tensor& x) {
  if (x.is_contiguous()) return false;
  int64_t expected = 1;
  for (int64_t d : {1, 3, 2, 0}) {
    if (x.size(d) != 1 && x.stride(d) != expected) return false;
    expected *= x.size(d);
  }
  return true;
}
struct Images {
  Tensor tensor;
  bool last;
  explicit Images(const Tensor& x) : tensor(x), last(channels_last(x)) {
    if (!last) tensor = as_contiguous(x);
  }
  Images(const Tensor& x, bool want_last) : tensor(x), last(want_last) {
    if (channels_last(x) == want_last && (want_last || x.is_contiguous())) return;
    tensor = like(x, {x.size(0), x.size(1), x.size(2), x.size(3)}, want_last);
    torch::stable::copy_(tensor, x);
  }
  static Tensor like(const Tensor& x, const std::array<int64_t, 4>& n, bool last) {
    const auto one = [](int64_t v) { return std::max<int64_t>(1, v); };
    const int64_t c = one(n[1]), h = one(n[2]), w = one(n[3]);
    const int64_t planes[] = {c * h * w, h * w, w, 1}, pixels[] = {c * h * w, 1, w * c, c};
    return empty_strided(x, x.scalar_type(), n.data(), last ? pixels : planes, 4);
  }
};

// The caller's plan, checked in O(1), or one made and validated now, as for tables that were written past torch.
struct ConvPlanHolder {
  std::vector<int32_t> made;
  std::optional<Tensor> given;
  const int32_t* data;
  ConvPlanHolder(const SparseConv2dShape& s, const Tensor& indptr_, const Tensor& index_, const std::optional<Tensor>& plan) : given(plan) {
    if (plan) {
      STD_TORCH_CHECK(plan->is_cpu() && plan->scalar_type() == ScalarType::Int && plan->dim() == 1 && plan->is_contiguous(), "sparse_conv2d: plan");
      data = static_cast<const int32_t*>(plan->const_data_ptr());
      STD_TORCH_CHECK(sparse_conv2d_plan_matches(s, data, plan->size(0)), "sparse_conv2d: plan");
    }
    const Tensor indptr = as_contiguous(indptr_), index = as_contiguous(index_);
    const int32_t *rows = static_cast<const int32_t*>(indptr.const_data_ptr()), *blocks = static_cast<const int32_t*>(index.const_data_ptr());
    if (plan && sparse_conv2d_plan_is_of(s, data, rows, blocks)) return;
    made.resize(sparse_conv2d_plan_size(s));
    const SparseConv2dStatus status = sparse_conv2d_plan(s, rows, blocks, made.data());
    STD_TORCH_CHECK(status.fault == SparseConv2dFault::none, "sparse_conv2d: indptr or index, at ", status.position);
    data = made.data();
  }
};

// Who serves, what torch cannot do counted in.
SparseConv2dChoice choice_of(const SparseConv2dShape& s, SparseConv2dProduct product, ConvType type) {
  SparseConv2dChoice choice = sparse_conv2d_choice(s, product, type != ConvType::fp32);
  const bool grad_weight = product == SparseConv2dProduct::grad_weight;
  if (choice.kernel == SparseConv2dKernel::dense && torch_cannot(type, grad_weight, s.C, {s.H, s.W}, {s.OH(), s.OW()}, {s.KH, s.KW},
                                                                 {s.stride_h, s.stride_w}, {s.pad_h, s.pad_w}, {s.dilation_h, s.dilation_w}))
    choice.kernel = sparse_conv_tiled(s) ? SparseConv2dKernel::tile : SparseConv2dKernel::list;
  return choice;
}

bool dense_wins(const SparseConv2dShape& s, SparseConv2dProduct product, const Tensor& like) {
  const ScalarType type = like.scalar_type();
  return type != ScalarType::Double && choice_of(s, product, conv_type(type)).kernel == SparseConv2dKernel::dense;
}

template <class F>
void by_element_size(const Tensor& t, const F& f) {
  if (is_half(t.scalar_type())) return f(uint16_t{});
  f(float{});
}

Tensor dense_weight(const SparseConv2dShape& s, const int32_t* plan, const Tensor& weight, const Pool& p) {
  const Tensor w = as_contiguous(weight), dense = new_tensor(weight, std::array<int64_t, 4>{s.K, s.C, s.KH, s.KW});
  by_element_size(weight, [&](auto element) {
    using T = decltype(element);
    sparse_conv2d_to_dense(s, plan, static_cast<const T*>(w.const_data_ptr()), static_cast<T*>(dense.mutable_data_ptr()), p);
  });
  return dense;
}

// torch's result in the layout that was promised
Tensor laid_out(const Tensor& y, bool last) { return Images(y, last).tensor; }

std::vector<int64_t> pair(int64_t h, int64_t w) { return {h, w}; }

}  // namespace

Tensor sparse_conv2d(const Tensor& x, const Tensor& weight, const std::optional<Tensor>& bias, const Tensor& indptr, const Tensor& index,
                     const std::optional<Tensor>& plan, int64_t KH, int64_t KW, int64_t stride_h, int64_t stride_w, int64_t pad_h, int64_t pad_w,
                     int64_t dilation_h, int64_t dilation_w) {
  STD_TORCH_CHECK(x.is_cpu() && x.dim() == 4 && x.scalar_type() == weight.scalar_type(), "sparse_conv2d: x");
  const Window window{KH, KW, stride_h, stride_w, pad_h, pad_w, dilation_h, dilation_w};
  SparseConv2dShape s = shape_of(blocks_of(weight), indptr, index, window, x.size(0), x.size(1), x.size(2), x.size(3));
  STD_TORCH_CHECK(!bias || (bias->is_cpu() && bias->scalar_type() == x.scalar_type() && bias->dim() == 1 && bias->size(0) == s.K),
                  "sparse_conv2d: bias");
  const ConvPlanHolder p(s, indptr, index, plan);
  const Pool threads = pool();
  const Images in(x);
  s.channels_last = in.last;
  if (dense_wins(s, SparseConv2dProduct::out, x)) {
    const Tensor y =
        call<9>("aten::convolution", "", in.tensor, dense_weight(s, p.data, weight, threads), bias, pair(stride_h, stride_w), pair(pad_h, pad_w),
                pair(useful_dilation(dilation_h, KH), useful_dilation(dilation_w, KW)), false, pair(0, 0), int64_t(1));
    return laid_out(y, s.channels_last);
  }
  const Tensor out = Images::like(x, {s.N, s.K, s.OH(), s.OW()}, s.channels_last), w = as_contiguous(weight);
  const std::optional<Tensor> b = as_contiguous(bias);
  if (x.scalar_type() == ScalarType::Double) {
    sk::sparse_conv2d(s, static_cast<const double*>(in.tensor.const_data_ptr()), static_cast<const double*>(w.const_data_ptr()), p.data,
                      b ? static_cast<const double*>(b->const_data_ptr()) : nullptr, static_cast<double*>(out.mutable_data_ptr()), threads);
    return out;
  }
  const FloatInput xf(in.tensor, in.tensor.numel(), threads), wf(w, w.numel(), threads), bf(b, threads);
  const FloatOutput y(out, threads);
  sk::sparse_conv2d(s, xf.data(), wf.data(), p.data, bf.data(), y.data(), threads);
  y.finish();
  return out;
}

Tensor sparse_conv2d_grad_x(const Tensor& grad_out, const Tensor& weight, const Tensor& indptr, const Tensor& index,
                            const std::optional<Tensor>& plan, int64_t C, int64_t H, int64_t W, int64_t KH, int64_t KW, int64_t stride_h,
                            int64_t stride_w, int64_t pad_h, int64_t pad_w, int64_t dilation_h, int64_t dilation_w) {
  STD_TORCH_CHECK(grad_out.is_cpu() && grad_out.dim() == 4 && grad_out.scalar_type() == weight.scalar_type(), "sparse_conv2d: grad_out");
  const Window window{KH, KW, stride_h, stride_w, pad_h, pad_w, dilation_h, dilation_w};
  SparseConv2dShape s = shape_of(blocks_of(weight), indptr, index, window, grad_out.size(0), C, H, W);
  STD_TORCH_CHECK(grad_out.size(1) == s.K && grad_out.size(2) == s.OH() && grad_out.size(3) == s.OW(), "sparse_conv2d: grad_out");
  const ConvPlanHolder p(s, indptr, index, plan);
  const Pool threads = pool();
  const Images g(grad_out);
  s.channels_last = g.last;
  if (dense_wins(s, SparseConv2dProduct::grad_x, weight)) {
    const auto rest = [](int64_t size, int64_t out, int64_t k, int64_t stride, int64_t pad, int64_t dilation) {
      return size - ((out - 1) * stride - 2 * pad + dilation * (k - 1) + 1);  // input pixels the last window leaves out
    };
    const Tensor y = call<8>("aten::conv_transpose2d", "input", g.tensor, dense_weight(s, p.data, weight, threads), std::optional<Tensor>(),
                             pair(stride_h, stride_w), pair(pad_h, pad_w),
                             pair(rest(H, s.OH(), KH, stride_h, pad_h, dilation_h), rest(W, s.OW(), KW, stride_w, pad_w, dilation_w)), int64_t(1),
                             pair(useful_dilation(dilation_h, KH), useful_dilation(dilation_w, KW)));
    return laid_out(y, s.channels_last);
  }
  const Tensor out = Images::like(grad_out, {s.N, C, H, W}, s.channels_last), w = as_contiguous(weight);
  if (weight.scalar_type() == ScalarType::Double) {
    sk::sparse_conv2d_grad_x(s, static_cast<const double*>(g.tensor.const_data_ptr()), static_cast<const double*>(w.const_data_ptr()), p.data,
                             static_cast<double*>(out.mutable_data_ptr()), threads);
    return out;
  }
  const FloatInput gf(g.tensor, g.tensor.numel(), threads), wf(w, w.numel(), threads);
  const FloatOutput gx(out, threads);
  sk::sparse_conv2d_grad_x(s, gf.data(), wf.data(), p.data, gx.data(), threads);
  gx.finish();
  return out;
}

Tensor sparse_conv2d_grad_weight(const Tensor& grad_out, const Tensor& x, const Tensor& indptr, const Tensor& index,
                                 const std::optional<Tensor>& plan, int64_t BO, int64_t BI, int64_t BT, int64_t KH, int64_t KW, int64_t stride_h,
                                 int64_t stride_w, int64_t pad_h, int64_t pad_w, int64_t dilation_h, int64_t dilation_w) {
  STD_TORCH_CHECK(x.is_cpu() && x.dim() == 4 && floating(x.scalar_type()), "sparse_conv2d: x");
  STD_TORCH_CHECK(grad_out.is_cpu() && grad_out.dim() == 4 && grad_out.scalar_type() == x.scalar_type(), "sparse_conv2d: grad_out");
  STD_TORCH_CHECK(index.dim() == 1, "sparse_conv2d: index");
  const Window window{KH, KW, stride_h, stride_w, pad_h, pad_w, dilation_h, dilation_w};
  SparseConv2dShape s = shape_of({index.size(0), BO, BI, BT}, indptr, index, window, x.size(0), x.size(1), x.size(2), x.size(3));
  STD_TORCH_CHECK(grad_out.size(0) == s.N && grad_out.size(1) == s.K && grad_out.size(2) == s.OH() && grad_out.size(3) == s.OW(),
                  "sparse_conv2d: grad_out");
  const ConvPlanHolder p(s, indptr, index, plan);
  const Pool threads = pool();
  const Images in(x), g(grad_out, in.last);
  s.channels_last = in.last;
  const Tensor gw = new_tensor(x, std::array<int64_t, 4>{s.nnz, BO, BI, BT});
  if (s.N > 0 && dense_wins(s, SparseConv2dProduct::grad_weight, x)) {
    NoGrad no_grad;
    const Tensor shape_only = new_tensor(x, std::array<int64_t, 4>{s.K, s.C, KH, KW});  // read for its sizes
    using torch::stable::detail::from;
    const bool mask[] = {false, true, false};
    std::array<StableIValue, 11> stack{from(g.tensor),
                                       from(in.tensor),
                                       from(shape_only),
                                       from(std::optional<std::vector<int64_t>>()),
                                       from(pair(stride_h, stride_w)),
                                       from(pair(pad_h, pad_w)),
                                       from(pair(useful_dilation(dilation_h, KH), useful_dilation(dilation_w, KW))),
                                       from(false),
                                       from(pair(0, 0)),
                                       from(int64_t(1)),
                                       from(torch::headeronly::HeaderOnlyArrayRef<bool>(mask, 3))};
    TORCH_ERROR_CODE_CHECK(aoti_torch_call_dispatcher("aten::convolution_backward", "", stack.data()));
    const std::array<Tensor, 3> results{torch::stable::detail::to<Tensor>(stack[0]), torch::stable::detail::to<Tensor>(stack[1]),
                                        torch::stable::detail::to<Tensor>(stack[2])};
    const Tensor dense = as_contiguous(results[1]);
    by_element_size(x, [&](auto element) {
      using T = decltype(element);
      sparse_conv2d_from_dense(s, p.data, static_cast<const T*>(dense.const_data_ptr()), static_cast<T*>(gw.mutable_data_ptr()), threads);
    });
    return gw;
  }
  if (x.scalar_type() == ScalarType::Double) {
    sk::sparse_conv2d_grad_weight(s, static_cast<const double*>(in.tensor.const_data_ptr()), static_cast<const double*>(g.tensor.const_data_ptr()),
                                  p.data, static_cast<double*>(gw.mutable_data_ptr()), threads);
    return gw;
  }
  const FloatInput xf(in.tensor, in.tensor.numel(), threads), gf(g.tensor, g.tensor.numel(), threads);
  const FloatOutput out(gw, threads);
  sk::sparse_conv2d_grad_weight(s, xf.data(), gf.data(), p.data, out.data(), threads);
  out.finish();
  return gw;
}

Tensor plan_sparse_conv2d(const Tensor& indptr, const Tensor& index, int64_t C, int64_t KH, int64_t KW, int64_t BO, int64_t BI, int64_t BT) {
  STD_TORCH_CHECK(index.dim() == 1, "sparse_conv2d: index");
  const Window window{KH, KW, 1, 1, 0, 0, 1, 1};  // a plan serves every stride, padding, dilation and image
  const SparseConv2dShape s = shape_of({index.size(0), BO, BI, BT}, indptr, index, window, 1, C, KH, KW);
  const ConvPlanHolder p(s, indptr, index, std::nullopt);
  const int64_t size = int64_t(p.made.size()), stride = 1;
  const Tensor plan = empty_strided(index, ScalarType::Int, &size, &stride, 1);
  std::copy(p.made.begin(), p.made.end(), static_cast<int32_t*>(plan.mutable_data_ptr()));
  return plan;
}

// [kernel code, estimated time over dense]
Tensor choose_sparse_conv2d(const Tensor& like, int64_t N, int64_t H, int64_t W, int64_t K, int64_t C, int64_t KH, int64_t KW, int64_t stride_h,
                            int64_t stride_w, int64_t pad_h, int64_t pad_w, int64_t dilation_h, int64_t dilation_w, int64_t BO, int64_t BI,
                            int64_t BT, int64_t nnz, int64_t product, int64_t type, bool channels_last) {
  const SparseConv2dShape s{N, C, H, W, K, KH, KW, stride_h, stride_w, pad_h, pad_w, dilation_h, dilation_w, BO, BI, BT, nnz, channels_last};
  const SparseConv2dChoice c = choice_of(s, SparseConv2dProduct(product), ConvType(type));
  const Tensor out = new_tensor(like, std::array<int64_t, 1>{2});
  double* o = static_cast<double*>(out.mutable_data_ptr());
  o[0] = double(c.kernel), o[1] = c.relative_cost;
  return out;
}

}  // namespace sk::glue

STABLE_TORCH_LIBRARY_IMPL(sparsekern, CPU, m) {
  m.impl("_sparse_conv2d", SK_BOX(&sk::glue::sparse_conv2d));
  m.impl("sparse_conv2d", SK_BOX(&sk::glue::sparse_conv2d));
  m.impl("_sparse_conv2d_grad_x", SK_BOX(&sk::glue::sparse_conv2d_grad_x));
  m.impl("sparse_conv2d_grad_x", SK_BOX(&sk::glue::sparse_conv2d_grad_x));
  m.impl("_sparse_conv2d_grad_weight", SK_BOX(&sk::glue::sparse_conv2d_grad_weight));
  m.impl("sparse_conv2d_grad_weight", SK_BOX(&sk::glue::sparse_conv2d_grad_weight));
  m.impl("plan_sparse_conv2d", SK_BOX(&sk::glue::plan_sparse_conv2d));
  m.impl("choose_sparse_conv2d", SK_BOX(&sk::glue::choose_sparse_conv2d));
}
