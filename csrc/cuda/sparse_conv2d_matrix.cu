// Launchers of the sparse convolution: which way, which variant, what fits into shared memory.
#include "cuda/sparse_conv2d_matrix.cuh"
#include "cuda/sparse_conv2d_plan.h"

namespace sk {

template <class T>
const char* launch_sparse_conv2d_list(const KeptJob& job, const T* source, const T* weight, const T* bias, T* target, Stream stream);

template <class T>
const char* launch_sparse_conv2d_scatter(const KeptJob& job, const T* source, const T* weight, const T* bias, T* target, Fp32 mode, Stream stream);

namespace {

// A tile, rounds of staged channels and batches of steps in at most `limit` bytes, of at least `steps` steps unless there are fewer.
template <class T>
bool choose_batches(KeptMatrixJob& job, int step_bytes, int64_t all_steps, int64_t least_steps, int64_t limit) {
  constexpr int E = kPerPiece<T>;
  KeptJob& kept = job.kept;
  ConvJob& c = kept.conv;
  const int64_t channels = int64_t(c.groups) * c.source_group;
  for (int pixels = 65535; pixels >= 128; pixels /= 4) {
    if (!choose_tile(c, 7, pixels)) continue;
    for (int64_t staged = channels;; staged = (staged + 1) / 2) {
      choose_rounds(kept, staged);
      const int64_t width = kept.round_blocks ? int64_t(kept.round_blocks) * kept.source_block : kept.round_channels;
      const int64_t pieces = std::min(pieces_up(channels, E), pieces_up(width, E) + (kept.rounds > 1)), pixel = (pieces | 1) * 16;
      const int64_t left = limit - c.pixels * pixel - 32, steps = std::min<int64_t>(left / step_bytes, all_steps);
      if (left > 0 && steps >= std::min(all_steps, least_steps)) {
        c.round_pieces = int(pieces), c.by_round = Divider::by(int(pieces)), c.pixel_bytes = uint32_t(pixel),
        c.stage_bytes = uint32_t(c.pixels * pixel);
        const int items = kStepItems<T> * int(steps);
        job.capacity = int(steps);
        kept.tables_at = c.stage_bytes, job.places_at = kept.tables_at + items * 4, job.fragments_at = up_to_16(job.places_at + items * 8);
        kept.shared_bytes = job.fragments_at + uint32_t(steps * (step_bytes - kStepItems<T> * 12));
        return true;
      }
      if (staged == 1) break;
    }
  }
  return false;
}

template <class T, Fp32 mode, int Tiles>
const char* launch_matrix(KeptMatrixJob job, const T* source, const T* weight, const T* bias, T* target, Stream stream) {
  KeptJob& kept = job.kept;
  const ConvJob& c = kept.conv;
  const int64_t most = int64_t(shared_bytes_per_block()), targets = int64_t(c.groups) * c.target_group;
  const int64_t all = std::min<int64_t>(64, pieces_up(int64_t(c.groups) * c.source_group * kept.taps * kept.tap_blocks, kStepItems<T>));
  if (!choose_batches<T>(job, kStepBytes<T, Tiles>, all, 16, most / 2 - 1024) && !choose_batches<T>(job, kStepBytes<T, Tiles>, all, 1, most))
    return "sparse_conv2d: no tile of this shape fits into shared memory";
  job.chunks = int(pieces_up(kept.target_block, 8 * Tiles));
  const int64_t blocks = targets / kept.target_block * job.chunks, phases = int64_t(c.y.target_step()) * c.x.target_step();
  if (blocks > 65535 || phases > 65535) return "sparse_conv2d: more blocks than a grid holds";
  const int residents = std::clamp(int(most / (kept.shared_bytes + 1024)), 1, 8);
  const int64_t walkers = std::clamp<int64_t>(pieces_up(int64_t(multiprocessors()) * residents, blocks * phases), 1, c.tiles);
  return launch(sparse_conv2d_matrix_kernel<T, mode, Tiles>, dim3(unsigned(walkers), unsigned(blocks), unsigned(phases)), dim3(kConvThreads),
                kept.shared_bytes, stream, source, weight, bias, target, job);
}

template <class T, Fp32 mode>
const char* launch_matrix(const KeptJob& kept, const T* source, const T* weight, const T* bias, T* target, Stream stream) {
  KeptMatrixJob job{};
  job.kept = kept;
  if (kept.target_block <= 16) return launch_matrix<T, mode, 2>(job, source, weight, bias, target, stream);
  return launch_matrix<T, mode, 8>(job, source, weight, bias, target, stream);
}

template <class T>
const char* launch_way(SparseConv2dWay way, const KeptJob& job, const T* source, const T* weight, const T* bias, T* target, Fp32 mode,
                       Stream stream) {
  if (!job.conv.N) return nullptr;
  if (way == SparseConv2dWay::list) return launch_sparse_conv2d_list(job, source, weight, bias, target, stream);
  if (way == SparseConv2dWay::scatter) return launch_sparse_conv2d_scatter(job, source, weight, bias, target, mode, stream);
  if constexpr (sizeof(T) == 4)
    if (mode == Fp32::tf32) return launch_matrix<T, Fp32::tf32>(job, source, weight, bias, target, stream);
  return launch_matrix<T, Fp32::strict>(job, source, weight, bias, target, stream);
}

}  // namespace

template <class T>
const char* launch_sparse_conv2d_fwd(const SparseConv2dShape& s, const T* x, const T* weight, const KeptTables& tables, const T* bias, T* out,
                                     Fp32 mode, Stream stream) {
  const KeptJob job = kept_job<T>(s, Direction::forward, tables, x, out);
  return launch_way(sparse_conv2d_way(s, SparseConv2dProduct::out), job, x, weight, bias, out, mode, stream);
}

template <class T>
const char* launch_sparse_conv2d_grad_x(const SparseConv2dShape& s, const T* grad_out, const T* weight, const KeptTables& tables, T* grad_x,
                                        Fp32 mode, Stream stream) {
  const KeptJob job = kept_job<T>(s, Direction::grad_x, tables, grad_out, grad_x);
  return launch_way(sparse_conv2d_way(s, SparseConv2dProduct::grad_x), job, grad_out, weight, static_cast<const T*>(nullptr), grad_x, mode, stream);
}

#define SK_INSTANTIATE(T)                                                                                                                        \
  template const char* launch_sparse_conv2d_fwd<T>(const SparseConv2dShape&, const T*, const T*, const KeptTables&, const T*, T*, Fp32, Stream); \
  template const char* launch_sparse_conv2d_grad_x<T>(const SparseConv2dShape&, const T*, const T*, const KeptTables&, T*, Fp32, Stream);
SK_INSTANTIATE(float)
SK_INSTANTIATE(bf16)
SK_INSTANTIATE(fp16)
#undef SK_INSTANTIATE

}  // namespace sk
