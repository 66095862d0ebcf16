// Launcher of the sparse convolution whose target channels are picked out tap by tap.
#include "cuda/sparse_conv2d_plan.h"
#include "cuda/sparse_conv2d_scatter.cuh"

namespace sk {
namespace {

// A tile, rounds of staged channels and batches of matrix steps in at most `limit` bytes; a batch holds at least a whole cell.
template <class T>
bool choose_scatter(KeptScatterJob& job, int64_t limit, int64_t least_channels) {
  constexpr int E = kPerPiece<T>;
  KeptJob& kept = job.kept;
  ConvJob& c = kept.conv;
  const int64_t channels = int64_t(c.groups) * c.source_group;
  for (int pixels = 65535; pixels >= 128; pixels /= 4) {
    if (!choose_tile(c, 7, pixels)) continue;
    for (int64_t staged = channels; staged >= std::min(least_channels, channels); staged = staged == 1 ? 0 : (staged + 1) / 2) {
      choose_rounds(kept, staged);
      const int64_t width = kept.round_blocks ? int64_t(kept.round_blocks) * kept.source_block : kept.round_channels;
      const int64_t pieces = std::min(pieces_up(channels, E), pieces_up(width, E) + (kept.rounds > 1)), pixel = (pieces | 1) * 16;
      const int64_t steps = pieces_up(kept.round_channels, 2 * E), cell = steps * (kScatterTargets / 8) * 256;
      const int64_t left = limit - c.pixels * pixel - kScatterSums - kScatterTable - 64;
      if (left < cell) continue;
      c.round_pieces = int(pieces), c.by_round = Divider::by(int(pieces)), c.pixel_bytes = uint32_t(pixel),
      c.stage_bytes = uint32_t(c.pixels * pixel);
      kept.sums_at = c.stage_bytes, job.counts_at = up_to_16(kept.sums_at + kScatterSums), job.ids_at = job.counts_at + kScatterCells * 4;
      job.places_at = job.ids_at + kScatterCells * kScatterTargets * 4, job.fragments_at = job.places_at + kScatterCells * kScatterTargets * 8;
      const int64_t all = std::min<int64_t>(kScatterCells, kept.tap_blocks * kept.taps * std::max(1, kept.round_blocks)) * cell;
      job.capacity = int(std::min(left, all) / 256);
      kept.shared_bytes = job.fragments_at + uint32_t(job.capacity) * 256;
      return true;
    }
  }
  return false;
}

template <class T, Fp32 mode>
const char* launch_scatter(const KeptJob& kept, const T* source, const T* weight, const T* bias, T* target, Stream stream) {
  KeptScatterJob job{};
  job.kept = kept;
  const int64_t most = int64_t(shared_bytes_per_block());
  if (!choose_scatter<T>(job, most / 2 - 1024, 32) && !choose_scatter<T>(job, most, 1))
    return "sparse_conv2d: no tile of this shape fits into shared memory";
  const ConvJob& c = job.kept.conv;
  const int64_t chunks = pieces_up(int64_t(c.groups) * c.target_group, kScatterTargets), phases = int64_t(c.y.target_step()) * c.x.target_step();
  if (chunks > 65535 || phases > 65535) return "sparse_conv2d: more blocks than a grid holds";
  const int residents = std::clamp(int(most / (job.kept.shared_bytes + 1024)), 1, 8);
  const int64_t walkers = std::clamp<int64_t>(pieces_up(int64_t(multiprocessors()) * residents, chunks * phases), 1, c.tiles);
  return launch(sparse_conv2d_scatter_kernel<T, mode>, dim3(unsigned(walkers), unsigned(chunks), unsigned(phases)), dim3(kConvThreads),
                job.kept.shared_bytes, stream, source, weight, bias, target, job);
}

}  // namespace

template <class T>
const char* launch_sparse_conv2d_scatter(const KeptJob& job, const T* source, const T* weight, const T* bias, T* target, Fp32 mode, Stream stream) {
  if constexpr (sizeof(T) == 4)
    if (mode == Fp32::tf32) return launch_scatter<T, Fp32::tf32>(job, source, weight, bias, target, stream);
  return launch_scatter<T, Fp32::strict>(job, source, weight, bias, target, stream);
}

#define SK_INSTANTIATE(T) template const char* launch_sparse_conv2d_scatter<T>(const KeptJob&, const T*, const T*, const T*, T*, Fp32, Stream);
SK_INSTANTIATE(float)
SK_INSTANTIATE(bf16)
SK_INSTANTIATE(fp16)
#undef SK_INSTANTIATE

}  // namespace sk
