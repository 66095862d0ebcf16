// W x W transposes in registers, and the tiles around them (*.isa.cpp only).
#pragma once
#include "core/vec.h"

namespace sk::SK_ISA {
namespace {

// Of two rows, the lanes whose bit S is clear (low) or set (high), S x S square by square.
template <int... I>
struct Lanes {};
template <int N>
struct FirstLanes {
  using Type = Lanes<__integer_pack(N)...>;
};
using AllLanes = FirstLanes<W>::Type;
template <int S, int... I>
SK_INLINE vf low(vf a, vf b, Lanes<I...>) {
  return __builtin_shufflevector(a, b, ((I & S) ? W + I - S : I)...);
}
template <int S, int... I>
SK_INLINE vf high(vf a, vf b, Lanes<I...>) {
  return __builtin_shufflevector(a, b, ((I & S) ? W + I : I + S)...);
}

// One stage: swap the off-diagonal S x S squares of each pair of rows.
template <int S>
SK_INLINE void butterfly(vf* r) {
  if constexpr (S < W) {
    SK_UNROLL for (int i = 0; i < W; ++i) {
      if ((i & S) == 0) {
        const vf a = r[i], b = r[i + S];
        r[i] = low<S>(a, b, AllLanes{});
        r[i + S] = high<S>(a, b, AllLanes{});
      }
    }
    butterfly<2 * S>(r);
  }
}

// r[i][j] -> r[j][i]
SK_INLINE void transpose(vf* r) { butterfly<1>(r); }

template <int S>
SK_INLINE void sum_stage(vf* r) {
  if constexpr (S < W) {
    SK_UNROLL for (int i = 0; i < W; i += 2 * S) r[i] = low<S>(r[i], r[i + S], AllLanes{}) + high<S>(r[i], r[i + S], AllLanes{});
    sum_stage<2 * S>(r);
  }
}

// Lane i of the result is the sum of the lanes of r[i]. Destroys r.
SK_INLINE vf sum_each(vf* r) {
  sum_stage<1>(r);
  return r[0];
}

// out[c][r] = in[r][c] for r < rows <= W and c < cols <= W; rows..W of the output are zero.
SK_INLINE void transpose_tile(const float* in, int64_t in_stride, int rows, int cols, float* out, int64_t out_stride) {
  vf t[W];
  if (rows == W && cols == W) {
    SK_UNROLL for (int i = 0; i < W; ++i) t[i] = load(in + i * in_stride);
    transpose(t);
    SK_UNROLL for (int i = 0; i < W; ++i) store(out + i * out_stride, t[i]);
    return;
  }
  SK_UNROLL for (int i = 0; i < W; ++i) t[i] = i >= rows ? zero() : cols == W ? load(in + i * in_stride) : load_first(in + i * in_stride, cols);
  transpose(t);
  for (int i = 0; i < cols; ++i) store(out + i * out_stride, t[i]);
}

// The same for rows <= W / 2: out[c][r] for r < W / 2, zero from `rows` on.
SK_INLINE void transpose_half_tile(const float* in, int64_t in_stride, int rows, int cols, float* out, int64_t out_stride) {
  vf t[W];
  SK_UNROLL for (int i = 0; i < W; ++i) t[i] = i >= rows ? zero() : cols == W ? load(in + i * in_stride) : load_first(in + i * in_stride, cols);
  transpose(t);
  SK_UNROLL for (int i = 0; i < W; ++i) if (i < cols) store_first(out + i * out_stride, t[i], W / 2);
}

// The same, writing only what exists: out[c][r] for r < rows, c < cols; nothing beyond is touched.
SK_INLINE void transpose_tile_exact(const float* in, int64_t in_stride, int rows, int cols, float* out, int64_t out_stride) {
  if (rows == W && cols == W) return transpose_tile(in, in_stride, rows, cols, out, out_stride);
  vf t[W];
  SK_UNROLL for (int i = 0; i < W; ++i) t[i] = i >= rows ? zero() : cols == W ? load(in + i * in_stride) : load_first(in + i * in_stride, cols);
  transpose(t);
  for (int i = 0; i < cols; ++i) {
    if (rows == W)
      store(out + i * out_stride, t[i]);
    else
      store_first(out + i * out_stride, t[i], rows);
  }
}

}  // namespace
}  // namespace sk::SK_ISA
