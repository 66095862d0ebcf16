// A small run of a grouped convolution with the 1x1 behind it: tests/cuda/test_mutants.py builds it from altered sources.
#define main all_cases
#include "test_root_conv2d.cpp"
#undef main
#include "cuda/root_conv2d.cu"

int main() {
  check::in_every_way([](const char* way) {
    run<bf16>({2, 16, 9, 9, 75, 3, 3, 1, 1, 1, 1, 1, 1, 1, 9, 9, false}, 66, true, Fp32::strict, way);
    run<bf16>({1, 10, 5, 9, 20, 3, 3, 1, 1, 1, 1, 1, 1, 5, 5, 9, false}, 7, false, Fp32::strict, way);
    run<bf16>({1, 16, 5, 4, 24, 3, 3, 1, 1, 1, 1, 1, 1, 4, 5, 4, false}, 10, true, Fp32::strict, way);  // whole pieces
  });
  return check::result("mutant", cases);
}
