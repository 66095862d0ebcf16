// Poolings of planes: vectors run along a row of the result. Rows of the image are copied once, with what counts for nothing around them,
// and where the windows are two pixels apart, even and odd pixels apart from each other: a tap is then one load.
#include <limits>

#include "core/pool2d_lanes.h"
#include "core/sequence2d.h"
#include "core/transpose.h"

namespace sk::SK_ISA {
namespace {

SK_INLINE int64_t whole_vectors(int64_t size) { return (size + W - 1) / W * W; }

// Where things lie in `room`: rows [H, stride_w, phase], one padded row, and what a column of taps counts, [OW].
struct Room {
  int64_t phase, padded, rows_floats;
  SK_INLINE explicit Room(const Pool2dShape& s)
      : phase(whole_vectors(whole_vectors(s.OW) + s.KW + whole_vectors(s.W + s.pad_w) / s.stride_w)),
        padded(2 * phase + 2 * W),
        rows_floats(s.H * s.stride_w * phase) {}
};

int64_t room(const Pool2dShape& s) {
  const Room room(s);
  return room.rows_floats + room.padded + whole_vectors(s.OW);
}

template <int... I>
SK_INLINE vf every_second(vf a, vf b, Lanes<I...>) {
  return __builtin_shufflevector(a, b, (2 * I)...);
}
template <int... I>
SK_INLINE vf every_other_second(vf a, vf b, Lanes<I...>) {
  return __builtin_shufflevector(a, b, (2 * I + 1)...);
}

// The rows of a plane, in phases; `padded` has the padding already.
SK_INLINE void copy_rows(const Pool2dShape& s, const Room& r, const float* x, float* rows, float* padded) {
  for (int64_t y = 0; y < s.H; ++y, x += s.W, rows += s.stride_w * r.phase) {
    float* const row = s.stride_w == 1 ? rows : padded;
    int64_t i = 0;
    for (; i + W <= s.W; i += W) store(row + s.pad_w + i, load(x + i));
    for (; i < s.W; ++i) row[s.pad_w + i] = x[i];
    if (s.stride_w == 1) continue;
    for (int64_t p = 0; p < r.phase; p += W) {
      const vf a = load(padded + 2 * p), b = load(padded + 2 * p + W);
      store(rows + p, every_second(a, b, AllLanes{}));
      store(rows + r.phase + p, every_other_second(a, b, AllLanes{}));
    }
  }
}

struct Taps {
  int64_t begin, end, padded;  // inside the image; `padded`: also counting the padding around it
};
SK_INLINE int64_t smaller(int64_t a, int64_t b) { return a < b ? a : b; }
SK_INLINE Taps taps_of(int64_t o, int64_t stride, int64_t pad, int64_t kernel, int64_t size) {
  const int64_t begin = o * stride - pad, end = smaller(begin + kernel, size + pad);
  return {begin < 0 ? 0 : begin, smaller(end, size), end - begin};
}

template <class Combine, class Finish>
SK_INLINE void pool_rows(const SequencePool& a, const Room& r, const float* rows, float* out, const Combine& combine, const Finish& finish) {
  const Pool2dShape& s = a.shape;
  for (int64_t oy = 0; oy < s.OH; ++oy, out += s.OW) {
    const Taps taps = taps_of(oy, s.stride_h, s.pad_h, s.KH, s.H);
    for (int64_t ox = 0; ox < s.OW; ox += W) {
      const float* row = rows + taps.begin * s.stride_w * r.phase + ox;
      vf sum = load(row);
      for (int64_t v = taps.begin; v < taps.end; ++v, row += s.stride_w * r.phase)
        for (int64_t u = v == taps.begin; u < s.KW; ++u) sum = combine(sum, load(s.stride_w == 1 ? row + u : row + u % 2 * r.phase + u / 2));
      const vf result = finish(sum, taps, ox);
      ox + W <= s.OW ? store(out + ox, result) : store_first(out + ox, result, int(s.OW - ox));
    }
  }
}

void pool(const SequencePool& a, int64_t begin, int64_t end) {
  const Pool2dShape& s = a.shape;
  const Room r(s);
  const bool average = a.pooling != Pooling::max, counting = a.pooling == Pooling::average_counting_padding;
  float *const rows = a.room, *const padded = rows + r.rows_floats, *const columns = padded + r.padded;
  const float nothing = average ? 0.0f : -std::numeric_limits<float>::infinity();
  for (int64_t i = 0; i < r.rows_floats + r.padded; ++i) rows[i] = nothing;
  for (int64_t ox = 0; ox < whole_vectors(s.OW); ++ox) {
    const Taps taps = taps_of(smaller(ox, s.OW - 1), s.stride_w, s.pad_w, s.KW, s.W);
    columns[ox] = float(counting ? taps.padded : taps.end - taps.begin);
  }
  for (int64_t plane = begin; plane < end; ++plane) {
    copy_rows(s, r, a.x + plane * s.H * s.W, rows, padded);
    float* const out = a.out + plane * s.OH * s.OW;
    if (!average)
      pool_rows(a, r, rows, out, [](vf p, vf q) { return larger(p, q); }, [](vf sum, const Taps&, int64_t) { return sum; });
    else
      pool_rows(
          a, r, rows, out, [](vf p, vf q) { return p + q; },
          [&](vf sum, const Taps& taps, int64_t ox) {
            return sum / (load(columns + ox) * splat(float(counting ? taps.padded : taps.end - taps.begin)));
          });
  }
}

}  // namespace

extern const SequencePoolKernels sequence_pool_kernels = {room, pool};

}  // namespace sk::SK_ISA
