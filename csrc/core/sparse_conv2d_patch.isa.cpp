// sparse_conv2d, list kernels over patches (see SparseConvPatches): one weight per entry, sums of a strip of patch rows in registers.
#include "core/sparse_conv2d_kernels.h"
#include "core/vec.h"

namespace sk::SK_ISA {

namespace {

#if defined(__AVX512F__)
// Sums of R x C vectors over the entries of a channel block.
template <int R, int C>
__attribute__((noinline)) int64_t patch_tile(const SparseConvList& a, int64_t begin, int64_t end) {
  static_assert(R * C <= kMaxPatchSums);
  constexpr int kSets = R * C <= 5 ? 2 : 1;  // enough independent sums to hide the latency
  vf sums[kSets][R][C];
  const vf bias = splat(a.bias ? *a.bias : 0.0f);
  SK_UNROLL for (int y = 0; y < R; ++y) SK_UNROLL for (int x = 0; x < C; ++x) {
    sums[0][y][x] = a.first ? bias : load(a.out + (y * C + x) * W);
    SK_UNROLL for (int s = 1; s < kSets; ++s) sums[s][y][x] = zero();
  }
  // in registers: every load beside the inputs' costs a multiply-add
  const int64_t row = a.patch_row;
  const int32_t limit = a.code_end;
  const int32_t *const codes = a.code, *const table = a.table - a.code_begin, *const entries = a.entry;
  const float *const x0 = a.x, *const weight = a.weight;
  float* const out = a.out;
  const auto add = [&](vf(&to)[R][C], int64_t e, int32_t code) {
    const float* p = x0 + table[code];
    const vf w = splat(weight[entries ? entries[e] : e]);
    SK_UNROLL for (int y = 0; y < R; ++y, p += row) {
      asm("" : "+r"(p));  // one register, not base + index: an indexed operand costs the multiply-add a second micro-op
      SK_UNROLL for (int x = 0; x < C; ++x) to[y][x] += w * load(p + x * W);
    }
  };
  int64_t e = begin;
  for (; kSets > 1 && e + 1 < end && codes[e + 1] < limit; e += 2) {
    add(sums[0], e, codes[e]);
    add(sums[kSets - 1], e + 1, codes[e + 1]);
  }
  for (; e < end; ++e) {
    const int32_t code = codes[e];
    if (code >= limit) break;
    add(sums[0], e, code);
  }
  SK_UNROLL for (int y = 0; y < R; ++y) SK_UNROLL for (int x = 0; x < C; ++x) {
    SK_UNROLL for (int s = 1; s < kSets; ++s) sums[0][y][x] += sums[s][y][x];
    store(out + (y * C + x) * W, sums[0][y][x]);
  }
  return e;
}

using Tile = int64_t (*)(const SparseConvList&, int64_t, int64_t);
template <int R, int C>
constexpr Tile tile_at() {
  if constexpr (R * C <= kMaxPatchSums) return patch_tile<R, C>;
  return nullptr;
}
#define SK_PATCH_ROW(R)                                                                                                                          \
  {tile_at<R, 1>(), tile_at<R, 2>(),  tile_at<R, 3>(),  tile_at<R, 4>(),  tile_at<R, 5>(),  tile_at<R, 6>(),  tile_at<R, 7>(),  tile_at<R, 8>(), \
   tile_at<R, 9>(), tile_at<R, 10>(), tile_at<R, 11>(), tile_at<R, 12>(), tile_at<R, 13>(), tile_at<R, 14>(), tile_at<R, 15>(), tile_at<R, 16>()}
constexpr Tile kTiles[16][16] = {SK_PATCH_ROW(1),  SK_PATCH_ROW(2),  SK_PATCH_ROW(3),  SK_PATCH_ROW(4),  SK_PATCH_ROW(5),  SK_PATCH_ROW(6),
                                 SK_PATCH_ROW(7),  SK_PATCH_ROW(8),  SK_PATCH_ROW(9),  SK_PATCH_ROW(10), SK_PATCH_ROW(11), SK_PATCH_ROW(12),
                                 SK_PATCH_ROW(13), SK_PATCH_ROW(14), SK_PATCH_ROW(15), SK_PATCH_ROW(16)};

int64_t forward(const SparseConvList& a, int64_t begin, int64_t end) { return kTiles[a.patch_rows - 1][a.patch_cols - 1](a, begin, end); }

#endif

}  // namespace

extern const SparseConvPatchKernels sparse_conv_patch_kernels;
#if defined(__AVX512F__)
const SparseConvPatchKernels sparse_conv_patch_kernels = {forward};
#else
const SparseConvPatchKernels sparse_conv_patch_kernels = {nullptr};
#endif

}  // namespace sk::SK_ISA
