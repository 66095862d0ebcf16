// grouped_conv2d from plain tensors straight to its kernel, or to torch's convolution where that is the faster one, as
// csrc/torch/grouped_conv2d_cpu.cpp does it. Only the common case: float32, or bfloat16 on matrix tiles, in one of the two layouts, every tap meets a
// pixel, no profiler.
#include <ATen/EmptyTensor.h>
#include <ATen/core/LegacyTypeDispatch.h>
#include <ATen/ops/convolution.h>
#include <ATen/ops/from_blob.h>

#include "core/conv_window.h"
#include "core/grouped_conv2d_bf16.h"
#include "core/turn_filters.h"
#include "python/quick_conv.h"

namespace sk::quick {
namespace {

using at::Tensor;
using std::optional;

bool channels_last(const Tensor& t) {  // as csrc/torch/image.h
  const int64_t C = t.size(1), H = t.size(2), W = t.size(3);
  return C * H * W > 1 && t.stride(1) == 1 && t.stride(3) == C && t.stride(2) == C * W && t.stride(0) == C * W * H;
}

Tensor new_image(at::ScalarType type, const Conv2dShape& s) {
  const int64_t H = s.OH, W = s.OW;
  const Tensor out = s.channels_last ? at::detail::empty_strided_cpu({s.N, s.K, H, W}, {s.K * H * W, 1, W * s.K, s.K}, type)
                                     : at::detail::empty_cpu({s.N, s.K, H, W}, type);
  if (out.numel() > int64_t(1) << 21) advise_huge_pages(out.mutable_data_ptr(), out.nbytes());
  return out;
}

// False where the general way must say what is wrong. `filters`: K, C/G, KH, KW of the weight.
bool shape_of(const Tensor& x, const std::array<int64_t, 4>& filters, const Window& w, int64_t groups, Conv2dShape& s) {
  const auto [K, in_group, KH, KW] = filters;
  if (x.numel() == 0 || K * in_group * KH * KW == 0 || K % groups || x.size(1) % groups || x.size(1) / groups != in_group) return false;
  if (!in_range(w)) return false;
  int64_t outputs[2], strides[2];
  for (int d = 0; d < 2; ++d) {
    const int64_t room = x.size(2 + d) + 2 * w.padding[d] - w.dilation[d] * (filters[2 + d] - 1) - 1;
    if (room < 0) return false;
    outputs[d] = room / w.stride[d] + 1;
    strides[d] = useful_stride(w.stride[d], x.size(2 + d), w.padding[d]);
  }
  s = {x.size(0),    x.size(1),    x.size(2),     x.size(3),     K,      KH,         KW,         strides[0],      strides[1],
       w.padding[0], w.padding[1], w.dilation[0], w.dilation[1], groups, outputs[0], outputs[1], channels_last(x)};
  return s.channels_last || x.is_contiguous();
}

bool fits(const optional<Tensor>& bias, at::ScalarType type, int64_t K) {
  return !bias || (bias->scalar_type() == type && bias->dim() == 1 && bias->size(0) == K && bias->is_contiguous());
}

// A contiguous weight in memory that the thread keeps, in the layout of channels_last images, as csrc/torch/grouped_conv2d_cpu.cpp turns it.
Tensor turned(const Tensor& weight, Scratch& memory, const Conv2dShape& s) {
  const int64_t in = s.C / s.groups, taps = s.KH * s.KW;
  if (weight.scalar_type() == at::kFloat)
    turn_filters(weight.const_data_ptr<float>(), s.K, in, taps, memory.as<float>(), pool());
  else
    turn_filters(static_cast<const uint16_t*>(weight.const_data_ptr()), s.K, in, taps, memory.as<uint16_t>(), pool());
  return at::from_blob(memory.as<void>(), {s.K, in, s.KH, s.KW}, {in * taps, 1, s.KW * in, in}, weight.scalar_type());
}

Tensor by_torch(const Tensor& x, const Tensor& weight, const optional<Tensor>& bias, const Window& w, bool relu, const Conv2dShape& s) {
  const at::AutoDispatchBelowADInplaceOrView guard;  // no gradient is wanted
  const bool turn = s.channels_last && !s.weight_channels_last && s.C > s.groups && s.KH * s.KW > 1;
  Scratch memory(turn ? weight.nbytes() : 0);
  const std::array<int64_t, 2> dilation{useful_dilation(w.dilation[0], s.KH), useful_dilation(w.dilation[1], s.KW)};
  Tensor y = at::convolution(x, turn ? turned(weight, memory, s) : weight, bias, w.stride, w.padding, dilation, false, {0, 0}, s.groups);
  if (s.channels_last ? !channels_last(y) : channels_last(y) || !y.is_contiguous()) y = new_image(x.scalar_type(), s).copy_(y);
  return relu ? y.relu_() : y;
}

template <class T>
const T* data(const optional<Tensor>& t) {
  return t ? static_cast<const T*>(t->const_data_ptr()) : nullptr;
}

}  // namespace

optional<Tensor> direct_grouped(const Tensor& x, const Tensor& weight, const optional<Tensor>& bias, const Window& w, int64_t groups, bool relu) {
  const at::ScalarType type = x.scalar_type();
  const bool bf16 = type == at::kBFloat16;
  if ((type != at::kFloat && !bf16) || weight.scalar_type() != type || x.dim() != 4 || weight.dim() != 4 || observed()) return {};
  Conv2dShape s;
  if (!shape_of(x, {weight.size(0), weight.size(1), weight.size(2), weight.size(3)}, w, groups, s) || !fits(bias, type, s.K)) return {};
  s.weight_channels_last = channels_last(weight);
  if ((!s.weight_channels_last && !weight.is_contiguous()) || DeadTaps(s)) return {};
  if (!grouped_conv2d_choice(s, ConvProduct::forward, bf16 ? ConvType::bf16 : ConvType::fp32).ours) {
    // in 16 bits where it surely has kernels for them: the operator asks
    const bool can =
        bf16 ? isa() == Isa::amx &&
                   torch_can_run({s.H, s.W}, {s.OH, s.OW}, {s.KH, s.KW}, {s.stride_h, s.stride_w}, {s.pad_h, s.pad_w}, {s.dilation_h, s.dilation_w})
             : torch_survives({s.H, s.W}, {s.OH, s.OW}, {s.KH, s.KW}, {s.stride_h, s.stride_w}, {s.pad_h, s.pad_w}, {s.dilation_h, s.dilation_w});
    return can ? optional<Tensor>(by_torch(x, weight, bias, w, relu, s)) : std::nullopt;
  }
  if (bf16 && !grouped_conv2d_on_tiles(s)) return {};
  const Tensor out = new_image(type, s);
  if (bf16)
    grouped_conv2d_tiles_fwd(s, static_cast<const uint16_t*>(x.const_data_ptr()), static_cast<const uint16_t*>(weight.const_data_ptr()),
                             data<uint16_t>(bias), nullptr, relu, static_cast<uint16_t*>(out.mutable_data_ptr()), pool());
  else
    grouped_conv2d_fwd(s, x.const_data_ptr<float>(), weight.const_data_ptr<float>(), data<float>(bias), nullptr, relu, out.mutable_data_ptr<float>(),
                       pool());
  return out;
}

optional<Tensor> direct_grouped_packed(const Tensor& x, const Tensor& packed, const optional<Tensor>& bias, const Window& w, int64_t groups,
                                       bool relu) {
  const at::ScalarType type = x.scalar_type();
  const bool bf16 = type == at::kBFloat16;
  if ((type != at::kFloat && !bf16) || x.dim() != 4 || packed.scalar_type() != at::kInt || packed.dim() != 1 || !packed.is_contiguous() || observed())
    return {};
  const int32_t* pack = packed.const_data_ptr<int32_t>();
  Conv2dShape held, s;
  if (!grouped_conv2d_pack_shape(pack, packed.size(0), &held) || held.groups != groups) return {};
  const std::array<int64_t, 4> filters{held.K, held.C / groups, held.KH, held.KW};
  if (!shape_of(x, filters, w, groups, s) || !s.channels_last || !fits(bias, type, s.K) || dense_policy() == Dense::always) return {};
  if (const float* natural = grouped_conv2d_pack_natural(pack)) {
    if (bf16 || DeadTaps(s) || grouped_conv2d_choice(s, ConvProduct::forward, ConvType::fp32).ours) return {};
    return by_torch(x, at::from_blob(const_cast<float*>(natural), filters, at::kFloat), bias, w, relu, s);  // torch does not write it
  }
  if (!bf16 && !grouped_conv2d_pack_has_blocks(pack)) return {};
  const Tensor out = new_image(type, s);
  const bool done =
      bf16 ? grouped_conv2d_tiles_packed_fwd(s, static_cast<const uint16_t*>(x.const_data_ptr()), pack, data<uint16_t>(bias), nullptr, relu,
                                             static_cast<uint16_t*>(out.mutable_data_ptr()), pool())
           : grouped_conv2d_packed_fwd(s, x.const_data_ptr<float>(), pack, data<float>(bias), nullptr, relu, out.mutable_data_ptr<float>(), pool());
  return done ? optional<Tensor>(out) : std::nullopt;
}

}  // namespace sk::quick
