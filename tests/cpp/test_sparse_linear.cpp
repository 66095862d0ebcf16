// sparse_linear against naive double loops: all products, kernels, layouts; inputs end at an unreadable page; threads change nothing.
#include <set>

#include "check.h"
#include "core/sparse_linear_dense.h"
#include "thin.h"

using namespace sk;
using check::Guarded;

namespace {

struct Case {
  int64_t N, OB, F, BO, BI, IB;
  bool feature_major;
};

std::set<LinearKernel> served;  // forward, in all cases

bool run(const Case& c) {
  if (thin::left_out()) return true;
  const SparseLinearShape s{c.N, c.OB, c.F, c.BO, c.BI, c.IB};
  served.insert(sparse_linear_plain_kernel(s, Product::forward));
  const int64_t in = s.in(), out = s.out();
  std::mt19937 random(unsigned(in * 31 + out));
  Guarded<int32_t> index(size_t(c.OB * c.F));
  for (int64_t row = 0; row < c.OB; ++row) {  // a sorted sample of F out of IB
    int64_t left = c.F;
    for (int64_t i = 0, f = 0; i < c.IB && left; ++i)
      if (int64_t(random() % uint32_t(c.IB - i)) < left) index[size_t(row * c.F + f++)] = int32_t(i), --left;
  }
  std::vector<int32_t> plan;
  if (sparse_linear_plan(s, index.data(), plan).rule) return std::printf("FAIL plan refused\n"), false;
  if (!sparse_linear_plan_fits(s, plan.data(), int64_t(plan.size()))) return std::printf("FAIL plan does not fit\n"), false;

  Guarded<float> x(size_t(c.N * in)), w(size_t(s.kept())), b(static_cast<size_t>(out)), g(size_t(c.N * out));
  Guarded<float> y(size_t(c.N * out)), gx(size_t(c.N * in)), gw(size_t(s.kept()));
  check::fill(x, 1), check::fill(w, 2), check::fill(b, 3), check::fill(g, 4);
  const Strides xs = c.feature_major ? Strides{1, c.N} : Strides{in, 1}, ys = c.feature_major ? Strides{1, c.N} : Strides{out, 1};
  const auto at = [](const Strides& st, int64_t n, int64_t i) { return size_t(n * st.row + i * st.col); };

  bool ok = true;
  std::vector<float> first;
  for (const Pool& pool : {kSerial, check::odd_pool()}) {
    for (auto* v : {&y, &gx, &gw}) std::memset(v->data(), 0x7f, v->size() * 4);
    sparse_linear_fwd(s, plan.data(), x.data(), xs, w.data(), b.data(), y.data(), ys, pool);
    sparse_linear_grad_x(s, plan.data(), g.data(), ys, w.data(), gx.data(), xs, pool);
    sparse_linear_grad_weight(s, plan.data(), g.data(), ys, x.data(), xs, gw.data(), pool);
    std::vector<float> all;
    for (auto* v : {&y, &gx, &gw}) all.insert(all.end(), v->data(), v->data() + v->size());
    if (first.empty()) first = all;
    if (!all.empty() && std::memcmp(first.data(), all.data(), all.size() * 4)) ok = false, std::printf("FAIL threads changed the result\n");
    Guarded<float> scattered(size_t(out * in)), expanded(size_t(out * in));
    sparse_linear_to_dense(s, plan.data(), w.data(), scattered.data(), pool);
    if (sparse_linear_expand_to_dense(s, plan.data(), w.data(), expanded.data(), pool) &&
        std::memcmp(scattered.data(), expanded.data(), expanded.size() * 4))
      ok = false, std::printf("FAIL expanded to another dense weight\n");
  }

  const auto comparable = [&](Product product) { return check::comparable(sparse_linear_plain_kernel(s, product) == LinearKernel::gather); };
  const bool compare_y = comparable(Product::forward), compare_gx = comparable(Product::grad_x), compare_gw = comparable(Product::grad_weight);
  std::vector<double> want_gx(size_t(c.N * in)), size_gx(want_gx), terms_gx(want_gx);
  for (int64_t row = 0; row < c.OB; ++row)
    for (int64_t o = 0; o < c.BO; ++o) {
      const int64_t oo = row * c.BO + o;
      for (int64_t n = 0; n < c.N; ++n) {
        double sum = b[size_t(oo)], size = std::fabs(sum);
        for (int64_t f = 0; f < c.F; ++f)
          for (int64_t i = 0; i < c.BI; ++i) {
            const int64_t ii = int64_t(index[size_t(row * c.F + f)]) * c.BI + i;
            const double wv = w[size_t(((row * c.F + f) * c.BO + o) * c.BI + i)], xv = x[at(xs, n, ii)], gv = g[at(ys, n, oo)];
            sum += wv * xv, size += std::fabs(wv * xv);
            want_gx[size_t(n * in + ii)] += wv * gv, size_gx[size_t(n * in + ii)] += std::fabs(wv * gv), ++terms_gx[size_t(n * in + ii)];
          }
        if (compare_y) ok &= check::close("forward", y[at(ys, n, oo)], sum, double(c.F * c.BI + 1), size);
      }
      for (int64_t f = 0; f < c.F; ++f)
        for (int64_t i = 0; i < c.BI; ++i) {
          double sum = 0, size = 0;
          for (int64_t n = 0; n < c.N; ++n) {
            const double p = double(x[at(xs, n, int64_t(index[size_t(row * c.F + f)]) * c.BI + i)]) * g[at(ys, n, oo)];
            sum += p, size += std::fabs(p);
          }
          if (compare_gw) ok &= check::close("grad_weight", gw[size_t(((row * c.F + f) * c.BO + o) * c.BI + i)], sum, double(c.N), size);
        }
    }
  for (int64_t n = 0; n < c.N; ++n)
    for (int64_t i = 0; i < in && compare_gx; ++i)
      ok &= check::close("grad_x", gx[at(xs, n, i)], want_gx[size_t(n * in + i)], terms_gx[size_t(n * in + i)], size_gx[size_t(n * in + i)]);
  if (!ok)
    std::printf("  in case N=%ld OB=%ld F=%ld BO=%ld BI=%ld IB=%ld %s\n", c.N, c.OB, c.F, c.BO, c.BI, c.IB, c.feature_major ? "feature-major" : "");
  return ok;
}

bool bad_tables_are_refused() {
  const SparseLinearShape s{0, 2, 3, 1, 1, 9};
  const int32_t tables[][6] = {{0, 1, 9, 0, 1, 2}, {0, 1, 2, -1, 1, 2}, {0, 1, 1, 0, 1, 2}, {0, 2, 1, 0, 1, 2}};
  std::vector<int32_t> plan;
  for (const auto& table : tables)
    if (!sparse_linear_plan(s, table, plan).rule) return std::printf("FAIL a bad table was planned\n"), false;
  const int32_t good[] = {0, 1, 2, 3, 4, 8};
  if (sparse_linear_plan(s, good, plan).rule) return std::printf("FAIL a good table was refused\n"), false;
  const SparseLinearShape other{0, 2, 3, 1, 1, 10};
  return !sparse_linear_plan_fits(other, plan.data(), int64_t(plan.size())) && !sparse_linear_plan_fits(s, plan.data(), int64_t(plan.size()) - 1) &&
         !sparse_linear_plan_fits(s, plan.data(), 3);
}

}  // namespace

int main() {
  if (!check::wanted_isa()) return 0;
  bool ok = bad_tables_are_refused();
  int cases = 0;
  for (const bool feature_major : {false, true})
    for (const int64_t N : {0, 1, 2, 3, 4, 7, 8, 16, 37, 64, 65, 130}) {
      for (const auto& [OB, F, IB] : {std::array<int64_t, 3>{1, 1, 1},
                                      {7, 3, 9},
                                      {130, 40, 300},
                                      {33, 17, 33},
                                      {5, 100, 257},
                                      {50, 6, 40},
                                      {33, 1, 20},
                                      {70, 7, 64},
                                      {35, 30, 65},
                                      {1, 40, 500}})
        ok &= run({N, OB, F, 1, 1, IB, feature_major}), ++cases;
      // most connections kept: rows are expanded; inputs below, at, and around words of 32
      for (const auto& [OB, F, IB] :
           {std::array<int64_t, 3>{4, 15, 15}, {9, 20, 25}, {7, 32, 32}, {6, 30, 33}, {11, 64, 64}, {6, 90, 99}, {13, 70, 127}, {40, 290, 300}})
        ok &= run({N, OB, F, 1, 1, IB, feature_major}), ++cases;
      for (const auto& [BO, BI] :
           {std::array<int64_t, 2>{16, 1}, {20, 1}, {1, 16}, {4, 4}, {16, 16}, {5, 3}, {32, 32}, {48, 16}, {32, 5}, {20, 32}, {32, 1}, {1, 32}})
        ok &= run({N, 3, 2, BO, BI, 4, feature_major}), ++cases;
    }
  ok &= run({3, 2, 3, 1, 1, 70000, false});                                    // wide indices
  for (const int64_t BO : {16, 48}) ok &= run({70, 3, 19, BO, 1, 41, false});  // many panels share their outputs
  ok &= run({61, 2, 2, 32, 32, 512, false});                                   // more rows of blocks than go through the cache at once
  ok &= run({65, 3, 9, 32, 32, 12, false});                                    // turned weights come in pieces
  ok &= run({9, 3, 9, 48, 16, 12, false});
  for (const bool feature_major : {false, true}) {  // strips: blocks of inputs, waves of rows, panels of outputs
    ok &= run({70, 50, 600, 1, 1, 790, feature_major});
    ok &= run({270, 200, 300, 1, 1, 400, feature_major});
    ok &= run({256, 900, 30, 1, 1, 40, feature_major});
  }
  std::set<LinearKernel> want{LinearKernel::gather, LinearKernel::feature_major, LinearKernel::block_dot, LinearKernel::block_tile};
  if (has_avx512()) want.insert({LinearKernel::expanded, LinearKernel::expanded_strips});
  if (served != want && thin::every() == 1) ok = false, std::printf("FAIL not every kernel was met\n");
  check::say_not_compared();
  std::printf("%s %s, %d cases\n", ok ? "ok" : "FAILED", isa_name(), cases);
  return !ok;
}
