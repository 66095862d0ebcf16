// What serves which sizes. Two closed estimates, in microseconds of one core, from rates measured on an AVX-512 server core
// (rates of smaller instruction sets scale by vector width on both sides). They are compared, printed by explain(), and
// meant to be right about the order, not about the time.
#include <algorithm>

#include "core/sparse_linear.h"

namespace sk {
namespace {

// per microsecond
constexpr double kGathered = 5500;                             // connections, x in L1 or L2
constexpr double kScattered = 900;                             // weights written into a dense matrix
constexpr double kMemory = 9000;                               // bytes of fresh memory zeroed or of activations transposed
constexpr double kPanelFlops[] = {0, 34e3, 52e3, 60e3, 66e3};  // feature-major, by vectors of columns
constexpr double kTileFlops = 115e3;                           // blocks
constexpr double kSampledFlops = 45e3;                         // grad_weight

double dense_flops(int64_t N, bool half_precision) {  // F.linear, measured at 1, 8, 64, 256 rows
  if (half_precision) return N <= 1 ? 11e3 : N <= 8 ? 80e3 : N <= 64 ? 430e3 : 800e3;
  return N <= 1 ? 11e3 : N <= 8 ? 35e3 : N <= 64 ? 112e3 : 145e3;
}

}  // namespace

LinearChoice sparse_linear_choice(const SparseLinearShape& s, Product product, bool half_precision, int threads) {
  const bool blocks = s.BO * s.BI > 1, few = s.N <= 2;
  const double kept = double(s.kept()), dense = double(s.in()) * double(s.out());
  const int64_t vectors = std::min<int64_t>(4, (s.N + 15) / 16), columns = (s.N + 15) / 16 * 16;
  const LinearKernel kernel = blocks ? (few && product == Product::forward ? LinearKernel::block_dot : LinearKernel::block_tile)
                                     : (few ? LinearKernel::gather : LinearKernel::feature_major);
  double sparse_us = 2.0;
  if (few && !blocks)
    sparse_us += s.N * kept / kGathered;
  else if (kernel == LinearKernel::block_dot)
    sparse_us += s.N * kept / (2 * kGathered);
  else
    sparse_us += 2.0 * kept * columns /
                     (product == Product::grad_weight ? kSampledFlops
                      : blocks                        ? kTileFlops
                                                      : kPanelFlops[vectors]) +
                 double(s.in() + s.out()) * columns * 4 / kMemory;
  if (product == Product::grad_x && !blocks) sparse_us += kept / 2500;              // weights put in transposed order
  if (half_precision) sparse_us += (kept + double(s.in() + s.out()) * s.N) / 4000;  // to fp32 and back
  double dense_us = 4.0 + 2.0 * dense * s.N / dense_flops(s.N, half_precision);
  // grad_weight writes a dense gradient and picks the kept entries; the others fill a dense weight
  dense_us += dense * (half_precision ? 2 : 4) / kMemory + kept / kScattered;
  if (threads > 1) sparse_us /= std::min(threads, 4), dense_us /= std::min(threads, 4);
  return {use_dense(dense_us < sparse_us) ? LinearKernel::dense : kernel, sparse_us, dense_us};
}

}  // namespace sk
