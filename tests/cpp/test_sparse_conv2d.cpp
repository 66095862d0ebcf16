// sparse_conv2d against naive double loops: every granularity, layout and odd geometry, all three products in both precisions.
// Inputs lie between unreadable pages; outputs too, and around them bytes that must not change; threads change no bit.
#include "check.h"
#include "core/sparse_conv2d.h"
#include "thin.h"

using namespace sk;

namespace {

// `size` values right after (`front`) or right before an unreadable page; the rest of their pages holds a pattern.
template <class T>
class Fenced {
 public:
  Fenced(int64_t size, bool front) : size_(size), bytes_(size_t(size) * sizeof(T)) {
    page_ = size_t(sysconf(_SC_PAGESIZE));
    room_ = (bytes_ + page_) / page_ * page_;
    base_ = static_cast<char*>(mmap(nullptr, room_ + 2 * page_, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0));
    std::memset(base_, 0x5a, room_ + 2 * page_);
    mprotect(base_, page_, thin::guarded());
    mprotect(base_ + page_ + room_, page_, thin::guarded());
    data_ = base_ + page_ + (front ? 0 : room_ - bytes_);
  }
  ~Fenced() { munmap(base_, room_ + 2 * page_); }
  Fenced(const Fenced&) = delete;
  T* data() { return reinterpret_cast<T*>(data_); }
  T& operator[](int64_t i) { return data()[i]; }
  int64_t size() const { return size_; }
  size_t bytes() const { return bytes_; }
  bool fence_untouched() const {
    for (const char* p = base_ + page_; p < base_ + page_ + room_; ++p)
      if ((p < data_ || p >= data_ + bytes_) && *p != 0x5a) return false;
    return true;
  }

 private:
  int64_t size_;
  size_t bytes_, page_, room_;
  char *base_, *data_;
};

struct Case {
  SparseConv2dShape s;
  double density;
  unsigned seed;
};

// The dense weight there and back, through the table itself.
bool dense_weight(const SparseConv2dShape& s, const std::vector<int32_t>& plan, const std::vector<float>& weight) {
  std::vector<float> dense(size_t(s.K * s.C * s.taps()), -1.0f), back(weight.size(), -1.0f);
  sparse_conv2d_to_dense(s, plan.data(), weight.data(), dense.data(), check::odd_pool());
  sparse_conv2d_from_dense(s, plan.data(), dense.data(), back.data(), check::odd_pool());
  int64_t kept = 0;
  for (float v : dense) kept += v != 0;
  if (back == weight && kept == int64_t(weight.size())) return true;
  std::printf("FAIL dense weight\n");
  return false;
}

// A random table of exactly round(density * positions) blocks.
void draw(SparseConv2dShape& s, double density, std::mt19937& random, std::vector<int32_t>& indptr, std::vector<int32_t>& index) {
  const int64_t codes = s.IB() * s.TB(), positions = s.OB() * codes;
  int64_t left = int64_t(std::llround(density * double(positions)));
  s.nnz = left;
  indptr.assign(1, 0);
  index.clear();
  for (int64_t p = 0; p < positions; ++p) {
    if (left > 0 && int64_t(random() % uint32_t(positions - p)) < left) index.push_back(int32_t(p % codes)), --left;
    if (p % codes == codes - 1) indptr.push_back(int32_t(index.size()));
  }
}

int64_t place(bool last, int64_t channels, int64_t h, int64_t w, int64_t n, int64_t c, int64_t y, int64_t x) {
  return last ? ((n * h + y) * w + x) * channels + c : ((n * channels + c) * h + y) * w + x;
}

struct Sums {  // value, sum of magnitudes, number of terms
  std::vector<double> value, size, terms;
  explicit Sums(int64_t n) : value(size_t(n)), size(size_t(n)), terms(size_t(n)) {}
  void add(int64_t i, double product) { value[size_t(i)] += product, size[size_t(i)] += std::fabs(product), ++terms[size_t(i)]; }
};

void naive(const SparseConv2dShape& s, const std::vector<int32_t>& indptr, const std::vector<int32_t>& index, const float* x, const float* w,
           const float* bias, const float* g, Sums& out, Sums& gx, Sums& gw) {
  const int64_t OH = s.OH(), OW = s.OW();
  for (int64_t n = 0; n < s.N; ++n)
    for (int64_t k = 0; k < s.K; ++k)
      for (int64_t y = 0; y < OH; ++y)
        for (int64_t c = 0; c < OW; ++c) {
          const int64_t at = place(s.channels_last, s.K, OH, OW, n, k, y, c);
          if (bias) out.add(at, bias[k]);
          const int64_t ob = k / s.BO, o = k % s.BO;
          for (int64_t e = indptr[size_t(ob)]; e < indptr[size_t(ob) + 1]; ++e)
            for (int64_t i = 0; i < s.BI; ++i)
              for (int64_t t = 0; t < s.BT; ++t) {
                const int64_t channel = index[size_t(e)] / s.TB() * s.BI + i, tap = index[size_t(e)] % s.TB() * s.BT + t;
                const int64_t iy = y * s.stride_h + tap / s.KW * s.dilation_h - s.pad_h;
                const int64_t ix = c * s.stride_w + tap % s.KW * s.dilation_w - s.pad_w;
                if (iy < 0 || iy >= s.H || ix < 0 || ix >= s.W) continue;
                const int64_t from = place(s.channels_last, s.C, s.H, s.W, n, channel, iy, ix);
                const int64_t weight = ((e * s.BO + o) * s.BI + i) * s.BT + t;
                out.add(at, double(x[from]) * w[weight]);
                gx.add(from, double(g[at]) * w[weight]);
                gw.add(weight, double(g[at]) * x[from]);
              }
        }
}

template <class T>
bool compare(const char* what, Fenced<T>& got, const Sums& want) {
  bool ok = got.fence_untouched();
  if (!ok) std::printf("FAIL %s: wrote outside\n", what);
  for (int64_t i = 0; i < got.size() && ok; ++i) {
    const size_t j = size_t(i);
    // a float bound; the double kernels must keep it with room to spare
    const double narrow = sizeof(T) == 8 ? 1e-6 : 1.0;
    ok = check::close(what, want.value[j] + (got[i] - want.value[j]) / narrow, want.value[j], want.terms[j], want.size[j]);
  }
  return ok;
}

template <class T>
bool products(const SparseConv2dShape& s, const std::vector<int32_t>& plan, bool front, const float* xf, const float* wf, const float* bf,
              const float* gf, const Sums& out, const Sums& gx, const Sums& gw) {
  const int64_t outs = s.N * s.K * s.OH() * s.OW(), ins = s.N * s.C * s.H * s.W, weights = s.nnz * s.BO * s.BI * s.BT;
  Fenced<T> x(ins, front), w(weights, front), b(s.K, front), g(outs, front);
  for (int64_t i = 0; i < ins; ++i) x[i] = T(xf[i]);
  for (int64_t i = 0; i < weights; ++i) w[i] = T(wf[i]);
  for (int64_t i = 0; i < outs; ++i) g[i] = T(gf[i]);
  for (int64_t i = 0; bf && i < s.K; ++i) b[i] = T(bf[i]);
  Fenced<T> y(outs, front), dx(ins, front), dw(weights, front);
  std::vector<char> first;
  bool ok = true;
  for (const Pool& pool : {kSerial, check::odd_pool()}) {
    for (Fenced<T>* v : {&y, &dx, &dw}) std::memset(static_cast<void*>(v->data()), 0xff, v->bytes());  // NaN
    sparse_conv2d(s, x.data(), w.data(), plan.data(), bf ? b.data() : nullptr, y.data(), pool);
    sparse_conv2d_grad_x(s, g.data(), w.data(), plan.data(), dx.data(), pool);
    sparse_conv2d_grad_weight(s, x.data(), g.data(), plan.data(), dw.data(), pool);
    std::vector<char> all;
    for (Fenced<T>* v : {&y, &dx, &dw}) {
      const char* bytes = reinterpret_cast<char*>(v->data());
      all.insert(all.end(), bytes, bytes + v->bytes());
    }
    if (first.empty()) first = all;
    if (first != all) ok = false, std::printf("FAIL threads changed the result\n");
  }
  return ok && compare("out", y, out) && compare("grad_x", dx, gx) && compare("grad_weight", dw, gw);
}

bool run(const Case& c) {
  if (thin::left_out()) return true;
  SparseConv2dShape s = c.s;
  std::mt19937 random(c.seed);
  std::vector<int32_t> indptr, index;
  draw(s, c.density, random, indptr, index);
  std::vector<int32_t> plan(size_t(sparse_conv2d_plan_size(s)));
  bool ok = sparse_conv2d_plan(s, indptr.data(), index.data(), plan.data()).fault == SparseConv2dFault::none &&
            sparse_conv2d_plan_matches(s, plan.data(), int64_t(plan.size()));
  if (!ok) return std::printf("FAIL plan\n"), false;

  std::normal_distribution<float> normal;
  const auto values = [&](int64_t n) {
    std::vector<float> v(static_cast<size_t>(n));
    for (float& f : v) f = normal(random);
    return v;
  };
  const int64_t outs = s.N * s.K * s.OH() * s.OW(), ins = s.N * s.C * s.H * s.W, weights = s.nnz * s.BO * s.BI * s.BT;
  const auto x = values(ins), w = values(weights), b = values(s.K), g = values(outs);
  const float* bias = c.seed % 4 ? b.data() : nullptr;
  Sums out(outs), gx(ins), gw(weights);
  naive(s, indptr, index, x.data(), w.data(), bias, g.data(), out, gx, gw);
  ok = dense_weight(s, plan, w) && products<float>(s, plan, c.seed % 2, x.data(), w.data(), bias, g.data(), out, gx, gw) &&
       products<double>(s, plan, c.seed % 2, x.data(), w.data(), bias, g.data(), out, gx, gw);
  if (!ok)
    std::printf(
        "  in N=%ld C=%ld %ldx%ld K=%ld kernel %ldx%ld stride %ldx%ld pad %ldx%ld dilation %ldx%ld block %ld,%ld,%ld "
        "density %g %s seed %u\n",
        long(s.N), long(s.C), long(s.H), long(s.W), long(s.K), long(s.KH), long(s.KW), long(s.stride_h), long(s.stride_w), long(s.pad_h),
        long(s.pad_w), long(s.dilation_h), long(s.dilation_w), long(s.BO), long(s.BI), long(s.BT), c.density, s.channels_last ? "channels_last" : "",
        c.seed);
  return ok;
}

// Random combinations of what a user may ask for.
Case random_case(unsigned seed) {
  std::mt19937 random(seed * 7919 + 1);
  const auto pick = [&](std::initializer_list<int64_t> list) { return list.begin()[random() % list.size()]; };
  for (;;) {
    SparseConv2dShape s{};
    s.N = pick({1, 1, 2, 3, 0});
    s.C = pick({1, 3, 16, 20, 32, 96});
    s.K = pick({1, 8, 12, 32, 33});
    s.KH = pick({1, 2, 3, 5});
    s.KW = pick({s.KH, s.KH, 1, 3});
    s.H = pick({1, 5, 7, 8, 9, 16, 17});
    s.W = pick({s.H, s.H, 5, 14, 16, 31, 32});
    s.stride_h = pick({1, 1, 1, 2, 3});
    s.stride_w = pick({s.stride_h, s.stride_h, 1, 2});
    s.dilation_h = pick({1, 1, 2});
    s.dilation_w = pick({s.dilation_h, 1, 2});
    const bool same = random() % 2;
    s.pad_h = same ? s.dilation_h * (s.KH - 1) / 2 : pick({0, 1, 3});
    s.pad_w = same ? s.dilation_w * (s.KW - 1) / 2 : pick({0, 2, 4});
    s.channels_last = random() % 3 == 0;
    const int64_t taps = s.taps();
    const int64_t blocks[][3] = {{1, 1, 1}, {1, 1, 1}, {1, s.C, 1}, {1, s.C, 1},    {1, 1, taps}, {2, 1, 1},
                                 {4, 1, 1}, {8, 1, 1}, {4, s.C, 1}, {16, 16, taps}, {16, 16, 1},  {3, 2, taps}};
    const auto& block = blocks[random() % 12];
    s.BO = block[0], s.BI = block[1], s.BT = block[2];
    const double densities[] = {0, 0.02, 0.1, 0.3, 0.7, 1};
    const double density = densities[random() % 6];
    if (s.K % s.BO || s.C % s.BI) continue;
    if (s.H + 2 * s.pad_h <= s.dilation_h * (s.KH - 1) || s.W + 2 * s.pad_w <= s.dilation_w * (s.KW - 1)) continue;
    if (double(s.N * s.K * s.C * taps * s.OH() * s.OW()) * density > 2e7) continue;
    return {s, density, seed};
  }
}

bool faults() {
  SparseConv2dShape s{1, 2, 5, 5, 3, 3, 3, 1, 1, 1, 1, 1, 1, 1, 1, 1, 4, false};  // 3 rows, codes below 18
  std::vector<int32_t> plan(size_t(sparse_conv2d_plan_size(s)), 7);
  bool ok = true;
  const auto expect = [&](std::vector<int32_t> indptr, std::vector<int32_t> index, SparseConv2dFault fault, int64_t position) {
    const SparseConv2dStatus got = sparse_conv2d_plan(s, indptr.data(), index.data(), plan.data());
    if (got.fault == fault && (fault == SparseConv2dFault::none || got.position == position)) return;
    ok = false;
    std::printf("FAIL fault %d at %ld, wanted %d at %ld\n", int(got.fault), long(got.position), int(fault), long(position));
  };
  using F = SparseConv2dFault;
  expect({0, 2, 2, 4}, {0, 17, 3, 4}, F::none, 0);
  expect({1, 2, 2, 4}, {0, 17, 3, 4}, F::indptr_start, 0);
  expect({0, 3, 2, 4}, {0, 1, 3, 4}, F::indptr_order, 2);
  expect({0, -1, 2, 4}, {0, 1, 3, 4}, F::indptr_order, 1);
  expect({0, 2, 2, 3}, {0, 1, 3, 4}, F::indptr_end, 3);
  expect({0, 2000000000, 2000000000, 2000000000}, {0, 1, 3, 4}, F::indptr_end, 3);
  expect({0, 2, 2, 4}, {0, 18, 3, 4}, F::index_range, 1);
  expect({0, 2, 2, 4}, {0, 1, -1, 4}, F::index_range, 2);
  expect({0, 2, 2, 4}, {0, 1, 4, 4}, F::index_order, 3);
  expect({0, 2, 2, 4}, {5, 1, 3, 4}, F::index_order, 1);
  if (sparse_conv2d_plan({1, 2, 5, 5, 3, 3, 3, 1, 1, 1, 1, 1, 1, 1, 1, 1, 4, false}, std::vector<int32_t>{0, 2, 2, 4}.data(),
                         std::vector<int32_t>{0, 17, 3, 4}.data(), plan.data())
          .fault != F::none)
    ok = false;
  const int64_t size = int64_t(plan.size());
  const auto fits = [&](SparseConv2dShape other, int64_t n) { return sparse_conv2d_plan_matches(other, plan.data(), n); };
  ok = ok && fits(s, size) && !fits(s, size - 1);
  SparseConv2dShape other = s;
  other.H = other.W = 99, other.N = 4, other.stride_h = 2;  // one plan per layer, whatever it is shown
  ok = ok && fits(other, size);
  other.KH = 9, other.KW = 1;
  ok = ok && !fits(other, size);
  plan[0] ^= 1;
  ok = ok && !fits(s, size);
  if (!ok) std::printf("FAIL plans\n");
  return ok;
}

bool choices() {
  SparseConv2dShape s{1, 96, 16, 16, 192, 5, 5, 1, 1, 2, 2, 1, 1, 1, 96, 1, 0, false};
  const auto sparse = [&](double density, bool half = false) {
    s.nnz = int64_t(density * double(s.OB() * s.IB() * s.TB()));
    return sparse_conv2d_choice(s, SparseConv2dProduct::out, half).kernel != SparseConv2dKernel::dense;
  };
  bool ok = sparse(0) && sparse(0.25) && sparse(0.65) && !sparse(1) && !sparse(0.25, true) && sparse(0.05, true);
  s.BI = 1;
  ok = ok && sparse(0.25) && sparse(0.7) && !sparse(0.9);  // the dense weight would have to be filled for one image
  s.N = 64;
  ok = ok && sparse(0.4) && !sparse(0.7);
  // half of the weights: maps that fill their patches in either layout; not sums of four vectors, of many images
  s = {1, 64, 56, 56, 64, 3, 3, 1, 1, 1, 1, 1, 1, 1, 1, 1, 0, true};
  ok = ok && sparse(0.5) && (s.channels_last = false, sparse(0.5)) && (s.N = 32, sparse(0.5));
  s = {32, 192, 8, 8, 192, 3, 3, 1, 1, 1, 1, 1, 1, 1, 1, 1, 0, true};
  ok = ok && !sparse(0.5) && sparse(0.25) && (s.N = 1, sparse(0.5));
  // masks that filters share turn channels_last pixels into planes
  s = {32, 16, 56, 56, 16, 3, 3, 1, 1, 1, 1, 1, 1, 4, 1, 1, 0, false};
  ok = ok && sparse(0.25) && (s.channels_last = true, !sparse(0.25));
  s = {1, 96, 16, 16, 192, 5, 5, 1, 1, 2, 2, 1, 1, 1, 1, 1, 0, false};
  set_dense_policy("never");
  ok = ok && sparse(1);
  set_dense_policy("always");
  ok = ok && !sparse(0.1);
  set_dense_policy("auto");
  if (!ok) std::printf("FAIL choice\n");
  return ok;
}

// A NaN reaches the outputs whose windows see its pixel, and no others: not those that lie beside it in memory only.
bool nan_stays() {
  bool ok = true;
  for (bool channels_last : {false, true}) {
    SparseConv2dShape s{2, 20, 8, 9, 16, 3, 3, 1, 1, 1, 1, 1, 1, 1, 20, 1, 0, channels_last};
    std::mt19937 random(7);
    std::vector<int32_t> indptr, index;
    draw(s, 0.5, random, indptr, index);
    std::vector<int32_t> plan(size_t(sparse_conv2d_plan_size(s)));
    sparse_conv2d_plan(s, indptr.data(), index.data(), plan.data());
    for (int64_t pixel : {0, 8, 35, 36, 63, 71}) {
      std::vector<float> x(size_t(s.N * s.C * s.H * s.W), 1.0f), w(size_t(s.nnz * s.C), 1.0f), out(size_t(s.N * s.K * s.H * s.W));
      x[size_t(place(channels_last, s.C, s.H, s.W, 1, 5, pixel / s.W, pixel % s.W))] = NAN;
      Sums want(int64_t(out.size())), gx(int64_t(x.size())), gw(int64_t(w.size()));
      naive(s, indptr, index, x.data(), w.data(), nullptr, out.data(), want, gx, gw);
      sparse_conv2d(s, x.data(), w.data(), plan.data(), nullptr, out.data(), kSerial);
      for (size_t i = 0; i < out.size(); ++i) ok = ok && std::isnan(out[i]) == std::isnan(want.value[i]);
    }
  }
  if (!ok) std::printf("FAIL a NaN went astray\n");
  return ok;
}

}  // namespace

int main(int argc, char** argv) {
  if (!check::wanted_isa()) return 0;
  const unsigned cases = argc > 1 ? unsigned(std::atoi(argv[1])) : 400;
  int bad = !faults() + !choices() + !nan_stays();
  // layers of a real network, and maps of one vector, one pixel, one row
  const Case fixed[] = {
      {{1, 96, 16, 16, 48, 5, 5, 1, 1, 2, 2, 1, 1, 1, 96, 1, 0, false}, 0.25, 1},
      {{1, 96, 16, 16, 24, 5, 5, 1, 1, 2, 2, 1, 1, 1, 1, 1, 0, false}, 0.25, 2},
      {{2, 64, 8, 8, 32, 3, 3, 1, 1, 1, 1, 1, 1, 1, 64, 1, 0, true}, 0.1, 3},
      {{1, 3, 32, 32, 24, 5, 5, 1, 1, 2, 2, 1, 1, 1, 3, 1, 0, false}, 0.3, 4},
      {{1, 20, 28, 28, 16, 3, 3, 1, 1, 1, 1, 1, 1, 1, 20, 1, 0, false}, 0.5, 5},
      {{1, 110, 14, 14, 9, 3, 3, 1, 1, 1, 1, 1, 1, 1, 110, 1, 0, false}, 0.5, 6},
      {{3, 16, 1, 1, 8, 1, 1, 1, 1, 0, 0, 1, 1, 1, 16, 1, 0, false}, 0.5, 7},
      // square maps taken as patches: dilated, not square kernels; even ones; too large a reach; and one tap
      {{3, 12, 8, 8, 9, 3, 5, 1, 1, 2, 4, 2, 2, 1, 1, 1, 0, false}, 0.3, 9},
      {{2, 10, 16, 16, 7, 2, 3, 1, 1, 1, 2, 2, 2, 1, 1, 1, 0, true}, 0.4, 10},
      {{1, 4, 16, 16, 5, 7, 7, 1, 1, 6, 6, 2, 2, 1, 1, 1, 0, false}, 0.3, 11},
      {{2, 30, 16, 16, 20, 1, 1, 1, 1, 0, 0, 1, 1, 1, 1, 1, 0, false}, 0.2, 12},
      // maps as patches of other shapes: 7x7, 14x7 in strips with a short last one, off the grid, two threads' shares of 16 channels
      {{1, 20, 28, 28, 18, 3, 3, 1, 1, 1, 1, 1, 1, 1, 1, 1, 0, false}, 0.3, 14},
      {{2, 37, 28, 28, 35, 3, 3, 1, 1, 1, 1, 1, 1, 1, 1, 1, 0, true}, 0.1, 15},
      {{1, 6, 56, 56, 5, 3, 3, 1, 1, 1, 1, 1, 1, 1, 1, 1, 0, false}, 0.3, 17},
      {{1, 18, 14, 14, 17, 5, 3, 1, 1, 2, 1, 1, 1, 1, 1, 1, 0, true}, 0.2, 18},
      {{1, 5, 27, 45, 6, 3, 3, 1, 1, 0, 0, 1, 1, 1, 1, 1, 0, true}, 0.3, 19},
      {{2, 5, 27, 43, 6, 4, 2, 1, 1, 3, 2, 1, 1, 1, 1, 1, 0, false}, 0.3, 21},
      // a band of a channels_last map at a time
      {{1, 40, 30, 57, 33, 3, 3, 1, 1, 1, 1, 1, 1, 1, 40, 1, 0, true}, 0.2, 22},
      // more than a cache holds: fetched ahead
      {{3, 16, 92, 90, 44, 3, 3, 1, 1, 1, 1, 1, 1, 1, 16, 1, 0, false}, 0.1, 13},
      {{2, 32, 1, 40, 32, 1, 3, 1, 1, 0, 1, 1, 1, 16, 16, 3, 0, false}, 0.5, 8},
  };
  for (const Case& c : fixed) bad += !run(c);
  for (unsigned seed = 0; seed < cases && bad < 10; ++seed) bad += !run(random_case(seed));
  std::printf("%s: %d bad\n", isa_name(), bad);
  return bad != 0;
}
