// SparseLinear.forward, StochasticConv2d.forward and GroupedConv2d.forward in one step: what the layer's attributes say is read here, where it costs
// no bytecode. What they mean is decided by nn/sparse_linear.py, nn/stochastic_conv2d.py, nn/grouped_conv2d.py and nn/planned.py; whatever is not
// the everyday case is answered NotImplemented and decided there.
#include <array>

#include "python/quick_conv.h"

namespace sk::quick {
namespace {

struct Names {
  PyObject *packed = name("_packed"), *parameters = name("_parameters"), *buffers = name("_buffers"), *planned = name("_planned"),
           *plan = name("_plan"), *weight = name("weight"), *bias = name("bias"), *index = name("index"), *training = name("training"),
           *out_features = name("out_features"), *kept = name("_kept"), *indptr = name("indptr"), *in_channels = name("in_channels"),
           *kernel_pads = name("_kernel_pads"), *kernel_size = name("kernel_size"), *stride = name("stride"),
           *kernel_padding = name("_kernel_padding"), *dilation = name("dilation"), *padding = name("padding"), *padding_mode = name("padding_mode"),
           *groups = name("groups"), *activation = name("activation");
  static PyObject* name(const char* text) { return PyUnicode_InternFromString(text); }
};

PyObject* in(PyObject* dict, PyObject* name) { return dict && PyDict_Check(dict) ? PyDict_GetItemWithError(dict, name) : nullptr; }

bool requires_grad(PyObject* tensor) { return THPVariable_CheckExact(tensor) && THPVariable_Unpack(tensor).requires_grad(); }

// Is the plan that of these tables as they are? planned: (table, its version, where its values are) of each
bool fits(PyObject* planned, std::initializer_list<PyObject*> tables) {
  if (!PyTuple_Check(planned) || PyTuple_GET_SIZE(planned) != Py_ssize_t(tables.size())) return false;
  for (Py_ssize_t i = 0; i < Py_ssize_t(tables.size()); ++i) {
    PyObject *made_from = PyTuple_GET_ITEM(planned, i), *table = tables.begin()[i];
    if (!PyTuple_Check(made_from) || PyTuple_GET_SIZE(made_from) != 3 || PyTuple_GET_ITEM(made_from, 0) != table) return false;
    PyObject* version = PyTuple_GET_ITEM(made_from, 1);  // None: nothing tells when the table is written
    const bool as_it_was = PyLong_CheckExact(version) && plain_tensor(table) && !THPVariable_Unpack(table).is_inference() &&
                           PyLong_AsLongLong(version) == (long long)THPVariable_Unpack(table)._version() &&
                           PyLong_AsVoidPtr(PyTuple_GET_ITEM(made_from, 2)) == THPVariable_Unpack(table).const_data_ptr();
    if (!as_it_was) return false;
  }
  return true;
}

// The table of this weight [OB, F, ...]? While another thread changes the topology one of them may be the old one.
bool belongs(PyObject* index, PyObject* weight) {
  const at::Tensor &table = THPVariable_Unpack(index), &kept = THPVariable_Unpack(weight);
  return table.dim() == 2 && kept.dim() >= 2 && table.sizes() == kept.sizes().slice(0, 2);
}

bool never_written(const at::Tensor& t) { return t.is_inference() || t._version() == 0; }  // so its seal, once read, still holds

bool says(PyObject* object, const char* text) {
  return object && PyUnicode_CheckExact(object) && PyUnicode_CompareWithASCIIString(object, text) == 0;
}

// (rows, columns)
bool read(PyObject* object, std::array<int64_t, 2>& pair) {
  if (!object || !PyTuple_Check(object) || PyTuple_GET_SIZE(object) != 2) return false;
  for (int d = 0; d < 2; ++d) {
    PyObject* number = PyTuple_GET_ITEM(object, d);
    if (!PyLong_CheckExact(number)) return false;
    pair[d] = PyLong_AsLongLong(number);
    if (pair[d] < 0 || pair[d] > INT32_MAX) return PyErr_Clear(), false;  // no layer has such: the general way says what is wrong
  }
  return true;
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
    if (!index || !planned || !plan || !fits(planned, {index}) || !belongs(index, weight)) Py_RETURN_NOTIMPLEMENTED;
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

// conv_layer(layer.__dict__, x) -> out, or NotImplemented: no gradient is wanted, and the kernel pads
PyObject* conv_layer(PyObject*, PyObject* const* args, Py_ssize_t count) {
  static const Names names;
  HANDLE_TH_ERRORS
  PyObject* layer = count == 2 ? args[0] : nullptr;
  PyObject *parameters = in(layer, names.parameters), *weight = in(parameters, names.weight), *bias = in(parameters, names.bias);
  if (!weight || !bias || in(layer, names.kernel_pads) != Py_True || !plain_state()) Py_RETURN_NOTIMPLEMENTED;
  if (!plain_tensor(weight) || !plain_tensor(args[1]) || (bias != Py_None && !plain_tensor(bias))) Py_RETURN_NOTIMPLEMENTED;
  if (at::GradMode::is_enabled() && (requires_grad(args[1]) || requires_grad(weight) || requires_grad(bias))) Py_RETURN_NOTIMPLEMENTED;
  PyObject *buffers = in(layer, names.buffers), *index = in(buffers, names.index), *indptr = in(buffers, names.indptr);
  PyObject *planned = in(layer, names.planned), *plan = in(layer, names.plan), *channels = in(layer, names.in_channels);
  if (!index || !indptr || !planned || !plan || !plain_tensor(plan) || !channels || !fits(planned, {index, indptr})) Py_RETURN_NOTIMPLEMENTED;
  Window window;
  const bool whole = read(in(layer, names.kernel_size), window.kernel_size) && read(in(layer, names.stride), window.stride) &&
                     read(in(layer, names.kernel_padding), window.padding) && read(in(layer, names.dilation), window.dilation);
  // held by themselves, as in quick_linear.cpp
  const at::Tensor x = THPVariable_Unpack(args[1]), w = THPVariable_Unpack(weight), p = THPVariable_Unpack(plan);
  const std::optional<at::Tensor> b = bias == Py_None ? std::nullopt : std::optional<at::Tensor>(THPVariable_Unpack(bias));
  const at::Tensor rows = THPVariable_Unpack(indptr), blocks = THPVariable_Unpack(index);
  if (!whole || x.dim() != 4 || !PyLong_CheckExact(channels) || PyLong_AsLongLong(channels) != x.size(1)) Py_RETURN_NOTIMPLEMENTED;
  std::optional<at::Tensor> out;
  {
    const WithoutGil no_gil;
    out = direct_conv(x, w, b, rows, blocks, p, window);
  }
  if (!out) Py_RETURN_NOTIMPLEMENTED;
  return THPVariable_Wrap(std::move(*out));
  END_HANDLE_TH_ERRORS
}

// grouped_layer(layer.__dict__, x) -> out, or NotImplemented: no gradient is wanted, and zeros are padded alike on both sides
PyObject* grouped_layer(PyObject*, PyObject* const* args, Py_ssize_t count) {
  static const Names names;
  HANDLE_TH_ERRORS
  PyObject* layer = count == 2 ? args[0] : nullptr;
  PyObject *parameters = in(layer, names.parameters), *weight = in(parameters, names.weight), *bias = in(parameters, names.bias);
  if (!weight || !bias || !plain_state() || !plain_tensor(weight) || !plain_tensor(args[1])) Py_RETURN_NOTIMPLEMENTED;
  if (bias != Py_None && !plain_tensor(bias)) Py_RETURN_NOTIMPLEMENTED;
  PyObject* packed = in(layer, names.packed);                                                               // null: never packed
  const bool frozen = packed && packed != Py_None, free = frozen && in(layer, names.training) == Py_False;  // as refuse_gradients says
  if (at::GradMode::is_enabled() && (requires_grad(args[1]) || (!free && requires_grad(weight)) || (!frozen && requires_grad(bias))))
    Py_RETURN_NOTIMPLEMENTED;
  if (frozen && !(plain_tensor(packed) && never_written(THPVariable_Unpack(packed)))) Py_RETURN_NOTIMPLEMENTED;
  PyObject *mode = in(layer, names.padding_mode), *groups = in(layer, names.groups), *activation = in(layer, names.activation);
  const bool relu = says(activation, "relu");
  Window window;
  const bool whole = says(mode, "zeros") && (relu || says(activation, "none")) && groups && PyLong_CheckExact(groups) &&
                     read(in(layer, names.stride), window.stride) && read(in(layer, names.padding), window.padding) &&
                     read(in(layer, names.dilation), window.dilation);
  const int64_t number = whole ? PyLong_AsLongLong(groups) : 0;
  if (number < 1) return PyErr_Clear(), Py_NewRef(Py_NotImplemented);
  // held by themselves, as in quick_linear.cpp
  const at::Tensor x = THPVariable_Unpack(args[1]), w = THPVariable_Unpack(frozen ? packed : weight);
  const std::optional<at::Tensor> b = bias == Py_None ? std::nullopt : std::optional<at::Tensor>(THPVariable_Unpack(bias));
  std::optional<at::Tensor> out;
  {
    const WithoutGil no_gil;
    out = frozen ? direct_grouped_packed(x, w, b, window, number, relu) : direct_grouped(x, w, b, window, number, relu);
  }
  if (!out) Py_RETURN_NOTIMPLEMENTED;
  return THPVariable_Wrap(std::move(*out));
  END_HANDLE_TH_ERRORS
}

}  // namespace sk::quick
