// The short ways of StochasticConv2d and GroupedConv2d (quick_layer.cpp, quick_direct.cpp, quick_grouped.cpp).
#pragma once
#include <array>

#include "core/window_range.h"
#include "python/quick_call.h"

namespace sk::quick {

struct Window {  // rows and columns
  std::array<int64_t, 2> kernel_size, stride, padding, dilation;
};
// the kernel size is a weight's, or its own to look at
inline bool in_range(const Window& w) {
  return within(1, {w.stride[0], w.stride[1], w.dilation[0], w.dilation[1]}) && within(0, {w.padding[0], w.padding[1]});
}

// x [N, C, H, W], weight [nnz, BO, BI, BT], its tables; none: not a common case
std::optional<at::Tensor> direct_conv(const at::Tensor& x, const at::Tensor& weight, const std::optional<at::Tensor>& bias, const at::Tensor& indptr,
                                      const at::Tensor& index, const at::Tensor& plan, const Window& window);
PyObject* conv_layer(PyObject*, PyObject* const* args, Py_ssize_t count);

// x [N, C, H, W], weight [K, C/G, KH, KW] or a pack of one, whatever the window says of its size; none: not a common case
std::optional<at::Tensor> direct_grouped(const at::Tensor& x, const at::Tensor& weight, const std::optional<at::Tensor>& bias, const Window& window,
                                         int64_t groups, bool relu);
std::optional<at::Tensor> direct_grouped_packed(const at::Tensor& x, const at::Tensor& packed, const std::optional<at::Tensor>& bias,
                                                const Window& window, int64_t groups, bool relu);
PyObject* grouped_layer(PyObject*, PyObject* const* args, Py_ssize_t count);

}  // namespace sk::quick
