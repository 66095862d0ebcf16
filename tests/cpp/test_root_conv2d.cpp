// root_conv2d against the convolutions one after the other, in double: bands of rows, several images, packs, any thread pool, memory
// that ends at an unreadable page. On the instruction set that SPARSEKERN_ISA names.
#include <vector>

#include "check.h"
#include "core/root_conv2d.h"

namespace {

struct Case {
  int64_t N, C, H, W, K1, K2, K3, KH, KW, stride, pad, dilation, groups;
  bool shortcut, relu, last_relu;
};
int bands_seen = 0, images_seen = 0;

bool test(const Case& c) {
  const int count = c.K3 ? 3 : 2;
  sk::RootStage stages[3]{};
  sk::Conv2dShape& first = stages[0].shape;
  first = {c.N, c.C, c.H, c.W, c.K1, c.KH, c.KW, c.stride, c.stride, c.pad, c.pad, c.dilation, c.dilation, c.groups, 0, 0, true};
  first.OH = (c.H + 2 * c.pad - c.dilation * (c.KH - 1) - 1) / c.stride + 1,
  first.OW = (c.W + 2 * c.pad - c.dilation * (c.KW - 1) - 1) / c.stride + 1;
  const int64_t K[] = {c.K1, c.K2, c.K3};
  for (int i = 1; i < count; ++i) {
    const sk::Conv2dShape& f = first;
    stages[i].shape = {c.N, K[i - 1], f.OH, f.OW, K[i], 1, 1, 1, 1, 0, 0, 1, 1, 1, f.OH, f.OW, true};
  }
  check::Guarded<float> x(size_t(c.N * c.H * c.W * c.C)), out(size_t(c.N * first.OH * first.OW * K[count - 1])), again(out.size()),
      shortcut(out.size());
  check::fill(x, 1), check::fill(shortcut, 2);
  std::vector<check::Guarded<float>*> weights, biases;
  std::vector<std::vector<int32_t>> packs(3);
  for (int i = 0; i < count; ++i) {
    const sk::Conv2dShape& s = stages[i].shape;
    weights.push_back(new check::Guarded<float>(size_t(s.K * (s.C / s.groups) * s.KH * s.KW)));
    biases.push_back(new check::Guarded<float>(size_t(s.K)));
    check::fill(*weights[i], unsigned(3 + i)), check::fill(*biases[i], unsigned(7 + i));
    stages[i].weight = weights[i]->data(), stages[i].bias = i == 1 ? nullptr : biases[i]->data();
    stages[i].relu = i == count - 1 ? c.last_relu : c.relu;
    sk::grouped_conv2d_pack(s, stages[i].weight, false, packs[i]);
  }
  // truth: value and the sum of absolute values, stage by stage
  std::vector<double> y(x.size()), size(x.size());
  for (size_t i = 0; i < x.size(); ++i) y[i] = x[i], size[i] = std::fabs(x[i]);
  double terms = 0;
  for (int i = 0; i < count; ++i) {
    const sk::Conv2dShape& s = stages[i].shape;
    const int64_t in = s.C / s.groups;
    std::vector<double> next(size_t(s.N * s.OH * s.OW * s.K)), next_size(next.size());
    for (size_t at = 0; at < next.size(); ++at) {
      const int64_t k = int64_t(at) % s.K, ox = int64_t(at) / s.K % s.OW, oy = int64_t(at) / s.K / s.OW % s.OH, n = int64_t(at) / s.K / s.OW / s.OH;
      double sum = stages[i].bias ? stages[i].bias[k] : 0, magnitude = std::fabs(sum);
      for (int64_t j = 0; j < in; ++j)
        for (int64_t ky = 0; ky < s.KH; ++ky)
          for (int64_t kx = 0; kx < s.KW; ++kx) {
            const int64_t v = oy * s.stride_h - s.pad_h + ky * s.dilation_h, u = ox * s.stride_w - s.pad_w + kx * s.dilation_w;
            if (v < 0 || v >= s.H || u < 0 || u >= s.W) continue;
            const size_t from = size_t(((n * s.H + v) * s.W + u) * s.C + k / (s.K / s.groups) * in + j);
            const double w = stages[i].weight[((k * in + j) * s.KH + ky) * s.KW + kx];
            sum += w * y[from], magnitude += std::fabs(w) * size[from];
          }
      if (i == count - 1 && c.shortcut) sum += shortcut[at], magnitude += std::fabs(shortcut[at]);
      next[at] = stages[i].relu && sum < 0 ? 0 : sum, next_size[at] = magnitude;
    }
    terms += double(in * s.KH * s.KW) + 3;
    y.swap(next), size.swap(next_size);
  }
  bool good = true;
  const float* added = c.shortcut ? shortcut.data() : nullptr;
  for (bool packed : {false, true}) {
    for (int i = 0; i < count; ++i) stages[i].pack = packed ? packs[i].data() : nullptr;
    const sk::RootChunk chunk = sk::root_conv2d_chunk(stages, count);
    bands_seen += chunk.bands > 1, images_seen += chunk.images > 1 && chunk.images < c.N;
    for (size_t i = 0; i < out.size(); ++i) out[i] = again[i] = -1e30f;
    if (!sk::root_conv2d_fwd(stages, count, x.data(), added, out.data(), sk::kSerial)) {
      good &= packed || (std::printf("FAIL: natural weights refused\n"), false);
      continue;
    }
    sk::root_conv2d_fwd(stages, count, x.data(), added, again.data(), check::odd_pool());
    if (out.size() && std::memcmp(out.data(), again.data(), out.size() * sizeof(float)))
      good = false, std::printf("FAIL: another pool, other bits\n");
    for (size_t i = 0; i < out.size() && good; ++i) good &= check::close(packed ? "packed" : "natural", out[i], y[i], terms, size[i]);
    if (!good) std::printf("  of %ld images %ldx%ldx%ld -> %ld, %ld, %ld\n", c.N, c.C, c.H, c.W, c.K1, c.K2, c.K3);
  }
  for (auto* w : weights) delete w;
  for (auto* b : biases) delete b;
  return good;
}

}  // namespace

int main() {
  if (!check::wanted_isa()) return 0;
  sk::set_dense_policy("never");
  bool good = true;
  const Case cases[] = {
      {1, 32, 61, 47, 64, 24, 0, 3, 3, 1, 1, 1, 4, false, true, true},   // bands of a map of odd size
      {2, 12, 50, 40, 48, 17, 20, 5, 5, 1, 2, 1, 4, true, true, false},  // two 1x1, widths that fill no vectors
      {9, 24, 16, 16, 48, 48, 33, 3, 3, 1, 1, 1, 8, false, true, true},  // several images together
      {1, 8, 90, 64, 40, 40, 0, 3, 3, 2, 1, 1, 2, true, true, true},     // strided
      {1, 8, 64, 70, 48, 16, 0, 3, 2, 1, 3, 2, 2, false, false, true},   // dilation, padding that is wider than needed
      {1, 4, 120, 30, 64, 8, 0, 1, 3, 1, 1, 1, 1, false, true, true},    // a row of zeros above and below
      {3, 7, 5, 5, 6, 5, 4, 3, 3, 1, 1, 1, 1, true, true, true},         // tiny
      {0, 8, 8, 8, 16, 8, 0, 3, 3, 1, 1, 1, 2, false, true, true},
  };
  for (const Case& c : cases) good &= test(c);
  if (!bands_seen || !images_seen) good = false, std::printf("FAIL: no case is cut into bands, or into images\n");
  std::printf("%s\n", good ? "ok" : "FAILED");
  return good ? 0 : 1;
}
