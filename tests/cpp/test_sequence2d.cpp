// sequence2d against its layers one after the other, in double: every kind of stage and of change between them, several images together and
// a rest, any thread pool, all memory ending at unreadable pages. On the instruction set that SPARSEKERN_ISA names.
#include <algorithm>
#include <memory>

#include "check.h"
#include "core/sequence2d.h"

namespace {

using Kind = sk::SequenceStage::Kind;
using Floats = check::Guarded<float>;
using Words = check::Guarded<int32_t>;

// A layer as a test says it: `K` filters (0: of a pooling), and what comes behind.
struct Layer {
  Kind kind;
  int64_t K, kernel, stride, pad, groups;
  bool relu, with_next;
  int64_t block_in;  // of a sparse convolution
  double density;
  sk::Pooling pooling;
};
Layer packed(int64_t K, int64_t kernel, int64_t pad, bool relu, bool with_next = false, int64_t groups = 1) {
  return {Kind::packed_conv, K, kernel, 1, pad, groups, relu, with_next, 0, 0, sk::Pooling::max};
}
Layer sparse(int64_t K, int64_t kernel, int64_t pad, bool relu, int64_t block_in, double density, int64_t stride = 1) {
  return {Kind::sparse_conv, K, kernel, stride, pad, 1, relu, false, block_in, density, sk::Pooling::max};
}
Layer pool(sk::Pooling pooling, int64_t kernel, int64_t stride, int64_t pad) {
  return {Kind::pool, 0, kernel, stride, pad, 1, false, false, 0, 0, pooling};
}

struct Case {
  int64_t N, C, H, W, together;
  std::vector<Layer> layers;
};

// What the stages point to.
struct Memory {
  std::vector<std::unique_ptr<Floats>> floats;
  std::vector<std::unique_ptr<Words>> words;
  float* drawn(int64_t size, unsigned seed) {
    floats.push_back(std::make_unique<Floats>(size_t(size)));
    check::fill(*floats.back(), seed);
    return floats.back()->data();
  }
  int32_t* kept(const std::vector<int32_t>& values) {
    words.push_back(std::make_unique<Words>(values.size()));
    std::copy(values.begin(), values.end(), words.back()->data());
    return words.back()->data();
  }
};

// Images [N, H, W, C] in double: value, the sum of magnitudes behind it, and how many terms that sum had at the most.
struct Truth {
  int64_t N, C, H, W;
  std::vector<double> value, size;
  double terms;
  int64_t at(int64_t n, int64_t y, int64_t x, int64_t c) const { return ((n * H + y) * W + x) * C + c; }
};

template <class F>  // f(output, n, oy, ox, k) for each output; the output's size is known
Truth next_of(const Truth& x, const Layer& l, int64_t K, const F& f) {
  const auto out = [&](int64_t size) { return (size + 2 * l.pad - l.kernel) / l.stride + 1; };
  Truth y{x.N, K, out(x.H), out(x.W), {}, {}, x.terms};
  y.value.resize(size_t(y.N * y.H * y.W * K)), y.size.resize(y.value.size());
  for (int64_t n = 0; n < y.N; ++n)
    for (int64_t oy = 0; oy < y.H; ++oy)
      for (int64_t ox = 0; ox < y.W; ++ox)
        for (int64_t k = 0; k < K; ++k) f(size_t(y.at(n, oy, ox, k)), n, oy, ox, k, y);
  return y;
}

// `dense [K, C/groups, kernel, kernel]`
Truth convolved(const Truth& x, const Layer& l, const float* dense, const float* bias) {
  const int64_t in = x.C / l.groups;
  Truth result = next_of(x, l, l.K, [&](size_t to, int64_t n, int64_t oy, int64_t ox, int64_t k, Truth& y) {
    double sum = bias[k], size = std::fabs(bias[k]);
    for (int64_t j = 0; j < in; ++j)
      for (int64_t ky = 0; ky < l.kernel; ++ky)
        for (int64_t kx = 0; kx < l.kernel; ++kx) {
          const int64_t v = oy * l.stride - l.pad + ky, u = ox * l.stride - l.pad + kx;
          if (v < 0 || v >= x.H || u < 0 || u >= x.W) continue;
          const size_t from = size_t(x.at(n, v, u, k / (l.K / l.groups) * in + j));
          const double w = dense[((k * in + j) * l.kernel + ky) * l.kernel + kx];
          sum += w * x.value[from], size += std::fabs(w) * x.size[from];
        }
    y.value[to] = l.relu && sum < 0 ? 0 : sum, y.size[to] = size;
  });
  result.terms += double(in * l.kernel * l.kernel) + 2;
  return result;
}

Truth pooled(const Truth& x, const Layer& l) {
  Truth result = next_of(x, l, x.C, [&](size_t to, int64_t n, int64_t oy, int64_t ox, int64_t c, Truth& y) {
    double sum = 0, largest = -1e300, size = 0, largest_size = 0, count = 0;
    for (int64_t v = oy * l.stride - l.pad; v < oy * l.stride - l.pad + l.kernel; ++v)
      for (int64_t u = ox * l.stride - l.pad; u < ox * l.stride - l.pad + l.kernel; ++u) {
        if (v < 0 || v >= x.H || u < 0 || u >= x.W) continue;
        const size_t from = size_t(x.at(n, v, u, c));
        sum += x.value[from], size += x.size[from], ++count;
        largest = std::max(largest, x.value[from]), largest_size = std::max(largest_size, x.size[from]);
      }
    if (l.pooling == sk::Pooling::average_counting_padding) count = double(l.kernel * l.kernel);
    const bool max = l.pooling == sk::Pooling::max;
    y.value[to] = max ? largest : sum / count, y.size[to] = max ? largest_size : size / count;
  });
  result.terms += double(l.kernel * l.kernel) + 1;
  return result;
}

int planes_seen = 0, bands_seen = 0;

// The stage of a layer that reads `x`, and the truth behind it. `natural`: a pack that leaves the work to torch.
sk::SequenceStage stage_of(const Layer& l, Truth& x, Memory& memory, unsigned seed, bool natural) {
  sk::SequenceStage stage{};
  stage.kind = l.kind, stage.relu = l.relu, stage.with_next = l.with_next, stage.pooling = l.pooling;
  const auto out = [&](int64_t size) { return (size + 2 * l.pad - l.kernel) / l.stride + 1; };
  const int64_t OH = out(x.H), OW = out(x.W);
  if (l.kind == Kind::pool) {
    stage.pooled = {x.N, x.C, x.H, x.W, l.kernel, l.kernel, l.stride, l.stride, l.pad, l.pad, OH, OW};
    x = pooled(x, l);
  } else {
    const float* bias = stage.bias = memory.drawn(l.K, seed);
    if (l.kind == Kind::packed_conv) {
      const float* weight = memory.drawn(l.K * (x.C / l.groups) * l.kernel * l.kernel, seed + 1);
      stage.conv = {x.N, x.C, x.H, x.W, l.K, l.kernel, l.kernel, l.stride, l.stride, l.pad, l.pad, 1, 1, l.groups, OH, OW, true};
      std::vector<int32_t> pack;
      sk::grouped_conv2d_pack(stage.conv, weight, natural, pack);
      stage.pack = memory.kept(pack);
      x = convolved(x, l, weight, bias);
    } else {
      sk::SparseConv2dShape& s = stage.sparse;
      s = {x.N, x.C, x.H, x.W, l.K, l.kernel, l.kernel, l.stride, l.stride, l.pad, l.pad, 1, 1, 1, l.block_in, 1, 0, true};
      std::mt19937 random(seed + 2);
      std::vector<int32_t> indptr{0}, index;
      for (int64_t k = 0; k < s.OB(); ++k, indptr.push_back(int32_t(index.size())))
        for (int64_t code = 0; code < s.IB() * s.TB(); ++code)
          if (double(random() % 1000) < 1000 * l.density) index.push_back(int32_t(code));
      s.nnz = int64_t(index.size());
      stage.weight = memory.drawn(s.nnz * l.block_in, seed + 1);
      std::vector<int32_t> plan(size_t(sk::sparse_conv2d_plan_size(s)));
      sk::sparse_conv2d_plan(s, indptr.data(), index.data(), plan.data());
      stage.plan = memory.kept(plan);
      std::vector<float> dense(size_t(l.K * x.C * s.taps()));
      sk::sparse_conv2d_to_dense(s, plan.data(), stage.weight, dense.data(), sk::kSerial);
      x = convolved(x, l, dense.data(), bias);
    }
  }
  stage.out_floats = x.C * x.H * x.W;
  return stage;
}

bool test(const Case& c, bool natural) {
  Memory memory;
  Floats x(size_t(c.N * c.C * c.H * c.W));
  check::fill(x, 1);
  Truth truth{c.N, c.C, c.H, c.W, std::vector<double>(x.size()), std::vector<double>(x.size()), 0};
  for (size_t i = 0; i < x.size(); ++i) truth.value[i] = x[i], truth.size[i] = std::fabs(x[i]);
  std::vector<sk::SequenceStage> stages;
  for (size_t i = 0; i < c.layers.size(); ++i) {
    stages.push_back(stage_of(c.layers[i], truth, memory, unsigned(10 * i + 5), natural));
    int64_t vectors;
    const bool behind = i > 0 && stages[i].kind == Kind::packed_conv && sk::grouped_conv2d_pointwise_blocks(stages[i].pack, &vectors);
    planes_seen += behind && stages[i - 1].kind == Kind::sparse_conv && stages[i - 1].out_floats >= 1 << 15;
    bands_seen += behind && stages[i - 1].with_next;
  }
  Floats out(truth.value.size()), again(truth.value.size());
  for (size_t i = 0; i < out.size(); ++i) out[i] = again[i] = -1e30f;
  const auto run = [&](float* to, const sk::Pool& threads) {
    return sk::sequence2d_fwd(stages.data(), int(stages.size()), c.N, c.together, x.data(), false, to, threads);
  };
  const bool served = run(out.data(), sk::kSerial), other = run(again.data(), check::odd_pool());
  bool good = served == !natural && other == served;
  if (!good) std::printf("FAIL: %s packs were %s\n", natural ? "natural" : "blocked", served ? "served" : "refused");
  for (size_t i = 0; i < out.size() && served && good; ++i) good &= check::close("sequence", out[i], truth.value[i], truth.terms, truth.size[i]);
  if (served && out.size() && std::memcmp(out.data(), again.data(), out.size() * sizeof(float)))
    good = false, std::printf("FAIL: another pool, other bits\n");
  if (!good) std::printf("  of %ld images %ldx%ldx%ld, %zu layers\n", c.N, c.C, c.H, c.W, c.layers.size());
  return good;
}

}  // namespace

int main() {
  if (!check::wanted_isa()) return 0;
  sk::set_dense_policy("never");
  const sk::Pooling max = sk::Pooling::max, average = sk::Pooling::average, counting = sk::Pooling::average_counting_padding;
  const Case cases[] = {
      {3, 8, 13, 11, 2, {packed(16, 3, 1, true, false, 2), pool(max, 3, 2, 1), packed(7, 1, 0, false)}},
      {2, 8, 33, 31, 1, {packed(64, 3, 1, true, true, 4), packed(24, 1, 0, true, true), packed(17, 1, 0, false), pool(counting, 3, 2, 1)}},
      {1, 3, 37, 29, 1, {sparse(33, 3, 1, true, 3, 0.3), packed(17, 1, 0, true), packed(5, 1, 0, false)}},    // planes, then pixels
      {3, 16, 35, 29, 2, {pool(average, 3, 1, 1), sparse(40, 3, 1, true, 16, 0.4), packed(80, 1, 0, true)}},  // the same, of whole taps
      {2, 5, 67, 61, 2, {sparse(40, 3, 1, false, 1, 0.2, 2), packed(33, 1, 0, false), sparse(6, 3, 0, true, 1, 0.5)}},
      {7, 4, 9, 10, 2, {sparse(6, 3, 1, true, 1, 0.5), packed(8, 1, 0, true), sparse(3, 3, 1, true, 8, 0.5)}},  // too small for planes
      {5, 2, 1, 1, 1, {packed(3, 1, 0, true), sparse(2, 3, 1, true, 1, 0.6), pool(max, 1, 1, 0)}},              // one pixel
      {4, 3, 8, 8, 9, {sparse(5, 3, 1, true, 3, 0.5)}},                                                         // alone
      {0, 3, 8, 8, 1, {packed(5, 3, 1, true), pool(max, 2, 2, 0)}},
  };
  bool good = true;
  for (const Case& c : cases) good &= test(c, false);
  if (!planes_seen || !bands_seen) good = false, std::printf("FAIL: no case leaves planes, or goes band by band\n");
  good &= test(cases[0], true);
  std::printf("%s\n", good ? "ok" : "FAILED");
  return good ? 0 : 1;
}
