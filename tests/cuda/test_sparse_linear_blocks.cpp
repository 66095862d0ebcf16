// sparse_linear of blocks on the emulated device against plain double loops: every product, type, layout, any block size.
#include <string>
#include <vector>

#include "check.h"
#include "cuda/sparse_linear.h"

namespace {

using check::Sum;
using sk::bf16;
using sk::fp16;
using sk::Fp32;
int cases = 0;

struct Size {
  int N, OB, F, BO, BI, IB;
};

template <class T>
void run(const Size& size, bool feature_major, Fp32 mode, const char* way) {
  ++cases;
  const sk::SparseLinearShape s{size.N, size.OB, size.F, size.BO, size.BI, size.IB};
  const sk::Strides x_at = feature_major ? sk::Strides{1, s.N} : sk::Strides{s.in(), 1},
                    y_at = feature_major ? sk::Strides{1, s.N} : sk::Strides{s.out(), 1};
  const size_t offset = cases % 5 == 0;  // tensors that begin anywhere
  const std::string name = emu::format("%s N%d OB%d F%d %dx%d IB%d %s, %s", check::type_name<T>(mode), size.N, size.OB, size.F, size.BO, size.BI,
                                       size.IB, feature_major ? "feature-major" : "by row", way);
  emu::Buffer<T> x("x", s.N * s.in(), emu::Role::input, offset), grad_out("grad_out", s.N * s.out(), emu::Role::input, offset);
  emu::Buffer<T> weight("weight", s.kept(), emu::Role::input, offset), bias("bias", s.out(), emu::Role::input);
  emu::Buffer<T> y("y", s.N * s.out(), emu::Role::output), grad_x("grad_x", s.N * s.in(), emu::Role::output),
      grad_weight("grad_weight", s.kept(), emu::Role::output);
  check::Table table{size_t(s.OB), size_t(s.F), size_t(s.IB)};
  const emu::Buffer<int32_t>& index = table.index;
  check::fill(x, 1), check::fill(grad_out, 2), check::fill(weight, 3), check::fill(bias, 4);
  std::vector<Sum> wanted_y(y.size()), wanted_grad_x(grad_x.size()), wanted_grad_weight(s.kept());
  for (int64_t n = 0; n < s.N; ++n)
    for (int64_t o = 0; o < s.out(); ++o) {
      const size_t to = n * y_at.row + o * y_at.col;
      if (cases % 2) wanted_y[to].add(sk::to_float(bias[o]), 1);
      for (int64_t f = 0; f < s.F; ++f)
        for (int64_t i = 0; i < s.BI; ++i) {
          const size_t from = n * x_at.row + (index[o / s.BO * s.F + f] * s.BI + i) * x_at.col,
                       w = ((o / s.BO * s.F + f) * s.BO + o % s.BO) * s.BI + i;
          wanted_y[to].add(sk::to_float(x[from]), sk::to_float(weight[w]));
          wanted_grad_x[from].add(sk::to_float(grad_out[to]), sk::to_float(weight[w]));
          wanted_grad_weight[w].add(sk::to_float(grad_out[to]), sk::to_float(x[from]));
        }
    }
  const auto allowed = [&](const Sum& sum) { return check::allowed_on_tensor_cores<T>(sum, mode); };
  const T* b = cases % 2 ? bias.data() : nullptr;
  try {
    const char* error =
        sk::launch_sparse_linear_blocks_fwd<T>(s, x.data(), x_at, weight.data(), table.index.data(), b, y.data(), y_at, mode, nullptr);
    if (!error) check::compare(name + ", forward", wanted_y, y, allowed);
    if (!error)
      error = sk::launch_sparse_linear_blocks_grad_x<T>(s, grad_out.data(), y_at, weight.data(),
                                                        {table.indptr.data(), table.output.data(), table.place.data()}, grad_x.data(), x_at, mode,
                                                        nullptr);
    if (!error) check::compare(name + ", grad_x", wanted_grad_x, grad_x, allowed);
    if (!error)
      error = sk::launch_sparse_linear_blocks_grad_weight<T>(s, grad_out.data(), y_at, x.data(), x_at, table.index.data(), grad_weight.data(), mode,
                                                             nullptr);
    if (!error) check::compare(name + ", grad_weight", wanted_grad_weight, grad_weight, allowed);
    if (!error && feature_major && sk::sparse_linear_panels(s)) {
      emu::Buffer<T> again("y", y.size(), emu::Role::output), grad_again("grad_weight", s.kept(), emu::Role::output);
      error = sk::launch_sparse_linear_panels_fwd<T>(s, x.data(), weight.data(), table.index.data(), b, again.data(), y_at, mode, nullptr);
      if (!error) check::compare(name + ", panels", wanted_y, again, allowed);
      if (!error)
        error = sk::launch_sparse_linear_panels_grad_weight<T>(s, grad_out.data(), x.data(), table.index.data(), grad_again.data(), mode, nullptr);
      if (!error) check::compare(name + ", grad_weight of panels", wanted_grad_weight, grad_again, allowed);
    }
    if (!error && !feature_major && sk::sparse_linear_panels(s)) {
      emu::Buffer<T> again("grad_x", grad_x.size(), emu::Role::output);
      error = sk::launch_sparse_linear_panels_grad_x<T>(s, grad_out.data(), weight.data(), table.index.data(), again.data(), x_at, mode, nullptr);
      if (!error) check::compare(name + ", grad_x of panels", wanted_grad_x, again, allowed);
    }
    if (error) check::fail("%s: %s", name.c_str(), error);
  } catch (const emu::Fault& fault) {
    check::fail("%s: %s", name.c_str(), fault.what());
  }
}

void run_all(const Size& size, const char* way) {
  for (bool feature_major : {false, true}) {
    run<bf16>(size, feature_major, Fp32::strict, way), run<fp16>(size, feature_major, Fp32::strict, way);
    run<float>(size, feature_major, Fp32::strict, way), run<float>(size, feature_major, Fp32::tf32, way);
  }
}

}  // namespace

int main() {
  // N OB F BO BI IB
  const Size sizes[] = {{1, 2, 3, 16, 16, 5},   {70, 3, 2, 16, 16, 3}, {65, 2, 2, 32, 32, 3},  {33, 1, 1, 64, 64, 1},
                        {130, 1, 2, 80, 24, 3}, {9, 5, 3, 5, 7, 4},    {17, 2, 3, 1, 40, 4},   {20, 2, 5, 24, 1, 9},
                        {40, 1, 2, 17, 100, 2}, {0, 2, 2, 16, 16, 2},  {70, 2, 19, 24, 1, 30}, {80, 1, 40, 80, 1, 64}};
  for (const Size& size : sizes) run_all(size, "in order");
  run<bf16>({66, 3, 9, 20, 1, 500}, false, Fp32::strict, "more inputs than a block makes");
  run<bf16>({33, 130, 1, 16, 1, 3}, false, Fp32::strict, "more panels than threads");
  check::in_every_way([](const char* way) {
    run<bf16>({70, 2, 3, 24, 16, 4}, false, Fp32::strict, way), run<float>({70, 2, 3, 24, 12, 4}, true, Fp32::strict, way);
    run<bf16>({40, 2, 70, 16, 1, 90}, true, Fp32::strict, way), run<bf16>({40, 2, 70, 16, 1, 90}, false, Fp32::strict, way);
  });
  emu::options.hardware_sums = true;
  run_all({20, 2, 3, 16, 24, 4}, "sums as a tensor core makes them");
  return check::result("sparse_linear blocks", cases);
}
