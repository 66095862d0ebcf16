// Wide panels by wgmma on the emulated device against plain loops: every tile, type and layout, any number of rows and connections.
#include <string>
#include <vector>

#include "check.h"
#include "cuda/sparse_linear.h"

namespace {

using check::Sum;
using sk::bf16;
using sk::fp16;
int cases = 0;

struct Size {
  int N, OB, F, V, inputs;
};

template <class T>
void run(const Size& size, bool feature_major, const char* way) {
  ++cases;
  const bool with_bias = cases % 4 < 2;
  const sk::SparseLinearShape s{size.N, size.OB, size.F, size.V, 1, size.inputs};
  const int64_t line = (s.N + 7) / 8 * 8 + cases % 3 / 2 * 8;  // lines of x may be longer than the rows
  const sk::Strides y_at = feature_major ? sk::Strides{1, s.N} : sk::Strides{s.out(), 1};
  const std::string name = emu::format("%s N%d OB%d F%d V%d of %d %s, %s", check::type_name<T>(), size.N, size.OB, size.F, size.V, size.inputs,
                                       feature_major ? "feature-major" : "by row", way);
  emu::Buffer<T> x("x", s.in() * line, emu::Role::input), weight("weight", s.kept(), emu::Role::input), bias("bias", s.out(), emu::Role::input);
  emu::Buffer<T> y("y", s.N * s.out(), emu::Role::output, cases % 3 == 0);  // y may begin anywhere
  check::Table table{size_t(s.OB), size_t(s.F), size_t(s.IB)};
  check::fill(x, 1), check::fill(weight, 2), check::fill(bias, 3);
  for (int64_t i = 0; i < s.in(); ++i)
    for (int64_t n = s.N; n < line; ++n) x[i * line + n] = sk::from_float<T>(NAN);  // no rows
  std::vector<Sum> wanted(y.size());
  for (int64_t o = 0; o < s.out(); ++o)
    for (int64_t n = 0; n < s.N; ++n) {
      Sum& sum = wanted[n * y_at.row + o * y_at.col];
      if (with_bias) sum.add(sk::to_float(bias[o]), 1);
      for (int64_t f = 0; f < s.F; ++f)
        sum.add(sk::to_float(x[table.index[o / s.BO * s.F + f] * line + n]), sk::to_float(weight[(o / s.BO * s.F + f) * s.BO + o % s.BO]));
    }
  try {
    const char* error = sk::launch_sparse_linear_panels_wgmma_fwd<T>(s, x.data(), line, weight.data(), table.index.data(),
                                                                     with_bias ? bias.data() : nullptr, y.data(), y_at, nullptr);
    if (error) check::fail("%s: %s", name.c_str(), error);
    check::compare(name, wanted, y, [](const Sum& sum) { return check::allowed_on_tensor_cores<T>(sum, sk::Fp32::strict); });
  } catch (const emu::Fault& fault) {
    check::fail("%s: %s", name.c_str(), fault.what());
  }
}

// Both layouts and both types, in turns.
void run_all(const Size& size, const char* way) {
  if (cases / 2 % 2)
    run<bf16>(size, false, way), run<fp16>(size, true, way);
  else
    run<fp16>(size, false, way), run<bf16>(size, true, way);
}

// No sector is read or written for a part of it, no bank is asked twice.
void touches(bool by_row, int V) {
  ++cases;
  const sk::SparseLinearShape s{256, 1, 64, V, 1, 70};
  emu::Buffer<bf16> x("x", s.in() * s.N, emu::Role::input), weight("weight", s.kept(), emu::Role::input), y("y", s.N * s.out(), emu::Role::output);
  check::Table table{1, size_t(s.F), size_t(s.IB)};
  check::fill(x, 1), check::fill(weight, 2);
  emu::options.count = true, emu::counters = {};
  const char* error = sk::launch_sparse_linear_panels_wgmma_fwd<bf16>(s, x.data(), s.N, weight.data(), table.index.data(), nullptr, y.data(),
                                                                      by_row ? sk::Strides{s.out(), 1} : sk::Strides{1, s.N}, nullptr);
  emu::options.count = false;
  const emu::Cost cost = emu::counters.all();
  if (error || cost.global_waste() > 1.001 || cost.bank_conflicts() > 1.001)
    check::fail("%d outputs %s: %g of the sectors, %g of the passes over banks", V, by_row ? "by row" : "feature-major", cost.global_waste(),
                cost.bank_conflicts());
}

void refused() {
  ++cases;
  const sk::SparseLinearShape s{40, 1, 3, 64, 1, 5};
  emu::Buffer<bf16> x("x", 5 * 40, emu::Role::input, 1), weight("weight", 3 * 64, emu::Role::input), y("y", 40 * 64, emu::Role::output);
  emu::Buffer<int32_t> index("index", 3, emu::Role::input);
  if (!sk::launch_sparse_linear_panels_wgmma_fwd<bf16>(s, x.data(), 40, weight.data(), index.data(), nullptr, y.data(), {64, 1}, nullptr))
    check::fail("lines of x that are not aligned are taken");
}

}  // namespace

int main() {
  // N OB F V inputs: tiles of 64, 128 and 256 rows with less than one, one and more stages than are in flight
  const Size sizes[] = {{1, 2, 3, 64, 5}, {33, 1, 64, 128, 64}, {131, 2, 65, 192, 90}, {258, 2, 129, 128, 150}, {300, 1, 330, 64, 400}};
  for (const Size& size : sizes) run_all(size, "in order");
  check::in_every_way([](const char* way) {
    run<bf16>({40, 1, 70, 64, 90}, true, way), run<fp16>({43, 1, 200, 128, 230}, false, way);
    run<bf16>({257, 3, 66, 128, 80}, false, way);
  });
  emu::options.hardware_sums = true;
  run_all({35, 2, 90, 64, 100}, "sums as a tensor core makes them");
  run<fp16>({520, 1, 150, 128, 160}, true, "sums as a tensor core makes them");
  for (bool by_row : {true, false}) touches(by_row, 64), touches(by_row, 128);
  refused();
  return check::result("sparse_linear wgmma", cases);
}
