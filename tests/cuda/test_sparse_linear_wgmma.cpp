// Wide panels and blocks by wgmma on the emulated device against plain loops: every product, tile, type and layout, any number of rows and
// connections.
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

// The weight's gradient: grad_out by row, x feature-major.
template <class T>
void run_weight(const Size& size, const char* way) {
  const sk::SparseLinearShape s{size.N, size.OB, size.F, size.V, 1, size.inputs};
  const int64_t line = (s.N + 7) / 8 * 8 + ++cases % 3 / 2 * 8;
  const std::string name =
      emu::format("grad_weight %s N%d OB%d F%d V%d of %d, %s", check::type_name<T>(), size.N, size.OB, size.F, size.V, size.inputs, way);
  emu::Buffer<T> x("x", s.in() * line, emu::Role::input), grad_out("grad_out", s.N * s.out(), emu::Role::input);
  emu::Buffer<T> grad_weight("grad_weight", s.kept(), emu::Role::output, cases % 4 == 0);
  check::Table table{size_t(s.OB), size_t(s.F), size_t(s.IB)};
  check::fill(x, 1), check::fill(grad_out, 2);
  for (int64_t i = 0; i < s.in(); ++i)
    for (int64_t n = s.N; n < line; ++n) x[i * line + n] = sk::from_float<T>(NAN);  // no rows
  std::vector<Sum> wanted(s.kept());
  for (int64_t w = 0; w < s.kept(); ++w)
    for (int64_t n = 0; n < s.N; ++n)
      wanted[w].add(sk::to_float(grad_out[n * s.out() + w / s.BO / s.F * s.BO + w % s.BO]), sk::to_float(x[table.index[w / s.BO] * line + n]));
  try {
    const char* error =
        sk::launch_sparse_linear_panels_wgmma_grad_weight<T>(s, grad_out.data(), x.data(), line, table.index.data(), grad_weight.data(), nullptr);
    if (error) check::fail("%s: %s", name.c_str(), error);
    check::compare(name, wanted, grad_weight, [](const Sum& sum) { return check::allowed_on_tensor_cores<T>(sum, sk::Fp32::strict); });
  } catch (const emu::Fault& fault) {
    check::fail("%s: %s", name.c_str(), fault.what());
  }
}

struct Blocks {
  int N, OB, F, BO, BI, IB;
};

template <class T>
void run_blocks(const Blocks& size, bool feature_major, const char* way) {
  ++cases;
  const sk::SparseLinearShape s{size.N, size.OB, size.F, size.BO, size.BI, size.IB};
  const sk::Strides y_at = feature_major ? sk::Strides{1, s.N} : sk::Strides{s.out(), 1},
                    grad_x_at = feature_major ? sk::Strides{1, s.N} : sk::Strides{s.in(), 1};
  const std::string name = emu::format("%s N%d OB%d F%d %dx%d IB%d, results %s, %s", check::type_name<T>(), size.N, size.OB, size.F, size.BO, size.BI,
                                       size.IB, feature_major ? "feature-major" : "by row", way);
  emu::Buffer<T> x("x", s.N * s.in(), emu::Role::input), grad_out("grad_out", s.N * s.out(), emu::Role::input);
  emu::Buffer<T> weight("weight", s.kept(), emu::Role::input), bias("bias", s.out(), emu::Role::input);
  const size_t offset = cases % 3 == 0;  // results may begin anywhere
  emu::Buffer<T> y("y", s.N * s.out(), emu::Role::output, offset), grad_x("grad_x", s.N * s.in(), emu::Role::output, offset),
      grad_weight("grad_weight", s.kept(), emu::Role::output, offset);
  check::Table table{size_t(s.OB), size_t(s.F), size_t(s.IB)};
  check::fill(x, 1), check::fill(grad_out, 2), check::fill(weight, 3), check::fill(bias, 4);
  std::vector<Sum> wanted_y(y.size()), wanted_grad_x(grad_x.size()), wanted_grad_weight(s.kept());
  for (int64_t n = 0; n < s.N; ++n)
    for (int64_t o = 0; o < s.out(); ++o) {
      const size_t to = n * y_at.row + o * y_at.col;
      const double g = sk::to_float(grad_out[n * s.out() + o]);
      if (cases % 2) wanted_y[to].add(sk::to_float(bias[o]), 1);
      for (int64_t f = 0; f < s.F; ++f)
        for (int64_t i = 0; i < s.BI; ++i) {
          const int64_t block = o / s.BO * s.F + f, w = (block * s.BO + o % s.BO) * s.BI + i, from = table.index[block] * s.BI + i;
          const double v = sk::to_float(x[n * s.in() + from]), kept = sk::to_float(weight[w]);
          wanted_y[to].add(v, kept), wanted_grad_x[n * grad_x_at.row + from * grad_x_at.col].add(g, kept), wanted_grad_weight[w].add(g, v);
        }
    }
  const auto allowed = [](const Sum& sum) { return check::allowed_on_tensor_cores<T>(sum, sk::Fp32::strict); };
  try {
    const char* error = sk::launch_sparse_linear_blocks_wgmma_fwd<T>(s, x.data(), weight.data(), table.index.data(),
                                                                     cases % 2 ? bias.data() : nullptr, y.data(), y_at, nullptr);
    if (!error) check::compare(name + ", forward", wanted_y, y, allowed);
    if (!error)
      error = sk::launch_sparse_linear_blocks_wgmma_grad_x<T>(
          s, grad_out.data(), weight.data(), {table.indptr.data(), table.output.data(), table.place.data()}, grad_x.data(), grad_x_at, nullptr);
    if (!error) check::compare(name + ", grad_x", wanted_grad_x, grad_x, allowed);
    if (!error)
      error = sk::launch_sparse_linear_blocks_wgmma_grad_weight<T>(s, grad_out.data(), x.data(), table.index.data(), grad_weight.data(), nullptr);
    if (!error) check::compare(name + ", grad_weight", wanted_grad_weight, grad_weight, allowed);
    if (error) check::fail("%s: %s", name.c_str(), error);
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
  cases % 2 ? run_weight<bf16>(size, way) : run_weight<fp16>(size, way);
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

// Of blocks and of the weights' gradients.
void touches_of_gradients(bool blocks, int V) {
  ++cases;
  const sk::SparseLinearShape s{256, 1, blocks ? 2 : 64, V, blocks ? V : 1, blocks ? 3 : 70};
  emu::Buffer<bf16> x("x", s.in() * s.N, emu::Role::input), weight("weight", s.kept(), emu::Role::input),
      grad_out("grad_out", s.N * s.out(), emu::Role::input);
  emu::Buffer<bf16> y("y", s.N * s.out(), emu::Role::output), grad_x("grad_x", s.N * s.in(), emu::Role::output),
      grad_weight("grad_weight", s.kept(), emu::Role::output);
  check::Table table{size_t(s.OB), size_t(s.F), size_t(s.IB)};
  check::fill(x, 1), check::fill(weight, 2), check::fill(grad_out, 3);
  emu::options.count = true, emu::counters = {};
  const sk::LinearColumns columns{table.indptr.data(), table.output.data(), table.place.data()};
  const char* error;
  if (blocks) {
    error = sk::launch_sparse_linear_blocks_wgmma_fwd<bf16>(s, x.data(), weight.data(), table.index.data(), nullptr, y.data(), {s.out(), 1}, nullptr);
    if (!error)
      error = sk::launch_sparse_linear_blocks_wgmma_grad_x<bf16>(s, grad_out.data(), weight.data(), columns, grad_x.data(), {s.in(), 1}, nullptr);
    if (!error)
      error = sk::launch_sparse_linear_blocks_wgmma_grad_weight<bf16>(s, grad_out.data(), x.data(), table.index.data(), grad_weight.data(), nullptr);
  } else {
    error =
        sk::launch_sparse_linear_panels_wgmma_grad_weight<bf16>(s, grad_out.data(), x.data(), s.N, table.index.data(), grad_weight.data(), nullptr);
  }
  emu::options.count = false;
  const emu::Cost cost = emu::counters.all();
  if (error || cost.global_waste() > 1.001 || cost.bank_conflicts() > 1.001)
    check::fail("%s of %d: %g of the sectors, %g of the passes over banks", blocks ? "blocks" : "weights of panels", V, cost.global_waste(),
                cost.bank_conflicts());
}

void refused() {
  ++cases;
  const sk::SparseLinearShape s{40, 1, 3, 64, 1, 5};
  emu::Buffer<bf16> x("x", 5 * 40, emu::Role::input, 1), weight("weight", 3 * 64, emu::Role::input), y("y", 40 * 64, emu::Role::output);
  emu::Buffer<int32_t> index("index", 3, emu::Role::input);
  if (!sk::launch_sparse_linear_panels_wgmma_fwd<bf16>(s, x.data(), 40, weight.data(), index.data(), nullptr, y.data(), {64, 1}, nullptr))
    check::fail("lines of x that are not aligned are taken");
  if (!sk::launch_sparse_linear_panels_wgmma_grad_weight<bf16>(s, y.data(), x.data(), 40, index.data(), weight.data(), nullptr))
    check::fail("lines of x that are not aligned are taken for the weight's gradient");
  const sk::SparseLinearShape blocks{1, 1, 1, 64, 64, 1};
  emu::Buffer<bf16> row("row", 64, emu::Role::input, 1), result("result", 64 * 64, emu::Role::output);
  const sk::LinearColumns columns{index.data(), index.data(), index.data()};
  if (!sk::launch_sparse_linear_blocks_wgmma_fwd<bf16>(blocks, row.data(), result.data(), index.data(), nullptr, y.data(), {64, 1}, nullptr) ||
      !sk::launch_sparse_linear_blocks_wgmma_grad_x<bf16>(blocks, row.data(), result.data(), columns, y.data(), {64, 1}, nullptr) ||
      !sk::launch_sparse_linear_blocks_wgmma_grad_weight<bf16>(blocks, y.data(), row.data(), index.data(), result.data(), nullptr))
    check::fail("rows that are not aligned are taken");
}

}  // namespace

int main() {
  // N OB F V inputs: tiles of 64, 128 and 256 rows with less than one, one and more stages than are in flight
  const Size sizes[] = {{1, 2, 3, 64, 5}, {33, 1, 64, 128, 64}, {131, 2, 65, 192, 90}, {258, 2, 129, 128, 150}, {300, 1, 330, 64, 400}};
  for (const Size& size : sizes) run_all(size, "in order");
  // N OB F BO BI IB: no rows, lists of one and more blocks, inputs that nobody keeps, tiles of both widths, more rows than a tile's
  const Blocks blocks[] = {{0, 1, 1, 64, 64, 1}, {1, 2, 2, 64, 64, 3}, {67, 1, 3, 128, 64, 5}, {130, 2, 1, 64, 128, 3}, {261, 1, 2, 192, 128, 2}};
  for (const Blocks& size : blocks) run_blocks<bf16>(size, cases % 2, "in order"), run_blocks<fp16>(size, cases % 2, "in order");
  run_weight<bf16>({0, 1, 3, 64, 5}, "in order");
  check::in_every_way([](const char* way) {
    run_blocks<bf16>({70, 1, 2, 128, 64, 3}, false, way), run_weight<fp16>({130, 1, 70, 128, 90}, way);
    run<bf16>({40, 1, 70, 64, 90}, true, way), run<fp16>({43, 1, 200, 128, 230}, false, way);
    run<bf16>({257, 3, 66, 128, 80}, false, way);
  });
  emu::options.hardware_sums = true;
  run_all({35, 2, 90, 64, 100}, "sums as a tensor core makes them");
  run<fp16>({520, 1, 150, 128, 160}, true, "sums as a tensor core makes them");
  run_blocks<bf16>({140, 2, 3, 64, 64, 4}, false, "sums as a tensor core makes them");
  for (bool by_blocks : {true, false}) touches_of_gradients(by_blocks, 64), touches_of_gradients(by_blocks, 128);
  for (bool by_row : {true, false}) touches(by_row, 64), touches(by_row, 128);
  refused();
  return check::result("sparse_linear wgmma", cases);
}
