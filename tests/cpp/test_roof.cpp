// The roof loops run in every instruction set and give a rate that a processor can have.
#include <cstdio>

#include "check.h"
#include "core/roof.h"

int main() {
  if (!check::wanted_isa()) return 0;
  const double gflops = sk::roof_fma_gflops(0.01);
  const double l1_gbytes = sk::roof_read_gbytes(16 << 10, 0.01), tiny_gbytes = sk::roof_read_gbytes(1, 0.001);
  std::printf("%s: %.1f GF/s, %.1f GB/s\n", sk::isa_name(), gflops, l1_gbytes);
  const bool good = gflops > 0.1 && gflops < 1e4 && l1_gbytes > 0.1 && l1_gbytes < 1e5 && tiny_gbytes > 0;
  return good ? 0 : 1;
}
