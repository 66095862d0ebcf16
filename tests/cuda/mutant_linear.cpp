// A small run of the fixed fan-in kernels, quick to compile: tests/cuda/test_mutants.py builds it from altered sources.
#include <vector>

#include "check.h"
#include "cuda/sparse_linear.cuh"
#include "cuda/sparse_linear_blocks.cuh"

namespace {

using sk::bf16;

// Products of blocks [BO, BI] (condensed: 1 x 1), by row, against double loops. `forward` and `gradient` launch the kernels.
template <class T>
struct Case {
  int N, OB, F, BO, BI, IB;
  emu::Buffer<T> x{"x", size_t(N * IB * BI), emu::Role::input}, weight{"weight", size_t(OB * F * BO * BI), emu::Role::input};
  emu::Buffer<T> grad_out{"grad_out", size_t(N * OB * BO), emu::Role::input}, y{"y", size_t(N * OB * BO), emu::Role::output};
  emu::Buffer<T> grad_weight{"grad_weight", size_t(OB * F * BO * BI), emu::Role::output};
  emu::Buffer<int32_t> index{"index", size_t(OB * F), emu::Role::input};
  std::vector<double> wanted_y, wanted_grad, size_y, size_grad;

  Case(int n, int ob, int f, int bo, int bi, int ib) : N(n), OB(ob), F(f), BO(bo), BI(bi), IB(ib) {
    check::fill(x, 1), check::fill(weight, 2), check::fill(grad_out, 3);
    wanted_y.resize(y.size()), size_y.resize(y.size()), wanted_grad.resize(weight.size()), size_grad.resize(weight.size());
    for (int i = 0; i < OB * F; ++i) index[i] = (i * 7 + 3) % IB;
    index[OB * F - 1] = IB - 1;  // the last columns are read, so that a step beyond them leaves the tensor
    for (int row = 0; row < N; ++row)
      for (int w = 0; w < int(weight.size()); ++w) {
        const int i = w % BI, o = w / BI % BO, block = w / BI / BO, to = row * OB * BO + block / F * BO + o;
        const double v = sk::to_float(x[row * IB * BI + index[block] * BI + i]), a = v * sk::to_float(weight[w]), b = v * sk::to_float(grad_out[to]);
        wanted_y[to] += a, size_y[to] += std::fabs(a), wanted_grad[w] += b, size_grad[w] += std::fabs(b);
      }
  }
  void compare(const char* what) {
    const auto differs = [](const emu::Buffer<T>& got, const std::vector<double>& wanted, const std::vector<double>& size) {
      for (size_t i = 0; i < got.size(); ++i)
        if (!(std::fabs(sk::to_float(got[i]) - wanted[i]) <= size[i] / 256 + 1e-6)) return true;
      return false;
    };
    if (differs(y, wanted_y, size_y)) check::fail("wrong value of y, %s", what);
    if (differs(grad_weight, wanted_grad, size_grad)) check::fail("wrong value of grad_weight, %s", what);
  }
};

void condensed() {
  Case<float> c(70, 41, 7, 1, 1, 37);
  const sk::LinearJob job{70, 37, 41, 7, {37, 1}, {41, 1}, nullptr, c.index.data(), nullptr, 37 * 128};
  const float* none = nullptr;
  emu::launch(dim3(3, 1), dim3(256), 37 * 128 + 8 * 32 * 33 * 4, sk::sparse_linear_kernel<float, 32, true>, c.x.data(), c.weight.data(), none,
              c.y.data(), job);
  const sk::LinearWeightJob weight_job{70, 287, 37, 41, 7, 1, {37, 1}, {41, 1}, c.index.data(), 37 * 128};
  emu::launch(dim3(2), dim3(256), 37 * 128 + 40 * 144, sk::sparse_linear_weight_kernel<float, 32, true>, c.grad_out.data(), c.x.data(),
              c.grad_weight.data(), weight_job);
  c.compare("condensed");
}
void few_rows() {
  Case<float> c(6, 21, 40, 1, 1, 50);
  const sk::LinearJob job{6, 50, 21, 40, {50, 1}, {21, 1}, nullptr, c.index.data(), nullptr, 0};
  const float* none = nullptr;
  emu::launch(dim3(2, 2), dim3(256), 50 * 16, sk::sparse_linear_few_rows_kernel<float, true>, c.x.data(), c.weight.data(), none, c.y.data(), job);
  const sk::LinearWeightJob weight_job{6, 840, 50, 21, 40, 4, {50, 1}, {21, 1}, c.index.data(), 0};
  emu::launch(dim3(1), dim3(256), 30 * 32, sk::sparse_linear_weight_kernel<float, 4, false>, c.grad_out.data(), c.x.data(), c.grad_weight.data(),
              weight_job);
  c.compare("few rows");
}
void blocks() {
  Case<bf16> c(90, 2, 13, 24, 16, 7);  // four stages
  const sk::BlockJob job{90, 24, 16, 13, 2, {112, 1}, {48, 1}, 24 * 16, 16, 1, nullptr, c.index.data(), nullptr, true, true};
  const bf16* none = nullptr;
  emu::launch(dim3(2, 4), dim3(128), sk::kBlockStages * 80 * sk::kStageRow, sk::sparse_linear_blocks_kernel<bf16, sk::Fp32::strict, 1, 2>, c.x.data(),
              c.weight.data(), none, c.y.data(), job);
  const sk::BlockWeightJob weight_job{90, 24, 16, 13, 1, 1, {112, 1}, {48, 1}, c.index.data(), true, true};
  emu::launch(dim3(26), dim3(128), sk::BlockWeightTile<bf16>::kBytes, sk::sparse_linear_blocks_weight_kernel<bf16, sk::Fp32::strict>,
              c.grad_out.data(), c.x.data(), c.grad_weight.data(), weight_job);
  c.compare("blocks");
}

}  // namespace

int main() {
  check::in_every_way([](const char* way) {
    for (void (*f)() : {condensed, few_rows, blocks}) try {
        f();
      } catch (const emu::Fault& fault) {
        check::fail("fault: %s, %s", fault.what(), way);
      }
  });
  return check::result("mutant", 18);
}
