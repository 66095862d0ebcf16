// Pooling against plain loops, on the instruction set that SPARSEKERN_ISA names: values, NaN, no reads outside, any thread pool.
#include <algorithm>
#include <limits>

#include "check.h"
#include "core/pool2d.h"

namespace {

int64_t pooled(int64_t size, int64_t kernel, int64_t stride, int64_t pad, bool ceil_mode) {
  const int64_t out = (size + 2 * pad - kernel + (ceil_mode ? stride - 1 : 0)) / stride + 1;
  return ceil_mode && (out - 1) * stride >= size + pad ? out - 1 : out;
}

bool test(int64_t N, int64_t C, int64_t H, int64_t W, int64_t KH, int64_t KW, int64_t stride, int64_t pad, bool ceil_mode) {
  const sk::Pool2dShape s{N,
                          C,
                          H,
                          W,
                          KH,
                          KW,
                          stride,
                          stride,
                          std::min(pad, KH / 2),
                          std::min(pad, KW / 2),
                          pooled(H, KH, stride, std::min(pad, KH / 2), ceil_mode),
                          pooled(W, KW, stride, std::min(pad, KW / 2), ceil_mode)};
  check::Guarded<float> x(size_t(N * C * H * W)), out(size_t(N * C * s.OH * s.OW)), again(out.size());
  check::fill(x, unsigned(C * H + W));
  for (size_t i = 0; i < x.size(); i += 97) x[i] = i % 2 ? std::numeric_limits<float>::infinity() : std::numeric_limits<float>::quiet_NaN();
  bool good = true;
  for (auto pooling : {sk::Pooling::max, sk::Pooling::average, sk::Pooling::average_counting_padding}) {
    if (pooling != sk::Pooling::max) check::fill(x, unsigned(C * H + W));
    sk::pool2d_fwd(s, pooling, x.data(), out.data(), sk::kSerial);
    sk::pool2d_fwd(s, pooling, x.data(), again.data(), check::odd_pool());
    if (out.size() && std::memcmp(out.data(), again.data(), out.size() * sizeof(float)))
      good = false, std::printf("FAIL: another pool, other bits\n");
    for (int64_t i = 0; i < int64_t(out.size()); ++i) {
      const int64_t c = i % C, ox = i / C % s.OW, oy = i / C / s.OW % s.OH, n = i / C / s.OW / s.OH;
      const int64_t y0 = oy * stride - s.pad_h, x0 = ox * stride - s.pad_w;
      double sum = 0, size = 0, largest = -std::numeric_limits<double>::infinity();
      int64_t inside = 0, all = 0;
      bool nan = false;
      for (int64_t y = y0; y < std::min(y0 + KH, H + s.pad_h); ++y)
        for (int64_t u = x0; u < std::min(x0 + KW, W + s.pad_w); ++u, ++all) {
          if (y < 0 || y >= H || u < 0 || u >= W) continue;
          const double v = x[size_t(((n * H + y) * W + u) * C + c)];
          sum += v, size += std::fabs(v), largest = std::max(largest, v), nan |= std::isnan(v), ++inside;
        }
      if (pooling == sk::Pooling::max) {
        const bool same = nan ? std::isnan(out[i]) : double(out[i]) == largest;
        if (!same) good = false, std::printf("FAIL max (%s): got %g, want %g, NaN %d\n", sk::isa_name(), out[i], largest, nan);
      } else {
        const double divisor = double(pooling == sk::Pooling::average ? inside : all);
        good &= check::close("average", out[i], sum / divisor, double(inside) + 1, size / divisor);
      }
      if (!good) return std::printf("  of [%ld, %ld, %ld, %ld], %ldx%ld/%ld\n", N, C, H, W, KH, KW, stride), false;
    }
  }
  return good;
}

}  // namespace

int main() {
  if (!check::wanted_isa()) return 0;
  bool good = true;
  for (int64_t C : {1, 3, 16, 67, 130})
    for (bool ceil_mode : {false, true}) {
      good &= test(2, C, 9, 12, 3, 3, 2, 0, ceil_mode);
      good &= test(1, C, 8, 7, 3, 3, 2, 1, ceil_mode);
      good &= test(1, C, 6, 6, 3, 3, 1, 1, ceil_mode);
      good &= test(3, C, 5, 11, 2, 4, 3, 1, ceil_mode);
      good &= test(1, C, 7, 7, 7, 7, 7, 0, ceil_mode);
    }
  good &= test(0, 16, 5, 5, 3, 3, 2, 0, true);
  good &= test(2, 17, 1, 1, 1, 1, 1, 0, false);
  std::printf("%s\n", good ? "ok" : "FAILED");
  return good ? 0 : 1;
}
