// A fault of each kind, for tests/trust/sanitized.py: a sanitizer that does not report these would report none of ours.
#include "torch/glue.h"

#define PLANTED extern "C" __attribute__((visibility("default")))

PLANTED void write_past_the_end(float* values, int64_t size) { values[size] = 1.0f; }

PLANTED int shift_too_far(int places) { return 1 << places; }

// Every piece adds to one number, in torch's threads.
PLANTED int64_t add_without_order(int64_t size) {
  int64_t sum = 0;
  sk::parallel(sk::glue::pool(), size, 1, [&](int64_t begin, int64_t end) {
    for (int64_t i = begin; i < end; ++i) sum += i;
  });
  return sum;
}
