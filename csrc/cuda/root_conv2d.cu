// Launcher of a grouped convolution with the 1x1 behind it.
#include "cuda/conv_plan.h"
#include "cuda/root_conv2d.cuh"
#include "cuda/root_conv2d.h"

namespace sk {
namespace {

// A tile whose source pieces, for 64 channels between, lie beside them in at most `limit` bytes.
template <class T>
bool choose_root(RootJob& job, int64_t limit) {
  ConvJob& c = job.conv;
  const Widths width = widths(c, kRootTiles, 1, kPerPiece<T>);
  job.pixel_bytes = uint32_t(pieces_up(job.channels, kPerPiece<T>) | 1) * 16;  // an odd number of pieces: eight pixels in eight different banks
  const int64_t left = limit - int64_t(job.pixel_bytes) * 128 - kRootStage - 64;
  for (int pixels = 65535; left > 0 && pixels >= 128; pixels /= 4) {
    if (!choose_tile(c, 7, pixels)) continue;
    const int64_t steps = int64_t(kRootTiles) * (pieces_up(int64_t(most_taps(c.y)) * most_taps(c.x) * width.set, 2) + 1),
                  pixel = (width.block | 1) * 16;
    const int64_t table = up_to_16(c.pixels * pixel), fragments = table + up_to_16(steps * 8), end = fragments + steps * 256;
    if (end > left) continue;
    c.round_pieces = width.block, c.rounds = 1, c.by_round = Divider::by(width.block), c.stages = 1, c.keeps_weights = false;
    c.pixel_bytes = uint32_t(pixel), c.stage_bytes = uint32_t(c.pixels * pixel), c.table_at = uint32_t(table), c.fragments_at = uint32_t(fragments);
    job.between_at = up_to_16(end), job.weights_at = job.between_at + job.pixel_bytes * 128, job.shared_bytes = job.weights_at + kRootStage;
    return true;
  }
  return false;
}

}  // namespace

template <class T>
const char* launch_root_conv2d(const Conv2dShape& first, const T* x, const T* weight1, const T* bias1, int64_t out_channels, const T* weight2,
                               const T* bias2, bool relu, bool last_relu, T* out, Fp32 mode, Stream stream) {
  if (!first.N || !out_channels) return nullptr;
  RootJob job{};
  job.conv = conv_job<T>(first, Direction::forward, x, out, relu);
  job.channels = int(first.K), job.outs = int(out_channels), job.last_relu = last_relu;
  job.vectors = first.K * sizeof(T) % 16 == 0 && reinterpret_cast<uintptr_t>(weight2) % 16 == 0;
  job.pairs = first.channels_last && out_channels % 2 == 0 && reinterpret_cast<uintptr_t>(out) % (2 * sizeof(T)) == 0;
  job.out_at = strides_of(out_channels, first.OH, first.OW, first.channels_last);
  const int64_t most = int64_t(shared_bytes_per_block());
  if (!choose_root<T>(job, most / 2 - 1024) && !choose_root<T>(job, most)) return "root_conv2d: no tile of this shape fits into shared memory";
  const int residents = std::clamp(int(most / (job.shared_bytes + 1024)), 1, 8);
  const unsigned walkers = unsigned(std::clamp<int64_t>(int64_t(multiprocessors()) * residents, 1, job.conv.tiles));
  auto* kernel = root_conv2d_kernel<T, Fp32::strict>;
  if constexpr (sizeof(T) == 4)
    if (mode == Fp32::tf32) kernel = root_conv2d_kernel<T, Fp32::tf32>;
  return launch(kernel, dim3(walkers), dim3(kConvThreads), job.shared_bytes, stream, x, weight1, bias1, weight2, bias2, out, job);
}

#define SK_INSTANTIATE(T)                                                                                                                         \
  template const char* launch_root_conv2d<T>(const Conv2dShape&, const T*, const T*, const T*, int64_t, const T*, const T*, bool, bool, T*, Fp32, \
                                             Stream);
SK_INSTANTIATE(float)
SK_INSTANTIATE(bf16)
SK_INSTANTIATE(fp16)
#undef SK_INSTANTIATE

}  // namespace sk
