// grad_weight of unstructured weights on matrix tiles: grad^T x, 32 outputs x 32 inputs at a time, of which the connections are picked
// while they are in the first-level cache. There is never a dense gradient.
#include "core/amx_tiles.h"

namespace sk::amx {
namespace {

// Sums of 32 outputs x 32 inputs, [2][2][16][16], on their way to the weights. They are picked while the tiles work on the next ones.
class Picked {
 public:
  Picked(const Bf16Rows& weights, uint16_t** at, int64_t row) : w(weights), places(at), first(row) {}
  int64_t o = 0, word = 0, outputs = 0;

  SK_INLINE void flush(const float* sums) {
    const int64_t words = w.k_tiles;
    const uint32_t* mask = w.mask + o * words + word;
    uint16_t** to = places + o - first;
    if (outputs == 2 * kTile) {
      SK_UNROLL for (int i = 0; i < 2 * kTile; ++i, mask += words) pick(*mask, sums + i / kTile * 512 + i % kTile * W, to + i);
    } else {
      for (int64_t i = 0; i < outputs; ++i, mask += words) pick(*mask, sums + i / kTile * 512 + i % kTile * W, to + i);
    }
    outputs = 0;
  }

 private:
  SK_INLINE void pick(uint32_t mask, const float* sums, uint16_t** place) {
    const __m512 a = reinterpret_cast<__m512>(load(sums)), b = reinterpret_cast<__m512>(load(sums + 256));
    const __m512i v = _mm512_maskz_compress_epi16(mask, (__m512i)_mm512_cvtne2ps_pbh(b, a));
    uint16_t* to = *place;
    const int64_t count = __builtin_popcount(mask);
    _mm512_mask_storeu_epi16(to, __mmask32((uint64_t(1) << count) - 1), v);
    *place = to + count;
  }

  const Bf16Rows& w;
  uint16_t** places;  // [outputs of the range]: where the next weights of each output go
  int64_t first;      // output of the range
};

}  // namespace

void rows_grad_weight(const Bf16Rows& w, const Tiles& grad, const Tiles& x, int64_t k_tiles, uint16_t** places, int64_t begin, int64_t end) {
  constexpr int64_t kBlockBytes = 1 << 19;  // of x: stays in the second-level cache while all outputs pass by
  alignas(64) float sums[2][4 * 256];
  const TileConfig config(kTile, kTileDepth, kTile);
  const int64_t first = begin * 2 * kTile, rows = (end * 2 * kTile < w.rows ? end * 2 * kTile : w.rows) - first;
  for (int64_t i = 0; i < rows; ++i) places[i] = w.grad_weight + (first + i) * w.fan_in;
  const int64_t block = 1 + kBlockBytes / (2 * kTile * x.row);
  Picked picked(w, places, first);
  int now = 0;
  written();
  for (int64_t w0 = 0; w0 < w.k_tiles; w0 += block)
    for (int64_t panel = begin; panel < end; ++panel)
      for (int64_t word = w0; word < w0 + block && word < w.k_tiles; ++word, now ^= 1) {
        const int64_t o = panel * 2 * kTile;
        const char *a = grad.at(o, 0), *b = x.at(word * 2 * kTile, 0);
        clear<2, 2>();
        for (int64_t k = 0; k < k_tiles; ++k, a += grad.step, b += x.step)
          multiply<true, 2, 2>(a, kTile * grad.row, grad.stride, b, kTile * x.row, x.stride);
        picked.flush(sums[now ^ 1]);
        keep<2, 2>(sums[now], 64);
        written();
        picked.o = o, picked.word = word, picked.outputs = w.rows - o < 2 * kTile ? w.rows - o : 2 * kTile;
      }
  picked.flush(sums[now ^ 1]);
}

}  // namespace sk::amx
