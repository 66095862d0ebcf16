// From plain tensors straight to the kernels of core/: what the dispatcher and the stable ABI's boxes do is felt by small layers,
// and by any whose kernel left the caches cold. Only the common case: contiguous tensors, a plan or a pack, no profiler.
#include <ATen/EmptyTensor.h>
#include <ATen/Parallel.h>
#include <ATen/record_function.h>
#include <torch/csrc/stable/c/shim.h>

#include "core/sparse_conv2d.h"
#include "core/sparse_linear.h"
#include "python/quick_conv.h"

namespace sk::quick {

using at::Tensor;
using std::optional;

Pool pool() {
  return {at::get_num_threads(), [](int64_t size, int64_t grain, Pool::Body body, const void* context) {
            struct Piece {
              Pool::Body body;
              const void* context;
            } piece{body, context};
            const auto run = [](int64_t begin, int64_t end, void* p)
                                 SK_UNSEEN { static_cast<Piece*>(p)->body(static_cast<Piece*>(p)->context, begin, end); };
            TORCH_CHECK(torch_parallel_for(0, size, grain, run, &piece) == 0, "parallel work failed");
          }};
}

bool observed() { return at::getStepCallbacksUnlessEmpty(at::RecordScope::FUNCTION).has_value(); }

namespace {

bool is(const Tensor& t, at::ScalarType type) { return t.scalar_type() == type && t.is_contiguous(); }
bool is(const optional<Tensor>& t, at::ScalarType type, int64_t size) { return !t || (is(*t, type) && t->dim() == 1 && t->size(0) == size); }

Tensor output_like(const Tensor& x, int64_t features) {
  c10::SmallVector<int64_t, 5> sizes(x.sizes().begin(), x.sizes().end());
  sizes.back() = features;
  return at::detail::empty_cpu(sizes, x.scalar_type());
}

template <class T>
const T* data(const optional<Tensor>& t) {
  return t ? static_cast<const T*>(t->const_data_ptr()) : nullptr;
}

}  // namespace

optional<Tensor> direct_linear(const Tensor& x, const Tensor& weight, const optional<Tensor>& bias, const Tensor& index,
                               const optional<Tensor>& plan) {
  const int64_t dim = weight.dim();
  if (!plan || !is(x, at::kFloat) || !is(weight, at::kFloat) || !is(*plan, at::kInt) || index.scalar_type() != at::kInt) return {};
  if (x.dim() < 1 || (dim != 2 && dim != 4) || index.dim() != 2 || plan->dim() != 1 || index.sizes() != weight.sizes().slice(0, 2)) return {};
  SparseLinearShape s{0, weight.size(0), weight.size(1), dim == 4 ? weight.size(2) : 1, dim == 4 ? weight.size(3) : 1, 0};
  const int64_t in = x.size(-1);
  if (in == 0 || s.F == 0 || s.BO == 0 || s.BI == 0 || in % s.BI || !is(bias, at::kFloat, s.out()) || observed()) return {};
  s.IB = in / s.BI, s.N = x.numel() / in;
  const int32_t* planned = plan->const_data_ptr<int32_t>();
  if (!sparse_linear_plan_fits(s, planned, plan->size(0)) || !sparse_linear_plan_complete(s, planned)) return {};
  if (!index.is_contiguous() || !sparse_linear_plan_is_of(planned, index.const_data_ptr<int32_t>())) return {};
  s.balanced = sparse_linear_plan_balanced(planned);
  const Pool threads = pool();
  if (sparse_linear_choice(s, Product::forward, LinearType::fp32, threads.threads).kernel == LinearKernel::dense) return {};
  const Tensor out = output_like(x, s.out());
  sparse_linear_fwd(s, planned, x.const_data_ptr<float>(), {in, 1}, weight.const_data_ptr<float>(), data<float>(bias), out.mutable_data_ptr<float>(),
                    {s.out(), 1}, threads);
  return out;
}

optional<Tensor> direct_conv(const Tensor& x, const Tensor& weight, const optional<Tensor>& bias, const Tensor& indptr, const Tensor& index,
                             const Tensor& plan, const Window& w) {
  const int64_t rows = indptr.numel() - 1;
  if (x.scalar_type() != at::kFloat || x.dim() != 4 || x.numel() == 0 || !is(weight, at::kFloat) || weight.dim() != 4) return {};
  if (!is(plan, at::kInt) || plan.dim() != 1 || rows < 1 || observed()) return {};
  if (!is(indptr, at::kInt) || !is(index, at::kInt) || index.numel() != weight.size(0)) return {};
  if (!in_range(w) || !within(1, {w.kernel_size[0], w.kernel_size[1]})) return {};
  for (int d = 0; d < 2; ++d)
    if (x.size(2 + d) + 2 * w.padding[d] <= w.dilation[d] * (w.kernel_size[d] - 1)) return {};
  const bool last = !x.is_contiguous();
  if (last && !x.is_contiguous(at::MemoryFormat::ChannelsLast)) return {};
  const auto sizes = weight.sizes();
  const SparseConv2dShape s{x.size(0),        x.size(1),   x.size(2),   x.size(3),    rows * sizes[1], w.kernel_size[0],
                            w.kernel_size[1], w.stride[0], w.stride[1], w.padding[0], w.padding[1],    w.dilation[0],
                            w.dilation[1],    sizes[1],    sizes[2],    sizes[3],     sizes[0],        last};
  if (s.BO < 1 || s.BI < 1 || (s.BT != 1 && s.BT != s.taps()) || s.C % s.BI || !is(bias, at::kFloat, s.K)) return {};
  const int32_t* planned = plan.const_data_ptr<int32_t>();
  if (!sparse_conv2d_plan_matches(s, planned, plan.size(0))) return {};
  if (!sparse_conv2d_plan_is_of(s, planned, indptr.const_data_ptr<int32_t>(), index.const_data_ptr<int32_t>())) return {};
  if (sparse_conv2d_choice(s, SparseConv2dProduct::out, false).kernel == SparseConv2dKernel::dense) return {};
  const int64_t H = s.OH(), W = s.OW();
  const Tensor out = last ? at::detail::empty_strided_cpu({s.N, s.K, H, W}, {s.K * H * W, 1, W * s.K, s.K}, at::kFloat)
                          : at::detail::empty_cpu({s.N, s.K, H, W}, at::kFloat);
  if (out.numel() > int64_t(1) << 21) advise_huge_pages(out.mutable_data_ptr(), out.nbytes());
  sparse_conv2d(s, x.const_data_ptr<float>(), weight.const_data_ptr<float>(), planned, data<float>(bias), out.mutable_data_ptr<float>(), pool());
  return out;
}

namespace {

optional<Tensor> direct_packed(const Tensor& x, const Tensor& packed, const optional<Tensor>& bias, int64_t out_features, int64_t kept) {
  const at::ScalarType type = x.scalar_type();
  if ((type != at::kFloat && type != at::kBFloat16) || !x.is_contiguous() || x.dim() < 1 || !is(packed, at::kInt) || packed.dim() != 1) return {};
  const int32_t* pack = packed.const_data_ptr<int32_t>();
  SparseLinearShape s = sparse_linear_pack_shape(pack, packed.size(0));
  const int64_t in = x.size(-1);
  if (s.OB == 0 || in == 0 || s.in() != in || s.out() != out_features || s.kept() != kept || !is(bias, type, s.out()) || observed()) return {};
  s.N = x.numel() / in;
  if (type == at::kBFloat16 && !sparse_linear_packed_tiles(s, pack)) return {};
  const Pool threads = pool();
  const Tensor out = output_like(x, s.out());
  const Strides rows{in, 1}, out_rows{s.out(), 1};
  if (type == at::kFloat)
    sparse_linear_packed_fwd(s, pack, x.const_data_ptr<float>(), rows, data<float>(bias), out.mutable_data_ptr<float>(), out_rows, threads);
  else
    sparse_linear_packed_fwd(s, pack, static_cast<const uint16_t*>(x.const_data_ptr()), rows, data<uint16_t>(bias),
                             static_cast<uint16_t*>(out.mutable_data_ptr()), out_rows, threads);
  return out;
}

}  // namespace

PyObject* frozen_linear(PyObject* const* args) {
  const bool plain = plain_state() && plain_tensor(args[0]) && plain_tensor(args[1]) && (args[2] == Py_None || plain_tensor(args[2])) &&
                     PyLong_CheckExact(args[3]) && PyLong_CheckExact(args[4]);
  if (!plain) Py_RETURN_NOTIMPLEMENTED;
  const Tensor x = THPVariable_Unpack(args[0]), packed = THPVariable_Unpack(args[1]);  // held, as in quick_linear.cpp
  const optional<Tensor> bias = args[2] == Py_None ? std::nullopt : optional<Tensor>(THPVariable_Unpack(args[2]));
  const long long out_features = PyLong_AsLongLong(args[3]), kept = PyLong_AsLongLong(args[4]);
  if (PyErr_Occurred()) return nullptr;
  optional<Tensor> out;
  {
    const WithoutGil no_gil;
    out = direct_packed(x, packed, bias, out_features, kept);
  }
  if (!out) Py_RETURN_NOTIMPLEMENTED;
  return THPVariable_Wrap(std::move(*out));
}

// packed_linear(x, packed, bias, out_features, kept) -> out, or NotImplemented
PyObject* packed_linear(PyObject*, PyObject* const* args, Py_ssize_t count) {
  HANDLE_TH_ERRORS
  const auto wants_gradient = [&](int i) { return THPVariable_CheckExact(args[i]) && THPVariable_Unpack(args[i]).requires_grad(); };
  if (count != 5 || (at::GradMode::is_enabled() && (wants_gradient(0) || wants_gradient(2)))) Py_RETURN_NOTIMPLEMENTED;
  return frozen_linear(args);
  END_HANDLE_TH_ERRORS
}

}  // namespace sk::quick
