// NHWC 3x3 kernels of grouped_conv2d (stride 1), AVX-512: the tiles that win for some shape.
#pragma GCC optimize("no-ivopts")
#include "core/grouped_conv2d_nhwc_row.h"

namespace sk::SK_ISA {
namespace {
#if defined(__AVX512F__)
// clang-format off
#define SK_KX(V, P) LaneConfig{LaneConfig::kRowMajor, 1, P, V, {SK_EDGES(kx_tile, kOneGroup, 3, V, P)}}
#define SK_KXY(R, P)                                                                                          \
  LaneConfig{LaneConfig::kNatural, R, P, 1,                                                                   \
             {SK_EDGES(kxy_tile, kOneGroup, R, P), SK_EDGES(kxy_tile, kTwoGroups, R, P),                      \
              SK_EDGES(kxy_tile, kWindow16, R, P), SK_EDGES(kxy_tile, kWindow32, R, P)}}
constexpr LaneConfig kConfigs[] = {
    SK_KX(2, 7),
#if !defined(__SANITIZE_ADDRESS__)  // a tile takes seconds to compile under it: keep one of each sort
    SK_KX(2, 8), SK_KX(1, 14), SK_KXY(2, 8), SK_KXY(2, 7), SK_KXY(3, 7),
#endif
    LaneConfig{LaneConfig::kNatural, 2, 4, 1,
               {SK_EDGES(kxy_tile, kOneGroup, 2, 4), SK_EDGES(kxy_tile, kTwoGroups, 2, 4),
                SK_EDGES(kxy_tile, kWindow16, 2, 4), SK_EDGES(kxy_tile, kWindow32, 2, 4),
                SK_EDGES(kxy_tile, kDepthwise, 2, 4)}},
};
// clang-format on
constexpr ConvRowKernels kKernels = {kConfigs, int(sizeof(kConfigs) / sizeof(kConfigs[0]))};
#else
constexpr ConvRowKernels kKernels = {nullptr, 0};
#endif
}  // namespace

extern const ConvRowKernels conv_row3_kernels = kKernels;

}  // namespace sk::SK_ISA
