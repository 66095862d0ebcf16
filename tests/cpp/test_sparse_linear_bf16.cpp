// sparse_linear in bf16 on matrix tiles against naive double loops: all products, packed and not, both layouts; inputs and outputs
// end at an unreadable page; threads change nothing.
#include "check.h"
#include "core/sparse_linear.h"

using namespace sk;
using check::Guarded, check::value;

namespace {

struct Case {
  int64_t N, OB, F, BO, BI, IB;
  bool feature_major;
};

// A sum of `terms` products in fp32, of absolute sum `size`, stored as bf16.
bool close(const char* what, uint16_t got, double want, double terms, double size) {
  const double sum = (terms + 2) * 5.9604644775390625e-8 * size, bound = sum + 0.00390625 * (std::fabs(want) + sum) + 1e-30;
  if (std::fabs(value(got) - want) <= bound) return true;
  std::printf("FAIL %s: got %.9g, want %.9g +- %.3g\n", what, value(got), want, bound);
  return false;
}

bool run(const Case& c) {
  const SparseLinearShape s{c.N, c.OB, c.F, c.BO, c.BI, c.IB};
  const int64_t in = s.in(), out = s.out();
  std::mt19937 random(unsigned(in * 31 + out));
  std::vector<int32_t> index(size_t(c.OB * c.F));
  for (int64_t row = 0; row < c.OB; ++row) {  // a sorted sample of F out of IB
    int64_t left = c.F;
    for (int64_t i = 0, f = 0; i < c.IB && left; ++i)
      if (int64_t(random() % uint32_t(c.IB - i)) < left) index[size_t(row * c.F + f++)] = int32_t(i), --left;
  }
  std::vector<int32_t> plan, pack;
  if (sparse_linear_plan(s, index.data(), plan).rule) return std::printf("FAIL plan refused\n"), false;

  const bool forward = sparse_linear_tiles(s, Product::forward), backward = sparse_linear_tiles(s, Product::grad_x);
  if (forward != (c.N > 0) || backward != (c.N > 0)) return std::printf("FAIL which products tiles serve\n"), false;
  if (!forward) return true;

  Guarded<uint16_t> x(size_t(c.N * in)), w(size_t(s.kept())), b(static_cast<size_t>(out)), g(size_t(c.N * out));
  Guarded<uint16_t> y(size_t(c.N * out)), packed(size_t(c.N * out)), gx(size_t(c.N * in)), gw(size_t(s.kept()));
  fill(x, 1), fill(w, 2), fill(b, 3), fill(g, 4);
  std::vector<float> wf(w.size());
  for (size_t i = 0; i < w.size(); ++i) wf[i] = float(value(w[i]));
  sparse_linear_pack(s, plan.data(), wf.data(), w.data(), pack);
  const Strides xs = c.feature_major ? Strides{1, c.N} : Strides{in, 1}, ys = c.feature_major ? Strides{1, c.N} : Strides{out, 1};
  const auto at = [](const Strides& st, int64_t n, int64_t i) { return size_t(n * st.row + i * st.col); };

  const bool has_pack = c.BO * c.BI > 1 || c.F * 128 >= c.IB;  // else packed rows are not worth a mask
  bool ok = true;
  std::vector<uint16_t> first;
  for (const Pool& pool : {kSerial, check::odd_pool()}) {
    for (auto* v : {&y, &packed, &gx, &gw}) std::memset(v->data(), 0x7f, v->size() * 2);
    sparse_linear_fwd(s, plan.data(), x.data(), xs, w.data(), b.data(), y.data(), ys, pool);
    if (has_pack) sparse_linear_packed_fwd(s, pack.data(), x.data(), xs, b.data(), packed.data(), ys, pool);
    if (backward) {
      sparse_linear_grad_x(s, plan.data(), g.data(), ys, w.data(), gx.data(), xs, pool);
      sparse_linear_grad_weight(s, plan.data(), g.data(), ys, x.data(), xs, gw.data(), pool);
    }
    std::vector<uint16_t> all;
    for (auto* v : {&y, &packed, &gx, &gw}) all.insert(all.end(), v->data(), v->data() + v->size());
    if (first.empty()) first = all;
    if (std::memcmp(first.data(), all.data(), all.size() * 2)) ok = false, std::printf("FAIL threads changed the result\n");
  }

  std::vector<double> want_gx(size_t(c.N * in)), size_gx(want_gx), terms_gx(want_gx);
  for (int64_t row = 0; row < c.OB; ++row)
    for (int64_t o = 0; o < c.BO; ++o) {
      const int64_t oo = row * c.BO + o;
      for (int64_t n = 0; n < c.N; ++n) {
        double sum = value(b[size_t(oo)]), size = std::fabs(sum);
        for (int64_t f = 0; f < c.F; ++f)
          for (int64_t i = 0; i < c.BI; ++i) {
            const int64_t ii = int64_t(index[size_t(row * c.F + f)]) * c.BI + i;
            const double wv = value(w[size_t(((row * c.F + f) * c.BO + o) * c.BI + i)]), xv = value(x[at(xs, n, ii)]);
            const double gv = value(g[at(ys, n, oo)]);
            sum += wv * xv, size += std::fabs(wv * xv);
            want_gx[size_t(n * in + ii)] += wv * gv, size_gx[size_t(n * in + ii)] += std::fabs(wv * gv), ++terms_gx[size_t(n * in + ii)];
          }
        ok &= close("forward", y[at(ys, n, oo)], sum, double(c.F * c.BI + 1), size);
        if (has_pack) ok &= close("packed", packed[at(ys, n, oo)], sum, double(c.F * c.BI + 1), size);
      }
      for (int64_t f = 0; f < c.F && backward; ++f)
        for (int64_t i = 0; i < c.BI; ++i) {
          double sum = 0, size = 0;
          for (int64_t n = 0; n < c.N; ++n) {
            const double p = value(x[at(xs, n, int64_t(index[size_t(row * c.F + f)]) * c.BI + i)]) * value(g[at(ys, n, oo)]);
            sum += p, size += std::fabs(p);
          }
          ok &= close("grad_weight", gw[size_t(((row * c.F + f) * c.BO + o) * c.BI + i)], sum, double(c.N), size);
        }
    }
  for (int64_t n = 0; n < c.N && backward; ++n)
    for (int64_t i = 0; i < in; ++i)
      ok &= close("grad_x", gx[at(xs, n, i)], want_gx[size_t(n * in + i)], terms_gx[size_t(n * in + i)], size_gx[size_t(n * in + i)]);
  if (!ok)
    std::printf("  in case N=%ld OB=%ld F=%ld BO=%ld BI=%ld IB=%ld %s\n", c.N, c.OB, c.F, c.BO, c.BI, c.IB, c.feature_major ? "feature-major" : "");
  return ok;
}

}  // namespace

int main() {
  if (!check::wanted_isa()) return 0;
  if (isa() != Isa::amx) {
    const bool none = !sparse_linear_tiles({64, 2, 2, 32, 32, 4}, Product::forward);
    std::printf("%s: no tiles on %s\n", none ? "ok" : "FAILED", isa_name());
    return !none;
  }
  bool ok = true;
  int cases = 0;
  for (const bool feature_major : {false, true})
    for (const int64_t N : {0, 1, 2, 3, 15, 16, 17, 37, 64, 65, 130}) {
      for (const auto& [OB, F, IB] :
           {std::array<int64_t, 3>{1, 1, 1}, {7, 3, 9}, {130, 40, 300}, {33, 17, 33}, {5, 100, 257}, {16, 64, 64}, {49, 700, 1100}})
        ok &= run({N, OB, F, 1, 1, IB, feature_major}), ++cases;
      for (const auto& [BO, BI] : {std::array<int64_t, 2>{16, 16}, {32, 32}, {16, 32}, {32, 16}, {48, 48}, {64, 64}, {128, 32}})
        ok &= run({N, 3, 2, BO, BI, 4, feature_major}), ++cases;
      for (const int64_t BO : {16, 32, 48, 64})  // panels
        for (const auto& [F, IB] : {std::array<int64_t, 2>{1, 1}, {5, 9}, {20, 50}, {33, 70}, {64, 64}})
          ok &= run({N, 3, F, BO, 1, IB, feature_major}), ++cases;
      ok &= run({N, 12, 1, 16, 16, 40, feature_major}), ++cases;  // sparse: with few rows the weight is the left factor
    }
  ok &= run({1100, 40, 60, 1, 1, 200, false}), ++cases;  // several chunks of rows
  for (const int64_t N : {20, 70})                       // grad_x: several strips of outputs, several blocks of inputs
    for (const bool feature_major : {false, true}) ok &= run({N, 700, 30, 1, 1, 300, feature_major}), ++cases;
  ok &= run({1100, 4, 2, 32, 32, 80, false}), ++cases;
  for (const int64_t N : {1, 20, 100})
    ok &= run({N, 35, 2, 1, 1, 100, false}), ok &= run({N, 35, 2, 1, 1, 300, false}), cases += 2;  // sparse: the mask is made at the call
  std::printf("%s %s, %d cases\n", ok ? "ok" : "FAILED", isa_name(), cases);
  return !ok;
}
