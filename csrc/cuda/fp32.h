// The two ways to multiply fp32 on tensor cores.
#pragma once

namespace sk {

// How fp32 is multiplied; 16-bit types ignore it.
enum class Fp32 {
  strict,  // as good as fp32: each number as a sum of two tf32, three products
  tf32,    // ten bits of fraction, where torch's flags allow it
};

}  // namespace sk
