// SparseLinear.forward in one step: what the layer's attributes say is read here, where it costs no bytecode. What they mean is decided by
// nn/sparse_linear.py and nn/planned.py; whatever is not the everyday case is answered NotImplemented and decided there.
#include <array>

#include "python/quick_call.h"

namespace sk::quick {
namespace {

struct Names {
  PyObject *packed = name("_packed"), *parameters = name("_parameters"), *buffers = name("_buffers"), *planned = name("_planned"),
           *plan = name("_plan"), *weight = name("weight"), *bias = name("bias"), *index = name("index"), *training = name("training"),
           *out_features = name("out_features"), *kept = name("_kept");
  static PyObject* name(const char* text) { return PyUnicode_InternFromString(text); }
};

PyObject* in(PyObject* dict, PyObject* name) { return dict && PyDict_Check(dict) ? PyDict_GetItemWithError(dict, name) : nullptr; }

bool requires_grad(PyObject* tensor) { return THPVariable_CheckExact(tensor) && THPVariable_Unpack(tensor).requires_grad(); }

// Is the plan that of this table as it is? planned: ((table, its version, where its values are),)
bool fits(PyObject* planned, PyObject* index) {
  if (!PyTuple_Check(planned) || PyTuple_GET_SIZE(planned) != 1) return false;
  PyObject* made_from = PyTuple_GET_ITEM(planned, 0);
  if (!PyTuple_Check(made_from) || PyTuple_GET_SIZE(made_from) != 3 || PyTuple_GET_ITEM(made_from, 0) != index) return false;
  PyObject* version = PyTuple_GET_ITEM(made_from, 1);  // None: nothing tells when the table is written
  return PyLong_CheckExact(version) && plain_tensor(index) && !THPVariable_Unpack(index).is_inference() &&
         PyLong_AsLongLong(version) == (long long)THPVariable_Unpack(index)._version() &&
         PyLong_AsVoidPtr(PyTuple_GET_ITEM(made_from, 2)) == THPVariable_Unpack(index).const_data_ptr();
}

// The kernel runs without the lock, and meanwhile another thread may change the layer.
template <size_t N>
class Held {
 public:
  explicit Held(const std::array<PyObject*, N>& objects) : objects_(objects) {
    for (PyObject* object : objects_) Py_INCREF(object);
  }
  ~Held() {
    for (PyObject* object : objects_) Py_DECREF(object);
  }
  Held(const Held&) = delete;
  PyObject* const* data() const { return objects_.data(); }

 private:
  const std::array<PyObject*, N> objects_;
};

}  // namespace

// linear_layer(layer.__dict__, x) -> out, or NotImplemented
PyObject* linear_layer(PyObject*, PyObject* const* args, Py_ssize_t count) {
  static const Names names;
  HANDLE_TH_ERRORS
  PyObject* layer = count == 2 ? args[0] : nullptr;
  PyObject *packed = in(layer, names.packed), *parameters = in(layer, names.parameters), *bias = in(parameters, names.bias);
  PyObject* weight = in(parameters, names.weight);  // null if parametrized
  if (!packed || !weight || !bias || !plain_tensor(weight) || !plain_tensor(args[1])) Py_RETURN_NOTIMPLEMENTED;
  if (packed == Py_None) {
    PyObject *index = in(in(layer, names.buffers), names.index), *planned = in(layer, names.planned), *plan = in(layer, names.plan);
    if (!index || !planned || !plan || !fits(planned, index)) Py_RETURN_NOTIMPLEMENTED;
    const Held<5> all({args[1], weight, bias, index, plan});
    return linear(nullptr, all.data(), 5);
  }
  const bool training = in(layer, names.training) != Py_False;
  if (at::GradMode::is_enabled() && (requires_grad(args[1]) || (training && requires_grad(weight)))) Py_RETURN_NOTIMPLEMENTED;
  PyObject *out_features = in(layer, names.out_features), *kept = in(layer, names.kept);
  if (!out_features || !kept) Py_RETURN_NOTIMPLEMENTED;
  const Held<5> all({args[1], packed, bias, out_features, kept});
  return frozen_linear(all.data());
  END_HANDLE_TH_ERRORS
}

}  // namespace sk::quick
