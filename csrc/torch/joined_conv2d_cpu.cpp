// joined_conv2d_packed on the CPU: each convolution writes its channels of the one result.
#include <vector>

#include "core/grouped_conv2d.h"
#include "torch/glue.h"
#include "torch/grouped_conv2d.h"
#include "torch/image.h"

namespace sk::glue {
namespace {

constexpr int64_t kNumbers = 9;  // of a window: kernel, stride, padding, dilation, each (rows, columns); groups

const int32_t* words(const Tensor& t) { return static_cast<const int32_t*>(t.const_data_ptr()); }
const float* floats(const Tensor& t) { return static_cast<const float*>(t.const_data_ptr()); }

Conv2dShape shape_of(const Tensor& x, const Tensor& packed, const Tensor& bias, const int64_t* w) {
  STD_TORCH_CHECK(x.is_cpu() && floating(x.scalar_type()) && x.scalar_type() != ScalarType::Double && x.dim() == 4, "joined_conv2d: xs");
  STD_TORCH_CHECK(packed.is_cpu() && packed.scalar_type() == ScalarType::Int && packed.dim() == 1 && packed.is_contiguous(), "joined_conv2d: packed");
  Conv2dShape s;
  STD_TORCH_CHECK(grouped_conv2d_pack_shape(words(packed), packed.size(0), &s), "joined_conv2d: packed");
  STD_TORCH_CHECK(s.KH == w[0] && s.KW == w[1] && s.groups == w[8] && s.C == x.size(1), "joined_conv2d: packed");
  STD_TORCH_CHECK(within(1, {w[2], w[3], w[6], w[7]}) && within(0, {w[4], w[5]}), "joined_conv2d: windows");
  STD_TORCH_CHECK(bias.is_cpu() && bias.scalar_type() == x.scalar_type() && bias.dim() == 1 && bias.size(0) == s.K, "joined_conv2d: biases");
  s.N = x.size(0), s.H = x.size(2), s.W = x.size(3);
  s.stride_h = w[2], s.stride_w = w[3], s.pad_h = w[4], s.pad_w = w[5], s.dilation_h = w[6], s.dilation_w = w[7];
  const int64_t room_h = s.H + 2 * s.pad_h - s.dilation_h * (s.KH - 1) - 1, room_w = s.W + 2 * s.pad_w - s.dilation_w * (s.KW - 1) - 1;
  STD_TORCH_CHECK(room_h >= 0 && room_w >= 0, "joined_conv2d: xs");
  s.OH = room_h / s.stride_h + 1, s.OW = room_w / s.stride_w + 1;
  s.stride_h = useful_stride(s.stride_h, s.H, s.pad_h), s.stride_w = useful_stride(s.stride_w, s.W, s.pad_w);
  s.channels_last = true;
  return s;
}

}  // namespace

Tensor joined_conv2d_packed(const std::vector<Tensor>& xs, const std::vector<Tensor>& packed, const std::vector<Tensor>& biases,
                            const std::vector<int64_t>& windows, bool relu) {
  const size_t count = xs.size();
  STD_TORCH_CHECK(count > 0 && packed.size() == count && biases.size() == count && windows.size() == kNumbers * count, "joined_conv2d: xs");
  std::vector<Conv2dShape> shapes;
  int64_t channels = 0;
  for (size_t i = 0; i < count; ++i) {
    shapes.push_back(shape_of(xs[i], packed[i], biases[i], &windows[kNumbers * i]));
    const Conv2dShape &a = shapes[0], &b = shapes[i];
    const bool same = xs[i].scalar_type() == xs[0].scalar_type() && a.N == b.N && a.OH == b.OH && a.OW == b.OW;
    STD_TORCH_CHECK(same, "joined_conv2d: xs");
    channels += b.K;
  }
  const bool cl = channels_last(xs[0]);
  const Tensor out = new_image(xs[0], shapes[0].N, channels, shapes[0].OH, shapes[0].OW, cl);
  const Pool threads = pool();
  int64_t first = 0;
  for (size_t i = 0; i < count; first += shapes[i++].K) {
    Conv2dShape& s = shapes[i];
    s.out_pixel = channels;
    if (cl && channels_last(xs[i]) && xs[i].scalar_type() == ScalarType::Float && dense_policy() != Dense::always) {
      const Tensor bias = as_contiguous(biases[i]);
      float* to = static_cast<float*>(out.mutable_data_ptr()) + first;
      if (grouped_conv2d_packed_fwd(s, floats(xs[i]), words(packed[i]), floats(bias), nullptr, relu, to, threads)) continue;
    }
    const Tensor y = grouped_conv2d_packed(xs[i], packed[i], biases[i], std::nullopt, s.K, s.KH, s.KW, s.stride_h, s.stride_w, s.pad_h, s.pad_w,
                                           s.dilation_h, s.dilation_w, s.groups, relu);
    Tensor held = out;
    Tensor part = torch::stable::narrow(held, 1, first, s.K);
    torch::stable::copy_(part, y);
  }
  return out;
}

}  // namespace sk::glue

STABLE_TORCH_LIBRARY_IMPL(sparsekern, CPU, m) { m.impl("joined_conv2d_packed", SK_BOX(&sk::glue::joined_conv2d_packed)); }
