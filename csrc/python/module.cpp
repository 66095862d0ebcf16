// _native: instruction-set control and machine limits for tests, benchmarks and `sparsekern env`. The ops do not need it.
#include <pybind11/pybind11.h>
#include <pybind11/stl.h>

#include <string>
#include <vector>

#include "core/core.h"
#include "core/roof.h"

namespace py = pybind11;

PYBIND11_MODULE(_native, m) {
  m.def("isa", [] { return std::string(sk::isa_name()); }, "The instruction set in use.");
  m.def(
      "set_isa", [](const std::string& name) { return sk::set_isa(name.c_str()); }, py::arg("name"),
      "Use another one; false if this processor lacks it.");
  m.def(
      "supported_isas",
      [] {
        std::vector<std::string> names;
        for (const char* const* name = sk::supported_isas(); *name; ++name) names.emplace_back(*name);
        return names;
      },
      "What this processor can run, slowest first.");
  m.def(
      "dense_policy", [] { return std::vector<std::string>{"auto", "never", "always"}[int(sk::dense_policy())]; },
      "Whether ops may run torch's dense product where it is estimated faster.");
  m.def(
      "set_dense_policy", [](const std::string& name) { return sk::set_dense_policy(name.c_str()); }, py::arg("name"),
      "'auto', 'never' or 'always'; false for anything else.");
  m.def("roof_fma_gflops", &sk::roof_fma_gflops, py::arg("seconds"), py::call_guard<py::gil_scoped_release>(), "Peak fp32 GF/s of this thread.");
  m.def("roof_read_gbytes", &sk::roof_read_gbytes, py::arg("bytes"), py::arg("seconds"), py::call_guard<py::gil_scoped_release>(),
        "GB/s read from a buffer of this size.");
}
