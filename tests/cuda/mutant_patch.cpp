// A small run of the sparse convolution's weight gradient on tensor cores: tests/cuda/test_mutants.py builds it from altered sources.
#include <vector>

#include "check.h"
#include "cuda/sparse_conv2d_list.cu"
#include "cuda/sparse_conv2d_weight.cu"
#include "kept.h"

namespace {

template <class T>
void run(sk::SparseConv2dShape s, double density, const char* way) {
  const check::Mask mask(s, density);
  emu::Buffer<T> x("x", s.N * s.C * s.H * s.W, emu::Role::input), grad_out("grad_out", s.N * s.K * s.OH() * s.OW(), emu::Role::input);
  emu::Buffer<T> grad_weight("grad_weight", s.nnz * s.BO * s.BI * s.BT, emu::Role::output);
  emu::Buffer<float> scratch("scratch", sk::sparse_conv2d_grad_weight_scratch<T>(s), emu::Role::output);
  check::fill(x, 1), check::fill(grad_out, 3);
  std::vector<check::Sum> wanted(grad_weight.size());
  mask.each_product(s, [&](size_t ix, size_t iw, size_t io) { wanted[iw].add(sk::to_float(grad_out[io]), sk::to_float(x[ix])); });
  const char* error = sk::launch_sparse_conv2d_grad_weight<T>(s, grad_out.data(), x.data(), mask.tables(), grad_weight.data(), scratch.data(),
                                                              sk::Fp32::strict, nullptr);
  if (error) return check::fail("%s", error);
  for (size_t i = 0; i < wanted.size(); ++i)
    if (!(std::fabs(sk::to_float(grad_weight[i]) - wanted[i].value) <= wanted[i].magnitude / 256 + 1e-6))
      return check::fail("wrong value at %zu of %zu, %s", i, wanted.size(), way);
}

}  // namespace

int main() {
  // N C H W K KH KW stride pad dilation BO BI BT
  const sk::SparseConv2dShape spatial{5, 24, 9, 7, 41, 3, 3, 1, 1, 1, 1, 1, 1, 1, 24, 1, 0, true},
      blocks{1, 36, 9, 10, 15, 3, 3, 2, 2, 1, 1, 1, 1, 3, 12, 9, 0, false}, shared{3, 12, 9, 5, 44, 3, 3, 1, 1, 1, 1, 1, 1, 11, 1, 1, 0, true};
  emu::options.multiprocessors = 3;  // two parts of some, and blocks that walk over several tiles
  check::in_every_way([&](const char* way) {
    emu::options.shared_limit = 227 * 1024;
    try {
      run<sk::bf16>(spatial, 0.6, way), run<float>(blocks, 0.5, way), run<sk::bf16>(shared, 0.7, way);
      emu::options.shared_limit = 48 * 1024;  // rounds of channels
      run<sk::bf16>(shared, 0.2, way);
    } catch (const emu::Fault& fault) {
      check::fail("fault: %s, %s", fault.what(), way);
    }
  });
  return check::result("mutant", 24);
}
