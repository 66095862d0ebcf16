// sparse_conv2d, tile kernels: a mask shared by the input channels of a block leaves, for each tap, a dense matrix
// [filters that keep it, BI]. Filters are gathered, never padded: a tile may hold any N filters of the list.
//   forward  for each block of pixel vectors, channel block, tap: tiles of N filters x PV vectors, summed over the channels
//            and then added to `out`: no sum is a chain over more than one tap and channel block
//   grad_x   all input channels of a block share one list of (tap, filter): a tile of N channels x PV vectors walks it, one
//            block of filters at a time so that their pixels stay in the first-level cache for all channels
//   outer    grad_weight: N filters x PV vectors of channels, summed over the pixels
// Weights are read where they lie, N broadcasts from N rows.
#include <type_traits>

#include "core/sparse_conv2d_kernels.h"
#include "core/vec.h"

namespace sk::SK_ISA {
namespace {

constexpr int kRegisters = W == 16 ? 32 : 16;
constexpr int kMaxN = W == 16 ? 8 : 4;
constexpr int kMaxPV = W == 16 ? 7 : 5;

// Vectors beside N broadcasts: N*PV sums, PV inputs and one broadcast stay in registers.
constexpr int vectors_for(int n) {
  const int fit = (kRegisters - 1) / (n + 1);
  return fit < kMaxPV ? fit : kMaxPV;
}

#if defined(__AVX512F__)
SK_INLINE vf load_masked(const float* p, uint16_t mask) { return reinterpret_cast<vf>(_mm512_maskz_loadu_ps(mask, p)); }
SK_INLINE vf add_masked(vf a, vf b, uint16_t mask) {
  return reinterpret_cast<vf>(_mm512_mask_add_ps(reinterpret_cast<__m512>(a), mask, reinterpret_cast<__m512>(a), reinterpret_cast<__m512>(b)));
}
#else
SK_INLINE vf load_masked(const float* p, uint16_t) { return load(p); }
SK_INLINE vf add_masked(vf a, vf b, uint16_t) { return a + b; }
#endif

// The input of one (channel, tap). NOTE: with masks, lanes that are off may lie outside the tensor; they are not accessed.
template <int PV, bool Masked>
SK_INLINE void load_input(vf (&x)[PV], const float* p, int64_t v_stride, const uint16_t* mask) {
  SK_UNROLL for (int v = 0; v < PV; ++v) x[v] = Masked ? load_masked(p + v * W, mask[v]) : load(p + v * v_stride);
}

// out[j] += sums[j], in the lanes of `mask`
template <int N, int PV>
SK_INLINE void add_sums(const vf (&sums)[N][PV], float* const* out, int tail, const uint16_t (&mask)[PV]) {
  SK_UNROLL for (int j = 0; j < N; ++j) {
    SK_UNROLL for (int v = 0; v + 1 < PV; ++v) store(out[j] + v * W, add_masked(load(out[j] + v * W), sums[j][v], mask[v]));
    float* last = out[j] + (PV - 1) * W;
    if (tail == W)
      store(last, add_masked(load(last), sums[j][PV - 1], mask[PV - 1]));
    else
      store_first(last, add_masked(load_first(last, tail), sums[j][PV - 1], mask[PV - 1]), tail);
  }
}
// out[j] += sums[j]
template <int N, int PV>
SK_INLINE void add_sums(const vf (&sums)[N][PV], float* const* out, int tail) {
  SK_UNROLL for (int j = 0; j < N; ++j) {
    SK_UNROLL for (int v = 0; v + 1 < PV; ++v) store(out[j] + v * W, load(out[j] + v * W) + sums[j][v]);
    float* last = out[j] + (PV - 1) * W;
    if (tail == W)
      store(last, load(last) + sums[j][PV - 1]);
    else
      store_first(last, load_first(last, tail) + sums[j][PV - 1], tail);
  }
}
template <int N, int PV>
SK_INLINE void store_sums(const vf (&sums)[N][PV], float* const* out, int tail) {
  SK_UNROLL for (int j = 0; j < N; ++j) {
    SK_UNROLL for (int v = 0; v + 1 < PV; ++v) store(out[j] + v * W, sums[j][v]);
    float* last = out[j] + (PV - 1) * W;
    if (tail == W)
      store(last, sums[j][PV - 1]);
    else
      store_first(last, sums[j][PV - 1], tail);
  }
}

// ---- forward: out[j][pixels] += sum over channels of weight[j][c] * x[c][pixels]
// With masks: those of the tap. A masked load takes a multiply-add's place, so only channels outside [whole.begin, whole.end), whose vectors reach
// over the ends of the memory, are loaded so. Of the others all lanes are multiplied, and those that are off are left out of `out`.
struct Channels {
  int64_t begin, end;
};
using ForwardTile = void (*)(const float* x, int64_t x_stride, int64_t v_stride, const uint16_t* mask, Channels whole, int64_t channels,
                             const float* const* weight, float* const* out, int tail);
template <int N, int PV, bool Masked>
__attribute__((noinline)) void forward_tile(const float* x, int64_t x_stride, int64_t v_stride, const uint16_t* mask, Channels whole,
                                            int64_t channels, const float* const* weight, float* const* out, int tail) {
  const float* w[N];
  uint16_t m[PV] = {};
  vf sums[N][PV];
  SK_UNROLL for (int j = 0; j < N; ++j) w[j] = weight[j];
  if constexpr (Masked) SK_UNROLL for (int v = 0; v < PV; ++v) m[v] = mask[v];
  SK_UNROLL for (int j = 0; j < N; ++j) SK_UNROLL for (int v = 0; v < PV; ++v) {
    sums[j][v] = zero();
    __builtin_prefetch(out[j] + v * W, 1);  // there when the sums are ready
  }
  int64_t c = 0;
  const auto add = [&](auto masked, int64_t end) __attribute__((always_inline)) {
    for (; c < end; ++c, x += x_stride) {
      asm("" : "+r"(c));  // one index for all rows of weights: N pointers to step would take ports from the multiply-adds
      vf input[PV];
      load_input<PV, decltype(masked)::value>(input, x, Masked ? W : v_stride, m);
      SK_UNROLL for (int j = 0; j < N; ++j) {
        const vf wj = splat(w[j][c]);
        SK_UNROLL for (int v = 0; v < PV; ++v) sums[j][v] += wj * input[v];
      }
    }
  };
  if constexpr (Masked) {
    add(std::true_type{}, whole.begin);
    add(std::false_type{}, whole.end);
    add(std::true_type{}, channels);
    add_sums<N, PV>(sums, out, tail, m);
  } else {
    add(std::false_type{}, channels);
    add_sums<N, PV>(sums, out, tail);
  }
}

// ---- grad_x: out[j][pixels] (+)= sum over (tap, filter of one block, o) of weight[entry][o][channel + j] * x[filter][pixels - tap]
using GradTile = void (*)(const SparseConvTile& a, int64_t filters, int64_t block, int64_t channel, int64_t v, int tail);
template <int N, int PV, bool Masked>
__attribute__((noinline)) void grad_tile(const SparseConvTile& a, int64_t filters, int64_t block, int64_t channel, int64_t v0, int tail) {
  const int32_t *begins = a.splits + (filters * a.IB + block) * a.taps, *ends = begins + a.IB * a.taps;
  float* out[N];
  SK_UNROLL for (int j = 0; j < N; ++j) out[j] = a.out + (block * a.BI + channel + j) * a.out_stride + v0 * W;
  vf sums[N][PV];
  SK_UNROLL for (int j = 0; j < N; ++j) SK_UNROLL for (int v = 0; v < PV; ++v) sums[j][v] = zero();
  for (int64_t t = 0; t < a.taps; ++t) {
    if (a.tap_offset[t] == kAbsentTap) continue;
    uint16_t m[PV] = {};
    if constexpr (Masked) SK_UNROLL for (int v = 0; v < PV; ++v) m[v] = a.mask[t * a.mask_stride + v0 + v];
    const float* x = a.x + a.tap_offset[t] + v0 * a.v_stride;
    for (int64_t e = begins[t]; e < ends[t]; ++e) {
      const float* p = x + a.rows[e] * a.BO * a.x_stride;
      const float* w = a.weight + int64_t(a.entries[e]) * a.BO * a.BI + channel;
      for (int64_t o = 0; o < a.BO; ++o, p += a.x_stride, w += a.BI) {
        vf input[PV];
        load_input<PV, Masked>(input, p, a.v_stride, m);
        SK_UNROLL for (int j = 0; j < N; ++j) {
          const vf wj = splat(w[j]);
          SK_UNROLL for (int v = 0; v < PV; ++v) sums[j][v] += wj * input[v];
        }
      }
    }
  }
  if (filters == 0)
    store_sums<N, PV>(sums, out, tail);
  else
    add_sums<N, PV>(sums, out, tail);
}

// ---- grad_weight: grad_weight[j][channels] += sum over pixels of grad_out[j][pixel] * x[pixel][channels]
using OuterTile = void (*)(const SparseConvOuter& a);
template <int N, int PV>
__attribute__((noinline)) void outer_tile(const SparseConvOuter& a) {
  vf sums[N][PV];
  const float* g[N];
  SK_UNROLL for (int j = 0; j < N; ++j) {
    g[j] = a.grad_out[j];
    SK_UNROLL for (int v = 0; v < PV; ++v) sums[j][v] = zero();
  }
  for (int64_t r = 0; r < a.rows; ++r) {
    const float* x = a.x + r * a.x_row;
    const int64_t first = r * a.grad_row;
    for (int64_t p = first; p < first + a.cols; ++p, x += a.x_col) {
      vf input[PV];
      SK_UNROLL for (int v = 0; v < PV; ++v) input[v] = load(x + v * W);
      SK_UNROLL for (int j = 0; j < N; ++j) {
        const vf gj = splat(g[j][p]);
        SK_UNROLL for (int v = 0; v < PV; ++v) sums[j][v] += gj * input[v];
      }
    }
  }
  add_sums<N, PV>(sums, a.grad_weight, a.tail);
}

// ---- tables [N-1][PV-1]; null where the tile does not fit the registers
template <int N, int PV>
constexpr bool fits = N <= kMaxN && PV <= vectors_for(N);
template <int N, int PV, bool Masked>
constexpr ForwardTile forward_at() {
  if constexpr (fits<N, PV>) return forward_tile<N, PV, Masked>;
  return nullptr;
}
template <int N, int PV, bool Masked>
constexpr GradTile grad_at() {
  if constexpr (fits<N, PV>) return grad_tile<N, PV, Masked>;
  return nullptr;
}
template <int N, int PV>
constexpr OuterTile outer_at() {
  if constexpr (fits<N, PV> && PV <= 4) return outer_tile<N, PV>;
  return nullptr;
}
constexpr bool kMasked = W == 16;
#define SK_TILE_ROW(F, N, ...)                                                                 \
  {F<N, 1 __VA_ARGS__>(), F<N, 2 __VA_ARGS__>(), F<N, 3 __VA_ARGS__>(), F<N, 4 __VA_ARGS__>(), \
   F<N, 5 __VA_ARGS__>(), F<N, 6 __VA_ARGS__>(), F<N, 7 __VA_ARGS__>()}
#define SK_TILE_ROWS(F, ...)                                                                                                       \
  {SK_TILE_ROW(F, 1, __VA_ARGS__), SK_TILE_ROW(F, 2, __VA_ARGS__), SK_TILE_ROW(F, 3, __VA_ARGS__), SK_TILE_ROW(F, 4, __VA_ARGS__), \
   SK_TILE_ROW(F, 5, __VA_ARGS__), SK_TILE_ROW(F, 6, __VA_ARGS__), SK_TILE_ROW(F, 7, __VA_ARGS__), SK_TILE_ROW(F, 8, __VA_ARGS__)}
#define SK_COMMA ,
constexpr ForwardTile kForward[2][8][7] = {SK_TILE_ROWS(forward_at, SK_COMMA false), SK_TILE_ROWS(forward_at, SK_COMMA kMasked)};
constexpr GradTile kGrad[2][8][7] = {SK_TILE_ROWS(grad_at, SK_COMMA false), SK_TILE_ROWS(grad_at, SK_COMMA kMasked)};
constexpr OuterTile kOuter[8][7] = SK_TILE_ROWS(outer_at);

// Cut `size` into equal pieces of at most `most`: the first piece of what is left.
SK_INLINE int piece(int64_t size, int most) {
  const int64_t pieces = (size + most - 1) / most;
  return int((size + pieces - 1) / pieces);
}

// Channels of `x`, `x_stride` apart, of which all of the first `floats` floats lie in [a.x_begin, a.x_end).
SK_INLINE Channels whole_channels(const SparseConvTile& a, const float* x, int64_t floats, int64_t channels) {
  if (a.x_begin == a.x_end) return {0, 0};
  Channels whole{0, channels};
  const int64_t before = a.x_begin - x, behind = x + (channels - 1) * a.x_stride + floats - a.x_end;
  if (before > 0) whole.begin = before > (channels - 1) * a.x_stride ? channels : (before + a.x_stride - 1) / a.x_stride;
  if (behind > 0) whole.end = channels - (behind + a.x_stride - 1) / a.x_stride;
  if (whole.end < whole.begin) whole.end = whole.begin;
  return whole;
}

// The weights of the next tile, so that the first pass over them does not wait for memory: rows are too short for the hardware.
SK_INLINE void prefetch_rows(const SparseConvTile& a, int64_t entry, int64_t rows, int64_t channel, int channels) {
  const int64_t all = a.columns[a.IB * a.taps];
  const int64_t end = entry + (rows + a.BO - 1) / a.BO < all ? entry + (rows + a.BO - 1) / a.BO : all;
  for (; entry < end; ++entry)
    for (int64_t o = 0; o < a.BO; ++o) {
      const float* w = a.weight + (int64_t(a.entries[entry]) * a.BO + o) * a.BI + channel;
      for (int c = 0; c < channels; c += 16) __builtin_prefetch(w + c);
    }
}

// Lines that will be wanted soon, fetched a few at a time beside the multiply-adds: the hardware sees no stream in many short rows.
struct Ahead {
  const char* row = nullptr;
  int64_t stride = 0, rows = 0, lines = 0, line = 0, per_step = 0;
  void set(const float* first, int64_t row_stride, int64_t row_floats, int64_t count, int64_t steps) {
    row = reinterpret_cast<const char*>(first);
    stride = row_stride * 4, rows = count, lines = (row_floats * 4 + 63) / 64, line = 0;
    per_step = (rows * lines + steps - 1) / (steps > 0 ? steps : 1);
  }
  SK_INLINE void step() {
    for (int64_t i = 0; i < per_step && rows > 0; ++i) {
      __builtin_prefetch(row + line * 64, 0, 2);
      if (++line == lines) line = 0, row += stride, --rows;
    }
  }
};

int64_t tiles_of(const SparseConvTile& a, int max_n) {
  int64_t tiles = 0;
  for (int64_t c = 0; c < a.IB * a.taps; ++c) tiles += ((a.columns[c + 1] - a.columns[c]) * a.BO + max_n - 1) / max_n;
  return tiles;
}

// ---- drivers over one range of pixel vectors
void forward(const SparseConvTile& a) {
  const int most = a.block_vectors, max_n = a.tile_filters < kMaxN ? a.tile_filters : kMaxN;
  Ahead x_ahead, out_ahead;
  const int64_t tiles = a.ahead ? tiles_of(a, max_n) : 0;
  const int64_t all_tiles = tiles * ((a.v_end - a.v_begin + most - 1) / most);
  if (a.ahead && a.next_x && a.next_x_floats > 0) x_ahead.set(a.next_x, 0, a.next_x_floats, 1, all_tiles);
  if (a.ahead && a.next_out && a.next_out_floats > 0) out_ahead.set(a.next_out, 0, a.next_out_floats, 1, all_tiles);
  for (int64_t v0 = a.v_begin; v0 < a.v_end;) {
    const int nb = piece(a.v_end - v0, most);
    const int tail = v0 + nb == a.v_end ? a.tail : W;
    const bool more = v0 + nb < a.v_end;
    if (a.ahead && a.mask && a.next_x_floats == 0 && (more || a.next_x))
      x_ahead.set(more ? a.x + a.reach + (v0 + nb) * W : a.next_x, a.x_stride, (nb + 1) * W, a.IB * a.BI, tiles);
    if (a.ahead && a.next_out_floats == 0 && (more || a.next_out))
      out_ahead.set(more ? a.out + (v0 + nb) * W : a.next_out, a.out_stride, nb * W, a.K, tiles);
    for (int64_t k = 0; k < a.K; ++k) {
      float* out = a.out + k * a.out_stride + v0 * W;
      const vf b = splat(a.bias ? a.bias[k] : 0.0f);
      for (int v = 0; v + 1 < nb; ++v) store(out + v * W, b);
      if (tail == W)
        store(out + (nb - 1) * W, b);
      else
        store_first(out + (nb - 1) * W, b, tail);
    }
    for (int64_t ib = 0; ib < a.IB; ++ib)
      for (int64_t c0 = 0; c0 < a.BI;) {
        const int channels = piece(a.BI - c0, a.block_channels);
        for (int64_t i = 0; i < a.taps; ++i) {
          const int64_t t = a.tap_order[i];
          if (a.tap_offset[t] == kAbsentTap) continue;
          const float* x = a.x + a.tap_offset[t] + (ib * a.BI + c0) * a.x_stride + v0 * a.v_stride;
          const uint16_t* mask = a.mask ? a.mask + t * a.mask_stride + v0 : nullptr;
          const Channels whole = mask ? whole_channels(a, x, nb * W, channels) : Channels{0, channels};
          int64_t e = a.columns[ib * a.taps + t], o = 0;
          int64_t filters = (a.columns[ib * a.taps + t + 1] - e) * a.BO;
          while (filters > 0) {
            const int n = piece(filters, max_n);
            const float* w[8];
            float* out[8];
            for (int j = 0; j < n; ++j) {
              w[j] = a.weight + (int64_t(a.entries[e]) * a.BO + o) * a.BI + c0;
              out[j] = a.out + (a.rows[e] * a.BO + o) * a.out_stride + v0 * W;
              if (++o == a.BO) o = 0, ++e;
            }
            if (v0 == a.v_begin) prefetch_rows(a, e, max_n, c0, channels);
            for (int v = 0; v < nb;) {
              const int pv = piece(nb - v, vectors_for(n));
              kForward[mask != nullptr][n - 1][pv - 1](x + v * a.v_stride, a.x_stride, a.v_stride, mask ? mask + v : nullptr, whole, channels, w, out,
                                                       v + pv == nb ? tail : W);
              for (int j = 0; j < n; ++j) out[j] += pv * W;
              v += pv;
            }
            x_ahead.step();
            out_ahead.step();
            filters -= n;
          }
        }
        c0 += channels;
      }
    v0 += nb;
  }
}

void grad_x(const SparseConvTile& a) {
  const int most_n = W != 16 ? kMaxN : (a.v_end - a.v_begin) % 3 != 0 && (a.v_end - a.v_begin) % 4 == 0 ? 6 : 8;
  const int n_first = piece(a.BI, most_n);
  for (int64_t v0 = a.v_begin; v0 < a.v_end;) {
    const int pv = piece(a.v_end - v0, vectors_for(n_first));
    const int tail = v0 + pv == a.v_end ? a.tail : W;
    for (int64_t filters = 0; filters < a.filter_blocks; ++filters)
      for (int64_t ib = 0; ib < a.IB; ++ib)
        for (int64_t c = 0; c < a.BI;) {
          const int n = piece(a.BI - c, n_first);
          kGrad[a.mask != nullptr][n - 1][pv - 1](a, filters, ib, c, v0, tail);
          c += n;
        }
    v0 += pv;
  }
}

void outer(const SparseConvOuter& a) { kOuter[a.count - 1][a.vectors - 1](a); }

}  // namespace

extern const SparseConvTileKernels sparse_conv_tile_kernels;
const SparseConvTileKernels sparse_conv_tile_kernels = {W, kMasked, forward, grad_x, W == 16 ? 6 : kMaxN, W == 16 ? 4 : 2, outer};

}  // namespace sk::SK_ISA
