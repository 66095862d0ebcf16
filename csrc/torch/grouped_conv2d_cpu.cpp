// grouped_conv2d on the CPU: check, allocate, hand over to core/grouped_conv2d.cpp or, where that is faster, to torch's own convolution.
#include <cstring>
#include <vector>

#include "core/grouped_conv2d_bf16.h"
#include "core/turn_filters.h"
#include "torch/dead_taps.h"
#include "torch/grouped_conv2d.h"
#include "torch/torch_convolution.h"

namespace sk::glue {
namespace {

// Who serves, what torch cannot do counted in.
ConvChoice choice_of(const Conv2dShape& s, ConvProduct product, ConvType type) {
  const ConvChoice choice = grouped_conv2d_choice(s, product, type);
  if (choice.ours) return choice;
  const bool grad_weight = product == ConvProduct::grad_weight;
  const char* cannot = torch_cannot(type, grad_weight, s.C, {s.H, s.W}, {s.OH, s.OW}, {s.KH, s.KW}, {s.stride_h, s.stride_w}, {s.pad_h, s.pad_w},
                                    {s.dilation_h, s.dilation_w});
  return cannot ? ConvChoice{true, cannot} : choice;
}

bool torch_wins(const Conv2dShape& s, ConvProduct product, ScalarType type) {
  return type != ScalarType::Double && !choice_of(s, product, conv_type(type)).ours;
}

using Ints = std::vector<int64_t>;

// torch's gradient of a weight comes in the layout of its images: -> contiguous, in less time than torch takes
Tensor contiguous_weight(const Tensor& weight) {
  const int64_t K = weight.size(0), channels = weight.size(1), taps = weight.size(2) * weight.size(3);
  const Tensor out = new_image(weight, K, channels, weight.size(2), weight.size(3), false);
  if (is_half(weight.scalar_type()))
    turn_filters(static_cast<const uint16_t*>(weight.const_data_ptr()), K, taps, channels, static_cast<uint16_t*>(out.mutable_data_ptr()), pool());
  else
    turn_filters(static_cast<const float*>(weight.const_data_ptr()), K, taps, channels, static_cast<float*>(out.mutable_data_ptr()), pool());
  return out;
}

// One of grad_x (product 0) and grad_weight (product 1). Only the sizes of the factor it is the gradient of are used.
Tensor torch_backward(const Tensor& grad_out, const Tensor& x, const Tensor& weight, const Window& w, int product) {
  using torch::stable::detail::from;
  NoGrad no_grad;
  const std::optional<Ints> no_bias;
  const bool mask[] = {product == 0, product == 1, false};
  std::array<StableIValue, 11> stack{from(grad_out),
                                     from(x),
                                     from(weight),
                                     from(no_bias),
                                     from(Ints{w.stride_h, w.stride_w}),
                                     from(Ints{w.pad_h, w.pad_w}),
                                     from(Ints{useful_dilation(w.dilation_h, weight.size(2)), useful_dilation(w.dilation_w, weight.size(3))}),
                                     from(false),
                                     from(Ints{0, 0}),
                                     from(w.groups),
                                     from(torch::headeronly::HeaderOnlyArrayRef<bool>(mask, 3))};
  TORCH_ERROR_CODE_CHECK(aoti_torch_call_dispatcher("aten::convolution_backward", "", stack.data()));
  const Tensor results[] = {torch::stable::detail::to<Tensor>(stack[0]), torch::stable::detail::to<Tensor>(stack[1]),
                            torch::stable::detail::to<Tensor>(stack[2])};  // the two others are undefined, but ours to free
  return results[product];
}

// Four dimensions of values that lie in another's memory, with the dtype of `like`; torch does not write them.
Tensor view_of(const void* values, const Tensor& like, const int64_t* sizes, const int64_t* strides) {
  int32_t dtype = 0;
  AtenTensorHandle handle;
  TORCH_ERROR_CODE_CHECK(aoti_torch_get_dtype(like.get(), &dtype));
  TORCH_ERROR_CODE_CHECK(
      aoti_torch_create_tensor_from_blob(const_cast<void*>(values), 4, sizes, strides, 0, dtype, device_type(), device_index(like), &handle));
  return Tensor(handle);
}

// Channels_last images meet a weight of their layout, which torch would else reorder on the way, and slowly: here into memory that the thread keeps.
class TurnedWeight {
 public:
  TurnedWeight(const Tensor& weight, const Pool& threads) : memory_(size_t(weight.numel()) * (is_half(weight.scalar_type()) ? 2 : 4)) {
    const int64_t K = weight.size(0), channels = weight.size(1), KH = weight.size(2), KW = weight.size(3);
    if (is_half(weight.scalar_type()))
      turn_filters(static_cast<const uint16_t*>(weight.const_data_ptr()), K, channels, KH * KW, memory_.as<uint16_t>(), threads);
    else
      turn_filters(static_cast<const float*>(weight.const_data_ptr()), K, channels, KH * KW, memory_.as<float>(), threads);
    const int64_t sizes[] = {K, channels, KH, KW}, strides[] = {channels * KH * KW, 1, KW * channels, channels};
    tensor_.emplace(view_of(memory_.as<void>(), weight, sizes, strides));
  }
  const Tensor& tensor() const { return *tensor_; }

 private:
  Scratch memory_;
  std::optional<Tensor> tensor_;
};

Tensor torch_forward(const Tensor& x, const Tensor& weight, const std::optional<Tensor>& bias, const Window& w, const Pool& threads) {
  std::optional<TurnedWeight> turned;
  if (channels_last(x) && weight.size(1) > 1 && weight.size(2) * weight.size(3) > 1 && !channels_last(weight) && weight.is_contiguous())
    turned.emplace(weight, threads);
  return call<9>("aten::convolution", "", x, turned ? turned->tensor() : weight, bias, Ints{w.stride_h, w.stride_w}, Ints{w.pad_h, w.pad_w},
                 Ints{useful_dilation(w.dilation_h, weight.size(2)), useful_dilation(w.dilation_w, weight.size(3))}, false, Ints{0, 0}, w.groups);
}

// An image of which only the sizes matter, in memory that the thread keeps: a fresh one would take away the pages that torch's result
// had last time.
class StandIn {
 public:
  StandIn(const Tensor& like, const Conv2dShape& s) : memory_(size_t(s.N * s.C * s.H * s.W + 1) * bytes(like)) {
    const int64_t sizes[] = {s.N, s.C, s.H, s.W}, nchw[] = {s.C * s.H * s.W, s.H * s.W, s.W, 1}, nhwc[] = {s.C * s.H * s.W, 1, s.C * s.W, s.C};
    tensor_.emplace(view_of(memory_.as<void>(), like, sizes, s.channels_last ? nhwc : nchw));
  }
  const Tensor& tensor() const { return *tensor_; }

 private:
  static size_t bytes(const Tensor& t) { return t.scalar_type() == ScalarType::Double ? 8 : is_half(t.scalar_type()) ? 2 : 4; }
  Scratch memory_;
  std::optional<Tensor> tensor_;
};

// torch's result in the layout that was promised
Tensor promised(const Tensor& y, bool cl) { return in_layout(y, cl); }

bool fits_shortcut(const std::optional<Tensor>& shortcut, const Tensor& x, const Conv2dShape& s) {
  return !shortcut || (shortcut->is_cpu() && shortcut->scalar_type() == x.scalar_type() && has_sizes(*shortcut, s.N, s.K, s.OH, s.OW));
}

// y + shortcut, then relu, in y, which torch just made; both in one layout
Tensor add_shortcut_to(const Tensor& y, const Tensor& shortcut, bool relu, const Pool& threads) {
  const int64_t count = y.numel();
  const FloatInput added(shortcut, count, threads);
  const FloatOutput sum(y, threads);
  if (is_half(y.scalar_type())) to_f32(half_of(y.scalar_type()), static_cast<const uint16_t*>(y.const_data_ptr()), sum.data(), count, threads);
  add_shortcut(added.data(), relu, sum.data(), count, threads);
  sum.finish();
  return y;
}

template <class T>
const T* data(const Tensor& t) {
  return static_cast<const T*>(t.const_data_ptr());
}

}  // namespace

Tensor grouped_conv2d(const Tensor& x, const Tensor& weight, const std::optional<Tensor>& bias, const std::optional<Tensor>& shortcut,
                      int64_t stride_h, int64_t stride_w, int64_t pad_h, int64_t pad_w, int64_t dilation_h, int64_t dilation_w, int64_t groups,
                      bool relu) {
  const Window window{stride_h, stride_w, pad_h, pad_w, dilation_h, dilation_w, groups};
  check_image(x, "grouped_conv2d: x");
  STD_TORCH_CHECK(weight.is_cpu() && weight.scalar_type() == x.scalar_type() && weight.dim() == 4, "grouped_conv2d: weight");
  STD_TORCH_CHECK(groups > 0 && x.size(1) == weight.size(1) * groups, "grouped_conv2d: x");
  const bool cl = channels_last(x), fp64 = x.scalar_type() == ScalarType::Double;
  const Conv2dShape s = shape_of(x.size(0), x.size(1), x.size(2), x.size(3), weight.size(0), weight.size(2), weight.size(3), window, cl,
                                 !fp64 && channels_last(weight));
  STD_TORCH_CHECK(fits_bias(bias, x, s.K), "grouped_conv2d: bias");
  STD_TORCH_CHECK(fits_shortcut(shortcut, x, s), "grouped_conv2d: shortcut");
  if (const DeadTaps dead(s); dead) {
    const Window w = left_by(dead, window);
    return grouped_conv2d(x, cropped(weight, dead), bias, shortcut, w.stride_h, w.stride_w, w.pad_h, w.pad_w, w.dilation_h, w.dilation_w, groups,
                          relu);
  }
  const Pool threads = pool();
  const std::optional<Tensor> added = shortcut ? std::optional<Tensor>(in_layout(*shortcut, cl)) : std::nullopt;
  if (torch_wins(s, ConvProduct::forward, x.scalar_type())) {
    const Tensor y = promised(torch_forward(x, weight, bias, window, threads), cl);
    if (added) return add_shortcut_to(y, *added, relu, threads);
    return relu ? call<1>("aten::relu_", "", y) : y;
  }
  const Tensor xs = in_layout(x, cl), w = in_layout(weight, s.weight_channels_last), out = new_image(x, s.N, s.K, s.OH, s.OW, cl);
  const std::optional<Tensor> b = as_contiguous(bias);
  if (fp64) {
    grouped_conv2d_fwd(s, data<double>(xs), data<double>(w), b ? data<double>(*b) : nullptr, added ? data<double>(*added) : nullptr, relu,
                       static_cast<double*>(out.mutable_data_ptr()), threads);
    return out;
  }
  if (x.scalar_type() == ScalarType::BFloat16 && grouped_conv2d_on_tiles(s)) {
    grouped_conv2d_tiles_fwd(s, data<uint16_t>(xs), data<uint16_t>(w), b ? data<uint16_t>(*b) : nullptr, added ? data<uint16_t>(*added) : nullptr,
                             relu, static_cast<uint16_t*>(out.mutable_data_ptr()), threads);
    return out;
  }
  const FloatInput xf(xs, xs.numel(), threads), wf(w, w.numel(), threads), bf(b, threads), af(added, threads);
  const FloatOutput y(out, threads);
  grouped_conv2d_fwd(s, xf.data(), wf.data(), bf.data(), af.data(), relu, y.data(), threads);
  y.finish();
  return out;
}

Tensor grouped_conv2d_grad_x(const Tensor& grad_out, const Tensor& weight, int64_t height, int64_t width, int64_t stride_h, int64_t stride_w,
                             int64_t pad_h, int64_t pad_w, int64_t dilation_h, int64_t dilation_w, int64_t groups) {
  const Window window{stride_h, stride_w, pad_h, pad_w, dilation_h, dilation_w, groups};
  check_image(grad_out, "grouped_conv2d: grad_out");
  STD_TORCH_CHECK(weight.is_cpu() && weight.scalar_type() == grad_out.scalar_type() && weight.dim() == 4 && groups > 0, "grouped_conv2d: weight");
  const bool cl = channels_last(grad_out), fp64 = grad_out.scalar_type() == ScalarType::Double;
  const Conv2dShape s = shape_of(grad_out.size(0), weight.size(1) * groups, height, width, weight.size(0), weight.size(2), weight.size(3), window, cl,
                                 !fp64 && channels_last(weight));
  STD_TORCH_CHECK(grad_out.size(1) == s.K && grad_out.size(2) == s.OH && grad_out.size(3) == s.OW, "grouped_conv2d: grad_out");
  if (const DeadTaps dead(s); dead) {
    const Window w = left_by(dead, window);
    return grouped_conv2d_grad_x(grad_out, cropped(weight, dead), height, width, w.stride_h, w.stride_w, w.pad_h, w.pad_w, w.dilation_h, w.dilation_w,
                                 groups);
  }
  const Pool threads = pool();
  const Tensor g = in_own_layout(grad_out);
  if (torch_wins(s, ConvProduct::grad_x, g.scalar_type())) return promised(torch_backward(g, StandIn(g, s).tensor(), weight, window, 0), cl);
  const Tensor out = new_image(grad_out, s.N, s.C, s.H, s.W, cl);
  const Tensor w = in_layout(weight, s.weight_channels_last);
  if (fp64) {
    grouped_conv2d_grad_x(s, data<double>(g), data<double>(w), static_cast<double*>(out.mutable_data_ptr()), threads);
    return out;
  }
  if (g.scalar_type() == ScalarType::BFloat16 && grouped_conv2d_grad_x_on_tiles(s)) {
    grouped_conv2d_tiles_grad_x(s, data<uint16_t>(g), data<uint16_t>(w), static_cast<uint16_t*>(out.mutable_data_ptr()), threads);
    return out;
  }
  const FloatInput gf(g, g.numel(), threads), wf(w, w.numel(), threads);
  const FloatOutput gx(out, threads);
  grouped_conv2d_grad_x(s, gf.data(), wf.data(), gx.data(), threads);
  gx.finish();
  return out;
}

Tensor grouped_conv2d_grad_weight(const Tensor& grad_out, const Tensor& x, int64_t kernel_h, int64_t kernel_w, int64_t stride_h, int64_t stride_w,
                                  int64_t pad_h, int64_t pad_w, int64_t dilation_h, int64_t dilation_w, int64_t groups) {
  const Window window{stride_h, stride_w, pad_h, pad_w, dilation_h, dilation_w, groups};
  check_image(x, "grouped_conv2d: x");
  check_image(grad_out, "grouped_conv2d: grad_out");
  STD_TORCH_CHECK(grad_out.scalar_type() == x.scalar_type() && grad_out.size(0) == x.size(0), "grouped_conv2d: grad_out");
  const bool cl = channels_last(x);
  const Conv2dShape s = shape_of(x.size(0), x.size(1), x.size(2), x.size(3), grad_out.size(1), kernel_h, kernel_w, window, cl, false);
  STD_TORCH_CHECK(grad_out.size(2) == s.OH && grad_out.size(3) == s.OW, "grouped_conv2d: grad_out");
  if (const DeadTaps dead(s); dead) {
    const Window w = left_by(dead, window);
    const Tensor live = grouped_conv2d_grad_weight(grad_out, x, dead.height(kernel_h), dead.width(kernel_w), w.stride_h, w.stride_w, w.pad_h, w.pad_w,
                                                   w.dilation_h, w.dilation_w, groups);
    return uncropped(live, kernel_h, kernel_w, dead);
  }
  const Pool threads = pool();
  const Tensor out = new_image(x, s.K, s.C / groups, kernel_h, kernel_w, false);
  const Tensor xs = in_layout(x, cl), g = in_layout(grad_out, cl);
  if (torch_wins(s, ConvProduct::grad_weight, x.scalar_type())) {
    // only the sizes of `out` matter, but torch's gradient comes in its layout
    const Tensor like = cl && s.C / groups > 1 && kernel_h * kernel_w > 1 ? new_image(x, s.K, s.C / groups, kernel_h, kernel_w, true) : out;
    const Tensor grad = torch_backward(g, xs, like, window, 1);
    return channels_last(grad) && !grad.is_contiguous() ? contiguous_weight(grad) : promised(grad, false);
  }
  if (x.scalar_type() == ScalarType::Double) {
    grouped_conv2d_grad_weight(s, data<double>(g), data<double>(xs), static_cast<double*>(out.mutable_data_ptr()), threads);
    return out;
  }
  if (x.scalar_type() == ScalarType::BFloat16 && grouped_conv2d_on_tiles(s)) {
    grouped_conv2d_tiles_grad_weight(s, data<uint16_t>(g), data<uint16_t>(xs), static_cast<uint16_t*>(out.mutable_data_ptr()), threads);
    return out;
  }
  const FloatInput gf(g, g.numel(), threads), xf(xs, xs.numel(), threads);
  const FloatOutput gw(out, threads);
  grouped_conv2d_grad_weight(s, gf.data(), xf.data(), gw.data(), threads);
  gw.finish();
  return out;
}

Tensor pack_grouped_conv2d(const Tensor& weight, int64_t N, int64_t H, int64_t W, int64_t stride_h, int64_t stride_w, int64_t pad_h, int64_t pad_w,
                           int64_t dilation_h, int64_t dilation_w, int64_t groups) {
  const Window window{stride_h, stride_w, pad_h, pad_w, dilation_h, dilation_w, groups};
  const bool bf16 = weight.scalar_type() == ScalarType::BFloat16;
  STD_TORCH_CHECK(weight.is_cpu() && (bf16 || weight.scalar_type() == ScalarType::Float) && weight.dim() == 4, "grouped_conv2d_packed: weight");
  const bool cl = channels_last(weight);
  const Conv2dShape s = shape_of(N, weight.size(1) * groups, H, W, weight.size(0), weight.size(2), weight.size(3), window, true, cl);
  const Tensor w = in_layout(weight, cl);
  std::vector<int32_t> pack;
  const bool torch_serves = torch_wins(s, ConvProduct::forward, weight.scalar_type());
  if (bf16 && grouped_conv2d_on_tiles(s) && !torch_serves)
    grouped_conv2d_tiles_pack(s, data<uint16_t>(w), pack);
  else
    grouped_conv2d_pack(s, FloatInput(w, w.numel(), pool()).data(), torch_serves, pack);
  const int64_t size = int64_t(pack.size()), step = 1;
  Tensor out = empty_strided(weight, ScalarType::Int, &size, &step, 1);
  std::memcpy(out.mutable_data_ptr(), pack.data(), pack.size() * sizeof(int32_t));
  return out;
}

Tensor grouped_conv2d_packed(const Tensor& x, const Tensor& packed, const std::optional<Tensor>& bias, const std::optional<Tensor>& shortcut,
                             int64_t out_channels, int64_t kernel_h, int64_t kernel_w, int64_t stride_h, int64_t stride_w, int64_t pad_h,
                             int64_t pad_w, int64_t dilation_h, int64_t dilation_w, int64_t groups, bool relu) {
  check_image(x, "grouped_conv2d_packed: x");
  STD_TORCH_CHECK(x.scalar_type() != ScalarType::Double, "grouped_conv2d_packed: x");
  STD_TORCH_CHECK(packed.is_cpu() && packed.scalar_type() == ScalarType::Int && packed.dim() == 1 && packed.is_contiguous(),
                  "grouped_conv2d_packed: packed");
  const int32_t* pack = data<int32_t>(packed);
  Conv2dShape held;
  STD_TORCH_CHECK(grouped_conv2d_pack_shape(pack, packed.size(0), &held), "grouped_conv2d_packed: packed");
  STD_TORCH_CHECK(held.K == out_channels && held.KH == kernel_h && held.KW == kernel_w && held.groups == groups, "grouped_conv2d_packed: packed");
  STD_TORCH_CHECK(x.size(1) == held.C, "grouped_conv2d_packed: x");
  const Window window{stride_h, stride_w, pad_h, pad_w, dilation_h, dilation_w, groups};
  const bool cl = channels_last(x);
  const Conv2dShape s = shape_of(x.size(0), held.C, x.size(2), x.size(3), held.K, held.KH, held.KW, window, cl, false);
  STD_TORCH_CHECK(fits_bias(bias, x, s.K), "grouped_conv2d_packed: bias");
  STD_TORCH_CHECK(fits_shortcut(shortcut, x, s), "grouped_conv2d_packed: shortcut");
  const Pool threads = pool();
  if (cl && dense_policy() != Dense::always) {
    const Tensor out = new_image(x, s.N, s.K, s.OH, s.OW, cl);
    const std::optional<Tensor> b = as_contiguous(bias);
    const std::optional<Tensor> added = shortcut ? std::optional<Tensor>(in_layout(*shortcut, cl)) : std::nullopt;
    if (x.scalar_type() == ScalarType::BFloat16 &&
        grouped_conv2d_tiles_packed_fwd(s, data<uint16_t>(x), pack, b ? data<uint16_t>(*b) : nullptr, added ? data<uint16_t>(*added) : nullptr, relu,
                                        static_cast<uint16_t*>(out.mutable_data_ptr()), threads))
      return out;
    if (grouped_conv2d_pack_has_blocks(pack)) {  // else nothing is converted in vain
      const FloatInput xf(x, x.numel(), threads), bf(b, threads), af(added, threads);
      const FloatOutput y(out, threads);
      if (grouped_conv2d_packed_fwd(s, xf.data(), pack, bf.data(), af.data(), relu, y.data(), threads)) {
        y.finish();
        return out;
      }
    }
  }
  const std::array<int64_t, 4> sizes{s.K, s.C / groups, s.KH, s.KW};
  const std::array<int64_t, 4> strides{s.C / groups * s.KH * s.KW, s.KH * s.KW, s.KW, 1};
  const float* kept = x.scalar_type() == ScalarType::Float ? grouped_conv2d_pack_natural(pack) : nullptr;
  const Tensor weight = kept ? view_of(kept, x, sizes.data(), strides.data()) : empty_strided(x, x.scalar_type(), sizes.data(), strides.data(), 4);
  if (!kept) {
    const FloatOutput natural(weight, threads);
    grouped_conv2d_unpack(pack, natural.data());
    natural.finish();
  }
  return grouped_conv2d(x, weight, bias, shortcut, stride_h, stride_w, pad_h, pad_w, dilation_h, dilation_w, groups, relu);
}

// Why a product would be served as it is: the reason's bytes behind a 1 (our kernel) or a 0 (torch's convolution).
Tensor choose_grouped_conv2d(const Tensor& like, int64_t N, int64_t C, int64_t H, int64_t W, int64_t K, int64_t kernel_h, int64_t kernel_w,
                             int64_t stride_h, int64_t stride_w, int64_t pad_h, int64_t pad_w, int64_t dilation_h, int64_t dilation_w, int64_t groups,
                             bool channels_last, int64_t product, int64_t type) {
  const Window window{stride_h, stride_w, pad_h, pad_w, dilation_h, dilation_w, groups};
  Conv2dShape s = shape_of(N, C, H, W, K, kernel_h, kernel_w, window, channels_last, false);
  if (const DeadTaps dead(s); dead)
    s = shape_of(N, C, H, W, K, dead.height(kernel_h), dead.width(kernel_w), left_by(dead, window), channels_last, false);
  const ConvChoice choice = choice_of(s, ConvProduct(product), ConvType(type));
  const size_t length = std::strlen(choice.reason);
  const Tensor out = new_tensor(like, std::array<int64_t, 1>{int64_t(length) + 1});
  double* o = static_cast<double*>(out.mutable_data_ptr());
  o[0] = choice.ours;
  for (size_t i = 0; i < length; ++i) o[i + 1] = choice.reason[i];
  return out;
}

}  // namespace sk::glue

STABLE_TORCH_LIBRARY_IMPL(sparsekern, CPU, m) {
  m.impl("_grouped_conv2d", SK_BOX(&sk::glue::grouped_conv2d));
  m.impl("grouped_conv2d", SK_BOX(&sk::glue::grouped_conv2d));
  m.impl("_grouped_conv2d_grad_x", SK_BOX(&sk::glue::grouped_conv2d_grad_x));
  m.impl("grouped_conv2d_grad_x", SK_BOX(&sk::glue::grouped_conv2d_grad_x));
  m.impl("_grouped_conv2d_grad_weight", SK_BOX(&sk::glue::grouped_conv2d_grad_weight));
  m.impl("grouped_conv2d_grad_weight", SK_BOX(&sk::glue::grouped_conv2d_grad_weight));
  m.impl("grouped_conv2d_packed", SK_BOX(&sk::glue::grouped_conv2d_packed));
  m.impl("pack_grouped_conv2d", SK_BOX(&sk::glue::pack_grouped_conv2d));
  m.impl("choose_grouped_conv2d", SK_BOX(&sk::glue::choose_grouped_conv2d));
}
