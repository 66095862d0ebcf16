#include "core/convert.h"

namespace sk {

constexpr int64_t kGrain = 32768;

void to_f32(Half type, const uint16_t* in, float* out, int64_t size, const Pool& pool) {
  const auto kernel = SK_PICK_KERNELS(convert).to_f32[int(type)];
  parallel(pool, size, kGrain, [=](int64_t begin, int64_t end) { kernel(in + begin, out + begin, end - begin); });
}

void from_f32(Half type, const float* in, uint16_t* out, int64_t size, const Pool& pool) {
  const auto kernel = SK_PICK_KERNELS(convert).from_f32[int(type)];
  parallel(pool, size, kGrain, [=](int64_t begin, int64_t end) { kernel(in + begin, out + begin, end - begin); });
}

}  // namespace sk
