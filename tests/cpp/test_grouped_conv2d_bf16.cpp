// grouped_conv2d in bf16 on matrix tiles against naive double loops: every argument of a convolution; inputs and outputs end at an
// unreadable page, and pieces of any size change nothing.
#include "check.h"
#include "core/grouped_conv2d_bf16.h"

using namespace sk;
using check::Guarded, check::value;

namespace {

// A sum of `terms` products in fp32, of absolute sum `size`, rounded to bf16 once: half a unit in the last place.
bool close(uint16_t got, double want, double terms, double size) {
  const double sum = (terms + 2) * 5.9604644775390625e-8 * size, bound = sum + 0.00390625 * (std::fabs(want) + sum) + 1e-30;
  return std::fabs(value(got) - want) <= bound;
}

struct Sum {
  double value = 0, size = 0, terms = 0;
  void add(double p) { value += p, size += std::fabs(p), ++terms; }
};
struct Gradients {
  std::vector<Sum> x, weight;
};
Gradients gradients(const Conv2dShape& s, Guarded<uint16_t>& x, Guarded<uint16_t>& weight, Guarded<uint16_t>& grad_out) {
  const int64_t in_group = s.C / s.groups, out_group = s.K / s.groups;
  Gradients r{std::vector<Sum>(x.size()), std::vector<Sum>(weight.size())};
  for (int64_t n = 0, at = 0; n < s.N; ++n)
    for (int64_t oy = 0; oy < s.OH; ++oy)
      for (int64_t ox = 0; ox < s.OW; ++ox)
        for (int64_t k = 0; k < s.K; ++k, ++at)
          for (int64_t i = 0; i < in_group * s.KH * s.KW; ++i) {
            const int64_t j = i / (s.KH * s.KW), ky = i / s.KW % s.KH, kx = i % s.KW;
            const int64_t y = oy * s.stride_h + ky * s.dilation_h - s.pad_h, col = ox * s.stride_w + kx * s.dilation_w - s.pad_w;
            if (y < 0 || y >= s.H || col < 0 || col >= s.W) continue;
            const size_t from = size_t(((n * s.H + y) * s.W + col) * s.C + k / out_group * in_group + j);
            const size_t w = size_t(k * in_group * s.KH * s.KW + i);
            r.x[from].add(value(grad_out[size_t(at)]) * value(weight[w]));
            r.weight[w].add(value(grad_out[size_t(at)]) * value(x[from]));
          }
  return r;
}

int cases = 0, grad_cases = 0;

bool run(Conv2dShape s) {
  s.OH = (s.H + 2 * s.pad_h - s.dilation_h * (s.KH - 1) - 1) / s.stride_h + 1;
  s.OW = (s.W + 2 * s.pad_w - s.dilation_w * (s.KW - 1) - 1) / s.stride_w + 1;
  if (s.H + 2 * s.pad_h < s.dilation_h * (s.KH - 1) + 1 || s.W + 2 * s.pad_w < s.dilation_w * (s.KW - 1) + 1) return true;
  ++cases;
  if (!grouped_conv2d_on_tiles(s)) return std::printf("FAIL tiles do not serve\n"), false;
  const int64_t in_group = s.C / s.groups, out_group = s.K / s.groups, taps = s.KH * s.KW;
  Guarded<uint16_t> x(size_t(s.N * s.C * s.H * s.W)), weight(size_t(s.K * in_group * taps)), permuted(weight.size()), bias(static_cast<size_t>(s.K));
  Guarded<uint16_t> shortcut(size_t(s.N * s.K * s.OH * s.OW)), out(shortcut.size()), again(shortcut.size());
  fill(x, 1), fill(weight, 2), fill(bias, 3), fill(shortcut, 4);
  for (int64_t i = 0; i < int64_t(weight.size()); ++i)
    permuted[size_t(i / (in_group * taps) * in_group * taps + i % taps * in_group + i / taps % in_group)] = weight[size_t(i)];
  const bool relu = cases % 2, with_bias = cases % 3, with_shortcut = cases % 5 < 2;
  uint16_t *b = with_bias ? bias.data() : nullptr, *added = with_shortcut ? shortcut.data() : nullptr;
  Conv2dShape other = s;
  (cases % 7 < 3 ? other : s).weight_channels_last = true;
  const auto natural = [&](const Conv2dShape& of) { return of.weight_channels_last ? permuted.data() : weight.data(); };
  for (size_t i = 0; i < out.size(); ++i) out[i] = again[i] = 0x7fff;  // not a number
  grouped_conv2d_tiles_fwd(s, x.data(), natural(s), b, added, relu, out.data(), kSerial);
  grouped_conv2d_tiles_fwd(other, x.data(), natural(other), b, added, relu, again.data(), check::odd_pool());
  const auto failed = [&](const char* what, int64_t at) {
    std::printf("FAIL %s at %ld: N%ld C%ld %ldx%ld K%ld k%ldx%ld s%ld,%ld p%ld,%ld d%ld,%ld g%ld\n", what, long(at), long(s.N), long(s.C), long(s.H),
                long(s.W), long(s.K), long(s.KH), long(s.KW), long(s.stride_h), long(s.stride_w), long(s.pad_h), long(s.pad_w), long(s.dilation_h),
                long(s.dilation_w), long(s.groups));
    return false;
  };
  if (out.size() && std::memcmp(out.data(), again.data(), out.size() * 2)) return failed("pieces or the weight's layout change the result", 0);
  std::vector<int32_t> words;
  grouped_conv2d_tiles_pack(s, natural(s), words);
  Guarded<int32_t> pack(words.size());
  std::memcpy(pack.data(), words.data(), words.size() * 4);
  std::vector<float> kept(weight.size());
  Conv2dShape held;
  if (!grouped_conv2d_pack_shape(pack.data(), int64_t(pack.size()), &held) || held.K != s.K || held.C != s.C) return failed("a pack's sizes", 0);
  grouped_conv2d_unpack(pack.data(), kept.data());
  for (size_t i = 0; i < kept.size(); ++i)
    if (kept[i] != float(value(weight[i]))) return failed("a pack lost its weight", int64_t(i));
  if (!grouped_conv2d_tiles_packed_fwd(s, x.data(), pack.data(), b, added, relu, again.data(), kSerial)) return failed("a pack refused", 0);
  if (out.size() && std::memcmp(out.data(), again.data(), out.size() * 2)) return failed("packed", 0);
  Conv2dShape strided = s;
  strided.stride_w = s.stride_w + 1;
  if (grouped_conv2d_tiles_packed_fwd(strided, x.data(), pack.data(), b, added, relu, again.data(), kSerial))
    return failed("a pack of another stride", 0);
  for (int64_t n = 0, at = 0; n < s.N; ++n)
    for (int64_t oy = 0; oy < s.OH; ++oy)
      for (int64_t ox = 0; ox < s.OW; ++ox)
        for (int64_t k = 0; k < s.K; ++k, ++at) {
          double sum = b ? value(b[k]) : 0, size = std::fabs(sum), terms = 0;
          for (int64_t ky = 0; ky < s.KH; ++ky)
            for (int64_t kx = 0; kx < s.KW; ++kx) {
              const int64_t y = oy * s.stride_h + ky * s.dilation_h - s.pad_h, col = ox * s.stride_w + kx * s.dilation_w - s.pad_w;
              if (y < 0 || y >= s.H || col < 0 || col >= s.W) continue;
              for (int64_t j = 0; j < in_group; ++j) {
                const double p = value(x[size_t(((n * s.H + y) * s.W + col) * s.C + k / out_group * in_group + j)]) *
                                 value(weight[size_t((k * in_group + j) * taps + ky * s.KW + kx)]);
                sum += p, size += std::fabs(p), ++terms;
              }
            }
          if (added) sum += value(added[at]), size += std::fabs(value(added[at]));
          if (relu && sum < 0) sum = 0;
          if (!close(out[size_t(at)], sum, terms + 2, size)) return failed("value", at);
        }
  const Gradients wanted = gradients(s, x, weight, shortcut);
  if (grouped_conv2d_grad_x_on_tiles(s)) {
    ++grad_cases;
    Guarded<uint16_t> grad_x(x.size()), same(x.size());
    grouped_conv2d_tiles_grad_x(s, shortcut.data(), natural(s), grad_x.data(), kSerial);
    grouped_conv2d_tiles_grad_x(other, shortcut.data(), natural(other), same.data(), check::odd_pool());
    if (x.size() && std::memcmp(grad_x.data(), same.data(), x.size() * 2)) return failed("pieces change grad_x", 0);
    for (size_t i = 0; i < x.size(); ++i)
      if (!close(grad_x[i], wanted.x[i].value, wanted.x[i].terms, wanted.x[i].size)) return failed("grad_x", int64_t(i));
  }
  Guarded<uint16_t> grad_weight(weight.size()), same(weight.size());
  grouped_conv2d_tiles_grad_weight(s, shortcut.data(), x.data(), grad_weight.data(), kSerial);
  grouped_conv2d_tiles_grad_weight(s, shortcut.data(), x.data(), same.data(), check::odd_pool());
  if (std::memcmp(grad_weight.data(), same.data(), weight.size() * 2)) return failed("pieces change grad_weight", 0);
  for (size_t i = 0; i < weight.size(); ++i)
    if (!close(grad_weight[i], wanted.weight[i].value, wanted.weight[i].terms, wanted.weight[i].size)) return failed("grad_weight", int64_t(i));
  return true;
}

Conv2dShape shape(int64_t N, int64_t C, int64_t H, int64_t W, int64_t K, int64_t k, int64_t stride, int64_t pad, int64_t dilation, int64_t groups) {
  return {N, C, H, W, K, k, k, stride, stride, pad, pad, dilation, dilation, groups, 0, 0, true};
}

// Through relu and the sums: NaN stays where the filter covers it.
bool keeps_nan() {
  Conv2dShape s = shape(1, 32, 9, 11, 32, 3, 1, 1, 1, 1);
  s.OH = s.H, s.OW = s.W;
  std::vector<uint16_t> x(size_t(s.C * s.H * s.W), 0x3f80), weight(size_t(s.K * s.C * 9), 0xbf80), out(size_t(s.K * s.H * s.W));
  x[size_t((4 * s.W + 6) * s.C + 5)] = 0x7fc0;
  grouped_conv2d_tiles_fwd(s, x.data(), weight.data(), nullptr, nullptr, true, out.data(), kSerial);
  for (int64_t y = 0; y < s.H; ++y)
    for (int64_t c = 0; c < s.W; ++c) {
      const double v = value(out[size_t((y * s.W + c) * s.K)]);
      if ((std::abs(y - 4) <= 1 && std::abs(c - 6) <= 1) ? !std::isnan(v) : v != 0)
        return std::printf("FAIL NaN at %ld, %ld\n", long(y), long(c)), false;
    }
  return true;
}

}  // namespace

int main(int argc, char** argv) {
  if (!check::wanted_isa()) return 0;
  if (isa() != Isa::amx) {
    const bool refused = !grouped_conv2d_on_tiles(shape(1, 32, 8, 8, 32, 3, 1, 1, 1, 1));
    return std::printf("%s\n", refused ? "no tiles here" : "FAIL tiles without AMX"), !refused;
  }
  bool good = keeps_nan();
  const int64_t layers[][3] = {{3, 5, 1},   {16, 32, 1}, {32, 48, 2},  {48, 96, 4}, {24, 24, 24}, {40, 40, 40},
                               {7, 14, 7},  {32, 64, 4}, {96, 96, 16}, {36, 72, 3}, {64, 16, 4},  {10, 20, 5},
                               {48, 33, 1}, {64, 64, 2}, {18, 9, 9},   {80, 80, 5}, {96, 192, 16}};
  for (const auto& l : layers)
    for (int64_t k : {1, 3, 5}) {
      const int64_t sizes[][2] = {{8, 8}, {5, 17}, {3, 4}, {1, 1}, {14, 14}};
      for (const auto& size : sizes) good &= run(shape(1 + cases % 2, l[0], size[0], size[1], l[1], k, 1, k / 2, 1, l[2]));
    }
  good &= run(shape(3, 64, 40, 41, 64, 1, 1, 0, 1, 2));   // several lines of pixels
  good &= run(shape(1, 128, 70, 64, 32, 3, 1, 1, 1, 2));  // copies cut into rows
  good &= run(shape(2, 256, 61, 50, 16, 3, 2, 1, 1, 1));  // of phases
  std::mt19937 rng(1);
  const int count = argc > 1 ? std::atoi(argv[1]) : 400;
  for (int i = 0; i < count; ++i) {
    const auto pick = [&](std::initializer_list<int64_t> a) { return a.begin()[rng() % a.size()]; };
    const int64_t groups = pick({1, 2, 3, 4, 8, 17}), k = pick({1, 2, 3, 3, 5, 7});
    const int64_t in_group = pick({1, 1, 2, 3, 4, 6, 8, 13, 32}), out_group = pick({1, 1, 2, 4, 5, 8, 12, 16, 24, 40});
    Conv2dShape s = shape(pick({0, 1, 2, 3}), groups * in_group, pick({1, 2, 5, 9, 16}), pick({1, 3, 8, 13, 19}), groups * out_group, k,
                          pick({1, 1, 2, 3}), int64_t(rng() % uint64_t(k + 2)), pick({1, 1, 2, 3}), groups);
    if (rng() % 3 == 0)
      s.KW = pick({1, 2, 3, 5}), s.stride_w = pick({1, 2, 3}), s.pad_w = int64_t(rng() % uint64_t(s.KW + 3)), s.dilation_w = pick({1, 2, 3});
    good &= run(s);
  }
  std::printf("grouped_conv2d in bf16 on %s: %d cases%s\n", isa_name(), cases, good ? "" : ", FAILED");
  return good && cases > 300 && grad_cases > 150 ? 0 : 1;
}
