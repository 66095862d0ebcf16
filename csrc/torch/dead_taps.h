// Dead taps (core/conv_window.h): the convolution goes on without them, with less padding and a cropped copy of the weight.
#pragma once
#include <cstring>

#include "core/conv_window.h"
#include "torch/grouped_conv2d.h"

namespace sk::glue {

inline Window left_by(const DeadTaps& dead, const Window& w) {
  return {w.stride_h, w.stride_w, w.pad_h - dead.rows * w.dilation_h, w.pad_w - dead.columns * w.dilation_w, w.dilation_h, w.dilation_w, w.groups};
}

// Calls row(values before it in `whole` [K, C/G, KH, KW], values before it in a contiguous tensor of the live taps, values) for each row of taps
// that live; in a channels_last weight they lie between the channels.
template <class F>
void for_each_live_row(const Tensor& whole, bool channels_last, const DeadTaps& dead, const F& row) {
  const int64_t step = channels_last ? whole.size(1) : 1, filters = whole.size(0) * whole.size(1) / step;
  const int64_t KH = whole.size(2), KW = whole.size(3), height = dead.height(KH), values = dead.width(KW) * step;
  int64_t live = 0;
  for (int64_t f = 0; f < filters; ++f)
    for (int64_t y = 0; y < height; ++y, live += values) row(((f * KH + dead.rows + y) * KW + dead.columns) * step, live, values);
}

template <class T>
void copy_values(const T* from, int64_t values, T* to) {
  for (int64_t i = 0; i < values; ++i) to[i] = from[i];  // few
}

template <class F>
void with_values_like(const Tensor& t, const F& f) {
  if (t.scalar_type() == ScalarType::Double) return f(uint64_t());
  if (is_half(t.scalar_type())) return f(uint16_t());
  f(uint32_t());
}

// weight [K, C/G, KH, KW] without its dead taps, in its layout
inline Tensor cropped(const Tensor& weight, const DeadTaps& dead) {
  const bool cl = channels_last(weight);
  const Tensor whole = in_layout(weight, cl);
  const Tensor live = new_image(weight, weight.size(0), weight.size(1), dead.height(weight.size(2)), dead.width(weight.size(3)), cl);
  with_values_like(weight, [&](auto value) {
    using T = decltype(value);
    const T* from = static_cast<const T*>(whole.const_data_ptr());
    T* to = static_cast<T*>(live.mutable_data_ptr());
    for_each_live_row(whole, cl, dead, [=](int64_t at, int64_t live_at, int64_t values) { copy_values(from + at, values, to + live_at); });
  });
  return live;
}

// A contiguous gradient [K, C/G, KH, KW]: that of the live taps, and zeros
inline Tensor uncropped(const Tensor& live, int64_t KH, int64_t KW, const DeadTaps& dead) {
  const Tensor whole = new_image(live, live.size(0), live.size(1), KH, KW, false);
  with_values_like(live, [&](auto value) {
    using T = decltype(value);
    const T* from = static_cast<const T*>(live.const_data_ptr());
    T* to = static_cast<T*>(whole.mutable_data_ptr());
    std::memset(to, 0, size_t(whole.numel()) * sizeof(T));
    for_each_live_row(whole, false, dead, [=](int64_t at, int64_t live_at, int64_t values) { copy_values(from + live_at, values, to + at); });
  });
  return whole;
}

}  // namespace sk::glue
