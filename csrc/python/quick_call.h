// What the files of the module _quick_call share (quick_call.cpp says what it is).
#pragma once
#include <Python.h>
#include <torch/csrc/autograd/python_variable.h>

#include <optional>

#include "core/core.h"

namespace sk::quick {

struct WithoutGil {
  PyThreadState* state = PyEval_SaveThread();
  ~WithoutGil() { PyEval_RestoreThread(state); }
};

// quick_linear.cpp
bool plain_state();                   // nothing of torch's stands between a call and its kernel
bool plain_tensor(PyObject* object);  // nothing but values in the memory of the CPU, at an address that kernels can read
PyObject* set_up_linear(PyObject*, PyObject* const* args, Py_ssize_t count);
PyObject* linear(PyObject*, PyObject* const* args, Py_ssize_t count);
PyObject* use_reference(PyObject*, PyObject* flag);

// quick_direct.cpp
Pool pool();
bool observed();  // by a profiler
std::optional<at::Tensor> direct_linear(const at::Tensor& x, const at::Tensor& weight, const std::optional<at::Tensor>& bias, const at::Tensor& index,
                                        const std::optional<at::Tensor>& plan);  // none: not a common case
PyObject* packed_linear(PyObject*, PyObject* const* args, Py_ssize_t count);
PyObject* frozen_linear(PyObject* const* args);  // the same, whoever wants a gradient of the bias

// quick_layer.cpp
PyObject* linear_layer(PyObject*, PyObject* const* args, Py_ssize_t count);

}  // namespace sk::quick
