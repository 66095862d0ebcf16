// Packed sparse_linear, fp32 and with bf16 weights, and window-balanced tables, packed and not, against naive double loops: every
// kernel of a pack, both layouts; inputs and outputs end at an unreadable page; threads change nothing.
#include <algorithm>
#include <set>

#include "check.h"
#include "core/sparse_linear.h"
#include "thin.h"

using namespace sk;
using check::Guarded;

namespace {

struct Case {
  int64_t N, OB, F, BO, BI, IB;
  bool feature_major;
};

uint16_t half(float v) {  // cut off
  uint32_t u;
  std::memcpy(&u, &v, 4);
  return uint16_t(u >> 16);
}
double value(uint16_t h) {
  const uint32_t u = uint32_t(h) << 16;
  float v;
  std::memcpy(&v, &u, 4);
  return v;
}

std::set<LinearKernel> served;  // by packs, in all cases

// A sorted sample of `count` out of [begin, end).
void sample(std::mt19937& random, int64_t begin, int64_t end, int64_t count, std::vector<int32_t>& to) {
  for (int64_t i = begin; i < end && count; ++i)
    if (int64_t(random() % uint32_t(end - i)) < count) to.push_back(int32_t(i)), --count;
}

// Random, or with the same counts in every window of 32: those of one random row.
std::vector<int32_t> table(const Case& c, bool balanced) {
  std::mt19937 random(unsigned(c.IB * 31 + c.OB * 7 + c.F));
  std::vector<int32_t> index, row;
  sample(random, 0, c.IB, c.F, row);
  for (int64_t r = 0; r < c.OB; ++r)
    if (!balanced) {
      sample(random, 0, c.IB, c.F, index);
    } else {
      for (int64_t begin = 0; begin < c.IB; begin += 32) {
        const int64_t end = std::min(c.IB, begin + 32);
        sample(random, begin, end, std::count_if(row.begin(), row.end(), [&](int32_t i) { return i >= begin && i < end; }), index);
      }
    }
  return index;
}

int bf16_cases = 0;

// A balanced pack with rows of x, and y, in bf16; summed in fp32 and rounded once.
bool bf16_rows(const Case& c, const int32_t* pack, const std::vector<int32_t>& index, const uint16_t* w) {
  const int64_t in = c.IB, out = c.OB;
  SparseLinearShape s = sparse_linear_pack_shape(pack, pack[7]);
  s.N = c.N;
  Guarded<float> xf(size_t(c.N * in)), bf(static_cast<size_t>(out));
  check::fill(xf, 1), check::fill(bf, 3);
  Guarded<uint16_t> x(xf.size()), b(bf.size()), y(size_t(c.N * out));
  for (size_t i = 0; i < x.size(); ++i) x[i] = half(xf[i]);
  for (size_t i = 0; i < b.size(); ++i) b[i] = half(bf[i]);
  const Strides xs = c.feature_major ? Strides{1, c.N} : Strides{in, 1}, ys = c.feature_major ? Strides{1, c.N} : Strides{out, 1};
  bool ok = true;
  for (const bool with_bias : {true, false}) {
    std::vector<uint16_t> first;
    for (const Pool& pool : {kSerial, check::odd_pool()}) {
      std::fill(y.data(), y.data() + y.size(), uint16_t(0x7fff));
      sparse_linear_packed_fwd(s, pack, x.data(), xs, with_bias ? b.data() : nullptr, y.data(), ys, pool);
      const std::vector<uint16_t> all(y.data(), y.data() + y.size());
      if (first.empty()) first = all;
      if (first != all) ok = false, std::printf("FAIL threads changed the result\n");
    }
    for (int64_t o = 0; o < out; ++o)
      for (int64_t n = 0; n < c.N; ++n) {
        double sum = with_bias ? value(b[size_t(o)]) : 0.0, size = std::fabs(sum);
        for (int64_t f = 0; f < c.F; ++f) {
          const double p = value(w[size_t(o * c.F + f)]) * value(x[size_t(n * xs.row + index[size_t(o * c.F + f)] * xs.col)]);
          sum += p, size += std::fabs(p);
        }
        const double exact = double(c.F + 3) * 5.9604644775390625e-8 * size, got = value(y[size_t(n * ys.row + o * ys.col)]);
        if (!(std::fabs(got - sum) <= exact + 0.00390625 * (std::fabs(sum) + exact) + 1e-30))
          ok = false, std::printf("FAIL bf16: got %.9g, want %.9g\n", got, sum);
      }
  }
  ++bf16_cases;
  return ok;
}

bool run(const Case& c, bool balanced, bool bf16) {
  if (thin::left_out()) return true;
  SparseLinearShape s{c.N, c.OB, c.F, c.BO, c.BI, c.IB};
  const int64_t in = s.in(), out = s.out();
  const std::vector<int32_t> index = table(c, balanced);
  std::vector<int32_t> made;
  if (sparse_linear_plan(s, index.data(), made).rule) return std::printf("FAIL plan refused\n"), false;
  bool ok = true;
  const bool found = sparse_linear_plan_balanced(made.data());
  if (balanced && found != isa_supported(Isa::avx512)) ok = false, std::printf("FAIL a balanced table was %sfound\n", found ? "" : "not ");

  Guarded<int32_t> plan(made.size());
  std::copy(made.begin(), made.end(), plan.data());
  Guarded<float> x(size_t(c.N * in)), w(size_t(s.kept())), b(static_cast<size_t>(out)), natural(size_t(c.N * out)), packed(size_t(c.N * out));
  check::fill(x, 1), check::fill(w, 2), check::fill(b, 3);
  Guarded<uint16_t> halves(w.size());
  for (size_t i = 0; i < w.size() && bf16; ++i) halves[i] = half(w[i]), w[i] = float(value(halves[i]));  // the weight is what bf16 can hold
  sparse_linear_pack(s, plan.data(), w.data(), bf16 ? halves.data() : nullptr, made);
  Guarded<int32_t> pack(made.size());
  std::copy(made.begin(), made.end(), pack.data());
  s = sparse_linear_pack_shape(pack.data(), int64_t(pack.size()));
  if (s.OB != c.OB || s.F != c.F || s.BO != c.BO || s.BI != c.BI || s.IB != c.IB) return std::printf("FAIL sizes of the pack\n"), false;
  s.N = c.N;
  if (bf16 && sparse_linear_packed_tiles(s, pack.data()) && sparse_linear_packed_choice(s, LinearType::bf16) == LinearKernel::balanced)
    ok &= bf16_rows(c, pack.data(), index, halves.data());
  const LinearKernel kernel = sparse_linear_packed_choice(s, LinearType::fp32);
  served.insert(kernel);

  const Strides xs = c.feature_major ? Strides{1, c.N} : Strides{in, 1}, ys = c.feature_major ? Strides{1, c.N} : Strides{out, 1};
  const auto at = [](const Strides& st, int64_t n, int64_t i) { return size_t(n * st.row + i * st.col); };
  const bool compare_natural = check::comparable(sparse_linear_plain_kernel(s, Product::forward) == LinearKernel::gather);
  const bool compare_packed = check::comparable(kernel == LinearKernel::gather);
  for (const bool with_bias : {true, false}) {
    const float* bias = with_bias ? b.data() : nullptr;
    std::vector<float> first;
    for (const Pool& pool : {kSerial, check::odd_pool()}) {
      for (auto* y : {&natural, &packed}) std::fill(y->data(), y->data() + y->size(), NAN);
      sparse_linear_fwd(s, plan.data(), x.data(), xs, w.data(), bias, natural.data(), ys, pool);
      sparse_linear_packed_fwd(s, pack.data(), x.data(), xs, bias, packed.data(), ys, pool);
      std::vector<float> all(natural.data(), natural.data() + natural.size());
      all.insert(all.end(), packed.data(), packed.data() + packed.size());
      if (first.empty()) first = all;
      if (!all.empty() && std::memcmp(first.data(), all.data(), all.size() * 4)) ok = false, std::printf("FAIL threads changed the result\n");
    }
    for (int64_t o = 0; o < out; ++o)
      for (int64_t n = 0; n < c.N; ++n) {
        double sum = with_bias ? b[size_t(o)] : 0.0, size = std::fabs(sum);
        for (int64_t f = 0; f < c.F; ++f)
          for (int64_t i = 0; i < c.BI; ++i) {
            const int64_t e = o / c.BO * c.F + f;
            const double p = double(w[size_t((e * c.BO + o % c.BO) * c.BI + i)]) * x[at(xs, n, int64_t(index[size_t(e)]) * c.BI + i)];
            sum += p, size += std::fabs(p);
          }
        const double terms = double(c.F * c.BI + 1);
        if (compare_natural) ok &= check::close("natural", natural[at(ys, n, o)], sum, terms, size);
        if (compare_packed) ok &= check::close("packed", packed[at(ys, n, o)], sum, terms, size);
      }
  }
  if (!ok)
    std::printf("  in case N=%ld OB=%ld F=%ld BO=%ld BI=%ld IB=%ld%s%s%s, kernel %d\n", c.N, c.OB, c.F, c.BO, c.BI, c.IB, balanced ? " balanced" : "",
                bf16 ? " bf16" : "", c.feature_major ? " feature-major" : "", int(kernel));
  return ok;
}

// Inf and NaN in inputs that an output does not read do not reach it, even in its own windows.
bool only_what_is_connected() {
  constexpr int64_t N = 5, OB = 37, F = 9, IB = 96;  // windows with an odd count
  std::vector<int32_t> index, plan, pack;
  for (int64_t row = 0; row < OB; ++row)
    for (int64_t f = 0; f < F; ++f) index.push_back(int32_t(f / 3 * 32 + f % 3 * 8 + 1 + (row + f) % 7));  // never 0, 8, ...
  std::vector<float> x(N * IB, 1.0f), w(OB * F, 1.0f), y(N * OB);
  for (int64_t n = 0; n < N; ++n)
    for (int64_t i = 0; i < IB; i += 8) x[size_t(n * IB + i)] = i % 16 ? INFINITY : NAN;
  const SparseLinearShape s{N, OB, F, 1, 1, IB};
  if (sparse_linear_plan(s, index.data(), plan).rule) return std::printf("FAIL plan refused\n"), false;
  sparse_linear_pack(s, plan.data(), w.data(), nullptr, pack);
  bool ok = true;
  for (const bool packed : {false, true}) {
    if (packed)
      sparse_linear_packed_fwd(s, pack.data(), x.data(), {IB, 1}, nullptr, y.data(), {OB, 1}, kSerial);
    else
      sparse_linear_fwd(s, plan.data(), x.data(), {IB, 1}, w.data(), nullptr, y.data(), {OB, 1}, kSerial);
    for (float v : y) ok &= v == float(F);
  }
  std::vector<uint16_t> xh(x.size()), wh(w.size(), 0x3f80), yh(y.size());
  std::transform(x.begin(), x.end(), xh.begin(), half);
  sparse_linear_pack(s, plan.data(), w.data(), wh.data(), pack);
  SparseLinearShape packed = sparse_linear_pack_shape(pack.data(), int64_t(pack.size()));
  packed.N = N;
  if (sparse_linear_packed_choice(packed, LinearType::bf16) == LinearKernel::balanced && sparse_linear_packed_tiles(packed, pack.data())) {
    sparse_linear_packed_fwd(packed, pack.data(), xh.data(), {IB, 1}, nullptr, yh.data(), {OB, 1}, kSerial);
    for (uint16_t v : yh) ok &= value(v) == double(F);
  } else {
    ok &= isa() != Isa::amx;
  }
  if (!ok) std::printf("FAIL an unconnected Inf or NaN was read\n");
  return ok;
}

bool one_out_of_place_is_not_balanced() {
  const SparseLinearShape s{0, 3, 2, 1, 1, 64};
  std::vector<int32_t> plan, index{0, 32, 31, 63, 5, 40};
  bool ok = !sparse_linear_plan(s, index.data(), plan).rule && sparse_linear_plan_balanced(plan.data()) == isa_supported(Isa::avx512);
  index[5] = 31;
  ok &= !sparse_linear_plan(s, index.data(), plan).rule && !sparse_linear_plan_balanced(plan.data());
  if (!ok) std::printf("FAIL which tables are balanced\n");
  return ok;
}

}  // namespace

int main() {
  if (!check::wanted_isa()) return 0;
  bool ok = one_out_of_place_is_not_balanced() & only_what_is_connected();
  int cases = 0;
  const auto all = [&](const Case& c, bool balanced) {
    for (const bool bf16 : {false, true}) ok &= run(c, balanced, bf16), ++cases;
  };
  for (const bool feature_major : {false, true})
    for (const int64_t N : {0, 1, 2, 3, 4, 5, 7, 8, 16, 17, 33, 65}) {
      // below and above a third kept; inputs below, at and around windows of 32; groups of 16 outputs whole and cut
      for (const auto& [OB, F, IB] :
           {std::array<int64_t, 3>{1, 1, 1}, {7, 3, 9}, {130, 40, 300}, {33, 17, 33}, {5, 100, 257}, {48, 20, 64}, {97, 1, 40}})
        for (const bool balanced : {false, true}) all({N, OB, F, 1, 1, IB, feature_major}, balanced);
      for (const auto& [OB, F, IB] :
           {std::array<int64_t, 3>{4, 15, 15}, {9, 20, 25}, {7, 32, 32}, {40, 30, 33}, {16, 64, 64}, {6, 90, 99}, {50, 70, 127}})
        for (const bool balanced : {false, true}) all({N, OB, F, 1, 1, IB, feature_major}, balanced);
      all({N, 101, 40, 1, 1, 459, feature_major}, false);  // random: places in windows, and connections that find none
      all({N, 260, 130, 1, 1, 1000, feature_major}, false);
      all({N, 70, 307, 1, 1, 3072, feature_major}, true);  // runs of several kinds, more than one of a kind
      for (const auto& [BO, BI] : {std::array<int64_t, 2>{16, 1}, {20, 1}, {1, 16}, {4, 4}, {16, 16}, {5, 3}, {32, 32}})
        all({N, 3, 2, BO, BI, 4, feature_major}, false);
    }
  for (int64_t F = 1; F <= 32; ++F)  // every count in a window
    for (const int64_t N : {1, 2, 3, 4}) all({N, 35, F, 1, 1, 32, false}, true);
  for (const int64_t N : {1, 2, 3, 4}) all({N, 130, 600, 1, 1, 2050, false}, true);  // groups of outputs for several threads
  all({3, 2, 3, 1, 1, 70000, false}, false);                                         // wide indices
  all({1, 520, 1200, 1, 1, 2048, false}, false);                                     // zeros kept, beyond the second-level cache: rows are expanded
  std::set<LinearKernel> want{LinearKernel::gather, LinearKernel::feature_major, LinearKernel::block_dot, LinearKernel::block_tile,
                              LinearKernel::dense_rows};
  if (has_avx512()) want.insert({LinearKernel::balanced, LinearKernel::expanded, LinearKernel::windows});
  if ((bf16_cases > 0) != (isa() == Isa::amx)) ok = false, std::printf("FAIL bf16 rows through balanced packs: %d cases\n", bf16_cases);
  if (served != want && thin::every() == 1) ok = false, std::printf("FAIL not every kernel was met\n");
  if (served != want)
    for (LinearKernel k : served) std::printf("  met %d\n", int(k));
  check::say_not_compared();
  std::printf("%s %s, %d cases\n", ok ? "ok" : "FAILED", isa_name(), cases);
  return !ok;
}
