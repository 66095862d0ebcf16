// sparse_conv2d, list kernels: each block of destination channels walks its kept entries; an entry is a few weights per
// channel, read where they lie, and an offset into shifted copies of the source.
//   forward      N channels x PV vectors of sums in registers; N = 1 reads one input vector per multiply-add (aligned copies
//                matter), shared masks (N > 1) reuse it N times. grad_x is the same walk over the transposed lists.
//   grad_weight  each weight is the product of a channel of grad_out with a shifted copy: N sums per entry
// Entries are used while their code is below code_end: channels come in blocks whose copies stay in the caches.
#include "core/sparse_conv2d_kernels.h"
#include "core/transpose.h"

namespace sk::SK_ISA {
namespace {

constexpr int kRegisters = W == 16 ? 32 : 16;
constexpr int kMaxN = W == 16 ? 8 : 4;
constexpr int kMaxPV = W == 16 ? 16 : 12;

// N = 1 uses the input as a memory operand; N > 1 holds PV inputs and one broadcast beside the sums.
constexpr int vectors_for(int n) {
  const int fit = n == 1 ? kMaxPV : (kRegisters - 1) / (n + 1);
  return fit < kMaxPV ? fit : kMaxPV;
}
SK_INLINE int piece(int64_t size, int most) {
  const int64_t pieces = (size + most - 1) / most;
  return int((size + pieces - 1) / pieces);
}
SK_INLINE vf load_upto(const float* p, int n) { return n == W ? load(p) : load_first(p, n); }

template <int N, int PV>
SK_INLINE void multiply_add(vf (&sums)[N][PV], const float* x, const float* w, int64_t row_stride) {
  if constexpr (N == 1) {
    const vf w0 = splat(*w);
    asm("" : "+r"(x));  // one register, not base + index: an indexed operand costs the multiply-add a second micro-op
    SK_UNROLL for (int v = 0; v < PV; ++v) sums[0][v] += w0 * load(x + v * W);
  } else {
    vf input[PV];
    SK_UNROLL for (int v = 0; v < PV; ++v) input[v] = load(x + v * W);
    SK_UNROLL for (int j = 0; j < N; ++j) {
      const vf wj = splat(w[j * row_stride]);
      SK_UNROLL for (int v = 0; v < PV; ++v) sums[j][v] += wj * input[v];
    }
  }
}

// The weights of one entry and destination channel: one, one per source channel, or any table of them.
enum class Inner { single, strided, table };
using ListTile = int64_t (*)(const SparseConvList& a, int64_t begin, int64_t end, int64_t row, int64_t v, int tail);
template <int N, int PV, Inner kInner>
__attribute__((noinline)) int64_t list_tile(const SparseConvList& a, int64_t begin, int64_t end, int64_t row, int64_t v0, int tail) {
  vf sums[N][PV];
  float* out = a.out + row * a.out_stride + v0 * W;
  SK_UNROLL for (int j = 0; j < N; ++j) {
    const float* from = out + j * a.out_stride;
    const vf b = splat(a.bias ? a.bias[row + j] : 0.0f);
    SK_UNROLL for (int v = 0; v + 1 < PV; ++v) sums[j][v] = a.first ? b : load(from + v * W);
    sums[j][PV - 1] = a.first ? b : load_upto(from + (PV - 1) * W, tail);
  }
  const float* x = a.x + v0 * W;
  const float* weight = a.weight + row * a.row_stride;
  const int64_t row_stride = a.row_stride, entry_stride = a.entry_stride;
  const int32_t limit = a.code_end, first_code = a.code_begin;
  const int32_t *codes = a.code, *table = a.table, *entries = a.entry;
  int64_t e = begin;
  for (; e < end; ++e) {
    const int32_t code = codes[e];
    if (code >= limit) break;
    const int32_t offset = table[code - first_code];
    if (offset == kAbsentOffset) continue;
    const float* w = weight + (entries ? entries[e] : e) * entry_stride;
    if constexpr (kInner == Inner::single) {
      multiply_add<N, PV>(sums, x + offset, w, row_stride);
    } else if constexpr (kInner == Inner::strided) {
      const float* p = x + offset;
      for (int64_t l = 0; l < a.inner; ++l, p += a.x_step, w += a.weight_step) multiply_add<N, PV>(sums, p, w, row_stride);
    } else {
      for (int64_t l = 0; l < a.inner; ++l) {
        if (a.inner_x[l] == kAbsentOffset) continue;
        multiply_add<N, PV>(sums, x + offset + a.inner_x[l], w + a.inner_weight[l], row_stride);
      }
    }
  }
  SK_UNROLL for (int j = 0; j < N; ++j) {
    float* to = out + j * a.out_stride;
    SK_UNROLL for (int v = 0; v + 1 < PV; ++v) store(to + v * W, sums[j][v]);
    if (tail == W)
      store(to + (PV - 1) * W, sums[j][PV - 1]);
    else
      store_first(to + (PV - 1) * W, sums[j][PV - 1], tail);
  }
  return e;
}

// Sums waiting to be added up lane by lane: W of them take fewer instructions together than one by one.
struct PendingSums {
  vf sums[W];
  float* to[W];
  int count = 0;
  SK_INLINE void add(vf sum, float* target) {
    sums[count] = sum;
    to[count] = target;
    if (++count == W) flush();
  }
  SK_INLINE void flush() {
    for (int i = count; i < W; ++i) sums[i] = zero();
    const vf totals = sum_each(sums);
    for (int i = 0; i < count; ++i) *to[i] += totals[i];
    count = 0;
  }
};

// ---- grad_weight: weight[e][row + j][l] += sum over PV vectors of grad_out[row + j] * x[offset of (e, l)]
using DotTile = int64_t (*)(const SparseConvList& a, int64_t begin, int64_t end, int64_t row, int64_t v, int tail);
template <int N, int PV>
__attribute__((noinline)) int64_t dot_tile(const SparseConvList& a, int64_t begin, int64_t end, int64_t row, int64_t v0, int tail) {
  vf grad[N][PV];
  SK_UNROLL for (int j = 0; j < N; ++j) {
    const float* from = a.out + (row + j) * a.out_stride + v0 * W;
    SK_UNROLL for (int v = 0; v < PV; ++v) grad[j][v] = load_upto(from + v * W, v + 1 < PV ? W : tail);
  }
  const float* x = a.x + v0 * W;
  float* weight = a.grad_weight + row * a.row_stride;
  PendingSums pending;
  int64_t e = begin;
  for (; e < end; ++e) {
    if (a.code[e] >= a.code_end) break;
    const int32_t offset = a.table[a.code[e] - a.code_begin];
    if (offset == kAbsentOffset) continue;
    for (int64_t l = 0; l < a.inner; ++l) {
      if (a.inner_x[l] == kAbsentOffset) continue;
      const float* p = x + offset + a.inner_x[l];
      constexpr int kChains = N == 1 ? (PV < 4 ? PV : 4) : 1;  // enough independent sums to hide the latency
      vf sums[N][kChains];
      SK_UNROLL for (int j = 0; j < N; ++j) SK_UNROLL for (int c = 0; c < kChains; ++c) sums[j][c] = zero();
      SK_UNROLL for (int v = 0; v < PV; ++v) {
        // beyond the tail the copies hold another channel: its Inf must not meet our zeros
        const vf input = v + 1 < PV ? load(p + v * W) : load_upto(p + v * W, tail);
        SK_UNROLL for (int j = 0; j < N; ++j) sums[j][v % kChains] += grad[j][v] * input;
      }
      float* to = weight + e * a.entry_stride + a.inner_weight[l];
      SK_UNROLL for (int j = 0; j < N; ++j) {
        vf total = sums[j][0];
        SK_UNROLL for (int c = 1; c < kChains; ++c) total += sums[j][c];
        pending.add(total, to + j * a.row_stride);
      }
    }
  }
  pending.flush();
  return e;
}

// The same for one weight per entry and channel: four entries at a time, and W sums are added to W neighbouring weights at once.
template <int PV>
__attribute__((noinline)) int64_t dot_row(const SparseConvList& a, int64_t begin, int64_t end, int64_t row, int64_t v0, int tail) {
  vf grad[PV];
  const float* from = a.out + row * a.out_stride + v0 * W;
  SK_UNROLL for (int v = 0; v < PV; ++v) grad[v] = load_upto(from + v * W, v + 1 < PV ? W : tail);
  const float* x = a.x + v0 * W;
  const auto pixels = [&](int64_t e) { return x + a.table[a.code[e] - a.code_begin]; };
  vf sums[W] = {};
  for (int64_t e = begin; e < end; e += W) {
    const int count = int(end - e < W ? end - e : W);
    for (int i = 0; i < count; i += 4) {  // beyond the end the last entry is repeated; its sums are not used
      const float* p[4];
      vf s[4];
      SK_UNROLL for (int q = 0; q < 4; ++q) {
        p[q] = pixels(i + q < count ? e + i + q : end - 1);
        s[q] = zero();
      }
      SK_UNROLL for (int v = 0; v < PV; ++v) SK_UNROLL for (int q = 0; q < 4; ++q) s[q] +=
          grad[v] * (v + 1 < PV ? load(p[q] + v * W) : load_upto(p[q] + v * W, tail));
      SK_UNROLL for (int q = 0; q < 4; ++q) sums[i + q] = s[q];
    }
    const vf totals = sum_each(sums);
    float* to = a.grad_weight + e;
    if (count == W)
      store(to, load(to) + totals);
    else
      store_first(to, load_first(to, count) + totals, count);
  }
  return end;
}

// ---- tables [N-1][PV-1]; null where the tile does not fit the registers
constexpr int kDotVectors = W == 16 ? 24 : 12;  // N*PV registers of grad_out
template <int N, int PV, Inner kInner>
constexpr ListTile list_at() {
  if constexpr (N <= kMaxN && PV <= vectors_for(N)) return list_tile<N, PV, kInner>;
  return nullptr;
}
constexpr int dot_vectors_for(int n) { return kDotVectors / n < kMaxPV ? kDotVectors / n : kMaxPV; }
template <int N, int PV, bool Row>
constexpr DotTile dot_at() {
  if constexpr (Row && N == 1 && PV <= dot_vectors_for(N)) return dot_row<PV>;
  if constexpr (!Row && N <= 4 && PV <= dot_vectors_for(N)) return dot_tile<N, PV>;
  return nullptr;
}
#define SK_LIST_ROW(F, N, S)                                                                                             \
  {F<N, 1, S>(), F<N, 2, S>(),  F<N, 3, S>(),  F<N, 4, S>(),  F<N, 5, S>(),  F<N, 6, S>(),  F<N, 7, S>(),  F<N, 8, S>(), \
   F<N, 9, S>(), F<N, 10, S>(), F<N, 11, S>(), F<N, 12, S>(), F<N, 13, S>(), F<N, 14, S>(), F<N, 15, S>(), F<N, 16, S>()}
#define SK_LIST_ROWS(F, S)                                                                 \
  {SK_LIST_ROW(F, 1, S), SK_LIST_ROW(F, 2, S), SK_LIST_ROW(F, 3, S), SK_LIST_ROW(F, 4, S), \
   SK_LIST_ROW(F, 5, S), SK_LIST_ROW(F, 6, S), SK_LIST_ROW(F, 7, S), SK_LIST_ROW(F, 8, S)}
constexpr ListTile kList[3][8][16] = {SK_LIST_ROWS(list_at, Inner::single), SK_LIST_ROWS(list_at, Inner::strided),
                                      SK_LIST_ROWS(list_at, Inner::table)};
constexpr DotTile kDot[8][16] = SK_LIST_ROWS(dot_at, false), kDotRow[16] = SK_LIST_ROW(dot_at, 1, true);

// ---- one block of destination channels, all its vectors
template <class Pick>
SK_INLINE int64_t walk(const SparseConvList& a, int64_t begin, int64_t end, int max_n, int (*vectors)(int), Pick pick) {
  // a row of entries is short: no divisions where one tile holds everything
  if (a.rows <= max_n && a.vectors <= vectors(int(a.rows))) return pick(int(a.rows), int(a.vectors))(a, begin, end, 0, 0, a.tail);
  int64_t next = begin;
  for (int64_t row = 0; row < a.rows;) {
    const int n = piece(a.rows - row, max_n);
    for (int64_t v = 0; v < a.vectors;) {
      const int pv = piece(a.vectors - v, vectors(n));
      next = pick(n, pv)(a, begin, end, row, v, v + pv == a.vectors ? a.tail : W);
      v += pv;
    }
    row += n;
  }
  return next;
}

int64_t forward(const SparseConvList& a, int64_t begin, int64_t end) {
  const Inner inner = a.inner == 1 ? Inner::single : a.weight_step ? Inner::strided : Inner::table;
  return walk(a, begin, end, kMaxN, vectors_for, [&](int n, int pv) { return kList[int(inner)][n - 1][pv - 1]; });
}
int64_t grad_weight(const SparseConvList& a, int64_t begin, int64_t end) {
  const bool single = a.rows == 1 && a.entry_stride == 1;
  return walk(a, begin, end, 4, dot_vectors_for, [&](int n, int pv) { return single ? kDotRow[pv - 1] : kDot[n - 1][pv - 1]; });
}

}  // namespace

extern const SparseConvListKernels sparse_conv_list_kernels;
const SparseConvListKernels sparse_conv_list_kernels = {forward, grad_weight};

}  // namespace sk::SK_ISA
