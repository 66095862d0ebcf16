// The doors of sparse_linear (ops/define.py) for the plain call: tensors that are nothing but tensors, on the CPU, outside of transforms,
// modes, autocast and tracing. Without a gradient it is the dispatcher's call; with one, torch's C++ autograd in place of its Python one.
// Everything else is answered NotImplemented and goes through the doors.
//
//     x [..., IB*BI]   weight [OB, F] or [OB, F, BO, BI]   bias [OB*BO] or None   index [OB, F]   plan [*] or None   out [..., OB*BO]
#include <ATen/PythonTorchFunctionTLS.h>
#include <ATen/core/dispatch/Dispatcher.h>
#include <c10/core/impl/LocalDispatchKeySet.h>
#include <torch/csrc/autograd/custom_function.h>

#include "python/quick_call.h"

namespace sk::quick {
namespace {

using at::Tensor;
using std::optional;
using torch::autograd::AutogradContext;
using torch::autograd::variable_list;

struct Ops {
  c10::OperatorHandle forward, grad_x, grad_weight, gradients;
  PyObject* general;  // the gradients in Python: where a graph of them is wanted, and for what is rare
};
Ops* ops = nullptr;
bool reference = false;  // backends.use("reference")

template <class... Args>
torch::jit::Stack call(const c10::OperatorHandle& op, const Args&... args) {
  torch::jit::Stack stack;
  stack.reserve(sizeof...(args));
  (stack.emplace_back(args), ...);
  op.callBoxed(stack);
  return stack;
}

// What torch's own formulas do before they compute: nothing below records a graph.
Tensor forward_below_autograd(const Tensor& x, const Tensor& weight, const optional<Tensor>& bias, const Tensor& index,
                              const optional<Tensor>& plan) {
  if (optional<Tensor> out = direct_linear(x, weight, bias, index, plan)) return *out;
  const at::AutoDispatchBelowADInplaceOrView guard;
  return call(ops->forward, x, weight, bias, index, plan)[0].toTensor();
}

optional<Tensor> given(const Tensor& t) { return t.defined() ? optional<Tensor>(t) : std::nullopt; }

// ---- autograd
[[noreturn]] void throw_error_set() {
  python_error error;
  error.persist();
  throw error;
}

variable_list general_gradients(const std::array<bool, 3>& need, const Tensor& grad, const variable_list& saved, at::IntArrayRef x_shape,
                                at::IntArrayRef weight_shape) {
  namespace py = pybind11;
  const py::gil_scoped_acquire gil;
  const auto wrap = [](const Tensor& t) { return py::reinterpret_steal<py::object>(THPVariable_Wrap(t)); };  // undefined: None
  const auto tuple = [](at::IntArrayRef sizes) { return py::tuple(py::cast(sizes.vec())); };
  const py::tuple args = py::make_tuple(py::make_tuple(need[0], need[1], need[2]), wrap(grad), wrap(saved[0]), wrap(saved[1]), wrap(saved[2]),
                                        wrap(saved[3]), wrap(saved[4]), tuple(x_shape), tuple(weight_shape));
  const auto found = py::reinterpret_steal<py::object>(PyObject_CallObject(ops->general, args.ptr()));
  if (!found) throw_error_set();
  variable_list grads(5);
  for (int i = 0; i < 3; ++i) {
    PyObject* one = PyTuple_GetItem(found.ptr(), i);
    if (!one) throw_error_set();
    if (one != Py_None) grads[i] = THPVariable_Unpack(one);
  }
  return grads;
}

}  // namespace

namespace {

using c10::DispatchKey;
using c10::DispatchKeySet;

bool nothing_but(DispatchKeySet keys, DispatchKeySet usual) { return (keys.raw_repr() & ~usual.raw_repr()) == 0; }

}  // namespace

// No transform, mode, trace or autocast.
bool plain_state() {
  const DispatchKeySet usual{DispatchKey::BackendSelect, DispatchKey::ADInplaceOrView};
  const auto keys = c10::impl::tls_local_dispatch_key_set();
  return !reference && nothing_but(keys.included_, usual) && keys.excluded_.has(DispatchKey::AutocastCPU) &&
         !at::impl::torch_function_mode_enabled() && !torch::autograd::ForwardADLevel::try_get_by_idx(0);
}

// No subclass, no wrapper that escaped from a transform, no view that negates.
bool plain_tensor(const Tensor& t) {
  const DispatchKeySet usual{DispatchKey::CPU, DispatchKey::AutogradCPU, DispatchKey::ADInplaceOrView, DispatchKey::AutocastCPU};
  return nothing_but(t.key_set(), usual);
}
// No address between two elements (csrc/torch/glue.h). Asked of the storage, of whose elements every view takes whole ones.
bool aligned(const Tensor& t) { return (reinterpret_cast<uintptr_t>(t.storage().data()) & (t.element_size() - 1)) == 0; }
bool plain_tensor(PyObject* object) {
  return THPVariable_CheckExact(object) && plain_tensor(THPVariable_Unpack(object)) && aligned(THPVariable_Unpack(object));
}

struct SparseLinear : torch::autograd::Function<SparseLinear> {
  static Tensor forward(AutogradContext* ctx, const Tensor& x, const Tensor& weight, const optional<Tensor>& bias, const Tensor& index,
                        const optional<Tensor>& plan) {
    // a factor is kept only if the other one's gradient needs it; of one that is not, the shape
    const bool need_x = x.requires_grad(), need_weight = weight.requires_grad();
    ctx->save_for_backward({need_weight ? x : Tensor(), need_x ? weight : Tensor(), index, plan.value_or(Tensor())});
    ctx->saved_data["bias"] = bias.has_value();
    if (!need_weight) ctx->saved_data["x"] = x.sizes();
    if (!need_x) ctx->saved_data["weight"] = weight.sizes();
    return forward_below_autograd(x, weight, bias, index, plan);
  }

  static variable_list backward(AutogradContext* ctx, const variable_list& grad_out) {
    const variable_list saved = ctx->get_saved_variables();
    const Tensor &grad = grad_out[0], &x = saved[0], &weight = saved[1], &index = saved[2];
    const optional<Tensor> plan = given(saved[3]);
    const bool has_bias = ctx->saved_data["bias"].toBool();
    const auto shape = [&](const Tensor& t, const char* name) { return t.defined() ? t.sizes().vec() : ctx->saved_data[name].toIntVector(); };
    const std::vector<int64_t> x_shape = shape(x, "x"), weight_shape = shape(weight, "weight");
    // by edges, which only tensors have
    const std::array<bool, 3> need{ctx->needs_input_grad(0), ctx->needs_input_grad(1), has_bias && ctx->needs_input_grad(2)};
    const bool plain = !at::GradMode::is_enabled() && plain_state() && plain_tensor(grad);
    if (!plain || (need[2] && !need[1])) {
      const Tensor bias = has_bias ? grad.new_empty({grad.size(-1)}) : Tensor();  // its size is all that counts
      return general_gradients(need, grad, {x, weight, bias, index, saved[3]}, x_shape, weight_shape);
    }

    const bool condensed = weight_shape.size() == 2;
    const int64_t block_out = condensed ? 1 : weight_shape[2], block_in = condensed ? 1 : weight_shape[3];
    variable_list grads(5);
    if (need[2] && grad.scalar_type() != at::kDouble) {
      const optional<Tensor> factor = need[0] ? given(weight) : std::nullopt;
      torch::jit::Stack all = call(ops->gradients, grad, x, factor, index, plan, block_out, block_in, condensed);
      if (need[0]) grads[0] = std::move(all[0]).toTensor();
      grads[1] = std::move(all[1]).toTensor();
      grads[2] = std::move(all[2]).toTensor();
      return grads;
    }
    if (need[0]) grads[0] = call(ops->grad_x, grad, weight, index, plan, x_shape.back())[0].toTensor();
    if (need[1]) grads[1] = call(ops->grad_weight, grad, x, index, plan, block_out, block_in, condensed)[0].toTensor();
    if (need[2]) grads[2] = grad.sum_to_size({grad.size(-1)});
    return grads;
  }
};

// linear(x, weight, bias, index, plan) -> out, or NotImplemented
PyObject* linear(PyObject*, PyObject* const* args, Py_ssize_t count) {
  HANDLE_TH_ERRORS
  bool plain = ops && count == 5 && plain_state();
  for (int i = 0; plain && i < 5; ++i) plain = (args[i] == Py_None && (i == 2 || i == 4)) || plain_tensor(args[i]);
  if (!plain) Py_RETURN_NOTIMPLEMENTED;
  // held by themselves: another thread may change what the objects wrap while the kernel runs without the lock
  const Tensor x = THPVariable_Unpack(args[0]), weight = THPVariable_Unpack(args[1]), index = THPVariable_Unpack(args[3]);
  const auto maybe = [](PyObject* object) { return object == Py_None ? std::nullopt : optional<Tensor>(THPVariable_Unpack(object)); };
  const optional<Tensor> bias = maybe(args[2]), plan = maybe(args[4]);
  Tensor out;
  {
    const WithoutGil no_gil;
    if (at::GradMode::is_enabled() && (x.requires_grad() || weight.requires_grad() || (bias && bias->requires_grad())))
      out = SparseLinear::apply(x, weight, bias, index, plan);
    else
      out = forward_below_autograd(x, weight, bias, index, plan);
  }
  return THPVariable_Wrap(std::move(out));
  END_HANDLE_TH_ERRORS
}

// set_up_linear(forward, grad_x, grad_weight, gradients, general): four operators by name, and a function
PyObject* set_up_linear(PyObject*, PyObject* const* args, Py_ssize_t count) {
  HANDLE_TH_ERRORS
  if (count != 5) return PyErr_Format(PyExc_TypeError, "set_up_linear: arguments must be four operators and a function; got %zd", count);
  const auto find = [&](int i) { return c10::Dispatcher::singleton().findSchemaOrThrow(PyUnicode_AsUTF8(args[i]), ""); };
  Py_INCREF(args[4]);
  ops = new Ops{find(0), find(1), find(2), find(3), args[4]};
  Py_RETURN_NONE;
  END_HANDLE_TH_ERRORS
}

PyObject* use_reference(PyObject*, PyObject* flag) {
  reference = flag == Py_True;
  Py_RETURN_NONE;
}

}  // namespace sk::quick
