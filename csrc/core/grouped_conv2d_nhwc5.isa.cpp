// NHWC 5x5 kernels of grouped_conv2d (stride 1), AVX-512: the tiles that win for some shape.
#pragma GCC optimize("no-ivopts")
#include "core/grouped_conv2d_nhwc_row.h"

namespace sk::SK_ISA {
namespace {
#if defined(__AVX512F__)
// clang-format off
#define SK_KX(P)                                                                                         \
  LaneConfig{LaneConfig::kRowMajor, 1, P, 1,                                                             \
             {SK_EDGES(kx_tile, kOneGroup, 5, 1, P), SK_EDGES(kx_tile, kTwoGroups, 5, 1, P),             \
              SK_EDGES(kx_tile, kWindow16, 5, 1, P), SK_EDGES(kx_tile, kWindow32, 5, 1, P)}}
constexpr LaneConfig kConfigs[] = {
    SK_KX(7),
#if !defined(__SANITIZE_ADDRESS__)  // a tile takes seconds to compile under it: keep one
    SK_KX(16), SK_KX(14), SK_KX(8),
#endif
};
// clang-format on
constexpr ConvRowKernels kKernels = {kConfigs, int(sizeof(kConfigs) / sizeof(kConfigs[0]))};
#else
constexpr ConvRowKernels kKernels = {nullptr, 0};
#endif
}  // namespace

extern const ConvRowKernels conv_row5_kernels = kKernels;

}  // namespace sk::SK_ISA
