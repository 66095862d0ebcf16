// sparse_linear (condensed) on the emulated device against plain double loops: every product, type, layout; any number of rows.
#include <string>
#include <vector>

#include "check.h"
#include "cuda/sparse_linear.h"

namespace {

using check::Sum;
using sk::bf16;
using sk::fp16;
int cases = 0;

template <class T>
void run(int64_t N, int64_t in, int64_t out, int64_t F, bool feature_major, const char* way) {
  ++cases;
  const sk::SparseLinearShape s{N, out, F, 1, 1, in};
  const sk::Strides x_at = feature_major ? sk::Strides{1, N} : sk::Strides{in, 1}, y_at = feature_major ? sk::Strides{1, N} : sk::Strides{out, 1};
  const std::string name = emu::format("%s N%ld %ld -> %ld fan-in %ld %s, %s", check::type_name<T>(), long(N), long(in), long(out), long(F),
                                       feature_major ? "feature-major" : "by row", way);
  emu::Buffer<T> x("x", N * in, emu::Role::input), grad_out("grad_out", N * out, emu::Role::input), weight("weight", out * F, emu::Role::input);
  emu::Buffer<T> bias("bias", out, emu::Role::input), y("y", N * out, emu::Role::output), grad_x("grad_x", N * in, emu::Role::output);
  emu::Buffer<T> grad_weight("grad_weight", out * F, emu::Role::output);
  check::Table table{size_t(out), size_t(F), size_t(in)};
  const emu::Buffer<int32_t>& index = table.index;
  check::fill(x, 1), check::fill(grad_out, 2), check::fill(weight, 3), check::fill(bias, 4);
  std::vector<Sum> wanted_y(N * out), wanted_grad_x(N * in), wanted_grad_weight(out * F);
  const bool with_bias = cases % 2;
  for (int64_t n = 0; n < N; ++n)
    for (int64_t o = 0; o < out; ++o) {
      const size_t to = n * y_at.row + o * y_at.col;
      const double g = sk::to_float(grad_out[to]);
      if (with_bias) wanted_y[to].add(sk::to_float(bias[o]), 1);
      for (int64_t f = 0; f < F; ++f) {
        const size_t from = n * x_at.row + index[o * F + f] * x_at.col;
        const double v = sk::to_float(x[from]), w = sk::to_float(weight[o * F + f]);
        wanted_y[to].add(v, w), wanted_grad_x[from].add(g, w), wanted_grad_weight[o * F + f].add(g, v);
      }
    }
  try {
    const char* error = sk::launch_sparse_linear_fwd<T>(s, x.data(), x_at, weight.data(), table.index.data(), with_bias ? bias.data() : nullptr,
                                                        y.data(), y_at, nullptr);
    if (!error) check::compare(name + ", forward", wanted_y, y, check::allowed_on_plain_cores<T>);
    if (!error)
      error = sk::launch_sparse_linear_grad_x<T>(s, grad_out.data(), y_at, weight.data(),
                                                 {table.indptr.data(), table.output.data(), table.place.data()}, grad_x.data(), x_at, nullptr);
    if (!error) check::compare(name + ", grad_x", wanted_grad_x, grad_x, check::allowed_on_plain_cores<T>);
    if (!error)
      error = sk::launch_sparse_linear_grad_weight<T>(s, grad_out.data(), y_at, x.data(), x_at, table.index.data(), grad_weight.data(), nullptr);
    if (!error) check::compare(name + ", grad_weight", wanted_grad_weight, grad_weight, check::allowed_on_plain_cores<T>);
    if (error) check::fail("%s: %s", name.c_str(), error);
  } catch (const emu::Fault& fault) {
    check::fail("%s: %s", name.c_str(), fault.what());
  }
}

void run_all(int64_t N, int64_t in, int64_t out, int64_t F, const char* way) {
  for (bool feature_major : {false, true})
    run<float>(N, in, out, F, feature_major, way), run<bf16>(N, in, out, F, feature_major, way), run<fp16>(N, in, out, F, feature_major, way);
}

}  // namespace

int main() {
  const int64_t rows[] = {1, 3, 4, 9, 17, 33, 70};
  for (int64_t N : rows) run_all(N, 37, 41, 5, "in order"), run_all(N, 100, 1, 33, "in order");
  run_all(5, 1, 3, 1, "in order"), run_all(40, 1, 300, 1, "in order"), run_all(12, 64, 64, 64, "in order"), run_all(0, 8, 8, 2, "in order");
  check::in_every_way([](const char* way) { run_all(35, 50, 70, 7, way), run_all(2, 50, 70, 40, way); });
  for (size_t limit : {40 * 1024, 24 * 1024, 12 * 1024}) {  // fewer staged rows, at last none
    emu::options.shared_limit = limit;
    run_all(40, 260, 30, 9, "little shared memory"), run_all(3, 1000, 30, 9, "little shared memory");
  }
  return check::result("sparse_linear", cases);
}
