// _quick_call: an operator called from Python without reading its schema at every call. What `torch.ops` spends on a call is spent mostly
// there; small layers, and any layer whose kernel left the caches cold, feel it. The dispatcher is called as always, so modes, transforms,
// profilers and devices see what they saw before.
//
// Tensors are reached as torch's own extensions reach them, and that is not part of the stable ABI: the file is named after the torch
// it was built against and loaded by that one alone (ops/backends.py); without it the same call is slower.
#include "python/quick_call.h"

#include <ATen/PythonTorchFunctionTLS.h>
#include <ATen/core/dispatch/Dispatcher.h>
#include <structmember.h>

#include <vector>

#include "python/quick_conv.h"

namespace sk::quick {
namespace {

enum class Kind : uint8_t { tensor, optional_tensor, integer, boolean };

struct QuickCall {
  PyObject_HEAD vectorcallfunc vectorcall;
  const c10::OperatorHandle* op;
  const std::vector<Kind>* kinds;
  PyObject* general;  // what torch.ops calls; takes what is not plain tensors and numbers
};

bool read(PyObject* value, Kind kind, torch::jit::Stack& stack) {
  if (kind == Kind::integer) {
    if (!PyLong_CheckExact(value)) return false;
    const int64_t number = PyLong_AsLongLong(value);
    if (number == -1 && PyErr_Occurred()) return PyErr_Clear(), false;
    stack.emplace_back(number);
  } else if (kind == Kind::boolean) {
    if (!PyBool_Check(value)) return false;
    stack.emplace_back(value == Py_True);
  } else if (value == Py_None) {
    if (kind == Kind::tensor) return false;
    stack.emplace_back();
  } else {
    if (!THPVariable_CheckExact(value)) return false;  // a subclass has its own say
    stack.emplace_back(THPVariable_Unpack(value));
  }
  return true;
}

PyObject* to_python(torch::jit::Stack& stack) {
  if (stack.size() == 1) return THPVariable_Wrap(std::move(stack[0]).toTensor());
  PyObject* out = PyTuple_New(Py_ssize_t(stack.size()));
  for (size_t i = 0; out && i < stack.size(); ++i) PyTuple_SET_ITEM(out, i, THPVariable_Wrap(std::move(stack[i]).toTensor()));
  return out;
}

PyObject* call(PyObject* callable, PyObject* const* args, size_t flagged, PyObject* names) {
  auto* self = reinterpret_cast<QuickCall*>(callable);
  const auto count = size_t(PyVectorcall_NARGS(flagged));
  HANDLE_TH_ERRORS
  if (!names && count == self->kinds->size() && !at::impl::torch_function_mode_enabled()) {
    torch::jit::Stack stack;
    stack.reserve(count);
    size_t i = 0;
    while (i < count && read(args[i], (*self->kinds)[i], stack)) ++i;
    if (i == count) {
      {
        const WithoutGil no_gil;
        self->op->callBoxed(stack);
      }
      return to_python(stack);
    }
  }
  return PyObject_Vectorcall(self->general, args, flagged, names);
  END_HANDLE_TH_ERRORS
}

void destroy(PyObject* object) {  // the operator, and what is known of it, stay
  PyTypeObject* type = Py_TYPE(object);
  Py_XDECREF(reinterpret_cast<QuickCall*>(object)->general);
  type->tp_free(object);
  Py_DECREF(type);
}

PyMemberDef members[] = {{"__vectorcalloffset__", T_PYSSIZET, offsetof(QuickCall, vectorcall), READONLY, nullptr}, {}};
PyType_Slot slots[] = {
    {Py_tp_call, reinterpret_cast<void*>(PyVectorcall_Call)}, {Py_tp_dealloc, reinterpret_cast<void*>(destroy)}, {Py_tp_members, members}, {}};
PyType_Spec spec = {"sparsekern.QuickCall", sizeof(QuickCall), 0, Py_TPFLAGS_DEFAULT | Py_TPFLAGS_HAVE_VECTORCALL, slots};
PyTypeObject* type = nullptr;

// quick_call(name, general): `general` itself where the operator takes or gives anything but tensors and numbers.
PyObject* quick_call(PyObject*, PyObject* const* args, Py_ssize_t count) {
  HANDLE_TH_ERRORS
  const char* name = count == 2 ? PyUnicode_AsUTF8(args[0]) : nullptr;
  if (!name) return PyErr_Format(PyExc_TypeError, "quick_call: arguments must be (name, general); got %zd", count);
  const c10::OperatorHandle op = c10::Dispatcher::singleton().findSchemaOrThrow(name, "");
  std::vector<Kind> kinds;
  bool plain = true;
  for (const c10::Argument& argument : op.schema().arguments()) {
    const std::string kind = argument.type()->str();  // SymInt says "int"
    plain = plain && (kind == "Tensor" || kind == "Tensor?" || kind == "int" || kind == "bool");
    kinds.push_back(kind == "Tensor" ? Kind::tensor : kind == "Tensor?" ? Kind::optional_tensor : kind == "int" ? Kind::integer : Kind::boolean);
  }
  for (const c10::Argument& result : op.schema().returns()) plain = plain && result.type()->str() == "Tensor";
  if (!plain) return Py_INCREF(args[1]), args[1];
  auto* self = PyObject_New(QuickCall, type);
  if (!self) return nullptr;
  self->vectorcall = call;
  self->op = new c10::OperatorHandle(op);
  self->kinds = new std::vector<Kind>(std::move(kinds));
  self->general = args[1];
  Py_INCREF(args[1]);
  return reinterpret_cast<PyObject*>(self);
  END_HANDLE_TH_ERRORS
}

PyCFunction fast(PyObject* (*f)(PyObject*, PyObject* const*, Py_ssize_t)) { return reinterpret_cast<PyCFunction>(reinterpret_cast<void*>(f)); }

PyMethodDef functions[] = {{"quick_call", fast(quick_call), METH_FASTCALL, nullptr},
                           {"set_up_linear", fast(set_up_linear), METH_FASTCALL, nullptr},
                           {"linear", fast(linear), METH_FASTCALL, nullptr},
                           {"packed_linear", fast(packed_linear), METH_FASTCALL, nullptr},
                           {"linear_layer", fast(linear_layer), METH_FASTCALL, nullptr},
                           {"conv_layer", fast(conv_layer), METH_FASTCALL, nullptr},
                           {"grouped_layer", fast(grouped_layer), METH_FASTCALL, nullptr},
                           {"use_reference", use_reference, METH_O, nullptr},
                           {}};
PyModuleDef module = {PyModuleDef_HEAD_INIT, "_quick_call", nullptr, -1, functions, nullptr, nullptr, nullptr, nullptr};

}  // namespace
}  // namespace sk::quick

PyMODINIT_FUNC PyInit__quick_call() {
  using namespace sk::quick;
  type = reinterpret_cast<PyTypeObject*>(PyType_FromSpec(&spec));
  return type ? PyModule_Create(&module) : nullptr;
}
