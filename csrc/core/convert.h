// Between storage types and fp32, element by element, round to nearest even. fp16 and bf16 ops compute in fp32.
#pragma once
#include "core/core.h"

namespace sk {

enum class Half : int { bf16 = 0, fp16 = 1 };

SK_API void to_f32(Half type, const uint16_t* in, float* out, int64_t size, const Pool& pool);
SK_API void from_f32(Half type, const float* in, uint16_t* out, int64_t size, const Pool& pool);

struct ConvertKernels {
  void (*to_f32[2])(const uint16_t* in, float* out, int64_t size);
  void (*from_f32[2])(const float* in, uint16_t* out, int64_t size);
};
SK_DECLARE_KERNELS(ConvertKernels, convert)

}  // namespace sk
