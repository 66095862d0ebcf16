// sparse_conv2d on a CUDA device: check, allocate, launch. Who serves a call is decided in sparsekern/ops/cuda.py, where tables are
// checked and planned too: a wrong one would read outside of x.
#include "core/window_range.h"
#include "cuda/sparse_conv2d.h"
#include "torch/image.h"
#include "torch/launch.h"

namespace sk::glue::cuda {
namespace {

constexpr int64_t kHeader = 16;  // of a plan: then columns [IB + 1], column_row, column_place and row [nnz], cells [IB * TB + 1] and cell_place [nnz]

struct Window {
  int64_t KH, KW, stride_h, stride_w, pad_h, pad_w, dilation_h, dilation_w;
};

// Sizes of the op for an x [N, C, H, W]; blocks [nnz, BO, BI, BT].
SparseConv2dShape shape_of(const Tensor& indptr, const Tensor& index, const std::array<int64_t, 4>& blocks, const Window& w, int64_t N, int64_t C,
                           int64_t H, int64_t W, bool channels_last) {
  const auto [nnz, BO, BI, BT] = blocks;
  STD_TORCH_CHECK(within(1, {w.KH, w.KW, w.stride_h, w.stride_w, w.dilation_h, w.dilation_w}) && within(0, {w.pad_h, w.pad_w}),
                  "sparse_conv2d: kernel_size, stride, padding or dilation");
  STD_TORCH_CHECK(indptr.scalar_type() == ScalarType::Int && indptr.dim() == 1 && indptr.size(0) > 1, "sparse_conv2d: indptr");
  STD_TORCH_CHECK(index.scalar_type() == ScalarType::Int && index.dim() == 1 && index.size(0) == nnz, "sparse_conv2d: index");
  STD_TORCH_CHECK(BO > 0 && BI > 0 && (BT == 1 || BT == w.KH * w.KW) && C > 0 && C % BI == 0, "sparse_conv2d: weight");
  const SparseConv2dShape s{N,
                            C,
                            H,
                            W,
                            (indptr.size(0) - 1) * BO,
                            w.KH,
                            w.KW,
                            w.stride_h,
                            w.stride_w,
                            w.pad_h,
                            w.pad_w,
                            w.dilation_h,
                            w.dilation_w,
                            BO,
                            BI,
                            BT,
                            nnz,
                            channels_last};
  STD_TORCH_CHECK(H + 2 * w.pad_h > w.dilation_h * (w.KH - 1) && W + 2 * w.pad_w > w.dilation_w * (w.KW - 1), "sparse_conv2d: x");
  for (int64_t size : {N, C, H, W, s.K, s.OH(), s.OW(), s.pad_h, s.pad_w, s.stride_h, s.stride_w, s.dilation_h, s.dilation_w, nnz, s.IB() * s.TB()})
    STD_TORCH_CHECK(size <= INT32_MAX / 4, "sparse_conv2d: sizes above 2^29");  // kernels count them in 32 bits
  return s;
}

// The tables as kernels read them. Holds what it had to copy.
class Tables {
 public:
  Tables(const SparseConv2dShape& s, const Tensor& indptr, const Tensor& index, const Tensor& plan, const Tensor& beside_x, Launch& launch)
      : indptr_(as_contiguous(indptr)), index_(as_contiguous(index)) {
    STD_TORCH_CHECK(beside(indptr, beside_x) && beside(index, beside_x), "sparse_conv2d: index");
    STD_TORCH_CHECK(beside(plan, beside_x) && plan.scalar_type() == ScalarType::Int && plan.dim() == 1 && plan.is_contiguous() &&
                        plan.size(0) == kHeader + s.IB() + 1 + 3 * s.nnz + s.IB() * s.TB() + 1 + s.nnz,
                    "sparse_conv2d: plan");
    const int32_t* columns = launch.input<int32_t>(plan, "plan") + kHeader;
    const int32_t *column_row = columns + s.IB() + 1, *cells = column_row + 3 * s.nnz;
    tables_ = {launch.input<int32_t>(indptr_, "indptr"),
               launch.input<int32_t>(index_, "index"),
               column_row + 2 * s.nnz,
               columns,
               column_row,
               column_row + s.nnz,
               cells,
               cells + s.IB() * s.TB() + 1};
  }
  operator const KeptTables&() const { return tables_; }

 private:
  Tensor indptr_, index_;
  KeptTables tables_;
};

bool fits(const Tensor& t, const Tensor& x) { return beside(t, x) && t.scalar_type() == x.scalar_type() && t.dim() == 4; }
bool is_image(const Tensor& t) { return here(t) && floating(t.scalar_type()) && t.dim() == 4; }

}  // namespace

Tensor sparse_conv2d(const Tensor& x, const Tensor& weight, const std::optional<Tensor>& bias, const Tensor& indptr, const Tensor& index,
                     const Tensor& plan, int64_t KH, int64_t KW, int64_t stride_h, int64_t stride_w, int64_t pad_h, int64_t pad_w, int64_t dilation_h,
                     int64_t dilation_w, bool tf32) {
  STD_TORCH_CHECK(is_image(x), "sparse_conv2d: x");
  STD_TORCH_CHECK(fits(weight, x), "sparse_conv2d: weight");
  const Window window{KH, KW, stride_h, stride_w, pad_h, pad_w, dilation_h, dilation_w};
  const SparseConv2dShape s = shape_of(indptr, index, {weight.size(0), weight.size(1), weight.size(2), weight.size(3)}, window, x.size(0), x.size(1),
                                       x.size(2), x.size(3), channels_last(x));
  STD_TORCH_CHECK(!bias || (beside(*bias, x) && bias->scalar_type() == x.scalar_type() && bias->dim() == 1 && bias->size(0) == s.K),
                  "sparse_conv2d: bias");
  Launch launch(x);
  const Tensor xs = in_layout(x, s.channels_last), w = as_contiguous(weight), out = new_image(x, s.N, s.K, s.OH(), s.OW(), s.channels_last);
  const std::optional<Tensor> b = as_contiguous(bias);
  const Tables tables(s, indptr, index, plan, x, launch);
  by_type(x.scalar_type(), [&](auto type) {
    using T = decltype(type);
    launch.done(launch_sparse_conv2d_fwd<T>(s, launch.input<T>(xs, "x"), launch.input<T>(w, "weight"), tables, launch.input<T>(b, "bias"),
                                            launch.output<T>(out, "out"), fp32_mode(tf32), launch.stream()));
  });
  return out;
}

Tensor sparse_conv2d_grad_x(const Tensor& grad_out, const Tensor& weight, const Tensor& indptr, const Tensor& index, const Tensor& plan, int64_t C,
                            int64_t H, int64_t W, int64_t KH, int64_t KW, int64_t stride_h, int64_t stride_w, int64_t pad_h, int64_t pad_w,
                            int64_t dilation_h, int64_t dilation_w, bool tf32) {
  STD_TORCH_CHECK(is_image(grad_out), "sparse_conv2d: grad_out");
  STD_TORCH_CHECK(fits(weight, grad_out), "sparse_conv2d: weight");
  const Window window{KH, KW, stride_h, stride_w, pad_h, pad_w, dilation_h, dilation_w};
  const SparseConv2dShape s = shape_of(indptr, index, {weight.size(0), weight.size(1), weight.size(2), weight.size(3)}, window, grad_out.size(0), C,
                                       H, W, channels_last(grad_out));
  STD_TORCH_CHECK(grad_out.size(1) == s.K && grad_out.size(2) == s.OH() && grad_out.size(3) == s.OW(), "sparse_conv2d: grad_out");
  Launch launch(grad_out);
  const Tensor g = in_layout(grad_out, s.channels_last), w = as_contiguous(weight), grad_x = new_image(grad_out, s.N, C, H, W, s.channels_last);
  const Tables tables(s, indptr, index, plan, grad_out, launch);
  by_type(grad_out.scalar_type(), [&](auto type) {
    using T = decltype(type);
    launch.done(launch_sparse_conv2d_grad_x<T>(s, launch.input<T>(g, "grad_out"), launch.input<T>(w, "weight"), tables,
                                               launch.output<T>(grad_x, "grad_x"), fp32_mode(tf32), launch.stream()));
  });
  return grad_x;
}

Tensor sparse_conv2d_grad_weight(const Tensor& grad_out, const Tensor& x, const Tensor& indptr, const Tensor& index, const Tensor& plan, int64_t BO,
                                 int64_t BI, int64_t BT, int64_t KH, int64_t KW, int64_t stride_h, int64_t stride_w, int64_t pad_h, int64_t pad_w,
                                 int64_t dilation_h, int64_t dilation_w, bool tf32) {
  STD_TORCH_CHECK(is_image(x), "sparse_conv2d: x");
  STD_TORCH_CHECK(fits(grad_out, x) && index.dim() == 1, "sparse_conv2d: grad_out");
  const Window window{KH, KW, stride_h, stride_w, pad_h, pad_w, dilation_h, dilation_w};
  const SparseConv2dShape s =
      shape_of(indptr, index, {index.size(0), BO, BI, BT}, window, x.size(0), x.size(1), x.size(2), x.size(3), channels_last(x));
  STD_TORCH_CHECK(grad_out.size(0) == s.N && grad_out.size(1) == s.K && grad_out.size(2) == s.OH() && grad_out.size(3) == s.OW(),
                  "sparse_conv2d: grad_out");
  Launch launch(x);
  Tensor grad_weight = new_tensor(x, std::array<int64_t, 4>{s.nnz, BO, BI, BT});
  if (!s.N) return torch::stable::zero_(grad_weight);
  const Tensor g = in_layout(grad_out, s.channels_last), xs = in_layout(x, s.channels_last);
  const Tables tables(s, indptr, index, plan, x, launch);
  by_type(x.scalar_type(), [&](auto type) {
    using T = decltype(type);
    const int64_t size = sparse_conv2d_grad_weight_scratch<T>(s), step = 1;
    const Tensor scratch = empty_strided(x, ScalarType::Float, &size, &step, 1);
    launch.done(launch_sparse_conv2d_grad_weight<T>(s, launch.input<T>(g, "grad_out"), launch.input<T>(xs, "x"), tables,
                                                    launch.output<T>(grad_weight, "grad_weight"), launch.output<float>(scratch, "scratch"),
                                                    fp32_mode(tf32), launch.stream()));
  });
  return grad_weight;
}

}  // namespace sk::glue::cuda

#define SK_TABLES "Tensor indptr, Tensor index, Tensor plan"
#define SK_WINDOW "int KH, int KW, int stride_h, int stride_w, int pad_h, int pad_w, int dilation_h, int dilation_w"
STABLE_TORCH_LIBRARY_FRAGMENT(SK_LIBRARY, m) {
  m.def("sparse_conv2d(Tensor x, Tensor weight, Tensor? bias, " SK_TABLES ", " SK_WINDOW ", bool tf32) -> Tensor");
  m.def("sparse_conv2d_grad_x(Tensor grad_out, Tensor weight, " SK_TABLES ", int C, int H, int W, " SK_WINDOW ", bool tf32) -> Tensor");
  m.def("sparse_conv2d_grad_weight(Tensor grad_out, Tensor x, " SK_TABLES ", int BO, int BI, int BT, " SK_WINDOW ", bool tf32) -> Tensor");
}
STABLE_TORCH_LIBRARY_IMPL(SK_LIBRARY, SK_DEVICE_KEY, m) {
  m.impl("sparse_conv2d", TORCH_BOX(&sk::glue::cuda::sparse_conv2d));
  m.impl("sparse_conv2d_grad_x", TORCH_BOX(&sk::glue::cuda::sparse_conv2d_grad_x));
  m.impl("sparse_conv2d_grad_weight", TORCH_BOX(&sk::glue::cuda::sparse_conv2d_grad_weight));
}
