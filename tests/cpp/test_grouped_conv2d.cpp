// grouped_conv2d against plain double loops: every product, both layouts, on the instruction set that SPARSEKERN_ISA
// names. Tensors end (or begin) at an unreadable page, outputs stand between guard values, and a pool that cuts its
// ranges into odd pieces must give the same bits as no pool at all.
#include <sys/mman.h>
#include <unistd.h>

#include <algorithm>
#include <cmath>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <limits>
#include <random>
#include <vector>

#include "check.h"
#include "core/grouped_conv2d.h"
#include "thin.h"

namespace {

using sk::Conv2dShape;
int failures = 0, cases = 0, cut = 0;

// `count` values between two pages that must not be touched, against the last (or the first) of them.
template <class T>
class Fenced {
 public:
  Fenced(size_t count, bool at_end) : count_(count) {
    const size_t page = size_t(sysconf(_SC_PAGESIZE)), inner = (count * sizeof(T) + page - 1) / page * page;
    bytes_ = inner + 2 * page;
    base_ = static_cast<char*>(mmap(nullptr, bytes_, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0));
    mprotect(base_, page, thin::guarded());
    mprotect(base_ + page + inner, page, thin::guarded());
    data_ = reinterpret_cast<T*>(at_end ? base_ + page + inner - count * sizeof(T) : base_ + page);
  }
  ~Fenced() { munmap(base_, bytes_); }
  Fenced(const Fenced&) = delete;
  Fenced& operator=(const Fenced&) = delete;
  T* data() { return data_; }
  T& operator[](size_t i) { return data_[i]; }
  size_t size() const { return count_; }

 private:
  char* base_;
  T* data_;
  size_t count_, bytes_;
};

// Cuts [0, size) into pieces of 1, 3, 2, 5, ... and runs the last one first.
void run_in_pieces(int64_t size, int64_t, sk::Pool::Body body, const void* context) {
  const int64_t steps[] = {1, 3, 2, 5, 7, 4};
  std::vector<int64_t> cuts{0};
  for (int i = 0; cuts.back() < size; ++i) cuts.push_back(std::min(size, cuts.back() + steps[i % 6]));
  ++cut;
  for (size_t i = cuts.size() - 1; i > 0; --i) body(context, cuts[i - 1], cuts[i]);
}
// A pool that ignores the grain. Jobs below the grain never reach it; `cut` counts those that do.
const sk::Pool kPieces{3, run_in_pieces};

std::mt19937 rng(1);
template <class A>
void fill(A& a) {
  std::uniform_real_distribution<double> uniform(-1.0, 1.0);
  for (size_t i = 0; i < a.size(); ++i) a[i] = float(uniform(rng));
}

struct Sum {
  double value = 0, magnitude = 0;
  int64_t terms = 0;
  void add(double a, double b) { value += a * b, magnitude += std::fabs(a * b), ++terms; }
};

size_t at(const Conv2dShape& s, int64_t channels, int64_t h, int64_t w, int64_t n, int64_t c, int64_t y, int64_t x) {
  return s.channels_last ? ((n * h + y) * w + x) * channels + c : ((n * channels + c) * h + y) * w + x;
}

struct Reference {
  std::vector<Sum> out, grad_x, grad_weight;
};
template <class X, class Wt, class G>
Reference reference(const Conv2dShape& s, X& x, Wt& weight, float* bias, G& grad_out) {
  const int64_t in_group = s.C / s.groups, out_group = s.K / s.groups;
  Reference r{std::vector<Sum>(s.N * s.K * s.OH * s.OW), std::vector<Sum>(s.N * s.C * s.H * s.W), std::vector<Sum>(weight.size())};
  for (int64_t n = 0; n < s.N; ++n)
    for (int64_t k = 0; k < s.K; ++k)
      for (int64_t oy = 0; oy < s.OH; ++oy)
        for (int64_t ox = 0; ox < s.OW; ++ox) {
          const size_t o = at(s, s.K, s.OH, s.OW, n, k, oy, ox);
          if (bias) r.out[o].add(bias[k], 1.0);
          for (int64_t j = 0; j < in_group; ++j)
            for (int64_t ky = 0; ky < s.KH; ++ky)
              for (int64_t kx = 0; kx < s.KW; ++kx) {
                const int64_t y = oy * s.stride_h + ky * s.dilation_h - s.pad_h, c = k / out_group * in_group + j;
                const int64_t col = ox * s.stride_w + kx * s.dilation_w - s.pad_w;
                if (y < 0 || y >= s.H || col < 0 || col >= s.W) continue;
                const size_t i = at(s, s.C, s.H, s.W, n, c, y, col), w = ((k * in_group + j) * s.KH + ky) * s.KW + kx;
                r.out[o].add(x[i], weight[w]);
                r.grad_x[i].add(grad_out[o], weight[w]);
                r.grad_weight[w].add(grad_out[o], x[i]);
              }
        }
  return r;
}

// A sum of t products in any order is off by at most (t + 1) units of half an ulp of the sum of magnitudes.
template <class A>
void compare(const char* what, const Conv2dShape& s, const std::vector<Sum>& wanted, A& got, bool relu, double unit) {
  for (size_t i = 0; i < wanted.size(); ++i) {
    const double value = relu && wanted[i].value < 0 ? 0 : wanted[i].value;
    const double allowed = (wanted[i].terms + 1) * unit * wanted[i].magnitude;
    if (std::fabs(got[i] - value) <= allowed) continue;
    if (++failures <= 20)
      std::printf("%s %s wrong at %zu: %g, wanted %g (N%ld C%ld %ldx%ld K%ld k%ldx%ld s%ld,%ld p%ld,%ld d%ld g%ld)\n", what,
                  s.channels_last ? "nhwc" : "nchw", i, double(got[i]), value, long(s.N), long(s.C), long(s.H), long(s.W), long(s.K), long(s.KH),
                  long(s.KW), long(s.stride_h), long(s.stride_w), long(s.pad_h), long(s.pad_w), long(s.dilation_h), long(s.groups));
    return;
  }
}

// Runs f(out, pool) with and without pieces; the output must be written fully, the same, and nothing around it.
template <class T, class F>
void check_product(const char* what, const Conv2dShape& s, const std::vector<Sum>& wanted, bool relu, const F& f) {
  constexpr size_t kGuard = 32;
  std::vector<T> first;
  for (const sk::Pool* pool : {&sk::kSerial, &kPieces}) {
    std::vector<T> memory(wanted.size() + 2 * kGuard, T(12345));
    for (size_t i = 0; i < wanted.size(); ++i) memory[kGuard + i] = std::numeric_limits<T>::quiet_NaN();
    f(memory.data() + kGuard, *pool);
    bool guard = true;
    for (size_t i = 0; i < kGuard; ++i) guard &= memory[i] == T(12345) && memory[memory.size() - 1 - i] == T(12345);
    if (!guard && ++failures) std::printf("%s: wrote outside its output\n", what);
    if (pool == &sk::kSerial) {
      T* out = memory.data() + kGuard;
      compare(what, s, wanted, out, relu, std::numeric_limits<T>::epsilon() / 2);
      first = memory;
    } else if (std::memcmp(first.data(), memory.data(), memory.size() * sizeof(T)) && ++failures) {
      std::printf("%s: pieces change the result\n", what);
    }
  }
}

Conv2dShape shape(int64_t N, int64_t C, int64_t H, int64_t W, int64_t K, int64_t KH, int64_t KW, int64_t stride, int64_t pad, int64_t dilation,
                  int64_t groups, bool channels_last) {
  return {N,
          C,
          H,
          W,
          K,
          KH,
          KW,
          stride,
          stride,
          pad,
          pad,
          dilation,
          dilation,
          groups,
          (H + 2 * pad - dilation * (KH - 1) - 1) / stride + 1,
          (W + 2 * pad - dilation * (KW - 1) - 1) / stride + 1,
          channels_last,
          false};
}

int packed_cases = 0;
// A pack holds the weight, and computes the same; made for these images and for others.
void check_pack(const Conv2dShape& s, const std::vector<Sum>& wanted, const float* weight, const float* contiguous, const float* x, const float* bias,
                const float* shortcut, bool relu) {
  if (!s.channels_last) return;
  Conv2dShape other = s;
  other.N = 2, other.H = s.H + 9, other.W = s.W + 20;
  other.OH = (other.H + 2 * s.pad_h - s.dilation_h * (s.KH - 1) - 1) / s.stride_h + 1;
  other.OW = (other.W + 2 * s.pad_w - s.dilation_w * (s.KW - 1) - 1) / s.stride_w + 1;
  for (const Conv2dShape& made_for : {s, other}) {
    std::vector<int32_t> words;
    sk::grouped_conv2d_pack(made_for, weight, false, words);
    Fenced<int32_t> pack(words.size(), true);
    std::memcpy(pack.data(), words.data(), words.size() * sizeof(int32_t));
    Conv2dShape held;
    const bool known = sk::grouped_conv2d_pack_shape(pack.data(), int64_t(pack.size()), &held);
    if ((!known || held.K != s.K || held.C != s.C || held.KH != s.KH || held.KW != s.KW || held.groups != s.groups) && ++failures)
      std::printf("a pack does not know its sizes\n");
    std::vector<float> natural(size_t(s.K * (s.C / s.groups) * s.KH * s.KW));
    sk::grouped_conv2d_unpack(pack.data(), natural.data());
    if (std::memcmp(natural.data(), contiguous, natural.size() * sizeof(float)) && ++failures) std::printf("a pack lost its weight\n");
    std::vector<float> probe(wanted.size());
    if (!sk::grouped_conv2d_packed_fwd(s, x, pack.data(), bias, shortcut, relu, probe.data(), sk::kSerial)) continue;
    ++packed_cases;
    check_product<float>("packed", s, wanted, relu, [&](float* out, const sk::Pool& pool) {
      sk::grouped_conv2d_packed_fwd(s, x, pack.data(), bias, shortcut, relu, out, pool);
    });
  }
}

void check_products(const Conv2dShape& s) {
  if (s.OH < 1 || s.OW < 1 || s.H + 2 * s.pad_h < s.dilation_h * (s.KH - 1) + 1 || s.W + 2 * s.pad_w < s.dilation_w * (s.KW - 1) + 1) return;
  if (thin::left_out()) return;
  ++cases;
  const bool at_end = cases % 3 != 0, relu = cases % 2 == 0, with_bias = cases % 4 < 2, with_shortcut = cases % 3 == 1;
  Fenced<float> x(s.N * s.C * s.H * s.W, at_end), weight(s.K * (s.C / s.groups) * s.KH * s.KW, at_end);
  Fenced<float> bias(s.K, at_end), grad_out(s.N * s.K * s.OH * s.OW, at_end), shortcut(grad_out.size(), at_end);
  fill(x), fill(weight), fill(bias), fill(grad_out), fill(shortcut);
  float* b = with_bias ? bias.data() : nullptr;
  float* added = with_shortcut ? shortcut.data() : nullptr;
  Reference r = reference(s, x, weight, b, grad_out);
  for (size_t i = 0; with_shortcut && i < r.out.size(); ++i) r.out[i].add(shortcut[i], 1.0);
  check_product<float>("forward", s, r.out, relu,
                       [&](float* out, const sk::Pool& pool) { sk::grouped_conv2d_fwd(s, x.data(), weight.data(), b, added, relu, out, pool); });
  check_product<float>("grad_x", s, r.grad_x, false,
                       [&](float* out, const sk::Pool& pool) { sk::grouped_conv2d_grad_x(s, grad_out.data(), weight.data(), out, pool); });
  check_product<float>("grad_weight", s, r.grad_weight, false,
                       [&](float* out, const sk::Pool& pool) { sk::grouped_conv2d_grad_weight(s, grad_out.data(), x.data(), out, pool); });
  Conv2dShape permuted = s;  // the same weight, channels_last in memory
  permuted.weight_channels_last = true;
  Fenced<float> weight_cl(weight.size(), at_end);
  const int64_t in_group = s.C / s.groups, taps = s.KH * s.KW;
  for (int64_t i = 0; i < int64_t(weight.size()); ++i)
    weight_cl[i / (in_group * taps) * in_group * taps + i % taps * in_group + i / taps % in_group] = weight[i];
  check_product<float>("forward, permuted weight", s, r.out, relu, [&](float* out, const sk::Pool& pool) {
    sk::grouped_conv2d_fwd(permuted, x.data(), weight_cl.data(), b, added, relu, out, pool);
  });
  check_product<float>("grad_x, permuted weight", s, r.grad_x, false,
                       [&](float* out, const sk::Pool& pool) { sk::grouped_conv2d_grad_x(permuted, grad_out.data(), weight_cl.data(), out, pool); });
  check_pack(cases % 2 ? s : permuted, r.out, cases % 2 ? weight.data() : weight_cl.data(), weight.data(), x.data(), b, added, relu);
  if (cases % 5) return;
  Fenced<double> xd(x.size(), at_end), weightd(weight.size(), at_end), biasd(s.K, at_end), grad_outd(grad_out.size(), at_end),
      shortcutd(grad_out.size(), at_end);
  for (size_t i = 0; i < x.size(); ++i) xd[i] = x[i];
  for (size_t i = 0; i < weight.size(); ++i) weightd[i] = weight[i];
  for (size_t i = 0; i < bias.size(); ++i) biasd[i] = bias[i];
  for (size_t i = 0; i < grad_out.size(); ++i) grad_outd[i] = grad_out[i], shortcutd[i] = shortcut[i];
  check_product<double>("forward fp64", s, r.out, relu, [&](double* out, const sk::Pool& pool) {
    sk::grouped_conv2d_fwd(s, xd.data(), weightd.data(), b ? biasd.data() : nullptr, added ? shortcutd.data() : nullptr, relu, out, pool);
  });
  check_product<double>("grad_x fp64", s, r.grad_x, false,
                        [&](double* out, const sk::Pool& pool) { sk::grouped_conv2d_grad_x(s, grad_outd.data(), weightd.data(), out, pool); });
  check_product<double>("grad_weight fp64", s, r.grad_weight, false,
                        [&](double* out, const sk::Pool& pool) { sk::grouped_conv2d_grad_weight(s, grad_outd.data(), xd.data(), out, pool); });
}

// A NaN or Inf in the input reaches exactly the outputs whose filter window holds it, also through relu.
void check_special_values(bool channels_last) {
  for (const Conv2dShape& s : {shape(1, 32, 16, 16, 48, 5, 5, 1, 2, 1, 4, channels_last), shape(1, 32, 9, 11, 32, 3, 3, 1, 1, 1, 4, channels_last),
                               shape(1, 48, 9, 15, 24, 1, 1, 1, 0, 1, 1, channels_last), shape(1, 8, 9, 9, 8, 3, 3, 2, 1, 1, 8, channels_last)}) {
    std::vector<float> x(s.N * s.C * s.H * s.W), weight(s.K * (s.C / s.groups) * s.KH * s.KW), out(s.N * s.K * s.OH * s.OW);
    fill(x), fill(weight);
    x[at(s, s.C, s.H, s.W, 0, 5, 4, 6)] = std::nanf("");
    Reference r = reference(s, x, weight, nullptr, out);
    sk::grouped_conv2d_fwd(s, x.data(), weight.data(), nullptr, nullptr, true, out.data(), sk::kSerial);
    ++cases;
    for (size_t i = 0; i < out.size(); ++i)
      if (std::isnan(out[i]) != std::isnan(r.out[i].value)) {
        ++failures;
        std::printf("NaN pattern differs at %zu, %s, kernel %ld\n", i, channels_last ? "nhwc" : "nchw", long(s.KH));
        break;
      }
  }
}

}  // namespace

int main(int argc, char** argv) {
  if (!check::wanted_isa()) return 0;
  for (bool cl : {false, true}) {
    check_special_values(cl);
    // layers of real networks, made small: groups from one to depthwise, tiles with and without edges and tails
    struct Layer {
      int64_t C, K, groups;
    };
    const Layer layers[] = {{3, 5, 1},   {16, 32, 1}, {32, 48, 2},  {48, 96, 4},  {24, 24, 24}, {40, 40, 40}, {7, 14, 7},   {32, 64, 4},
                            {24, 48, 4}, {32, 32, 8}, {96, 96, 16}, {32, 32, 16}, {36, 72, 3},  {64, 16, 4},  {64, 16, 16}, {10, 20, 5},
                            {12, 12, 4}, {48, 33, 1}, {16, 40, 2},  {64, 64, 2},  {18, 9, 9},   {80, 80, 5}};
    for (const Layer& l : layers)
      for (int64_t k : {1, 3, 5}) {
        const int64_t sizes[][2] = {{8, 8}, {5, 17}, {7, 29}, {3, 4}, {1, 1}, {2, 15}, {14, 14}};
        for (const auto& size : sizes) check_products(shape(1 + cases % 2, l.C, size[0], size[1], l.K, k, k, 1, k / 2, 1, l.groups, cl));
      }
    // 1x1: pixels that are copied (strided, or a page apart), several chunks, several copies
    for (int64_t stride : {1, 2}) {
      check_products(shape(2, 1024, 9, 9, 40, 1, 1, stride, 0, 1, 1, cl));
      check_products(shape(3, 64, 40, 41, 64, 1, 1, stride, 0, 1, 4, cl));
      check_products(shape(1, 2048, 7, 7, 34, 1, 1, stride, 0, 1, 2, cl));
    }
    check_products(shape(1, 1024, 46, 46, 20, 1, 1, 1, 0, 1, 1, cl));
    // enough images for several chunks of the copies
    check_products(shape(30, 8, 24, 24, 8, 3, 3, 1, 1, 1, 1, cl));
    check_products(shape(30, 8, 24, 24, 8, 2, 2, 1, 0, 1, 1, cl));
    check_products(shape(11, 64, 40, 40, 64, 2, 2, 1, 1, 1, 64, cl));
    // every argument of a convolution, at random
    const int count = argc > 1 ? std::atoi(argv[1]) : 500;
    for (int i = 0; i < count; ++i) {
      const auto pick = [](std::initializer_list<int64_t> a) { return a.begin()[rng() % a.size()]; };
      const int64_t groups = pick({1, 2, 3, 4, 8, 17}), k = pick({1, 2, 3, 3, 5, 7}), kw = rng() % 4 ? k : pick({1, 2, 3, 5});
      const int64_t in_group = pick({1, 1, 2, 3, 4, 6, 8, 13}), out_group = pick({1, 1, 2, 4, 5, 8, 12, 16, 24});
      Conv2dShape s = shape(pick({0, 1, 2, 3}), groups * in_group, pick({1, 2, 5, 9, 16}), pick({1, 3, 8, 13, 19}), groups * out_group, k, kw,
                            pick({1, 1, 2, 3}), int64_t(rng() % (k + 1)), pick({1, 1, 2}), groups, cl);
      if (rng() % 4 == 0) {  // sides that differ
        s.stride_w = pick({1, 2, 3}), s.pad_w = int64_t(rng() % (kw + 1)), s.dilation_w = pick({1, 2});
        s.OW = (s.W + 2 * s.pad_w - s.dilation_w * (kw - 1) - 1) / s.stride_w + 1;
      }
      check_products(s);
    }
  }
  std::printf("grouped_conv2d on %s: %d cases, %d failures\n", sk::isa_name(), cases, failures);
  if (2 * packed_cases < cases && ++failures) std::printf("only %d packs were used\n", packed_cases);
  if (cut < 100 / thin::every() && ++failures) std::printf("only %d jobs were large enough to be cut into pieces\n", cut);
  return failures ? 1 : 0;
}
