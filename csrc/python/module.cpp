// _native: instruction-set control and machine limits for tests, benchmarks and `sparsekern env`. The ops do not need it.
//
// Written in Python's limited API and not with pybind11, which has none: one file serves every CPython from 3.10 on.
#include <Python.h>

#include "core/core.h"
#include "core/roof.h"

namespace {

using Setter = bool (*)(const char* name);

template <Setter set>
PyObject* set_by_name(PyObject*, PyObject* name) {
  const char* text = PyUnicode_AsUTF8AndSize(name, nullptr);  // raises TypeError for what is no string
  return text ? PyBool_FromLong(set(text)) : nullptr;
}

PyObject* isa(PyObject*, PyObject*) { return PyUnicode_FromString(sk::isa_name()); }

PyObject* supported_isas(PyObject*, PyObject*) {
  PyObject* names = PyList_New(0);
  for (const char* const* name = sk::supported_isas(); names && *name; ++name) {
    PyObject* text = PyUnicode_FromString(*name);
    if (!text || PyList_Append(names, text)) Py_CLEAR(names);
    Py_XDECREF(text);
  }
  return names;
}

PyObject* dense_policy(PyObject*, PyObject*) {
  const char* const names[] = {"auto", "never", "always"};
  return PyUnicode_FromString(names[int(sk::dense_policy())]);
}

PyObject* roof_fma_gflops(PyObject*, PyObject* args) {
  double seconds, found;
  if (!PyArg_ParseTuple(args, "d:roof_fma_gflops", &seconds)) return nullptr;
  Py_BEGIN_ALLOW_THREADS;
  found = sk::roof_fma_gflops(seconds);
  Py_END_ALLOW_THREADS;
  return PyFloat_FromDouble(found);
}

PyObject* roof_read_gbytes(PyObject*, PyObject* args) {
  Py_ssize_t bytes;
  double seconds, found;
  if (!PyArg_ParseTuple(args, "nd:roof_read_gbytes", &bytes, &seconds)) return nullptr;
  if (bytes <= 0) return PyErr_Format(PyExc_ValueError, "roof_read_gbytes: bytes must be positive; got %zd", bytes);
  Py_BEGIN_ALLOW_THREADS;
  found = sk::roof_read_gbytes(size_t(bytes), seconds);
  Py_END_ALLOW_THREADS;
  return PyFloat_FromDouble(found);
}

PyMethodDef methods[] = {
    {"isa", isa, METH_NOARGS, "The instruction set in use."},
    {"set_isa", set_by_name<sk::set_isa>, METH_O, "Use another one; false if this processor lacks it."},
    {"supported_isas", supported_isas, METH_NOARGS, "What this processor can run, slowest first."},
    {"dense_policy", dense_policy, METH_NOARGS, "Whether ops may run torch's dense product where it is estimated faster."},
    {"set_dense_policy", set_by_name<sk::set_dense_policy>, METH_O, "'auto', 'never' or 'always'; false for anything else."},
    {"roof_fma_gflops", roof_fma_gflops, METH_VARARGS, "(seconds): peak fp32 GF/s of this thread."},
    {"roof_read_gbytes", roof_read_gbytes, METH_VARARGS, "(bytes, seconds): GB/s read from a buffer of this size."},
    {nullptr, nullptr, 0, nullptr},
};

PyModuleDef module = {PyModuleDef_HEAD_INIT, "sparsekern._native", nullptr, -1, methods, nullptr, nullptr, nullptr, nullptr};

}  // namespace

PyMODINIT_FUNC PyInit__native() { return PyModule_Create(&module); }
