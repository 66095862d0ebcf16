// root_conv2d on the CPU: check, allocate, hand over to core/root_conv2d.cpp; where torch serves a stage better, or for other
// types and layouts, one convolution after the other.
#include "core/root_conv2d.h"
#include "torch/glue.h"
#include "torch/grouped_conv2d.h"
#include "torch/image.h"

namespace sk::glue {
namespace {

using Maybe = std::optional<Tensor>;

struct Stage {
  const Tensor& weight;  // natural, or a pack
  const Maybe& bias;
};

Conv2dShape first_shape(const Tensor& x, int64_t K, int64_t KH, int64_t KW, const Window& w) {
  return shape_of(x.size(0), x.size(1), x.size(2), x.size(3), K, KH, KW, w, true, false);
}
Conv2dShape next_shape(const Conv2dShape& before, int64_t K, int64_t channels) {  // 1x1
  STD_TORCH_CHECK(channels > 0 && before.K % channels == 0 && K > 0 && K % (before.K / channels) == 0, "root_conv2d: weight");
  Conv2dShape s{};
  s.N = before.N, s.C = before.K, s.H = s.OH = before.OH, s.W = s.OW = before.OW, s.K = K, s.KH = s.KW = 1;
  s.stride_h = s.stride_w = s.dilation_h = s.dilation_w = 1;
  s.groups = before.K / channels;
  s.channels_last = true;
  return s;
}

void check_ends(const Tensor& x, const RootStage* stages, const Stage* given, int count, const Maybe& shortcut) {
  for (int i = 0; i < count; ++i) {
    const Maybe& b = given[i].bias;
    const bool fits = !b || (b->is_cpu() && b->scalar_type() == x.scalar_type() && b->dim() == 1 && b->size(0) == stages[i].shape.K);
    STD_TORCH_CHECK(fits, "root_conv2d: bias");
  }
  const Conv2dShape& s = stages[count - 1].shape;
  const bool fits = !shortcut || (shortcut->is_cpu() && shortcut->scalar_type() == x.scalar_type() && shortcut->dim() == 4 &&
                                  shortcut->size(0) == s.N && shortcut->size(1) == s.K && shortcut->size(2) == s.OH && shortcut->size(3) == s.OW);
  STD_TORCH_CHECK(fits, "root_conv2d: shortcut");
}

const float* floats(const Tensor& t) { return static_cast<const float*>(t.const_data_ptr()); }

// All stages on our kernels, or nothing where one is for torch.
Maybe fused(const Tensor& x, RootStage* stages, const Stage* given, int count, const Maybe& shortcut) {
  if (x.scalar_type() != ScalarType::Float || !channels_last(x) || dense_policy() == Dense::always) return std::nullopt;
  for (int i = 0; i < count; ++i)
    if (!stages[i].pack && !grouped_conv2d_choice(stages[i].shape, ConvProduct::forward, ConvType::fp32).ours) return std::nullopt;
  std::array<Maybe, kRootStages> weights, biases;
  for (int i = 0; i < count; ++i) {
    if (!stages[i].pack) {
      const bool last = i == 0 && channels_last(given[i].weight);
      stages[i].shape.weight_channels_last = last;
      weights[i] = in_layout(given[i].weight, last);
      stages[i].weight = floats(*weights[i]);
    }
    if ((biases[i] = as_contiguous(given[i].bias))) stages[i].bias = floats(*biases[i]);
  }
  const Maybe added = shortcut ? Maybe(in_layout(*shortcut, true)) : std::nullopt;
  const Conv2dShape& s = stages[count - 1].shape;
  const Tensor out = new_image(x, s.N, s.K, s.OH, s.OW, true);
  const bool served =
      root_conv2d_fwd(stages, count, floats(x), added ? floats(*added) : nullptr, static_cast<float*>(out.mutable_data_ptr()), pool());
  return served ? Maybe(out) : std::nullopt;
}

}  // namespace

Tensor root_conv2d(const Tensor& x, const Tensor& weight1, const Maybe& bias1, const Tensor& weight2, const Maybe& bias2, const Maybe& weight3,
                   const Maybe& bias3, const Maybe& shortcut, int64_t stride_h, int64_t stride_w, int64_t pad_h, int64_t pad_w, int64_t dilation_h,
                   int64_t dilation_w, int64_t groups, bool relu, bool last_relu) {
  check_image(x, "root_conv2d: x");
  const int count = weight3 ? 3 : 2;
  const Stage given[] = {{weight1, bias1}, {weight2, bias2}, {weight3 ? *weight3 : weight2, bias3}};
  RootStage stages[kRootStages]{};
  for (int i = 0; i < count; ++i) {
    const Tensor& w = given[i].weight;
    const bool fits = w.is_cpu() && w.scalar_type() == x.scalar_type() && w.dim() == 4 && (i == 0 || (w.size(2) == 1 && w.size(3) == 1));
    STD_TORCH_CHECK(fits, "root_conv2d: weight");
    stages[i].relu = i == count - 1 ? last_relu : relu;
  }
  const Window window{stride_h, stride_w, pad_h, pad_w, dilation_h, dilation_w, groups};
  stages[0].shape = first_shape(x, weight1.size(0), weight1.size(2), weight1.size(3), window);
  STD_TORCH_CHECK(x.size(1) == weight1.size(1) * groups, "root_conv2d: x");
  for (int i = 1; i < count; ++i) stages[i].shape = next_shape(stages[i - 1].shape, given[i].weight.size(0), given[i].weight.size(1));
  check_ends(x, stages, given, count, shortcut);
  if (const Maybe out = fused(x, stages, given, count, shortcut)) return *out;
  Tensor y = grouped_conv2d(x, weight1, bias1, std::nullopt, stride_h, stride_w, pad_h, pad_w, dilation_h, dilation_w, groups, relu);
  for (int i = 1; i < count; ++i)
    y = grouped_conv2d(y, given[i].weight, given[i].bias, i == count - 1 ? shortcut : std::nullopt, 1, 1, 0, 0, 1, 1, stages[i].shape.groups,
                       stages[i].relu);
  return y;
}

Tensor root_conv2d_packed(const Tensor& x, const Tensor& packed1, const Maybe& bias1, const Tensor& packed2, const Maybe& bias2, const Maybe& packed3,
                          const Maybe& bias3, const Maybe& shortcut, int64_t out_channels, int64_t kernel_h, int64_t kernel_w, int64_t stride_h,
                          int64_t stride_w, int64_t pad_h, int64_t pad_w, int64_t dilation_h, int64_t dilation_w, int64_t groups, bool relu,
                          bool last_relu) {
  check_image(x, "root_conv2d: x");
  STD_TORCH_CHECK(x.scalar_type() != ScalarType::Double, "root_conv2d: x");
  const int count = packed3 ? 3 : 2;
  const Stage given[] = {{packed1, bias1}, {packed2, bias2}, {packed3 ? *packed3 : packed2, bias3}};
  const Window window{stride_h, stride_w, pad_h, pad_w, dilation_h, dilation_w, groups};
  RootStage stages[kRootStages]{};
  for (int i = 0; i < count; ++i) {
    const Tensor& p = given[i].weight;
    STD_TORCH_CHECK(p.is_cpu() && p.scalar_type() == ScalarType::Int && p.dim() == 1 && p.is_contiguous(), "root_conv2d: packed");
    stages[i].pack = static_cast<const int32_t*>(p.const_data_ptr());
    Conv2dShape held;
    STD_TORCH_CHECK(grouped_conv2d_pack_shape(stages[i].pack, p.size(0), &held), "root_conv2d: packed");
    if (i == 0) {
      STD_TORCH_CHECK(held.KH == kernel_h && held.KW == kernel_w && held.groups == groups, "root_conv2d: packed");
      STD_TORCH_CHECK(x.size(1) == held.C, "root_conv2d: x");
      stages[i].shape = first_shape(x, held.K, held.KH, held.KW, window);
    } else {
      STD_TORCH_CHECK(held.KH == 1 && held.KW == 1 && held.C == stages[i - 1].shape.K, "root_conv2d: packed");
      stages[i].shape = next_shape(stages[i - 1].shape, held.K, held.C / held.groups);
    }
    stages[i].relu = i == count - 1 ? last_relu : relu;
  }
  STD_TORCH_CHECK(stages[count - 1].shape.K == out_channels, "root_conv2d: packed");
  check_ends(x, stages, given, count, shortcut);
  if (const Maybe out = fused(x, stages, given, count, shortcut)) return *out;
  Tensor y = x;
  for (int i = 0; i < count; ++i) {
    const Conv2dShape& s = stages[i].shape;
    y = grouped_conv2d_packed(y, given[i].weight, given[i].bias, i == count - 1 ? shortcut : std::nullopt, s.K, s.KH, s.KW, s.stride_h, s.stride_w,
                              s.pad_h, s.pad_w, s.dilation_h, s.dilation_w, s.groups, stages[i].relu);
  }
  return y;
}

}  // namespace sk::glue

STABLE_TORCH_LIBRARY_IMPL(sparsekern, CPU, m) {
  m.impl("root_conv2d", SK_BOX(&sk::glue::root_conv2d));
  m.impl("root_conv2d_packed", SK_BOX(&sk::glue::root_conv2d_packed));
}
