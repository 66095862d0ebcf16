// sequence2d on the CPU: check, allocate, hand over to core/sequence2d.cpp; for other types than float32, and where torch serves a
// layer better, one layer after the other.
#include <vector>

#include "core/sequence2d.h"
#include "torch/glue.h"
#include "torch/grouped_conv2d.h"
#include "torch/image.h"

namespace sk::glue {

using Maybe = std::optional<Tensor>;

// the layers themselves
Tensor sparse_conv2d(const Tensor& x, const Tensor& weight, const Maybe& bias, const Tensor& indptr, const Tensor& index, const Maybe& plan,
                     int64_t KH, int64_t KW, int64_t stride_h, int64_t stride_w, int64_t pad_h, int64_t pad_w, int64_t dilation_h,
                     int64_t dilation_w);
Tensor pool2d(const Tensor& x, int64_t kernel_h, int64_t kernel_w, int64_t stride_h, int64_t stride_w, int64_t pad_h, int64_t pad_w, bool ceil_mode,
              int64_t pooling);

namespace {

using Kind = SequenceStage::Kind;

// A stage as the op's numbers say it, see sequence2d.py.
struct Said {
  int64_t kind, flag, option, with_next, KH, KW, stride_h, stride_w, pad_h, pad_w, dilation_h, dilation_w, groups, K;
};
constexpr int64_t kNumbers = sizeof(Said) / sizeof(int64_t);
constexpr int64_t kTensors[] = {1, 4, 0};  // of a kind: pack; weight, indptr, index, plan; none. A bias comes last.

struct Layer {
  Said said;
  Tensor x;  // read for its type and device
  Tensor first, indptr, index, plan;
  Maybe bias;
};

const int32_t* words(const Tensor& t) { return static_cast<const int32_t*>(t.const_data_ptr()); }
const float* floats(const Tensor& t) { return static_cast<const float*>(t.const_data_ptr()); }

bool is_table(const Tensor& t) { return t.is_cpu() && t.scalar_type() == ScalarType::Int && t.dim() == 1 && t.is_contiguous(); }

int64_t pooled(int64_t size, int64_t kernel, int64_t stride, int64_t pad, bool ceil_mode) {
  const int64_t out = (size + 2 * pad - kernel + (ceil_mode ? stride - 1 : 0)) / stride + 1;
  return ceil_mode && (out - 1) * stride >= size + pad ? out - 1 : out;
}

void check_bias(const Layer& layer, int64_t K) {
  const Maybe& b = layer.bias;
  const bool fits = !b || (b->is_cpu() && b->scalar_type() == layer.x.scalar_type() && b->dim() == 1 && b->size(0) == K);
  STD_TORCH_CHECK(fits && K == layer.said.K, "sequence2d: bias");
}

// The stage on images of `size` (N, C, H, W), which becomes that of its results.
SequenceStage stage_of(Layer& layer, std::array<int64_t, 4>& size) {
  const Said& s = layer.said;
  auto& [N, C, H, W] = size;
  SequenceStage stage{};
  stage.kind = Kind(s.kind);
  if (stage.kind == Kind::pool) {
    const int64_t KH = s.KH ? s.KH : H, KW = s.KW ? s.KW : W;
    STD_TORCH_CHECK(s.flag >= 0 && s.flag <= 2 && within(1, {KH, KW, s.stride_h, s.stride_w}) && within(0, {s.pad_h, s.pad_w}),
                    "sequence2d: pooling");
    const bool fits = 2 * s.pad_h <= KH && 2 * s.pad_w <= KW && H + 2 * s.pad_h >= KH && W + 2 * s.pad_w >= KW;
    STD_TORCH_CHECK(fits && C > 0 && H > 0 && W > 0, "sequence2d: pooling");
    const int64_t OH = pooled(H, KH, s.stride_h, s.pad_h, s.option), OW = pooled(W, KW, s.stride_w, s.pad_w, s.option);
    stage.pooled = {N, C, H, W, KH, KW, s.stride_h, s.stride_w, s.pad_h, s.pad_w, OH, OW};
    stage.pooling = Pooling(s.flag);
    H = OH, W = OW;
  } else if (stage.kind == Kind::packed_conv) {
    STD_TORCH_CHECK(is_table(layer.first), "sequence2d: packed");
    Conv2dShape held;
    STD_TORCH_CHECK(grouped_conv2d_pack_shape(words(layer.first), layer.first.size(0), &held), "sequence2d: packed");
    STD_TORCH_CHECK(held.C == C && held.KH == s.KH && held.KW == s.KW && held.groups == s.groups, "sequence2d: packed");
    const Window window{s.stride_h, s.stride_w, s.pad_h, s.pad_w, s.dilation_h, s.dilation_w, s.groups};
    stage.conv = shape_of(N, C, H, W, held.K, s.KH, s.KW, window, true, false);
    check_bias(layer, held.K);
    stage.pack = words(layer.first);
    C = held.K, H = stage.conv.OH, W = stage.conv.OW;
  } else {
    const Tensor& w = layer.first;
    STD_TORCH_CHECK(w.is_cpu() && w.scalar_type() == layer.x.scalar_type() && w.dim() == 4, "sequence2d: weight");
    STD_TORCH_CHECK(is_table(layer.indptr) && layer.indptr.size(0) > 1 && is_table(layer.index) && layer.index.size(0) == w.size(0),
                    "sequence2d: index");
    const int64_t BO = w.size(1), BI = w.size(2), BT = w.size(3);
    STD_TORCH_CHECK(within(1, {s.KH, s.KW, s.stride_h, s.stride_w, s.dilation_h, s.dilation_w}) && within(0, {s.pad_h, s.pad_w}),
                    "sequence2d: window");
    STD_TORCH_CHECK(BO > 0 && BI > 0 && (BT == 1 || BT == s.KH * s.KW) && C > 0 && C % BI == 0, "sequence2d: weight");
    STD_TORCH_CHECK(H + 2 * s.pad_h > s.dilation_h * (s.KH - 1) && W + 2 * s.pad_w > s.dilation_w * (s.KW - 1), "sequence2d: x");
    stage.sparse = {
        N,  C,  H,         W,   (layer.indptr.size(0) - 1) * BO, s.KH, s.KW, s.stride_h, s.stride_w, s.pad_h, s.pad_w, s.dilation_h, s.dilation_w, BO,
        BI, BT, w.size(0), true};
    check_bias(layer, stage.sparse.K);
    STD_TORCH_CHECK(is_table(layer.plan) && sparse_conv2d_plan_matches(stage.sparse, words(layer.plan), layer.plan.size(0)), "sequence2d: plan");
    stage.plan = words(layer.plan);
    STD_TORCH_CHECK(sparse_conv2d_plan_is_of(stage.sparse, stage.plan, words(layer.indptr), words(layer.index)), "sequence2d: plan");
    C = stage.sparse.K, H = stage.sparse.OH(), W = stage.sparse.OW();
  }
  if (stage.kind != Kind::pool) {
    stage.relu = s.flag;
    stage.with_next = s.with_next;
  }
  STD_TORCH_CHECK(H > 0 && W > 0, "sequence2d: x");
  stage.out_floats = C * H * W;
  return stage;
}

// Stages that go band by band are packed, and all but the first 1x1.
void check_together(const std::vector<SequenceStage>& stages) {
  int together = 1;
  for (size_t i = 0; i < stages.size(); ++i) {
    const Conv2dShape& c = stages[i].conv;
    const bool behind = i > 0 && stages[i - 1].with_next;
    together = behind ? together + 1 : 1;
    const bool plain = c.KH == 1 && c.KW == 1 && c.stride_h == 1 && c.stride_w == 1 && c.pad_h == 0 && c.pad_w == 0;
    const bool fits = !behind || (stages[i].kind == Kind::packed_conv && plain && together <= kRootStages);
    STD_TORCH_CHECK(fits && (!stages[i].with_next || (stages[i].kind == Kind::packed_conv && i + 1 < stages.size())), "sequence2d: with_next");
  }
}

Tensor one_by_one(Tensor y, const std::vector<Layer>& layers) {
  for (const Layer& layer : layers) {
    const Said& s = layer.said;
    if (Kind(s.kind) == Kind::packed_conv) {
      y = grouped_conv2d_packed(y, layer.first, layer.bias, std::nullopt, s.K, s.KH, s.KW, s.stride_h, s.stride_w, s.pad_h, s.pad_w, s.dilation_h,
                                s.dilation_w, s.groups, s.flag);
    } else if (Kind(s.kind) == Kind::sparse_conv) {
      y = sparse_conv2d(y, layer.first, layer.bias, layer.indptr, layer.index, layer.plan, s.KH, s.KW, s.stride_h, s.stride_w, s.pad_h, s.pad_w,
                        s.dilation_h, s.dilation_w);
      if (s.flag) y = call<1>("aten::relu", "", y);
    } else {
      y = pool2d(y, s.KH ? s.KH : y.size(2), s.KW ? s.KW : y.size(3), s.stride_h, s.stride_w, s.pad_h, s.pad_w, s.option, s.flag);
    }
  }
  return y;
}

bool torch_serves(const SequenceStage& stage) {
  return stage.kind == Kind::sparse_conv && sparse_conv2d_choice(stage.sparse, SparseConv2dProduct::out, false).kernel == SparseConv2dKernel::dense;
}

}  // namespace

Tensor sequence2d(const Tensor& x, const std::vector<Tensor>& tensors, const std::vector<int64_t>& numbers, int64_t images) {
  check_image(x, "sequence2d: x");
  STD_TORCH_CHECK(x.scalar_type() != ScalarType::Double, "sequence2d: x");
  const size_t count = numbers.size() / kNumbers;
  STD_TORCH_CHECK(count > 0 && numbers.size() == count * kNumbers && images >= 0, "sequence2d: numbers");
  std::vector<Layer> layers;
  layers.reserve(count);
  size_t next = 0;
  for (size_t i = 0; i < count; ++i) {
    Said s;
    std::memcpy(&s, &numbers[i * kNumbers], sizeof(s));
    STD_TORCH_CHECK(s.kind >= 0 && s.kind <= 2, "sequence2d: numbers");
    const size_t own = kTensors[s.kind], all = own + (s.kind != int64_t(Kind::pool) && s.option);
    STD_TORCH_CHECK(next + all <= tensors.size(), "sequence2d: tensors");
    const Tensor* t = tensors.data() + next;
    const auto at = [&](size_t k) { return k < own ? t[k] : x; };
    layers.push_back({s, x, at(0), at(1), at(2), at(3), all > own ? Maybe(as_contiguous(t[own])) : std::nullopt});
    next += all;
  }
  STD_TORCH_CHECK(next == tensors.size(), "sequence2d: tensors");
  std::array<int64_t, 4> size{x.size(0), x.size(1), x.size(2), x.size(3)};
  std::vector<SequenceStage> stages;
  stages.reserve(count);
  for (Layer& layer : layers) stages.push_back(stage_of(layer, size));
  check_together(stages);

  const bool cl = channels_last(x), ours = x.scalar_type() == ScalarType::Float && dense_policy() != Dense::always;
  if (!ours || std::any_of(stages.begin(), stages.end(), torch_serves)) return one_by_one(x, layers);
  const bool planes = !cl && sequence2d_reads_planes(stages.data(), int(count));
  const Tensor xs = in_layout(x, !planes), out = new_image(x, size[0], size[1], size[2], size[3], true);
  std::vector<Tensor> weights;  // contiguous ones live as long as the call
  weights.reserve(count);
  for (size_t i = 0; i < count; ++i) {
    if (layers[i].bias) stages[i].bias = floats(*layers[i].bias);
    if (stages[i].kind == Kind::sparse_conv) stages[i].weight = floats(weights.emplace_back(as_contiguous(layers[i].first)));
  }
  const int64_t together = images ? images : std::max<int64_t>(1, size[0]);
  float* const to = static_cast<float*>(out.mutable_data_ptr());
  if (size[0] && !sequence2d_fwd(stages.data(), int(count), size[0], together, floats(xs), planes, to, pool())) return one_by_one(x, layers);
  return in_layout(out, cl);
}

}  // namespace sk::glue

STABLE_TORCH_LIBRARY_IMPL(sparsekern, CPU, m) { m.impl("sequence2d", SK_BOX(&sk::glue::sequence2d)); }
